"""Warewulf 4's nodes.conf: nodes, and profiles they take what they do not say themselves from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from provisioner.importers._found import Gathering, text_of
from provisioner.registry.names import parse_group, parse_name

DEEPEST = 20  # profiles within profiles
Table = dict[str, Any]


def read_into(got: Gathering, path: Path) -> None:
    """Every node with a MAC. Raises CapsulekitError when the file is no YAML, or not of this form."""
    tree = _load(path)
    profiles, nodes = (_table(tree.get(key) or {}, f"{path}: {key}") for key in ("nodeprofiles", "nodes"))
    for name, own in nodes.items():
        where = f"{path}: node {name}"
        try:
            own = _table(own or {}, where)
            merged: Table = {}
            names = _profiles_of(own, profiles, where, 0)
            for profile in names:
                merged = _over(merged, _table(profiles[profile] or {}, f"{path}: profile {profile}"))
            _node(got, where, name, _over(merged, own), names)
        except CapsulekitError as error:
            got.wrong(where, error.message.removeprefix(f"{where}: "))


def _load(path: Path) -> Table:
    """The YAML, every value as its text: YAML 1.1 reads 10:20:30:40:50:59 as a number to the base of sixty."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        top = yaml.compose(text_of(path), Loader=loader)
        return _table("" if top is None else _Builder(path).build(top), str(path))
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('"<unicode string>"', str(path)).split())
        raise CapsulekitError(f"{path} is not YAML: {said}") from error
    except RecursionError:
        raise CapsulekitError(f"{path} is nested too deeply to be a list of nodes") from None


class _Builder:
    """Texts, lists and tables of a parsed file; what an alias names is built once. Raises CapsulekitError.

    Merges (``<<: *node``) are done, a key that stands twice is refused, as Warewulf's own reader does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._built: dict[int, Any] = {}
        self._open: set[int] = set()

    def build(self, node: Any) -> Any:
        """The value of one node of the parser's tree."""
        number = id(node)
        if number in self._open:
            raise CapsulekitError(f"{self._where(node)}: an alias stands within what it names")
        if number not in self._built:
            self._open.add(number)
            self._built[number] = self._value(node)
            self._open.remove(number)
        return self._built[number]

    def _value(self, node: Any) -> Any:
        if node.id == "scalar":
            return "" if not node.style and node.value in ("~", "null", "Null", "NULL") else node.value
        if node.id == "sequence":
            return [self.build(one) for one in node.value]
        own: Table = {}
        merged: Table = {}
        for key, value in node.value:
            name = self.build(key)
            if not isinstance(name, str):
                raise CapsulekitError(f"{self._where(key)}: a table is expected there, with texts as its keys")
            if name == "<<":
                merged |= self._merged(value)
            elif name in own:
                raise CapsulekitError(f"{self._where(key)}: {name!r} stands there twice")
            else:
                own[name] = self.build(value)
        return merged | own

    def _merged(self, value: Any) -> Table:
        """What ``<<`` brings: one table, or several, of which the earlier win."""
        said = self.build(value)
        merged: Table = {}
        for table in reversed(said if isinstance(said, list) else [said]):
            merged |= _table(table, self._where(value))
        return merged

    def _where(self, node: Any) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"


def _table(value: Any, where: str) -> Table:
    if not isinstance(value, dict):
        raise CapsulekitError(f"{where}: a table is expected there")
    return value


def _profiles_of(table: Table, profiles: Table, where: str, depth: int) -> list[str]:
    """The profiles in the order in which they are laid over each other, those of profiles before them; ~x takes away.

    A node that names none has the profile ``default``, when there is one.
    """
    if depth > DEEPEST:
        raise CapsulekitError(f"{where}: its profiles go round in a circle")
    wanted = table.get("profiles", "")
    if wanted == "":
        wanted = ["default"] if depth == 0 and "default" in profiles else []
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise CapsulekitError(f"{where}: profiles are not a list of names")
    found: list[str] = []
    for name in wanted:
        if name.startswith("~"):
            found = [one for one in found if one != name[1:]]
            continue
        if name in found:
            continue
        if name not in profiles:
            raise CapsulekitError(f"{where}: there is no profile {name!r}")
        inner = _profiles_of(_table(profiles[name] or {}, where), profiles, where, depth + 1)
        found += [one for one in (*inner, name) if one not in found]
    return found


def _over(under: Table, upper: Table, depth: int = 0) -> Table:
    """Two tables as one, the upper's values winning; tables within are laid over each other too."""
    merged = dict(under)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and depth < 4:
            merged[key] = _over(below, value, depth + 1)
        elif value not in ("", None, "~", "null"):
            merged[key] = value
    return merged


def _node(got: Gathering, where: str, name: str, said: Table, profiles: list[str]) -> None:
    devices = _table(said.get("network devices") or {}, f"{where}: network devices")
    card = _boot_card(devices, _text(said, "primary network"))
    if not card.get("hwaddr"):
        got.note(f"{where}: left out: it has no hwaddr" + (" (discoverable)" if said.get("discoverable") else ""))
        return
    kernel = said.get("kernel")
    args = kernel.get("args", "") if isinstance(kernel, dict) else said.get("kernel args", "")
    words = args if isinstance(args, list) else [args]
    comment = _text(said, "comment")
    got.machine(
        where,
        _text(card, "hwaddr"),
        _with_cluster(name, _text(said, "cluster name")),
        groupname=_group(profiles),
        vnfs=_text(said, "image name") or _text(said, "container name"),
        address=_text(card, "ipaddr") or _text(card, "ip6addr"),
        desc=comment if comment != _STOCK_COMMENT else "",
        kargs=" ".join(_text({"kernel args": word}, "kernel args") for word in words).strip(),
    )


_STOCK_COMMENT = "This profile is automatically included for each node"


def _text(table: Table, key: str) -> str:
    """One value, "" where it is not said. Raises CapsulekitError for a list or a table."""
    value = table.get(key, "")
    if not isinstance(value, str):
        raise CapsulekitError(f"{key} is not a text")
    return value


def _boot_card(devices: Table, primary: str) -> Table:
    """The network device a node boots from: the primary one, else "default", else the first with a MAC."""
    cards = {name: card for name, card in devices.items() if isinstance(card, dict)}
    marked = [name for name, card in cards.items() if _text(card, "primary").lower() in ("true", "yes", "1")]
    for name in (primary, *marked, "default", *cards):
        if cards.get(name, {}).get("hwaddr"):
            return dict(cards[name])
    return {}


def _group(profiles: list[str]) -> str:
    """The last profile that is not the one of all nodes: the nearest thing to a group that Warewulf 4 has."""
    for name in reversed(profiles):
        try:
            if name != "default":
                return parse_group(name)
        except CapsulekitError:
            continue
    return ""


def _with_cluster(name: str, cluster: str) -> str:
    """HOST.CLUSTER, where the node does not say its second part itself and the cluster's name can be one."""
    try:
        parse_name(f"{name}.{cluster}")
    except CapsulekitError:
        return name
    return name if "." in name or not cluster else f"{name}.{cluster}"
