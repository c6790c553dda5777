"""The manual's transcripts of `perceus info`; secrets are never printed."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from perceus_shell import Shell, shell_of


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return shell_of(tmp_path)


def test_config_prints_the_manuals_three(shell: Shell) -> None:
    assert shell("perceus info config prefix") == f"{sys.prefix}\n"
    assert shell('perceus info config "vnfs transfer master"') == "10.0.0.1\n"
    assert shell("perceus info config statedir") == f"{shell.paths.state}/\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interface", "eth1"), ("master network device", "eth1"), ("address", "10.0.0.1/16"), ("http_port", "8009"),
        ("http port", "8009"), ("node_name", "n####.new"), ("Node Name", "n####.new"), ("group name", "cluster"),
        ("enabled", "1"), ("first node", "0"), ("states", ""), ("vnfs   Name", ""),
    ],
)  # fmt: skip
def test_config_knows_both_spellings(shell: Shell, key: str, value: str) -> None:
    assert shell(f"perceus info config '{key}'") == f"{value}\n"
    assert json.loads(shell(f"perceus --json info config '{key}'")) == {key: value}


def test_config_takes_words_without_quotes(shell: Shell) -> None:
    assert shell("perceus info config vnfs transfer master") == "10.0.0.1\n"


def test_an_unknown_key_exits_1(shell: Shell) -> None:
    done = shell.run("perceus info config nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ERROR: there is no setting 'nothing'\n")


def test_about_is_what_no_command_prints(shell: Shell) -> None:
    assert shell("perceus info about").startswith(shell("perceus").rstrip())
    assert version("capsulekit") in shell("perceus info about")


def test_system_is_where_a_search_begins(shell: Shell) -> None:
    shell.add("n0", "n1")
    lines = shell("perceus info system").splitlines()
    assert {f"capsulekit: {version('capsulekit')}", "site.interface: eth1", "nodes: 2", "group.cluster: 2"} <= {*lines}
    assert any(line.startswith("interface.lo: ") and "127.0.0.1" in line for line in lines)
    assert json.loads(shell("perceus --json info system"))["nodes"] == "2"


def test_secrets_are_never_printed(shell: Shell) -> None:
    conf = shell.paths.config / "site.toml"
    conf.write_text(conf.read_text().replace('\nkargs = ""', '\nkargs = "quiet ipmi.password=hunter2"'))
    for line in ("perceus info config kargs", "perceus info system", "perceus --json info system"):
        printed = shell(line)
        assert "quiet" in printed and "hunter2" not in printed
