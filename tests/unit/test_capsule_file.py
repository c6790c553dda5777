"""The capsule file: what the writer makes reads back, and all else that someone may hand us is refused."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_capsule import (
    AUTHOR,
    CONTENT,
    EPOCH,
    STRANGER,
    layer,
    manifest,
    packed,
    pieces,
    reheader,
    sealed,
    small_capsule,
    sums_of,
)

from capsulekit.capsule import layout, tar
from capsulekit.capsule.inspect import as_json, describe, inspect
from capsulekit.capsule.read import UntrustedKey, Verified, open_capsule, verify
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import sha256_bytes
from capsulekit.trust import minisign

KEYS = [AUTHOR.public]
GOOD = packed(sealed(pieces()))
SUMS_AT, SIGNATURE_AT = 0, 512 + len(tar.padded(sums_of(pieces())))


def read(path: Path) -> Verified:
    with open_capsule(path) as capsule:
        return verify(capsule, KEYS)


def read_bytes(folder: Path, data: bytes) -> Verified:
    path = folder / "some.vnfs"
    path.write_bytes(data)
    return read(path)


# --- what is written


def test_a_written_capsule_verifies_and_holds_what_was_given(tmp_path: Path) -> None:
    identity = small_capsule(tmp_path / "t.vnfs")
    good = read(tmp_path / "t.vnfs")
    assert (good.identity, good.manifest, good.key) == (identity, manifest(), AUTHOR.public)
    with open_capsule(tmp_path / "t.vnfs") as capsule:
        assert {name: capsule.read_member(name) for name in CONTENT} == CONTENT
        out = io.BytesIO()
        assert capsule.copy_member("layers/rootfs.squashfs", out) == good.members["layers/rootfs.squashfs"].sha256
        assert out.getvalue() == CONTENT["layers/rootfs.squashfs"]
        with pytest.raises(TrustError, match="at most 10 are expected"):
            capsule.read_member("boot/vmlinuz", 10)
        with pytest.raises(TrustError, match="missing member nothing"):
            capsule.read_member("nothing")


def test_members_are_in_the_order_of_the_format(tmp_path: Path) -> None:
    extra = {"layers/10-edit.squashfs": b"e", "layers/hybrid.squashfs": b"h", "sbom.cdx.json": b"{}", "hybridize": b""}
    content = {**dict(reversed(CONTENT.items())), **extra}
    layers = (layer("layers/10-edit.squashfs", content), *manifest().layers)
    small_capsule(tmp_path / "t.vnfs", content, layers=layers)
    with open_capsule(tmp_path / "t.vnfs") as capsule:
        assert list(capsule.members) == [
            "SHA256SUMS",
            "SHA256SUMS.minisig",
            "capsule.toml",
            "recipe.toml",
            "capsule.lock",
            "sbom.cdx.json",
            "hybridize",
            "provision/init/10-hello",
            "boot/vmlinuz",
            "boot/initrd.img",
            "layers/modules.squashfs",
            "layers/10-edit.squashfs",
            "layers/rootfs.squashfs",
            "layers/hybrid.squashfs",
            "layers/rootfs.acl",
        ]


def test_the_same_content_makes_the_same_file_whatever_the_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_capsule(tmp_path / "a.vnfs")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    old = os.umask(0o077)
    try:
        small_capsule(tmp_path / "b.vnfs", dict(reversed(CONTENT.items())))
    finally:
        os.umask(old)
    assert (tmp_path / "a.vnfs").read_bytes() == (tmp_path / "b.vnfs").read_bytes() == GOOD


def test_headers_are_what_the_format_says(tmp_path: Path) -> None:
    small_capsule(tmp_path / "t.vnfs")
    assert (tmp_path / "t.vnfs").stat().st_size % 10240 == 0
    with tarfile.open(tmp_path / "t.vnfs") as archive:
        for member in archive:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert (member.mode, member.mtime, member.type) == (0o644, EPOCH, tarfile.REGTYPE)


def test_identity_is_the_digest_of_the_sums_and_not_of_the_signature(tmp_path: Path) -> None:
    first = small_capsule(tmp_path / "a.vnfs")
    assert first == small_capsule(tmp_path / "b.vnfs", signer=STRANGER) == sha256_bytes(sums_of(pieces()))


@pytest.mark.parametrize("size", [tar.PAX_FROM - 1, tar.PAX_FROM, 9_876_543_210, 1 << 40])
def test_sizes_around_8_gib_are_read_by_us_and_by_tarfile(tmp_path: Path, size: int) -> None:
    head = tar.header("layers/hybrid.squashfs", size, EPOCH)
    assert len(head) == (512 if size < tar.PAX_FROM else 1536)
    end = len(head) + size + -size % 512
    with (tmp_path / "big").open("wb") as file:
        file.write(head)
        file.truncate(end + len(tar.ending(end)))
    with (tmp_path / "big").open("rb") as file:
        mtime, entries = tar.scan(file.fileno(), (tmp_path / "big").stat().st_size, 5)
    assert (mtime, entries) == (EPOCH, [tar.Entry("layers/hybrid.squashfs", len(head), size)])
    with tarfile.open(tmp_path / "big") as archive:
        member = archive.next()
        assert member is not None
        assert (member.name, member.size, member.offset_data) == ("layers/hybrid.squashfs", size, len(head))


# --- what the writer refuses


def members_of(content: dict[str, bytes]) -> list[Member]:
    return [Member(name, data) for name, data in content.items()]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m[:-1], "missing member layers/rootfs.acl"),
        (lambda m: [*m, m[0]], "duplicate member recipe.toml"),
        (lambda m: [*m, Member("layers/more.squashfs", b"")], "extra member layers/more.squashfs"),
        (lambda m: [*m, Member("README", b"")], "'README' is none that a capsule may hold"),
        (lambda m: [*m, Member("../x", b"")], r"has '\.\.' in its path"),
        (lambda m: [*m, Member("SHA256SUMS", b"")], "are made here"),
        (lambda m: [*m, Member("capsule.toml", b"")], "duplicate member capsule.toml"),
        (lambda m: [Member("layers/rootfs.squashfs", b"z" * 6000) if "rootfs.s" in x.name else x for x in m], "is not"),
        (lambda m: [Member("layers/rootfs.squashfs", b"z") if "rootfs.s" in x.name else x for x in m], "is smaller"),
        (lambda m: [Member("boot/vmlinuz", Path("/none")) if "linuz" in x.name else x for x in m], "/none: No such"),
        (lambda m: [Member("boot/vmlinuz", Path("/dev")) if "linuz" in x.name else x for x in m], "/dev is not a file"),
    ],
)
def test_what_could_not_be_read_is_not_written_and_leaves_nothing(
    tmp_path: Path, change: Callable[[list[Member]], list[Member]], why: str
) -> None:
    with pytest.raises(CapsulekitError, match=why) as caught:
        write_capsule(tmp_path / "t.vnfs", manifest(), change(members_of(CONTENT)), AUTHOR)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message
    assert not list(tmp_path.iterdir())


def test_a_boot_file_too_large_for_an_initrd_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layout, "MAX_BOOTED", 1800)
    with pytest.raises(CapsulekitError, match="boot/vmlinuz has 1800 bytes"):
        small_capsule(tmp_path / "t.vnfs", CONTENT)
    assert not list(tmp_path.iterdir())


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(CONTENT["boot/vmlinuz"])
    members = [Member(n, kernel if n == "boot/vmlinuz" else data) for n, data in CONTENT.items()]
    sign = minisign.sign

    def grow(data: bytes, key: minisign.SecretKey, trusted_comment: str) -> str:
        kernel.write_bytes(b"longer" * 1000)
        return sign(data, key, trusted_comment)

    monkeypatch.setattr(minisign, "sign", grow)
    with pytest.raises(CapsulekitError, match="vmlinuz changed while"):
        write_capsule(tmp_path / "t.vnfs", manifest(), members, AUTHOR)
    assert list(tmp_path.iterdir()) == [kernel]


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match=r"can't write .*none/t\.vnfs: No such file"):
        small_capsule(tmp_path / "none" / "t.vnfs")


# --- hostile files: surgery on bytes of the tar


def at_of(name: str) -> int:
    """Where the header of a member is in GOOD."""
    at = 0
    for member, body in sealed(pieces()):
        if member == name:
            return at
        at += 512 + len(tar.padded(body))
    raise AssertionError(name)


def header_of(name: str, /, **fields: tuple[int, bytes]) -> bytes:
    return reheader(GOOD, at_of(name), **fields)


def replaced(name: str, data: bytes) -> list[tuple[str, bytes]]:
    return [(n, data if n == name else body) for n, body in pieces()]


def without(name: str) -> list[tuple[str, bytes]]:
    return [(n, body) for n, body in pieces() if n != name]


def pax(body: bytes) -> bytes:
    """GOOD's first member with a pax header before it."""
    head = reheader(tar.header("x", len(body), EPOCH), 0, kind=(156, b"x"))
    return head + tar.padded(body) + GOOD


