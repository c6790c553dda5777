"""The site's keyring: a folder of trusted authors' public keys (``KEYID.pub``) and a list of revoked ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_write, exclusive_lock
from capsulekit.trust.minisign import PublicKey, load_public, parse_public

_REVOKED_HEAD = "# Keys that were trusted once; kept so that they can't come back unnoticed.\n"


@dataclass(frozen=True)
class TrustedKey:
    """One line of ``trust list``: a key, and whether it was revoked."""

    key: PublicKey
    revoked: bool


class Keyring:
    """Trusted keys in ``folder``. A folder that is not there is an empty keyring; it is made by the first ``add``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, path: Path, *, again: bool = False, dry_run: bool = False) -> PublicKey:
        """Trust the key in a ``.pub`` file. Adding a trusted one again changes nothing.

        Raises TrustError when the key was revoked (unless ``again`` takes that back), is no key, or has the id of
        another trusted key.
        """
        key = load_public(path)
        with self._lock(dry_run):
            revoked = self.revoked()
            if _is_in(key, revoked) and not again:
                raise TrustError(
                    f"key {key.id} was revoked at this site",
                    hint="if it is to be trusted again: capsulekit trust add --again",
                )
            for other in self.keys():
                if other.key_id == key.key_id and other.key != key.key:
                    raise TrustError(f"another key with the id {key.id} is trusted already: {other.text}")
            if not dry_run:
                atomic_write(self.folder / f"{key.id}.pub", key.file_text.encode())
                self._write_revoked(k for k in revoked if not _is_in(key, [k]))
        return key

    def revoke(self, key_id: str, *, dry_run: bool = False) -> PublicKey:
        """Stop trusting a key, for good: its ``.pub`` goes, its name stays in ``revoked``. Raises CapsulekitError."""
        with self._lock(dry_run):
            key = self.find(key_id)
            if not dry_run:
                # First the list: a crash between the two steps must not leave the key trusted.
                self._write_revoked([*self.revoked(), key])
                for path, there in self._files():
                    if _is_in(there, [key]):
                        path.unlink()
        return key

    def find(self, key_id: str) -> PublicKey:
        """The trusted key with this id (any case). Raises CapsulekitError when there is none."""
        wanted = key_id.upper()
        for key in self.keys():
            if key.id == wanted:
                return key
        raise CapsulekitError(f"no trusted key {key_id!r}", hint="capsulekit trust list shows them")

    def keys(self) -> list[PublicKey]:
        """The keys that are trusted now, by id, each once. Raises TrustError for a file that holds no key."""
        revoked = self.revoked()
        found = {key.text: key for _, key in self._files() if not _is_in(key, revoked)}
        return sorted(found.values(), key=lambda key: (key.id, key.text))

    def list(self) -> list[TrustedKey]:
        """Trusted and revoked keys, by id."""
        both = [TrustedKey(key, False) for key in self.keys()] + [TrustedKey(key, True) for key in self.revoked()]
        return sorted(both, key=lambda one: (one.key.id, one.key.text))

    def revoked(self) -> tuple[PublicKey, ...]:
        """Keys that were revoked. Raises TrustError for a line that is no key: a lost revocation must be noticed."""
        try:
            text = self._revoked_path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ()
        lines = [line.strip() for line in text.splitlines()]
        try:
            return tuple(parse_public(line) for line in lines if line and not line.startswith("#"))
        except TrustError as wrong:
            raise TrustError(f"{self._revoked_path} holds a line that is no key") from wrong

    @property
    def _revoked_path(self) -> Path:
        return self.folder / "revoked"

    def _files(self) -> Iterable[tuple[Path, PublicKey]]:
        for path in sorted(self.folder.glob("*.pub")):
            yield path, load_public(path)

    def _write_revoked(self, keys: Iterable[PublicKey]) -> None:
        lines = sorted({key.text for key in keys})
        if lines or self._revoked_path.exists():
            atomic_write(self._revoked_path, (_REVOKED_HEAD + "".join(f"{line}\n" for line in lines)).encode())

    def _lock(self, dry_run: bool) -> AbstractContextManager[None]:
        """A dry run must not even make the folder."""
        return nullcontext() if dry_run else exclusive_lock(self.folder / ".lock")


def _is_in(key: PublicKey, keys: Iterable[PublicKey]) -> bool:
    """Same key, or same id: an id names one author here, so a second key under a revoked id is refused too."""
    return any(key.key == other.key or key.key_id == other.key_id for other in keys)


def chosen_keys(folder: Path, files: Sequence[Path]) -> tuple[list[PublicKey], tuple[PublicKey, ...]]:
    """(keys to trust, keys revoked): those in ``files`` when any are named, else the keyring in ``folder``.

    Naming a file is a decision of its own: the site's revocations do not count then.
    """
    if files:
        return [load_public(path) for path in files], ()
    keyring = Keyring(folder)
    return keyring.keys(), keyring.revoked()
