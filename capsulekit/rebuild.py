"""A capsule made again from what it holds: the same SHA256SUMS, and then the signatures it had."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from capsulekit.cache import Cache
from capsulekit.capsule import layout
from capsulekit.capsule.read import CapsuleFile, Verified, open_capsule, verify
from capsulekit.capsule.write import Differs, Kept, write_capsule
from capsulekit.distro.base import Distro, distro
from capsulekit.errors import CapsulekitError
from capsulekit.lock import model as locks
from capsulekit.lock.model import Lock
from capsulekit.progress import Progress
from capsulekit.recipe.load import loads_recipe
from capsulekit.recipe.model import Recipe
from capsulekit.rootfs.normalise import VERSION
from capsulekit.tools import check_tools
from capsulekit.trust.minisign import PublicKey

BUILT_LAYERS = ("layers/modules.squashfs", "layers/rootfs.squashfs")


@dataclass(frozen=True)
class Source:
    """A verified capsule as what it can be made from: the texts of its recipe and its lock, and its signatures."""

    path: Path
    verified: Verified
    recipe: str
    lock: str
    kept: Kept


@dataclass(frozen=True)
class Rebuilt:
    """A capsule that was made again and came out the same: its file, name, identity, and who had signed it."""

    path: Path
    name: str
    identity: str
    key_id: str


def source_of(path: Path, keys: Iterable[PublicKey], *, revoked: Collection[PublicKey] = ()) -> Source:
    """Verify a capsule and take out what it was made from.

    Raises TrustError as ``verify`` does, CapsulekitError for a capsule that no recipe can give again.
    """
    with open_capsule(path) as capsule:
        verified = verify(capsule, keys, revoked=revoked)
        _refuse_edited(path, verified)
        texts = [capsule.read_member(name).decode("utf-8", "replace") for name in ("recipe.toml", "capsule.lock")]
        return Source(path, verified, texts[0], texts[1], _kept(capsule, verified.key))


def _refuse_edited(path: Path, verified: Verified) -> None:
    more = [layer.path for layer in verified.manifest.layers if layer.path not in BUILT_LAYERS]
    more += [name for name in verified.members if name.startswith("parent/")]
    if more:
        raise CapsulekitError(
            f"{path} was edited after it was built: no recipe makes its {more[0]} again",
            hint="name the capsule that it was made from",
        )


def _kept(capsule: CapsuleFile, key: PublicKey) -> Kept:
    names = [name for name in capsule.members if layout.is_signature(name)]
    return Kept(capsule.sums(), {name: capsule.read_member(name, layout.MAX_SIGNATURE) for name in names}, key)


@dataclass(frozen=True)
class Plan:
    """What it takes to make a capsule again."""

    recipe: Recipe
    lock: Lock
    maker: Distro


def plan(recipe: str, lock: str, where: str, cache: Cache) -> Plan:
    """Read recipe and lock and check that this machine's programs make the same bytes of them.

    ``where`` names the capsule in errors. Raises CapsulekitError.
    """
    locked = locks.loads(lock, f"{where}: capsule.lock")
    if not any(locked.sets.values()):
        raise CapsulekitError(
            f"{where} was packed from a folder: it locks no packages that it could be made from again",
            hint="pack the same folder again, and compare with: capsulekit diff",
        )
    read = loads_recipe(recipe, f"{where}: recipe.toml")
    maker = distro(read.distro, read.release, read.arch, cache)
    if locked.normaliser != VERSION:
        raise CapsulekitError(
            f"{where} was made with version {locked.normaliser} of the normaliser, this program has {VERSION}",
            hint="use the capsulekit that it was made with",
        )
    try:
        check_tools(locked.tools, maker)
    except CapsulekitError as wrong:
        hint = "use the version that it was made with"
        raise CapsulekitError(f"{where} cannot be made again here: {wrong.message}", hint=hint) from wrong
    return Plan(read, locked, maker)


def rebuild(source: Source, out: Path, cache: Cache, progress: Progress, *, offline: bool) -> Rebuilt:
    """Make the capsule again and write it to ``out``, byte for byte what it was.

    Needs the capsule and the cache; without ``offline`` packages that lack are fetched. Raises Differs (a TrustError)
    naming the members that came out otherwise; nothing is written then.
    """
    from capsulekit.build import make_parts

    if not out.parent.is_dir():
        raise CapsulekitError(f"there is no folder {out.parent} to write the capsule to", hint="make it first")
    planned = plan(source.recipe, source.lock, str(source.path), cache)
    made = make_parts(planned.recipe, planned.lock, planned.maker, cache, progress, offline)
    with progress.step("compare and write"):
        try:
            identity = write_capsule(out, made.manifest, made.members, source.kept)
        except Differs as wrong:
            raise Differs(wrong.members, f"{source.path}: what was made again is ") from None
    return Rebuilt(out, made.manifest.full_name, identity, source.verified.key.id)
