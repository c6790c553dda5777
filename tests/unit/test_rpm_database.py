"""The rpm database: what varies between two installs goes, everything else stays and can be looked up."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.rpm import header, rpmdb
from capsulekit.rpm.header import Header, NoHeader, package_header

EPOCH = 1_700_000_000
INT32, STRING, ARRAY = 4, 6, 8


def blob(tags: Mapping[int, int | str | Sequence[int] | Sequence[str]]) -> bytes:
    """A header as the database keeps it (rpm's docs/manual/hregions.md)."""
    rows, data = b"", b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, int | str):
            values: Sequence[int] | Sequence[str] = [value]  # type: ignore[assignment]
        else:
            values = value
        if isinstance(values[0], int):
            data += b"\0" * (-len(data) % 4)
            kind, new = INT32, struct.pack(f">{len(values)}I", *values)
        else:
            kind = STRING if isinstance(value, str) else ARRAY
            new = b"".join(str(v).encode("utf-8", "surrogateescape") + b"\0" for v in values)
        rows += struct.pack(">IIII", tag, kind, len(data), len(values))
        data += new
    return struct.pack(">II", len(tags), len(data)) + rows + data


def package(name: str, time: int) -> bytes:
    tags: dict[int, int | str | Sequence[int] | Sequence[str]] = {
        header.NAME: name, header.VERSION: "1", header.RELEASE: "2", header.EPOCH: 3, header.ARCH: "noarch",
        header.INSTALLTIME: time, header.INSTALLTID: time, header.LICENSE: "MIT",
        header.DIRNAMES: ["/usr/share/", "/etc/"], header.DIRINDEXES: [0, 1], header.BASENAMES: [name, "\udcff" + name],
    }  # fmt: skip
    return blob(tags)


