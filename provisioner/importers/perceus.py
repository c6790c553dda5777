"""A Perceus master: its configuration, its database, its capsules and modules.

One file, told by its name and content, or a folder with any of them below it (/etc/perceus, the state folder, or both
copied into one): perceus.conf, defaults.conf, nodes.conf of perceus-reload, ethers, database/ (Berkeley DB hash or
btree, or what db_dump made of it), and .vnfs and .pmod files, which ``vnfs import`` and ``module import`` take.
"""

from __future__ import annotations

from pathlib import Path

from capsulekit.errors import CapsulekitError
from provisioner.importers._berkeley import is_berkeley, read_pairs
from provisioner.importers._found import Found, Gathering, is_mac, lines_of, text_of
from provisioner.importers.ethers import read_into as read_ethers

ABOUT = "Perceus: its folders, or one of perceus.conf, defaults.conf, nodes.conf, ethers, database/*."
# Table of the database → key of `node set`. What a node reported (status, ipaddr, lastcontact) is not taken over.
TABLES = {"hostname": "", "group": "groupname", "vnfs": "vnfs", "desc": "desc", "enabled": "enabled", "debug": "debug"}
SUFFIXES = (".bdb", ".db", ".dump", ".txt")
CONFIG = ("perceus.conf", "defaults.conf", "nodes.conf", "ethers")
MOST_FILES = 100_000


def read(source: Path) -> Found:
    """Everything below a folder, or in one file. Raises CapsulekitError."""
    got = Gathering(source)
    files = _below(source) if source.is_dir() else [source]
    tables: dict[str, Path] = {}
    taken = 0
    for path in files:
        if path.suffix in (".vnfs", ".pmod"):
            got.files.append(path)
        elif path.name in CONFIG:
            _READERS[path.name](got, path)
        elif path.suffix in SUFFIXES and path.stem in (*TABLES, "ipaddr", "lastcontact", "status", "hwaddr"):
            if path.stem in tables:
                got.wrong(str(path), f"{tables[path.stem]} is the same table")
            tables[path.stem] = path
        else:
            continue
        taken += 1
    if not taken:
        known = ", ".join((*CONFIG, "database/*.bdb", "*.vnfs", "*.pmod"))
        raise CapsulekitError(f"there is nothing of Perceus in {source}", hint=f"looked for: {known}")
    if tables:
        _database(got, tables)
    return got.done()


def _below(folder: Path) -> list[Path]:
    """The files of a folder, sorted. What lies in a capsule's or module's own tree is not looked at."""
    found: list[Path] = []
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.is_symlink():
                continue  # /etc/perceus links into the state folder, a link of a stranger anywhere
            if path.is_dir() and path.name not in ("vnfs", "modules", "nodescripts", "tftp"):
                pending.append(path)
            elif path.is_file():
                found.append(path)
            if len(found) + len(pending) > MOST_FILES:
                raise CapsulekitError(f"{folder} holds more than {MOST_FILES} files: that is no folder of Perceus")
    return sorted(found)


def settings_of(path: Path) -> dict[str, str]:
    """A file in Perceus's own form: ``key = value``, whole-line comments, quotes, the first of a comma's list.

    Of a key that stands twice the later line counts, as its parser put later values first.
    """
    values: dict[str, str] = {}
    for line in text_of(path).splitlines():
        key, equals, value = line.partition("=")
        if line.lstrip().startswith("#") or not equals:
            continue
        first = value.strip().strip('"').split(",")[0].strip().strip('"')
        if first:
            values[key.strip()] = first
    return values


def _perceus_conf(got: Gathering, path: Path) -> None:
    values = settings_of(path)
    if not values:
        got.wrong(str(path), "no line of it is KEY = VALUE")
    if device := values.get("master network device"):
        got.note(f"{path}: the nodes were on {device}; here: capsulekit init --interface {device}")
    if values.get("vnfs transfer master"):
        got.note(f"{path}: the file server was {values['vnfs transfer master']}; mirrors are set in site.toml")
    if values.get("database type") == "mysql":
        got.note(f"{path}: the nodes were in MySQL: export its tables as CSV and import those")


