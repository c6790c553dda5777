"""How nodes are printed: the manual's columns, lines that grep well, records for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from capsulekit.output import table
from provisioner.devices import INFINIBAND, NETWORK, Device, class_of, ids_of
from provisioner.registry.model import Node

SUMMARY = (("HostName", 20), ("GroupName", 12), ("Enabled", 9), ("Vnfs", 0))
STATUS = (("HostName", 20), ("Status", 14), ("IpAddr", 25), ("Last Contact", 14), ("Boot", 0))


@dataclass(frozen=True)
class NodeDevices:
    """What a node last reported of itself, and when (epoch seconds, None: never)."""

    reported: float | None = None
    devices: tuple[Device, ...] = ()

    @property
    def boot(self) -> str:
        """The interface it booted from: "8086:100e e1000", or ""."""
        marked = [device for device in self.devices if device.boot]
        nics = [device for device in marked if class_of(device.modalias) in (NETWORK, INFINIBAND)]
        return " ".join(f"{ids_of(device.modalias)} {device.driver}" for device in (nics or marked)[:1])

    @property
    def without_driver(self) -> list[str]:
        """The ids of its network devices that no driver took."""
        return [ids_of(device.modalias) for device in self.devices if device.is_network and not device.driver]


def record(node: Node) -> dict[str, Any]:
    """Every field, and the full name, for --json."""
    return asdict(node) | {"name": node.name}


def show_record(node: Node, found: NodeDevices, attributes: Mapping[str, str]) -> dict[str, Any]:
    """The same with the devices and the site's own attributes."""
    devices = [asdict(device) | {"class": class_of(device.modalias)} for device in found.devices]
    return record(node) | {"devices": devices, "devices_time": found.reported, "attributes": dict(attributes)}


def show_lines(node: Node, found: NodeDevices, attributes: Mapping[str, str]) -> list[str]:
    """``n0000:NodeID=…`` and so on, one attribute a line; last the site's own, spelled as the site does."""
    values = {
        "NodeID": node.nodeid,
        "HostName": node.hostname,
        "Cluster": node.cluster,
        "GroupName": node.groupname,
        "Vnfs": node.vnfs,
        "Enabled": str(int(node.enabled)),
        "Debug": str(node.debug),
        "Desc": node.desc,
        "Boot": node.boot,
        "Kargs": node.kargs,
        "Address": node.address,
        "Accepted": str(int(node.accepted)),
        "MachineID": node.machine_id,
        "Status": node.status,
        "StatusTime": _date(node.status_time),
        "IpAddr": node.ipaddr,
        "LastContact": _date(node.lastcontact),
        "Error": node.error,
        "Created": _date(node.created),
        "Devices": str(sum(device.count for device in found.devices)),
        "DevicesTime": _date(found.reported),
        "BootDevice": found.boot,
        "NoDriver": " ".join(found.without_driver),
        **attributes,
    }
    return [f"{node.hostname}:{key}={value}" for key, value in values.items()]


def summary_table(nodes: Iterable[Node]) -> str:
    """How the nodes are configured."""
    # The manual sets "yes" and "no" flush right under their heading.
    rows = [(n.hostname, n.groupname, ("yes" if n.enabled else "no").rjust(7), n.vnfs) for n in nodes]
    return table(SUMMARY, rows)


def status_table(boots: Iterable[tuple[Node, Mapping[str, float], NodeDevices]], now: float) -> str:
    """What the nodes report; ``boots`` has each with the times of its newest boot (epoch seconds by state)."""
    rows = [
        (n.hostname, n.status or "unknown", n.ipaddr or "-", last_contact(n.lastcontact, now), _story(n, times, found))
        for n, times, found in boots
    ]
    return table(STATUS, rows)


def status_record(node: Node, times: Mapping[str, float], found: NodeDevices) -> dict[str, Any]:
    """The same for --json: ``boot`` holds epoch seconds by state."""
    keys = ("name", "nodeid", "hostname", "status", "status_time", "ipaddr", "lastcontact", "error", "accepted")
    return {key: getattr(node, key) for key in keys} | {
        "boot": dict(times),
        "no_driver": found.without_driver,
    }


def last_contact(then: float | None, now: float) -> str:
    """Time since the last contact as HH:MM:SS, hours without bound."""
    if then is None:
        return "never"
    minutes, seconds = divmod(max(0, int(now - then)), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def boot_text(node: Node, times: Mapping[str, float]) -> str:
    """ "init 12:03:01 · handoff +21 s · ready +39 s", or why it failed or waits, or why it had to start over."""
    if node.status in ("failed", "waiting"):
        return f"{node.status}: {node.error or 'no reason given'}"
    if "init" not in times:
        return ""
    start = times["init"]
    parts = ["init " + time.strftime("%H:%M:%S", time.localtime(start))]
    parts += [f"{state} +{when - start:.0f} s" for state, when in times.items() if state not in ("init", "failed")]
    parts += [f"the boot before: {node.error}"] if node.error and node.status in ("init", "handoff") else []
    return " · ".join(parts)


def _story(node: Node, times: Mapping[str, float], found: NodeDevices) -> str:
    lacks = f"no driver for {' '.join(found.without_driver)}" if found.without_driver else ""
    return " · ".join(text for text in (boot_text(node, times), lacks) if text)


def _date(epoch: float | None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(epoch)) if epoch else ""
