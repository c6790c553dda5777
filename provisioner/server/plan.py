"""The plan: everything one node needs to know to boot, as lines that a POSIX shell can read.

One item a line, single spaces, last line ``end`` (a cut plan is noticed). docs/reference/openapi.yaml has the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.capsule.manifest import HYBRID, MEMBER, Manifest
from capsulekit.errors import CapsulekitError
from provisioner.catalog import DataFile, Script
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.vnfs.store import StoredMember, VnfsStore

VERSION = 1
Runs = Mapping[str, tuple[int, int]]
USUAL = (0, 600)  # seconds
BOOT = ("boot/vmlinuz", "boot/initrd.img", MEMBER)


@dataclass(frozen=True)
class CapsuleView:
    """An installed capsule as far as a plan needs it; it never changes for one identity."""

    installed: InstalledCapsule
    manifest: Manifest
    files: tuple[StoredMember, ...]
    # The capsule's own scripts for states after init: no part of a boot plan, the agent fetches them.
    later: tuple[StoredMember, ...] = ()
    # Hex sha256 of its hybrid layer, "" where it has none.
    hybrid: str = ""


def is_private(blob: Path) -> bool:
    """The store gives private members mode 0600 and public ones 0644: the file itself says who may have it."""
    return not blob.stat().st_mode & 0o004


def wait_reason(node: Node, capsule: InstalledCapsule | None) -> str:
    """Why this node must wait at the boot screen: disabled, not-accepted, no-capsule, capsule-missing; or ""."""
    if not node.accepted:
        return "not-accepted"
    if not node.enabled:
        return "disabled"
    if not node.vnfs:
        return "no-capsule"
    return "" if capsule else "capsule-missing"


def view_capsule(store: VnfsStore, installed: InstalledCapsule) -> CapsuleView:
    """What nodes fetch of an installed capsule. Raises CapsulekitError when the store lost or changed a part of it."""
    manifest = store.manifest(installed.name, installed.identity)
    members = {member.name: member for member in store.members(installed.name, installed.identity)}
    wanted = fetched(manifest)
    later = [path for path in sorted(manifest.provision) if path not in wanted]
    return CapsuleView(
        installed,
        manifest,
        tuple(members[path] for path in wanted),
        tuple(members[path] for path in later),
        members[HYBRID].sha256 if HYBRID in members else "",
    )


def fetched(manifest: Manifest) -> list[str]:
    """The members that a plan names: what a node fetches to boot."""
    wanted = [*BOOT]
    for layer in manifest.layers:
        wanted += [layer.path] if layer.acl is None else [layer.path, layer.acl]
    return wanted + provision_scripts(manifest, "init")


def provision_scripts(manifest: Manifest, state: str) -> list[str]:
    """Member paths of the capsule's own scripts for one state, in number order."""
    prefix = f"provision/{state}/"
    return sorted(path for path in manifest.provision if path.startswith(prefix))


def make_plan(
    node: Node,
    capsule: CapsuleView,
    scripts: Sequence[Script],
    data: Sequence[DataFile],
    *,
    site_kargs: str,
    now: float,
    mirrors: Sequence[str] = (),
    hybrid: str = "",
    nfs: str = "",
) -> str:
    """The plan's text. Pure: the same arguments give the same bytes. ``now`` is epoch seconds,
    ``mirrors`` are base URLs (see siteconf.is_mirror). ``hybrid`` is the export with the capsule's hybrid layer,
    ``nfs`` the one with public files (HOST:/PATH, see nfs.places), "" where there is none.

    Raises CapsulekitError when a value would break the line format (the registry and the manifest check theirs).
    """
    # The last word of a name counts: what the admin sets by hand goes over ours.
    network = f"ck.hybrid=nfs4:{hybrid}" if hybrid else ""
    kargs = " ".join(text for text in (network, capsule.manifest.cmdline, site_kargs, node.kargs) if text)
    lines = [
        _line("plan", VERSION),
        _line("nodeid", node.nodeid),
        _line("hostname", node.hostname),
        _line("cluster", node.cluster or "-"),
        _line("group", node.groupname or "-"),
        _line("vnfs", capsule.installed.name),
        _line("machine-id", node.machine_id),
        _line("time", int(now)),
        _line("identity", capsule.installed.identity),
        _line("key", capsule.installed.public_key),
        _rest("comment", capsule.manifest.trusted_comment),
        _line("debug", node.debug),
        _line("init", capsule.manifest.init),
        _rest("kargs", kargs),
        *([_line("nfs", nfs)] if nfs else []),
        *(_line("mirror", url) for url in mirrors),
        *(_line("file", f.name, f.sha256, f.size, "private" if f.private else "public") for f in capsule.files),
        *(_line("layer", layer.path, layer.unpacked) for layer in capsule.manifest.layers),
        *(_line("provision", path) for path in provision_scripts(capsule.manifest, "init")),
        *(_script_line(script) for script in sorted(scripts, key=lambda s: (s.order, s.name, s.module))),
        *(_line("data", d.module, d.name, d.sha256, len(d.content)) for d in data),
        "end",
    ]
    return "\n".join(lines) + "\n"


def make_state_plan(node: Node, state: str, scripts: Sequence[Script], data: Sequence[DataFile], runs: Runs) -> str:
    """What a running node does in a state: ``ok`` when that is nothing, else lines as in a boot plan.

    ``scripts`` are in the order they run. ``runs`` has, by module, after how many seconds its scripts run again, also
    when nothing changed (0: never), and how many one may take. Raises CapsulekitError as ``make_plan`` does.
    """
    if not scripts:
        return "ok\n"
    modules = dict.fromkeys(script.module for script in scripts)
    lines = [
        _line("plan", VERSION),
        _line("nodeid", node.nodeid),
        _line("hostname", node.hostname),
        _line("cluster", node.cluster or "-"),
        _line("group", node.groupname or "-"),
        _line("vnfs", node.vnfs or "-"),
        _line("state", state),
        *(_line("run", module, *runs.get(module, USUAL)) for module in modules),
        *(_script_line(script) for script in scripts),
        *(_line("data", d.module, d.name, d.sha256, len(d.content)) for d in data),
        "end",
    ]
    return "\n".join(lines) + "\n"


def own_scripts(view: CapsuleView, state: str) -> list[tuple[int, str, StoredMember]]:
    """(number, file name, member) of a capsule's own scripts for a state after init."""
    prefix = f"provision/{state}/"
    found = [(member.name.removeprefix(prefix), member) for member in view.later if member.name.startswith(prefix)]
    return [(int(name[:2]), name, member) for name, member in found]


def _script_line(script: Script) -> str:
    need = "required" if script.required else "optional"
    order = f"{script.order:02d}"
    return _line("script", script.state, order, script.name, script.module, script.sha256, len(script.text), need)


def _line(word: str, *values: str | int) -> str:
    texts = [str(value) for value in values]
    for text in texts:
        if not text or not text.isascii() or any(c.isspace() or not c.isprintable() for c in text):
            raise CapsulekitError(f"{word} can't be {text!r} in a boot plan: it must be one word")
    return " ".join([word, *texts])


def _rest(word: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise CapsulekitError(f"{word} can't be {value!r} in a boot plan: it must be one line of plain ASCII text")
    return f"{word} {value}".rstrip()
