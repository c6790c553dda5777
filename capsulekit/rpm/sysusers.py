"""Users and groups that packages declare, made in a root before the packages' files are laid down.

Since 4.19 rpm does this itself (rpm-sysusers(7)); an older one, such as Debian 12's, would give the files to root. Here
it is done for every rpm, so that the root does not depend on whose it is. Run inside a build's namespaces as
``python -m capsulekit.rpm.sysusers ROOT PACKAGES EPOCH``.
"""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.rpm.dnf import unpack
from capsulekit.rpm.header import package_header

FILES = ("passwd", "group", "shadow", "gshadow")
DECLARED = re.compile(r"(?:user|group|groupmember)\(.+\)")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")
# The numbers login.defs(5) of these distributions keeps for the system, taken from above as systemd-sysusers(8) does.
HIGHEST, LOWEST = 999, 201
NO_LOGIN = "/usr/sbin/nologin"


@dataclass(frozen=True, order=True)
class Entry:
    """One line of sysusers.d(5): ``kind`` is u, u!, g or m; ``number`` is "-", a number, or NUMBER:GROUP."""

    kind: str
    name: str
    number: str = "-"
    gecos: str = ""
    home: str = "/"
    shell: str = NO_LOGIN


def parse(line: str) -> Entry | None:
    """An entry, or None for a line of another kind; raises CapsulekitError for what could not stand in /etc/passwd."""
    try:
        words = [word if word != "-" else "" for word in shlex.split(line)]
    except ValueError:
        words = []
    if len(words) < 2 or words[0] not in ("u", "u!", "g", "m"):
        return None
    kind, name, number, gecos, home, shell = (*words, *[""] * 6)[:6]
    # A file whose owner would be taken over is not there yet.
    made = Entry(
        kind, name, "-" if not number or number.startswith("/") else number, gecos, home or "/", shell or NO_LOGIN
    )
    if not NAME.fullmatch(name) or any(set(":\n") & set(text) for text in (gecos, made.home, made.shell)):
        raise CapsulekitError(f"a package declares an account that cannot be: {line.strip()!r}")
    return made


def declared(packages: Iterable[Path]) -> list[Entry]:
    """What the package files declare: their provides user(NAME), group(NAME) hold the line as base64 for a version."""
    found = set()
    for path in packages:
        for name, version in package_header(path).provides():
            if DECLARED.fullmatch(name) and version:
                line = base64.b64decode(version + "=" * (-len(version) % 4)).rstrip(b"\0").decode("utf-8", "replace")
                if entry := parse(line):
                    found.add(entry)
    return sorted(found)


class Accounts:
    """The four files of accounts in one folder, added to in memory and written at once."""

    def __init__(self, etc: Path, epoch: int) -> None:
        self._etc, self._day = etc, epoch // 86400
        self._rows = {name: self._read(name) for name in FILES}

    def _read(self, name: str) -> list[list[str]]:
        path = self._etc / name
        return [line.split(":") for line in path.read_text().splitlines()] if path.exists() else []

    def write(self) -> None:
        """Write the files; each keeps its owner and mode."""
        for name, rows in self._rows.items():
            if (path := self._etc / name).exists():
                path.write_text("".join(":".join(row) + "\n" for row in rows))

    def _row(self, file: str, name: str) -> list[str] | None:
        return next((row for row in self._rows[file] if row[0] == name), None)

    def _free(self, wanted: str) -> str:
        """``wanted``, or for "-" the highest number that is neither a user's nor a group's."""
        if wanted != "-":
            return wanted
        used = {row[2] for file in ("passwd", "group") for row in self._rows[file] if len(row) > 2}
        for number in range(HIGHEST, LOWEST - 1, -1):
            if str(number) not in used:
                return str(number)
        raise CapsulekitError("the packages declare more accounts than there are numbers for the system's")

    def group(self, name: str, number: str) -> str:
        """Add a group unless it is there; its number."""
        if row := self._row("group", name):
            return row[2]
        number = self._free(number)
        self._rows["group"].append([name, "x", number, ""])
        self._rows["gshadow"].append([name, "!*", "", ""])
        return number

    def user(self, entry: Entry) -> None:
        """Add a user unless there is one of that name, with a group of the same name and number unless it says else."""
        if self._row("passwd", entry.name):
            return
        number, _, group = entry.number.partition(":")
        number = self._free(number)
        if group:
            row = self._row("group", group)
            gid = row[2] if row else group
        else:
            gid = self.group(entry.name, number)
        self._rows["passwd"].append([entry.name, "x", number, gid, entry.gecos, entry.home, entry.shell])
        expires = "1" if entry.kind == "u!" else ""
        self._rows["shadow"].append([entry.name, "!*", str(self._day), "", "", "", "", expires, ""])

    def member(self, user: str, group: str) -> None:
        """Put a user into a group."""
        self.group(group, "-")
        for file in ("group", "gshadow"):
            row = self._row(file, group)
            if row and user not in (members := [name for name in row[3].split(",") if name]):
                row[3] = ",".join([*members, user])


def add(etc: Path, entries: Iterable[Entry], epoch: int) -> None:
    """Add entries to the files below ``etc``: groups first, fixed numbers before free ones, each kind by name."""
    accounts = Accounts(etc, epoch)

    def rank(entry: Entry) -> tuple[int, bool, str]:
        return "gum".index(entry.kind[0]), entry.number == "-", entry.name

    for entry in sorted(entries, key=rank):
        if entry.kind == "g":
            accounts.group(entry.name, entry.number)
        elif entry.kind == "m":
            accounts.member(entry.name, entry.number)
        else:
            accounts.user(entry)
    accounts.write()


def main(root: Path, packages: Path, epoch: int) -> None:
    """Make the accounts that the package files of a folder declare; the first on top of the setup package's."""
    files = sorted(packages.glob("*.rpm"))
    entries = declared(files)
    if not entries:
        return
    etc = root / "etc"
    if not (etc / "passwd").exists():
        brings = next((path for path in files if "/etc/passwd" in package_header(path).paths()), None)
        if brings is None:
            return  # rpm will say whose files cannot be given to whom
        etc.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            unpack(brings, "", Path(folder))
            for name in FILES:
                if (path := Path(folder, "etc", name)).exists():
                    shutil.copy2(path, etc / name)
    add(etc, entries, epoch)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except CapsulekitError as failure:
        sys.exit(f"E: {failure}")
