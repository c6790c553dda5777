"""The site's own signing key: it vouches for what is made here, private layers and converted capsules."""

from __future__ import annotations

from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write, exclusive_lock
from capsulekit.sitepaths import SitePaths
from capsulekit.trust import minisign
from capsulekit.trust.keyring import Keyring
from capsulekit.trust.minisign import PublicKey, SecretKey


def site_key_path(paths: SitePaths) -> Path:
    """The secret key (minisign, without a password, 0600); its public half has ``.pub`` behind it."""
    return paths.config / "pki" / "site.key"


def ensure_site_key(paths: SitePaths) -> SecretKey:
    """The site's key, made at the first call and never replaced. Raises CapsulekitError when it is damaged or lost."""
    path = site_key_path(paths)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive_lock(path.parent / ".lock"):
        if not path.exists():
            if path.with_name("site.key.pub").exists():
                raise CapsulekitError(
                    f"the site's key {path} is gone, and nodes trust what it signed",
                    hint=f"put it back from a backup, or remove {path}.pub too: a new one is made then, and private "
                    "layers and converted capsules have to be made again",
                )
            atomic_write(path, minisign.generate(None)[0].encode(), 0o600)
        key = minisign.load_secret(path, bytes)
        public = path.with_name("site.key.pub")
        # The public file follows from the secret one: a run that was killed between them is made good here.
        if not public.exists() or public.read_text("utf-8", "replace") != key.public.file_text:
            atomic_write(public, key.public.file_text.encode())
        return key


def site_public(paths: SitePaths) -> PublicKey | None:
    """The public half of the site's key, or None where none was made yet. Raises CapsulekitError when damaged."""
    path = site_key_path(paths)
    return minisign.load_secret(path, bytes).public if path.exists() else None


def trusted_here(paths: SitePaths) -> tuple[list[PublicKey], tuple[PublicKey, ...]]:
    """(keys whose capsules this site takes, keys revoked): its keyring, and its own key.

    The site's key can be revoked like any other. Raises TrustError for a damaged keyring.
    """
    keyring = Keyring(paths.trust)
    keys, revoked, own = keyring.keys(), keyring.revoked(), site_public(paths)
    if own is not None and all(own.key_id != key.key_id for key in (*keys, *revoked)):
        keys.append(own)
    return keys, revoked