def database(folder: Path, names: Sequence[str], time: int) -> Path:
    """What rpm would write for these packages, installed in this order."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "rpmdb.sqlite")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
        for table, kind in (("Name", "TEXT"), ("Basenames", "TEXT"), ("Installtid", "BLOB")):
            db.execute(f"CREATE TABLE '{table}' (key '{kind}' NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL)")
            db.execute(f"CREATE INDEX '{table}_key_idx' ON '{table}'(key ASC)")
        for name in ["dropped", *names]:
            number = db.execute("INSERT INTO Packages (blob) VALUES (?)", (package(name, time),)).lastrowid
            db.execute("INSERT INTO Name VALUES (?, ?, 0)", (name, number))
            rows = [(name.encode(), number, 0), (b"\xff" + name.encode(), number, 1)]
            db.executemany("INSERT INTO Basenames VALUES (CAST(? AS TEXT), ?, ?)", rows)
            db.execute("INSERT INTO Installtid VALUES (?, ?, 0)", (struct.pack("=I", time), number))
        for table in ("Packages", "Name", "Basenames", "Installtid"):
            db.execute(f"DELETE FROM {table} WHERE hnum = 1")
        db.commit()
    (folder / ".rpm.lock").touch()
    return folder


def test_order_and_time_of_the_install_leave_no_trace(tmp_path: Path) -> None:
    one = database(tmp_path / "one", ["bash", "acl", "zlib"], 1_800_000_000)
    two = database(tmp_path / "two", ["zlib", "bash", "acl"], 1_811_111_111)
    rpmdb.normalise(one, EPOCH)
    rpmdb.normalise(two, EPOCH)
    assert (one / "rpmdb.sqlite").read_bytes() == (two / "rpmdb.sqlite").read_bytes()
    assert [path.name for path in one.iterdir()] == ["rpmdb.sqlite"]


def test_every_row_still_leads_to_its_package(tmp_path: Path) -> None:
    folder = database(tmp_path / "db", ["zlib", "acl"], 1_800_000_000)
    rpmdb.normalise(folder, EPOCH)
    with closing(sqlite3.connect(f"file:{folder}/rpmdb.sqlite?immutable=1", uri=True)) as db:
        db.text_factory = bytes
        for name in ("zlib", "acl"):
            (found,) = db.execute("SELECT blob FROM Packages JOIN Name USING (hnum) WHERE key = ?", (name,)).fetchone()
            assert Header(found).name == name
        keys = {key for (key,) in db.execute("SELECT key FROM Basenames")}
        assert keys == {b"zlib", b"acl", b"\xffzlib", b"\xffacl"}, "a name that is no UTF-8 is kept as it is"
        assert db.execute("SELECT DISTINCT key FROM Installtid").fetchall() == [(struct.pack("=I", EPOCH),)]


def test_only_the_times_of_a_package_change(tmp_path: Path) -> None:
    folder = database(tmp_path / "db", ["acl"], 1_800_000_000)
    rpmdb.normalise(folder, EPOCH)
    (after,) = rpmdb.headers(folder / "rpmdb.sqlite")
    assert after.blob == package("acl", EPOCH)


def test_file_owners_names_each_path_as_its_package_spells_it(tmp_path: Path) -> None:
    folder = database(tmp_path / "db", ["acl"], 5)
    rpmdb.normalise(folder, EPOCH)
    assert rpmdb.file_owners(folder / "rpmdb.sqlite") == {"/usr/share/acl": "acl", "/etc/\udcffacl": "acl"}


def test_a_header_says_epoch_version_release_and_licence() -> None:
    found = Header(package("acl", 5))
    assert (found.name, found.version, found.arch, found.licence) == ("acl", "3:1-2", "noarch", "MIT")


@pytest.mark.parametrize("length", [0, 7, 8, 40, 200])
def test_a_header_that_was_cut_short_is_refused(length: int) -> None:
    whole = package("acl", 5)
    with pytest.raises(NoHeader):
        Header(whole[:length])


def test_a_file_that_is_no_package_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.rpm"
    path.write_bytes(b"\xed\xab\xee\xdb" + b"\0" * 300)
    with pytest.raises(NoHeader, match=r"x\.rpm: not an RPM package"):
        package_header(path)


def test_a_root_whose_packages_came_with_another_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="another kind of rpm database"):
        rpmdb.normalise(tmp_path, EPOCH)


def test_a_database_folder_that_leads_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    outside = database(tmp_path / "outside", ["acl"], 5)
    before = (outside / "rpmdb.sqlite").read_bytes()
    (tmp_path / "root/var/lib").mkdir(parents=True)
    (tmp_path / "root/var/lib/rpm").symlink_to(outside)
    with pytest.raises(CapsulekitError, match="leads out of the root"):
        rpmdb.main(tmp_path / "root", "/var/lib/rpm", EPOCH, tmp_path)
    assert (outside / "rpmdb.sqlite").read_bytes() == before


def test_what_dnf_leaves_goes_unless_a_package_brings_it(tmp_path: Path) -> None:
    for name, owners, left in (("a", {}, False), ("b", {"/etc/dnf": "dnf-data", "/etc/dnf/modules.d": "libdnf"}, True)):
        root = tmp_path / name
        (root / "etc/dnf/modules.d").mkdir(parents=True)
        rpmdb.remove_folders_of_dnf(root, owners)
        assert (root / "etc/dnf/modules.d").exists() == left


def test_a_package_that_dnf_left_out_is_named(tmp_path: Path) -> None:
    folder = database(tmp_path / "db", ["acl"], 5)
    lead, magic = b"\xed\xab\xee\xdb".ljust(header.LEAD, b"\0"), header.MAGIC
    signature = blob({1000: 7})
    path = tmp_path / "bash.rpm"
    path.write_bytes(lead + magic + signature + b"\0" * (-len(signature) % 8) + magic + package("bash", 5))
    with pytest.raises(CapsulekitError, match="the package bash 3:1-2 was not installed"):
        rpmdb.check_installed(folder / "rpmdb.sqlite", [path])
