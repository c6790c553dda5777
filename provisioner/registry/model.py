"""What the registry holds, as frozen values: nodes, what they reported, installed capsules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """One machine. Times are epoch seconds; empty text means "not set"."""

    nodeid: str  # the MAC, upper case with colons: the key
    hostname: str  # first part of the name, unique in the site
    cluster: str = ""  # second part of the name
    groupname: str = ""
    vnfs: str = ""  # installed name of the capsule it boots
    enabled: bool = True
    debug: int = 0  # 0 off .. 3
    desc: str = ""
    kargs: str = ""
    boot: str = ""
    accepted: bool = True
    machine_id: str = ""  # 32 hex digits, made once
    status: str = ""  # last state reported: init, waiting, handoff, ready, failed; "" before the first
    status_time: float | None = None  # since when the status holds
    ipaddr: str = ""
    lastcontact: float | None = None
    error: str = ""  # why it failed or waits
    created: float = 0.0
    address: str = ""  # fixed address, unique when set

    @property
    def name(self) -> str:
        """HOST, or HOST.CLUSTER."""
        return f"{self.hostname}.{self.cluster}" if self.cluster else self.hostname


@dataclass(frozen=True)
class Event:
    """One thing a node reported: a state it entered (``kind`` "state") or a step of it (``kind`` "step")."""

    time: float  # epoch seconds, the master's clock
    kind: str
    state: str = ""
    step: str = ""
    status: str = ""  # of a step: start, ok, failed
    seconds: float | None = None  # a step's duration, or the node's uptime at a state
    detail: str = ""
    mem_used_kb: int | None = None


@dataclass(frozen=True)
class InstalledCapsule:
    """A capsule in the store. ``identity`` is the hex sha256 of its SHA256SUMS, which ``key_id`` signed."""

    name: str
    identity: str
    key_id: str
    public_key: str  # the base64 line of a minisign .pub
    version: str
    arch: str
    imported: float
    private: bool = False


@dataclass(frozen=True)
class Past:
    """A line of a capsule's history. ``number`` counts from 1 per capsule, the last line is what nodes boot.

    ``parent`` is the identity that was current when this one was made or gone back to, "" for an import; ``kind`` one
    of import, configure, edit, flatten, rollback, kernel, rebuild, clone. ``time`` and ``gone`` are epoch seconds.
    """

    identity: str
    kind: str
    parent: str = ""
    message: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)  # as capsulekit.edit.changes.Changes.summary gives it
    who: str = ""
    time: float = 0.0
    capsule: str = ""
    number: int = 0
    gone: float | None = None  # when the generation was deleted, None while it is kept
