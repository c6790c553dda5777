"""The normaliser: what every path of a root keeps and loses while its tar streams by (the table has its own tests)."""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs.normalise import WATCHED, Ledger, Normaliser
from capsulekit.rootfs.root import acl_text

EPOCH = 1_700_000_000
TEXT = b"made at install\n"
SHADOW = b"root:*:19999:0:99999:7:::\nuser:$y$x:1:0:99999:7:::\n"


def entry(name: str, data: bytes | None = TEXT, **fields: object) -> tuple[tarfile.TarInfo, bytes | None]:
    info = tarfile.TarInfo(name)
    info.mtime, info.uname, info.gname = 12345.678, "someone", "somegroup"  # type: ignore[assignment]
    info.size = len(data or b"")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def packed(*entries: tuple[tarfile.TarInfo, bytes | None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data) if data is not None else None)
    return out.getvalue()


def normalised(data: bytes, init: str = "/sbin/init") -> tuple[dict[str, tuple[tarfile.TarInfo, bytes]], Ledger, bytes]:
    sink = io.BytesIO()
    ledger = Normaliser(EPOCH, init).stream(io.BytesIO(data), sink)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue()), errors="surrogateescape", encoding="utf-8") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            found[member.name.removeprefix("./")] = (member, content.read() if content else b"")
    return found, ledger, sink.getvalue()


def test_the_day_of_the_last_password_change_becomes_the_builds_day() -> None:
    found, _, _ = normalised(packed(entry("etc/shadow", SHADOW, mode=0o640, gid=42)))
    day = EPOCH // 86400
    assert found["etc/shadow"][1] == b"root:*:%d:0:99999:7:::\nuser:$y$x:%d:0:99999:7:::\n" % (day, day)
    assert (found["etc/shadow"][0].mode, found["etc/shadow"][0].gid) == (0o640, 42)


def test_neighbours_of_the_table_are_spared() -> None:
    spared = ["etc/alternatives/x-", "etc/machine-id.d", "etc/ssh/sshd_config", "etc/hostnames", "usr/boot/x", "devel"]
    found, ledger, _ = normalised(packed(*(entry("./" + name) for name in spared)))
    assert set(found) == set(spared) and not ledger.rows


def test_links_of_names_that_only_files_are_removed_under_stay() -> None:
    link = {"type": tarfile.SYMTYPE, "linkname": "../run/systemd/resolve/stub-resolv.conf"}
    found, _, _ = normalised(
        packed(entry("./etc/resolv.conf", None, **link), entry("./var/log/apt", None, type=tarfile.DIRTYPE, mode=0o750))
    )
    assert found["etc/resolv.conf"][0].issym() and found["var/log/apt"][0].mode == 0o750


# --- what every path keeps and loses


