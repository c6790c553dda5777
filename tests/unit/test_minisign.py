"""Our minisign, against itself and against what must not pass. The real program is asked in test_stock_tools.py."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_capsule import AUTHOR, STRANGER

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.trust import minisign
from capsulekit.trust.keyring import Keyring

SIGNED = minisign.sign(b"data", AUTHOR, "a comment")
# 2^10 rounds of scrypt: the format is the same, the test is quick.
CHEAP = {"opslimit": 32768, "memlimit": 1 << 20}


def no_password() -> bytes:
    raise AssertionError("a password was asked for")


def test_a_signature_verifies_and_gives_its_trusted_comment() -> None:
    assert minisign.verify(b"data", SIGNED, AUTHOR.public) == "a comment"


def test_signing_is_deterministic() -> None:
    assert minisign.sign(b"data", AUTHOR, "a comment") == SIGNED


@pytest.mark.parametrize(
    ("data", "text", "why"),
    [
        (b"Data", SIGNED, "wrong signature"),
        (b"data", SIGNED.replace("a comment", "a commenT"), "its trusted comment is not"),
        (b"data", minisign.sign(b"data", STRANGER, "a comment"), "signed by key"),
        (b"data", "", "malformed"),
        (b"data", SIGNED + "more\n", "malformed"),
        (b"data", "\n".join(SIGNED.split("\n")[:2]), "malformed"),
        (b"data", SIGNED.replace("\nRU", "\n RU", 1), "wrong base64"),
        (b"data", SIGNED.replace("\nRU", "\nRW", 1), "not a prehashed one"),
    ],
)
def test_a_wrong_signature_is_refused_with_its_cause(data: bytes, text: str, why: str) -> None:
    with pytest.raises(TrustError, match=why):
        minisign.verify(data, text, AUTHOR.public)


def test_a_key_under_anothers_id_is_refused() -> None:
    with pytest.raises(TrustError, match="wrong signature"):
        minisign.verify(b"data", SIGNED, minisign.PublicKey(AUTHOR.key_id, STRANGER.public.key))


@given(st.integers(0, 73 * 8 + 7), st.sampled_from([1, 3]))
def test_no_flipped_bit_of_either_signature_passes(bit: int, line: int) -> None:
    lines = SIGNED.split("\n")
    blob = bytearray(base64.b64decode(lines[line]))
    blob[(bit // 8) % len(blob)] ^= 1 << bit % 8
    lines[line] = base64.b64encode(bytes(blob)).decode()
    with pytest.raises(TrustError):
        minisign.verify(b"data", "\n".join(lines), AUTHOR.public)


def test_the_key_id_is_printed_as_minisign_does() -> None:
    assert minisign.PublicKey(bytes.fromhex("60d9f1652c63b191"), bytes(32)).id == "91B1632C65F1D960"


def test_a_comment_of_two_lines_can_not_be_signed() -> None:
    with pytest.raises(CapsulekitError, match="one line"):
        minisign.sign(b"data", AUTHOR, "one\ntwo")


def test_the_secret_is_not_in_repr() -> None:
    assert repr(AUTHOR.seed) not in repr(AUTHOR)


@pytest.mark.parametrize("password", [None, b"secret", "pässwörd".encode()])
def test_a_generated_key_opens_again(tmp_path: Path, password: bytes | None) -> None:
    secret, public = minisign.generate(password, **CHEAP)
    (tmp_path / "key").write_text(secret)
    (tmp_path / "key.pub").write_text(public)
    opened = minisign.load_secret(tmp_path / "key", lambda: password or no_password())
    assert opened.public == minisign.load_public(tmp_path / "key.pub") == minisign.parse_public(opened.public.text)


def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(minisign.generate(b"right", **CHEAP)[0])
    with pytest.raises(CapsulekitError, match="wrong password"):
        minisign.load_secret(tmp_path / "key", lambda: b"wrong")


def test_a_key_that_asks_for_more_memory_than_minisigns_is_refused(tmp_path: Path) -> None:
    lines = minisign.generate(b"x", **CHEAP)[0].split("\n")
    blob = bytearray(base64.b64decode(lines[1]))
    blob[38:54] = b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 2
    (tmp_path / "key").write_text(f"{lines[0]}\n{base64.b64encode(bytes(blob)).decode()}\n")
    with pytest.raises(CapsulekitError, match="more memory or time"):
        minisign.load_secret(tmp_path / "key", lambda: b"x")


@pytest.mark.parametrize("text", ["", "x", "untrusted comment: x\nRWQ=\n", "untrusted comment: x\n!!!\n", "a\nb\nc\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(CapsulekitError, match="not a minisign secret key"):
        minisign.load_secret(tmp_path / "key", no_password)
    with pytest.raises(TrustError, match="key: this is not a minisign public key"):
        minisign.load_public(tmp_path / "key")


def test_a_missing_key_file_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match=r"can't read the key .*: No such file") as public:
        minisign.load_public(tmp_path / "none.pub")
    assert public.value.hint is None
    with pytest.raises(CapsulekitError, match=r"can't read the key .*: No such file") as secret:
        minisign.load_secret(tmp_path / "none", no_password)
    assert secret.value.hint == f"make a pair with: capsulekit keygen {tmp_path / 'none'}"


def test_key_files_are_made_once_with_their_modes(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        key = minisign.create_key_files(tmp_path / "key", None)
    finally:
        os.umask(old)
    assert [p.stat().st_mode & 0o777 for p in (tmp_path / "key", tmp_path / "key.pub")] == [0o600, 0o644]
    assert minisign.load_secret(tmp_path / "key", no_password).public == key
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(CapsulekitError, match="never overwritten"):
        minisign.create_key_files(tmp_path / "key", None)
    (tmp_path / "key").unlink()
    with pytest.raises(CapsulekitError, match=r"key\.pub is there already"):
        minisign.create_key_files(tmp_path / "key", None)
    assert not (tmp_path / "key").exists()
    assert before


def test_a_key_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="can't write the key"):
        minisign.create_key_files(tmp_path / "none" / "key", None)
    assert not list(tmp_path.iterdir())


# --- the keyring


@pytest.fixture
def pub(tmp_path: Path) -> Path:
    path = tmp_path / "author.pub"
    path.write_text(AUTHOR.public.file_text)
    return path


def test_an_added_key_is_trusted_once(tmp_path: Path, pub: Path) -> None:
    ring = Keyring(tmp_path / "trust.d")
    assert ring.keys() == []
    ring.add(pub, dry_run=True)
    assert not (tmp_path / "trust.d").exists()
    ring.add(pub)
    ring.add(pub)
    (tmp_path / "trust.d" / "again.pub").write_text(AUTHOR.public.file_text)
    assert ring.keys() == [AUTHOR.public]


def test_a_revoked_key_does_not_come_back_unnoticed(tmp_path: Path, pub: Path) -> None:
    ring = Keyring(tmp_path / "trust.d")
    ring.add(pub)
    ring.revoke(AUTHOR.public.id.lower())
    assert ring.keys() == []
    assert [(one.key, one.revoked) for one in ring.list()] == [(AUTHOR.public, True)]
    with pytest.raises(TrustError, match="was revoked"):
        ring.add(pub)
    (tmp_path / "trust.d" / "dropped-in.pub").write_text(AUTHOR.public.file_text)
    assert ring.keys() == []
    ring.add(pub, again=True)
    assert ring.keys() == [AUTHOR.public]
    assert ring.revoked() == ()


def test_revoking_an_unknown_key_changes_nothing(tmp_path: Path, pub: Path) -> None:
    ring = Keyring(tmp_path / "trust.d")
    ring.add(pub)
    with pytest.raises(CapsulekitError, match="no trusted key"):
        ring.revoke(STRANGER.public.id)
    assert ring.keys() == [AUTHOR.public]
    assert ring.revoked() == ()


def test_another_key_under_a_trusted_id_is_refused(tmp_path: Path, pub: Path) -> None:
    ring = Keyring(tmp_path / "trust.d")
    ring.add(pub)
    pub.write_text(minisign.PublicKey(AUTHOR.key_id, STRANGER.public.key).file_text)
    with pytest.raises(TrustError, match="another key with the id"):
        ring.add(pub)


def test_a_file_in_the_keyring_that_is_no_key_is_named(tmp_path: Path, pub: Path) -> None:
    ring = Keyring(tmp_path / "trust.d")
    ring.add(pub)
    (tmp_path / "trust.d" / "bad.pub").write_text("nonsense")
    with pytest.raises(TrustError, match=r"bad\.pub"):
        ring.keys()
    (tmp_path / "trust.d" / "bad.pub").unlink()
    (tmp_path / "trust.d" / "revoked").write_text("nonsense")
    with pytest.raises(TrustError, match="a line that is no key"):
        ring.keys()
