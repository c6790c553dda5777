"""minisign's keys and signatures, read and written as minisign 0.11 does.

Format: https://jedisct1.github.io/minisign/ ("Minisign file formats"). Signatures are prehashed ones only
(``ED``: Ed25519 over BLAKE2b-512), so that what is signed never has to be held in memory whole by stock tools.

cryptography is loaded by what signs or verifies: it is a tenth of the time of a command that does neither.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.errors import CapsulekitError, TrustError

MAX_FILE = 16384  # bytes; minisign's own limit for a trusted comment is 8192
UNTRUSTED = "untrusted comment: "
TRUSTED = "trusted comment: "

# libsodium's "sensitive" limits, which minisign uses: 2^20 rounds of scrypt, 1 GiB of memory.
OPSLIMIT, MEMLIMIT = 33554432, 1073741824
_KDF_SCRYPT, _KDF_NONE = b"Sc", b"\0\0"


@dataclass(frozen=True)
class PublicKey:
    """An author's public key: ``key_id`` (8 bytes, a label, not a proof) and the Ed25519 ``key`` (32 bytes)."""

    key_id: bytes
    key: bytes

    @property
    def id(self) -> str:
        """The key id as minisign prints it: 16 upper-case hex digits."""
        return self.key_id[::-1].hex().upper()

    @property
    def text(self) -> str:
        """The base64 line of a ``.pub`` file, as ``minisign -P`` takes it."""
        return base64.b64encode(b"Ed" + self.key_id + self.key).decode()

    @property
    def file_text(self) -> str:
        """A whole ``.pub`` file."""
        return f"{UNTRUSTED}minisign public key {self.id}\n{self.text}\n"


@dataclass(frozen=True)
class SecretKey:
    """An author's secret key, opened; its seed is never shown by ``repr``."""

    key_id: bytes
    seed: bytes = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.key_id, _public_bytes(self.seed))


@dataclass(frozen=True)
class Signature:
    """A signature file taken apart; nothing in it is checked yet."""

    key_id: bytes
    signature: bytes
    trusted_comment: str
    comment_signature: bytes

    @property
    def id(self) -> str:
        """The id of the key that is said to have signed, as minisign prints it."""
        return self.key_id[::-1].hex().upper()


def generate(password: bytes | None, *, opslimit: int = OPSLIMIT, memlimit: int = MEMLIMIT) -> tuple[str, str]:
    """Make a key pair; returns the texts of the secret and the public file.

    ``password`` None leaves the secret key unencrypted. With one, scrypt takes ``memlimit`` bytes and some seconds.
    """
    key = SecretKey(secrets.token_bytes(8), secrets.token_bytes(32))
    keynum = key.key_id + key.seed + key.public.key
    if password is None:
        # As minisign -W writes it: no salt, no limits, and no checksum either.
        blob = b"Ed" + _KDF_NONE + b"B2" + bytes(32 + 8 + 8) + keynum + bytes(32)
    else:
        salt = secrets.token_bytes(32)
        stream = _stretch(password, salt, opslimit, memlimit)
        limits = opslimit.to_bytes(8, "little") + memlimit.to_bytes(8, "little")
        blob = b"Ed" + _KDF_SCRYPT + b"B2" + salt + limits + _xor(keynum + _checksum(keynum), stream)
    text = f"{UNTRUSTED}minisign encrypted secret key\n{base64.b64encode(blob).decode()}\n"
    return text, key.public.file_text


def load_secret(path: Path, password: Callable[[], bytes]) -> SecretKey:
    """Open a secret key file; ``password`` is called only when the key has one.

    Raises CapsulekitError when the file can't be read, is no secret key, or the password is wrong.
    """
    blob = _second_line(_read(path), 158)
    if blob is None or blob[:2] != b"Ed" or blob[2:4] not in (_KDF_SCRYPT, _KDF_NONE) or blob[4:6] != b"B2":
        raise CapsulekitError(f"{path} is not a minisign secret key")
    kdf, salt, sealed = blob[2:4], blob[6:38], blob[54:]
    if kdf == _KDF_SCRYPT:
        opslimit, memlimit = (int.from_bytes(blob[at : at + 8], "little") for at in (38, 46))
        sealed = _xor(sealed, _stretch(password(), salt, opslimit, memlimit))
        if not hmac.compare_digest(_checksum(sealed[:72]), sealed[72:]):
            raise CapsulekitError(f"wrong password for {path}")
    key = SecretKey(sealed[:8], sealed[8:40])
    if key.public.key != sealed[40:72]:
        raise CapsulekitError(f"{path} is damaged: its two halves do not belong together")
    return key


def load_public(path: Path) -> PublicKey:
    """Read a ``.pub`` file. Raises CapsulekitError when it can't be read, TrustError when it is no public key."""
    try:
        return parse_public(_read(path))
    except TrustError as wrong:
        raise TrustError(f"{path}: {wrong.message}") from wrong


def parse_public(text: str) -> PublicKey:
    """A public key from the text of a ``.pub`` file or from its base64 line alone. Raises TrustError."""
    lines = text.strip().splitlines()
    blob = _second_line(text, 42) if len(lines) > 1 else _unbase64(lines[0] if lines else "", 42)
    if blob is None or blob[:2] != b"Ed":
        raise TrustError("this is not a minisign public key")
    return PublicKey(blob[2:10], blob[10:])


