"""What `wwsh node print` and `wwsh provision print` of Warewulf 3 print: lines ``NODE: KEY = VALUE``.

Its nodes are in a database of serialised Perl objects; these two commands are its own way of showing them. Both may
stand in one file.
"""

from __future__ import annotations

import re
from pathlib import Path

from provisioner.importers._found import Gathering, text_of

_LINE = re.compile(r"\s*(?P<node>\S+): (?P<key>\S+)\s+= ?(?P<value>.*)")
UNSET = ("UNDEF", "", "DEFAULT")


def read_into(got: Gathering, path: Path) -> None:
    """Every node with a MAC."""
    nodes: dict[str, dict[str, str]] = {}
    first: dict[str, str] = {}
    for number, line in enumerate(text_of(path).splitlines(), 1):
        if not line.strip() or line.startswith("#### "):
            continue
        match = _LINE.fullmatch(line)
        if not match:
            got.wrong(f"{path}:{number}", "not NODE: KEY = VALUE, as `wwsh node print` prints it")
            continue
        first.setdefault(match["node"], f"{path}:{number}")
        value = match["value"].strip().strip('"')
        if value not in UNSET:
            nodes.setdefault(match["node"], {})[match["key"]] = value
    for name, said in nodes.items():
        _node(got, first[name], name, said)


def _node(got: Gathering, where: str, name: str, said: dict[str, str]) -> None:
    devices = sorted(key.removesuffix(".HWADDR") for key in said if key.endswith(".HWADDR"))
    if not devices:
        got.note(f"{where}: node {name} is left out: it has no HWADDR")
        return
    # Booted from the first card with an address, as its DHCP entries were.
    device = next((one for one in devices if f"{one}.IPADDR" in said), devices[0])
    host = said.get("NODENAME", name)
    cluster = said.get("CLUSTER", "")
    got.machine(
        where,
        said[f"{device}.HWADDR"],
        f"{host}.{cluster}" if cluster and "." not in host else host,
        groupname=said.get("GROUPS", "").split(",")[0],
        address=said.get(f"{device}.IPADDR", "").split(",")[0],
        vnfs=said.get("VNFS", ""),
        kargs=said.get("KARGS", ""),
        enabled="0" if said.get("ENABLED") == "FALSE" else "1",
    )
    if "," in said.get("GROUPS", ""):
        got.note(f"{where}: node {host} is in {said['GROUPS']}: a node has one group here, the first is taken")
