"""What a first run proposes, takes from a file of answers, and says at its end."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths, site_paths
from provisioner.initsite import InitRequest
from provisioner.netboot.cards import Card

# Keys of a file of answers: the flags' names without their dashes, and what each must be.
TEXTS = {
    "interface": "interface", "address": "address", "range": "range_", "domain": "domain", "policy": "policy",
    "stage1-kargs": "stage1_kargs", "kargs": "kargs", "default-vnfs": "default_vnfs", "dhcp": "dhcp",
}  # fmt: skip
SERVICES = ("nfs", "http", "systemd")
BIGGEST = 1 << 20  # bytes


@dataclass(frozen=True)
class Answers:
    """Everything a first run can be told: the site itself, and which services around it to configure."""

    request: InitRequest = field(default_factory=InitRequest)
    services: tuple[str, ...] = ()  # of SERVICES
    allow_foreign_dhcp: bool = False


def read_answers(path: Path) -> Answers:
    """The answers in a TOML file whose keys are called as the flags are. Raises CapsulekitError naming a wrong one."""
    if not path.is_file():
        raise CapsulekitError(f"there is no file {path}")
    if path.stat().st_size > BIGGEST:
        raise CapsulekitError(f"{path} is too large to be a file of answers")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CapsulekitError(f"{path}: {error}") from error
    known = (*TEXTS, *SERVICES, "stage1", "allow-foreign-dhcp")
    for key, value in table.items():
        kind = str if key in TEXTS else list if key == "stage1" else bool
        if key not in known:
            raise CapsulekitError(f"{path}: unknown key {key!r}", hint="known: " + ", ".join(sorted(known)))
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            what = {str: "a text", list: "a list of texts", bool: "true or false"}[kind]
            raise CapsulekitError(f"{path}: {key} must be {what}, not {value!r}")
    fields: dict[str, Any] = {TEXTS[key]: value for key, value in table.items() if key in TEXTS}
    # A folder is meant as seen from the file that names it.
    fields["stage1"] = tuple(path.parent / one for one in table.get("stage1", ()))
    services = tuple(name for name in SERVICES if table.get(name))
    return Answers(InitRequest(**fields), services, bool(table.get("allow-foreign-dhcp")))


def merged(flags: InitRequest, file: InitRequest) -> InitRequest:
    """What the flags say, and the file where they say nothing."""
    said: Mapping[str, Any] = {key: value for key, value in vars(flags).items() if value not in (None, ())}
    return replace(file, **said)


def likely(cards: list[Card]) -> Card | None:
    """The card to propose: the only one with a link and a private address; None where that is not one."""
    fitting = [card for card in cards if card.linked and any(ip_interface(a).is_private for a in card.addresses)]
    return fitting[0] if len(fitting) == 1 else None


def first_address(card: Card | None) -> str | None:
    """The card's address to propose: its first one that is no single host's."""
    if card is None:
        return None
    return next((a for a in card.addresses if ip_interface(a).network.num_addresses > 1), None)


def next_commands(paths: SitePaths, default_vnfs: str = "") -> list[str]:
    """The three commands that boot the first node, as they are typed for this site."""
    from provisioner.netboot.stage1 import installed

    base = "capsulekit"
    if paths != site_paths():
        base += f" --config-dir {shlex.quote(str(paths.config))} --state-dir {shlex.quote(str(paths.state))}"
    trusted = any(paths.trust.glob("*.pub")) if paths.trust.is_dir() else False
    trust = "" if trusted else f"{base} trust add AUTHOR.pub && "
    stage1 = f"capsulekit stage1 build -o stage1 && {base} init --stage1 stage1"
    give = "" if default_vnfs else f" && {base} init --default-vnfs NAME"
    boot = [f"{trust}{base} vnfs import FILE.vnfs{give}", f"{base} serve"]
    return [*boot, f"{base} node status"] if installed(paths) else [stage1, *boot]
