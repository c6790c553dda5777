"""A capsule with real layers: a small root with something of everything that a hybridize list meets, on a real site."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

from small_capsule import AUTHOR, CONTENT, EPOCH, layer, manifest
from small_site import make_site

from capsulekit.capsule.manifest import HYBRID
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.sitepaths import SitePaths

RELEASE = "6.1.0-18-amd64"
NAME = "split-1.0.amd64"
MODULES = f"usr/lib/modules/{RELEASE}"
Entry = bytes | str | None  # a file's content, a link's target, a folder


def layer_of(out: Path, entries: dict[str, Entry], modes: dict[str, int] | None = None, **fields: object) -> bytes:
    """The bytes of a squashfs with these paths. ``fields`` are pax headers by path."""
    with (
        layer_from_tar(out, EPOCH, 3, exported=True) as sink,
        tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar,
    ):
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = EPOCH, (modes or {}).get(name, 0o755 if content is None else 0o644)
            info.pax_headers = dict(fields.get(name, {}))  # type: ignore[call-overload]
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str) and content.startswith("hard:"):
                info.type, info.linkname = tarfile.LNKTYPE, content.removeprefix("hard:")
            elif isinstance(content, str):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content, 0o777
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.read_bytes()


ROOT: dict[str, Entry] = {
    **dict.fromkeys(["etc", "usr", "usr/bin", "usr/lib", "usr/share", "usr/share/doc", "usr/share/doc/x", "home"]),
    **dict.fromkeys(["usr/share/shut", "var", "var/lib"]),
    "bin": "usr/bin",
    "sbin": "usr/bin",
    "lib": "usr/lib",
    "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
    "usr/bin/init": b"#!/bin/sh\n",
    "usr/bin/sh": b"#!/usr/bin/interp\n",
    "usr/bin/interp": b"not an elf\n",
    "usr/share/doc/a": b"a page\n" * 3000,
    "usr/share/doc/same": "hard:usr/share/doc/a",
    "usr/share/doc/link": "a",
    "usr/share/doc/x/deep": b"deep\n",
    "usr/share/doc/acl": b"acl\n",
    "usr/share/doc/caps": b"caps\n",
    "usr/share/doc/suid": b"suid\n",
    "usr/share/doc/hidden": b"hidden\n",
    "usr/share/shut/inside": b"inside\n",
    "usr/share/other": b"other\n",
    "home/file": b"home\n",
}
MODES = {"usr/share/doc/suid": 0o4755, "usr/share/doc/hidden": 0o600, "usr/share/shut": 0o700, "usr/bin/sh": 0o755}
CAPS = {"usr/share/doc/caps": {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x20" + "\x00" * 15}}
# The kernel's own list: NFS is built in, and so nothing of it needs a file.
BUILT_IN = {
    **dict.fromkeys(["usr", "usr/lib", "usr/lib/modules", MODULES]),
    **dict.fromkeys((f"{MODULES}/modules.{name}" for name in ("dep", "alias", "softdep", "order")), b""),
    f"{MODULES}/modules.builtin": b"kernel/fs/nfs/nfs.ko\nkernel/fs/nfs/nfsv4.ko\n",
}


def split_site(
    folder: Path,
    *,
    interface: str = "lo",
    address: str = "127.0.0.1/8",
    modules: dict[str, Entry] = BUILT_IN,
    **changes: object,
) -> SitePaths:
    """A site with that capsule installed as NAME; ``changes`` are the manifest's. Its hybrid layer has one file."""
    from provisioner.registry.registry import open_registry
    from provisioner.vnfs.store import VnfsStore

    paths = make_site(folder, interface=interface, address=address)
    hybrid: dict[str, Entry] = {**dict.fromkeys(["usr", "usr/share", "usr/share/old"]), "usr/share/old/home": b"old\n"}
    acl = "usr/share/doc/acl\taccess\tu::rw-,u:33:r--,g::r--,m::r--,o::r--\n"
    content = {
        **CONTENT,
        "layers/modules.squashfs": layer_of(folder / "modules.squashfs", modules),
        "layers/rootfs.squashfs": layer_of(folder / "rootfs.squashfs", ROOT, MODES, **CAPS),
        "layers/rootfs.acl": acl.encode(),
        HYBRID: layer_of(folder / "hybrid.squashfs", hybrid),
        "hybridize": b"/usr/share/old\n",
    }
    layers = (
        layer("layers/modules.squashfs", content),
        replace(layer("layers/rootfs.squashfs", content), acl="layers/rootfs.acl"),
    )
    told = {"name": "split", "kernel_release": RELEASE, "hybridize": ("/usr/share/old",), "layers": layers, **changes}
    write_capsule(
        folder / "split.vnfs", manifest(content, **told), [Member(name, data) for name, data in content.items()], AUTHOR
    )
    registry = open_registry(paths)
    VnfsStore(paths, registry).import_file(folder / "split.vnfs")
    registry.close()
    return paths