LAST = "layers/rootfs.acl"
END = len(GOOD) - len(tar.ending(at_of(LAST) + 512))
SURGERY: list[tuple[str, bytes, str]] = [
    ("empty file", b"", "truncated"),
    ("not a tar", b"#!/bin/sh\n" + bytes(20470), "no ustar header|not octal"),
    ("only an end", bytes(10240), "missing member SHA256SUMS"),
    ("gzip", b"\x1f\x8b\x08" + GOOD[3:], "no ustar header"),
    ("cut in a header", GOOD[:700], "truncated"),
    ("cut in a member", GOOD[: at_of("layers/rootfs.squashfs") + 1000], "truncated"),
    ("cut at a member's end", GOOD[: at_of(LAST)], "truncated"),
    ("cut in the end", GOOD[:-512], "truncated"),
    ("something behind", GOOD + b"x", "followed by something"),
    ("more zeros behind", GOOD + bytes(10240), "followed by something"),
    ("a second archive behind", GOOD + GOOD, "followed by something"),
    ("something in the end", GOOD[:-1] + b"x", "followed by something"),
    ("something in the padding", GOOD[: at_of("boot/vmlinuz") - 1] + b"x" + GOOD[at_of("boot/vmlinuz") :], "hidden"),
    ("bad checksum", GOOD[:148] + b"000000" + GOOD[154:], "damaged"),
    ("hard link", header_of(LAST, kind=(156, b"1")), "a hard link, not a file"),
    ("symbolic link", header_of(LAST, kind=(156, b"2"), target=(157, b"/etc/passwd")), "a symbolic link, not a file"),
    ("character device", header_of(LAST, kind=(156, b"3")), "a device, not a file"),
    ("block device", header_of(LAST, kind=(156, b"4")), "a device, not a file"),
    ("folder", header_of(LAST, kind=(156, b"5")), "a folder, not a file"),
    ("fifo", header_of(LAST, kind=(156, b"6")), "a fifo, not a file"),
    ("old regular type", header_of(LAST, kind=(156, b"\0")), "an extension of tar"),
    ("GNU long name", header_of(LAST, kind=(156, b"L")), "an extension of tar"),
    ("GNU sparse", header_of(LAST, kind=(156, b"S")), "an extension of tar"),
    ("pax global header", header_of(LAST, kind=(156, b"g")), "an extension of tar"),
    ("GNU magic", header_of(LAST, magic=(257, b"ustar  \0")), "no ustar header"),
    ("another mode", header_of(LAST, mode=(100, b"0004755\0")), "damaged header"),
    ("an owner", header_of(LAST, uid=(108, b"0001750\0")), "damaged header"),
    ("an owner's name", header_of(LAST, uname=(265, b"root")), "damaged header"),
    ("a link target on a file", header_of(LAST, target=(157, b"x")), "damaged header"),
    ("a name prefix", header_of(LAST, prefix=(345, b"..")), "name is not one"),
    ("bytes behind the header", header_of(LAST, rest=(500, b"x")), "damaged header"),
    ("another time", header_of(LAST, mtime=(136, b"00000000001\0")), "damaged header"),
    ("size in base 256", header_of(LAST, size=(124, b"\x80" + bytes(10) + b"\x01")), "not octal"),
    ("negative size", header_of(LAST, size=(124, b"-0000000001\0")), "not octal"),
    ("size with spaces", header_of(LAST, size=(124, b"          0\0")), "not octal"),
    ("size past the end", header_of(LAST, size=(124, b"00077777777\0")), "past the end of the file"),
    ("size grown over the next", header_of("boot/vmlinuz", size=(124, b"00000010000\0")), "no ustar header"),
    (
        "size grown over padding",
        header_of("boot/vmlinuz", size=(124, b"00000004000\0")),
        "wrong digest of boot/vmlinuz",
    ),
    ("size shrunk", header_of("boot/vmlinuz", size=(124, b"00000000001\0")), "hidden"),
    ("absolute path", header_of(LAST, name=(0, b"/etc/passwd".ljust(100, b"\0"))), "absolute path"),
    ("path upwards", header_of(LAST, name=(0, b"layers/../../x".ljust(100, b"\0"))), r"'\.\.' in its path"),
    ("dot path", header_of(LAST, name=(0, b"./layers/rootfs.acl".ljust(100, b"\0"))), "none that a capsule may hold"),
    ("unknown name", header_of(LAST, name=(0, b"layers/virus.exe".ljust(100, b"\0"))), "none that a capsule may hold"),
    ("terminal escape in a name", header_of(LAST, name=(0, b"\x1b[2J".ljust(100, b"\0"))), "name is not one"),
    ("bytes behind a name", header_of(LAST, name=(0, b"x\0y".ljust(100, b"\0"))), "name is not one"),
    ("no name", header_of(LAST, name=(0, bytes(100))), "name is not one"),
    ("name not ASCII", header_of(LAST, name=(0, "layers/é.acl".encode().ljust(100, b"\0"))), "name is not one"),
    ("pax path", pax(b"16 path=../evil\n"), "a pax header that says anything but a size"),
    ("pax small size", pax(b"11 size=10\n"), "a pax header that says anything but a size"),
    ("pax size and path", pax(b"20 size=8589934592\n15 path=../evi\n"), "a pax header that says anything but"),
    ("pax huge", pax(b"x" * 600), "a pax header that says anything but a size"),
    ("pax oddly spelled", pax(b"19 size=8589934592\n"), "damaged pax header"),
    ("duplicate member", packed([*sealed(pieces()), (LAST, b"")]), "duplicate member layers/rootfs.acl"),
    ("members out of order", packed(sealed(pieces()[::-1])), "out of order"),
    ("signature first", packed(sealed(pieces())[1::-1] + pieces()), "SHA256SUMS is out of order"),
    ("too many members", packed([(f"layers/{n}.acl", b"") for n in range(10000, 15000)]), "more than 4096 members"),
]


