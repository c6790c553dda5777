"""The registry's file: private, versioned, migrated whole or not at all, never on a network file system."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.registry import db as database
from provisioner.registry import sqlite
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry

PLAIN = Defaults()
MAC = "52:54:00:12:34:56"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.db")


def test_the_file_is_private_versioned_and_in_wal_mode(registry: Registry) -> None:
    registry.add_node(MAC, defaults=PLAIN)
    assert {f.stat().st_mode & 0o777 for f in registry.db.path.parent.glob("registry.db*") if f.stat().st_size} == {
        0o600
    }
    assert registry.db.rows("PRAGMA journal_mode")[0][0] == "wal"
    versions = [row["version"] for row in registry.db.rows("SELECT version FROM schema_version ORDER BY version")]
    assert versions == [int(script.name[:4]) for script in sorted(database.MIGRATIONS.glob("*.sql"))]


def test_a_registry_of_a_newer_program_is_left_alone(registry: Registry) -> None:
    with registry.db.write() as con:
        con.execute("INSERT INTO schema_version VALUES (99, 0)")
    with pytest.raises(CapsulekitError, match="schema 99"):
        Registry(registry.db.path)


def test_a_file_that_is_no_registry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(CapsulekitError, match="not a database"):
        Registry(path)


def test_a_failed_migration_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tmp_path / "migrations"
    scripts.mkdir()
    for script in database.MIGRATIONS.glob("*.sql"):
        (scripts / script.name).write_text(script.read_text())
    monkeypatch.setattr(database, "MIGRATIONS", scripts)
    registry = Registry(tmp_path / "registry.db")
    registry.add_node(MAC, defaults=PLAIN)
    (scripts / "0099_bad.sql").write_text("CREATE TABLE more (a);\nINSERT INTO nothing VALUES (1);\n")
    with pytest.raises(CapsulekitError, match="nothing"):
        Registry(registry.db.path)
    (scripts / "0099_bad.sql").write_text("CREATE TABLE more (a);\nINSERT INTO more VALUES (';');\n")
    again = Registry(registry.db.path)
    assert again.db.rows("SELECT a FROM more")[0]["a"] == ";"
    assert len(again.nodes()) == 1


def test_threads_do_not_share_a_connection_and_close_ends_all(registry: Registry) -> None:
    seen = []
    worker = threading.Thread(target=lambda: seen.append(registry.db.session()))
    worker.start()
    worker.join()
    assert seen[0] is not registry.db.session()
    registry.close()
    with pytest.raises(sqlite3.ProgrammingError):
        seen[0].execute("SELECT 1")


MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:30 / /srv rw - nfs4 host:/srv rw
22 21 8:2 / /srv/local rw shared:1 - xfs /dev/sdb1 rw
23 20 0:31 / /with\\040blank rw - cifs //h/s rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/x", "ext4"), ("/srv", "nfs4"), ("/srv/a", "nfs4"), ("/srv2", "ext4"), ("/srv/local/a", "xfs"),
     ("/with blank/a", "cifs")],
)  # fmt: skip
def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert sqlite.file_system_type(Path(path), mounts) == kind


def test_a_mount_whose_name_a_user_chose_stops_nothing(tmp_path: Path) -> None:
    """The kernel escapes neither a carriage return nor a form feed."""
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(MOUNTS.encode() + b"50 1 0:9 / /home/eve/a\rb\x0cc\xe2\x80\xa8d rw - fuse  rw\n")
    assert sqlite.file_system_type(Path("/srv"), mounts) == "nfs4"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "lustre"])
def test_a_network_file_system_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # No network file system can be mounted here: the kernel's answer is replaced.
    monkeypatch.setattr(sqlite, "file_system_type", lambda path: kind)
    with pytest.raises(CapsulekitError, match=kind) as caught:
        Registry(tmp_path / "registry.db")
    assert "site.toml" in (caught.value.hint or "")
    assert not (tmp_path / "registry.db").exists()


def test_a_registry_whose_first_opening_was_cut_short_is_completed(tmp_path: Path) -> None:
    # What another process sees, or a killed one leaves, between the table of versions and the first migration.
    path = tmp_path / "registry.db"
    with contextlib.closing(sqlite3.connect(path)) as con:
        con.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied REAL NOT NULL)")
        con.commit()
    assert Registry(path).nodes() == []
