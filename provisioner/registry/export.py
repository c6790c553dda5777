"""The nodes as CSV or JSON, for other programs: what was set and where they stand, no secrets, nothing a node wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import IO, Any

from provisioner.registry.model import Node
from provisioner.registry.registry import Registry

# Not among them: machine_id (its secrecy is asked for by machine-id(5)) and error (words of the node).
FIELDS = (
    "nodeid", "hostname", "cluster", "groupname", "vnfs", "enabled", "debug", "desc", "kargs", "boot", "accepted",
    "address", "status", "status_time", "ipaddr", "lastcontact", "created",
)  # fmt: skip


def export_csv(registry: Registry, out: IO[str]) -> None:
    """One line a node below a line of names (RFC 4180); times are epoch seconds, truth values 0 and 1."""
    own = registry.attribute_names
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FIELDS, *own])
    for node, attributes in _nodes(registry):
        writer.writerow([*map(_cell, _values(node)), *(attributes.get(name, "") for name in own)])


def export_json(registry: Registry, out: IO[str]) -> None:
    """A list of objects, one a line; the site's attributes under "attributes"."""
    start = "["
    for node, attributes in _nodes(registry):
        record = dict(zip(FIELDS, _values(node), strict=True)) | {"attributes": attributes}
        out.write(f"{start}\n{json.dumps(record, ensure_ascii=False)}")
        start = ","
    out.write("[]\n" if start == "[" else "\n]\n")


def _nodes(registry: Registry) -> Iterator[tuple[Node, dict[str, str]]]:
    attributes = registry.all_attributes()
    return ((node, attributes.get(node.nodeid, {})) for node in registry.each_node())


def _values(node: Node) -> list[Any]:
    return [getattr(node, field) for field in FIELDS]


def _cell(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value
