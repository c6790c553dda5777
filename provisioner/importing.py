"""Bringing what an importer found into the registry: everything checked first, then one transaction.

A machine that is registered already keeps what it has, gets what it lacks, and where the source says something else
nothing at all is changed, unless the source is to win. So a second run changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.importers._found import SHOWN, Found, Machine, Named
from provisioner.netboot.networks import Network, load_networks, require_fixed
from provisioner.registry.defaults import Defaults, load_defaults
from provisioner.registry.model import Node
from provisioner.registry.names import parse_group, parse_name, template_names
from provisioner.registry.registry import Registry
from provisioner.siteconf import SiteConfig, load_site


@dataclass(frozen=True)
class Setting:
    """One attribute of one registered node that the import sets."""

    nodeid: str
    hostname: str
    key: str
    old: str
    new: str


@dataclass(frozen=True)
class Imported:
    """What an import did, or would do; ``same`` counts the machines that were registered just so."""

    added: tuple[Node, ...]
    changed: tuple[Setting, ...]
    same: int
    defaults: Mapping[str, str | int | bool]  # keys of defaults.toml that change
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """One line for each change."""
        lines = []
        for node in self.added:
            more = [f"{key}={value}" for key, value in (("group", node.groupname), ("address", node.address)) if value]
            lines.append(" ".join([f"add {node.name} {node.nodeid}", *more]))
        lines += [f"set {one.hostname} {one.key} {one.new}" + (f" (was {one.old})" if one.old else "")
                  for one in self.changed]  # fmt: skip
        return lines + [f"defaults.toml: {key} = {value}" for key, value in self.defaults.items()]


def import_found(
    paths: SitePaths, registry: Registry, found: Found, *, update: bool = False, dry_run: bool = False
) -> Imported:
    """Add and set what the source says; with ``dry_run`` nothing stays. ``update``: where they differ, the source wins.

    Raises CapsulekitError naming every conflict, and then nothing has been changed.
    """
    site = load_site(paths)
    found, left_out = _without_absent_capsule(registry, found)
    defaults, new_defaults = _new_defaults(load_defaults(paths), found, update)
    with registry.db.rehearsal(dry_run), registry.db.write():
        plan = _Plan(registry, site, load_networks(paths, site), defaults, update)
        for machine in found.machines:
            plan.take(machine)
        for named in found.addresses:
            plan.take_address(named)
        plan.refuse_conflicts()
        plan.carry_out()
        after = {node.nodeid: node for node in registry.nodes()}
        if new_defaults and not dry_run:
            # Within the transaction: where the file cannot be written no node is imported either.
            _write_defaults(paths, new_defaults)
    added = tuple(after[mac] for mac in plan.adding)
    return Imported(added, plan.changed, plan.same, new_defaults, (*found.notes, *left_out, *plan.notes))


@dataclass
class _Wanted:
    """What the source says of one machine that is new: from all its lines together."""

    where: str
    name: str
    values: dict[str, str] = field(default_factory=dict)


class _Plan:
    """What is to be done, gathered machine by machine, and every conflict."""

    def __init__(
        self, registry: Registry, site: SiteConfig, networks: Sequence[Network], defaults: Defaults, update: bool
    ) -> None:
        self.registry, self.site, self.defaults, self.update = registry, site, defaults, update
        self.networks = networks
        nodes = registry.nodes()
        self.nodes = {node.nodeid: node for node in nodes}
        self.names = {node.hostname.lower(): node.nodeid for node in nodes}
        self.addresses = {node.address: node.nodeid for node in nodes if node.address}
        self.attributes = registry.all_attributes()
        self.adding: dict[str, _Wanted] = {}
        self.changes: dict[tuple[str, str], Setting] = {}  # by NodeID and key
        self.seen: dict[str, Machine] = {}
        self.conflicts: list[str] = []
        self._notes: dict[str, None] = {}
        self._strangers = 0

    @property
    def changed(self) -> tuple[Setting, ...]:
        """What is set on nodes that are registered already."""
        return tuple(self.changes.values())

    @property
    def same(self) -> int:
        """How many of the source's machines are registered as it says."""
        touched = {nodeid for nodeid, _ in self.changes}
        return sum(1 for mac in self.seen if mac in self.nodes and mac not in touched)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out on the way."""
        if not self._strangers:
            return tuple(self._notes)
        return (*self._notes, f"{self._strangers} names are no node's and were left out")

    def take(self, machine: Machine) -> None:
        """Plan one machine of the source."""
        before = self.seen.setdefault(machine.mac, machine)
        if before.name and machine.name and before.name.lower() != machine.name.lower():
            self._conflict(machine.where, f"{machine.mac} is {machine.name} here and {before.name} in {before.where}")
            return
        if not self._name_is_free(machine):
            return
        node = self.nodes.get(machine.mac)
        if node is None:
            wanted = self.adding.setdefault(machine.mac, _Wanted(machine.where, machine.name))
            wanted.name = wanted.name or machine.name
        elif machine.name:
            self._compare_name(machine, node)
        for key, value in machine.settings:
            self._take_setting(machine.where, machine.mac, key, value)

    def take_address(self, named: Named) -> None:
        """Plan a fixed address of a name, where the name is a node's."""
        mac = self._find(named.name)
        if mac is None:
            self._strangers += 1
        else:
            self._take_setting(named.where, mac, "address", named.address)

    def refuse_conflicts(self) -> None:
        """Raise CapsulekitError when there are any."""
        if not self.conflicts:
            return
        shown = tuple(self.conflicts[:SHOWN])
        if more := len(self.conflicts) - len(shown):
            shown += (f"and {more} more",)
        count = "1 conflict" if len(self.conflicts) == 1 else f"{len(self.conflicts)} conflicts"
        raise CapsulekitError(
            f"{count}; nothing was imported",
            details=shown,
            hint="correct the source or the nodes, or let the source win where it can: --update",
        )

    def carry_out(self) -> None:
        """Add and set, within the caller's transaction."""
        machines = [(mac, wanted.name or None) for mac, wanted in self.adding.items()]
        # Names given by the source come first, whatever its order: the template then fills the gaps between them.
        machines.sort(key=lambda one: one[1] is None)
        if machines:
            self.registry.add_nodes(machines, defaults=self.defaults)
        together: dict[tuple[str, str], list[str]] = {}
        for mac, wanted in self.adding.items():
            for key, value in wanted.values.items():
                together.setdefault((key, value), []).append(mac)
        for one in self.changed:
            together.setdefault((one.key, one.new), []).append(one.nodeid)
        alone: dict[str, dict[str, str]] = {}
        for (key, value), macs in together.items():
            if len(macs) > 1:
                self.registry.set_nodes(key, value, macs)
            else:
                alone.setdefault(key, {})[macs[0]] = value
        for key, values in alone.items():
            self.registry.set_each(key, values)

    def _conflict(self, where: str, what: str) -> None:
        self.conflicts.append(f"{where}: {what}")

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _name_is_free(self, machine: Machine) -> bool:
        if not machine.name:
            return True
        host = parse_name(machine.name)[0].lower()
        other = self.names.setdefault(host, machine.mac)
        if other == machine.mac:
            return True
        self._conflict(machine.where, f"the name {machine.name} of {machine.mac} is that of {other}")
        return False

    def _compare_name(self, machine: Machine, node: Node) -> None:
        host, cluster = parse_name(machine.name)
        if host.lower() == node.hostname.lower() and cluster in ("", node.cluster):
            return
        if self.update or (host.lower() == node.hostname.lower() and not node.cluster):
            self._change(machine.where, node, "hostname", node.name, machine.name)
        else:
            self._conflict(machine.where, f"{node.nodeid} is registered as {node.name}, not as {machine.name}")

    def _take_setting(self, where: str, mac: str, key: str, value: str) -> None:
        try:
            columns = self._columns(key, value)
        except CapsulekitError as error:
            self._conflict(where, error.message)
            return
        if columns is None or (key == "address" and not self._address_is_free(where, mac, value)):
            return
        node = self.nodes.get(mac)
        if node is None:
            self._want(where, mac, key, value)
            return
        own = vars(node) | self.attributes.get(mac, {})
        for column, new in columns.items():
            old = own.get(column, "")
            if old == new:
                continue
            if old == "" or self.update:
                self._change(where, node, key, _text(old), value)
            else:
                self._conflict(where, f"{node.hostname} has {column} {_text(old)!r}, not {_text(new)!r}")

    def _want(self, where: str, mac: str, key: str, value: str) -> None:
        said = self.adding[mac].values
        if said.setdefault(key, value) != value:
            self._conflict(where, f"{mac} has {key} {value!r} here and {said[key]!r} before")

    def _change(self, where: str, node: Node, key: str, old: str, new: str) -> None:
        said = self.changes.setdefault((node.nodeid, key), Setting(node.nodeid, node.hostname, key, old, new))
        if said.new != new:
            self._conflict(where, f"{node.hostname} would have {key} {new!r} and {said.new!r}")

    def _columns(self, key: str, value: str) -> dict[str, Any] | None:
        """The columns a setting means; None for a capsule that is not here, which is said and left out."""
        if key == "vnfs":
            try:
                return self.registry.parse_setting(key, value)
            except CapsulekitError:
                self._note(_not_installed(value))
                return None
        return self.registry.parse_setting(key, value)

    def _address_is_free(self, where: str, mac: str, address: str) -> bool:
        if address == self.site.ip:
            self._conflict(where, f"the address {address} is this master's own")
            return False
        other = self.addresses.setdefault(address, mac)
        if other != mac:
            self._conflict(where, f"the address {address} of {mac} is that of {other}")
            return False
        node = self.nodes.get(mac)
        if self.site.dhcp != "own" or (node and node.address == address):
            return True
        try:
            require_fixed(self.networks, address, mac)
        except CapsulekitError as error:
            self._conflict(where, error.message)
            return False
        return True

    def _find(self, name: str) -> str | None:
        """The machine of a name as a hosts file may spell it: HOST, HOST.CLUSTER, either with the domain behind it."""
        short = name.removesuffix(f".{self.site.domain}")
        host, cluster = parse_name(short)
        mac = self.names.get(host.lower())
        if mac is None or not cluster:
            return mac
        node = self.nodes.get(mac)
        own = node.cluster if node else parse_name(self.adding[mac].name)[1]
        return mac if cluster == own else None


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _without_absent_capsule(registry: Registry, found: Found) -> tuple[Found, tuple[str, ...]]:
    """The defaults' capsule under its installed name; one that is not here is said and left out, as a node's is."""
    if not found.defaults.get("vnfs"):
        return found, ()
    try:
        name = registry.find_capsule(str(found.defaults["vnfs"])).name
    except CapsulekitError:
        rest = {key: value for key, value in found.defaults.items() if key != "vnfs"}
        return replace(found, defaults=rest), (_not_installed(str(found.defaults["vnfs"])),)
    return replace(found, defaults={**found.defaults, "vnfs": name}), ()


