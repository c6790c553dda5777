"""Every row of the normaliser's table does what it says, on a sample of what it is for."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs import fixes
from capsulekit.rootfs.normalise import Normaliser
from capsulekit.rootfs.table import ANY, FAMILIES, TABLE, Row, Rules, reference, regenerate_commands

EPOCH = 1_700_000_000
DAY = EPOCH // 86400
TEXT = b"made at install\n"


def key_store(*entries: tuple[bytes, int]) -> bytes:
    """A Java key store of certificates: (alias, date in ms), as keytool and p11-kit write it."""
    body = struct.pack(">III", 0xFEEDFEED, 2, len(entries))
    for alias, date in entries:
        body += struct.pack(">IH", 2, len(alias)) + alias + struct.pack(">QH", date, 5) + b"X.509"
        body += struct.pack(">I", 4) + b"cert"
    return body + hashlib.sha1("changeit".encode("utf-16-be") + b"Mighty Aphrodite" + body).digest()


def font_cache(checksum: int, pointer: str = "q") -> bytes:
    """The beginning of a fontconfig cache: magic, version, size, dir, dirs, dirs_count, set, checksum."""
    return struct.pack(f"@Ii3{pointer}i{pointer}i", 0xFC02FC04, 8, 144, 64, 64, 0, 88, checksum) + b"/usr/share/fonts\0"


def byte_code(flags: int) -> bytes:
    return b"\xa7\r\r\n" + struct.pack("<I", flags) + b"12345678code"


MDADM = b"HOMEHOST <system>\nARRAY /dev/md0 UUID=1\n# This configuration was auto-generated on Sun, 22 Nov by mkconf\n"
STORE = key_store((b"b", 5_000), (b"a", 7_000)), key_store((b"a", EPOCH * 1000), (b"b", EPOCH * 1000))
SHADOW = b"root:*:19999:0:99999:7:::\nuser:$y$x:1:0:99999:7:::\n"
NEW_SHADOW = b"root:*:%d:0:99999:7:::\nuser:$y$x:%d:0:99999:7:::\n" % (DAY, DAY)
ISCSI = b"InitiatorName=iqn.1993-08.org.debian:01:faa5265082ec\n"

# (glob, family) -> path, what is there before, and after (None: gone). A row without a sample fails.
SAMPLES: dict[tuple[str, str], tuple[str, bytes, bytes | None]] = {
    ("etc/machine-id", ANY): ("etc/machine-id", TEXT, b""),
    ("var/lib/dbus/machine-id", ANY): ("var/lib/dbus/machine-id", TEXT, None),
    ("etc/hostname", ANY): ("etc/hostname", TEXT, None),
    ("etc/resolv.conf", ANY): ("etc/resolv.conf", TEXT, None),
    ("etc/adjtime", ANY): ("etc/adjtime", b"0.0 1 0.0\n1\nUTC\n", None),
    ("etc/ssh/ssh_host_*", ANY): ("etc/ssh/ssh_host_ed25519_key.pub", TEXT, None),
    ("etc/munge/munge.key", ANY): ("etc/munge/munge.key", TEXT, None),
    ("etc/ssl/private/ssl-cert-snakeoil.key", "deb"): ("etc/ssl/private/ssl-cert-snakeoil.key", TEXT, None),
    ("etc/ssl/certs/ssl-cert-snakeoil.pem", "deb"): ("etc/ssl/certs/ssl-cert-snakeoil.pem", TEXT, None),
    ("etc/ssl/certs/java/cacerts", "deb"): ("etc/ssl/certs/java/cacerts", *STORE),
    ("etc/pki/ca-trust/extracted/java/cacerts", "rpm"): ("etc/pki/ca-trust/extracted/java/cacerts", *STORE),
    ("etc/mdadm/mdadm.conf", "deb"): ("etc/mdadm/mdadm.conf", MDADM, b"HOMEHOST <system>\n"),
    ("etc/iscsi/initiatorname.iscsi", "deb"): ("etc/iscsi/initiatorname.iscsi", ISCSI, b"GenerateName=yes\n"),
    ("etc/iscsi/initiatorname.iscsi", "rpm"): ("etc/iscsi/initiatorname.iscsi", ISCSI, None),
    ("etc/udev/rules.d/*-persistent-net.rules", ANY): ("etc/udev/rules.d/70-persistent-net.rules", TEXT, None),
    ("etc/udev/rules.d/*-persistent-cd.rules", ANY): ("etc/udev/rules.d/70-persistent-cd.rules", TEXT, None),
    ("etc/shadow", ANY): ("etc/shadow", SHADOW, NEW_SHADOW),
    ("etc/passwd-", ANY): ("etc/passwd-", TEXT, None),
    ("etc/shadow-", ANY): ("etc/shadow-", TEXT, None),
    ("etc/group-", ANY): ("etc/group-", TEXT, None),
    ("etc/gshadow-", ANY): ("etc/gshadow-", TEXT, None),
    ("etc/subuid-", ANY): ("etc/subuid-", TEXT, None),
    ("etc/subgid-", ANY): ("etc/subgid-", TEXT, None),
    ("etc/.pwd.lock", ANY): ("etc/.pwd.lock", TEXT, b""),
    ("etc/dpkg/dpkg.cfg.d/99mmdebstrap", "deb"): ("etc/dpkg/dpkg.cfg.d/99mmdebstrap", TEXT, None),
    ("etc/apt/apt.conf.d/99mmdebstrap", "deb"): ("etc/apt/apt.conf.d/99mmdebstrap", TEXT, None),
    ("etc/apt/apt.conf.d/01autoremove-kernels", "deb"): ("etc/apt/apt.conf.d/01autoremove-kernels", TEXT, None),
    ("var/cache/ldconfig/aux-cache", ANY): ("var/cache/ldconfig/aux-cache", TEXT, None),
    ("var/cache/fontconfig/*.cache-*", ANY): ("var/cache/fontconfig/38-le64.cache-8", font_cache(EPOCH - 1), None),
    ("**/__pycache__/*.pyc", ANY): ("usr/lib/python3/__pycache__/a.cpython-311.pyc", byte_code(0), None),
    ("var/cache/man/**", ANY): ("var/cache/man/de/index.db", TEXT, None),
    ("var/cache/debconf/*-old", "deb"): ("var/cache/debconf/config.dat-old", TEXT, None),
    ("var/lib/dpkg/*-old", "deb"): ("var/lib/dpkg/status-old", TEXT, None),
    ("var/lib/dpkg/lock*", "deb"): ("var/lib/dpkg/lock-frontend", TEXT, None),
    ("var/lib/apt/lists/**", "deb"): ("var/lib/apt/lists/partial/x_Packages", TEXT, None),
    ("var/lib/apt/extended_states", "deb"): ("var/lib/apt/extended_states", TEXT, None),
    ("var/cache/apt/*.bin", "deb"): ("var/cache/apt/pkgcache.bin", TEXT, None),
    ("var/cache/apt/archives/**", "deb"): ("var/cache/apt/archives/partial/a_1_all.deb", TEXT, None),
    ("var/lib/rpm/__db*", "rpm"): ("var/lib/rpm/__db.001", TEXT, None),
    ("var/lib/rpm/.*.lock", "rpm"): ("var/lib/rpm/.rpm.lock", b"", None),
    ("var/lib/rpm/rpmdb.sqlite-shm", "rpm"): ("var/lib/rpm/rpmdb.sqlite-shm", TEXT, None),
    ("var/lib/rpm/rpmdb.sqlite-wal", "rpm"): ("var/lib/rpm/rpmdb.sqlite-wal", b"", b""),
    ("usr/lib/sysimage/rpm/__db*", "rpm"): ("usr/lib/sysimage/rpm/__db.001", TEXT, None),
    ("usr/lib/sysimage/rpm/.*.lock", "rpm"): ("usr/lib/sysimage/rpm/.rpm.lock", b"", None),
    ("usr/lib/sysimage/rpm/rpmdb.sqlite-shm", "rpm"): ("usr/lib/sysimage/rpm/rpmdb.sqlite-shm", TEXT, None),
    ("usr/lib/sysimage/rpm/rpmdb.sqlite-wal", "rpm"): ("usr/lib/sysimage/rpm/rpmdb.sqlite-wal", b"", b""),
    ("usr/lib/sysimage/libdnf5/transaction_history.sqlite*", "rpm"): (
        "usr/lib/sysimage/libdnf5/transaction_history.sqlite-wal", TEXT, None,
    ),
    ("var/lib/dnf/history.sqlite*", "rpm"): ("var/lib/dnf/history.sqlite-wal", TEXT, None),
    ("var/lib/dnf/repos/**", "rpm"): ("var/lib/dnf/repos/x-1/countme", TEXT, None),
    ("var/lib/yum/**", "rpm"): ("var/lib/yum/history/history-2026.sqlite", TEXT, None),
    ("var/cache/dnf/**", "rpm"): ("var/cache/dnf/x.solv", TEXT, None),
    ("var/cache/libdnf5/**", "rpm"): ("var/cache/libdnf5/x/solv/x.solv", TEXT, None),
    ("var/cache/yum/**", "rpm"): ("var/cache/yum/x86_64/9/timedhosts", TEXT, None),
    ("var/log/**", ANY): ("var/log/apt/term.log", TEXT, b""),
    ("var/lib/systemd/random-seed", ANY): ("var/lib/systemd/random-seed", TEXT, None),
    ("var/lib/systemd/credential.secret", ANY): ("var/lib/systemd/credential.secret", TEXT, None),
    ("var/lib/systemd/catalog/database", ANY): ("var/lib/systemd/catalog/database", TEXT, None),
    ("var/lib/NetworkManager/secret_key", ANY): ("var/lib/NetworkManager/secret_key", TEXT, None),
    ("boot/**", ANY): ("boot/config-6.1", TEXT, None),
    ("run/**", ANY): ("run/lock/x", TEXT, None),
    ("tmp/**", ANY): ("tmp/left", TEXT, None),
    ("var/tmp/**", ANY): ("var/tmp/left", TEXT, None),
    ("dev/**", ANY): ("dev/null", TEXT, None),
}  # fmt: skip
# Logs that one row covers for every package manager.
LOGS = ["var/log/dpkg.log", "var/log/apt/term.log", "var/log/dnf.log", "var/log/dnf.rpm.log", "var/log/yum.log"]


def normalised(files: dict[str, bytes], family: str) -> tuple[dict[str, bytes], Normaliser]:
    """What is left of a root with these files, and the normaliser with its ledger."""
    source, sink = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=source, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source.seek(0)
    normaliser = Normaliser(EPOCH, family=family)
    normaliser.stream(source, sink)
    sink.seek(0)
    with tarfile.open(fileobj=sink) as tar:
        return {m.name.removeprefix("./"): f.read() for m in tar if (f := tar.extractfile(m))}, normaliser


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.family}:{row.glob}")
def test_every_row_does_what_it_says(row: Row) -> None:
    path, before, after = SAMPLES[row.glob, row.family]
    left, normaliser = normalised({path: before, "usr/share/kept": TEXT}, row.family)
    assert left == {"usr/share/kept": TEXT} | ({} if after is None else {path: after})
    assert normaliser.ledger.rows == {row.glob: 1}
    assert (after is None) is (row.action in ("remove", "regenerate")) and (row.action != "empty" or after == b"")


def test_the_samples_name_no_row_that_is_gone_and_no_row_stands_twice() -> None:
    assert [*SAMPLES] == [(row.glob, row.family) for row in TABLE]


def test_every_row_says_why_and_carries_what_its_action_needs() -> None:
    for row in TABLE:
        assert row.why and row.family in (*FAMILIES, ANY), row
        assert row.action in ("remove", "empty", "fix", "regenerate"), row
        assert (row.fix is not None) is (row.action == "fix"), row
        assert (row.fresh is not None) is (row.command is not None) is (row.action == "regenerate"), row


@pytest.mark.parametrize("path", LOGS)
def test_every_package_managers_logs_are_emptied(path: str) -> None:
    for family in (*FAMILIES, ANY):
        assert normalised({path: TEXT}, family)[0] == {path: b""}


def test_a_row_of_the_other_family_does_nothing() -> None:
    path = "etc/iscsi/initiatorname.iscsi"
    assert normalised({path: ISCSI, "var/lib/yum/x": TEXT}, "deb")[0] == {
        path: b"GenerateName=yes\n", "var/lib/yum/x": TEXT,
    }  # fmt: skip
    assert normalised({path: ISCSI, "var/lib/dpkg/lock": TEXT}, "rpm")[0] == {"var/lib/dpkg/lock": TEXT}


def test_an_unknown_family_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="no family apt"):
        Rules("apt")


def test_a_row_is_reported_when_what_leaves_its_paths_is_there_and_it_matches_nothing() -> None:
    fonts = "var/cache/fontconfig/*.cache-*"
    assert normalised({"usr/share/x": TEXT}, "deb")[1].ledger.unmatched() == []
    _, normaliser = normalised({"usr/bin/fc-cache": TEXT, "usr/bin/update-ca-trust": TEXT}, "deb")
    assert normaliser.ledger.unmatched() == [fonts]
    _, normaliser = normalised({"usr/bin/fc-cache": TEXT, "usr/bin/update-ca-trust": TEXT}, "rpm")
    assert normaliser.ledger.unmatched() == ["etc/pki/ca-trust/extracted/java/cacerts", fonts]
    _, normaliser = normalised({"bin/fc-cache": TEXT, "var/cache/fontconfig/x-le64.cache-8": TEXT}, "deb")
    assert normaliser.ledger.unmatched() == []


# --- what is made again


@pytest.mark.parametrize("pointer", ["q", "i"])
def test_a_font_cache_that_was_made_again_stays(pointer: str) -> None:
    path = "var/cache/fontconfig/38-le64.cache-8"
    made, old = font_cache(EPOCH, pointer), font_cache(EPOCH + 1, pointer)
    assert normalised({path: made}, "deb")[0] == {path: made}
    assert normalised({path: old}, "deb")[0] == {}


@pytest.mark.parametrize(("flags", "stays"), [(0b00, False), (0b01, True), (0b11, False)])
def test_only_byte_code_that_is_never_checked_against_its_source_stays(flags: int, stays: bool) -> None:
    path = "usr/lib/python3/__pycache__/a.cpython-311.pyc"
    assert (path in normalised({path: byte_code(flags) * 100}, "rpm")[0]) is stays
    assert normalised({path: byte_code(0b01) * 100}, "rpm")[0] == {path: byte_code(0b01) * 100}


@pytest.mark.parametrize("short", [b"", b"\xa7\r\r\n", b"\x04\xfc"])
def test_a_cache_cut_short_goes(short: bytes) -> None:
    files = {"x/__pycache__/a.cpython-311.pyc": short, "var/cache/fontconfig/38-le64.cache-8": short}
    assert normalised(files, "deb")[0] == {}


# A root of its own on a tmpfs, with this machine's programs in it, read-only; the command's -xdev leaves them out.
ENTER = """
    mount -t tmpfs tmpfs "$1/root"; mkdir "$1/root/usr" "$1/root/dev"; cp -a "$1/srv" "$1/root/srv"
    mount --bind /usr "$1/root/usr"; mount -o remount,bind,ro "$1/root/usr"; mount --bind /dev "$1/root/dev"
    [ "$(stat -c %d "$1/root")" != "$(stat -c %d "$1/root/usr")" ]
    for link in bin lib lib64 sbin; do [ ! -L "/$link" ] || ln -s "usr/$link" "$1/root/$link"; done
    chroot "$1/root" /bin/sh -c "$2"
    cp -a "$1/root/srv" "$1/made"
