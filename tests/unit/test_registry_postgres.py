"""PostgreSQL as the registry's database: a real server; what is wrong is said in one line, and no password is shown."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from databases import PASSWORD, USER, PgServer

from capsulekit.errors import CapsulekitError
from provisioner.registry import db as database
from provisioner.registry.address import check_address
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry

COMMAND = "from capsulekit.cli.main import entry; entry()"
PLAIN = Defaults()
MAC = "52:54:00:12:34:56"


@pytest.fixture
def address(postgres: PgServer) -> Iterator[str]:
    with postgres.database() as made:
        yield made


def passfile(folder: Path, password: str = PASSWORD, mode: int = 0o600) -> Path:
    path = folder / "pgpass"
    path.write_text(f"*:*:*:{USER}:{password}\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "text",
    ["postgresql://u:secret@h/d", "postgresql://u:secret@/d?host=/tmp", "postgresql://u@h/d?password=secret",
     "postgres://u@h/d?sslpassword=secret", "postgresql://:secret@h/d"],
)  # fmt: skip
def test_a_password_in_the_address_is_refused_with_the_way_out_and_never_repeated(text: str) -> None:
    with pytest.raises(CapsulekitError, match="holds a password") as caught:
        check_address(text)
    assert "secret" not in str(caught.value) and "passfile" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    ["mysql://u@h/d", "postgresql://u@h", "postgresql://", "postgresql://u@h/", "postgresql://[::1/d",
     "postgresql://u@h/d\n", "postgresql://u@h/d#x", "postgresql://u@h/d?passfile=/nowhere", "postgresql://u@h/d?x",
     "postgresql://u@h/d?passfile=/tmp"],
)  # fmt: skip
def test_an_address_that_cannot_be_is_refused_before_anything_is_tried(text: str) -> None:
    with pytest.raises(CapsulekitError):
        check_address(text)


def test_the_password_comes_from_a_private_file(postgres: PgServer, address: str, tmp_path: Path) -> None:
    name = address.partition("?")[0].rpartition("/")[2]
    by_port = f"postgresql://{USER}@127.0.0.1:{postgres.port}/{name}"
    Registry(f"{by_port}?passfile={passfile(tmp_path)}").close()
    with pytest.raises(CapsulekitError, match="password authentication failed") as caught:
        Registry(f"{by_port}?passfile={passfile(tmp_path, 'wrong donkey')}")
    assert "donkey" not in str(caught.value) and "passfile" in (caught.value.hint or "")
    with pytest.raises(CapsulekitError, match="can be read by others"):
        Registry(f"{by_port}?passfile={passfile(tmp_path, mode=0o644)}")


def test_what_is_wrong_with_server_database_or_rights_is_one_line(postgres: PgServer, address: str) -> None:
    here = f"host={postgres.folder}&port={postgres.port}"
    nobody = "127.0.0.1:1"
    postgres.sql("CREATE ROLE stranger LOGIN")
    postgres.sql("CREATE DATABASE old ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    name = address.partition("?")[0].rpartition("/")[2]
    for wrong, words in (
        (f"postgresql://{USER}@{nobody}/x", "refused"),
        (f"postgresql://{USER}@/x?host=/nowhere", "No such file"),
        (f"postgresql://{USER}@/missing?{here}", '"missing" does not exist'),
        (f"postgresql://{USER}@/old?{here}", "encoding is SQL_ASCII"),
        (f"postgresql://nobody@/{name}?{here}", '"nobody" does not exist'),
        (f"postgresql://stranger@/{name}?{here}", "permission denied"),
        (f"postgresql://{USER}@/{name}?{here}&colour=red", "colour"),
    ):
        with pytest.raises(CapsulekitError, match=words) as caught:
            Registry(wrong)
        assert "\n" not in caught.value.message
    postgres.sql("DROP DATABASE old")
    postgres.sql("DROP ROLE stranger")


def site(tmp_path: Path, registry: str) -> dict[str, str]:
    """A site whose registry is there; what to run commands with."""
    env = os.environ | {"CAPSULEKIT_CONFIG_DIR": str(tmp_path / "etc"), "CAPSULEKIT_STATE_DIR": str(tmp_path / "var")}
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/site.toml").write_text(
        f'interface = "ck0"\naddress = "10.0.0.1/16"\nrange_start = "10.0.1.1"\nrange_end = "10.0.1.9"\n'
        f'registry = "{registry}"\n'
    )
    return env


def run(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", COMMAND, *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)


def test_one_setting_moves_the_commands_to_the_server(address: str, tmp_path: Path) -> None:
    env = site(tmp_path, address)
    assert run(env, "node", "add", MAC).stdout == "Node 'n0000' has been added\n"
    assert run(env, "node", "list").stdout == "n0000\n"
    assert [node.nodeid for node in Registry(address).nodes()] == [MAC]
    assert not list(tmp_path.rglob("registry.db"))


def test_commands_say_what_is_wrong_in_a_line_and_exit_with_1(postgres: PgServer, address: str, tmp_path: Path) -> None:
    registry = Registry(address)
    with registry.db.write() as con:
        con.execute("INSERT INTO schema_version (version, applied) VALUES (99, 0)")
    registry.close()
    for place, words in (
        (address, "has schema 99"),
        (f"postgresql://{USER}@127.0.0.1:1/x", "refused"),
        ("postgresql://u:secret@h/d", "holds a password"),
        ("mysql://u@h/d", "neither a path nor"),
    ):
        done = run(site(tmp_path, place), "node", "list")
        assert (done.returncode, done.stdout) == (1, ""), place
        assert words in done.stderr and "Traceback" not in done.stderr and "secret" not in done.stderr
        assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_a_restarted_server_is_found_again(postgres: PgServer, address: str) -> None:
    registry = Registry(address)
    registry.add_node(MAC, defaults=PLAIN)
    postgres.stop()
    with pytest.raises(CapsulekitError, match="registry postgresql://"):
        registry.nodes()
    postgres.start()
    assert len(registry.nodes()) == 1
    postgres.stop()
    postgres.start()
    registry.set_nodes("desc", "x", [MAC])
    assert [node.desc for node in registry.each_node()] == ["x"]
    registry.close()


def test_a_transaction_cut_in_the_middle_leaves_nothing(postgres: PgServer, address: str) -> None:
    registry = Registry(address)
    with pytest.raises(CapsulekitError) as caught, registry.db.write() as con:
        con.execute("INSERT INTO roles (module, role) VALUES ('m', 'init/all')")
        postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'capsulekit'")
        con.execute("INSERT INTO roles (module, role) VALUES ('m', 'ready/all')")
    assert caught.value.hint
    assert registry.roles() == {}
    registry.close()


def test_a_change_of_several_parts_does_not_go_on_after_a_cut(postgres: PgServer, address: str) -> None:
    registry = Registry(address)
    with pytest.raises(CapsulekitError), registry.db.write():
        registry.add_node(MAC, defaults=PLAIN)
        postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'capsulekit'")
        # A read finds the connection gone; were a new one made for it, the next part would be a change by itself.
        with pytest.raises(CapsulekitError, match="terminating connection"):
            registry.nodes()
        with pytest.raises(CapsulekitError, match="was cut off"):
            registry.add_node("52:54:00:12:34:57", defaults=PLAIN)
        registry.set_nodes("desc", "x", [MAC])
    assert registry.nodes() == []
    registry.close()


def test_an_outage_and_its_end_are_logged_once_whatever_the_number_of_threads(postgres: PgServer, address: str) -> None:
    registry, said = Registry(address), list[str]()
    registry.db.log = lambda event, **_: said.append(event)
    start, out, back = threading.Barrier(5), threading.Barrier(5), threading.Barrier(5)

    def ask() -> None:
        registry.nodes()
        start.wait(60), out.wait(60)
        for _ in range(2):
            with pytest.raises(CapsulekitError):
                registry.nodes()
        back.wait(60), start.wait(60)
        registry.nodes()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        start.wait(60)
        postgres.stop()
        out.wait(60), back.wait(60)
        assert said == ["registry-lost"]
        postgres.start()
        start.wait(60)
        assert [one.result(60) for one in asked] == [None] * 4
    assert said == ["registry-lost", "registry-back"]
    registry.close()


def test_a_writer_that_waits_too_long_says_so(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from provisioner.registry import postgres as driver

    one, two = Registry(address), Registry(address)
    with one.db.write(), pytest.raises(CapsulekitError, match="lock timeout") as caught, monkeypatch.context() as patch:
        patch.setattr(driver, "_SETTINGS", "SET lock_timeout = '50ms'")
        two.db.close()
        two.add_node(MAC, defaults=PLAIN)
    assert "another process" in (caught.value.hint or "")
    two.add_node(MAC, defaults=PLAIN)
    one.close()
    two.close()


def test_threads_that_end_take_their_connections_along(postgres: PgServer, address: str) -> None:
    registry = Registry(address)
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'capsulekit'"
    before = postgres.sql(count)[0][0]
    for _ in range(5):
        worker = threading.Thread(target=registry.nodes)
        worker.start()
        worker.join()
    # The server notices a moment later: its own processes end by themselves.
    for _ in range(200):
        if postgres.sql(count)[0][0] == before:
            break
    assert postgres.sql(count)[0][0] == before
    registry.close()


def test_a_failed_migration_leaves_the_old_schema(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "migrations"
    scripts.mkdir()
    for script in database.MIGRATIONS.glob("*.sql"):
        (scripts / script.name).write_text(script.read_text())
    monkeypatch.setattr(database, "MIGRATIONS", scripts)
    Registry(address).add_node(MAC, defaults=PLAIN)
    (scripts / "0099_bad.sql").write_text("CREATE TABLE more (a TEXT);\nINSERT INTO nothing VALUES (1);\n")
    with pytest.raises(CapsulekitError, match="nothing"):
        Registry(address)
    (scripts / "0099_bad.sql").write_text("CREATE TABLE more (a TEXT);\nINSERT INTO more VALUES (';');\n")
    again = Registry(address)
    assert again.db.rows("SELECT a FROM more")[0]["a"] == ";"
    assert len(again.nodes()) == 1
    again.close()
