"""The first run: what it proposes, that flags, a file and a person at the terminal come to the same, and its end."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from capsulekit_cli import Done, cli
from small_site import stage1_folder

from capsulekit.sitepaths import SitePaths
from provisioner.firstrun import first_address, likely, next_commands
from provisioner.netboot.cards import Card, cards, propose_range

FLAGS = (
    "--interface",
    "ck0",
    "--address",
    "10.0.0.1/24",
    "--range",
    "10.0.0.128-10.0.0.254",
    "--domain",
    "lab.example",
)


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return SitePaths(tmp_path / "etc", tmp_path / "var")


def run(paths: SitePaths, *words: str | Path) -> Done:
    return cli(*words, "--config-dir", paths.config, "--state-dir", paths.state)


def at_a_terminal(paths: SitePaths, *words: str) -> pexpect.spawn:
    folders = {"CAPSULEKIT_CONFIG_DIR": str(paths.config), "CAPSULEKIT_STATE_DIR": str(paths.state)}
    program = ["-c", "from capsulekit.cli.main import entry; entry()", *words]
    return pexpect.spawn(sys.executable, program, env=os.environ | folders, timeout=30, encoding="utf-8")


def settings(paths: SitePaths) -> dict[str, str]:
    return {name: (paths.config / name).read_text() for name in ("site.toml", "defaults.toml")}


# --- what is proposed


@pytest.mark.parametrize(
    ("address", "first", "last"),
    [
        ("10.0.0.1/16", "10.0.252.1", "10.0.255.254"),
        ("10.0.255.254/16", "10.0.124.1", "10.0.127.255"),
        ("10.1.2.3/8", "10.255.252.1", "10.255.255.254"),
        ("10.0.0.1/24", "10.0.0.128", "10.0.0.254"),
        ("10.0.0.254/24", "10.0.0.1", "10.0.0.127"),
        ("10.0.0.128/24", "10.0.0.1", "10.0.0.127"),
        ("10.0.0.1/28", "10.0.0.8", "10.0.0.14"),
        ("10.0.0.14/28", "10.0.0.1", "10.0.0.7"),
        ("10.0.0.1/30", "10.0.0.2", "10.0.0.2"),
        ("fd00:1::1/64", "fd00:1::1000", "fd00:1::1fff"),
        ("fd00:1::1234/64", "fd00:1::2000", "fd00:1::2fff"),
    ],
)
def test_the_range_that_is_proposed(address: str, first: str, last: str) -> None:
    assert propose_range(address) == (first, last)


@pytest.mark.parametrize("prefix", range(8, 31))
def test_a_proposed_range_is_of_the_network_and_never_holds_the_master(prefix: int) -> None:
    network = ipaddress.ip_network(f"10.0.0.0/{prefix}")
    hosts = network.num_addresses - 2
    for number in {1, 2, hosts // 2, hosts // 2 + 1, hosts}:
        master = network[number]
        proposed = propose_range(f"{master}/{prefix}")
        assert proposed is not None
        first, last = map(ipaddress.IPv4Address, proposed)
        assert network[0] < first <= last < network[-1]
        assert not first <= master <= last
        assert int(last) - int(first) < 1024


def test_where_there_is_no_room_nothing_is_proposed() -> None:
    assert propose_range("10.0.0.1/31") is None and propose_range("10.0.0.1/32") is None


def test_this_machine_s_cards_are_listed_without_loopback() -> None:
    found = {card.name: card for card in cards()}
    assert "lo" not in found
    for name in found:
        assert (Path("/sys/class/net") / name).exists()


def card(name: str, *addresses: str, linked: bool = True) -> Card:
    return Card(name, "52:54:00:00:00:01", addresses, True, linked)


def test_only_an_obvious_card_is_proposed() -> None:
    public, private = card("eth0", "203.0.114.7/24"), card("eth1", "10.0.0.1/16")
    assert likely([public, private]) == private
    assert likely([public, private, card("eth2", "192.168.0.1/24")]) is None
    assert likely([public, card("eth1", "10.0.0.1/16", linked=False)]) is None
    assert first_address(card("eth1", "10.0.0.1/32", "10.0.0.2/24")) == "10.0.0.2/24"
    assert first_address(None) is None


# --- three ways to say the same


def test_a_file_says_the_same_as_flags(paths: SitePaths, tmp_path: Path) -> None:
    assert run(paths, "init", *FLAGS, "--policy", "accept").status == 0
    other = SitePaths(tmp_path / "etc2", tmp_path / "var2")
    file = tmp_path / "answers.toml"
    file.write_text(
        'interface = "ck0"\naddress = "10.0.0.1/24"\nrange = "10.0.0.128-10.0.0.254"\ndomain = "other.example"\n'
        'policy = "accept"\nstage1 = ["stage1"]\n'
    )
    stage1_folder(tmp_path / "stage1")
    done = run(other, "init", "--from", file, "--domain", "lab.example")
    assert done.status == 0, done.err
    assert settings(other) == settings(paths)
    assert (other.state / "stage1" / "amd64" / "vmlinuz").exists()


def test_a_person_at_the_terminal_comes_to_the_same(paths: SitePaths, tmp_path: Path) -> None:
    assert run(paths, "init", *FLAGS).status == 0
    other = SitePaths(tmp_path / "etc2", tmp_path / "var2")
    with at_a_terminal(other, "init") as child:
        child.expect("This machine's network interfaces:")
        child.expect("interface the nodes are on")
        child.sendline("ck0")
        child.expect("address there")
        child.sendline("10.0.0.1/24")
        child.expect(r"START-END \[10\.0\.0\.128-10\.0\.0\.254\]")
        child.sendline("")
        child.expect("Domain")
        child.sendline("lab.example")
        child.expect("NFS")
        child.sendline("")
        child.expect("web server")
        child.sendline("n")
        child.expect("is ready")
        child.expect("stage1 build")
        child.expect("vnfs import")
        child.expect("serve")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    assert settings(other) == settings(paths)


@pytest.mark.parametrize("answered", range(5))
def test_end_of_input_at_any_question_makes_nothing(paths: SitePaths, answered: int) -> None:
    questions = ["interface the nodes", "address there", "START-END", "Domain", "NFS", "web server"]
    answers = ["ck0", "10.0.0.1/24", "", "", ""]
    with at_a_terminal(paths, "init") as child:
        for question, answer in zip(questions[:answered], answers[:answered], strict=True):
            child.expect(question)
            child.sendline(answer)
        child.expect(questions[answered])
        child.sendeof()
        child.expect("nothing was changed")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 1
    assert not paths.config.exists() and not paths.state.exists()


def test_a_service_that_was_asked_for_is_configured(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from provisioner.services import nfs

    exports = tmp_path / "exports"
    monkeypatch.setattr(nfs, "EXPORTS", exports)
    done = run(paths, "init", *FLAGS, "--nfs")
    assert done.status == 0, done.err
    assert f"{paths.state}/nfs 10.0.0.0/24(ro" in exports.read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("interface = 7\n", "interface must be a text"),
        ('interfaces = "x"\n', "unknown key 'interfaces'"),
        ('stage1 = "x"\n', "stage1 must be a list of texts"),
        ("stage1 = [1]\n", "stage1 must be a list of texts"),
        ('nfs = "yes"\n', "nfs must be true or false"),
        ("interface = \n", "answers.toml: "),
        ("\xff\n", "answers.toml: "),
        ("a = " + "[" * 5000, "answers.toml: "),
    ],
)
def test_a_file_of_answers_that_is_none_makes_nothing(paths: SitePaths, tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "answers.toml"
    file.write_bytes(text.encode("latin-1"))
    done = run(paths, "init", *FLAGS, "--from", file)
    assert done.status == 1 and why in done.err and "bug" not in done.err
    assert not paths.config.exists()


def test_where_another_server_gives_addresses_no_range_is_needed(paths: SitePaths) -> None:
    done = run(paths, "init", "--interface", "ck0", "--address", "10.0.0.1/24", "--dhcp", "proxy")
    assert done.status == 0, done.err
    assert 'dhcp = "proxy"' in (paths.config / "site.toml").read_text()


# --- beforehand


@pytest.mark.parametrize("words", [[], ["--nfs"], ["--json", "--nfs"]])
def test_a_dry_run_says_what_would_be_made_and_makes_nothing(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    from provisioner.services import nfs

    monkeypatch.setattr(nfs, "EXPORTS", tmp_path / "exports")
    done = run(paths, "init", *FLAGS, *words, "--dry-run")
    assert (done.status, done.err) == (0, "")
    assert '"new": true' in done.out if "--json" in words else "would be made" in done.out
    assert not paths.config.exists() and not paths.state.exists()
    assert run(paths, "init", *FLAGS).status == 0
    before = settings(paths)
    done = run(paths, "init", "--policy", "accept", *words, "--dry-run")
    assert done.status == 0, done.err
    assert '"policy"' in done.out if "--json" in words else "would change (policy)" in done.out
    assert settings(paths) == before and not (tmp_path / "exports").exists()


# --- its end


def test_it_ends_with_three_commands_and_a_later_run_does_not(paths: SitePaths, tmp_path: Path) -> None:
    first = run(paths, "init", *FLAGS).out.splitlines()
    assert first[-4].startswith("The first node boots with these three")
    ends = ["init --stage1 stage1", "init --default-vnfs NAME", "serve"]
    assert all(line.endswith(end) for line, end in zip(first[-3:], ends, strict=True))
    assert len(run(paths, "init", *FLAGS).out.splitlines()) == 2
    run(paths, "init", "--stage1", stage1_folder(tmp_path / "built"))
    assert len(next_commands(paths)) == 3 and "stage1" not in "".join(next_commands(paths)).replace(str(tmp_path), "")


def test_a_killed_first_run_can_be_run_again(paths: SitePaths) -> None:
    """Killed after each file that it writes: the next run makes the whole site."""
    program = (
        "import os, sys\n"
        "import capsulekit.files as files\n"
        "left = int(sys.argv.pop(1))\n"
        "real = files.fsync_dir\n"
        "def die(path):\n"
        "    global left\n"
        "    real(path)\n"
        "    left -= 1\n"
        "    if left == 0:\n"
        "        os.kill(os.getpid(), 9)\n"
        "files.fsync_dir = die\n"
        "from capsulekit.cli.main import entry\n"
        "entry()\n"
    )
    folders = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]
    killed = 0
    for number in range(1, 20):
        done = subprocess.run(
            [sys.executable, "-c", program, str(number), "init", *FLAGS, *folders],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if done.returncode == 0:
            break
        assert done.returncode == -9
        killed += 1
        again = run(paths, "init", *FLAGS)
        assert again.status == 0, again.err
        assert run(paths, "node", "list").status == 0
        shutil.rmtree(paths.config)
        shutil.rmtree(paths.state)
    assert killed >= 3
