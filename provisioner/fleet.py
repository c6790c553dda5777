"""Does a stage 1 drive what the site's nodes are made of? Answered from the devices they reported, before they boot it.

Looked for is every device of a class stage 1 is there for, and every other that a loadable module drove on some node.
A driver built into the image's kernel often lists no aliases; where one drove the device already, its name counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from initramfs_builder.drivers import Cover, covers
from initramfs_builder.image import Image, read_facts

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.devices import CARED, Device, class_of, ids_of
from provisioner.registry.devices import Hardware
from provisioner.registry.registry import Registry, open_registry

MOST_NAMES = 20


@dataclass
class ClassCount:
    """One class's devices on all nodes, how many the image drives, and the firmware that it lacks for those."""

    devices: int = 0
    covered: int = 0
    firmware_missing: set[str] = field(default_factory=set)


@dataclass
class Uncovered:
    """A kind of device that no module of the image drives. ``boot``: some node booted through it."""

    modalias: str
    ids: str
    kind: str
    network: bool = False
    boot: bool = False
    devices: int = 0
    modules: tuple[str, ...] = ()  # what drove it elsewhere
    nodes: set[str] = field(default_factory=set)


@dataclass
class FleetReport:
    """What an image means for the nodes. ``others`` counts devices not looked for, ``booted`` nodes by interface."""

    image: str
    nodes: int = 0
    kinds: int = 0
    classes: dict[str, ClassCount] = field(default_factory=dict)
    others: int = 0
    boot_nodes: int = 0
    boot_covered: int = 0
    uncovered: dict[str, Uncovered] = field(default_factory=dict)
    never_reported: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """One line that names the nodes whose network device is not driven, or ""."""
        nodes = sorted({name for gap in self.uncovered.values() if gap.network for name in gap.nodes})
        if not nodes:
            return ""
        return f"{self.image} has no driver for a network device of {_names(nodes)}"

    def refuse(self) -> None:
        """Raise CapsulekitError when there is a problem."""
        if self.problem:
            raise CapsulekitError(
                self.problem, hint='add its module to "modules" in stage 1\'s recipe and build it again'
            )

    def lines(self) -> list[str]:
        """For people: one line a class, then one for each kind of device that nothing drives."""
        text = [f"{_count(self.nodes, 'node')} of {_count(self.kinds, 'kind')} reported their devices"]
        if self.never_reported:
            text.append(f"{_count(len(self.never_reported), 'node')} never did: {_names(self.never_reported)}")
        if self.boot_nodes:
            text.append(f"boot interface: {self.boot_covered}/{_count(self.boot_nodes, 'node')}")
        text += [_class_line(name, self.classes[name]) for name in sorted(self.classes, key=_order)]
        text.append(f"not looked for: {_count(self.others, 'device')} of other classes")
        return text + [_gap_line(gap) for gap in self._gaps()]

    def record(self) -> dict[str, Any]:
        """The same for --json, with every name."""
        gaps = [asdict(gap) | {"nodes": sorted(gap.nodes)} for gap in self._gaps()]
        classes = {k: asdict(v) | {"firmware_missing": sorted(v.firmware_missing)} for k, v in self.classes.items()}
        boot = {"nodes": self.boot_nodes, "covered": self.boot_covered}
        return {
            "image": self.image, "ok": not self.problem, "nodes": self.nodes, "kinds": self.kinds, "boot": boot,
            "classes": classes, "not_looked_for": self.others, "uncovered": gaps,
            "never_reported": list(self.never_reported),
        }  # fmt: skip

    def _gaps(self) -> list[Uncovered]:
        return sorted(self.uncovered.values(), key=lambda gap: (not gap.network, _order(gap.kind), gap.modalias))


def fleet_report(paths: SitePaths, image: Path) -> FleetReport:
    """Compare the nodes' devices with the modules of ``image`` (stage1.img, or the folder it is in).

    Raises TrustError when the image is damaged, CapsulekitError when it holds no kernel's modules, NotInitialised when
    the site was never made, OSError when the image cannot be read.
    """
    registry = open_registry(paths)
    try:
        return compare(registry, read_facts(image / "stage1.img" if image.is_dir() else image))
    finally:
        registry.close()


