"""`capsulekit registry`: a backup is one moment and whole, a restore is all or nothing, and both cross databases."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from databases import PgServer

from capsulekit.errors import CapsulekitError
from provisioner.devices import Device
from provisioner.registry.backup import contents, restore_backup, verify_backup, write_backup
from provisioner.registry.db import MIGRATIONS, migrations, tables
from provisioner.registry.defaults import Defaults
from provisioner.registry.export import export_csv, export_json
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.registry import Registry

PLAIN = Defaults()
MAC = "52:54:00:00:00:01"


def fill(registry: Registry) -> None:
    """Something in every table."""
    registry.attribute_names = ("rack",)
    registry.add_nodes([(MAC, "a.sub"), ("52:54:00:00:00:02", None)], defaults=PLAIN)
    registry.set_nodes("desc", 'ünder, "quoted" 100 %?', [MAC])
    registry.set_nodes("rack", "7", [MAC])
    registry.set_nodes("enabled", "no", [MAC])
    registry.set_group_kargs("cluster", "quiet")
    registry.add_capsule(InstalledCapsule("d-1", "ab" * 32, "00" * 8, "RWQ", "1", "x86_64", 5.25))
    registry.record_state(MAC, "init", "10.0.0.9", seconds=1.5, mem_used_kb=77)
    registry.record_devices(MAC, (Device("pci:v1", "e1000", "e1000", boot=True),))
    registry.record_booted(MAC, "plan")
    registry.record_tree(MAC, b"a list")
    registry.record_lease(MAC, "10.0.0.9", "a", 1e9 + 1 / 3)
    registry.add_ticket("t", MAC, "10.0.0.9", 4e9)
    registry.add_session("s", MAC, "10.0.0.9", 4e9)
    registry.activate("hostname", ["init/all"])


def everything(registry: Registry) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, but for the line that a restore adds to the history."""
    names = tables(len(migrations()))
    rows = {name: [tuple(row) for row in registry.db.rows(f'SELECT * FROM "{name}"')] for name in names}
    rows["changes"] = [row for row in rows["changes"] if "restored" not in row]
    return {name: sorted(found, key=repr) for name, found in rows.items()}


@pytest.fixture
def registry(registry_place: Path | str) -> Iterator[Registry]:
    made = Registry(registry_place)
    yield made
    made.close()


@pytest.fixture
def other(request: pytest.FixtureRequest, tmp_path: Path, registry_place: Path | str) -> Iterator[Registry]:
    """A registry in the other kind of database."""
    if isinstance(registry_place, str):
        made = Registry(tmp_path / "other.db")
        yield made
        made.close()
    else:
        server: PgServer = request.getfixturevalue("postgres")
        with server.database() as address:
            made = Registry(address)
            yield made
            made.close()


def test_the_known_tables_are_those_the_database_has(registry: Registry) -> None:
    assert all(registry.db.exists(name) for name in tables(len(migrations())))
    sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    if isinstance(getattr(registry.db, "path", None), Path):
        sql = "SELECT name FROM sqlite_master WHERE type = 'table'"
    assert {row[0] for row in registry.db.rows(sql)} - {"schema_version"} == set(tables(len(migrations())))


def test_a_backup_is_private_and_moves_everything_to_the_other_database(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    fill(registry)
    assert all(everything(registry).values()), "every table has something"
    file = tmp_path / "b"
    done = write_backup(registry.db, file)
    assert file.stat().st_mode & 0o777 == 0o600 and list(tmp_path.glob(".b*")) == []
    assert verify_backup(file) == done
    assert done.rows == contents(registry.db).rows
    other.add_node("52:54:00:00:00:77", "goes", defaults=PLAIN)
    restore_backup(other, file)
    assert everything(other) == everything(registry)
    assert other.nodes() == registry.nodes()
    assert [c.key for c in other.changes()][-1] == "restored"
    # New rows are counted on from there.
    other.record_state(MAC, "ready", "10.0.0.9")
    other.add_node("52:54:00:00:00:78", defaults=PLAIN)
    assert [event.state for event in other.events(MAC)] == ["init", "ready"]


def test_a_backup_is_one_moment_while_others_write(
    registry: Registry, registry_place: Path | str, tmp_path: Path
) -> None:
    writer, going, stop = Registry(registry_place), threading.Event(), threading.Event()

    def write() -> None:
        # Both values change in one transaction: a copy that has one of them only is of no moment.
        number = 0
        while not stop.is_set():
            number += 1
            with writer.db.write() as con:
                con.execute('INSERT INTO "groups" (name, kargs) VALUES (?, ?)', (f"g{number}", "x"))
                con.execute("INSERT INTO roles (module, role) VALUES (?, 'init/all')", (f"g{number}",))
            going.set()

    worker = threading.Thread(target=write)
    worker.start()
    try:
        assert going.wait(30)
        for number in range(5):
            found = write_backup(registry.db, tmp_path / str(number)).rows
            assert found["groups"] == found["roles"] > 0
    finally:
        stop.set()
        worker.join()
        writer.close()


def packed(lines: list[bytes]) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(lines))


def repacked(file: Path, change: object) -> None:
    lines = zstandard.ZstdDecompressor().stream_reader(file.read_bytes()).read().splitlines(keepends=True)
    assert callable(change)
    file.write_bytes(packed(change(lines)))


