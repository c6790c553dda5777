"""The modules that the emulated Debian node has, activated in every kind of role, and their settings."""

from __future__ import annotations

import json
import re
from typing import Any

from e2e_bench import DEBIAN, Bench

from capsulekit.files import atomic_write
from provisioner.lab.site import LabSite

GROUP, ADDRESS = "racks", "10.77.0.50"
ROLES = {
    "hostfile": [f"init/group/{GROUP}"],
    "ipaddr": ["init/node/deb0"],
    "runscript": ["init/node/deb0", "ready/all"],
    "sysctl": [f"init/vnfs/{DEBIAN}", f"ready/vnfs/{DEBIAN}"],
    "timezone": ["init/all"],
}
# Why its scripts of init run: modules by role, and the capsule's own.
RUN_BY = {"init/all", f"init/vnfs/{DEBIAN}", f"init/group/{GROUP}", "init/node/deb0"}
# Every node writes down who it was told to be; in init it is also told to report more often than once a minute.
RUNSCRIPT = """
[ "$STATE" != init ] || { mkdir -p "$NEWROOT/etc/capsulekit/agent"; echo 5 >"$NEWROOT/etc/capsulekit/agent/interval"; }
echo "$STATE: $NODENAME of $GROUPNAME with $VNFS" >>"$NEWROOT/etc/ran"
"""
SETTINGS = {
    f"hostfile/group/{GROUP}": "10.99.0.9 storage\n",
    "ipaddr/node/deb0": "deb0 boot(MTU=1400):[default]/[default]/[default]\n",
    "runscript/all": RUNSCRIPT,
    "runscript/node/deb0": 'echo "$STATE: this node alone" >>"$NEWROOT/etc/ran"\n',
    "timezone/node/deb0": 'zone = "Europe/Berlin"\n',
    f"sysctl/vnfs/{DEBIAN}": "vm.swappiness = 11\nvm.dirty_ratio = 33\n",
    "sysctl/node/deb0": "vm.swappiness = 17\n",
}


def activate_all(site: LabSite) -> None:
    """Activate them and write their settings, as an admin does."""
    for name, roles in ROLES.items():
        site.command("module", "activate", name, *roles)
    for path, text in SETTINGS.items():
        write_settings(site, path, text)


def write_settings(site: LabSite, path: str, text: str) -> None:
    """One settings file, whole; ``path`` is MODULE/…"""
    file = site.paths.config / "modules" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, text.encode())


def deactivate_all(site: LabSite) -> None:
    """Leave other nodes of the bench as they were."""
    for name in ROLES:
        site.command("module", "deactivate", name)


def shown(site: LabSite) -> dict[str, dict[str, Any]]:
    """What ``module show --for`` says of the node, by state."""
    (told,) = json.loads(site.command("module", "show", "--for", "deb0", "--json"))
    return {state["state"]: state for state in told["states"]}


def scripts_of(state: dict[str, Any]) -> list[str]:
    """MODULE/NN-NAME in the order in which they would run."""
    return [f"{script['module']}/{script['name']}" for script in state["scripts"]]


def fetched(bench: Bench, address: str) -> set[str]:
    """The digests of scripts and module files that were sent to this address over TLS."""
    log = (bench.lab.workdir / "serve.log").read_text()
    asked = rf"addr={re.escape(address)} method=GET path=/v1/scripts/([0-9a-f]{{64}}) status=200"
    return set(re.findall(asked, log))