def sign(data: bytes, key: SecretKey, trusted_comment: str) -> str:
    """The text of a signature file over ``data``. Ed25519 is deterministic, and so is this."""
    if any(not c.isprintable() for c in trusted_comment):
        raise CapsulekitError("a trusted comment is one line of printable text")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    signature = private.sign(hashlib.blake2b(data).digest())
    comment_signature = private.sign(signature + trusted_comment.encode())
    return (
        f"{UNTRUSTED}signature of key {key.public.id}\n"
        f"{base64.b64encode(b'ED' + key.key_id + signature).decode()}\n"
        f"{TRUSTED}{trusted_comment}\n"
        f"{base64.b64encode(comment_signature).decode()}\n"
    )


def parse_signature(text: str) -> Signature:
    """Take a signature file apart. Raises TrustError when it is none, or an old one that is not prehashed."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != 4 or not lines[0].startswith(UNTRUSTED) or not lines[2].startswith(TRUSTED):
        raise TrustError("malformed signature: not the four lines of a minisign file")
    blob, comment_signature = _unbase64(lines[1], 74), _unbase64(lines[3], 64)
    if blob is None or comment_signature is None:
        raise TrustError("malformed signature: wrong base64")
    if blob[:2] != b"ED":
        raise TrustError("malformed signature: not a prehashed one", hint="sign again, with minisign -S -H")
    return Signature(blob[2:10], blob[10:], lines[2].removeprefix(TRUSTED), comment_signature)


def verify(data: bytes, signature_text: str, key: PublicKey) -> str:
    """Check data, signature and trusted comment against one key; returns the trusted comment. Raises TrustError."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = parse_signature(signature_text)
    if signature.key_id != key.key_id:
        raise TrustError(f"signed by key {signature.id}, not by {key.id}")
    try:
        public = Ed25519PublicKey.from_public_bytes(key.key)
        public.verify(signature.signature, hashlib.blake2b(data).digest())
    except (InvalidSignature, ValueError):
        raise TrustError(f"wrong signature: it is not what key {key.id} signed") from None
    try:
        public.verify(signature.comment_signature, signature.signature + signature.trusted_comment.encode())
    except InvalidSignature:
        raise TrustError(f"wrong signature: its trusted comment is not what key {key.id} signed") from None
    return signature.trusted_comment


def refuse_existing(path: Path) -> None:
    """Raise CapsulekitError when ``path`` or ``path``.pub is there, or names no file: a key is never overwritten."""
    if not path.name:
        raise CapsulekitError(f"{path} is not the name of a file to write a key to")
    for there in (path, path.with_name(path.name + ".pub")):
        if there.is_symlink() or there.exists():
            raise CapsulekitError(f"{there} is there already; a key is never overwritten", hint="choose another name")


def create_key_files(path: Path, password: bytes | None) -> PublicKey:
    """Make a key pair in ``path`` (0600) and ``path``.pub (0644). Raises CapsulekitError; never overwrites a file."""
    refuse_existing(path)
    public_path = path.with_name(path.name + ".pub")
    secret, public = generate(password)
    made: list[Path] = []
    try:
        for where, text, mode in ((path, secret, 0o600), (public_path, public, 0o644)):
            fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            made.append(where)
            with os.fdopen(fd, "w") as out:
                out.write(text)
                out.flush()
                os.fchmod(fd, mode)
                os.fsync(fd)
    except BaseException as wrong:
        for where in made:
            where.unlink(missing_ok=True)
        if isinstance(wrong, OSError):
            raise CapsulekitError(f"can't write the key {path}: {wrong.strerror}") from wrong
        raise
    return parse_public(public)


def _public_bytes(seed: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _checksum(keynum: bytes) -> bytes:
    return hashlib.blake2b(b"Ed" + keynum, digest_size=32).digest()


def _xor(data: bytes, stream: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


def _stretch(password: bytes, salt: bytes, opslimit: int, memlimit: int) -> bytes:
    """libsodium's crypto_pwhash_scryptsalsa208sha256: limits turned into scrypt's N and p as its pickparams does."""
    r = 8
    opslimit = max(opslimit, 32768)
    if opslimit < memlimit // 32:
        n_log2, p = _least_log2(opslimit // (r * 4)), 1
    else:
        n_log2 = _least_log2(memlimit // (r * 128))
        p = min((opslimit // 4) >> n_log2, 0x3FFFFFFF) // r
    if n_log2 > 20 or not 1 <= p <= 16:
        raise CapsulekitError("this secret key asks for more memory or time than any key minisign makes")
    try:
        return hashlib.scrypt(password, salt=salt, n=1 << n_log2, r=r, p=p, maxmem=0x7FFFFFFF, dklen=104)
    except (MemoryError, ValueError) as wrong:
        raise CapsulekitError("not enough memory to open a key with a password (it takes 1 GiB)") from wrong


def _least_log2(limit: int) -> int:
    """The least n > 0 with 2^n > limit/2."""
    return max(1, (limit // 2).bit_length())


def _read(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return f.read(MAX_FILE).decode("utf-8", "replace")
    except FileNotFoundError as wrong:
        secret = path.suffix != ".pub"
        raise CapsulekitError(
            f"can't read the key {path}: {wrong.strerror}",
            hint=f"make a pair with: capsulekit keygen {path}" if secret else None,
        ) from wrong
    except OSError as wrong:
        raise CapsulekitError(f"can't read the key {path}: {wrong.strerror}") from wrong


def _second_line(text: str, size: int) -> bytes | None:
    lines = text.strip().splitlines()
    if len(lines) != 2 or not lines[0].startswith("untrusted comment:"):
        return None
    return _unbase64(lines[1], size)


def _unbase64(line: str, size: int) -> bytes | None:
    """Strict base64 of exactly ``size`` bytes in its one spelling, or None."""
    try:
        blob = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob if len(blob) == size and base64.b64encode(blob).decode() == line else None
