"""What the admin does with modules: import, activate, deactivate, delete; each wholly or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_write, exclusive_lock
from capsulekit.sitepaths import SitePaths
from provisioner.catalog.config import check_config, make_config, module_config, unmake
from provisioner.catalog.found import SUFFIX, Catalog, module_store
from provisioner.catalog.model import Module
from provisioner.registry.registry import Registry
from provisioner.registry.roles import parse_role


@dataclass(frozen=True)
class Activated:
    """The roles that are new, and the files that were made for the admin to edit."""

    new: tuple[str, ...]
    made: tuple[Path, ...]


def import_module_file(paths: SitePaths, catalog: Catalog, file: Path, *, dry_run: bool = False) -> tuple[Module, str]:
    """Verify a ``.pmod`` and install it; returns the module and the version it replaces, or "".

    Raises TrustError when no trusted key signed it or it is not what was signed, CapsulekitError when the name is that
    of a shipped module, or another author's.
    """
    from capsulekit.trust.keyring import Keyring
    from provisioner.catalog.pmod import check_pmod, read_bytes

    if not Keyring(paths.trust).keys():
        raise TrustError("this site trusts no author yet", hint="capsulekit trust add FILE.pub")
    data = read_bytes(file)
    module = check_pmod(data, file, paths)
    if catalog.is_shipped(module.name):
        raise CapsulekitError(f"{file}: {module.name!r} is a module of capsulekit itself; the name is taken")
    store = module_store(paths)
    if dry_run:
        return module, _replaced(catalog, module)
    store.mkdir(mode=0o755, parents=True, exist_ok=True)
    with exclusive_lock(store / ".lock"):
        old = _replaced(catalog, module)
        # Scripts may be no secret, but nobody else needs them.
        atomic_write(store / f"{module.name}{SUFFIX}", data, 0o600)
    return module, old


def _replaced(catalog: Catalog, module: Module) -> str:
    """The version that an import replaces. Another author must not take over a module under its name."""
    try:
        old = catalog.module(module.name)
    except CapsulekitError:
        return "(one that could not be used)"
    if old is not None and old.key_id != module.key_id:
        raise TrustError(
            f"module {module.name!r} is installed from another author (key {old.key_id})",
            hint=f"to replace it: capsulekit module delete {module.name}",
        )
    return old.version if old else ""


def activate(
    paths: SitePaths, registry: Registry, module: Module, roles: Sequence[str], states: Sequence[str], dry_run: bool
) -> Activated:
    """Activate a module in all of ``roles``, and make the files of its settings that are missing.

    Raises CapsulekitError; nothing is activated then, and what was made is gone again.
    """
    for role in roles:
        parse_role(role, states)
    made: list[Path] = []
    try:
        if not dry_run:
            made = make_config(paths, module)
        check_config(paths, module)
        with registry.db.rehearsal(dry_run):
            new = registry.activate(module.name, roles, states)
    except BaseException as wrong:
        unmake(made)
        if isinstance(wrong, CapsulekitError):
            raise CapsulekitError(
                f"module {module.name!r} was not activated, and what was begun is undone: {wrong.message}",
                hint=wrong.hint,
            ) from wrong
        raise
    return Activated(tuple(new), tuple(made))


def delete_module(
    paths: SitePaths, registry: Registry, catalog: Catalog, name: str, *, dry_run: bool = False
) -> list[str]:
    """End the activations of an imported module and remove it; its settings stay. Returns the roles that ended.

    Raises CapsulekitError for a shipped module, or when there is none.
    """
    archive = module_store(paths) / f"{name}{SUFFIX}"
    check_deletable(paths, catalog, name)
    with registry.db.rehearsal(dry_run):
        gone = registry.deactivate(name) if name in registry.roles() else []
    if not dry_run:
        archive.unlink(missing_ok=True)
    return gone


def check_deletable(paths: SitePaths, catalog: Catalog, name: str) -> None:
    """Raise CapsulekitError when ``name`` is a shipped module or none."""
    if catalog.is_shipped(name):
        raise CapsulekitError(
            f"{name!r} is a module of capsulekit itself and stays", hint=f"capsulekit module deactivate {name}"
        )
    if name not in {path.name.removesuffix(SUFFIX) for path in module_store(paths).glob(f"*{SUFFIX}")}:
        raise CapsulekitError(f"there is no module {name!r}", hint="see: capsulekit module list")


def settings_folder(paths: SitePaths, module: Module) -> Path | None:
    """Where the admin edits a module's settings; None when it has none."""
    return module_config(paths, module.name) if module.settings or module.text else None