def signed(lines: list[bytes]) -> list[bytes]:
    """With a last line that fits the others' bytes: made on purpose, not by damage."""
    end = json.loads(lines[-1])
    digest = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    return [*lines[:-1], json.dumps(end | {"sha256": digest}).encode() + b"\n"]


BROKEN = {
    "no last line": lambda lines: lines[:-1],
    "a row is missing": lambda lines: [line for line in lines if not line.startswith(b'["52:54')],
    "a row twice": lambda lines: signed([*lines[:3], lines[2], *lines[3:]]),
    "another value": lambda lines: [line.replace(b"quoted", b"quotes") for line in lines],
    "something behind": lambda lines: [*lines, b"[]\n"],
    "no JSON": lambda lines: [*lines[:2], b"{{{\n", *lines[2:]],
    "no line's end": lambda lines: [*lines[:-1], lines[-1].rstrip()],
    "an unknown table": lambda lines: signed([line.replace(b'"table":"nodes"', b'"table":"x; --"') for line in lines]),
    "a schema that is none": lambda lines: [lines[0].replace(b'"schema":', b'"schema":-'), *lines[1:]],
    "a number for a heading": lambda lines: [b"7\n", *lines[1:]],
    "a list in a row": lambda lines: signed([line.replace(b'"a","sub"', b'["a"],"sub"') for line in lines]),
    "nothing": lambda lines: [],
    "nested": lambda lines: [b"[" * 100_000 + b"\n"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_whole_is_refused_and_changes_nothing(registry: Registry, tmp_path: Path, name: str) -> None:
    fill(registry)
    file = tmp_path / "b"
    write_backup(registry.db, file)
    repacked(file, BROKEN[name])
    before = everything(registry)
    if name != "a row twice":  # which only the database can tell
        with pytest.raises(CapsulekitError, match=str(file)):
            verify_backup(file)
    with pytest.raises(CapsulekitError):
        restore_backup(registry, file)
    assert everything(registry) == before


def test_columns_that_are_not_the_tables_are_refused(registry: Registry, tmp_path: Path) -> None:
    fill(registry)
    file = tmp_path / "b"
    write_backup(registry.db, file)
    names = b'"columns":["nodeid","hostname"', b'"columns":["nodeid","\\""'
    repacked(file, lambda lines: signed([line.replace(*names) for line in lines]))
    before = everything(registry)
    with pytest.raises(CapsulekitError, match="other columns"):
        restore_backup(registry, file)
    assert everything(registry) == before


def test_damage_anywhere_is_noticed_or_harms_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r.db")
    fill(registry)
    file = tmp_path / "b"
    good = write_backup(registry.db, file)
    whole = file.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
    unnoticed = 0
    for bad in (*flipped, *(whole[:length] for length in range(0, len(whole), 3))):
        file.write_bytes(bad)
        try:
            # zstd's own window size and its checksum may be damaged where what it holds is not.
            assert verify_backup(file) == good
            unnoticed += 1
        except CapsulekitError:
            pass
    assert unnoticed < 10


def test_a_backup_of_a_newer_program_is_refused(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "b"
    write_backup(registry.db, file)
    repacked(file, lambda lines: [lines[0].replace(b'"schema":', b'"schema":9'), *lines[1:]])
    with pytest.raises(CapsulekitError, match="newer"):
        verify_backup(file)


def test_a_backup_of_an_older_schema_is_brought_up_to_date(registry: Registry, tmp_path: Path) -> None:
    node = [MAC, "n0000", "", "", "", 1, 0, "", "", "", 1, "0a" * 16, "", None, "", None, "", 1.5]
    script = next(MIGRATIONS.glob("0001_*.sql")).read_text()
    columns = re.findall(r'^  "?(\w+)"? ', script.partition("\n);")[0], re.MULTILINE)
    heading = {"capsulekit-registry": 1, "schema": 2, "time": 5.0}
    lines = [heading, {"table": "nodes", "columns": columns}, node, {"end": {"nodes": 1}}]
    file = tmp_path / "b"
    file.write_bytes(packed(signed([json.dumps(line).encode() + b"\n" for line in lines])))
    restore_backup(registry, file)
    assert [(n.hostname, n.address, n.created) for n in registry.nodes()] == [("n0000", "", 1.5)]
    registry.set_nodes("address", "10.0.0.1", [MAC])


def test_nodes_are_exported_for_other_programs_without_secrets(registry: Registry) -> None:
    fill(registry)
    table, text = io.StringIO(), io.StringIO()
    export_csv(registry, table)
    export_json(registry, text)
    rows = list(csv.DictReader(io.StringIO(table.getvalue())))
    assert [(r["hostname"], r["enabled"], r["desc"], r["rack"]) for r in rows] == [
        ("a", "0", 'ünder, "quoted" 100 %?', "7"), ("n0000", "1", "", ""),
    ]  # fmt: skip
    records = json.loads(text.getvalue())
    assert [(r["hostname"], r["enabled"], r["attributes"]) for r in records] == [
        ("a", False, {"rack": "7"}),
        ("n0000", True, {}),
    ]
    for node in registry.nodes():
        assert node.machine_id not in table.getvalue() + text.getvalue()
    empty = io.StringIO()
    registry.delete_nodes([node.nodeid for node in registry.nodes()])
    export_json(registry, empty)
    assert json.loads(empty.getvalue()) == []