"""


def test_the_byte_code_command_makes_unchecked_byte_code_where_there_was_some(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for folder, code in (("used", "a = {'x', 'y', 'z'}\n"), ("unused", "b = 1\n"), ("bad", "def\n")):
        (tmp_path / "srv" / folder).mkdir(parents=True)
        (tmp_path / "srv" / folder / "mod.py").write_text(code)
    for folder in ("used", "bad"):
        (tmp_path / "srv" / folder / "__pycache__").mkdir()
        (tmp_path / "srv" / folder / "__pycache__/gone.cpython-38.pyc").write_bytes(byte_code(0))
    command = next(line for program, line in regenerate_commands() if program == "/usr/bin/python3")
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", ENTER, "sh", tmp_path, command]
    subprocess.run(argv, check=True, timeout=60)
    (made,) = (tmp_path / "made").glob("*/__pycache__/*")
    assert made.parts[-3] == "used" and re.fullmatch(r"mod\.cpython-\d+\.pyc", made.name)
    first = made.read_bytes()
    assert fixes.unchecked_byte_code(first, 0)
    (tmp_path / "made").rename(tmp_path / "before")
    subprocess.run(argv, check=True, timeout=60)
    assert made.read_bytes() == first


# --- what is left alone by the fixes


def test_an_authors_own_mdadm_conf_stays() -> None:
    own = b"ARRAY /dev/md0 UUID=1\nMAILADDR ops\n"
    assert fixes.mdadm(own, EPOCH) == own


def test_a_key_store_of_another_kind_stays() -> None:
    store = key_store((b"a", 1))
    private = struct.pack(">III", 0xFEEDFEED, 2, 1) + struct.pack(">IH", 1, 1) + b"k" + bytes(30)
    private += hashlib.sha1("changeit".encode("utf-16-be") + b"Mighty Aphrodite" + private).digest()
    for other in (b"", b"\x30\x82 a PKCS12 store" * 9, store[:-1] + b"\0", private):
        assert fixes.key_store(other, EPOCH) == other


def test_key_stores_that_differ_in_times_and_order_become_one() -> None:
    one, two = key_store((b"x", 1), (b"y", 2), (b"z", 3)), key_store((b"z", 9), (b"x", 8), (b"y", 7))
    assert fixes.key_store(one, EPOCH) == fixes.key_store(two, EPOCH) != one


def test_an_rpm_database_that_was_not_closed_is_refused() -> None:
    with pytest.raises(CapsulekitError, match="the rpm database was not closed"):
        normalised({"var/lib/rpm/rpmdb.sqlite-wal": b"pages"}, "rpm")


def test_the_reference_page_is_current() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/normaliser.md").read_text(encoding="utf-8")
    assert page == reference(), "write capsulekit.rootfs.table.reference() to docs/reference/normaliser.md"
