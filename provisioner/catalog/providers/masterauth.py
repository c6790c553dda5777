"""The people's accounts of the master, for the nodes."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner.catalog.model import Given
from provisioner.catalog.providers import Asked


def files_for(asked: Asked) -> Iterator[Given]:
    """passwd and group entries from first_id to last_id; the hashes only where the site says so."""
    first, last = asked.number("first_id"), asked.number("last_id")
    users = _entries(asked.master_file("/etc/passwd"), first, last, 7)
    groups = _entries(asked.master_file("/etc/group"), first, last, 4)
    note = "these entries are added, or replace those of the same name"
    for name, entries in (("passwd", users), ("group", groups)):
        hidden = [b":".join([fields[0], b"x", *fields[2:]]) + b"\n" for fields in entries]
        yield Given(name, b"".join(hidden), f"/etc/{name}", note)
    if asked.flag("passwords"):
        names = {fields[0] for fields in users}
        lines = [line for line in asked.master_file("/etc/shadow").split(b"\n") if line.partition(b":")[0] in names]
        yield Given("shadow", b"".join(line + b"\n" for line in lines), "/etc/shadow", note, secret=True)


def _entries(content: bytes, first: int, last: int, fields: int) -> list[list[bytes]]:
    found = []
    for line in content.split(b"\n"):
        entry = line.split(b":")
        if len(entry) == fields and entry[0] and entry[2].isdigit() and first <= int(entry[2]) <= last:
            found.append(entry)
    return found