@pytest.mark.parametrize(("data", "why"), [case[1:] for case in SURGERY], ids=[case[0] for case in SURGERY])
def test_a_tar_that_is_not_a_capsules_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(TrustError, match=why) as caught:
        read_bytes(tmp_path, data)
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(tmp_path / "some.vnfs") + ": ")


# --- hostile files: well-formed tar, wrong content. Those made by ``sealed`` carry a good signature.


def toml(old: str, new: str) -> bytes:
    text = manifest().dumps().decode()
    assert old in text
    return text.replace(old, new, 1).encode()


COSIGNED = "SHA256SUMS.AAAAAAAAAAAAAAAA.minisig"
BAD_SUMS = sums_of(pieces())
CONTENTS: list[tuple[str, list[tuple[str, bytes]], str]] = [
    ("unsigned", [(layout.SUMS, sums_of(pieces())), *pieces()], "not signed"),
    ("signature is no signature", [sealed(pieces())[0], (layout.SIGNATURE, b"x"), *pieces()], "malformed signature"),
    ("huge signature", [sealed(pieces())[0], (layout.SIGNATURE, b"x" * 20000), *pieces()], "at most 16384"),
    ("huge sums", sealed(pieces(), sums=b"x" * (2 << 20)), "at most 1048576"),
    ("no sums", sealed(pieces())[1:], "missing member SHA256SUMS"),
    ("untrusted key", sealed(pieces(), signer=STRANGER), "is not trusted here"),
    (
        "untrusted key with a trusted id",
        sealed(pieces(), signer=minisign.SecretKey(AUTHOR.key_id, STRANGER.seed)),
        "wrong signature",
    ),
    ("sums of something else", [(layout.SUMS, sums_of(without(LAST))), *sealed(pieces())[1:]], "wrong signature"),
    ("comment disagrees", sealed(pieces(), comment="capsule tiny 2.0 amd64"), "trusted comment disagrees"),
    ("member not in the sums", sealed(pieces(), sums=sums_of(without("recipe.toml"))), "does not list it"),
    ("member of the sums is missing", sealed(without("recipe.toml"), sums=sums_of(pieces())), "lists it"),
    ("sums without an end", sealed(pieces(), sums=BAD_SUMS[:-1]), "malformed SHA256SUMS: its last line"),
    ("sums in upper case", sealed(pieces(), sums=BAD_SUMS.upper()), "malformed SHA256SUMS: line 1"),
    ("sums twice", sealed(pieces(), sums=BAD_SUMS * 2), "malformed SHA256SUMS: line 10"),
    ("sums not sorted", sealed(pieces(), sums=b"\n".join(BAD_SUMS.split(b"\n")[-2::-1]) + b"\n"), "not sorted"),
    ("sums with a star", sealed(pieces(), sums=BAD_SUMS.replace(b"  ", b" *", 1)), "malformed SHA256SUMS: line 1"),
    ("unknown format", sealed(replaced("capsule.toml", toml("format = 1", "format = 2"))), "unknown capsule format 2"),
    ("malformed manifest", sealed(replaced("capsule.toml", b"format = 1\n")), "malformed manifest"),
    ("huge manifest", sealed(replaced("capsule.toml", b"#" * (2 << 20))), "at most 1048576"),
    ("wrong digest of the manifest", sealed(pieces(told=toml("quiet", "quie!")), sums=BAD_SUMS), "digest of capsule.t"),
    ("wrong digest of the kernel", sealed(replaced("boot/vmlinuz", b"k"), sums=BAD_SUMS), "wrong digest of boot/vmlin"),
    ("wrong digest of a layer", sealed(replaced(LAST, b"k"), sums=BAD_SUMS), f"wrong digest of {LAST}"),
    ("layer larger", sealed(replaced("layers/rootfs.squashfs", b"z" * 6001)), "larger than the manifest says"),
    ("layer smaller", sealed(replaced("layers/rootfs.squashfs", b"z")), "smaller than the manifest says"),
    ("layer of another digest", sealed(replaced("layers/rootfs.squashfs", b"z" * 6000)), "in the manifest disagrees"),
    ("layer missing", sealed(without("layers/rootfs.squashfs")), "missing member layers/rootfs.squashfs"),
    ("acl missing", sealed(without(LAST)), "missing member layers/rootfs.acl"),
    ("script missing", sealed(without("provision/init/10-hello")), "missing member provision/init/10-hello"),
    ("extra layer", sealed([*pieces()[:-1], ("layers/x.squashfs", b""), pieces()[-1]]), "extra member layers/x.squash"),
    ("extra acl", sealed([*pieces(), ("layers/z.acl", b"")]), "extra member layers/z.acl"),
    ("extra script", sealed([*pieces()[:4], ("provision/init/20-x", b""), *pieces()[4:]]), "extra member provision/i"),
    *(
        (f"no {name}", sealed(without(name)), f"missing member {name}")
        for name in ("capsule.toml", "recipe.toml", "capsule.lock", "boot/vmlinuz", "boot/initrd.img")
    ),
    (
        "co-signature that is none",
        [*sealed(pieces())[:2], (COSIGNED, b"x"), *pieces()],
        "malformed signature",
    ),
    (
        "co-signature under another name",
        [*sealed(pieces())[:2], (COSIGNED, sealed(pieces())[1][1]), *pieces()],
        "by another key than its name says",
    ),
]


