"""What a module is, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | bool


@dataclass(frozen=True)
class Script:
    """One script of a module; ``order`` is its two-digit number, ``text`` its bytes."""

    module: str
    state: str
    order: int
    name: str
    text: bytes
    sha256: str
    required: bool = True


@dataclass(frozen=True)
class Given:
    """One file that a module gives to one node, as $MODULE_DATA/``name``.

    ``target`` is the path on the node that gets just this content, or ""; ``note`` says when, or what of it;
    ``secret`` content is never shown.
    """

    name: str
    content: bytes
    target: str = ""
    note: str = ""
    secret: bool = False


@dataclass(frozen=True)
class DataFile:
    """A ``Given`` with its module and its digest, as the plan names it."""

    module: str
    name: str
    content: bytes
    sha256: str
    target: str = ""
    note: str = ""
    secret: bool = False


@dataclass(frozen=True)
class Setting:
    """A key of a module's settings: text, a whole number or a truth value, as its default is."""

    key: str
    default: Value
    summary: str
    secret: bool = False


@dataclass(frozen=True)
class TextConfig:
    """A module whose settings are lines of text: the files ``all``, ``vnfs/*``, ``group/*``, ``node/*``.

    ``join``: ``lines`` (one after another), ``names`` (entries as in /etc/passwd; the nearest of each name counts),
    ``each`` (every file by itself). ``file`` is the name under $MODULE_DATA; empty: only the module's provider sees it.
    """

    file: str
    join: str
    default: str
    secret: bool = False


@dataclass(frozen=True)
class Write:
    """A file that a module writes on the node: the data file ``data``, or ``text`` with {host}, {name} and so on."""

    path: str
    data: str = ""
    text: str = ""
    note: str = ""


@dataclass(frozen=True)
class Module:
    """A module as its module.toml says.

    ``roles`` are those it is activated for when none is named. ``data`` names its provider or is empty. ``every``
    (seconds, 0: never): how often its scripts run again on a node whose plan did not change; ``limit``: seconds that
    one script may take on a running node. ``digest`` is the sha256 over its files, ``key_id`` of who signed it ("" for
    a shipped one).
    """

    name: str
    version: str
    summary: str
    roles: tuple[str, ...]
    states: tuple[str, ...]
    scripts: tuple[Script, ...]
    data: str = ""
    every: int = 0
    limit: int = 600
    settings: tuple[Setting, ...] = ()
    text: TextConfig | None = None
    writes: tuple[Write, ...] = ()
    digest: str = ""
    key_id: str = ""

    def scripts_for(self, state: str) -> tuple[Script, ...]:
        """The scripts that run in one state, in number order."""
        return tuple(s for s in self.scripts if s.state == state)
