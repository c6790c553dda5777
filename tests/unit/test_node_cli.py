"""The node and module commands as an admin meets them, run whole against a site in a temporary folder."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capsulekit.cli.main import main
from capsulekit.sitepaths import SitePaths
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.registry import Registry, open_registry

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line; gives (exit status, stdout, stderr). ``stdin`` is what is typed: no terminal."""

    def call(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        folders = ["--config-dir", str(tmp_path / "etc"), "--state-dir", str(tmp_path / "var")]
        status = main([*words, *folders])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def site(run: Run, tmp_path: Path) -> Registry:
    assert run("init", "--interface", "ck0", "--address", "10.0.0.1/16", "--range", "10.0.1.1-10.0.1.250")[0] == 0
    return open_registry(SitePaths(tmp_path / "etc", tmp_path / "var"))


@pytest.fixture
def three(site: Registry, run: Run) -> Registry:
    for number in range(3):
        assert run("node", "add", f"52:54:00:00:00:0{number}") == (0, f"Node 'n000{number}' has been added\n", "")
    return site


@pytest.mark.parametrize("words", [("node", "list"), ("node", "add", "52:54:00:00:00:01"), ("module", "summary")])
def test_a_site_that_was_never_initialised_says_so(run: Run, words: tuple[str, ...]) -> None:
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert "never initialised" in err
    assert "capsulekit init" in err


def test_list_prints_names_or_macs(three: Registry, run: Run) -> None:
    assert run("node", "list") == (0, "n0000\nn0001\nn0002\n", "")
    assert run("-i", "node", "list", "52-54-00-00-00-01")[1] == "52:54:00:00:00:01\n"
    assert json.loads(run("node", "list", "--json", "n000[1-2]")[1]) == ["n0001", "n0002"]


def test_list_of_an_empty_site_is_empty(site: Registry, run: Run) -> None:
    assert run("node", "list") == (0, "", "")


@pytest.mark.parametrize("verb", ["list", "show", "summary", "status"])
def test_a_reading_command_prints_what_matched_and_exits_1(three: Registry, run: Run, verb: str) -> None:
    status, out, err = run("node", verb, "n0001", "n9999", "x*")
    assert status == 1
    assert "n0001" in out
    assert "n0000" not in out
    assert "'n9999', 'x*'" in err


@pytest.mark.parametrize(
    "words",
    [
        ("set", "desc", "x", "n0001", "n9999"),
        ("set", "colour", "x", "n0001"),
        ("set", "vnfs", "n9999", "n0001"),
        ("set", "enabled", "n9999", "n0001"),
        ("delete", "-y", "n000[0-3]", "n9999"),
        ("accept", "n0001", "n9999"),
    ],
)
def test_a_changing_command_with_a_wrong_argument_changes_nothing(
    three: Registry, run: Run, words: tuple[str, ...]
) -> None:
    before = three.nodes()
    status, out, err = run("node", *words)
    assert (status, out) == (1, "")
    assert "n9999" in err or "colour" in err
    assert three.nodes() == before


def test_wrong_usage_exits_2(three: Registry, run: Run) -> None:
    assert run("node", "set", "desc")[0] == 2
    assert run("node", "delete")[0] == 2
    assert run("node", "list", "n00[1-")[0] == 2
    assert run("node", "fly")[0] == 2


@pytest.mark.parametrize(
    ("mac", "why"),
    [
        ("52:54:00:00:00:00", "registered already"),
        ("01:00:5e:00:00:01", "multicast"),
        ("00:00:00:00:00:00", "zero"),
        ("hello", "not a MAC"),
    ],
)
def test_add_refuses_taken_and_unreal_macs(three: Registry, run: Run, mac: str, why: str) -> None:
    status, _, err = run("node", "add", mac)
    assert status == 1
    assert why in err
    assert len(three.nodes()) == 3


def test_add_takes_a_name_and_the_sites_defaults(site: Registry, run: Run, tmp_path: Path) -> None:
    (tmp_path / "etc/defaults.toml").write_text('node_name = "c##.x"\ngroup = "blue"\nenabled = false\n')
    assert run("node", "add", "01-52-54-00-00-00-0A", "login.front")[1] == "Node 'login' has been added\n"
    run("node", "add", "52:54:00:00:00:0b", "-q")
    assert [(n.name, n.nodeid, n.groupname, n.enabled) for n in site.nodes()] == [
        ("c00.x", "52:54:00:00:00:0B", "blue", False),
        ("login.front", "52:54:00:00:00:0A", "blue", False),
    ]


def test_a_wrong_key_in_the_defaults_is_named(site: Registry, run: Run, tmp_path: Path) -> None:
    (tmp_path / "etc/defaults.toml").write_text('gruop = "blue"\n')
    status, _, err = run("node", "add", "52:54:00:00:00:0b")
    assert status == 1
    assert "gruop" in err


def test_delete_asks_and_end_of_input_means_no(three: Registry, run: Run) -> None:
    for answer in ("", "no\n", "maybe\nn\n"):
        status, out, err = run("node", "delete", "n0000", "n0002", stdin=answer)
        assert (status, out) == (1, "")
        assert "n0000 n0002" in err
        assert "[yes/no]" in err
        assert len(three.nodes()) == 3
    assert run("node", "-n", "delete", "n0000")[0] == 1
    assert run("node", "delete", "n0000", stdin="yes\n")[1] == "Node 'n0000' has been deleted\n"
    assert run("node", "delete", "n000[1-2]", "-e") == (0, "", "")
    assert three.nodes() == []


def test_dry_runs_check_and_change_nothing(three: Registry, run: Run) -> None:
    before = three.nodes()
    assert run("node", "add", "--dry-run", "52:54:00:00:00:09")[1] == "Node 'n0003' would be added\n"
    assert run("node", "add", "--dry-run", "52:54:00:00:00:00")[0] == 1
    assert run("node", "set", "--dry-run", "enabled", "no", "*")[1] == "enabled would be set to 'no' on 3 nodes\n"
    assert run("node", "delete", "--dry-run", "n0000")[1] == "Would be deleted: n0000\n"
    assert run("node", "accept", "--dry-run", "n0000")[0] == 0
    assert run("module", "activate", "--dry-run", "hostname")[0] == 0
    assert (three.nodes(), three.roles()) == (before, {})


def test_show_greps_by_name_and_key(three: Registry, run: Run) -> None:
    run("node", "set", "kargs", "quiet console=ttyS0", "n0001")
    lines = run("node", "show")[1].splitlines()
    assert [line for line in lines if "nodeid" in line.lower()] == [
        f"n000{n}:NodeID=52:54:00:00:00:0{n}" for n in "012"
    ]
    assert "n0001:Kargs=quiet console=ttyS0" in lines
    assert all(re.match(r"n000\d:[A-Za-z]+=", line) for line in lines)


def test_summary_has_the_manuals_columns(three: Registry, run: Run) -> None:
    capsule = InstalledCapsule("caos-3.0.x86_64", "ab" * 32, "00", "RWQ", "3.0", "x86_64", 1.0)
    three.add_capsule(capsule)
    run("node", "set", "vnfs", "caos", "n0000")
    run("node", "set", "enabled", "0", "n0001")
    run("node", "set", "groupname", "esd01", "n000[0-1]")
    assert run("node", "summary", "n000[0-1]")[1] == (
        "HostName             GroupName    Enabled   Vnfs\n"
        "n0000                esd01            yes   caos-3.0.x86_64\n"
        "n0001                esd01             no\n"
    )


def test_status_tells_the_way_to_ready_and_why_not(three: Registry, run: Run) -> None:
    now = time.time()
    for state, ago in (("init", 100), ("handoff", 79), ("ready", 61)):
        three.record_state("52:54:00:00:00:00", state, "10.0.3.0", now=now - ago)
    three.record_state("52:54:00:00:00:01", "failed", "10.0.3.1", "layer rootfs: digest differs", now=now - 7200)
    lines = run("node", "status")[1].splitlines()
    # The manual's own line, and one column more.
    manual = "HostName             Status         IpAddr                    Last Contact"
    assert lines[0].split("   Boot")[0] == manual and lines[0].endswith("Boot")
    assert lines[1].index("00:01:0") == manual.index("Last Contact")
    assert re.fullmatch(
        r"n0000 {16}ready {10}10\.0\.3\.0 +00:01:0\d +init \d\d:\d\d:\d\d · handoff \+21 s · ready \+39 s", lines[1]
    )
    assert re.fullmatch(r"n0001 +failed +10\.0\.3\.1 +02:00:0\d +failed: layer rootfs: digest differs", lines[2])
    assert re.fullmatch(r"n0002 +unknown +- +never", lines[3])
    record = json.loads(run("node", "status", "--json", "n0000")[1])[0]
    assert list(record["boot"]) == ["handoff", "init", "ready"]
    assert record["status"] == "ready"


def test_status_tells_that_a_system_was_started_and_did_not_come_up(three: Registry, run: Run) -> None:
    now = time.time()
    for state, ago in (("init", 100), ("handoff", 79), ("init", 20)):
        three.record_state("52:54:00:00:00:00", state, "10.0.3.0", now=now - ago)
    told = r"the boot before: handed over at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, but the system did not come up"
    assert re.search(rf"init \d\d:\d\d:\d\d · {told}$", run("node", "status", "n0000")[1].splitlines()[1])
    assert "did not come up" in json.loads(run("node", "status", "--json", "n0000")[1])[0]["error"]


def test_accept_lets_a_waiting_node_go_on(site: Registry, run: Run) -> None:
    from provisioner.registry.defaults import Defaults

    site.add_node("52:54:00:00:00:01", defaults=Defaults(), accepted=False)
    assert run("node", "accept", "n0000")[1] == "Node 'n0000' has been accepted\n"
    assert site.nodes()[0].accepted


def test_modules_are_activated_summarised_and_deactivated(three: Registry, run: Run) -> None:
    assert {"hostname", "sshkeys"} <= set(run("module", "list")[1].split())
    assert run("module", "activate", "hostname") == (0, "Module 'hostname' has been activated in init/all\n", "")
    status, _, err = run("module", "activate", "sshkeys", "init/node/n0001", "init/group/an-other.g_1")
    assert status == 0
    assert err == "WARNING: init/group/an-other.g_1: there is no group 'an-other.g_1' yet\n"
    assert run("module", "summary", "hostname", "sshkeys")[1] == (
        "hostname:\n        init/all\nsshkeys:\n        init/group/an-other.g_1\n        init/node/n0001\n"
    )
    assert run("module", "deactivate", "sshkeys", "init/node/n0001")[0] == 0
    assert json.loads(run("module", "summary", "--json")[1])["sshkeys"] == ["init/group/an-other.g_1"]
    assert run("module", "deactivate", "sshkeys")[0] == 0
    assert three.roles() == {"hostname": ["init/all"]}


@pytest.mark.parametrize(
    "words",
    [
        ("activate", "nothing"),
        ("activate", "hostname", "init/all", "init/grp/x"),
        ("activate", "hostname", "boot/all"),
        ("deactivate", "hostname"),
        ("summary", "nothing"),
    ],
)
def test_a_wrong_module_or_role_changes_nothing(site: Registry, run: Run, words: tuple[str, ...]) -> None:
    assert run("module", *words)[0] == 1
    assert site.roles() == {}


def test_a_site_may_have_states_of_its_own(site: Registry, run: Run, tmp_path: Path) -> None:
    conf = tmp_path / "etc/site.toml"
    conf.write_text(conf.read_text().replace('states = ""', 'states = "boot"'))
    assert run("module", "activate", "hostname", "boot/all")[0] == 0


def test_listing_nodes_loads_nothing_heavy(site: Registry, tmp_path: Path) -> None:
    heavy = {"aiohttp", "cryptography", "ClusterShell", "rich", "jinja2", "asyncio", "tomlkit", "subprocess"}
    code = (
        "import sys; from capsulekit.cli.main import main;"
        f"main(['node', 'list', '--config-dir', {str(tmp_path / 'etc')!r}, '--state-dir', {str(tmp_path / 'var')!r}]);"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
