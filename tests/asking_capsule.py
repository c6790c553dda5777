"""A capsule that asks questions, with a real root layer, and a site that trusts its author."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from capsulekit_cli import Done, cli
from small_capsule import AUTHOR, CONTENT, layer, small_capsule

from capsulekit.image.squashfs import layer_from_tar
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from provisioner.registry.registry import Registry
from provisioner.vnfs.store import VnfsStore

NAME = "tiny-1.0.amd64"
ROOT = "layers/rootfs.squashfs"
QUESTIONS = b"""
[[question]]
key = "root"
prompt = "Root password"
type = "password"
required = true
target = "/root/.config/hash"
template = "root:{root:crypt}\\n"

[[question]]
key = "ntp"
prompt = "Time server"
type = "text"
default = "ntp.example"
target = "/etc/ntp.conf"
template = "server {ntp} {mode}\\n{other} stays\\n"

[[question]]
key = "mode"
prompt = "How"
type = "choice"
choices = ["iburst", "offline"]
default = "iburst"

[[question]]
key = "syslog"
prompt = "Log host"
target = "/lib/syslog.conf"
template = "{syslog}"
"""
ANSWERS = 'root = "geheim"\nntp = "10.0.0.1"\n'


@cache
def root_layer() -> bytes:
    """A merged root: lib is a link, root is closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "root.squashfs"
        with layer_from_tar(out, 1700000000, 3) as sink, tarfile.open(fileobj=sink, mode="w|") as tar:
            for path, kind, mode, target in (
                ("etc", tarfile.DIRTYPE, 0o755, ""),
                ("etc/ntp.conf", tarfile.REGTYPE, 0o644, ""),
                ("lib", tarfile.SYMTYPE, 0o777, "usr/lib"),
                ("root", tarfile.DIRTYPE, 0o700, ""),
                ("usr", tarfile.DIRTYPE, 0o755, ""),
                ("usr/lib", tarfile.DIRTYPE, 0o751, ""),
            ):
                info = tarfile.TarInfo(path)
                info.type, info.mode, info.linkname, info.mtime = kind, mode, target, 1700000000
                info.uid = 7 if path == "usr/lib" else 0
                tar.addfile(info, io.BytesIO())
        return out.read_bytes()


def asking_capsule(out: Path, questions: bytes = QUESTIONS, acl: bytes = b"", **changes: object) -> str:
    """Write it; returns its identity. ``acl`` is the list of its root's layer."""
    content = {**CONTENT, "layers/modules.squashfs": root_layer(), ROOT: root_layer(), "configure.toml": questions}
    content["layers/rootfs.acl"] = acl
    layers = (layer("layers/modules.squashfs", content), layer(ROOT, content, acl="layers/rootfs.acl"))
    return small_capsule(out, content, layers=layers, **changes)


def trusting_site(folder: Path) -> SitePaths:
    """A site whose settings are all defaults."""
    made = SitePaths(folder / "etc", folder / "var")
    made.state.mkdir()
    author = folder / "author.pub"
    author.write_text(AUTHOR.public.file_text)
    Keyring(made.trust).add(author)
    (made.config / "site.toml").write_text("")
    Registry(made.state / "registry.db").close()
    return made


def answers_file(folder: Path, text: str = ANSWERS, mode: int = 0o600) -> Path:
    path = folder / "answers.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def kit(paths: SitePaths, *words: str | Path) -> Done:
    """One command line at that site."""
    return cli("--config-dir", paths.config, "--state-dir", paths.state, *words)


def store_of(paths: SitePaths) -> VnfsStore:
    return VnfsStore(paths, Registry(paths.state / "registry.db"))


def stored(paths: SitePaths, *tops: str) -> list[str]:
    """Every file of the store, but its lock."""
    found = [p for top in tops or ("blobs", "vnfs") for p in (paths.state / top).rglob("*") if p.is_file()]
    return sorted(str(p.relative_to(paths.state)) for p in found if p.name != ".lock")


def set_vnfs(paths: SitePaths, capsule: str, macs: Sequence[str] = ("52:54:00:00:00:01",)) -> None:
    """Nodes that boot a capsule."""
    for mac in macs:
        assert kit(paths, "node", "add", mac).status == 0
    assert kit(paths, "node", "set", "vnfs", capsule, *macs, "-i").status == 0
