"""``module show --for NODE``: what would run on a node, and the files it would write; nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from capsulekit.errors import CapsulekitError
from provisioner.catalog.chosen import OWN, Brought, Context, brought, in_order
from provisioner.catalog.config import settings
from provisioner.catalog.model import Module, Script
from provisioner.registry.model import Node
from provisioner.server.desk import Desk
from provisioner.server.plan import own_scripts, provision_scripts

# crypt(5): $id$… in the second field, or anywhere in a line.
_HASH = re.compile(rb"\$(?:[0-9a-z]{1,10})\$[!-9;-~]+")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*", re.S)
MASK = b"(secret)"


@dataclass(frozen=True)
class File:
    """A file that would be written; ``path`` is on the node, ``content`` is without secrets."""

    module: str
    path: str
    content: bytes
    note: str
    secret: bool


@dataclass(frozen=True)
class StatePreview:
    """One state of one node: scripts in the order they run, each module's nearest role, and the files."""

    state: str
    scripts: tuple[Script, ...]
    roles: Mapping[str, str]
    files: tuple[File, ...]


@dataclass(frozen=True)
class Preview:
    """All states of a node that run anything; ``waits`` is why it may not boot now, or ""."""

    node: Node
    waits: str
    states: tuple[StatePreview, ...]


def preview(desk: Desk, node: Node, only: str = "") -> Preview:
    """What the node would be told now; ``only`` one module when it is named.

    Raises CapsulekitError when the node's plan can't be made, as the node itself would be told.
    """
    capsule = desk.capsule_of(node)
    context = Context(desk.paths, desk.config, desk.catalog, desk.registry.nodes)
    states = []
    for state in desk.config.all_states:
        found = brought(context, desk.registry.roles(), node, state, capsule)
        own = [] if capsule is None else list(_own(desk, node, state))
        scripts = tuple(s for s in in_order([*found.scripts, *own]) if only in ("", s.module))
        roles = {one.module.name: one.role for one in found.chosen} | {OWN: f"{state}/vnfs/{node.vnfs}"}
        if scripts:
            files = tuple(f for f in _files(context, found, node, state) if only in ("", f.module))
            states.append(StatePreview(state, scripts, roles, files))
    return Preview(node, desk.waits(node), tuple(states))


def _own(desk: Desk, node: Node, state: str) -> Iterator[Script]:
    """The capsule's own scripts, without their text."""
    view = desk.view_of(node)
    if state != "init":
        for order, name, member in own_scripts(view, state):
            yield Script(OWN, state, order, name, b"", member.sha256)
        return
    digests = {member.name: member.sha256 for member in view.files}
    for path in provision_scripts(view.manifest, state):
        name = path.rpartition("/")[2]
        yield Script(OWN, state, int(name[:2]), name, b"", digests[path])


def _files(context: Context, found: Brought, node: Node, state: str) -> Iterator[File]:
    for one in found.chosen:
        module = one.module
        given = {file.name: file for file in found.data if file.module == module.name}
        shown = set()
        for write in module.writes:
            if write.text:
                yield File(
                    module.name, write.path, _filled(context, module, node, state, write.text), write.note, False
                )
            elif write.data in given:
                file = given[write.data]
                shown.add(file.name)
                yield File(module.name, write.path, masked(file.content, file.secret), write.note, file.secret)
        for file in given.values():
            if file.name not in shown:
                path = file.target or f"$MODULE_DATA/{file.name}"
                yield File(module.name, path, masked(file.content, file.secret), file.note, file.secret)


def masked(content: bytes, secret: bool) -> bytes:
    """Content fit for a terminal: nothing of a secret file, no password hashes and private keys of any other."""
    if secret:
        return MASK + b"\n"
    return _PRIVATE_KEY.sub(MASK + b"\n", _HASH.sub(MASK, content))


def _filled(context: Context, module: Module, node: Node, state: str, text: str) -> bytes:
    """The text with its {words}: of the node, or settings of the module."""
    secret = {one.key for one in module.settings if one.secret}
    told = settings(context.paths, module, node)
    words = {key: MASK.decode() if key in secret else str(value) for key, value in told.items()}
    names = f"{node.name} {node.hostname}" if node.cluster else node.hostname
    words |= {"host": node.hostname, "name": node.name, "names": names, "nodeid": node.nodeid, "state": state}
    words |= {"group": node.groupname, "vnfs": node.vnfs}

    def word(found: re.Match[str]) -> str:
        if found[1] not in words:
            raise CapsulekitError(f"module {module.name}: writes: there is no {found[0]}")
        return words[found[1]]

    return re.sub(r"\{([a-z][a-z0-9_]*)\}", word, text).encode()
