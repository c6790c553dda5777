"""Proof of a capsule: made again twice from scratch, in surroundings that differ in all that should not matter.

The verdict says what differed in the surroundings, whether the bytes did, and if so which paths and whose they are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from capsulekit import perturb
from capsulekit.cache import Cache
from capsulekit.capsule.layout import dump_sums, load_sums
from capsulekit.capsule.write import differing
from capsulekit.files import atomic_write, sha256_bytes
from capsulekit.image.compare import Difference, compare
from capsulekit.image.listing import Layer
from capsulekit.lock.model import Package
from capsulekit.output import table
from capsulekit.perturb import Elsewhere, Perturbation, Surroundings
from capsulekit.progress import Progress
from capsulekit.rebuild import Source, plan
from capsulekit.run import stop_apart
from capsulekit.trust import minisign
from capsulekit.trust.minisign import SecretKey

FORMAT = 1


@dataclass(frozen=True)
class MemberDifference:
    """A member that came out otherwise; of a layer, the paths that differ and who owns each (owner "" when unknown)."""

    member: str
    paths: tuple[tuple[Difference, str], ...] = ()


@dataclass(frozen=True)
class Proof:
    """One rebuild: the surroundings' name, what differed in them, the identity that came out, and what differs."""

    name: str
    perturbations: tuple[Perturbation, ...]
    identity: str
    members: tuple[MemberDifference, ...]


@dataclass(frozen=True)
class Verdict:
    """What was proved of a capsule: its name, identity and signer's key id, and one proof for each rebuild."""

    name: str
    identity: str
    key_id: str
    proofs: tuple[Proof, ...]

    @property
    def same(self) -> bool:
        """Whether every rebuild gave the capsule's own bytes."""
        return all(proof.identity == self.identity for proof in self.proofs)

    def dumps(self) -> bytes:
        """The verdict as JSON; the same findings always give the same bytes (paths are percent-escaped)."""
        whole = {
            "format": FORMAT,
            "capsule": {"name": self.name, "identity": self.identity, "key_id": self.key_id},
            "same": self.same,
            "rebuilds": [_as_json(proof, proof.identity == self.identity) for proof in self.proofs],
        }
        return (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode()


def _as_json(proof: Proof, same: bool) -> dict[str, Any]:
    return {
        "name": proof.name,
        "identity": proof.identity,
        "same": same,
        "perturbations": perturb.as_json([p for p in proof.perturbations if p.value]),
        "not_applied": perturb.as_json([p for p in proof.perturbations if not p.value]),
        "differing": [
            {
                "member": one.member,
                "paths": [{"path": _escaped(d.path), "what": list(d.what), "owner": owner} for d, owner in one.paths],
            }
            for one in proof.members
        ],
    }


def _escaped(path: str) -> str:
    return "/" + quote_from_bytes(path.encode("utf-8", "surrogateescape"))


def prove(source: Source, cache: Cache, progress: Progress) -> Verdict:
    """Make the capsule again in both surroundings, with nothing but its packages out of the cache.

    Packages that lack are fetched. Raises CapsulekitError when it cannot be made again here at all.
    """
    from capsulekit.build import fetch_packages

    planned = plan(source.recipe, source.lock, str(source.path), cache)
    packages = [package for part in planned.lock.sets.values() for package in part]
    lacking = [package for package in packages if not cache.has_package(package.sha256)]
    fetch_packages(lacking, planned.lock, planned.maker, progress, False)

    def one(there: Surroundings) -> Proof:
        with progress.step(f"made again, {there.name}"):
            return _again(source, packages, cache, there)

    with ThreadPoolExecutor(len(perturb.BOTH)) as pool:
        jobs = [pool.submit(one, there) for there in perturb.BOTH]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            stop_apart()
            raise
        proofs = tuple(job.result() for job in jobs)
    verified = source.verified
    return Verdict(verified.manifest.full_name, verified.identity, verified.key.id, proofs)


def _again(source: Source, packages: Sequence[Package], cache: Cache, there: Surroundings) -> Proof:
    with cache.scratch("prove") as work:
        (work / "recipe.toml").write_text(source.recipe, encoding="utf-8")
        (work / "capsule.lock").write_text(source.lock, encoding="utf-8")
        (work / "SHA256SUMS").write_bytes(source.kept.sums)
        (work / "packages").mkdir()
        for sha256 in {package.sha256 for package in packages}:
            _link(cache.checked_package(sha256), work / "packages" / sha256)
        made = perturb.go(there, work)
        members = differing(load_sums(source.kept.sums), made.sums)
        found = tuple(_difference(source, made, name, work) for name in members)
        return Proof(there.name, made.perturbations, sha256_bytes(dump_sums(made.sums)), found)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the cache's packages may lie on a file system of their own
        shutil.copyfile(source, target)


def _difference(source: Source, made: Elsewhere, name: str, work: Path) -> MemberDifference:
    if not name.endswith(".squashfs") or name not in made.files or name not in source.verified.members:
        return MemberDifference(name)
    scratch = work / f"compare-{Path(name).stem}"
    scratch.mkdir()
    original = Layer(source.path, source.verified.members[name].offset)
    found = compare(original, Layer(made.files[name]), scratch)
    return MemberDifference(name, tuple((one, _owner(source.path, one.path)) for one in found))


def _owner(capsule: Path, path: str) -> str:
    from capsulekit.why import owner_of

    return str(owner_of(capsule, path))


def write_verdict(verdict: Verdict, out: Path, key: SecretKey) -> None:
    """Write the verdict, and beside it ``OUT.minisig``, which minisign checks (``minisign -Vm OUT -p PUB``)."""
    data = verdict.dumps()
    word = "same" if verdict.same else "different"
    text = minisign.sign(data, key, f"verdict {word} capsule {verdict.name} identity {verdict.identity}")
    atomic_write(out, data)
    atomic_write(out.with_name(out.name + ".minisig"), text.encode())


def describe(verdict: Verdict) -> str:
    """The text that ``capsulekit prove`` prints: what differed around each rebuild, and what came out."""
    rows = [
        [told[0].what, *(one.value or "-" for one in told)]
        for told in zip(*(proof.perturbations for proof in verdict.proofs), strict=True)
    ]
    rows.append(["identity", *("the same" if p.identity == verdict.identity else "ANOTHER" for p in verdict.proofs)])
    widths = [max(len(row[place + 1]) for row in rows) for place in range(len(verdict.proofs))]
    columns = [("Perturbation", 22), *((f"Rebuild {p.name}", w) for p, w in zip(verdict.proofs, widths, strict=True))]
    lines = [table(columns, rows)]
    for proof in verdict.proofs:
        idle = [one for one in proof.perturbations if not one.value]
        lines += [f"rebuild {proof.name}: not applied: {one.what}: {one.reason}" for one in idle]
    for proof in verdict.proofs:
        for member in proof.members:
            lines.append(f"rebuild {proof.name}: {member.member} differs")
            lines += [
                f"  {_escaped(d.path)} ({', '.join(d.what)}){f': {who}' if who else ''}" for d, who in member.paths
            ]
    return "\n".join(lines)
