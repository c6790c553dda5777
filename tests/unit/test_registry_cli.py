"""`capsulekit registry` as its user sees it: what it says, what it asks, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry

COMMAND = "from capsulekit.cli.main import entry; entry()"


class Site:
    """A site with two nodes, and its command line."""

    def __init__(self, folder: Path, place: Path | str) -> None:
        self.place = place
        self.env = os.environ | {
            "CAPSULEKIT_CONFIG_DIR": str(folder / "etc"),
            "CAPSULEKIT_STATE_DIR": str(folder / "var"),
            "SUDO_USER": "ada",
        }
        (folder / "etc").mkdir()
        (folder / "etc/site.toml").write_text(f'interface = "ck0"\nregistry = "{place}"\n')
        registry = Registry(place)
        registry.add_nodes([(f"52:54:00:00:00:0{n}", None) for n in range(2)], defaults=Defaults())
        registry.close()

    def run(self, *words: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", COMMAND, *map(str, words)]
        return subprocess.run(argv, env=self.env, input=said, capture_output=True, text=True, timeout=120)

    def names(self) -> list[str]:
        registry = Registry(self.place)
        names = [node.hostname for node in registry.nodes()]
        registry.close()
        return names


@pytest.fixture
def site(registry_place: Path | str, tmp_path: Path) -> Site:
    return Site(tmp_path, registry_place)


def test_a_backup_is_made_and_comes_back_after_asking(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    assert site.run("registry", "backup", "--dry-run", file).returncode == 0 and not file.exists()
    made = site.run("registry", "backup", file)
    assert (made.returncode, made.stdout) == (
        0, f"{file}: 2 nodes, 0 capsules, 0 events, 2 changes have been backed up\n",
    )  # fmt: skip
    assert site.run("-e", "node", "delete", "n0000").returncode == 0
    for flags, said in (([], ""), ([], "no\n"), (["-n"], ""), (["--dry-run"], "")):
        refused = site.run("registry", "restore", file, *flags, said=said)
        assert refused.returncode == (0 if "--dry-run" in flags else 1)
        assert "1 node, " in refused.stderr and "2 nodes, " in refused.stderr, "both are shown"
        assert site.names() == ["n0001"]
    done = site.run("registry", "restore", file, said="yes\n")
    assert (done.returncode, done.stdout) == (0, "2 nodes, 0 capsules, 0 events, 2 changes have been restored\n")
    assert site.names() == ["n0000", "n0001"]
    registry = Registry(site.place)
    last = registry.changes()[-1]
    assert (last.who, last.command, last.key) == (
        "ada" if os.geteuid() == 0 else last.who,
        "registry restore",
        "restored",
    )
    registry.close()
    told = json.loads(site.run("--json", "-e", "registry", "restore", file).stdout)
    assert (told["restored"], told["rows"]["nodes"]) == (True, 2)


def test_what_cannot_be_restored_or_written_is_said_in_a_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no backup\n")
    (tmp_path / "empty").touch()
    for words in (
        ("restore", tmp_path / "text"),
        ("restore", tmp_path / "empty"),
        ("restore", tmp_path / "missing"),
        ("restore", "/dev/null"),
        ("backup", tmp_path / "no/such/folder"),
        ("backup", "/proc/registry"),
    ):
        done = site.run("-y", "registry", *words)
        assert done.returncode == 1, words
        assert len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr, done.stderr
    assert site.run("registry", "export", "--format", "xml").returncode == 2
    assert site.names() == ["n0000", "n0001"]


def test_nodes_are_exported_as_csv_and_json(site: Site) -> None:
    lines = site.run("registry", "export").stdout.splitlines()
    assert lines[0].startswith("nodeid,hostname,cluster,groupname,vnfs,enabled,")
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["52:54:00:00:00:00", "n0000", "new"], ["52:54:00:00:00:01", "n0001", "new"],
    ]  # fmt: skip
    asked = (site.run("registry", "export", "--format", "json"), site.run("--json", "registry", "export"))
    assert [[node["hostname"] for node in json.loads(done.stdout)] for done in asked] == [["n0000", "n0001"]] * 2


def test_a_lost_registry_file_is_made_anew_from_its_backup(tmp_path: Path) -> None:
    site = Site(tmp_path, tmp_path / "r.db")
    assert site.run("registry", "backup", tmp_path / "b").returncode == 0
    for part in tmp_path.glob("r.db*"):
        part.unlink()
    assert site.run("registry", "backup", tmp_path / "c").returncode == 1
    refused = site.run("-n", "registry", "restore", tmp_path / "b")
    assert (refused.returncode, (tmp_path / "r.db").exists()) == (1, False)
    assert site.run("-y", "registry", "restore", tmp_path / "b").returncode == 0
    assert site.names() == ["n0000", "n0001"]


@pytest.mark.parametrize("names", ["rack's", "a?b", "Rack", "desc", "group", "nodeid", "name", "7up", "x" * 33])
def test_attributes_that_cannot_be_are_refused_by_every_command(tmp_path: Path, names: str) -> None:
    site = Site(tmp_path, tmp_path / "r.db")
    with (tmp_path / "etc/site.toml").open("a") as config:
        config.write(f'attributes = "rack {names}"\n')
    done = site.run("node", "set", "rack", "7", "n0000")
    assert done.returncode == 1 and "site.toml" in done.stderr and names in done.stderr
    assert len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr


def test_a_file_that_lost_all_it_held_is_not_taken_for_a_new_registry(tmp_path: Path) -> None:
    place = tmp_path / "registry.db"
    site = Site(tmp_path, place)
    assert site.run("registry", "backup", tmp_path / "kept").returncode == 0
    for file in tmp_path.glob("registry.db*"):
        file.unlink()
    place.touch()
    done = site.run("node", "list")
    assert (done.returncode, done.stdout) == (1, "") and f"the registry {place} is empty" in done.stderr
    assert "registry restore" in done.stderr and place.stat().st_size == 0
    assert site.run("registry", "restore", tmp_path / "kept", "-y").returncode == 0
    assert site.names() == ["n0000", "n0001"]
