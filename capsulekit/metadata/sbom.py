"""The bill of materials: a CycloneDX 1.6 document, the same bytes for the same capsule.

It holds no time, no host and no version of ours; its serial number is made from the lock's digest. The ledger of paths
that no package brought travels in it as properties of the capsule itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from capsulekit.lock.model import SETS, Lock, Package
from capsulekit.metadata.paths import escape, plain
from capsulekit.metadata.purl import purl
from capsulekit.recipe.model import Recipe
from capsulekit.rootfs.table import ANY, FAMILIES, Rules

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

MEMBER = "sbom.cdx.json"
LEDGER = "capsulekit:owner:"
PART = "capsulekit:part"
LICENCE_REF = re.compile(r"\bLicenseRef-[A-Za-z0-9.-]+")
# Serial numbers are uuid5 of a lock's digest in this namespace (RFC 9562, 5.5; the namespace itself is a random one).
NAMESPACE = UUID("6f0b7a52-53c1-4a5f-9a0e-3d1c7b1f9d2e")


def sbom(
    recipe: Recipe,
    lock: Lock,
    kind: tuple[str, str],
    licences: Mapping[str, str],
    owners: Mapping[str, Sequence[str]],
) -> bytes:
    """The document as UTF-8 JSON.

    ``kind`` is the Distro's (type, namespace) of purls; ``licences`` are by package name; ``owners`` are the paths that
    changed while each part of the recipe was applied, by that part (bytes that are no UTF-8 as surrogates).
    """
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    tool = Component(name="capsulekit", type=ComponentType.APPLICATION, bom_ref="capsulekit")
    capsule = Component(
        name=recipe.name,
        version=recipe.version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=recipe.full_name,
        properties=[Property(name=name, value=value) for name, value in _ledger(owners, kind[0])],
    )
    bom = Bom(
        serial_number=uuid5(NAMESPACE, lock.digest),
        metadata=BomMetaData(component=capsule, tools=[]),
        components=_components(lock, kind, licences),
    )
    bom.metadata.tools.components.add(tool)
    bom.register_dependency(capsule, bom.components)
    return _canonical(json.loads(JsonV1Dot6(bom).output_as_string()))


def _ledger(owners: Mapping[str, Sequence[str]], family: str) -> list[tuple[str, str]]:
    """(property, path), sorted.

    What the normaliser removes is left out, because temporary files have names made by chance; so is what it has made
    again, because its table says that already.
    """
    rules = Rules(family if family in FAMILIES else ANY)
    found = set()
    for owner, paths in owners.items():
        for path in map(plain, paths):
            if not any(row.action in ("remove", "regenerate") for row in rules.matching(path)[:1]):
                found.add((f"{LEDGER}{escape(owner)}", f"/{escape(path)}"))
    return sorted(found)


def _components(lock: Lock, kind: tuple[str, str], licences: Mapping[str, str]) -> list[Component]:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    parts: dict[tuple[str, str], list[str]] = {}
    packages: dict[tuple[str, str], Package] = {}
    for part in SETS:
        for package in lock.sets[part]:
            key = (purl(package, lock, kind), package.sha256)
            parts.setdefault(key, []).append(part)
            packages[key] = package
    return [
        Component(
            name=package.name,
            version=package.version,
            type=ComponentType.LIBRARY,
            # A package in two parts is one component; two files under one name and version are two.
            bom_ref=f"{key[0]}#{key[1]}",
            purl=PackageURL.from_string(key[0]),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package.sha256)],
            licenses=_licence(licences.get(package.name, "")),
            properties=[Property(name=PART, value=part) for part in parts[key]],
        )
        for key, package in packages.items()
    ]


def _licence(text: str) -> list[Any]:
    """An SPDX expression where it is one; any other text is a licence's name."""
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    if not text:
        return []
    return [LicenseExpression(text) if _is_expression(text) else DisjunctiveLicense(name=text)]


@cache
def _is_expression(text: str) -> bool:
    """Asked once a text: the packages of one source have the same, and parsing it takes milliseconds."""
    from cyclonedx.spdx import is_expression

    # The library knows SPDX's own names only; a LicenseRef is a name like any other.
    return is_expression(LICENCE_REF.sub("MIT", text))


def _canonical(document: dict[str, Any]) -> bytes:
    """Sorted, without the time that the library sets, and without its list of dependencies.

    A component that this list has without an entry of its own is said to need nothing, which nobody knows here.
    """
    document["metadata"].pop("timestamp", None)
    document.pop("dependencies", None)
    for component in (document["metadata"]["component"], *document["components"]):
        for key in ("properties", "licenses", "hashes"):
            if key in component:
                component[key].sort(key=lambda item: json.dumps(item, sort_keys=True))
    document["components"].sort(key=lambda one: str(one["bom-ref"]))
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
