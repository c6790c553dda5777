"""What a capsule may hold, and in which order: the member table of the format, used to write and to read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from capsulekit.capsule.manifest import HYBRID, MEMBER, Manifest
from capsulekit.errors import TrustError

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.minisig"
REQUIRED = (MEMBER, "recipe.toml", "capsule.lock", "boot/vmlinuz", "boot/initrd.img")

MAX_MEMBERS = 4096
# bytes; what has to be read before anything is trusted
MAX_SUMS = 1 << 20
MAX_SIGNATURE = 16384
# Below 4 GiB with room for headers: initrd archives hold sizes of 32 bits. The hybrid layer is never in one.
MAX_BOOTED = int(3.9 * (1 << 30))

_COSIGNATURE = re.compile(r"SHA256SUMS\.([0-9A-F]{16})\.minisig")
# One row a rank; members of equal rank are in the order of their names.
_ORDER = tuple(
    re.compile(pattern)
    for pattern in (
        r"SHA256SUMS",
        r"SHA256SUMS\.minisig",
        _COSIGNATURE.pattern,
        r"capsule\.toml",
        r"recipe\.toml",
        r"capsule\.lock",
        r"sbom\.cdx\.json",
        r"provenance\.json",
        r"hybridize",
        r"provision/[A-Za-z0-9][A-Za-z0-9_-]*/[0-9]{2}-[A-Za-z0-9][A-Za-z0-9._-]*",
        r"configure\.toml",
        r"livesync\.skip",
        r"boot/vmlinuz",
        r"boot/initrd\.img",
        r"layers/modules\.squashfs",
        r"layers/(?!(?:modules|hybrid)\.squashfs)[A-Za-z0-9][A-Za-z0-9._-]*\.squashfs",
        r"layers/hybrid\.squashfs",
        r"layers/[A-Za-z0-9][A-Za-z0-9._-]*\.acl",
        r"parent/[0-9]{1,3}/SHA256SUMS(?:\.minisig|\.[0-9A-F]{16}\.minisig)?",
    )
)
_OPTIONAL = re.compile(r"sbom\.cdx\.json|provenance\.json|hybridize|configure\.toml|livesync\.skip|parent/.*")
_LINE = re.compile(r"([0-9a-f]{64})  ([!-~]{1,100})")


def rank(name: str) -> tuple[int, str]:
    """Where a member stands in the file. Raises TrustError for a name that the format does not know."""
    if name.startswith("/"):
        raise TrustError(f"member {name!r} has an absolute path")
    if ".." in name.split("/"):
        raise TrustError(f"member {name!r} has '..' in its path")
    for place, pattern in enumerate(_ORDER):
        if pattern.fullmatch(name):
            return place, name
    raise TrustError(f"member {name!r} is none that a capsule may hold")


def is_signature(name: str) -> bool:
    """The signatures: the only members that SHA256SUMS does not list (beside itself)."""
    return name == SIGNATURE or cosigner(name) is not None


def cosigner(name: str) -> str | None:
    """The key id in a co-signature's name, or None for any other member."""
    found = _COSIGNATURE.fullmatch(name)
    return found.group(1) if found else None


def is_listed(name: str) -> bool:
    """Whether SHA256SUMS must list this member."""
    return name != SUMS and not is_signature(name)


def check_order(names: Sequence[str]) -> None:
    """Known names, each once, in the order of the format. Raises TrustError naming the first that is wrong."""
    last: tuple[int, str] = (-1, "")
    seen: set[str] = set()
    for name in names:
        here = rank(name)
        if name in seen:
            raise TrustError(f"duplicate member {name}")
        if here < last:
            raise TrustError(f"member {name} is out of order")
        seen.add(name)
        last = here


def check_contents(listed: Collection[str], manifest: Manifest) -> None:
    """The listed members are just those that the manifest calls for. Raises TrustError naming one too few or many."""
    acls = {layer.acl for layer in manifest.layers if layer.acl is not None}
    expected = {*REQUIRED, *(layer.path for layer in manifest.layers), *acls, *manifest.provision}
    missing = sorted(expected - set(listed))
    if missing:
        raise TrustError(f"missing member {missing[0]}")
    extra = sorted(n for n in set(listed) - expected if not _OPTIONAL.fullmatch(n) and n != HYBRID)
    if extra:
        raise TrustError(f"extra member {extra[0]}: the manifest does not know it")


def check_sizes(sizes: Mapping[str, int], manifest: Manifest) -> None:
    """Layers are as large as the manifest says, and what a node boots fits an initrd. Raises TrustError."""
    for layer in manifest.layers:
        size = sizes[layer.path]
        if size != layer.size:
            word = "larger" if size > layer.size else "smaller"
            raise TrustError(f"{layer.path} is {word} than the manifest says: {size} bytes, not {layer.size}")
    for name, size in sizes.items():
        if size >= MAX_BOOTED and name != HYBRID:
            raise TrustError(f"{name} has {size} bytes; a boot file or layer must stay under {MAX_BOOTED}")


def dump_sums(digests: Mapping[str, str]) -> bytes:
    """SHA256SUMS as ``sha256sum -c`` reads it, sorted by name; ``digests`` are hex sha256 by member."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def load_sums(data: bytes) -> dict[str, str]:
    """Hex sha256 by member name. Raises TrustError unless it is the one spelling that ``dump_sums`` makes."""
    text = data.decode("ascii", "replace")
    if not text.endswith("\n"):
        raise TrustError(f"malformed {SUMS}: its last line has no end")
    digests: dict[str, str] = {}
    for number, line in enumerate(text[:-1].split("\n"), 1):
        found = _LINE.fullmatch(line)
        if not found or found.group(2) in digests:
            raise TrustError(f"malformed {SUMS}: line {number}")
        digests[found.group(2)] = found.group(1)
    if list(digests) != sorted(digests):
        raise TrustError(f"malformed {SUMS}: not sorted")
    return digests
