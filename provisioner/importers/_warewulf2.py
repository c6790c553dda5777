"""Warewulf 2: a folder of node files, one folder a group (2.6), or one file with a section a node (2.4).

The Perceus scripts that read them are lost, and so is the documentation of their keys; so what is read is what cannot
be mistaken: the section's or file's name, the one value that is a MAC under a key that speaks of hardware, the capsule
and the address. A node without such a key is named, not guessed.
"""

from __future__ import annotations

import re
from pathlib import Path

from capsulekit.errors import CapsulekitError
from provisioner.importers._found import Gathering, is_address, is_mac, lines_of
from provisioner.registry.names import parse_group

_PAIR = re.compile(r"(?P<key>[A-Za-z][A-Za-z0-9 _.-]*?)\s*[=:]\s*(?P<value>.*)")
_HEAD = re.compile(r"\[(?P<ini>[^\]]+)\]|(?P<brace>[\w.-]+)\s*\{")
_CARD = re.compile(r"(boot |admin |eth\d+ )?(hwaddr|hw addr|hardware address|mac|mac addr|mac address|ethernet|nodeid)")
_ADDRESS = re.compile(r"(boot |admin |eth\d+ )?(ipaddr|ip addr|ip address|address|ip)")
MOST_FILES = 100_000


def read_folder(got: Gathering, folder: Path) -> None:
    """Every file below: its name is the node's, the folder it lies in the group. Raises CapsulekitError."""
    start = folder / "nodes" if (folder / "nodes").is_dir() else folder
    found = 0
    for path in sorted(start.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(start).parts)  # .svn, .git, .n0000.swp
        if hidden or path.is_symlink() or not path.is_file():
            continue
        found += 1
        if found > MOST_FILES:
            raise CapsulekitError(f"{folder} holds more than {MOST_FILES} files: that is no folder of nodes")
        group = path.parent.name if path.parent != start else ""
        said: dict[str, str] = {}
        for where, line in lines_of(path):
            _pair(got, where, line, said)
        if path.stem in ("config", "default", "defaults", "group") and not _cards(said):
            got.note(f"{path}: left out: the settings of a group, without a node")
            continue
        _node(got, str(path), said.get("nodename", path.name.removesuffix(".conf")), group, said)
    if not found:
        raise CapsulekitError(f"there is no file of a node in {start}")


def read_file(got: Gathering, path: Path) -> None:
    """Sections ``[NAME]`` or ``NAME {``; what stands before the first one counts for all of them."""
    common: dict[str, str] = {}
    sections: list[tuple[str, str, dict[str, str]]] = []
    said, open_since = common, ""
    for where, line in lines_of(path):
        head = _HEAD.fullmatch(line)
        if head:
            if open_since:
                got.wrong(open_since, "this section is never closed")
            said = dict(common)
            name = (head["ini"] or head["brace"]).strip()
            sections.append((where, name, said))
            open_since = where if head["brace"] else ""
        elif line == "}":
            if not open_since:
                got.wrong(where, "a closing brace without an opening one")
            said, open_since = common, ""
        else:
            _pair(got, where, line, said)
    if open_since:
        got.wrong(open_since, "this section is never closed")
    if not sections:
        got.wrong(str(path), "no section of a node is in it")
    for where, name, values in sections:
        _node(got, where, values.get("nodename", name), "", values)


def _pair(got: Gathering, where: str, line: str, said: dict[str, str]) -> None:
    match = _PAIR.fullmatch(line.rstrip(";"))
    if not match:
        got.wrong(where, "not KEY = VALUE")
        return
    key = re.sub(r"[ _.-]+", " ", match["key"].strip().lower())
    said[key] = match["value"].strip().strip("\"'")


def _cards(said: dict[str, str]) -> list[str]:
    return [value for key, value in said.items() if _CARD.fullmatch(key) and is_mac(value)]


def _node(got: Gathering, where: str, name: str, folder: str, said: dict[str, str]) -> None:
    cards = _cards(said)
    if len(cards) != 1:
        why = f"{len(cards)} keys of it are hardware addresses" if cards else "no key of it is a hardware address"
        got.wrong(where, f"node {name}: {why}")
        return
    addresses = [value for key, value in said.items() if _ADDRESS.fullmatch(key) and is_address(value)]
    group = next((said[key] for key in ("group", "nodegroup", "groupname") if said.get(key)), folder)
    try:
        parse_group(group or "none")
    except CapsulekitError as error:
        got.wrong(where, error.message)
        return
    vnfs = said.get("vnfs", "")
    enabled = {"0": "0", "no": "0", "1": "1", "yes": "1"}.get(said.get("enabled", "").lower(), "")
    address = addresses[0] if addresses else ""
    got.machine(where, cards[0], name, groupname=group, vnfs=vnfs, address=address, enabled=enabled)
