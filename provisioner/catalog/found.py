"""Which modules there are: the shipped folders, and the signed archives that were imported (state/modules/NAME.pmod).

An imported module is read from its archive and nowhere else: each time its signature is checked anew, so a key that was
revoked, or a byte that changed, ends its use.
"""

from __future__ import annotations

from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog.model import Module
from provisioner.catalog.read import MODULE_TOML, Wrong, read_module

SHIPPED = Path(__file__).parents[1] / "modules"
SUFFIX = ".pmod"
_Stamp = tuple[tuple[str, int, int], ...]


class Catalog:
    """The modules under one folder (the shipped ones unless another is given) and the site's imported ones."""

    def __init__(self, root: Path = SHIPPED, site: SitePaths | None = None) -> None:
        found = [load_module(f.parent) for f in sorted(root.glob(f"*/{MODULE_TOML}"))]
        self._own = {module.name: module for module in found}
        self._site = site
        self._stamp: _Stamp | None = None
        self._imported: dict[str, Module | CapsulekitError] = {}

    def modules(self) -> list[Module]:
        """Every module that can be used, sorted by name."""
        both = {**self._read(), **self._own}
        return [module for _, module in sorted(both.items()) if isinstance(module, Module)]

    def module(self, name: str) -> Module | None:
        """One module, or None. Raises CapsulekitError when its archive is not (or no longer) to be trusted."""
        found = self._own.get(name) or self._read().get(name)
        if isinstance(found, CapsulekitError):
            raise found
        return found

    def require(self, name: str) -> Module:
        """One module. Raises CapsulekitError when there is none, or when its archive is not to be trusted."""
        found = self.module(name)
        if found is None:
            raise CapsulekitError(f"there is no module {name!r}", hint="see: capsulekit module list")
        return found

    def is_shipped(self, name: str) -> bool:
        """Whether a module comes with the program."""
        return name in self._own

    def broken(self) -> dict[str, CapsulekitError]:
        """Imported archives that can't be used, by name, and why."""
        return {name: why for name, why in sorted(self._read().items()) if isinstance(why, CapsulekitError)}

    def _read(self) -> dict[str, Module | CapsulekitError]:
        """The imported modules; read again only when an archive or a key came, went or changed."""
        if self._site is None:
            return {}
        stamp = _stamp(self._site)
        if stamp != self._stamp:
            found: dict[str, Module | CapsulekitError] = {}
            for path in sorted(module_store(self._site).glob(f"*{SUFFIX}")):
                name = path.name.removesuffix(SUFFIX)
                found[name] = _load(self._site, path, name)
            self._imported, self._stamp = found, stamp
        return self._imported


def site_catalog(paths: SitePaths) -> Catalog:
    """The shipped modules and those imported at this site."""
    return Catalog(site=paths)


def module_store(paths: SitePaths) -> Path:
    """Where imported archives are kept."""
    return paths.state / "modules"


def load_module(folder: Path) -> Module:
    """Read a module's folder; raises CapsulekitError that names the file and what is wrong in it."""
    module = read_module(folder_files(folder), str(folder), provider=folder.parent == SHIPPED)
    if module.name != folder.name:
        raise Wrong(f"{folder / MODULE_TOML}: name must be that of the folder, {folder.name}")
    return module


def folder_files(folder: Path) -> dict[str, bytes]:
    """The files of a module's folder by their path in it; what starts with a dot or ends with ~ is an editor's."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.endswith("~") and not any(p.startswith((".", "__")) for p in name.split("/")):
            found[name] = path.read_bytes()
    return found


def _load(paths: SitePaths, path: Path, name: str) -> Module | CapsulekitError:
    from provisioner.catalog.pmod import read_pmod

    try:
        module = read_pmod(path, paths)
        if module.name != name:
            return CapsulekitError(f"{path} holds the module {module.name!r}", hint="import it again")
    except CapsulekitError as wrong:
        return wrong
    return module


def _stamp(paths: SitePaths) -> _Stamp:
    """Changes when an archive is imported or deleted, or a key is trusted or revoked."""
    found = []
    for folder, pattern in ((module_store(paths), f"*{SUFFIX}"), (paths.trust, "*")):
        for path in sorted(folder.glob(pattern)):
            try:
                info = path.stat()
            except FileNotFoundError:
                continue
            found.append((str(path), info.st_mtime_ns, info.st_ino))
    return tuple(found)
