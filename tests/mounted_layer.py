"""A layer that stage 1 takes from a disk or an export that it has mounted, or else from the network."""

from __future__ import annotations

import hashlib

from node_shell import Node, a_plan

DATA = b"layer" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
NAME = "layers/rootfs.squashfs"
SLEEPLESS = "sleep() { :; }; FETCH_ROUNDS=2; "
NO_NET = "get() { echo 'curl: (7) refused' >&2; return 7; }; "


def plan_one(node: Node, mount: str) -> None:
    """A plan with that layer, and a line of /proc/mounts."""
    (node.proc / "mounts").write_text(mount)
    (node.run / "mirrors").write_text("")
    (node.run / "plan").write_text(a_plan(rootfs=f"file {NAME} {DIGEST} {len(DATA)} public"))
    (node.run.parent / "src").write_bytes(DATA)


def take(node: Node, before: str, kind: str = "public") -> None:
    """The layer is appended to a file, whole."""
    node.out(f'{SLEEPLESS}{before}printf abc >"$RUN/f"; take "$RUN/f" {NAME} {DIGEST} {len(DATA)} {kind} 3')
    assert (node.run / "f").read_bytes() == b"abc" + DATA


def from_net(node: Node) -> str:
    """Shell: the network has it."""
    return f'get() {{ cat "{node.run.parent}/src"; }}; '


def console(node: Node) -> str:
    """What the node's console shows."""
    path = node.run.parent / "console"
    return path.read_text() if path.exists() else ""
