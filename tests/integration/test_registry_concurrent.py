"""Many processes at one registry: no update is lost, and a killed writer leaves a valid file."""

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
from provisioner.registry.registry import Registry

COMMAND = "from capsulekit.cli.main import entry; entry()"
# Adds nodes as fast as it can and prints each name once it is promised.
WRITER = """
import sys, time
from pathlib import Path
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry
registry = Registry(Path(sys.argv[1]))
for number in range(10**6):
    mac = f"52:54:{int(sys.argv[2]):02X}:{number >> 16:02X}:{number >> 8 & 255:02X}:{number & 255:02X}"
    node = registry.add_node(mac, defaults=Defaults(node_name="n#####"))
    registry.record_state(mac, "init", "10.0.0.9")
    print(node.hostname, flush=True)
    time.sleep(0.001)  # SQLite's lock is not fair: leave the other writer a gap
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folders = {"CAPSULEKIT_CONFIG_DIR": str(tmp_path / "etc"), "CAPSULEKIT_STATE_DIR": str(tmp_path / "var")}
    env = os.environ | folders
    flags = ["--interface", "ck0", "--address", "10.0.0.1/16", "--range", "10.0.1.1-10.0.1.250"]
    subprocess.run([sys.executable, "-c", COMMAND, "init", *flags], env=env, check=True, capture_output=True)
    return env


def test_forty_commands_at_once_add_forty_nodes_with_names_of_their_own(
    environment: dict[str, str], tmp_path: Path
) -> None:
    adds = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, "node", "add", f"52:54:00:00:00:{number:02x}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(40)
    ]  # fmt: skip
    said = [add.communicate(timeout=300)[0] for add in adds]
    assert [add.returncode for add in adds] == [0] * 40, said
    names = [node.hostname for node in Registry(tmp_path / "var/registry.db").nodes()]
    assert names == [f"n{number:04}" for number in range(40)]
    assert sorted(said) == [f"Node '{name}' has been added\n" for name in names]


def test_two_first_openings_at_once_make_one_schema(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from provisioner.registry.registry import Registry; "
    code += "Registry(Path(sys.argv[1])).nodes()"
    openings = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r.db")]) for _ in range(8)]
    assert [opening.wait(timeout=120) for opening in openings] == [0] * 8


def test_a_killed_writer_leaves_a_valid_registry_with_all_it_promised(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    Registry(path).close()
    chance = random.Random(7)
    promised: set[str] = set()
    for kill in range(6):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(2 * kill + w)], stdout=subprocess.PIPE, text=True
            )
            for w in range(2)
        ]
        assert all(writer.stdout and writer.stdout.readline() for writer in writers)
        time.sleep(chance.uniform(0.01, 0.4))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            promised.update(line for line in writer.communicate()[0].split("\n")[:-1] if line)
        with sqlite3.connect(path) as con:
            assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        con.close()
    registry = Registry(path)
    names = [node.hostname for node in registry.nodes()]
    assert promised <= set(names)
    assert len(names) == len({name.lower() for name in names})
    registry.add_node("52:54:ff:00:00:01", "afterwards", defaults=Defaults())
