"""Writing an edited capsule file: unchanged members straight out of the old file, then summed, signed and renamed."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from capsulekit.capsule import layout, manifest
from capsulekit.capsule.read import CapsuleFile, open_capsule
from capsulekit.capsule.write import Member, digests_of, write_capsule
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import sha256_bytes, sha256_file

if TYPE_CHECKING:
    from capsulekit.trust.minisign import SecretKey
    from provisioner.vnfs.editpack import Packed

PARENT = re.compile(r"parent/([0-9]+)/(.+)")


def write_edited(old: Path, out: Path, packed: Packed, key: SecretKey, note: Callable[[str], None]) -> str:
    """Write what ``old`` has become to ``out`` (the same file, or another); returns its identity.

    ``note`` is told the identity before the file appears. Raises CapsulekitError when it can't be written, TrustError
    when a member is not what was signed; ``out`` is as it was then.
    """
    from provisioner.vnfs.editsave import enough_space

    if out.is_dir() or (out.exists() and not out.is_file()):
        raise CapsulekitError(f"{out} is there and is no file")
    with open_capsule(old) as capsule:
        members = _members(old, capsule, packed)
    enough_space(out.parent, sum(member.known[0] for member in members if member.known))
    note(sha256_bytes(layout.dump_sums(digests_of(packed.manifest, members))))
    private = any(layer.private for layer in packed.manifest.layers)
    return write_capsule(out, packed.manifest, members, key, 0o600 if private else _mode(old))


def _members(old: Path, capsule: CapsuleFile, packed: Packed) -> list[Member]:
    digests = layout.load_sums(capsule.sums())
    named = {layer.path for layer in packed.manifest.layers} | {layer.acl for layer in packed.manifest.layers}
    found = {}
    for name, sha256 in digests.items():
        if name == manifest.MEMBER or name in packed.drop or PARENT.fullmatch(name):
            continue
        if name.startswith("layers/") and name not in named and name != manifest.HYBRID:
            continue  # a layer that was flattened
        entry = capsule.members[name]
        found[name] = Member(name, old, (entry.size, sha256), entry.offset)
    for part in packed.parts.values():
        source = part.source
        known = (
            (len(source), sha256_bytes(source))
            if isinstance(source, bytes)
            else (source.stat().st_size, sha256_file(source))
        )
        found[part.name] = Member(part.name, source, known)
    for name, data in _parents(capsule, digests).items():
        found[name] = Member(name, data, (len(data), sha256_bytes(data)))
    return list(found.values())


def _parents(capsule: CapsuleFile, digests: dict[str, str]) -> dict[str, bytes]:
    """parent/0: what was changed; then what that was made from, without what lay between it and its author's."""
    signed = [name for name in capsule.members if name == layout.SUMS or layout.is_signature(name)]
    found = {f"parent/0/{name}": capsule.read_member(name, layout.MAX_SUMS) for name in signed}
    earlier = [(int(match[1]), match[2], name) for name in digests if (match := PARENT.fullmatch(name))]
    skip = 1 if len({number for number, _, _ in earlier}) > 1 else 0
    for number, file, name in earlier:
        if number >= skip:
            data = capsule.read_member(name, layout.MAX_SUMS)
            if sha256_bytes(data) != digests[name]:
                raise TrustError(f"{capsule.path}: wrong digest of {name}")
            found[f"parent/{number + 1 - skip}/{file}"] = data
    return found


def _mode(old: Path) -> int:
    """Who may read the old file may read the new one."""
    with suppress(OSError):
        return old.stat().st_mode & 0o777
    return 0o644
