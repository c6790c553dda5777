"""A ``.pmod``: a module in a signed archive, with the capsule's own container and signatures.

The tar of a capsule (one spelling of ustar), SHA256SUMS first, its minisign signature second, then every file of the
module in the order of their names. Nothing but sums and signature is read before a trusted key's signature holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from capsulekit.capsule import layout, tar
from capsulekit.capsule.read import UntrustedKey, naming
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_write, read_bounded, sha256_bytes
from capsulekit.sitepaths import SitePaths
from capsulekit.trust import minisign
from capsulekit.trust.keyring import Keyring
from capsulekit.trust.minisign import SecretKey
from provisioner.catalog.model import Module
from provisioner.catalog.read import MODULE_TOML, read_module

MAX_MEMBERS = 512
MAX_FILE = 1 << 20  # bytes of one member
MAX_PMOD = 16 << 20  # bytes of the archive
MTIME = 0
_MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}")


def write_pmod(out: Path, files: Mapping[str, bytes], key: SecretKey) -> Module:
    """Check a module's files, sign them and write the archive. The same files and key give the same bytes.

    Raises CapsulekitError when the module is wrong, too large, or ``out`` can't be written.
    """
    module = read_module(files, str(out))
    for name, data in files.items():
        if not _MEMBER.fullmatch(name) or len(name) > 100 or len(data) > MAX_FILE:
            raise CapsulekitError(f"{name} can't go into a module: its name is odd, or it is larger than 1 MiB")
    if len(files) > MAX_MEMBERS - 2:
        raise CapsulekitError(f"a module has at most {MAX_MEMBERS - 2} files")
    sums = layout.dump_sums({name: sha256_bytes(data) for name, data in files.items()})
    signature = minisign.sign(sums, key, _comment(module)).encode()
    members = [(layout.SUMS, sums), (layout.SIGNATURE, signature), *sorted(files.items())]
    body = b"".join(tar.header(name, len(data), MTIME) + tar.padded(data) for name, data in members)
    whole = body + tar.ending(len(body))
    if len(whole) > MAX_PMOD:
        raise CapsulekitError(f"this module has {len(whole)} bytes; at most {MAX_PMOD} are taken")
    try:
        atomic_write(out, whole)
    except OSError as wrong:
        raise CapsulekitError(f"can't write {out}: {wrong.strerror}") from wrong
    return module


def read_pmod(path: Path, paths: SitePaths) -> Module:
    """The module in an archive that a key of this site's keyring signed; see ``check_pmod``."""
    return check_pmod(read_bytes(path), path, paths)


def read_bytes(path: Path) -> bytes:
    """The archive, whole: what is checked is then what is installed. Raises CapsulekitError."""
    data = read_bounded(path, MAX_PMOD)
    if len(data) > MAX_PMOD:
        raise TrustError(f"{path} is larger than a module may be ({MAX_PMOD} bytes)")
    return data


def check_pmod(data: bytes, path: Path, paths: SitePaths) -> Module:
    """The module in an archive's bytes; ``path`` is for messages.

    Raises UntrustedKey when no trusted key signed it, TrustError when it is not what was signed or no such archive,
    CapsulekitError when the module itself is wrong.
    """
    if data[:3] == b"BZh":
        raise TrustError(
            f"{path} is a module of Perceus 1: it is not signed, and its scripts expect another system",
            hint="write it anew as a folder with a module.toml; capsulekit module pack FOLDER signs it",
        )
    keyring = Keyring(paths.trust)
    with naming(path):
        members = _members(data)
        sums = members.pop(layout.SUMS)
        text = members.pop(layout.SIGNATURE).decode("utf-8", "replace")
        key = _signer(minisign.parse_signature(text), keyring)
        comment = minisign.verify(sums, text, key)
        digests = layout.load_sums(sums)
        if wrong := sorted(digests.keys() ^ members.keys()):
            raise TrustError(f"{wrong[0]} is not in both the archive and its sums")
        for name, content in members.items():
            if sha256_bytes(content) != digests[name]:
                raise TrustError(f"wrong digest of {name}")
    module = read_module(members, str(path), key_id=key.id)
    if comment != _comment(module):
        raise TrustError(f"{path}: the signature is for {comment!r}, not for this module")
    return module


def _comment(module: Module) -> str:
    return f"module {module.name} {module.version}"


def _signer(signature: minisign.Signature, keyring: Keyring) -> minisign.PublicKey:
    if any(signature.key_id == key.key_id for key in keyring.revoked()):
        raise UntrustedKey(f"signed by key {signature.id}, which was revoked here", signature.id)
    for key in keyring.keys():  # noqa: SIM118 - no mapping
        if key.key_id == signature.key_id:
            return key
    hint = "if you know its author: capsulekit trust add FILE.pub"
    raise UntrustedKey(f"signed by key {signature.id}, which is not trusted here", signature.id, hint=hint)


def _members(data: bytes) -> dict[str, bytes]:
    """Every member: plain files with plain names, in order, each once. Raises TrustError."""
    fd = os.memfd_create("pmod", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        mtime, entries = tar.scan(fd, len(data), MAX_MEMBERS)
    finally:
        os.close(fd)
    names = [entry.name for entry in entries]
    if names[:2] != [layout.SUMS, layout.SIGNATURE]:
        raise TrustError("not a module: it does not start with its sums and their signature")
    if names[2:] != sorted(set(names[2:])):
        raise TrustError("its members are not in order, or one is there twice")
    for entry in entries[2:]:
        if not _MEMBER.fullmatch(entry.name):
            raise TrustError(f"member {entry.name!r} is none that a module may hold")
    if mtime != MTIME or any(entry.size > MAX_FILE for entry in entries):
        raise TrustError("a member is dated, or larger than 1 MiB")
    if MODULE_TOML not in names:
        raise TrustError(f"missing member {MODULE_TOML}")
    return {entry.name: data[entry.offset : entry.offset + entry.size] for entry in entries}
