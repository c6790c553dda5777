"""`new`: a small commented recipe to begin with, made from the table of settings and the shipped recipes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import fsync_dir
from capsulekit.recipe.document import nearest, printable
from capsulekit.recipe.edit import change
from capsulekit.recipe.flat import file_sections, toml
from capsulekit.recipe.load import load_recipe
from capsulekit.recipe.model import Recipe
from capsulekit.recipe.settings import NAME, NAMED, SETTINGS, Setting

_FIRST_VERSION = "1.0"


@dataclass(frozen=True)
class Start:
    """Which shipped recipe a new one takes its values from."""

    distro: str = "debian"
    release: str = "12"
    arch: str = "amd64"
    role: str = "compute"


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes of capsules by name: in the source tree, or inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "recipes", package / "recipes"):
        if found := {p.stem: p for p in sorted(folder.glob("*.toml")) if not p.name.startswith("stage1-")}:
            return found
    raise CapsulekitError("the shipped recipes are missing", hint="install capsulekit again, or name one: --extends")


def new_recipe(path: Path, name: str | None, start: Start | Path) -> tuple[str, str]:
    """Name and text of a recipe for the file ``path``, which ``start`` gives its values or is its parent.

    Raises UsageError for a name or a start that does not exist, CapsulekitError for a parent that is wrong.
    """
    name = name or path.stem
    if not NAME.fits(name):
        raise UsageError(f"a capsule cannot be called {printable(name)}: it must be {NAME.expected}", hint="say --name")
    if isinstance(start, Path):
        load_recipe(start)
        parent = os.path.relpath(os.path.realpath(start), os.path.realpath(path.parent))
        return name, _child(path, name, parent)
    return name, _whole(path, name, _load_shipped(start))


def create(path: Path, text: str, dry_run: bool) -> None:
    """Write a recipe in one step; raises CapsulekitError when there is something of that name or no such folder."""
    taken = CapsulekitError(f"{path} is there already; a recipe is never overwritten", hint="choose another name")
    if path.is_symlink() or path.exists():
        raise taken
    if not path.parent.is_dir():
        raise CapsulekitError(f"there is no folder {path.parent} to write the recipe to", hint="make it first")
    if dry_run:
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
        try:
            # Unlike a rename, a link never takes the place of what came to be there meanwhile.
            os.link(file.name, path)
        except FileExistsError:
            raise taken from None
    fsync_dir(path.parent)


def _load_shipped(start: Start) -> Recipe:
    recipes = shipped_recipes()
    wanted = f"{start.distro}-{start.release}-{start.role}" + ("" if start.arch == "amd64" else f"-{start.arch}")
    if wanted not in recipes:
        raise UsageError(
            f"there is no recipe for {printable(f'{start.distro} {start.release} {start.arch} {start.role}')}",
            hint=nearest(wanted, recipes),
        )
    return load_recipe(recipes[wanted])


def _child(path: Path, name: str, parent: str) -> str:
    values: dict[str, dict[str, Any]] = {"capsule": {"name": name, "version": _FIRST_VERSION}}
    text = _head(path, name) + "\n# What stands in these recipes holds here, too.\nextends = []\n\n" + _body(values)
    return change(_filled(text, values), "", "extends", [parent])


def _whole(path: Path, name: str, recipe: Recipe) -> str:
    values: dict[str, dict[str, Any]] = {
        "capsule": {"name": name, "version": _FIRST_VERSION, "cmdline": recipe.cmdline},
        "distro": {"name": recipe.distro, "release": recipe.release, "arch": recipe.arch},
        "packages": {"include": sorted(recipe.packages)},
        "kernel": {"package": recipe.kernel_package, "extra": recipe.kernel_extra},
        "services": {"enable": recipe.enable, "disable": recipe.disable, "mask": recipe.mask},
    }
    values = {section: {k: v for k, v in keys.items() if v} for section, keys in values.items()}
    return _filled(_head(path, name) + "\n" + _body(values, file_sections(recipe)), values)


def _filled(text: str, values: dict[str, dict[str, Any]]) -> str:
    for section, keys in values.items():
        for key, value in keys.items():
            text = change(text, section, key, value)
    return text


def _head(path: Path, name: str) -> str:
    return (
        f"# The recipe of {name}. Every setting is explained in docs/reference/recipe.md.\n"
        f"#   capsulekit build {path.name} -o {name}.vnfs --key KEY\n"
    )


def _body(values: dict[str, dict[str, Any]], files: Sequence[str] = ()) -> str:
    """Sections that say something, each key with its help, then all others as comments."""
    told: list[str] = []
    untold: list[str] = []
    for section, settings in SETTINGS.items():
        said = values.get(section, {})
        lines = [f"[{section}]" if said else f"# [{section}]"]
        for key, setting in settings.items():
            if key in said:
                lines += [f"# {setting.help}", f"{key} = {toml(type(said[key])())}"]
            elif not setting.required:
                lines.append(_untold(key, setting))
        (told if said else untold).append("\n".join(lines) + "\n")
    families = [f"# {named.header}: {', '.join(named.settings)}\n" for named in NAMED.values()]
    return "\n".join([*told, *files, "# What else a recipe may say:\n", *untold, "".join(families)])


def _untold(key: str, setting: Setting) -> str:
    """A key as a comment: its default, or what it takes where it has none."""
    if setting.default is None:
        return f'# {key} = ""  # {setting.help}: {setting.shape.expected}'
    # JSON's spelling of these is TOML's, and stays on the line.
    return f"# {key} = {json.dumps(setting.default)}  # {setting.help}"
