"""Recipes of stage 1: one small TOML each, which may extend another and names the hardware it is for by a profile.

A profile is a file of its own, because the same hardware is wanted on several architectures and distributions: the
kernel modules, their firmware and the processors' microcode, as globs with exceptions.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from initramfs_builder.compress import LEVEL_MAX
from initramfs_builder.stage1 import Stage1Config

from capsulekit.errors import CapsulekitError

DEFAULT = "stage1-debian-12.toml"
VIRTUAL = "stage1-debian-12-virtual.toml"  # for the lab's machines
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
EXTENDS_MAX = 8  # recipes in a row
# Section -> key -> its type, and what it is when a recipe does not say it (None: it must).
SECTIONS: dict[str, dict[str, tuple[type, Any]]] = {
    "distro": {"name": (str, None), "release": (str, None), "arch": (str, None), "components": (list, [])},
    "packages": {"include": (list, None), "firmware": (list, [])},
    "kernel": {"package": (str, None)},
    "stage1": {
        "profile": (str, None),
        "level": (int, None),
        "binaries": (list, None),
        "applets": (list, None),
        "modules": (list, []),
        "files": (list, []),
    },
}
GLOBS = ("modules", "files")  # where "!" is an exception, for the assembler
PROFILE: dict[str, tuple[type, Any]] = {"modules": (list, None), "firmware": (list, []), "microcode": (list, [])}


@dataclass(frozen=True)
class Stage1Recipe:
    """What stage 1 is made of: a release, its packages, its kernel's package, and what goes into the image.

    ``components`` are those of the archive (none: the distribution's default).
    """

    distro: str
    release: str
    arch: str
    components: tuple[str, ...]
    packages: tuple[str, ...]
    kernel: str
    config: Stage1Config
    level: int


def shipped_recipe(name: str = DEFAULT) -> Path:
    """A shipped stage-1 recipe: in the source tree, or inside the installed package."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "recipes", here / "recipes"):
        if (path := folder / name).exists():
            return path
    raise CapsulekitError(f"the shipped recipe {name} is missing", hint="install capsulekit again, or name a recipe")


def load_stage1(path: Path) -> Stage1Recipe:
    """Read and check a stage-1 recipe, what it extends, and its profile; raises CapsulekitError naming the fault."""
    given = _sections(path, EXTENDS_MAX)
    if missing := next((section for section in SECTIONS if section not in given), None):
        raise CapsulekitError(f"{path}: the section [{missing}] is missing")
    table = {section: _checked(given[section], SECTIONS[section], path, f"[{section}] ") for section in SECTIONS}
    stage1 = table["stage1"]
    profile = _profile(path, stage1["profile"])
    if not 1 <= stage1["level"] <= LEVEL_MAX:
        raise CapsulekitError(f"{path}: [stage1] level must be a number from 1 to {LEVEL_MAX}")
    for component in table["distro"]["components"]:
        if not NAME.fullmatch(component):
            raise CapsulekitError(f"{path}: [distro] components: {component!r} is no name of a component")
    return Stage1Recipe(
        distro=table["distro"]["name"],
        release=table["distro"]["release"],
        arch=table["distro"]["arch"],
        components=tuple(table["distro"]["components"]),
        packages=(*table["packages"]["include"], *table["packages"]["firmware"]),
        kernel=table["kernel"]["package"],
        config=Stage1Config(
            arch=table["distro"]["arch"],
            profile=stage1["profile"],
            binaries=tuple(stage1["binaries"]),
            modules=(*profile["modules"], *stage1["modules"]),
            applets=tuple(stage1["applets"]),
            files=tuple(stage1["files"]),
            firmware=tuple(profile["firmware"]),
            microcode=tuple(profile["microcode"]),
        ),
        level=stage1["level"],
    )


def _sections(path: Path, left: int) -> dict[str, dict[str, Any]]:
    """A recipe's sections laid over those of the recipes it extends, which are read first, in their order."""
    if not left:
        raise CapsulekitError(f"{path}: more than {EXTENDS_MAX} recipes extend one another: does one extend itself?")
    table = _toml(path, "stage-1 recipe")
    below = _checked({"extends": table.pop("extends", [])}, {"extends": (list, [])}, path, "")["extends"]
    for section, given in table.items():
        if section not in SECTIONS:
            raise CapsulekitError(f"{path}: unknown section [{section}]", hint="known: " + ", ".join(SECTIONS))
        if not isinstance(given, dict):
            raise CapsulekitError(f"{path}: {section} must be a section")
        if unknown := next((key for key in given if key not in SECTIONS[section]), None):
            raise CapsulekitError(
                f"{path}: unknown key {unknown} in [{section}]", hint="known: " + ", ".join(SECTIONS[section])
            )
    merged: dict[str, dict[str, Any]] = {}
    for one in [*(_sections(_beside(path, name), left - 1) for name in below), table]:
        for section, given in one.items():
            into = merged.setdefault(section, {})
            for key, value in given.items():
                into[key] = _laid_over(into.get(key), value, key)
    return merged


def _laid_over(old: Any, new: Any, key: str) -> Any:
    """A value over a parent's: a list is appended to it, as in every recipe, and "!name" takes a name out again."""
    if not isinstance(old, list) or not isinstance(new, list):
        return new
    if key in GLOBS:
        return [*old, *new]
    dropped = {item[1:] for item in new if isinstance(item, str) and item.startswith("!")}
    kept = [item for item in old if item not in dropped]
    return [*kept, *(item for item in new if not (isinstance(item, str) and item.startswith("!")) and item not in kept)]


def _profile(path: Path, name: str) -> dict[str, Any]:
    if not NAME.fullmatch(name):
        raise CapsulekitError(f"{path}: [stage1] profile: {name!r} is no name of a profile")
    where = _beside(path, f"profiles/{name}.toml")
    table = _toml(where, "hardware profile")
    if unknown := next((key for key in table if key not in PROFILE), None):
        raise CapsulekitError(f"{where}: unknown key {unknown}", hint="known: " + ", ".join(PROFILE))
    return _checked(table, PROFILE, where, "")


def _beside(path: Path, name: str) -> Path:
    """A file beside a recipe, or the shipped one of that name."""
    own = path.parent / name
    if own.exists():
        return own
    try:
        return shipped_recipe(name)
    except CapsulekitError:
        raise CapsulekitError(f"{path}: there is no {name}, neither beside it nor among the shipped ones") from None


def _checked(given: dict[str, Any], keys: dict[str, tuple[type, Any]], path: Path, where: str) -> dict[str, Any]:
    """Every key with its value or default; raises CapsulekitError for one of another type."""
    checked = {}
    for key, (kind, default) in keys.items():
        value = given.get(key, default)
        texts = not isinstance(value, list) or all(isinstance(v, str) and v for v in value)
        if not isinstance(value, kind) or isinstance(value, bool) or not texts:
            what = "list of texts" if kind is list else kind.__name__
            raise CapsulekitError(f"{path}: {where}{key} must be a {what}")
        checked[key] = value
    return checked


def _toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise CapsulekitError(f"{path}: the {what} cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise CapsulekitError(f"{path}: the {what} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CapsulekitError(f"{path}: not valid TOML: {error}") from None
