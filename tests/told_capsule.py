"""Small capsules with real layers, lock, recipe and bill of materials, made in a second: what `why` and `diff` read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from small_capsule import AUTHOR

from capsulekit.capsule.manifest import Layer, Manifest
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.files import sha256_bytes, sha256_file
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.lock.model import Archive, Lock, Package
from capsulekit.metadata.provenance import provenance
from capsulekit.metadata.sbom import sbom
from capsulekit.recipe.load import loads_recipe

EPOCH = 1700000000
RECIPE = """[capsule]
name = "told"
version = "{version}"

[distro]
name = "debian"
release = "12"

[packages]
include = ["tool"]

[kernel]
package = "linux-image"

[scripts]
rootfs = [{{name = "50-stamp", text = "#!/bin/sh\\n{script}\\n"}}]

[services]
{verb} = ["tool.service"]

[files."/etc/motd"]
content = "{motd}"

[image]
level = {level}
"""


@dataclass(frozen=True)
class Node:
    """One path to put into a layer: bytes for a file, else ``link``, ``hard`` (another path) or ``device``."""

    data: bytes | None = None
    link: str = ""
    hard: str = ""
    device: tuple[int, int] | None = None
    mode: int = 0o644
    uid: int = 0
    kind: bytes = b""


def package(name: str, version: str, by: str, stage: int = 0) -> Package:
    digest = sha256_bytes(f"{name} {version}".encode())
    return Package(name, version, "amd64", 1000, digest, f"pool/{name}.deb", stage, by)


LOCK = Lock(
    distro="debian",
    release="12",
    arch="amd64",
    epoch=EPOCH,
    request="ab" * 32,
    normaliser=3,
    archives=(Archive("bookworm", "cd" * 32),),
    keys=(),
    sets={
        "rootfs": (
            package("base", "1", "essential"),
            package("lib", "2:2.0", "tool"),
            package("tool", "1.0", "recipe"),
        ),
        "kernel": (package("linux-image", "6.1-1", "recipe"),),
        "initrd": (package("busybox", "1.36", "recipe"),),
    },
    tools={"mksquashfs": "4.5.1"},
)

LISTS = {
    "base": ["/.", "/bin", "/etc", "/etc/shadow", "/usr", "/usr/share", "/usr/share/doc"],
    "lib:amd64": ["/.", "/lib", "/lib/libtool.so"],
    "tool": ["/.", "/bin", "/bin/tool", "/etc", "/etc/tool.conf", "/usr", "/usr/lib/systemd/system/tool.service"],
}

ROOT: dict[str, Node] = {
    "bin": Node(link="usr/bin"),
    "lib": Node(link="usr/lib"),
    "etc": Node(mode=0o755),
    "etc/motd": Node(b"hello\n"),
    "etc/shadow": Node(b"root:*:19675:0:99999:7:::\n", mode=0o640),
    "etc/stamp": Node(b"stamped\n"),
    "etc/tool.conf": Node(b"a = 1\n"),
    "etc/tool.cache": Node(b"made by the postinst\n"),
    "etc/alternatives/t": Node(link="/usr/bin/tool"),
    "etc/systemd/system/multi-user.target.wants/tool.service": Node(link="/lib/systemd/system/tool.service"),
    "usr/bin/tool": Node(b"tool" * 1000, mode=0o755),
    "usr/bin/twin": Node(hard="usr/bin/tool"),
    "usr/lib/libtool.so": Node(b"lib" * 500),
    "usr/lib/systemd/system/tool.service": Node(b"[Unit]\n"),
    "usr/share/doc/tool/b\udcffd": Node(b"x"),
    "var/lib/dpkg/status": Node(b"Package: tool\n"),
    "var/lib/dpkg/info/tool.postinst": Node(b"#!/bin/sh\ntouch /etc/tool.cache\n", mode=0o755),
    **{f"var/lib/dpkg/info/{name}.list": Node("\n".join(paths).encode() + b"\n") for name, paths in LISTS.items()},
}
MODULES: dict[str, Node] = {
    "usr/lib/modules/6.1.0-1/kernel/loop.ko": Node(b"loop" * 200),
    "usr/lib/modules/6.1.0-1/modules.dep": Node(b"kernel/loop.ko:\n"),
}
OWNERS: dict[str, list[str]] = {
    "file /etc/motd": ["etc/motd"],
    "services": ["etc/systemd/system/multi-user.target.wants/tool.service"],
    "script 50-stamp": ["etc/stamp"],
}


@dataclass(frozen=True)
class Told:
    """What a capsule is made of; tests replace a part."""

    version: str = "1"
    motd: str = "hello\\n"
    script: str = "echo stamped >/etc/stamp"
    level: int = 3
    lock: Lock = LOCK
    root: Mapping[str, Node] = field(default_factory=lambda: ROOT)
    modules: Mapping[str, Node] = field(default_factory=lambda: MODULES)
    hybrid: Mapping[str, Node] = field(default_factory=dict)
    owners: Mapping[str, Sequence[str]] = field(default_factory=lambda: OWNERS)
    licences: Mapping[str, str] = field(default_factory=dict)
    kernel: str = "6.1.0-1"
    acl: bytes = b""
    users: tuple[str, ...] = ()
    verb: str = "enable"

    def locked(self, part: str, *packages: Package) -> Told:
        """With other packages in a part of the lock."""
        return replace(self, lock=replace(self.lock, sets={**self.lock.sets, part: packages}))


def write_tree(stream: io.BufferedIOBase, nodes: Mapping[str, Node]) -> None:
    """The nodes as a tar, with the folders that lead to them."""
    folders = {"/".join(p.split("/")[:n]) for p in nodes for n in range(1, p.count("/") + 1)}
    every = {**{folder: Node(mode=0o755) for folder in folders}, **nodes}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for path in sorted(every, key=lambda p: (bool(every[p].hard), p)):
            node = every[path]
            entry = tarfile.TarInfo(path)
            entry.mode, entry.uid = node.mode, node.uid
            entry.type, entry.linkname = tarfile.DIRTYPE, node.link or node.hard
            if node.data is not None:
                entry.type, entry.size = tarfile.REGTYPE, len(node.data)
            elif node.link or node.hard:
                entry.type = tarfile.SYMTYPE if node.link else tarfile.LNKTYPE
            elif node.device:
                entry.type, (entry.devmajor, entry.devminor) = tarfile.CHRTYPE, node.device
            elif node.kind:
                entry.type = node.kind
            tar.addfile(entry, io.BytesIO(node.data or b""))


def write_layer(out: Path, nodes: Mapping[str, Node], level: int = 3) -> Path:
    """A real squashfs of the nodes."""
    with layer_from_tar(out, EPOCH, level) as stream:
        write_tree(stream, nodes)  # type: ignore[arg-type]
    return out


def told_capsule(out: Path, told: Told = Told()) -> Path:
    """Write the capsule, signed by ``small_capsule.AUTHOR``."""
    text = RECIPE.format(version=told.version, motd=told.motd, script=told.script, level=told.level, verb=told.verb)
    text += "".join(f"\n[users.{name}]\nuid = {1000 + number}\n" for number, name in enumerate(told.users))
    recipe = loads_recipe(text, "recipe.toml")
    layers = {"modules": told.modules, "rootfs": told.root, **({"hybrid": told.hybrid} if told.hybrid else {})}
    files = {f"layers/{n}.squashfs": write_layer(out.with_suffix(f".{n}"), t, told.level) for n, t in layers.items()}
    digests = {name: sha256_file(file) for name, file in files.items()}
    acl = "layers/rootfs.acl" if told.acl else None
    mounted = [name for name in files if "hybrid" not in name]
    manifest = Manifest(
        name="told",
        version=told.version,
        arch="amd64",
        distro="debian",
        release="12",
        epoch=told.lock.epoch,
        init="/sbin/init",
        cmdline="quiet",
        recipe_digest=recipe.digest,
        kernel_release=told.kernel,
        layers=tuple(
            Layer(name, files[name].stat().st_size, digests[name], 1, acl=acl if "rootfs" in name else None)
            for name in mounted
        ),
        hybridize=("/usr/share/doc/**",) if told.hybrid else (),
    )
    kind = ("deb", "debian")
    texts = {
        "recipe.toml": recipe.text.encode(),
        "capsule.lock": told.lock.dumps().encode(),
        "sbom.cdx.json": sbom(recipe, told.lock, kind, told.licences, told.owners),
        "provenance.json": provenance(recipe, told.lock, kind, digests),
        "boot/vmlinuz": f"kernel {told.kernel}".encode(),
        "boot/initrd.img": b"initrd",
        **({acl: told.acl} if acl else {}),
    }
    sources: dict[str, Path | bytes] = {**texts, **files}
    write_capsule(out, manifest, [Member(name, source) for name, source in sources.items()], AUTHOR)
    for file in files.values():
        file.unlink()
    return out
