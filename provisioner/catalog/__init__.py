"""The modules: what they are, where they come from, what they bring to one node."""

from provisioner.catalog.found import SHIPPED, Catalog, load_module, site_catalog
from provisioner.catalog.model import DataFile, Given, Module, Script, Setting, TextConfig, Write

__all__ = [
    "SHIPPED",
    "Catalog",
    "DataFile",
    "Given",
    "Module",
    "Script",
    "Setting",
    "TextConfig",
    "Write",
    "load_module",
    "site_catalog",
]
