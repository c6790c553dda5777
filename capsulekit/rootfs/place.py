"""Puts a recipe's files and its users' keys into a root: run by customize.sh as ``place files|keys ROOT WORK``.

Links on the way to a file are followed inside the root (/sbin may be a link to usr/sbin, /var/run one to /run) and
never out of it; the name itself is replaced, link or not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MAX_LINKS = 40
# Covered by other file systems on a running node; the normaliser empties them.
COVERED = ("dev", "proc", "run", "sys", "tmp")


class Refused(Exception):
    """A file that cannot be placed; the text says why."""


def inside(root: Path, path: str) -> Path:
    """Where ``path``, absolute in the root, really lies; missing folders count as they are named. Raises Refused."""
    left = [part for part in path.split("/") if part not in ("", ".")]
    here: list[str] = []
    links = 0
    while left:
        part = left.pop(0)
        if part == "..":
            here = here[:-1]
            continue
        full = root.joinpath(*here, part)
        if not full.is_symlink():
            here.append(part)
            continue
        links += 1
        if links > MAX_LINKS:
            raise Refused(f"the path {path} leads through a loop of links")
        target = str(full.readlink())
        if target.startswith("/"):
            here = []
        left = [p for p in target.split("/") if p not in ("", ".")] + left
    return root.joinpath(*here)


def number(root: Path, table: str, name: str) -> int:
    """The uid or gid of a name in the root's etc/passwd or etc/group. Raises Refused."""
    if name == "root":
        return 0
    if name.isdecimal():
        return int(name)
    with (root / "etc" / table).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2])
    raise Refused(f"there is no {name} in the root's /etc/{table}")


def place(root: Path, data: bytes, mode: int, owner: int, group: int, path: str) -> None:
    """Write one file; its folders are made as needed."""
    folder, _, name = path.rpartition("/")
    where = inside(root, folder)
    top = where.relative_to(root).parts[:1]
    if top and top[0] in COVERED:
        raise Refused(f"the file {path} would be lost: /{top[0]} is empty in every capsule")
    try:
        where.mkdir(parents=True, exist_ok=True)
        target = where / name
        if target.is_dir() and not target.is_symlink():
            raise Refused(f"the file {path} cannot be written: it is a folder in the root")
        target.unlink(missing_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            os.fchown(out.fileno(), owner, group)
            os.fchmod(out.fileno(), mode)
    except OSError as error:
        if error.strerror and "space" in error.strerror:
            raise
        raise Refused(f"the file {path} cannot be written: {error.strerror}") from None


def place_files(root: Path, work: Path) -> None:
    """Every file of the recipe: lines "NUMBER MODE OWNER GROUP PATH" in ``work``/files."""
    for line in (work / "files").read_text(encoding="utf-8").splitlines():
        index, mode, owner, group, path = line.split(" ", 4)
        data = (work / "content" / index).read_bytes()
        place(root, data, int(mode, 8), number(root, "passwd", owner), number(root, "group", group), path)


def place_keys(root: Path, work: Path) -> None:
    """Every user's authorized keys, in ``work``/keys/NAME."""
    homes = {}
    for line in (root / "etc/passwd").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) == 7:
            homes[fields[0]] = (fields[5], int(fields[2]), int(fields[3]))
    for keys in sorted((work / "keys").iterdir()):
        if keys.name not in homes:
            raise Refused(f"the user {keys.name} was not added to the root")
        home, uid, gid = homes[keys.name]
        place(root, keys.read_bytes(), 0o600, uid, gid, f"{home}/.ssh/authorized_keys")
        folder = inside(root, f"{home}/.ssh")
        os.chown(folder, uid, gid)
        folder.chmod(0o700)


def main(words: list[str]) -> int:
    """``files`` or ``keys``, ROOT, WORK; 1 and one line on stderr when something is refused."""
    what, root, work = words[0], Path(words[1]), Path(words[2])
    os.umask(0o022)
    try:
        {"files": place_files, "keys": place_keys}[what](root, work)
    except Refused as why:
        sys.stderr.write(f"E: {why}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
