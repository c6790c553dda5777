"""What a node's modules write while it runs, as each module.toml says: the module's business, nobody's change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provisioner.catalog.chosen import written
from provisioner.catalog.found import Catalog
from provisioner.registry.model import Node
from provisioner.trees.entry import escape

RUNNING = "ready"  # the state whose scripts a node's agent runs, again and again


@dataclass(frozen=True)
class Written:
    """For every node of a site; ``active`` is the registry's table of roles by module."""

    catalog: Catalog
    active: Mapping[str, Sequence[str]]

    def of(self, node: Node) -> frozenset[str]:
        """The paths (escaped). Raises CapsulekitError for a module whose archive is not to be trusted."""
        return frozenset(escape(path.strip("/").encode()) for path in written(self.catalog, self.active, node, RUNNING))
