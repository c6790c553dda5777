"""The table of settings, the reference page, the JSON Schema and the shipped recipes say the same."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_recipes import BROKEN

from capsulekit.cli.main import main
from capsulekit.recipe.load import load_recipe, loads_recipe
from capsulekit.recipe.model import Recipe
from capsulekit.recipe.new import shipped_recipes
from capsulekit.recipe.pages import reference, schema, schema_text
from capsulekit.recipe.settings import NAMED, SETTINGS, Setting

ROOT = Path(__file__).parents[2]
RECIPES = shipped_recipes()
FRAGMENTS = sorted((ROOT / "recipes/roles").glob("*.toml"))
FILES = [*RECIPES.values(), *FRAGMENTS, *sorted((ROOT / "tests/data").glob("*/recipe.toml"))]
ROLES = ("minimal", "compute", "login", "rescue")
MADE_FOR = ("debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "rocky-9", "alma-9", "fedora-42")


def settings() -> Iterator[tuple[str, Setting]]:
    for keys in (*SETTINGS.values(), *(named.settings for named in NAMED.values())):
        yield from keys.items()


def fits(value: Any, rule: dict[str, Any]) -> bool:
    """JSON Schema 2020-12, as much of it as ours uses; an unknown word of it fails the test."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    checks = {
        "type": lambda kind: isinstance(value, kinds[kind]) and isinstance(value, bool) == (kind == "boolean"),
        "enum": lambda known: value in known,
        "pattern": lambda pattern: not isinstance(value, str) or re.search(pattern, value) is not None,
        "minimum": lambda least: value >= least,
        "maximum": lambda most: value <= most,
        "anyOf": lambda rules: any(fits(value, one) for one in rules),
        "items": lambda one: all(fits(item, one) for item in value),
        "required": lambda names: set(names) <= set(value),
        "propertyNames": lambda one: all(fits(name, one) for name in value),
        "properties": lambda known: all(fits(value[k], one) for k, one in known.items() if k in value),
        "additionalProperties": lambda one: all(
            one is not False and fits(item, one) for k, item in value.items() if k not in rule.get("properties", {})
        ),
        "description": bool, "default": lambda _: True, "title": bool, "$schema": bool,
    }  # fmt: skip
    return all(checks[word](said) for word, said in rule.items())


def test_the_reference_page_is_current_and_names_every_setting() -> None:
    page = (ROOT / "docs/reference/recipe.md").read_text()
    assert page == reference(), "write capsulekit.recipe.pages.reference() to docs/reference/recipe.md"
    for key, setting in settings():
        assert re.search(rf"^\| `{key}` \| .* \| {re.escape(setting.help)} \|$", page, re.MULTILINE), key