def _defaults_conf(got: Gathering, path: Path) -> None:
    values = settings_of(path)
    if not values:
        got.wrong(str(path), "no line of it is KEY = VALUE")
    texts = {"Node Name": "node_name", "Group Name": "group", "Vnfs Name": "vnfs"}
    got.defaults |= {texts[key]: value for key, value in values.items() if key in texts}
    if "Enabled" in values:
        got.defaults["enabled"] = values["Enabled"] == "1"
    if "First Node" in values:
        if values["First Node"].isascii() and values["First Node"].isdigit() and len(values["First Node"]) < 10:
            got.defaults["first_node"] = int(values["First Node"])
        else:
            got.wrong(str(path), f"First Node {values['First Node']!r} is not a number")
    for key in ("Total Nodes", "Debug"):
        if key in values:
            got.note(f"{path}: {key!r} has no counterpart here")


def _nodes_conf(got: Gathering, path: Path) -> None:
    """The declarative list of perceus-reload: name, MAC, group, capsule, address."""
    for where, line in lines_of(path):
        words = line.split()
        if len(words) != 5 or not is_mac(words[1]):
            got.wrong(where, "not five words: name, MAC, group, capsule, address")
            continue
        name, mac, group, vnfs, address = words
        got.machine(where, mac, name, groupname=group, vnfs=vnfs, address=address)


_READERS = {
    "perceus.conf": _perceus_conf, "defaults.conf": _defaults_conf, "nodes.conf": _nodes_conf, "ethers": read_ethers
}  # fmt: skip


def _database(got: Gathering, tables: dict[str, Path]) -> None:
    """One table a property, each NodeID → value; the names' table says which nodes there are."""
    if "hostname" not in tables:
        got.wrong(str(next(iter(tables.values()))), "the table hostname is not beside it")
        return
    values = {table: _table(path) for table, path in tables.items() if table in TABLES}
    for mac, name in sorted(values["hostname"].items()):
        where = f"{tables['hostname']}:{mac}"
        if not is_mac(mac):
            got.note(f"{where}: left out: it is not known by an Ethernet MAC")
            continue
        settings = {key: values[table].get(mac, "") for table, key in TABLES.items() if key and table in values}
        flags = [key for key in ("enabled", "debug") if key in settings]
        settings |= {key: "1" if settings[key] == "1" else "0" for key in flags}
        got.machine(where, mac, name, **settings)


def _table(path: Path) -> dict[str, str]:
    if is_berkeley(path):
        return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in read_pairs(path)}
    return _dump(path)


def _dump(path: Path) -> dict[str, str]:
    """What ``db_dump`` (hex) or ``db_dump -p`` (text, other bytes as \\XX) prints: a head, then lines in pairs."""
    lines = text_of(path).splitlines()
    if "HEADER=END" not in lines:
        raise CapsulekitError(
            f"{path} is neither a Berkeley DB hash or btree nor a dump of one", hint="make one: db_dump -p FILE"
        )
    start = lines.index("HEADER=END")
    rows = [line[1:] for line in lines[start + 1 :] if line.startswith(" ")]
    if len(rows) % 2 or "DATA=END" not in lines[start:]:
        raise CapsulekitError(f"{path} is not a whole dump: its end is missing")
    decode = _printed if "format=print" in lines[:start] else _hex
    try:
        texts = [decode(row) for row in rows]
    except ValueError as error:
        raise CapsulekitError(f"{path} is not a dump of a database: {error}") from error
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _hex(row: str) -> str:
    return bytes.fromhex(row).decode("utf-8", "replace")


def _printed(row: str) -> str:
    parts = row.replace("\\\\", "\\5c").split("\\")
    return parts[0] + "".join(chr(int(part[:2], 16)) + part[2:] for part in parts[1:])