def test_times_and_names_of_owners_go_and_everything_else_stays() -> None:
    found, ledger, raw = normalised(
        packed(
            entry("./", None, type=tarfile.DIRTYPE),
            entry("./usr/bin/sudo", b"elf", mode=0o4755, uid=0, gid=1_000_000_000),
            entry("./p", None, type=tarfile.FIFOTYPE, mode=0o600),
            entry("./c", None, type=tarfile.CHRTYPE, devmajor=5, devminor=1),
            entry("./b", None, type=tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("./d", None, type=tarfile.DIRTYPE, mode=0o1777),
            entry("./l", None, type=tarfile.SYMTYPE, linkname="/usr/bin/sudo"),
        )
    )
    sudo = found["usr/bin/sudo"][0]
    assert (sudo.mode, sudo.gid) == (0o4755, 1_000_000_000)
    assert found["p"][0].isfifo() and found["d"][0].mode == 0o1777 and found["l"][0].linkname == "/usr/bin/sudo"
    assert (found["c"][0].devmajor, found["c"][0].devminor, found["b"][0].isblk()) == (5, 1, True)
    assert {(m.mtime, m.uname, m.gname) for m, _ in found.values()} == {(EPOCH, "", "")}
    assert b"someone" not in raw and b"mtime" not in raw
    assert (ledger.paths, ledger.unpacked) == (6, 3)


def test_the_same_root_packed_at_another_time_by_another_user_gives_the_same_bytes() -> None:
    names = ("usr/bin/a", "etc/shadow", "var/log/x")
    one = normalised(packed(*(entry(n, SHADOW) for n in names)))[2]
    two = normalised(packed(*(entry(n, SHADOW, mtime=1, uname="", gname="root") for n in names)))[2]
    assert one == two


CAPABILITY = struct.pack("<5I", 0x2000001, 0xFFFFFFFF, 0, 0x80, 0)


def xattr(**values: bytes) -> dict[str, str]:
    return {f"SCHILY.xattr.{k.replace('__', '.')}": v.decode("utf-8", "surrogateescape") for k, v in values.items()}


def test_binary_attributes_survive_and_trusted_ones_go() -> None:
    given = xattr(security__capability=CAPABILITY, user__bin=b"\xff\x00\n=\xfe", trusted__overlay__origin=b"\x01")
    found, _, raw = normalised(packed(entry("usr/bin/ping", pax_headers=given), entry("usr/bin/other")))
    kept = found["usr/bin/ping"][0].pax_headers
    values = {k: v.encode("utf-8", "surrogateescape") for k, v in kept.items() if k.startswith("SCHILY")}
    assert values == {"SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.xattr.user.bin": b"\xff\x00\n=\xfe"}
    assert CAPABILITY in raw and b"trusted" not in raw
    assert not [k for k in found["usr/bin/other"][0].pax_headers if k.startswith("SCHILY")]


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 7, NOBODY), (2, 5, 1000), (4, 5, NOBODY), (8, 4, 4), (16, 5, NOBODY), (32, 0, NOBODY))


def test_acls_are_listed_beside_the_layer_with_escaped_paths() -> None:
    given = {"SCHILY.acl.access": "user::rwx", **xattr(system__posix_acl_access=ACCESS)}
    default = xattr(system__posix_acl_default=acl((1, 7, NOBODY), (4, 5, NOBODY), (32, 5, NOBODY)))
    found, ledger, raw = normalised(
        packed(
            entry("./var/log/journal", None, type=tarfile.DIRTYPE, pax_headers=given),
            entry("./a b%\n\udcff", None, type=tarfile.DIRTYPE, pax_headers=default),
        )
    )
    assert acl_text(ledger.acls).decode("ascii").splitlines() == [
        "a%20b%25%0A%FF\tdefault\tu::rwx,g::r-x,o::r-x",
        "var/log/journal\taccess\tu::rwx,u:1000:r-x,g::r-x,g:4:r--,m::r-x,o::---",
    ]
    assert b"posix_acl" not in raw and b"SCHILY.acl" not in raw and len(found) == 2


@pytest.mark.parametrize("value", [b"", b"\x02\0\0", struct.pack("<I", 3), ACCESS[:-1], acl((64, 7, 0))])
def test_an_acl_that_is_not_understood_fails_the_build(value: bytes) -> None:
    with pytest.raises(CapsulekitError, match="/x has an ACL"):
        acl_text([("x", "access", value)])


def test_an_acl_that_is_there_as_text_only_is_never_lost_in_silence() -> None:
    with pytest.raises(CapsulekitError, match="/x: the tar holds its ACL as text only"):
        normalised(packed(entry("x", pax_headers={"SCHILY.acl.access": "user::rwx"})))


def test_hard_links_stay_links() -> None:
    link = {"type": tarfile.LNKTYPE, "linkname": "./usr/bin/perl", "size": 0}
    found, ledger, _ = normalised(packed(entry("./usr/bin/perl", b"elf"), entry("./usr/bin/perl5.36", None, **link)))
    assert found["usr/bin/perl5.36"][0].islnk() and ledger.unpacked == 3


def test_a_hard_link_to_a_removed_path_is_named() -> None:
    link = {"type": tarfile.LNKTYPE, "linkname": "./var/cache/man/x", "size": 0}
    with pytest.raises(CapsulekitError, match=r"/usr/share/x is a hard link to a path the normaliser removes"):
        normalised(packed(entry("./var/cache/man/x"), entry("./usr/share/x", None, **link)))


