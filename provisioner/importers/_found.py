"""What an importer gives: machines, addresses of names, defaults of new nodes, and what it left out and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from initramfs_builder.errors import printable

from capsulekit.errors import CapsulekitError
from provisioner.registry.names import parse_group, parse_mac, parse_name

BIGGEST = 32 << 20  # bytes; 10 000 nodes are 2 MB in the wordiest of the formats
SHOWN = 20  # mistakes that are printed one by one
_SHORT_MAC = re.compile(r"[0-9A-Fa-f]{1,2}([:-][0-9A-Fa-f]{1,2}){5}")


@dataclass(frozen=True)
class Machine:
    """One machine as the source has it. ``where`` is FILE:LINE; ``name`` is HOST[.CLUSTER] or "" for the next free."""

    where: str
    mac: str
    name: str = ""
    settings: tuple[tuple[str, str], ...] = ()  # keys and values as `node set` takes them


@dataclass(frozen=True)
class Named:
    """A fixed address for a node that is registered already, or is in the same source, by this name."""

    where: str
    name: str
    address: str


@dataclass(frozen=True)
class Found:
    """Everything one source says."""

    machines: tuple[Machine, ...] = ()
    addresses: tuple[Named, ...] = ()
    defaults: Mapping[str, str | int | bool] = field(default_factory=dict)  # keys of defaults.toml
    notes: tuple[str, ...] = ()  # what was left out, and why
    files: tuple[Path, ...] = ()  # capsules and modules that lie there: other commands import them


class Gathering:
    """Collects what an importer finds and every mistake; ``done`` gives the one or raises with the other."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self._machines: list[Machine] = []
        self._addresses: list[Named] = []
        self._notes: dict[str, None] = {}
        self._wrong: list[str] = []
        self.defaults: dict[str, str | int | bool] = {}
        self.files: list[Path] = []

    def machine(self, where: str, mac: str, name: str = "", **settings: str) -> None:
        """Take one machine; empty settings are left out. What cannot be is remembered as a mistake."""
        try:
            nodeid = mac_of(mac)
            if name:
                parse_name(name)
            if settings.get("address"):
                settings["address"] = address_of(settings["address"])
            if settings.get("groupname"):
                parse_group(settings["groupname"])
        except CapsulekitError as error:
            self.wrong(where, error.message)
            return
        kept = tuple((key, value) for key, value in settings.items() if value != "")
        self._machines.append(Machine(where, nodeid, name, kept))

    def address(self, where: str, name: str, address: str) -> None:
        """Take a fixed address of a name."""
        try:
            parse_name(name)
            self._addresses.append(Named(where, name, address_of(address)))
        except CapsulekitError as error:
            self.wrong(where, error.message)

    def note(self, text: str) -> None:
        """Say what was left out; the same twice is said once."""
        self._notes[printable(text)] = None

    def wrong(self, where: str, why: str) -> None:
        """Remember a mistake of the source."""
        self._wrong.append(f"{where}: {printable(why)}")

    def done(self) -> Found:
        """What was found. Raises CapsulekitError naming the mistakes, all of them up to SHOWN."""
        if self._wrong:
            shown = tuple(self._wrong[:SHOWN])
            if more := len(self._wrong) - len(shown):
                shown += (f"and {more} more",)
            count = "1 mistake" if len(self._wrong) == 1 else f"{len(self._wrong)} mistakes"
            raise CapsulekitError(
                f"{self.source} has {count}; nothing was imported",
                details=shown if len(shown) > 1 else (),
                hint=shown[0] if len(shown) == 1 else None,
            )
        return Found(
            tuple(self._machines), tuple(self._addresses), self.defaults, tuple(self._notes), tuple(self.files)
        )


def text_of(path: Path) -> str:
    """The text of a file that may be anything. Raises CapsulekitError for what is none, or too large."""
    if not path.exists():
        raise CapsulekitError(
            f"{path} is a link that leads nowhere" if path.is_symlink() else f"there is no file {path}"
        )
    if not path.is_file():
        raise CapsulekitError(f"{path} is not a regular file")
    if path.stat().st_size > BIGGEST:
        raise CapsulekitError(f"{path} is larger than {BIGGEST >> 20} MB: that is no list of nodes")
    content = path.read_bytes()
    if b"\0" in content:
        raise CapsulekitError(f"{path} is not a text file")
    # Comments of old files are in any encoding; what counts is ASCII and checked word by word.
    return content.decode("utf-8-sig", "replace")


def lines_of(path: Path, comment: str = "#") -> Iterator[tuple[str, str]]:
    """("FILE:LINE", text) of every line that is not empty once its comment is gone."""
    for number, line in enumerate(text_of(path).splitlines(), 1):
        text = line.partition(comment)[0].strip()
        if text:
            yield f"{path}:{number}", text


def mac_of(text: str) -> str:
    """The NodeID of a MAC; also of one whose bytes lack their leading zeros, as ethers(5) and dhcpd allow."""
    if _SHORT_MAC.fullmatch(text):
        text = ":".join(part.zfill(2) for part in re.split("[:-]", text))
    return parse_mac(text)


def address_of(text: str) -> str:
    """An address of one machine, in its one spelling, without a prefix length. Raises CapsulekitError."""
    from provisioner.registry.names import parse_address

    return parse_address(text.partition("/")[0])


def is_mac(text: str) -> bool:
    """Whether a word looks like the MAC of an Ethernet card."""
    return bool(_SHORT_MAC.fullmatch(text)) or bool(re.fullmatch(r"01[:-](..[:-]){5}..", text))


def is_address(text: str) -> bool:
    """Whether a word is an IP address."""
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        return False
    return True
