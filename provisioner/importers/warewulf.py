"""Warewulf's nodes, whatever the version: told by what the source looks like.

4: ``nodes.conf``, YAML with profiles. 3: what ``wwsh node print`` (and ``wwsh provision print``) prints, as its store
is a database of its own. 2.6: the folder of node files, one folder a group. 2.4: one file with a section a node.
"""

from __future__ import annotations

import re
from pathlib import Path

from capsulekit.errors import CapsulekitError
from provisioner.importers import _warewulf2, _warewulf3, _warewulf4
from provisioner.importers._found import Found, Gathering, text_of

ABOUT = "Warewulf: nodes.conf of 4, `wwsh node print` of 3, the folder or file of nodes of 2.x."


def read(source: Path) -> Found:
    """The nodes of one source. Raises CapsulekitError."""
    got = Gathering(source)
    if source.is_dir():
        # A whole /etc/warewulf: version 4's file is the truth where there is one.
        nodes = source / "nodes.conf"
        if nodes.is_file() and _version(text_of(nodes)) == 4:
            _warewulf4.read_into(got, nodes)
        else:
            _warewulf2.read_folder(got, source)
        return got.done()
    text = text_of(source)
    match _version(text):
        case 4:
            _warewulf4.read_into(got, source)
        case 3:
            _warewulf3.read_into(got, source)
        case 2:
            _warewulf2.read_file(got, source)
        case _:
            raise CapsulekitError(
                f"{source} is no list of Warewulf's nodes",
                hint="4: /etc/warewulf/nodes.conf; 3: wwsh node print > FILE; 2.x: /etc/warewulf/nodes",
            )
    return got.done()


def _version(text: str) -> int:
    if re.search(r"^(nodes|nodeprofiles)\s*:", text, re.MULTILINE):
        return 4
    if re.search(r"^\s*\S+: (NAME|NODENAME|\S+\.HWADDR|VNFS)\s+= ", text, re.MULTILINE):
        return 3
    if re.search(r"^\s*(\[[^\]]+\]|[\w.-]+\s*\{)\s*(#.*)?$", text, re.MULTILINE):
        return 2
    return 0
