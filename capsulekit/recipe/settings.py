"""Every setting a recipe may hold, in one typed table: validation and the reference page are made from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# No "-" at the end: apt would take "name-" for "remove name".
PACKAGE = re.compile(r"[a-z0-9]([a-z0-9+.-]*[a-z0-9+.])?(:[a-z0-9]+)?")
UNIT = re.compile(r"(?!-)[A-Za-z0-9@:._\\-]+\.(service|socket|timer|target|mount|path)")
MODE = re.compile(r"0[0-7]{3,4}")


@dataclass(frozen=True)
class Setting:
    """One key: its type (``str``, ``int`` or ``list``), what its value (or each item) must look like, and its help."""

    type: type
    help: str
    default: Any = None
    required: bool = False
    check: Callable[[Any], bool] | None = None
    expected: str = "text"


def _like(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.fullmatch(text) is not None


def _one_line(text: str) -> bool:
    return text.isprintable()


def _absolute(text: str) -> bool:
    parts = text.split("/")
    return text.startswith("/") and len(text) > 1 and not {"", ".", ".."} & set(parts[1:]) and text.isprintable()


NAME_RULE = {"check": _like(NAME), "expected": "a name of letters, digits, '.', '_' and '-'"}
PACKAGES_RULE = {"check": _like(PACKAGE), "expected": "a list of package names"}
UNITS_RULE = {"check": _like(UNIT), "expected": 'a list of unit names, such as "ssh.service"'}

SETTINGS: dict[str, dict[str, Setting]] = {
    "capsule": {
        "name": Setting(str, "name of the capsule", required=True, **NAME_RULE),  # type: ignore[arg-type]
        "version": Setting(str, "version of the capsule", required=True, **NAME_RULE),  # type: ignore[arg-type]
        "init": Setting(str, "first program of the booted root", "/sbin/init", check=_absolute, expected="a full path"),
        "cmdline": Setting(str, "kernel arguments", "", check=_one_line, expected="one line of kernel arguments"),
    },
    "distro": {
        "name": Setting(str, "distribution", required=True, **NAME_RULE),  # type: ignore[arg-type]
        "release": Setting(str, "release of the distribution, as its users say it", required=True, **NAME_RULE),  # type: ignore[arg-type]
        "arch": Setting(str, "architecture", "amd64", **NAME_RULE),  # type: ignore[arg-type]
    },
    "packages": {
        "include": Setting(list, "packages to install, with what they depend on", [], **PACKAGES_RULE),  # type: ignore[arg-type]
    },
    "kernel": {
        "package": Setting(str, "package that brings (or depends on) the kernel", required=True,
                           check=_like(PACKAGE), expected="a package name"),
        "modules": Setting(list, "keep only these modules and what they need; empty keeps all", [],
                           check=_one_line, expected="a list of module names"),
        "stage2": Setting(list, "modules that stage 2 loads to mount the layers", ["loop", "squashfs", "overlay"],
                          check=_one_line, expected="a list of module names"),
    },
    "rootfs": {
        "base": Setting(str, '"essential": a working system; "extract": unpacked packages, no script is run',
                        "essential",
                        check=lambda t: t in ("essential", "extract"), expected='"essential" or "extract"'),
    },
    "services": {
        "enable": Setting(list, "units to enable", [], **UNITS_RULE),  # type: ignore[arg-type]
        "disable": Setting(list, "units to disable", [], **UNITS_RULE),  # type: ignore[arg-type]
        "mask": Setting(list, "units to mask", [], **UNITS_RULE),  # type: ignore[arg-type]
    },
    "scripts": {
        "rootfs": Setting(list, "scripts run as root inside the new root, after the packages", [],
                          check=_one_line, expected="a list of file paths"),
    },
    "hybridize": {
        "paths": Setting(list, "globs of paths that may live on the network instead of in RAM", [],
                         check=lambda t: t.startswith("/") and t.isprintable(),
                         expected="a list of globs that start with /"),
    },
    "provision": {
        "init": Setting(list, "scripts stage 1 runs on the node against NEWROOT; file names start with two digits", [],
                        check=_one_line, expected="a list of file paths"),
    },
    "image": {
        "level": Setting(int, "zstd level of the layers; past 9 it only costs time", 3,
                         check=lambda n: 1 <= n <= 22, expected="a number from 1 to 22"),
    },
}  # fmt: skip

# [files."/etc/motd"]: what one file of the root is made of.
FILE_SETTINGS: dict[str, Setting] = {
    "content": Setting(str, "the file's text"),
    "source": Setting(
        str, "or the file it is copied from (path beside the recipe)", check=_one_line, expected="a path"
    ),
    "mode": Setting(str, "permission bits, octal", "0644", check=_like(MODE), expected='octal text such as "0644"'),
}


INTRODUCTION = """<!-- Made by capsulekit.recipe.settings.reference(); a test keeps it current. -->
# The recipe

A recipe is a TOML file. `extends = ["base.toml"]`, before the first section, names parents, which are read first: a
text or a number replaces the parent's, a list is appended to it, an item `"!name"` takes `name` out of it again, a file
of `[files]` replaces the parent's file. Paths are relative to the recipe that holds them. A key that is not listed here
is an error.

"""


def reference() -> str:
    """docs/reference/recipe.md: the settings as Markdown tables."""
    out = []
    for section, keys in SETTINGS.items():
        out.append(f"## [{section}]\n\n| key | type | default | what |\n|---|---|---|---|")
        for key, s in keys.items():
            default = "required" if s.required else f"`{s.default!r}`"
            out.append(f"| `{key}` | {s.type.__name__} | {default} | {s.help} |")
        out.append("")
    out.append('## [files."/path"]\n\n| key | type | default | what |\n|---|---|---|---|')
    for key, s in FILE_SETTINGS.items():
        out.append(
            f"| `{key}` | {s.type.__name__} | {'none' if s.default is None else f'`{s.default!r}`'} | {s.help} |"
        )
    return INTRODUCTION + "\n".join(out) + "\n"