@pytest.mark.parametrize(("members", "why"), [case[1:] for case in CONTENTS], ids=[case[0] for case in CONTENTS])
def test_content_that_does_not_hold_is_refused(tmp_path: Path, members: list[tuple[str, bytes]], why: str) -> None:
    with pytest.raises(TrustError, match=why) as caught:
        read_bytes(tmp_path, packed(members))
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 3


def test_members_of_another_time_than_the_build_epoch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="disagrees with the epoch"):
        read_bytes(tmp_path, packed(sealed(pieces()), mtime=EPOCH + 1))


def test_a_revoked_key_is_refused_by_name_even_if_it_is_also_trusted(tmp_path: Path) -> None:
    small_capsule(tmp_path / "t.vnfs")
    with (
        open_capsule(tmp_path / "t.vnfs") as capsule,
        pytest.raises(UntrustedKey, match=f"{AUTHOR.public.id}, which was revoked") as caught,
    ):
        verify(capsule, KEYS, revoked=KEYS)
    assert caught.value.key_id == AUTHOR.public.id


def test_a_co_signature_is_allowed(tmp_path: Path) -> None:
    name = f"SHA256SUMS.{STRANGER.public.id}.minisig"
    second = minisign.sign(sums_of(pieces()), STRANGER, manifest().trusted_comment).encode()
    assert read_bytes(tmp_path, packed([*sealed(pieces())[:2], (name, second), *pieces()])).key == AUTHOR.public


