"""What a new node gets: config/defaults.toml."""

from __future__ import annotations

from dataclasses import dataclass

from capsulekit.sitepaths import SitePaths
from provisioner.flattoml import read_flat


@dataclass(frozen=True)
class Defaults:
    """Values for nodes added from now on; nodes that exist keep theirs."""

    node_name: str = "n####.new"
    group: str = "cluster"
    vnfs: str = ""
    enabled: bool = True
    first_node: int = 0


def load_defaults(paths: SitePaths) -> Defaults:
    """Read defaults.toml; the built-in defaults where it is missing. Raises CapsulekitError naming a wrong key."""
    try:
        return Defaults(**read_flat(paths.config / "defaults.toml", Defaults()))
    except FileNotFoundError:
        return Defaults()
