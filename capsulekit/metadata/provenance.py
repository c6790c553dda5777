"""The provenance: an in-toto statement with SLSA's provenance v1, made of inputs and recipe only.

No time, host or run: the same inputs give the same statement, and what happened on one machine belongs to the build's
report. Format: the in-toto attestation framework's "Statement" v1, SLSA v1.0 "Provenance".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from capsulekit.lock.model import SETS, Lock
from capsulekit.metadata.purl import purl
from capsulekit.recipe.model import Recipe

MEMBER = "provenance.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# Names of ours, not addresses: what kind of build this is, and who vouches for having done it.
BUILD_TYPE = "urn:capsulekit:build:1"
BUILDER = "urn:capsulekit:builder"


def provenance(recipe: Recipe, lock: Lock, kind: tuple[str, str], subjects: Mapping[str, str]) -> bytes:
    """The statement as UTF-8 JSON. ``subjects`` are hex sha256 by member name (the layers and boot files).

    ``kind`` is the Distro's (type, namespace) of purls.
    """
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "capsule": recipe.full_name,
                "recipe": {"name": "recipe.toml", "digest": {"sha256": recipe.digest}},
            },
            "internalParameters": {"epoch": lock.epoch, "normaliser": lock.normaliser, "tools": lock.tools},
            "resolvedDependencies": _inputs(lock, kind),
        },
        "runDetails": {"builder": {"id": BUILDER}},
    }
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": f"{recipe.full_name}/{name}", "digest": {"sha256": digest}}
            for name, digest in sorted(subjects.items())
        ],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    return (json.dumps(statement, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _inputs(lock: Lock, kind: tuple[str, str]) -> list[dict[str, Any]]:
    """All that was used, as SLSA's resource descriptors: the lock, the archives' signed indexes, the packages."""
    indexes = [{"name": f"index of {a.suite}", "digest": {"sha256": a.release}} for a in sorted(lock.archives)]
    found = {(purl(p, lock, kind), p.sha256): p.name for part in SETS for p in lock.sets[part]}
    packages = [{"name": n, "uri": uri, "digest": {"sha256": sha}} for (uri, sha), n in sorted(found.items())]
    return [{"name": "capsule.lock", "digest": {"sha256": lock.digest}}, *indexes, *packages]
