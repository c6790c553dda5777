"""ssh: to the nodes as root, by the cluster's key and the host keys that the site made for them; it asks nobody.

Neither the user's settings, agent and known hosts nor the machine's have a say: the same command means the same for
whoever runs it.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.run import CommandFailed, run_bounded, tied
from capsulekit.sitepaths import SitePaths
from provisioner.hostkeys import HOST_KEYS, cluster_key, node_dir
from provisioner.registry.model import Node

PURPOSE = "talk to a node"
CONNECT_SECONDS = 10
CONFIG = """\
User root
IdentityFile "{key}"
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile "{known}"
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
UpdateHostKeys no
CheckHostIP no
BatchMode yes
PreferredAuthentications publickey
ConnectTimeout {seconds}
ServerAliveInterval 15
ServerAliveCountMax 4
ClearAllForwardings yes
ControlPath none
RequestTTY no
LogLevel ERROR
"""
# What nodes are asked to do: texts of ours, without a word of anybody's in them.
OWN = 'PATH="$PATH:/usr/lib/capsulekit/bin"; export PATH; '
LIST = OWN + "command -v rsync >/dev/null || exit 71; [ -x /usr/lib/capsulekit/capsule-tree ] || exit 72; "
LIST += "exec /usr/lib/capsulekit/capsule-tree print"
REMOVE = OWN + 'cd / && exec xargs -0 sh -c \'for p; do if [ -d "./$p" ] && [ ! -L "./$p" ]; '
REMOVE += 'then rmdir "./$p" 2>/dev/null || :; else rm -f "./$p" || s=1; fi; done; exit "${s:-0}"\' sh'
_SAID = {
    71: "rsync is not installed on it: add it to the capsule",
    72: "its agent has no capsule-tree: boot it with this site's stage 1",
    # What capsule-tree itself ends with.
    1: "its list of files could not be made",
}


@dataclass(frozen=True)
class Ssh:
    """How the nodes are reached: the settings of ``ssh -F``."""

    config: Path
    stop: threading.Event

    def words(self, node: Node) -> list[str]:
        """What comes before the host's name."""
        return ["ssh", "-F", str(self.config), "-o", f"HostKeyAlias={alias(node.nodeid)}"]

    def shell_words(self, node: Node) -> str:
        """The same as rsync splits it: blanks part words, a quoted one may hold them (rsync(1), --rsh).

        It goes with its rsync: a node that answers nothing could hold it for ever.
        """
        return " ".join(f'"{word}"' for word in (*tied("KILL", PURPOSE), *self.words(node)))

    def ask(
        self, node: Node, command: str, out: IO[bytes], most: int, timeout: float, stdin: IO[bytes] | None = None
    ) -> None:
        """Run one of the commands above on a node. Raises CapsulekitError saying why it could not be."""
        argv = ["ssh", *self.words(node)[1:], "--", address(node), command]
        try:
            run_bounded(argv, out, purpose=PURPOSE, most=most, timeout=timeout, stdin=stdin, env=ENV, stop=self.stop)
        except CommandFailed as wrong:
            raise CapsulekitError(reason(wrong)) from wrong


ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}


def settings(paths: SitePaths, nodes: Iterable[Node], folder: Path, stop: threading.Event) -> Ssh:
    """Write what ssh must know of these nodes into a folder of our own. Raises CapsulekitError."""
    key = cluster_key(paths)
    if not key.exists():
        raise CapsulekitError(
            "this site has no cluster key, so no node lets it in", hint="run: capsulekit configure sshkeys"
        )
    known = folder / "known_hosts"
    # A quoted word of ssh's settings ends at the next quote, and there is no way to write one (ssh_config(5)).
    if any(bad in f"{key}{known}" for bad in '"\\%\n'):
        raise CapsulekitError(f"ssh can't be told of {key}: its name has a quote, a backslash, a % or a line end")
    with known.open("w") as out:
        for node in nodes:
            out.writelines(f"{alias(node.nodeid)} {line}\n" for line in host_keys(paths, node.nodeid))
    config = folder / "config"
    atomic_write(config, CONFIG.format(key=key, known=known, seconds=CONNECT_SECONDS).encode(), 0o600)
    return Ssh(config, stop)


def host_keys(paths: SitePaths, nodeid: str) -> list[str]:
    """The public host keys that the site made for a node, "TYPE KEY" each; none where it never gave it any."""
    found = []
    for kind in HOST_KEYS:
        file = node_dir(paths, nodeid) / f"ssh_host_{kind}_key.pub"
        if file.exists():
            found.append(" ".join(file.read_text(encoding="ascii").split()[:2]))
    return found


def alias(nodeid: str) -> str:
    """What a node is called in the list of known hosts: by its MAC, since addresses change."""
    return "node-" + nodeid.replace(":", "").lower()


def address(node: Node) -> str:
    """The node's address. Raises CapsulekitError when it told none."""
    try:
        return str(ipaddress.ip_address(node.ipaddr))
    except ValueError:
        raise CapsulekitError("its address is not known") from None


def host_of(node: Node) -> str:
    """The same as rsync spells it."""
    found = address(node)
    return f"[{found}]" if ":" in found else found


def reason(wrong: CommandFailed) -> str:
    """Why ssh, or what it ran, failed, in one line."""
    lines = [line.strip() for line in wrong.output.splitlines() if line.strip()]
    if wrong.status in _SAID and not lines:
        return _SAID[wrong.status]
    text = next((line for line in lines if "Host key verification failed" in line or "differs" in line), "")
    if text or "REMOTE HOST IDENTIFICATION HAS CHANGED" in wrong.output or "host key is known" in wrong.output:
        return "its SSH host key is not the one that this site made for it"
    return (lines or [f"ssh ended with status {wrong.status}"])[-1]
