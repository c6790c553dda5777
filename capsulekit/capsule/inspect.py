"""Looking into a capsule: what it says about itself, and whether anyone known vouches for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capsulekit.capsule import manifest
from capsulekit.capsule.manifest import Manifest
from capsulekit.capsule.read import CapsuleFile, Unsigned, UntrustedKey, naming, open_capsule, verify
from capsulekit.files import sha256_bytes
from capsulekit.output import table
from capsulekit.trust.minisign import PublicKey


@dataclass(frozen=True)
class Inspection:
    """A capsule's own words. Only if ``verified`` are they more than that; else ``reason`` says why not.

    ``key_id`` is the signer the file names ("" when unsigned); ``members`` are (name, size in bytes), in file order.
    """

    manifest: Manifest
    identity: str
    key_id: str
    verified: bool
    reason: str
    members: tuple[tuple[str, int], ...]


def inspect(path: Path, keys: Iterable[PublicKey], *, revoked: Collection[PublicKey] = ()) -> Inspection:
    """Look into a capsule; signature and every digest are checked when one of ``keys`` signed it.

    An unknown or revoked key, or no signature, is reported, not raised. Raises TrustError for a malformed file, or one
    that a known key signed and that does not hold.
    """
    with open_capsule(path) as capsule:
        members = tuple((entry.name, entry.size) for entry in capsule.members.values())
        try:
            with naming(path):
                key_id = capsule.signature().id
            checked = verify(capsule, keys, revoked=revoked)
        except (UntrustedKey, Unsigned) as wrong:
            key_id = wrong.key_id if isinstance(wrong, UntrustedKey) else ""
            reason = wrong.message.removeprefix(f"{path}: ")
            with naming(path):
                return Inspection(_claims(capsule), _identity(capsule), key_id, False, reason, members)
        return Inspection(checked.manifest, checked.identity, key_id, True, "", members)


def describe(seen: Inspection) -> str:
    """The text that ``capsulekit inspect`` prints."""
    if seen.verified:
        trust = f"verified: signed by the known key {seen.key_id}, every digest holds"
    else:
        trust = f"NOT VERIFIED: {seen.reason}; all below is only what the file says"
    m = seen.manifest
    facts = [
        ("capsule", m.full_name),
        ("identity", seen.identity),
        ("signature", trust),
        ("distro", f"{m.distro} {m.release}"),
        ("kernel", m.kernel_release),
        ("init", m.init),
        ("cmdline", m.cmdline),
        ("build epoch", str(m.epoch)),
        ("recipe digest", m.recipe_digest),
        *(("hybridize", glob) for glob in m.hybridize),
        *(("provision", script) for script in m.provision),
    ]
    layers = [
        (one.path, str(one.size), str(one.unpacked), "private" if one.private else "public", one.sha256)
        for one in m.layers
    ]
    columns = [("Layer (topmost first)", 24), ("Bytes", 12), ("Unpacked", 12), ("Access", 8), ("sha256", 64)]
    return "\n\n".join(
        [
            "\n".join(f"{key + ':':15}{value}".rstrip() for key, value in facts),
            table(columns, layers),
            table([("Member", 32), ("Bytes", 12)], [(name, str(size)) for name, size in seen.members]),
        ]
    )


def as_json(seen: Inspection) -> dict[str, Any]:
    """The same for programs; ``verified`` and ``reason`` say what it is worth."""
    return {
        "name": seen.manifest.full_name,
        "identity": seen.identity,
        "signature": {"key_id": seen.key_id, "verified": seen.verified, "reason": seen.reason},
        "manifest": asdict(seen.manifest),
        "members": [{"name": name, "size": size} for name, size in seen.members],
    }


def _claims(capsule: CapsuleFile) -> Manifest:
    """The manifest of a file that nobody vouches for."""
    return manifest.loads(capsule.read_member(manifest.MEMBER))


def _identity(capsule: CapsuleFile) -> str:
    return sha256_bytes(capsule.sums())
