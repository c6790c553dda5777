"""Generations of an installed capsule, made as umount makes them, without anything being mounted."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from asking_capsule import NAME, answers_file, asking_capsule, kit, trusting_site

from capsulekit.capsule.manifest import Layer
from capsulekit.files import sha256_file
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.sitepaths import SitePaths
from provisioner.registry.registry import Registry, open_registry
from provisioner.vnfs.generation import Part, new_generation, stored, switch
from provisioner.vnfs.place import placing
from provisioner.vnfs.store import VnfsStore

MAC = "52:54:00:00:00:01"


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return trusting_site(tmp_path)


@pytest.fixture
def asked(paths: SitePaths, tmp_path: Path) -> str:
    """A capsule with answers, installed: generations 1 (import) and 2 (configure); what was imported."""
    identity = asking_capsule(tmp_path / "t.vnfs")
    assert kit(paths, "vnfs", "import", tmp_path / "t.vnfs", "-y", "--answers", answers_file(tmp_path)).status == 0
    return identity


@pytest.fixture
def store(paths: SitePaths) -> Iterator[VnfsStore]:
    with closing(open_registry(paths)) as registry:
        yield VnfsStore(paths, registry)


def edit_layer(out: Path, files: Mapping[str, bytes]) -> Path:
    """A layer of these files."""
    with layer_from_tar(out, 1700000000, 3) as sink, tarfile.open(fileobj=sink, mode="w|") as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(data), 1700000000
            tar.addfile(info, io.BytesIO(data))
    return out


def edited(
    paths: SitePaths, name: str, files: Mapping[str, bytes], message: str = "", registry: Registry | None = None,
    *, private: bool = True,
) -> str:  # fmt: skip
    """One more edit layer on top; returns the new identity."""
    if registry is None:
        with closing(open_registry(paths)) as opened:
            return edited(paths, name, files, message, opened, private=private)
    store = VnfsStore(paths, registry)
    with store.lock():
        row = store.get(name)
        base = stored(store, row, row.identity)
        number = sum("-edit." in layer.path for layer in base.manifest.layers) + 1
        member = f"layers/{number:02}-edit.squashfs"
        with placing(store, "edit") as placed:
            image = edit_layer(store.home(row.name) / ".layer-test", files)
            layer = Layer(member, image.stat().st_size, sha256_file(image), 4096, private=private)
            told = replace(base.manifest, layers=(layer, *base.manifest.layers))
            made = new_generation(store, placed, base, told, [Part(member, image, private=private)])
            image.unlink()
            changes = {"paths": {"added": len(files)}, "packages": {"added": {"htop": "3.2.2"}}}
            switch(store, made, base=row.identity, kind="edit", message=message, changes=changes)
    return made.identity


def told(paths: SitePaths, name: str = NAME) -> list[dict[str, object]]:
    """The lines that `vnfs history` prints for programs."""
    lines: list[dict[str, object]] = json.loads(kit(paths, "vnfs", "history", name, "--json").out)["history"]
    return lines


def handed(paths: SitePaths, identity: str, name: str = NAME, mac: str = MAC) -> None:
    """A node was given the plan with this generation."""
    registry = Registry(paths.state / "registry.db")
    registry.record_booted(mac, json.dumps({"vnfs": name, "identity": identity}))
    registry.close()


def whole(paths: SitePaths) -> bool:
    """Every listed capsule verifies, and the store has nothing besides."""
    names = kit(paths, "vnfs", "list").out.split()
    return kit(paths, "vnfs", "verify", *names).status == 0