def _not_installed(capsule: str) -> str:
    return f"capsule {capsule!r} is not installed: left out; import it, then run this again"


def _new_defaults(have: Defaults, found: Found, update: bool) -> tuple[Defaults, dict[str, str | int | bool]]:
    """The defaults with what the source says, and the keys that change. Raises CapsulekitError for a conflict."""
    stock = asdict(Defaults())
    changes: dict[str, str | int | bool] = {}
    for key, value in found.defaults.items():
        old = getattr(have, key)
        if old == value:
            continue
        if old != stock[key] and not update:
            raise CapsulekitError(
                f"defaults.toml has {key} = {old!r}, the source says {value!r}; nothing was imported",
                hint="let the source win: --update",
            )
        changes[key] = value
    known: dict[str, Any] = asdict(have) | changes
    new = Defaults(**known)
    try:
        next(template_names(new.node_name, new.first_node), None)
        parse_group(new.group)
    except CapsulekitError as error:
        raise CapsulekitError(f"the source's defaults: {error.message}; nothing was imported") from error
    return new, changes


def _write_defaults(paths: SitePaths, changes: Mapping[str, str | int | bool]) -> None:
    from capsulekit.files import atomic_write
    from provisioner.flattoml import update_flat

    target = paths.config / "defaults.toml"
    if not target.exists():
        atomic_write(target, b"", 0o600)
    update_flat(target, changes)
