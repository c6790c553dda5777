"""A site with the small busybox capsule installed, to edit: real layers, mounted by the real commands."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import built
import pytest
from capsulekit_cli import Done, cli
from serving import until
from small_site import stage1_folder

from capsulekit.edit.mounts import mounts_in
from capsulekit.edit.record import EditRecord, edits, write_record
from capsulekit.edit.syscalls import DETACH, unmount
from capsulekit.files import sha256_file
from capsulekit.sitepaths import SitePaths
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.registry.registry import open_registry
from provisioner.vnfs.store import VnfsStore

NAME, SHORT = "test-busybox-1.amd64", "test-busybox"
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")


@cache
def _template() -> Path:
    """An initialised site that trusts the author and has the capsule; made once, then copied."""
    top = built.folder() / "edit-site"
    paths = SitePaths(top / "etc", top / "var")
    pool, stage1 = "127.0.0.100-127.0.0.110", stage1_folder(top / "stage1")
    init_site(paths, InitRequest("lo", "127.0.0.1/8", pool, "site.test", "auto", (stage1,), default_vnfs=NAME))
    site = EditSite(top)
    site.good("trust", "add", f"{built.author_key()}.pub")
    site.good("vnfs", "import", built.capsule(built.BUSYBOX))
    return top


@dataclass(frozen=True)
class EditSite:
    """A site below ``top``; capsules are mounted at ``at``."""

    top: Path

    @property
    def paths(self) -> SitePaths:
        return SitePaths(self.top / "etc", self.top / "var")

    @property
    def at(self) -> Path:
        return self.top / "mnt"

    def words(self, *words: str | Path) -> list[str]:
        """A command line, as the program gets it."""
        return ["--config-dir", str(self.paths.config), "--state-dir", str(self.paths.state), *map(str, words)]

    def run(self, *words: str | Path) -> Done:
        """One command, in this process."""
        return cli(*self.words(*words))

    def good(self, *words: str | Path) -> str:
        """What a command says that must succeed."""
        done = self.run(*words)
        assert done.status == 0, (words, done)
        return done.out

    def bad(self, *words: str | Path, status: int = 1) -> str:
        """What a command says that must be refused: one line of error, and its way out."""
        done = self.run(*words)
        assert done.status == status, (words, done)
        assert done.err.startswith("ERROR: ") and "this is a bug" not in done.err, done
        return done.err

    def json(self, *words: str | Path) -> Any:
        """The record of a command."""
        return json.loads(self.good(*words, "--json"))

    def process(self, *words: str | Path) -> list[str]:
        """The same command as a program of its own."""
        return [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()", *self.words(*words)]

    def mount(self, *more: str | Path) -> Path:
        """Mount the capsule; where it is."""
        self.good("mount", SHORT, "--at", self.at, *more)
        return self.at

    @property
    def row(self) -> InstalledCapsule:
        with closing(open_registry(self.paths)) as registry:
            found = registry.capsule(NAME)
            assert found is not None
            return found

    @property
    def identity(self) -> str:
        """What nodes boot."""
        return self.row.identity

    @property
    def history(self) -> list[Past]:
        with closing(open_registry(self.paths)) as registry:
            return registry.generations(NAME)

    @property
    def layers(self) -> list[str]:
        """The layers of what nodes boot, topmost first."""
        with closing(open_registry(self.paths)) as registry:
            return [layer.path for layer in VnfsStore(self.paths, registry).manifest(NAME).layers]

    @property
    def record(self) -> EditRecord:
        (found,) = edits(self.paths.state)
        return found

    def folder(self) -> Path:
        return self.paths.state / "edits" / self.record.key

    def reboot(self) -> None:
        """What a restart of the machine leaves: the files, and nothing mounted."""
        for mount in list(mounts_in(self.top)):
            if mount.at != self.paths.state:
                unmount(mount.at, DETACH)
        for record in edits(self.paths.state):
            told = {"boot_id": "0" * 36, "pid": 1, "pid_start": 1}
            write_record(self.paths.state / "edits" / record.key, EditRecord(**{**vars(record), **told}))

    def seen(self, path: str) -> str | None:
        """The text of a file of what nodes boot, as its layers show it; None when it is not there."""
        place = self.top / "look"
        self.good("mount", NAME, "--at", place, "--no-block")
        try:
            return (place / path).read_text() if (place / path).exists() else None
        finally:
            self.good("close", NAME)

    def check_clean(self) -> None:
        """Nothing is mounted, no loop device holds a layer, no folder of an edit is left, every blob is one's own."""
        assert [m.at for m in mounts_in(self.top) if m.at != self.paths.state] == []
        until(lambda: not loops(self.top), 10)
        assert [path.name for path in (self.paths.state / "edits").iterdir() if not path.name.startswith(".")] == []
        with closing(open_registry(self.paths)) as registry:
            store = VnfsStore(self.paths, registry)
            wanted = set()
            for row in store.list():
                for identity in store.generations(row.name):
                    wanted |= set(store.digests(row.name, identity).values())
                    assert store.generation(row.name, identity).is_dir()
                folders = {path.name for path in store.home(row.name).iterdir()}
                assert folders == set(store.generations(row.name))
        there = {path.name for path in (self.paths.state / "blobs").glob("??/*")}
        assert there == wanted
        assert all(sha256_file(self.paths.state / "blobs" / name[:2] / name) == name for name in there)


def loops(top: Path) -> list[str]:
    """The files below a folder that loop devices hold."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            found.append(file.read_text().strip())
    return [path for path in found if path.startswith(str(top))]


@contextmanager
def edit_site(folder: Path) -> Iterator[EditSite]:
    """A site of a test's own; whatever a failed test leaves mounted goes."""
    shutil.copytree(_template(), folder / "s", dirs_exist_ok=True)
    try:
        yield EditSite(folder / "s")
    finally:
        for mount in list(mounts_in(folder)):
            with suppress(OSError):
                unmount(mount.at, DETACH)
