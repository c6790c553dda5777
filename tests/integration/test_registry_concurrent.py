"""Many processes at one registry, in SQLite and in PostgreSQL: no update is lost, and any of them may be killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from provisioner.registry.defaults import Defaults
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.registry.registry import Registry

CAPSULE = InstalledCapsule("tiny", "ab" * 32, "00" * 8, "RWQ", "1", "amd64", 1.0)
COMMAND = "from capsulekit.cli.main import entry; entry()"
# Adds nodes as fast as it can and prints each name once it is promised.
WRITER = """
import sys, time
from pathlib import Path
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry
registry = Registry(sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1]))
for number in range(10**6):
    mac = f"52:54:{int(sys.argv[2]):02X}:{number >> 16:02X}:{number >> 8 & 255:02X}:{number & 255:02X}"
    node = registry.add_node(mac, defaults=Defaults(node_name="n#####"))
    registry.record_state(mac, "init", "10.0.0.9")
    print(node.hostname, flush=True)
    time.sleep(0.001)  # SQLite's lock is not fair: leave the other writer a gap
"""
# Redeems every ticket it can, and prints those that opened for it.
REDEEMER = """
import sys
from pathlib import Path
from provisioner.registry.registry import Registry
registry = Registry(sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1]))
for number in range(200):
    if registry.redeem_ticket(f"t{number}", "52:54:00:00:00:01", "10.0.0.9", 1000.0) is True:
        print(number, flush=True)