def test_parents_of_an_edited_capsule_are_allowed(tmp_path: Path) -> None:
    more = [*pieces(), ("parent/1/SHA256SUMS", b""), ("parent/1/SHA256SUMS.minisig", b"")]
    assert "parent/1/SHA256SUMS" in read_bytes(tmp_path, packed(sealed(more))).members


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device"])
def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(CapsulekitError, match="is not a file" if kind != "missing" else "No such file"):
        open_capsule(path)


def test_a_file_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.vnfs"
    small_capsule(path)
    with open_capsule(path) as capsule:
        os.truncate(path, at_of("layers/rootfs.squashfs") + 600)
        with pytest.raises(TrustError, match=r"truncated: layers/rootfs\.squashfs ends too soon"):
            verify(capsule, KEYS)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, length: int) -> None:
    with pytest.raises(TrustError):
        read_bytes(tmp_path, GOOD[:length])


UNTRUSTED_COMMENT = range(SIGNATURE_AT + 512, SIGNATURE_AT + 512 + sealed(pieces())[1][1].index(b"\n"))


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(GOOD) * 8 - 1))
def test_no_flipped_bit_passes_but_in_the_untrusted_comment(tmp_path: Path, bit: int) -> None:
    data = bytearray(GOOD)
    data[bit // 8] ^= 1 << bit % 8
    if bit // 8 in UNTRUSTED_COMMENT:
        return
    with pytest.raises(TrustError):
        read_bytes(tmp_path, bytes(data))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.binary(max_size=600))
