"""A folder with a small recipe and a cache: what a build of it makes, and what it reuses."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from building import build_words, cold_cache, ok, sh, unpacked

PARENT = """[capsule]
name = "steps"
version = "1"
init = "/bin/sh"
[distro]
name = "debian"
release = "12"
[variables]
greeting = "hello"
[packages]
include = ["busybox-static", "dash"]
[rootfs]
base = "extract"
[kernel]
package = "linux-image-cloud-amd64"
modules = ["loop", "squashfs", "overlay"]
[files."/etc/greeting"]
content = "@{greeting}\\n"
[image]
release_level = 9
[scripts]
rootfs = ["odd.sh"]
"""
CHILD = 'extends = ["parent.toml"]\n'
ODD = "#!/bin/sh\nset -eu\necho odd >/etc/odd\n"
# Has what is not in a root that is only unpacked: accounts, and units to switch on.
SYSTEM = PARENT.replace("busybox-static", "passwd").replace("dash", "systemd").replace('base = "extract"', "") + (
    '[users.admin]\nuid = 1500\n[services]\nenable = ["systemd-networkd.service"]\n'
)


@dataclass(frozen=True)
class Report:
    """What `build --json` said, and the capsule."""

    capsule: Path
    told: dict[str, Any]

    @property
    def made(self) -> set[str]:
        """The steps that were made, of those that can be reused; "install N packages" is there only when made."""
        always = {"choose packages", "fetch packages", "pack and sign"}
        return {str(s["name"]) for s in self.told["steps"] if not s["reused"]} - always


@dataclass(frozen=True)
class Desk:
    """A folder with a recipe in it, and the cache that several of them share."""

    folder: Path
    cache: Path

    def words(self, *more: str | Path, cache: Path | None = None, out: str = "x.vnfs") -> list[str]:
        return build_words(self.folder / "r.toml", self.folder / out, cache or self.cache, *more)

    def build(self, *more: str | Path, cache: Path | None = None, out: str = "x.vnfs", **env: str) -> Report:
        words = self.words(*(more or ("--locked", "--offline")), "--json", cache=cache, out=out)
        return Report(self.folder / out, json.loads(ok(*words, env={**os.environ, **env})))

    def from_nothing(self) -> Report:
        """The same, with an empty step cache."""
        cache = cold_cache(self.folder / "cold", indexes=True, of=self.cache)
        report = self.build(cache=cache, out="cold.vnfs")
        assert {"root file system", "kernel and modules", "stage 2"} < report.made
        shutil.rmtree(cache)
        return report

    def edit(self, old: str, new: str, name: str = "parent.toml") -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def copy(self, folder: Path) -> Desk:
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.vnfs"))
        return Desk(folder, self.cache)


def read(capsule: Path, path: str) -> str | None:
    """A file of the capsule's root, or None."""
    with_parts = capsule.with_suffix(".parts")
    if not with_parts.exists():
        unpacked(capsule, with_parts)
    done = sh("unsquashfs", "-cat", with_parts / "layers/rootfs.squashfs", path, errors="replace")
    return done.stdout if done.returncode == 0 else None
