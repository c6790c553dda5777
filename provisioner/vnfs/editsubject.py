"""What can be edited: an installed capsule, whose layers are blobs, or a capsule file, whose layers lie in its tar.

Both are told apart here and nowhere else by those who mount and pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.capsule.manifest import HYBRID, NAME, Manifest
from capsulekit.capsule.read import CapsuleFile, UntrustedKey, Verified, open_capsule, verify
from capsulekit.edit.acls import MAX_LIST
from capsulekit.edit.mounts import real_path
from capsulekit.edit.record import EditRecord, edit_folder, key_of_file, read_record
from capsulekit.edit.stack import Image
from capsulekit.errors import CapsulekitError, TrustError, UsageError
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.minisign import PublicKey, load_public
from provisioner.registry.model import InstalledCapsule
from provisioner.sitekey import trusted_here
from provisioner.vnfs.edits import known_edits
from provisioner.vnfs.store import VnfsStore

SUFFIX = ".vnfs"


@dataclass(frozen=True)
class Subject:
    """A capsule as far as mounting it needs: ``images`` and ``acls`` (lists of the layers that have one) topmost first.

    ``key`` names its edit, ``identity`` what is edited, ``file`` is the capsule file ("" for an installed one).
    """

    key: str
    name: str
    identity: str
    manifest: Manifest
    images: tuple[Image, ...]
    hybrid: Image | None
    acls: tuple[bytes, ...]
    file: str = ""


def installed(store: VnfsStore, row: InstalledCapsule) -> Subject:
    """An installed capsule, as its nodes boot it. Raises CapsulekitError when a part of it is gone from the store.

    Layers are not summed again (docs/decisions/edits-trust-the-store.md): their sizes must be those that were signed.
    """
    told, digests = store.manifest(row.name), store.digests(row.name)
    sizes = {member.name: member.size for member in store.members(row.name)}
    for layer in told.layers:
        if sizes[layer.path] != layer.size:
            raise TrustError(
                f"{layer.path} of {row.name} is not what was signed",
                hint=f"capsulekit vnfs verify {row.name} says more; then import it again",
            )
    lists = [store.small(row.name, layer.acl) or b"" for layer in told.layers if layer.acl is not None]
    return Subject(
        key=row.name,
        name=row.name,
        identity=row.identity,
        manifest=told,
        images=tuple(Image(store.blob(digests[layer.path])) for layer in told.layers),
        hybrid=Image(store.blob(digests[HYBRID])) if HYBRID in digests else None,
        acls=tuple(lists),
    )


def of_file(path: Path, checked: Verified, capsule: CapsuleFile) -> Subject:
    """A capsule file that was verified; its layers are mounted where they lie in it."""

    def image(name: str) -> Image:
        member = checked.members[name]
        return Image(path.resolve(), member.offset, member.size)

    told = checked.manifest
    return Subject(
        key=key_of_file(path),
        name=told.full_name,
        identity=checked.identity,
        manifest=told,
        images=tuple(image(layer.path) for layer in told.layers),
        hybrid=image(HYBRID) if HYBRID in checked.members else None,
        acls=tuple(capsule.read_member(layer.acl, MAX_LIST) for layer in told.layers if layer.acl is not None),
        file=str(path.resolve()),
    )


def verified(capsule: CapsuleFile, paths: SitePaths, pubkeys: Sequence[Path]) -> Verified:
    """Check a capsule file by the keys that were named, else by those that this site trusts. Raises TrustError."""
    keys, revoked = keys_for(paths, pubkeys)
    try:
        return verify(capsule, keys, revoked=revoked)
    except UntrustedKey as wrong:
        hint = "no --pubkey holds that key" if pubkeys else "name its author's key: --pubkey FILE.pub"
        raise UntrustedKey(wrong.message, wrong.key_id, hint=hint) from None


def keys_for(paths: SitePaths, pubkeys: Sequence[Path]) -> tuple[list[PublicKey], tuple[PublicKey, ...]]:
    """(keys to trust, keys revoked). Naming a file is a decision of its own: the site's revocations do not count."""
    return ([load_public(path) for path in pubkeys], ()) if pubkeys else trusted_here(paths)


def looks_like_file(word: str) -> bool:
    """Whether a word on a command line means a capsule file: it names a path, or an existing .vnfs here."""
    return "/" in word or (word.endswith(SUFFIX) and Path(word).is_file())


def means_file(word: str, paths: SitePaths) -> bool:
    """Whether a word means a capsule file, or what one is mounted at: then no site is needed."""
    place = str(real_path(Path(word))) if word else ""
    for record in known_edits(paths):
        if word in (record.key, record.name, record.at) or place in (record.at, record.file):
            return bool(record.file)
    return looks_like_file(word)


def file_subject(word: str, paths: SitePaths, pubkeys: Sequence[Path]) -> Subject:
    """A capsule file to be mounted, verified. Raises TrustError, or CapsulekitError when it can't be read."""
    path = Path(word)
    if path.is_dir():
        raise UsageError(f"{word} is a folder, not a capsule file", hint="name a capsule: see capsulekit vnfs list")
    with open_capsule(path) as capsule:
        return of_file(path, verified(capsule, paths, pubkeys), capsule)


def edit_of(word: str, paths: SitePaths, store: VnfsStore | None) -> EditRecord:
    """The edit that a word means: its installed name or short name, its mount point, or its capsule file.

    Raises CapsulekitError when nothing of that name is mounted.
    """
    known = known_edits(paths)
    place = str(real_path(Path(word))) if word else ""
    for record in known:
        if word in (record.key, record.at) or place in (record.at, record.file):
            return record
    named = [record for record in known if record.name == word]
    if len(named) == 1:
        return named[0]
    name = word
    if store is not None and "/" not in word:
        name = store.get(word).name
        for record in known:
            if record.key == name:
                return record
    if damaged := damaged_key(name, paths):
        read_record(edit_folder(paths.state, damaged))  # says what is wrong with it
    raise _not_mounted(name, known)


def damaged_key(name: str, paths: SitePaths) -> str:
    """The key of an edit whose record can't be read, by its installed name, or "": there is none."""
    if not NAME.fullmatch(name):
        return ""
    try:
        read_record(edit_folder(paths.state, name))
    except CapsulekitError:
        return name
    return ""


def _not_mounted(what: str, known: Sequence[EditRecord]) -> CapsulekitError:
    hint = "mounted are: " + ", ".join(f"{one.name} ({one.at})" for one in known[:5]) if known else None
    return CapsulekitError(f"{what!r} is not mounted", hint=hint or "see: capsulekit mount --help")