def test_names_that_are_not_utf_8_or_very_long_survive() -> None:
    names = ["caf\udce9", "é" * 60, "d/" * 150 + "x", "back\\slash", "new\nline"]
    found, _, raw = normalised(packed(*(entry("./" + n) for n in names)))
    assert set(found) == set(names)
    assert b"caf\xe9" in raw


@pytest.mark.parametrize("language", ["C", "C.UTF-8", "POSIX"])
def test_the_callers_locale_changes_nothing(tmp_path: Path, language: str) -> None:
    data = packed(entry("caf\udce9", pax_headers=xattr(security__capability=CAPABILITY)), entry("é"))
    code = (
        "import sys; from capsulekit.rootfs.normalise import Normaliser;"
        f"Normaliser({EPOCH}).stream(sys.stdin.buffer, sys.stdout.buffer)"
    )
    python = Path(__file__).parents[2] / ".venv/bin/python"
    done = subprocess.run(
        [python, "-X", "utf8=0", "-c", code],
        input=data, capture_output=True, check=True, env={"LC_ALL": language, "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.stdout == normalised(data)[2]


@pytest.mark.parametrize("cut", [700, 1100, 1536 + 100])
def test_a_stream_that_breaks_off_is_an_error(cut: int) -> None:
    data = packed(entry("a", b"x" * 600), entry("b", b"y" * 600))
    with pytest.raises(CapsulekitError, match="broke off"):
        normalised(data[:cut])


def test_the_ledger_says_whether_usr_is_merged_and_init_is_there() -> None:
    merged = entry("./lib", None, type=tarfile.SYMTYPE, linkname="usr/lib")
    assert normalised(packed(merged, entry("./usr/sbin/init")))[1].merged_usr
    plain = normalised(packed(entry("./lib", None, type=tarfile.DIRTYPE), entry("./sbin/init")))[1]
    assert (plain.merged_usr, plain.has_init) == (False, True)
    assert normalised(packed(merged, entry("./usr/sbin/init")))[1].has_init
    assert not normalised(packed(entry("./sbin/init")), init="/usr/bin/other")[1].has_init


def test_byte_code_that_goes_takes_its_other_names_with_it() -> None:
    folder = "./usr/lib/python3/__pycache__"
    link = {"type": tarfile.LNKTYPE, "linkname": f"{folder}/a.cpython-39.opt-1.pyc", "size": 0}
    files = (entry(f"{folder}/a.cpython-39.opt-1.pyc", bytes(40)), entry(f"{folder}/a.cpython-39.pyc", None, **link))
    assert set(normalised(packed(*files, entry("./x")))[0]) == {"x"}


class Papers:
    """Collects what it is shown."""

    def __init__(self) -> None:
        self.seen: dict[str, bytes] = {}

    def wants(self, path: str) -> bool:
        return path.endswith("copyright")

    def see(self, path: str, data: bytes) -> None:
        self.seen[path] = data


def test_a_watcher_sees_the_files_it_wants_and_they_are_not_changed() -> None:
    papers, sink = Papers(), io.BytesIO()
    data = packed(
        entry("./usr/share/doc/a/copyright", b"License: MIT\n"),
        entry("./usr/share/doc/b/copyright", None, type=tarfile.SYMTYPE, linkname="../a/copyright"),
        entry("./usr/share/doc/c/copyright", b"x" * (WATCHED + 1)),
        entry("./usr/share/doc/a/README"),
    )
    Normaliser(EPOCH, see=papers).stream(io.BytesIO(data), sink)
    assert papers.seen == {"usr/share/doc/a/copyright": b"License: MIT\n"}
    assert sink.getvalue() == normalised(data)[2]


def test_memory_does_not_grow_with_the_number_of_paths() -> None:
    def peak(number: int) -> int:
        data = packed(*(entry(f"./usr/share/{n:06}") for n in range(number)))
        with Path("/dev/null").open("wb") as sink:
            tracemalloc.start()
            Normaliser(EPOCH).stream(io.BytesIO(data), sink)
            used = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return used

    assert peak(4000) < peak(400) + (1 << 18)
