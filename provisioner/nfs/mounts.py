"""Hybrid layers mounted read-only for the NFS server: each at a place of its own, recorded, and taken over.

The record is written before anything is mounted. What is mounted at a recorded place is ours, whoever mounted it: a
server that was killed leaves its mounts, and the next one goes on with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from capsulekit.edit import syscalls
from capsulekit.edit.mounts import mount_layer, mounts, unmount_all
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from provisioner.nfs import loops

NAME = re.compile(r"[0-9a-f]{32}")
# The numbers of our loop devices begin here: far from those that losetup(8) takes by itself. minor(3) has 20 bits.
FIRST_DEVICE = 1 << 16


@dataclass(frozen=True)
class Mountable:
    """A hybrid layer: its file, and its number from 0 to 65535, which stays the same."""

    image: Path
    number: int


@dataclass(frozen=True)
class LayerMounts:
    """The mounts of one master: below ``folder``, recorded in ``record``."""

    folder: Path
    record: Path

    def hold(self, wanted: Mapping[str, Mountable]) -> list[str]:
        """Mount each image at its name below the folder, unmount whatever else is there; returns what went wrong.

        What is mounted already, and of that very image, is left alone.
        """
        problems = []
        self._note(wanted)
        there = self._mounted()
        for name, layer in wanted.items():
            place = self.folder / name
            if place in there and loops.shows(there[place], layer.image):
                continue
            try:
                if place in there:
                    unmount_all(place)
                _mount(layer, place)
            except (CapsulekitError, OSError) as wrong:
                problems.append(f"the hybrid layer {name} is not mounted: {wrong}")
        problems += self._drop({self.folder / name for name in wanted})
        return problems

    def clear(self) -> list[str]:
        """Unmount all; returns what went wrong. The record stays until nothing is left."""
        return self._drop(set())

    def _drop(self, kept: set[Path]) -> list[str]:
        problems, left = [], set[str]()
        there = self._mounted()
        for name in self._noted():
            place = self.folder / name
            if place in kept:
                left.add(name)
                continue
            try:
                if place in there:
                    unmount_all(place)
                    loops.forget(int(there[place].partition(":")[2]))
                place.rmdir()
            except FileNotFoundError:
                pass
            except (CapsulekitError, OSError) as wrong:
                left.add(name)
                problems.append(f"the hybrid layer {name} is still mounted: {wrong}")
        self._write(left)
        return problems

    def _note(self, wanted: Mapping[str, Mountable]) -> None:
        self._write(set(self._noted()) | set(wanted))

    def _noted(self) -> list[str]:
        """The names on record; a damaged record counts as what lies in the folder, which is ours alone."""
        try:
            names = json.loads(self.record.read_text(encoding="utf-8"))
            if not isinstance(names, list):
                raise ValueError
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(name for name in names if isinstance(name, str) and NAME.fullmatch(name))

    def _write(self, names: set[str]) -> None:
        if names or self.record.exists():
            self.record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(self.record, (json.dumps(sorted(names)) + "\n").encode())

    def _mounted(self) -> dict[Path, str]:
        """What is mounted directly in the folder: place -> device number "MAJOR:MINOR"."""
        return {one.at: one.device for one in mounts() if one.at.parent == self.folder}


def _mount(layer: Mountable, place: Path) -> None:
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    device = loops.attach(layer.image, FIRST_DEVICE + layer.number)
    if device is None:
        mount_layer(layer.image, place)  # by any device: open files do not outlive another mount then
        return
    try:
        syscalls.mount(device, place, "squashfs", syscalls.RDONLY | syscalls.NOSUID | syscalls.NODEV)
    finally:
        loops.let_go(device)
