"""A capsule made again: it keeps its signatures only if it is what they were made for, and some can't be made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_capsule import (
    AUTHOR,
    CONTENT,
    EPOCH,
    STRANGER,
    layer,
    manifest,
    packed,
    pieces,
    sealed,
    small_capsule,
    sums_of,
)

from capsulekit.cache import Cache
from capsulekit.capsule import layout
from capsulekit.capsule.write import Differs, Kept, Member, digests_of, write_capsule
from capsulekit.cli.main import main
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import sha256_bytes
from capsulekit.lock.model import Lock
from capsulekit.rebuild import plan, source_of
from capsulekit.rootfs.normalise import VERSION
from capsulekit.trust import minisign

COSIGNATURE = f"SHA256SUMS.{STRANGER.public.id}.minisig"


def members(content: dict[str, bytes] = CONTENT) -> list[Member]:
    return [Member(name, data) for name, data in content.items()]


def kept(path: Path) -> Kept:
    return source_of(path, [AUTHOR.public]).kept


def cosigned(folder: Path) -> Path:
    """A capsule with a second author's signature beside the first."""
    sums = sums_of(pieces())
    second = minisign.sign(sums, STRANGER, manifest().trusted_comment).encode()
    whole = sealed(pieces())
    (folder / "c.vnfs").write_bytes(packed([*whole[:2], (COSIGNATURE, second), *whole[2:]]))
    return folder / "c.vnfs"


# --- signatures that are kept


def test_what_comes_out_the_same_gets_its_old_signatures_byte_for_byte(tmp_path: Path) -> None:
    capsule = cosigned(tmp_path)
    signatures = kept(capsule)
    assert set(signatures.signatures) == {layout.SIGNATURE, COSIGNATURE}
    identity = write_capsule(tmp_path / "again.vnfs", manifest(), members(), signatures)
    assert (tmp_path / "again.vnfs").read_bytes() == capsule.read_bytes()
    assert identity == sha256_bytes(signatures.sums)


def test_what_comes_out_otherwise_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    small_capsule(tmp_path / "c.vnfs")
    changed = {**CONTENT, "boot/vmlinuz": b"other", "sbom.cdx.json": b"{}"}
    with pytest.raises(Differs, match=r"members that differ: sbom\.cdx\.json, boot/vmlinuz$") as caught:
        write_capsule(tmp_path / "again.vnfs", manifest(), members(changed), kept(tmp_path / "c.vnfs"))
    assert caught.value.members == ("sbom.cdx.json", "boot/vmlinuz") and caught.value.exit_code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c.vnfs"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda k: replace(k, key=STRANGER.public), "signed by key"),
        (lambda k: replace(k, key=replace(STRANGER.public, key_id=AUTHOR.key_id)), "wrong signature"),
        (lambda k: replace(k, signatures={}), "malformed signature"),
        (lambda k: replace(k, signatures={**k.signatures, COSIGNATURE: b"x"}), "malformed signature"),
        (
            lambda k: replace(k, signatures={layout.SIGNATURE: minisign.sign(k.sums, AUTHOR, "else").encode()}),
            "trusted comment disagrees",
        ),
    ],
)
def test_a_kept_signature_that_does_not_hold_is_never_written(tmp_path: Path, change: object, why: str) -> None:
    small_capsule(tmp_path / "c.vnfs")
    with pytest.raises(TrustError, match=why):
        write_capsule(tmp_path / "x.vnfs", manifest(), members(), change(kept(tmp_path / "c.vnfs")))  # type: ignore[operator]
    assert not (tmp_path / "x.vnfs").exists()


def test_a_file_summed_before_is_read_once_and_must_still_be_that(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(CONTENT["boot/vmlinuz"])
    known = (kernel.stat().st_size, sha256_bytes(kernel.read_bytes()))
    with_known = [m for m in members() if m.name != "boot/vmlinuz"] + [Member("boot/vmlinuz", kernel, known)]
    small_capsule(tmp_path / "c.vnfs")
    assert digests_of(manifest(), with_known) == layout.load_sums(kept(tmp_path / "c.vnfs").sums)
    write_capsule(tmp_path / "x.vnfs", manifest(), with_known, AUTHOR)
    assert (tmp_path / "x.vnfs").read_bytes() == (tmp_path / "c.vnfs").read_bytes()
    kernel.write_bytes(b"K" + CONTENT["boot/vmlinuz"][1:])  # the same size
    with pytest.raises(CapsulekitError, match="vmlinuz changed while"):
        write_capsule(tmp_path / "y.vnfs", manifest(), with_known, AUTHOR)
    assert not (tmp_path / "y.vnfs").exists()


# --- capsules that nothing makes again


def test_an_edited_capsule_is_refused_and_says_which_layer_came_later(tmp_path: Path) -> None:
    content = {**CONTENT, "layers/10-edit.squashfs": b"e"}
    layers = (layer("layers/10-edit.squashfs", content), *manifest().layers)
    small_capsule(tmp_path / "c.vnfs", content, layers=layers)
    with pytest.raises(CapsulekitError, match=r"edited after it was built: .* layers/10-edit\.squashfs") as caught:
        source_of(tmp_path / "c.vnfs", [AUTHOR.public])
    assert caught.value.exit_code == 1


def test_a_hybrid_layer_is_no_edit(tmp_path: Path) -> None:
    small_capsule(tmp_path / "c.vnfs", {**CONTENT, "layers/hybrid.squashfs": b"h"})
    assert source_of(tmp_path / "c.vnfs", [AUTHOR.public]).recipe == CONTENT["recipe.toml"].decode()


def lock(**changes: object) -> str:
    empty = {"rootfs": (), "kernel": (), "initrd": ()}
    whole = Lock("debian", "12", "amd64", EPOCH, "ab" * 32, VERSION, (), (), dict(empty), {})
    return replace(whole, **changes).dumps()  # type: ignore[arg-type]


def test_a_packed_capsule_is_refused_because_it_locks_no_packages(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match=r"^x\.vnfs was packed from a folder") as caught:
        plan("", lock(), "x.vnfs", Cache(tmp_path))
    assert caught.value.hint is not None and "pack the same folder again" in caught.value.hint


def test_a_capsule_nobody_known_signed_is_not_made_again(tmp_path: Path) -> None:
    small_capsule(tmp_path / "c.vnfs", signer=STRANGER)
    public = tmp_path / "author.pub"
    public.write_text(AUTHOR.public.file_text)
    words = ["rebuild", tmp_path / "c.vnfs", "-o", tmp_path / "x.vnfs", "--pubkey", public, "--cache-dir", tmp_path]
    assert main([str(w) for w in words]) == 3
    assert not (tmp_path / "x.vnfs").exists()