def test_the_json_schema_is_current_and_knows_every_setting() -> None:
    text = (ROOT / "docs/reference/recipe.schema.json").read_text()
    assert text == schema_text(), "write capsulekit.recipe.pages.schema_text() to docs/reference/recipe.schema.json"
    assert json.loads(text) == schema()
    assert set(schema()["properties"]) == {*SETTINGS, *NAMED, "extends", "variables"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_here_fits_the_schema(path: Path) -> None:
    assert fits(tomllib.loads(path.read_text()), schema())


@pytest.mark.parametrize("name", RECIPES)
def test_a_flattened_recipe_fits_the_schema_and_is_read_back(name: str) -> None:
    recipe = load_recipe(RECIPES[name])
    assert fits(tomllib.loads(recipe.text), schema())
    assert loads_recipe(recipe.text, recipe.source) == recipe


# What the schema cannot know: files, parents, other keys, the meaning of a text.
NO_MATTER_OF_FORM = {
    "empty", "removing what is not there", "a file of nothing", "a file of two things", "bad base64", "missing file",
    "a folder as a file", "huge file", "too many huge files", "a name longer than any", "missing script",
    "a script in Python", "a script that only begins well", "a script in Latin-1", "a binary as a script",
    "an unnumbered provision script", "two scripts of a name", "an open bracket",
    "a range that runs backwards", "a root made elsewhere", "a question without words",
    "unknown variable", "half a variable", "a variable in extends", "parents in a circle", "its own parent",
    "missing parent", "a parent that is a folder", "a parent that is a pipe", "a parent that links to itself",
    "parents without an end", "a wrong parent", "kernel arguments of two lines",
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_the_schema_refuses_what_the_reader_refuses_for_its_form(name: str, tmp_path: Path) -> None:
    BROKEN[name][0](tmp_path / "r.toml")
    try:
        text = (tmp_path / "r.toml").read_text() if (tmp_path / "r.toml").is_file() else ""
        table = tomllib.loads(text[: 1 << 20])
    except (ValueError, RecursionError, OSError):
        return  # no TOML, so nothing for a schema
    if table:
        assert fits(table, schema()) == (name in NO_MATTER_OF_FORM)


# --- the shipped recipes


def test_every_distribution_has_a_recipe_for_every_role() -> None:
    wanted = {f"{made_for}-{role}" for made_for in MADE_FOR for role in ROLES}
    assert set(RECIPES) == wanted | {f"debian-12-{role}-i386" for role in ROLES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_what_its_name_says(name: str) -> None:
    recipe = load_recipe(RECIPES[name])
    arch = "i386" if name.endswith("-i386") else "amd64"
    assert (recipe.name, recipe.arch) == (name.removesuffix("-i386"), arch)
    assert recipe.name.startswith(f"{recipe.distro}-{recipe.release}-")
    assert (recipe.version, recipe.base, recipe.init) == ("1.0", "essential", "/sbin/init")
    assert any(unit in recipe.enable for unit in ("ssh.service", "sshd.service"))
    assert "console=ttyS0,115200" in recipe.cmdline
    assert ("linux-image-cloud-amd64" in recipe.text) <= (recipe.arch == "amd64")


@pytest.mark.parametrize("path", [*RECIPES.values(), *FRAGMENTS], ids=lambda p: p.stem)
def test_a_shipped_recipe_is_small_commented_and_its_lists_are_sorted(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ") and text.count("\n") < 60
    for keys in tomllib.loads(text).values():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            assert not isinstance(value, list) or value == sorted(set(value)), key


def compute(made_for: str) -> Recipe:
    return load_recipe(RECIPES[f"{made_for}-compute"])


@pytest.mark.parametrize("made_for", MADE_FOR)
def test_a_compute_node_has_ssh_the_time_munge_and_what_nfs_needs(made_for: str) -> None:
    packages = set(compute(made_for).packages)
    assert {"openssh-server", "chrony", "munge"} <= packages
    assert packages & {"nfs-common", "nfs-utils"}


@pytest.mark.parametrize("made_for", [m for m in MADE_FOR if m not in ("rocky-9", "alma-9")])
def test_a_compute_node_has_slurm_where_the_distribution_has_it(made_for: str) -> None:
    assert {"slurm-client", "slurmd"} <= set(compute(made_for).packages) or {"slurm", "slurm-slurmd"} <= set(
        compute(made_for).packages
    )
    assert "slurmd.service" in compute(made_for).disable


@pytest.mark.parametrize("made_for", MADE_FOR)
def test_a_role_is_installed_on_top_of_the_same_minimal_node(made_for: str) -> None:
    minimal, *others = (load_recipe(RECIPES[f"{made_for}-{role}"]) for role in ROLES)
    assert len(minimal.stages) == 1
    assert all(other.stages[0] == minimal.stages[0] and len(other.stages) > 1 for other in others)
    assert others[1].stages[:2] == others[0].stages[:2], "a login node is a compute node and more"


def test_real_hardware_is_one_setting_away(tmp_path: Path) -> None:
    real = load_recipe(RECIPES["debian-12-compute"], {"kernel": "linux-image-amd64"})
    assert real.kernel_package == "linux-image-amd64"


# --- new


@pytest.mark.parametrize("name", RECIPES)
def test_new_begins_with_all_that_a_shipped_recipe_says(name: str, tmp_path: Path) -> None:
    shipped = load_recipe(RECIPES[name])
    role = name.removesuffix("-i386").rpartition("-")[2]
    words = ["--distro", shipped.distro, "--release", shipped.release, "--arch", shipped.arch, "--role", role]
    assert main(["new", str(tmp_path / "mine.toml"), "-q", *words]) == 0
    text = (tmp_path / "mine.toml").read_text()
    made = load_recipe(tmp_path / "mine.toml")
    assert made.full_name == f"mine-1.0.{shipped.arch}"
    assert fits(tomllib.loads(text), schema())
    # It is one recipe, so its packages are one stage; in everything else it is the shipped one.
    one_stage = loads_recipe(shipped.text, str(tmp_path / "mine.toml"))
    same = {"name": "mine", "version": "1.0", "stages": made.stages, "text": made.text}
    assert made == Recipe(**{**vars(one_stage), **same})
    assert made.packages == tuple(sorted(shipped.packages))
    for key, setting in SETTINGS["image"].items():
        assert f"# {key} = " in text and setting.help in text, "what it does not say stands there as a comment"