def test_spliced_bytes_are_refused_and_never_crash_the_reader(tmp_path: Path, start: int, end: int, put: bytes) -> None:
    data = GOOD[: min(start, end)] + put + GOOD[max(start, end) :]
    try:
        good = read_bytes(tmp_path, data)
    except TrustError:
        return
    assert (good.identity, good.manifest) == (sha256_bytes(sums_of(pieces())), manifest())


# --- inspect


def test_inspect_says_what_is_verified_and_by_whom(tmp_path: Path) -> None:
    identity = small_capsule(tmp_path / "t.vnfs")
    text = describe(inspect(tmp_path / "t.vnfs", KEYS))
    assert f"verified: signed by the known key {AUTHOR.public.id}" in text
    assert "NOT VERIFIED" not in text
    for expected in ("tiny-1.0.amd64", identity, "6.1.0-18-amd64", "layers/rootfs.squashfs", "6000", "capsule.lock"):
        assert expected in text


@pytest.mark.parametrize("known", [[], [STRANGER.public]])
def test_inspect_of_an_unknown_key_claims_nothing(tmp_path: Path, known: list[minisign.PublicKey]) -> None:
    small_capsule(tmp_path / "t.vnfs")
    seen = inspect(tmp_path / "t.vnfs", known)
    assert (seen.verified, seen.key_id) == (False, AUTHOR.public.id)
    assert "NOT VERIFIED: signed by key" in describe(seen)
    assert not any(line.startswith("signature:     verified") for line in describe(seen).splitlines())
    assert as_json(seen)["signature"]["verified"] is False


def test_inspect_of_a_revoked_key_and_of_an_unsigned_file_claims_nothing(tmp_path: Path) -> None:
    small_capsule(tmp_path / "t.vnfs")
    seen = inspect(tmp_path / "t.vnfs", KEYS, revoked=KEYS)
    assert (seen.verified, "revoked" in seen.reason) == (False, True)
    (tmp_path / "u.vnfs").write_bytes(packed([(layout.SUMS, BAD_SUMS), *pieces()]))
    seen = inspect(tmp_path / "u.vnfs", KEYS)
    assert (seen.verified, seen.reason, seen.key_id) == (False, "the file is not signed", "")


def test_inspect_of_a_file_that_a_known_key_signed_and_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.vnfs").write_bytes(packed(sealed(replaced("boot/vmlinuz", b"k"), sums=BAD_SUMS)))
    with pytest.raises(TrustError, match="wrong digest of boot/vmlinuz"):
        inspect(tmp_path / "t.vnfs", KEYS)