"""
# Switches a capsule as often as it can: each time from what it is to something new; prints what it has switched to.
SWITCHER = """
import sys
from dataclasses import replace
from pathlib import Path
from capsulekit.errors import CapsulekitError
from provisioner.registry.model import Past
from provisioner.registry.registry import Registry
registry = Registry(sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    while True:
        row = registry.capsule("tiny")
        new = f"{int(sys.argv[2]):02x}{number:06x}" * 8
        try:
            registry.switch_capsule(replace(row, identity=new), Past(new, "edit", row.identity), base=row.identity)
        except CapsulekitError as wrong:
            assert "was changed meanwhile" in wrong.message, wrong.message
            continue
        break
    print(new, flush=True)
"""
pytestmark = pytest.mark.slow
# `make soak` adds forty nodes at once a hundred times.
ROUNDS = int(os.environ.get("CAPSULEKIT_SOAK", "5"))


@pytest.fixture
def environment(registry_place: Path | str, tmp_path: Path) -> dict[str, str]:
    folders = {"CAPSULEKIT_CONFIG_DIR": str(tmp_path / "etc"), "CAPSULEKIT_STATE_DIR": str(tmp_path / "var")}
    env = os.environ | folders
    flags = ["--interface", "ck0", "--address", "10.0.0.1/16", "--range", "10.0.1.1-10.0.1.250"]
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/site.toml").write_text(f'registry = "{registry_place}"\n')
    subprocess.run([sys.executable, "-c", COMMAND, "init", *flags], env=env, check=True, capture_output=True)
    return env


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_forty_commands_at_once_add_forty_nodes_with_names_of_their_own(
    environment: dict[str, str], registry_place: Path | str, turn: int
) -> None:
    adds = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, "node", "add", f"52:54:00:00:{turn:02x}:{number:02x}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(40)
    ]  # fmt: skip
    said = [add.communicate(timeout=300)[0] for add in adds]
    assert [add.returncode for add in adds] == [0] * 40, said
    names = [node.hostname for node in Registry(registry_place).nodes()]
    assert names == [f"n{number:04}" for number in range(40)]
    assert sorted(said) == [f"Node '{name}' has been added\n" for name in names]


def test_first_openings_at_once_make_one_schema(registry_place: Path | str) -> None:
    code = "import sys; from pathlib import Path; from provisioner.registry.registry import Registry; "
    code += "Registry(sys.argv[1] if '://' in sys.argv[1] else Path(sys.argv[1])).nodes()"
    openings = [subprocess.Popen([sys.executable, "-c", code, str(registry_place)]) for _ in range(8)]
    assert [opening.wait(timeout=120) for opening in openings] == [0] * 8


def test_killed_writers_leave_a_valid_registry_with_all_they_promised(registry_place: Path | str) -> None:
    registry = Registry(registry_place)
    chance = random.Random(7)
    promised: set[str] = set()
    for kill in range(6):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(registry_place), str(4 * kill + 2 * w)],
                stdout=subprocess.PIPE, text=True,
            )
            for w in range(2)
        ]  # fmt: skip
        assert all(writer.stdout and writer.stdout.readline() for writer in writers)
        time.sleep(chance.uniform(0.01, 0.4))
        # One is killed, the other goes on at once and is killed in its turn: nobody waits for the dead.
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            promised.update(line for line in writer.communicate()[0].split("\n")[:-1] if line)
            registry.set_nodes("desc", f"kill {kill}", [node.nodeid for node in registry.nodes()])
        assert {node.desc for node in registry.nodes()} == {f"kill {kill}"}
        if isinstance(registry_place, Path):
            with sqlite3.connect(registry_place) as con:
                assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            con.close()
    names = [node.hostname for node in registry.nodes()]
    assert promised <= set(names)
    assert len(names) == len({name.lower() for name in names})
    # Of every node that is there, so is the line of its history: both or none.
    assert {change.hostname for change in registry.changes(limit=10**6) if change.key == "added"} == set(names)
    registry.add_node("52:54:ff:00:00:01", "afterwards", defaults=Defaults())
    registry.close()


def test_switches_of_a_capsule_at_once_lose_nothing_and_each_goes_on_from_the_last(
    registry_place: Path | str,
) -> None:
    registry = Registry(registry_place)
    registry.install_capsule(CAPSULE, [Past(CAPSULE.identity, "import")])
    switchers = [switcher(registry_place, number, 25) for number in range(4)]
    said = [one.communicate(timeout=300)[0].split() for one in switchers]
    assert [one.returncode for one in switchers] == [0] * 4
    lines = registry.generations("tiny")
    assert [line.number for line in lines] == list(range(1, 102))
    assert [line.parent for line in lines[1:]] == [line.identity for line in lines[:-1]]
    assert sorted(line.identity for line in lines[1:]) == sorted(name for names in said for name in names)
    assert registry.find_capsule("tiny").identity == lines[-1].identity
    registry.close()


def test_a_killed_switch_has_happened_with_its_history_or_not_at_all(registry_place: Path | str) -> None:
    registry = Registry(registry_place)
    registry.install_capsule(CAPSULE, [Past(CAPSULE.identity, "import")])
    chance, promised = random.Random(3), set[str]()
    for number in range(8):
        switching = switcher(registry_place, number, 10**6)
        assert switching.stdout
        promised.add(switching.stdout.readline().strip())
        time.sleep(chance.uniform(0.01, 0.2))
        switching.send_signal(signal.SIGKILL)
        promised |= {line for line in switching.communicate()[0].split("\n")[:-1] if line}
        lines = registry.generations("tiny")
        assert registry.find_capsule("tiny").identity == lines[-1].identity
        assert [line.parent for line in lines[1:]] == [line.identity for line in lines[:-1]]
        assert promised <= {line.identity for line in lines}
    registry.close()


def switcher(place: Path | str, number: int, times: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", SWITCHER, str(place), str(number), str(times)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_a_ticket_opens_for_one_of_two_masters(registry_place: Path | str) -> None:
    registry = Registry(registry_place)
    for number in range(200):
        registry.add_ticket(f"t{number}", "52:54:00:00:00:01", "10.0.0.9", 2000.0, max_alive=1000, now=1000.0)
    masters = [
        subprocess.Popen([sys.executable, "-c", REDEEMER, str(registry_place)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    opened = [int(line) for master in masters for line in master.communicate(timeout=120)[0].split()]
    assert [master.returncode for master in masters] == [0, 0]
    assert sorted(opened) == list(range(200))
    registry.close()
