"""What a node is made of: the list stage 1 sends (a device's modalias, its driver), and which class a device is of.

A modalias is the kernel's own line about a device, made for matching modules against it (scripts/mod/file2alias.c).
The list has one kind of device a line: MODALIAS DRIVER [module=NAME] [boot] [count=N]. DRIVER is "-" when none is
bound; ``module`` is missing where the driver is built into the kernel; ``boot`` marks the interface the node booted
from and every device on the way to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from capsulekit.errors import CapsulekitError

MOST_BYTES = 256 * 1024
# A machine of eight sockets has some 1 500 devices of 300 kinds.
MOST_LINES = 4096
MOST_OF_A_KIND = 65535
# The patterns are compiled at their first use: listing nodes needs none. sysfs gives at most one page of text.
_MODALIAS = r"[a-z][a-z0-9_]*:[!-~]{0,4080}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._+:,!@()&-]{0,63}"
_LINE = rf"({_MODALIAS}) (-|{_NAME})(?: module=({_NAME}))?( boot)?(?: count=([1-9][0-9]{{0,4}}))?"

# Classes that stage 1 is there for. What is in none of them is counted and not looked for.
NETWORK, INFINIBAND, STORAGE, USB, VIRTIO, OTHER = "network", "infiniband", "storage", "usb", "virtio", "other"
CARED = (NETWORK, INFINIBAND, STORAGE, USB, VIRTIO)
_PCI = r"pci:v0000([0-9A-F]{4})d0000([0-9A-F]{4})sv[0-9A-F]{8}sd[0-9A-F]{8}bc([0-9A-F]{2})sc([0-9A-F]{2})i[0-9A-F]{2}"
_USB = r"usb:v([0-9A-F]{4})p([0-9A-F]{4})d.{4}dc..dsc..dp..ic([0-9A-F]{2})isc([0-9A-F]{2})ip([0-9A-F]{2})in.."
_VIRTIO = r"virtio:d0000([0-9A-F]{4})v0000([0-9A-F]{4})"
# Base class, or base class and subclass: the PCI code and ID assignment specification. 0280 ("other network
# controller") is what wireless cards say: no node boots from one, so it is looked for only where a driver had it.
_PCI_CLASSES = {
    "01": STORAGE, "0200": NETWORK, "0201": NETWORK, "0202": NETWORK, "0203": NETWORK, "0207": INFINIBAND,
    "0208": INFINIBAND, "0C03": USB, "0C04": STORAGE, "0C06": INFINIBAND,
}  # fmt: skip
# The communication class's Ethernet kinds (ECM, MDLM, EEM, NCM), RNDIS in its spellings (drivers/net/usb/rndis_host.c);
# mass storage.
_USB_CLASSES = {
    "0206": NETWORK, "020A": NETWORK, "020C": NETWORK, "020D": NETWORK, "0202FF": NETWORK, "E00103": NETWORK,
    "EF0101": NETWORK, "EF0401": NETWORK, "08": STORAGE,
}  # fmt: skip
_VIRTIO_CLASSES = {"0001": NETWORK, "0002": STORAGE, "0008": STORAGE}
# Hyper-V's synthetic NIC, SCSI, IDE and Fibre Channel (linux/hyperv.h, the GUID's bytes as they lie in memory); Xen's.
_WHOLE = {
    "vmbus:635161f83edfc546913ff2d2f965ed0e": NETWORK, "vmbus:d96361baa104294db60572e2ffb1dc7f": STORAGE,
    "vmbus:32264132cb86a2449b5c50d1417354f5": STORAGE, "vmbus:4acc9b2f6900f34ab76b6fd0be528cda": STORAGE,
    "xen:vif": NETWORK, "xen:vbd": STORAGE,
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Device:
    """One kind of device of a node. ``driver`` is "" when none is bound, ``module`` when none was loaded for it."""

    modalias: str
    driver: str = ""
    module: str = ""
    boot: bool = False  # the node booted through it
    count: int = 1

    @property
    def is_network(self) -> bool:
        """Whether a network may be behind it: also the PCI side of a virtio NIC, and whatever was booted through."""
        pci = re.fullmatch(_PCI, self.modalias)
        return self.boot or class_of(self.modalias) in (NETWORK, INFINIBAND) or (
            class_of(self.modalias) == VIRTIO and pci is not None and pci[3] == "02"
        )  # fmt: skip


def parse_devices(body: bytes) -> tuple[Device, ...]:
    """A node's list, sorted, each kind once. Raises CapsulekitError that names the line."""
    if len(body) > MOST_BYTES:
        raise CapsulekitError(f"the list of devices is longer than {MOST_BYTES} bytes")
    # By newlines alone: splitlines would also cut at other control characters.
    lines = body.decode("ascii", "replace").removesuffix("\n").split("\n")
    if len(lines) > MOST_LINES:
        raise CapsulekitError(f"the list of devices has {len(lines)} lines, at most {MOST_LINES} are taken")
    counts: Counter[Device] = Counter()
    for number, line in enumerate(lines, 1):
        found = re.fullmatch(_LINE, line)
        if found is None or (found[2] == "-" and found[3]):
            raise CapsulekitError(f"line {number} of the list of devices is not understood")
        kind = Device(found[1], "" if found[2] == "-" else found[2], found[3] or "", found[4] is not None)
        counts[kind] += int(found[5] or 1)
    too_many = next((kind for kind, number in counts.items() if number > MOST_OF_A_KIND), None)
    if too_many:
        raise CapsulekitError(f"the list of devices has more than {MOST_OF_A_KIND} of one kind")
    return tuple(sorted(Device(k.modalias, k.driver, k.module, k.boot, number) for k, number in counts.items()))


def format_devices(devices: Iterable[Device]) -> str:
    """The list as text; the same devices always give the same."""
    return "".join(f"{' '.join(_words(device))}\n" for device in sorted(devices))


def class_of(modalias: str) -> str:
    """One of CARED, or OTHER."""
    if pci := re.fullmatch(_PCI, modalias):
        if pci[1] == "1AF4":
            return VIRTIO
        return _PCI_CLASSES.get(pci[3] + pci[4]) or _PCI_CLASSES.get(pci[3], OTHER)
    if usb := re.fullmatch(_USB, modalias):
        base, sub, protocol = usb[3], usb[4], usb[5]
        keys = (base + sub + protocol, base + sub, base)
        return next((_USB_CLASSES[key] for key in keys if key in _USB_CLASSES), OTHER)
    if virtio := re.fullmatch(_VIRTIO, modalias):
        return _VIRTIO_CLASSES.get(virtio[1], OTHER)
    return _WHOLE.get(modalias, OTHER)


def ids_of(modalias: str) -> str:
    """How an admin looks a device up: "15b3:1017" for PCI and USB, else the start of its modalias."""
    found = re.fullmatch(_PCI, modalias) or re.fullmatch(_USB, modalias)
    return f"{found[1]}:{found[2]}".lower() if found else modalias[:60]


def _words(device: Device) -> list[str]:
    words = [device.modalias, device.driver or "-"]
    words += [f"module={device.module}"] * bool(device.module)
    words += ["boot"] * device.boot
    return words + [f"count={device.count}"] * (device.count > 1)
