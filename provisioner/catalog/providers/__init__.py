"""The data providers of shipped modules: one file each, ``files_for(Asked)`` gives one node's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog.model import Value
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.siteconf import SiteConfig


@dataclass(frozen=True)
class Asked:
    """Whose files are wanted, and what they may be made of. ``root`` is the master's own root."""

    paths: SitePaths
    config: SiteConfig
    node: Node
    state: str
    settings: Mapping[str, Value]
    text: bytes
    nodes: Callable[[], Sequence[Node]]
    capsule: InstalledCapsule | None = None
    root: Path = Path("/")

    def master_file(self, path: str) -> bytes:
        """A file of the master itself. Raises CapsulekitError when it can't be read."""
        place = self.root / path.lstrip("/")
        try:
            return place.read_bytes()
        except OSError as wrong:
            raise CapsulekitError(f"can't read the master's {place}: {wrong.strerror}") from wrong

    def flag(self, key: str) -> bool:
        """A setting that is true or false."""
        return self.settings[key] is True

    def number(self, key: str) -> int:
        """A setting that is a number."""
        return int(self.settings[key])

    def word(self, key: str) -> str:
        """A setting that is text."""
        return str(self.settings[key])
