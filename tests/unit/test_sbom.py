"""The bill of materials: right by CycloneDX's own schema, complete, always the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from told_capsule import LOCK, OWNERS, RECIPE, package

from capsulekit.lock.model import Lock
from capsulekit.metadata.paths import escape, plain, unescape
from capsulekit.metadata.sbom import sbom
from capsulekit.recipe.load import loads_recipe
from capsulekit.recipe.model import Recipe

DEB = ("deb", "debian")
LICENCES = {"tool": "GPL-2.0-or-later AND MIT", "base": "LicenseRef-odd OR MIT", "lib": "ASL 2.0"}


def recipe() -> Recipe:
    return loads_recipe(RECIPE.format(version="1", motd="x", script="true", level=3, verb="enable"), "recipe.toml")


def bill(lock: Lock = LOCK, kind: tuple[str, str] = DEB, **owners: list[str]) -> dict[str, Any]:
    found = json.loads(sbom(recipe(), lock, kind, LICENCES, owners or OWNERS))
    assert isinstance(found, dict)
    return found


def test_the_document_is_right_by_the_strict_schema_of_cyclonedx_1_6() -> None:
    text = sbom(recipe(), LOCK, DEB, LICENCES, OWNERS).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"bomFormat"', '"format"')) is not None


def test_every_package_of_every_part_is_there_with_version_purl_digest_and_part() -> None:
    found = {one["name"]: one for one in bill()["components"]}
    locked = {p.name: (part, p) for part, packages in LOCK.sets.items() for p in packages}
    assert found.keys() == locked.keys()
    for name, (part, package_) in locked.items():
        one = found[name]
        assert one["version"] == package_.version
        assert one["purl"] == f"pkg:deb/debian/{name}@{package_.version}?arch=amd64&distro=debian-12"
        assert one["hashes"] == [{"alg": "SHA-256", "content": package_.sha256}]
        assert one["properties"] == [{"name": "capsulekit:part", "value": part}]


def test_a_package_in_two_parts_is_one_component() -> None:
    shared = package("tool", "1.0", "recipe")
    lock = replace(LOCK, sets={**LOCK.sets, "initrd": (shared,)})
    (one,) = [c for c in bill(lock)["components"] if c["name"] == "tool"]
    assert [p["value"] for p in one["properties"]] == ["initrd", "rootfs"]


def test_an_rpms_epoch_is_a_qualifier_of_its_purl() -> None:
    sets = {**LOCK.sets, "rootfs": (package("lib", "2:2.0-1.el9", "recipe"),)}
    lock = replace(LOCK, distro="rocky", release="9", sets=sets)
    purls = {c["name"]: c["purl"] for c in bill(lock, ("rpm", "rocky"))["components"]}
    assert purls["lib"] == "pkg:rpm/rocky/lib@2.0-1.el9?arch=amd64&distro=rocky-9&epoch=2"


def test_a_licence_is_an_expression_where_spdx_knows_the_words_and_else_a_name() -> None:
    found = {c["name"]: c.get("licenses") for c in bill()["components"]}
    assert found["tool"] == [{"expression": "GPL-2.0-or-later AND MIT"}]
    assert found["base"] == [{"expression": "LicenseRef-odd OR MIT"}]
    assert found["lib"] == [{"license": {"name": "ASL 2.0"}}]
    assert found["linux-image"] is None


def test_no_time_no_host_no_version_of_ours_and_no_claim_about_dependencies() -> None:
    whole = bill()
    assert "timestamp" not in whole["metadata"]
    assert "dependencies" not in whole
    assert whole["metadata"]["tools"]["components"] == [
        {"bom-ref": "capsulekit", "name": "capsulekit", "type": "application"}
    ]
    assert os.uname().nodename not in json.dumps(whole)


def test_the_serial_number_is_made_from_the_lock() -> None:
    other = replace(LOCK, epoch=LOCK.epoch + 1)
    assert bill()["serialNumber"] == bill()["serialNumber"] != bill(other)["serialNumber"]


PROBE = """
import sys, random, warnings
warnings.simplefilter("error")
sys.path[:0] = ["tests", "tests/unit"]
from dataclasses import replace
from told_capsule import LOCK, OWNERS
from test_sbom import DEB, LICENCES, recipe
from capsulekit.metadata.sbom import sbom
sets = {name: tuple(random.sample(packages, len(packages))) for name, packages in LOCK.sets.items()}
owners = {name: list(reversed(paths)) for name, paths in reversed(OWNERS.items())}
sys.stdout.buffer.write(sbom(recipe(), replace(LOCK, sets=sets), DEB, dict(reversed(LICENCES.items())), owners))
"""


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_the_bytes_depend_on_neither_order_nor_hash_seed_nor_time_zone(seed: str) -> None:
    env = {**os.environ, "PYTHONHASHSEED": seed, "TZ": f"XXX{seed[0]}", "LC_ALL": "C"}
    root = Path(__file__).parents[2]
    made = subprocess.run([sys.executable, "-c", PROBE], env=env, cwd=root, capture_output=True, check=True)
    assert made.stdout == sbom(recipe(), LOCK, DEB, LICENCES, OWNERS)


def test_the_ledger_names_every_path_by_owner_and_leaves_out_what_the_normaliser_removes() -> None:
    owners = {"script 50%": ["etc/b\udcff", "/etc/a", "tmp/tmp.Xy12", "etc/a"]}
    assert bill(**owners)["metadata"]["component"]["properties"] == [
        {"name": "capsulekit:owner:script 50%25", "value": "/etc/a"},
        {"name": "capsulekit:owner:script 50%25", "value": "/etc/b%FF"},
    ]


@given(st.binary(min_size=1).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_any_path_of_bytes_is_printable_when_escaped_and_reads_back(path: str) -> None:
    assert escape(path).isprintable()
    assert unescape(escape(path)) == path


def test_a_path_is_spelt_as_layers_spell_it() -> None:
    assert [plain(p) for p in ("/etc//motd", "etc/./x/../motd", "/", ".", "/../etc/motd")] == [
        "etc/motd",
        "etc/motd",
        "",
        "",
        "etc/motd",
    ]
