"""A table with a first line of column names: what spreadsheets and vendors' lists are exported as."""

from __future__ import annotations

import re
from pathlib import Path

from provisioner.importers._found import Found, Gathering, text_of

ABOUT = "A table (comma, semicolon or tab); first line: mac, name, group, address and any other node attribute."
# What lists call the columns that every node has; any other column is an attribute as `node set` knows it.
COLUMNS = {
    "mac": "mac", "nodeid": "mac", "hwaddr": "mac", "hardware": "mac", "mac address": "mac",
    "name": "name", "hostname": "name", "host": "name", "node": "name",
    "group": "groupname", "groupname": "groupname",
    "address": "address", "ip": "address", "ipaddr": "address", "ip address": "address",
    "capsule": "vnfs", "description": "desc", "comment": "desc",
}  # fmt: skip


def read(source: Path) -> Found:
    """Every row's machine. Raises CapsulekitError naming the rows that are none, and columns that stand twice."""
    import csv

    got = Gathering(source)
    text = text_of(source)
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    delimiter = max(",;\t", key=first.count)
    # strict: a quote that is never closed would swallow the rest of the file in silence.
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: list[str] = []
    try:
        for row in reader:
            where = f"{source}:{reader.line_num}"
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if not columns:
                columns = _columns(got, where, cells)
                continue
            if len(cells) != len(columns):
                got.wrong(where, f"{len(cells)} cells under {len(columns)} columns")
                continue
            values = dict(zip(columns, cells, strict=True))
            got.machine(where, values.pop("mac"), values.pop("name", ""), **values)
    except csv.Error as error:
        got.wrong(f"{source}:{reader.line_num}", str(error))
    return got.done()


def _columns(got: Gathering, where: str, cells: list[str]) -> list[str]:
    names = [COLUMNS.get(cell.lower(), cell.lower()) for cell in cells]
    for name in sorted({name for name in names if names.count(name) > 1}):
        got.wrong(where, f"two columns are {name!r}")
    if "mac" not in names:
        got.wrong(where, "the first line has no column called mac")
        got.done()
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name in ("where", "self"):
            got.wrong(where, f"{name!r} is not the name of a column")
            got.done()
    return names
