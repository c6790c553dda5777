"""The provenance: an in-toto statement with SLSA's provenance v1, complete, and of inputs only."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from told_capsule import LOCK, RECIPE

from capsulekit.metadata.provenance import provenance
from capsulekit.recipe.load import loads_recipe

SUBJECTS = {"layers/rootfs.squashfs": "aa" * 32, "boot/vmlinuz": "bb" * 32}
RECIPE_ = loads_recipe(RECIPE.format(version="1", motd="x", script="true", level=3, verb="enable"), "recipe.toml")

# What the in-toto attestation framework ("Statement", "ResourceDescriptor") and SLSA v1.0 ("Provenance") ask for.
URI = {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:.+"}
DIGESTS = {"type": "object", "minProperties": 1, "patternProperties": {"^sha256$": {"pattern": "^[0-9a-f]{64}$"}}}
DESCRIPTOR = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "uri": URI, "digest": DIGESTS},
    "anyOf": [{"required": [one]} for one in ("uri", "digest", "content")],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "additionalProperties": False,
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "predicateType": {"const": "https://slsa.dev/provenance/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "items": {"allOf": [DESCRIPTOR, {"required": ["name", "digest"]}]},
        },
        "predicate": {
            "type": "object",
            "required": ["buildDefinition", "runDetails"],
            "additionalProperties": False,
            "properties": {
                "buildDefinition": {
                    "type": "object",
                    "required": ["buildType", "externalParameters"],
                    "additionalProperties": False,
                    "properties": {
                        "buildType": URI,
                        "externalParameters": {"type": "object"},
                        "internalParameters": {"type": "object"},
                        "resolvedDependencies": {"type": "array", "items": DESCRIPTOR},
                    },
                },
                "runDetails": {
                    "type": "object",
                    "required": ["builder"],
                    "additionalProperties": False,
                    "properties": {
                        "builder": {"type": "object", "required": ["id"], "properties": {"id": URI}},
                        "metadata": {"type": "object"},
                        "byproducts": {"type": "array", "items": DESCRIPTOR},
                    },
                },
            },
        },
    },
}


def statement(**changes: Any) -> dict[str, Any]:
    found = json.loads(provenance(RECIPE_, replace(LOCK, **changes), ("deb", "debian"), SUBJECTS))
    assert isinstance(found, dict)
    return found


def test_the_statement_has_the_form_of_in_toto_v1_with_slsa_provenance_v1() -> None:
    jsonschema.validate(statement(), SCHEMA)
    broken = statement()
    del broken["predicate"]["runDetails"]["builder"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_subjects_are_what_a_node_gets_with_their_digests() -> None:
    assert statement()["subject"] == [
        {"name": "told-1.amd64/boot/vmlinuz", "digest": {"sha256": "bb" * 32}},
        {"name": "told-1.amd64/layers/rootfs.squashfs", "digest": {"sha256": "aa" * 32}},
    ]


def test_recipe_lock_indexes_and_every_package_are_named_with_their_digests() -> None:
    definition = statement()["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"]["digest"] == {"sha256": RECIPE_.digest}
    found = {one["name"]: one["digest"]["sha256"] for one in definition["resolvedDependencies"]}
    packages = {p.name: p.sha256 for packages in LOCK.sets.values() for p in packages}
    assert found == {"capsule.lock": LOCK.digest, "index of bookworm": "cd" * 32, **packages}
    assert {one["uri"] for one in definition["resolvedDependencies"] if "uri" in one} > {
        "pkg:deb/debian/lib@2:2.0?arch=amd64&distro=debian-12"
    }


def test_the_statement_holds_no_time_host_or_run_and_follows_its_inputs_alone() -> None:
    assert statement()["predicate"]["runDetails"].keys() == {"builder"}
    text = json.dumps(statement())
    assert not re.search(r"\d\d:\d\d|startedOn|finishedOn|invocationId", text.replace("2:2.0", ""))
    shuffled = {name: tuple(reversed(packages)) for name, packages in LOCK.sets.items()}
    assert statement(sets=shuffled) == statement() != statement(epoch=1)
