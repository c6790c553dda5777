"""Where modules are activated: STATE/all, STATE/group/G, STATE/vnfs/V, STATE/node/N."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capsulekit.errors import CapsulekitError
from provisioner.registry.db import Database
from provisioner.registry.model import Node

SCOPES = ("group", "vnfs", "node")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Role:
    """A provisionary state and the nodes it is about; ``target`` is "" when ``scope`` is "all"."""

    state: str
    scope: str
    target: str = ""

    def covers(self, node: Node) -> bool:
        """Whether ``node`` is one of them; a node target may be HOST or HOST.CLUSTER."""
        if self.scope == "all":
            return True
        if self.scope == "node":
            return self.target in (node.hostname, node.name)
        return self.target == (node.groupname if self.scope == "group" else node.vnfs)


def parse_role(text: str, states: Iterable[str]) -> Role:
    """Read a role strictly; raises CapsulekitError saying what is wrong with it."""
    hint = "a role is STATE/all, STATE/group/G, STATE/vnfs/V or STATE/node/N"
    state, _, rest = text.partition("/")
    scope, slash, target = rest.partition("/")
    if state not in states:
        raise CapsulekitError(
            f"role {text!r}: there is no provisionary state {state!r}", hint="states: " + ", ".join(states)
        )
    if scope == "all":
        if slash:
            raise CapsulekitError(f"role {text!r}: nothing may follow {state}/all", hint=hint)
        return Role(state, scope)
    if scope not in SCOPES:
        raise CapsulekitError(f"role {text!r}: {scope!r} is none of all, group, vnfs, node", hint=hint)
    if not _TARGET.fullmatch(target):
        raise CapsulekitError(f"role {text!r}: {target!r} is not the name of a {scope}", hint=hint)
    return Role(state, scope, target)


class Roles:
    """The part of the registry that knows which modules are activated where."""

    db: Database

    def activate(self, module: str, roles: Sequence[str], states: Iterable[str] = ("init", "ready")) -> list[str]:
        """Activate a module in every role, or, when one is wrong, in none; returns those that are new."""
        for role in roles:
            parse_role(role, tuple(states))
        with self.db.write() as con:
            sql = "INSERT INTO roles (module, role) VALUES (?, ?) ON CONFLICT DO NOTHING"
            return [role for role in roles if con.execute(sql, (module, role)).rowcount]

    def deactivate(self, module: str, roles: Sequence[str] | None = None) -> list[str]:
        """End activations, all of the module's when ``roles`` is None; returns them.

        Raises CapsulekitError and changes nothing when one of ``roles`` is not active.
        """
        with self.db.write() as con:
            rows = con.execute("SELECT role FROM roles WHERE module = ? ORDER BY role", (module,))
            active = [row["role"] for row in rows]
            for role in roles or ():
                if role not in active:
                    raise CapsulekitError(
                        f"module {module!r} is not activated in {role!r}",
                        hint="activated in: " + ", ".join(active) if active else None,
                    )
            gone = active if roles is None else list(dict.fromkeys(roles))
            con.executemany("DELETE FROM roles WHERE module = ? AND role = ?", [(module, role) for role in gone])
            return gone

    def roles(self) -> dict[str, list[str]]:
        """Every activated module's roles; modules and roles sorted."""
        active: dict[str, list[str]] = {}
        for row in self.db.rows("SELECT module, role FROM roles ORDER BY module, role"):
            active.setdefault(row["module"], []).append(row["role"])
        return active

    def roles_of(self, scope: str, names: Iterable[str]) -> list[tuple[str, str]]:
        """(module, role) of what is activated for nodes, groups or capsules (``scope``) of these names, sorted.

        A role is about a name: it stays when what has the name goes, and counts for what has it next.
        """
        wanted = {f"{scope}/{name}" for name in names}
        return [
            (module, role)
            for module, roles in self.roles().items()
            for role in roles
            if role.partition("/")[2] in wanted
        ]

    def modules_for(self, node: Node, state: str) -> list[str]:
        """Names of the modules activated for a node in a state, each once, sorted."""
        return [
            module
            for module, roles in self.roles().items()
            if any(_read(role).state == state and _read(role).covers(node) for role in roles)
        ]


def _read(stored: str) -> Role:
    state, scope, target = (*stored.split("/", 2), "")[:3]
    return Role(state, scope, target)