def compare(registry: Registry, image: Image) -> FleetReport:
    """The same for an open registry and an image that was read."""
    known = registry.known_modules()
    check = _Check(image, registry.modaliases(), known, registry.known_drivers())
    report = FleetReport(image.name, never_reported=tuple(registry.never_reported()))
    for hardware in registry.hardware():
        _add(report, hardware, check)
    return report


class _Check:
    """The image's answer for each modalias, asked once for all nodes."""

    def __init__(
        self, image: Image, modaliases: list[str], known: Mapping[str, set[str]], drivers: Mapping[str, set[str]]
    ) -> None:
        names = {name for found in drivers.values() for name in found}
        self._image = image
        self._covers: dict[str, Cover] = {cover.modalias: cover for cover in covers(image, {*modaliases, *names})}
        builtin = {name for name in names if any(driver.builtin for driver in self._covers[name].drivers)}
        self._builtin = {alias for alias, found in drivers.items() if found & builtin}
        self.known = known

    def looked_for(self, device: Device) -> bool:
        """Whether stage 1 should have a driver for it."""
        return class_of(device.modalias) in CARED or device.modalias in self.known

    def driven(self, device: Device) -> bool:
        """Whether the image has a driver for it."""
        return self._cover(device).driven or device.modalias in self._builtin

    def firmware_missing(self, device: Device) -> tuple[str, ...]:
        """What its drivers name and the image lacks."""
        return self._cover(device).firmware_missing

    def _cover(self, device: Device) -> Cover:
        if device.modalias not in self._covers:  # a node reported it since the list was read
            self._covers |= {cover.modalias: cover for cover in covers(self._image, [device.modalias])}
        return self._covers[device.modalias]


def _add(report: FleetReport, hardware: Hardware, check: _Check) -> None:
    """Count one kind of machine, as often as there are nodes of it."""
    number = len(hardware.nodes)
    report.nodes += number
    report.kinds += 1
    ways: Counter[bool] = Counter()
    for device in hardware.devices:
        if not check.looked_for(device):
            report.others += device.count * number
            continue
        name, driven = class_of(device.modalias), check.driven(device)
        count = report.classes.setdefault(name, ClassCount())
        count.devices += device.count * number
        count.covered += device.count * number * driven
        if driven:
            count.firmware_missing.update(check.firmware_missing(device))
        else:
            _add_gap(report, hardware, device, check)
        if device.boot:
            ways[driven] += 1
    if ways:
        report.boot_nodes += number
        report.boot_covered += number * (not ways[False])


def _add_gap(report: FleetReport, hardware: Hardware, device: Device, check: _Check) -> None:
    modules = tuple(sorted(check.known.get(device.modalias, ())))
    new = Uncovered(device.modalias, ids_of(device.modalias), class_of(device.modalias), modules=modules)
    gap = report.uncovered.setdefault(device.modalias, new)
    gap.network |= device.is_network
    gap.boot |= device.boot
    gap.devices += device.count * len(hardware.nodes)
    gap.nodes.update(hardware.nodes)


def _class_line(name: str, count: ClassCount) -> str:
    missing = sorted(count.firmware_missing)
    firmware = f"firmware missing: {_names(missing)}" if missing else "firmware present"
    return f"{name}: {count.covered}/{_count(count.devices, 'device')}" + (f", {firmware}" if count.covered else "")


def _gap_line(gap: Uncovered) -> str:
    booted = " that a node booted through" if gap.boot else ""
    drove = f"; {' '.join(gap.modules)} drove it" if gap.modules else ""
    return f"no driver for {gap.kind} device {gap.ids}{booted}: {_names(sorted(gap.nodes))}{drove}"


def _order(kind: str) -> int:
    return CARED.index(kind) if kind in CARED else len(CARED)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _names(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return " ".join(names[:MOST_NAMES]) + more
