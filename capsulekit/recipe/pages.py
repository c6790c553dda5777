"""What is made from the table of settings for readers: the reference page and the JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from capsulekit.recipe.settings import NAMED, SCRIPT_NAME, SETTINGS, VARIABLE, Named, Setting, Shape

INTRODUCTION = """<!-- Made by capsulekit.recipe.pages.reference(); a test keeps it current. -->
# The recipe

A recipe is a TOML file. A key that is not listed here is an error. `recipe.schema.json`, beside this page, is the same
as a JSON Schema, for editors; `capsulekit new` writes a recipe to begin with.

## Parents

`extends = ["base.toml", "role.toml"]`, before the first section, names parents. They are read first, in this order, and
the recipe is laid over them; a parent reached on two ways is read once.

- A text or a number replaces the parent's.
- A list is appended to the parent's; an item `"!name"` takes `name` out again. A script is taken out by its file name.
- A file of `[files]` replaces the parent's content; its mode and owner stay unless they are given.
- Packages: what each recipe includes is installed in a step of its own, on top of its parents' packages. A changed
  child makes only its own step anew.

Paths are relative to the recipe that holds them.

## Variables

`@{name}` in a value stands for the variable of that name, `@@{` for the two characters `@{`. Files that a recipe names
are taken as they are. A child's default replaces the parent's, `--set NAME=VALUE` replaces both.

    [variables]
    kernel = "linux-image-cloud-amd64"

    [kernel]
    package = "@{kernel}"

## Scripts

An item of a list of scripts is a file beside the recipe, or a table `{name = "50-motd", text = "..."}`. A script is
POSIX sh and starts with `#!/bin/sh`.

## In a capsule

The recipe inside a capsule is flattened: parents are merged, variables replaced, files and scripts written into it, so
that it needs no other file. Its sha256 is the capsule's recipe digest. With `--release` its level is the release level.
"""


def reference() -> str:
    """docs/reference/recipe.md: the settings as Markdown tables."""
    out = [INTRODUCTION]
    for section, settings in SETTINGS.items():
        out.append(_page(f"[{section}]", "", settings))
    for named in NAMED.values():
        out.append(_page(named.header, f"{named.help} The name is {named.name.expected}.\n\n", named.settings))
    return "\n".join(out)


def _page(header: str, text: str, settings: dict[str, Setting]) -> str:
    lines = [f"## {header}\n\n{text}| key | takes | default | what |\n|---|---|---|---|\n"]
    for key, setting in settings.items():
        default = "required" if setting.required else "none" if setting.default is None else _code(setting.default)
        lines.append(f"| `{key}` | {setting.shape.expected} | {default} | {setting.help} |\n")
    return "".join(lines)


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def schema() -> dict[str, Any]:
    """docs/reference/recipe.schema.json. Nothing is required: a parent may say it."""
    variables = {"type": "object", "propertyNames": _text(VARIABLE), "additionalProperties": {"type": "string"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of a capsule",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "extends": {"type": "array", "items": {"type": "string"}, "description": "parents, read first"},
            "variables": {**variables, "description": "what @{NAME} stands for"},
            **{section: _object(settings) for section, settings in SETTINGS.items()},
            **{section: _family(named) for section, named in NAMED.items()},
        },
    }


def schema_text() -> str:
    """The JSON Schema as it is written to its file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _family(named: Named) -> dict[str, Any]:
    return {
        "type": "object",
        "description": named.help,
        "propertyNames": {"pattern": f"^(?:{named.name.pattern})$"},
        "additionalProperties": _object(named.settings),
    }


def _object(settings: dict[str, Setting]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _setting(setting) for key, setting in settings.items()},
    }


def _setting(setting: Setting) -> dict[str, Any]:
    said = {"description": setting.help} | ({} if setting.default is None else {"default": setting.default})
    shape = setting.shape
    if shape.kind == "number":
        return {"type": "integer", "minimum": shape.least, "maximum": shape.most, **said}
    if shape.kind == "flag":
        return {"type": "boolean", **said}
    if shape.kind in ("line", "text"):
        return {**_text(shape), **said}
    item = _text(shape, item=True)
    if shape.kind == "lists":
        item = {"type": "array", "items": item}
    if shape.kind == "scripts":
        script = {"name": _text(SCRIPT_NAME), "text": {"type": "string"}}
        inline = {"type": "object", "additionalProperties": False, "required": ["name", "text"], "properties": script}
        item = {"anyOf": [item, inline]}
    return {"type": "array", "items": item, **said}


def _text(shape: Shape, item: bool = False) -> dict[str, Any]:
    """A text, which may hold a variable instead; an item of a list may begin with "!"."""
    if shape.choices:
        return {"anyOf": [{"enum": list(shape.choices)}, {"type": "string", "pattern": r"@\{"}]}
    if not shape.pattern:
        return {"type": "string"}
    return {"type": "string", "pattern": f"^{'!?' if item else ''}(?:{shape.pattern})$|@\\{{"}
