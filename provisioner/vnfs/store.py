"""The store of installed capsules: members as blobs by their digest, signed sums by capsule, the registry's row last.

A capsule is installed when, and only when, the registry has its row. Everything before that is invisible, so a killed
command leaves at most files that nothing refers to, which the next one uses or takes away.

    blobs/AA/SHA256                     every listed member
    vnfs/NAME/IDENTITY/                 one generation: SHA256SUMS, its signatures, capsule.toml, and, where questions
                                        were answered, answers.toml (0600)

Which generations there are, in which order, is the registry's history; a folder that it does not name, and that no node
was told to boot last, is left over from a killed command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from capsulekit.capsule import layout, manifest
from capsulekit.capsule.manifest import Manifest
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import exclusive_lock, sha256_bytes
from capsulekit.sitepaths import SitePaths
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.vnfs.questions import Answers, Questions

# The sums of what a capsule was made from: their digest is the identity of the capsule that its author signed.
PARENT = f"parent/0/{layout.SUMS}"
ANSWERS = "answers.toml"
# The layer that a capsule's answers become.
SITE_LAYER, SITE_ACL = "layers/90-site.squashfs", "layers/90-site.acl"
# Given the questions of a capsule and what is known of the answers, it finds out the rest. Raises CapsulekitError.
Ask = Callable[[Questions, Answers], Answers]


class CapsuleRows(Protocol):
    """What the store needs of the registry."""

    def add_capsule(self, capsule: InstalledCapsule) -> None:
        """Record a capsule; the row of the same name, if any, is replaced."""

    def install_capsule(self, capsule: InstalledCapsule, history: Sequence[Past]) -> None:
        """Record a capsule under a free name, with its history."""

    def switch_capsule(self, capsule: InstalledCapsule, past: Past, *, base: str, first: Sequence[Past] = ()) -> None:
        """Replace a row and append to its history, unless ``base`` is not its identity any more."""

    def forget_generations(self, name: str, identities: Sequence[str], first: Sequence[Past] = ()) -> None:
        """Mark generations as gone; raises CapsulekitError for the current and the imported one."""

    def generations(self, name: str) -> list[Past]:
        """The history of a capsule, oldest first."""

    def has_generation(self, name: str, identity: str) -> bool:
        """Whether it is what nodes boot as ``name``, or in its history; transactions under way are waited for."""

    def handed_out(self) -> dict[tuple[str, str], list[str]]:
        """(installed name, identity) → names of the nodes that were last told to boot it."""

    def capsule(self, name: str) -> InstalledCapsule | None:
        """The capsule of exactly this name."""

    def capsules(self) -> list[InstalledCapsule]:
        """Every installed capsule, by name."""

    def find_capsule(self, name: str) -> InstalledCapsule:
        """The capsule of this name or unambiguous NAME; raises CapsulekitError."""

    def nodes_of_capsule(self, name: str) -> list[str]:
        """Names of the nodes that boot the capsule of exactly this name."""

    def roles_of(self, scope: str, names: Iterable[str]) -> list[tuple[str, str]]:
        """(module, role) of what is activated for these names."""

    def delete_capsules(self, names: Sequence[str], *, used: bool = False) -> None:
        """Take away rows, all or none; raises CapsulekitError when nodes boot one of them, unless ``used``."""


@dataclass(frozen=True)
class Imported:
    """What an import came to; ``new`` is False when that very capsule was installed before.

    ``hybrid`` is the size of its hybrid layer in bytes, which nodes mount by NFS (provisioner/nfs).
    """

    capsule: InstalledCapsule
    new: bool
    hybrid: int = 0


@dataclass(frozen=True)
class StoredMember:
    """A member of an installed capsule; ``size`` in bytes."""

    name: str
    sha256: str
    size: int
    private: bool


class VnfsStore:
    """The capsules of one site, under ``paths.state``."""

    def __init__(self, paths: SitePaths, registry: CapsuleRows) -> None:
        self.paths = paths
        self.registry = registry

    def import_file(self, path: Path, as_name: str | None = None) -> InstalledCapsule:
        """Verify a capsule against the site's keyring and install it; see ``install``."""
        return self.install(path, as_name).capsule

    def install(
        self, path: Path, as_name: str | None = None, *, ask: Ask | None = None, dry_run: bool = False
    ) -> Imported:
        """Verify a capsule file and install it; see provisioner.vnfs.install."""
        from provisioner.vnfs.install import install

        return install(self, path, as_name, ask=ask, dry_run=dry_run)

    def list(self) -> list[InstalledCapsule]:
        """Every installed capsule, by name."""
        return self.registry.capsules()

    def get(self, name: str) -> InstalledCapsule:
        """An installed capsule by its name, or by NAME alone when that is unambiguous. Raises CapsulekitError."""
        return self.registry.find_capsule(name)

    def lock(self) -> AbstractContextManager[None]:
        """Held by whatever changes the store."""
        return exclusive_lock(self.paths.state / "vnfs" / ".lock")

    def blob(self, sha256: str) -> Path:
        """Where the member with this digest is, or would be."""
        return self.paths.state / "blobs" / sha256[:2] / sha256

    def home(self, name: str) -> Path:
        """The folder with the generations of the capsule installed under exactly this name."""
        return self.paths.state / "vnfs" / name

    def generation(self, name: str, identity: str) -> Path:
        """The folder of one generation: its sums, signatures and manifest."""
        return self.home(name) / identity

    def folder(self, name: str) -> Path:
        """The folder of the generation that nodes boot. Raises CapsulekitError for an unknown name."""
        return self.generation(name, self._row(name).identity)

    def sums(self, name: str) -> Path:
        """Its SHA256SUMS; the signature lies beside it."""
        return self.folder(name) / layout.SUMS

    def manifest(self, name: str, identity: str | None = None) -> Manifest:
        """The manifest of what nodes boot, or of another generation. Raises TrustError for another than was signed."""
        wanted = identity or self._row(name).identity
        data = self.read(name, manifest.MEMBER, wanted)
        if sha256_bytes(data) != self.digests(name, wanted).get(manifest.MEMBER):
            raise TrustError(f"the manifest of {name} is not the one that was imported", hint="import it again")
        return manifest.loads(data)

    def members(self, name: str, identity: str | None = None) -> tuple[StoredMember, ...]:
        """Every listed member of what nodes boot, or of another generation. Raises CapsulekitError when one is gone."""
        wanted = identity or self._row(name).identity
        private = private_members(self.manifest(name, wanted))
        found = []
        for member, sha256 in self.digests(name, wanted).items():
            try:
                size = self.blob(sha256).stat().st_size
            except OSError as wrong:
                raise CapsulekitError(f"{member} of {name} is gone from the store", hint="import it again") from wrong
            found.append(StoredMember(member, sha256, size, member in private))
        return tuple(found)

    def digests(self, name: str, identity: str | None = None) -> dict[str, str]:
        """Hex sha256 by listed member, of the generation that nodes boot or of another one.

        Raises TrustError when the sums are not those of that identity, CapsulekitError when they are gone.
        """
        wanted = identity or self._row(name).identity
        data = self.read(name, layout.SUMS, wanted)
        if sha256_bytes(data) != wanted:
            raise TrustError(f"the sums of {name} are not those that were imported", hint="import it again")
        return layout.load_sums(data)

    def history(self, name: str) -> tuple[Past, ...]:
        """All that the capsule of exactly this name has been, oldest first: what was imported, … what nodes boot.

        One that was installed before there was a history gets the lines that its store can tell; whoever changes it
        has them written down. Raises CapsulekitError for an unknown name.
        """
        return tuple(self.registry.generations(name)) or self.told_by_store(self._row(name))

    def unwritten(self, row: InstalledCapsule) -> tuple[Past, ...]:
        """The lines that the registry's history lacks: of a capsule that was installed before there was one."""
        return () if self.registry.generations(row.name) else self.told_by_store(row)

    def told_by_store(self, row: InstalledCapsule) -> tuple[Past, ...]:
        """The history of a capsule that has none in the registry."""
        # Only what was configured here has answers; a capsule that was edited elsewhere has a parent too.
        made_here = (self.generation(row.name, row.identity) / ANSWERS).exists()
        first = self.digests(row.name, row.identity).get(PARENT, row.identity) if made_here else row.identity
        lines = [Past(first, "import", time=row.imported, capsule=row.name, number=1)]
        if first != row.identity:
            lines.append(Past(row.identity, "configure", first, time=row.imported, capsule=row.name, number=2))
        return tuple(lines)

    def origin(self, name: str) -> str:
        """The identity of the capsule as it was imported: its history's first."""
        return self.history(name)[0].identity

    def origin_of(self, row: InstalledCapsule) -> str:
        """The same for a capsule whose row may not be recorded yet."""
        return next(iter(self.registry.generations(row.name) or self.told_by_store(row))).identity

    def generations(self, name: str) -> tuple[str, ...]:
        """The identities that are kept of a capsule: what nodes boot first, then what was imported, then the newest."""
        row, lines = self._row(name), self.history(name)
        kept = [line.identity for line in reversed(lines) if line.gone is None]
        return tuple(dict.fromkeys([row.identity, lines[0].identity, *kept]))

    def small(self, name: str, member: str, identity: str | None = None) -> bytes | None:
        """The content of a small member, checked, or None when the capsule has none of that name."""
        sha256 = self.digests(name, identity).get(member)
        if sha256 is None:
            return None
        data = self._bytes(self.blob(sha256), name)
        if sha256_bytes(data) != sha256:
            raise TrustError(f"{member} of {name} is not what was imported", hint="import it again")
        return data

    def read(self, name: str, file: str, identity: str | None = None) -> bytes:
        """A file of a generation's folder, not checked. Raises CapsulekitError when it is gone."""
        return self._bytes(self.generation(name, identity or self._row(name).identity) / file, name)

    def signatures(self, name: str, identity: str) -> Iterator[tuple[str, bytes]]:
        """The signature members of a generation by name."""
        for path in sorted(self.generation(name, identity).glob(f"{layout.SUMS}.*")):
            if layout.is_signature(path.name):
                yield path.name, self._bytes(path, name)

    def _bytes(self, path: Path, name: str) -> bytes:
        try:
            return path.read_bytes()
        except OSError as wrong:
            raise CapsulekitError(f"{name} is gone from the store", hint="import it again") from wrong

    def _row(self, name: str) -> InstalledCapsule:
        row = self.registry.capsule(name)
        if row is None:
            raise CapsulekitError(f"no capsule {name!r} is installed", hint="see: capsulekit vnfs list")
        return row

    def _known(self, wanted: InstalledCapsule) -> InstalledCapsule | None:
        """The row of the same capsule under the same name, which may have been changed since.

        Raises CapsulekitError when another capsule has the name.
        """
        known = self.registry.capsule(wanted.name)
        if known is None or known.identity == wanted.identity:
            return known
        try:
            same = wanted.identity in self.generations(wanted.name)
        except CapsulekitError:  # what it was made from can't be told any more
            same = False
        if not same:
            raise CapsulekitError(
                f"another capsule is installed as {wanted.name} (identity {known.identity[:16]}…)",
                hint="import this one under another name: --as NAME",
            )
        return known


def private_members(told: Manifest) -> frozenset[str]:
    """Names of the members that only a node with a session may fetch: private layers, and their ACLs with them."""
    layers = [layer for layer in told.layers if layer.private]
    return frozenset([layer.path for layer in layers] + [layer.acl for layer in layers if layer.acl is not None])
