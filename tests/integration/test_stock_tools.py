"""The promise of the format: stock tar, minisign and sha256sum check a capsule without us, and their keys are ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest
from small_capsule import AUTHOR, CONTENT, EPOCH, layer, manifest, small_capsule

from capsulekit.capsule.read import open_capsule, verify
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.errors import CapsulekitError
from capsulekit.trust import minisign

pytestmark = pytest.mark.skipif(not shutil.which("minisign"), reason="needs minisign")
PROGRAM = shutil.which("capsulekit") or str(Path(__file__).parents[2] / ".venv/bin/capsulekit")


def sh(folder: Path, *argv: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(a) for a in argv], cwd=folder, input=stdin, capture_output=True, text=True, check=False, timeout=120
    )


def ok(folder: Path, *argv: str | Path, stdin: str = "") -> str:
    done = sh(folder, *argv, stdin=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def capsule(tmp_path: Path) -> Path:
    small_capsule(tmp_path / "t.vnfs")
    (tmp_path / "author.pub").write_text(AUTHOR.public.file_text)
    return tmp_path / "t.vnfs"


def test_the_two_line_check_works_with_stock_tools(capsule: Path) -> None:
    folder = capsule.parent
    ok(folder, "tar", "xf", "t.vnfs")
    out = ok(folder, "sh", "-c", "minisign -Vm SHA256SUMS -p author.pub && sha256sum -c --strict SHA256SUMS")
    assert f"Trusted comment: {manifest().trusted_comment}\n" in out
    assert out.count(": OK\n") == len(CONTENT) + 1
    (folder / "boot/vmlinuz").write_bytes(b"other")
    assert sh(folder, "sha256sum", "-c", "SHA256SUMS").returncode == 1


def test_stock_tar_packs_the_same_bytes(capsule: Path) -> None:
    folder = capsule.parent
    names = ok(folder, "tar", "tf", "t.vnfs").split()
    ok(folder, "tar", "xf", "t.vnfs")
    how = ("--format=ustar", "--owner=0", "--group=0", "--numeric-owner", "--mode=0644", f"--mtime=@{EPOCH}")
    ok(folder, "tar", "cf", "again.tar", *how, *names)
    assert (folder / "again.tar").read_bytes() == capsule.read_bytes()
    with open_capsule(folder / "again.tar") as again:
        assert verify(again, [AUTHOR.public]).manifest == manifest()


def test_what_stock_minisign_signs_is_accepted_by_us_and_the_other_way_round(tmp_path: Path) -> None:
    ok(tmp_path, "minisign", "-G", "-W", "-p", "their.pub", "-s", "their.key")
    key = minisign.load_secret(tmp_path / "their.key", lambda: b"never asked")
    public = minisign.load_public(tmp_path / "their.pub")
    assert key.public == public
    (tmp_path / "data").write_bytes(b"some data\n")
    ok(tmp_path, "minisign", "-S", "-s", "their.key", "-m", "data", "-t", "their comment")
    text = (tmp_path / "data.minisig").read_text()
    assert minisign.verify(b"some data\n", text, public) == "their comment"
    (tmp_path / "data.minisig").write_text(minisign.sign(b"some data\n", key, "our comment"))
    assert ok(tmp_path, "minisign", "-VQm", "data", "-p", "their.pub") == "our comment\n"
    assert ok(tmp_path, "minisign", "-VQm", "data", "-P", public.text) == "our comment\n"
    assert public.id in (tmp_path / "their.pub").read_text().splitlines()[0]


def test_our_signatures_are_those_that_minisign_makes(tmp_path: Path) -> None:
    ok(tmp_path, "minisign", "-G", "-W", "-p", "k.pub", "-s", "k.key")
    (tmp_path / "data").write_bytes(b"x" * 100_000)
    ok(tmp_path, "minisign", "-S", "-s", "k.key", "-m", "data", "-t", "same")
    ours = minisign.sign(b"x" * 100_000, minisign.load_secret(tmp_path / "k.key", lambda: b""), "same")
    assert ours.split("\n")[1:] == (tmp_path / "data.minisig").read_text().split("\n")[1:]


@pytest.mark.long
def test_a_password_key_of_minisign_opens_for_us(tmp_path: Path) -> None:
    ok(tmp_path, "minisign", "-G", "-p", "k.pub", "-s", "k.key", stdin="a secret\na secret\n")
    key = minisign.load_secret(tmp_path / "k.key", lambda: b"a secret")
    assert key.public == minisign.load_public(tmp_path / "k.pub")
    with pytest.raises(CapsulekitError, match="wrong password"):
        minisign.load_secret(tmp_path / "k.key", lambda: b"another")


@pytest.mark.long
def test_our_keys_sign_with_minisign(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"data")
    for name, password in (("plain", None), ("locked", b"a secret")):
        key = minisign.create_key_files(tmp_path / name, password)
        ok(tmp_path, "minisign", "-S", "-s", name, "-m", "data", "-t", name, stdin="a secret\n" if password else "")
        assert minisign.verify(b"data", (tmp_path / "data.minisig").read_text(), key) == name
        # minisign makes the public file anew from the secret one.
        ok(tmp_path, "minisign", "-f", "-R", "-s", name, "-p", "again.pub", stdin="a secret\n" if password else "")
        assert minisign.load_public(tmp_path / "again.pub") == key


# --- the commands


def kit(folder: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    return sh(folder, PROGRAM, "--config-dir", folder / "etc", "--state-dir", folder / "var", *argv)


def test_keygen_without_a_terminal_says_how_and_writes_nothing(tmp_path: Path) -> None:
    done = kit(tmp_path, "keygen", "k")
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "no terminal" in done.stderr and "--no-password" in done.stderr


def test_keygen_makes_a_pair_and_never_overwrites_it(tmp_path: Path) -> None:
    assert kit(tmp_path, "keygen", "k", "--no-password").returncode == 0
    assert [(tmp_path / n).stat().st_mode & 0o777 for n in ("k", "k.pub")] == [0o600, 0o644]
    before = (tmp_path / "k").read_bytes(), (tmp_path / "k.pub").read_bytes()
    again = kit(tmp_path, "keygen", "k", "--no-password")
    assert again.returncode == 1 and "never overwritten" in again.stderr
    assert ((tmp_path / "k").read_bytes(), (tmp_path / "k.pub").read_bytes()) == before


@pytest.mark.long
def test_keygen_asks_twice_at_a_terminal(tmp_path: Path) -> None:
    with pexpect.spawn(PROGRAM, ["keygen", str(tmp_path / "k")], timeout=60, encoding="utf-8") as child:
        for prompt, answer in ((r"Password for .*: ", "one"), ("Again: ", "two")):
            child.expect(prompt)
            child.sendline(answer)
        child.expect("do not match")
        for prompt in (r"Password for .*: ", "Again: "):
            child.expect(prompt)
            child.sendline("the secret")
        child.expect(pexpect.EOF)
    assert "the secret" not in (child.before or "")
    assert child.exitstatus == 0
    key = minisign.load_secret(tmp_path / "k", lambda: b"the secret")
    assert key.public == minisign.load_public(tmp_path / "k.pub")


def test_verify_prints_one_line_or_ends_with_status_3(capsule: Path) -> None:
    folder = capsule.parent
    done = kit(folder, "verify", "t.vnfs", "--pubkey", "author.pub")
    with open_capsule(capsule) as opened:
        identity = verify(opened, [AUTHOR.public]).identity
    assert done.stdout == f"OK tiny-1.0.amd64 identity={identity} key={AUTHOR.public.id}\n"
    assert done.returncode == 0
    done = kit(folder, "verify", "t.vnfs")
    assert (done.returncode, done.stdout) == (3, "")
    assert "not trusted here" in done.stderr and "capsulekit trust add" in done.stderr
    minisign.create_key_files(folder / "other", None)
    done = kit(folder, "verify", "t.vnfs", "--pubkey", "other.pub")
    assert done.returncode == 3 and "no --pubkey holds that key" in done.stderr and "trust add" not in done.stderr
    capsule.write_bytes(capsule.read_bytes()[:-5000])
    done = kit(folder, "verify", "t.vnfs", "--pubkey", "author.pub")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert kit(folder, "verify", "none.vnfs", "--pubkey", "author.pub").returncode == 1


def test_trust_add_list_and_revoke_decide_what_verify_accepts(capsule: Path) -> None:
    folder = capsule.parent
    assert kit(folder, "trust", "add", "author.pub", "--dry-run").stdout.endswith("would be trusted\n")
    assert not (folder / "etc").exists()
    assert kit(folder, "trust", "add", "author.pub").stdout == f"key {AUTHOR.public.id} is trusted\n"
    assert kit(folder, "verify", "t.vnfs").returncode == 0
    assert AUTHOR.public.text in kit(folder, "trust", "list").stdout
    refused = kit(folder, "trust", "revoke", AUTHOR.public.id)
    assert refused.returncode == 1 and "nothing was changed" in refused.stderr
    assert kit(folder, "trust", "revoke", AUTHOR.public.id, "-y").returncode == 0
    done = kit(folder, "verify", "t.vnfs")
    assert done.returncode == 3 and "was revoked" in done.stderr
    assert kit(folder, "trust", "add", "author.pub").returncode == 3
    assert kit(folder, "trust", "add", "author.pub", "--again").returncode == 0
    assert kit(folder, "verify", "t.vnfs").returncode == 0


def test_inspect_tells_a_known_author_from_an_unknown_one(capsule: Path) -> None:
    unknown = kit(capsule.parent, "inspect", "t.vnfs")
    assert unknown.returncode == 0 and "NOT VERIFIED" in unknown.stdout
    known = kit(capsule.parent, "inspect", "t.vnfs", "--pubkey", "author.pub")
    assert known.returncode == 0 and "NOT VERIFIED" not in known.stdout
    assert '"verified": false' in kit(capsule.parent, "inspect", "t.vnfs", "--json").stdout


# --- a full disk


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(3 << 20)
    content = {**CONTENT, "layers/rootfs.squashfs": big.read_bytes()}
    told = manifest(
        content,
        layers=(
            layer("layers/modules.squashfs", content),
            layer("layers/rootfs.squashfs", content, acl="layers/rootfs.acl"),
        ),
    )
    members = [Member(n, big if n == "layers/rootfs.squashfs" else data) for n, data in content.items()]
    with small_disk(tmp_path / "disk", "1m") as disk:
        (disk / "t.vnfs").write_bytes(b"the old one")
        with pytest.raises(CapsulekitError, match=r"can't write .*t\.vnfs: No space left on device") as caught:
            write_capsule(disk / "t.vnfs", told, members, AUTHOR)
        assert "\n" not in caught.value.message
        assert [p.name for p in disk.iterdir()] == ["t.vnfs"]
        assert (disk / "t.vnfs").read_bytes() == b"the old one"
