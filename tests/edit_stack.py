"""Layers made of folders by the real mksquashfs, edits of them, and listings of whole trees with all they hold."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.edit import flatten, session
from capsulekit.edit.changes import Changes
from capsulekit.edit.pack import Packed, pack_changes
from capsulekit.edit.record import EditRecord, edit_folder
from capsulekit.edit.stack import Image, merged

EPOCH = 1_700_000_000
Listing = dict[str, tuple[object, ...]]


def layer_of(tree: Path, out: Path) -> Image:
    """A squashfs of a folder, as it is."""
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    tree.chmod(0o755)
    subprocess.run(["mksquashfs", tree, out, "-noappend", "-quiet", "-no-progress", "-comp", "zstd"], check=True)
    return Image(out)


def listing(root: Path, *, times: bool = True) -> Listing:
    """Path -> kind, mode, owner, content, attributes, and which other paths are the same file."""
    found: Listing = {}
    names: dict[tuple[int, int], list[str]] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in sorted([*folders, *files]):
            path = folder + b"/" + name
            status = os.lstat(path)
            shown = os.path.relpath(path, os.fsencode(root)).decode("utf-8", "backslashreplace")
            content: object = status.st_rdev
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)  # noqa: PTH115 (names may be no UTF-8)
            attributes = tuple(sorted(attributes_of(path).items()))
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                names.setdefault((status.st_dev, status.st_ino), []).append(shown)
            when = int(status.st_mtime) if times and not stat.S_ISDIR(status.st_mode) else 0
            found[shown] = (oct(status.st_mode), status.st_uid, status.st_gid, content, attributes, when)
    for group in names.values():
        if len(group) > 1:  # others may lie in a layer that hides this one
            found.update({name: (*found[name], "one file", group[0]) for name in group})
    return found


def attributes_of(path: Path | bytes) -> dict[str, bytes]:
    """The extended attributes of a path."""
    try:
        keys = os.listxattr(path, follow_symlinks=False)
    except OSError:  # a squashfs that holds none at all
        return {}
    return {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}


@dataclass
class Capsule:
    """A stack of layers, topmost first, that is edited again and again in a state folder."""

    folder: Path
    images: list[Image]
    acls: list[bytes] = field(default_factory=list)
    hybrid: Image | None = None
    key: str = "small"
    made: int = 0

    @property
    def edit(self) -> Path:
        """The edit's folder."""
        return edit_folder(self.folder / "state", self.key)

    @property
    def at(self) -> Path:
        """Where it is mounted."""
        return self.folder / "at"

    def open(self) -> EditRecord:
        """Mount it for writing."""
        return session.open_edit(
            self.folder / "state",
            self.key,
            name="small-1",
            base="0" * 64,
            at=self.at,
            images=self.images,
            who="anna",
            hybrid=self.hybrid,
            acls=self.acls,
        )

    def pack(self) -> Packed:
        """Pack what was changed, and take it as the topmost layer when there is any."""
        self.made += 1
        out, acl = self.folder / f"{self.made:02}-edit.squashfs", self.folder / f"{self.made:02}-edit.acl"
        with session.frozen(self.edit):
            packed = pack_changes(self.edit, out, acl)
            session.finish(self.edit)
        if packed.layer:
            self.images = [Image(out), *self.images]
            self.acls = [acl.read_bytes() if packed.acl else b"", *self.acls]
        return packed

    def change(self, *steps: Callable[[Path], object]) -> Packed:
        """Edit and pack; each step is given the mounted root."""
        self.open()
        for step in steps:
            step(self.at)
        return self.pack()

    def flatten(self, count: int) -> Packed:
        """The topmost layers become one."""
        out, acl = self.folder / f"flat{self.made}.squashfs", self.folder / f"flat{self.made}.acl"
        packed = flatten.flatten(
            self.images[:count],
            self.acls[:count],
            below=self.images[count:],
            below_lists=self.acls[count:],
            hybrid=self.hybrid,
            work=self.folder / "flattening",
            layer_out=out,
            acl_out=acl,
        )
        self.images = [Image(out), *self.images[count:]]
        self.acls = [acl.read_bytes() if packed.acl else b"", *self.acls[count:]]
        return packed

    @contextmanager
    def seen(self) -> Iterator[Path]:
        """The whole root, to read."""
        with merged(self.images, self.folder / "view", hybrid=self.hybrid, acls=self.acls) as root:
            yield root

    def listing(self) -> Listing:
        """All that a node would see."""
        with self.seen() as root:
            return listing(root)

    def close(self) -> None:
        """Whatever a test has left open."""
        for _ in range(3):
            subprocess.run(["umount", "-q", "-R", self.at], check=False)
        session.discard(self.edit)


def layer_listing(image: Image, folder: Path) -> Listing:
    """What one layer holds, marks of overlay and all."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "squashfs", "-o", "ro,loop", image.path, folder], check=True)
    try:
        return listing(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def write(path: str, data: str | bytes = "x", mode: int = 0o644) -> Callable[[Path], None]:
    """A step that writes a file."""

    def step(root: Path) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
        file.chmod(mode)

    return step


def remove(path: str) -> Callable[[Path], None]:
    """A step that removes a path with all in it."""
    return lambda root: subprocess.run(["rm", "-r", "--", root / path], check=True) and None


def shell(*words: str | Sequence[str]) -> Callable[[Path], None]:
    """A step that runs a command in the mounted root's folder (on the machine, not inside)."""
    return lambda root: subprocess.run(words, cwd=root, check=True, stdout=subprocess.DEVNULL) and None  # type: ignore[arg-type]


def paths(group: Sequence[object]) -> list[str]:
    """The paths of some changes."""
    return [change.path for change in group]  # type: ignore[attr-defined]


def told(changes: Changes) -> dict[str, tuple[str, ...]]:
    """Path -> what changed."""
    return {c.path: c.what for group in (changes.added, changes.changed, changes.removed) for c in group}


def left_of(folder: Path) -> list[str]:
    """Mounts below a folder, and loop devices whose file lies there."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [m for m in mounted if m.startswith(f"{folder}/")] + [loop for loop in loops if f"({folder}/" in loop]
