"""Shell completion, in a real interactive bash: names of the site stand behind the Tab key."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from small_site import make_site

BIN = Path(sys.executable).parent
PROMPT = "READY> "

Tab = Callable[[str], str]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A site with two groups, three nodes and the small capsule."""
    paths = make_site(tmp_path_factory.mktemp("site"))
    env = {**os.environ, "CAPSULEKIT_CONFIG_DIR": str(paths.config), "CAPSULEKIT_STATE_DIR": str(paths.state)}
    env |= {"PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "xterm"}
    for name in ("alpha", "beta", "gamma-1"):
        argv = [BIN / "capsulekit", "node", "add", f"52:54:00:00:00:{len(name):02x}", name]
        subprocess.run(argv, env=env, check=True, capture_output=True)
    argv = [BIN / "capsulekit", "node", "set", "groupname", "rack.one", "beta"]
    subprocess.run(argv, env=env, check=True, capture_output=True)
    return env


@pytest.fixture(scope="module")
def tab(environment: dict[str, str]) -> Iterator[Tab]:
    """Types a line and Tab; gives the line as bash has it then."""
    bash = pexpect.spawn(
        "bash", ["--norc", "--noprofile"], env=environment, encoding="utf-8", timeout=60, dimensions=(50, 300)
    )
    bash.sendline("bind 'set enable-bracketed-paste off'; bind 'set bell-style none'")
    for program in ("capsulekit", "perceus"):
        bash.sendline(f"source <(capsulekit completion bash {program})")
    # Split, so that the echo of this line is no prompt.
    bash.sendline("PS1='READY''> '")
    bash.expect_exact(PROMPT)

    def press(line: str) -> str:
        # readline works one key after the other: what stands behind Tab waits until the completion is there.
        bash.send(f"{line}\t\x01printf '<%s>\\n' '\x05'\r")
        bash.expect(r"<((?:capsulekit|perceus)[^<>\r\n]*)>\r\n")
        return str(bash.match[1]).rstrip()

    yield press
    bash.sendline("exit")
    bash.close(force=True)


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("capsulekit nod", "capsulekit node"),
        ("capsulekit node sho", "capsulekit node show"),
        ("capsulekit node console", "capsulekit node console-log"),
        ("perceus grou", "perceus group"),
        ("perceus buil", "perceus buil"),
        ("capsulekit --js", "capsulekit --json"),
        ("capsulekit node delete --dry", "capsulekit node delete --dry-run"),
        ("capsulekit node show al", "capsulekit node show alpha"),
        ("capsulekit node show alpha ga", "capsulekit node show alpha gamma-1"),
        ("capsulekit -q node show --json be", "capsulekit -q node show --json beta"),
        ("capsulekit node show alpha,be", "capsulekit node show alpha,beta"),
        ("capsulekit node show @ra", "capsulekit node show @rack.one"),
        ("capsulekit node show alpha,@ra", "capsulekit node show alpha,@rack.one"),
        ("capsulekit -i node show 52:54:00:00:00:07", "capsulekit -i node show 52:54:00:00:00:07"),
        ("capsulekit -i node show 52:54:00:00:00:05 52:54:00:00:00:04", None),
        ("capsulekit node replace al", "capsulekit node replace alpha"),
        ("capsulekit group show ra", "capsulekit group show rack.one"),
        ("capsulekit node set host", "capsulekit node set hostname"),
        ("capsulekit node set vnfs ti", "capsulekit node set vnfs tiny-1.0.amd64"),
        ("capsulekit node set group ra", "capsulekit node set group rack.one"),
        ("capsulekit node set enabled y", "capsulekit node set enabled yes"),
        ("capsulekit node set enabled yes al", "capsulekit node set enabled yes alpha"),
        ("capsulekit module activate ssh", "capsulekit module activate sshkeys"),
        ("capsulekit module activate sshkeys init/group/ra", "capsulekit module activate sshkeys init/group/rack.one"),
        ("capsulekit module activate sshkeys init/all ready/vn", None),
        ("capsulekit module deactivate sshkeys in", "capsulekit module deactivate sshkeys init/all"),
        ("capsulekit vnfs delete ti", "capsulekit vnfs delete tiny-1.0.amd64"),
        ("capsulekit vnfs export ti", "capsulekit vnfs export tiny-1.0.amd64"),
        ("capsulekit node show nothing-like-it", "capsulekit node show nothing-like-it"),
    ],
)
def test_tab_completes(tab: Tab, typed: str, there: str | None) -> None:
    got = tab(typed)
    assert got == (typed if there is None else there) or (there is None and got.startswith(typed))


def test_a_mac_is_completed_behind_its_colons(tab: Tab) -> None:
    assert tab("capsulekit -i node show 52:54:00:00:00:04") == "capsulekit -i node show 52:54:00:00:00:04"
    assert tab("perceus -i node show 52:5").startswith("perceus -i node show 52:54:00:00:00:0")


def test_another_site_is_completed_from_when_the_line_names_it(tab: Tab, tmp_path: Path) -> None:
    other = make_site(tmp_path)
    flags = f"--config-dir {other.config} --state-dir {other.state}"
    subprocess.run([BIN / "capsulekit", *flags.split(), "node", "add", "52:54:00:00:00:01", "zeta"], check=True)
    assert tab(f"capsulekit {flags} node show ze") == f"capsulekit {flags} node show zeta"
    assert tab(f"capsulekit {flags} node show al") == f"capsulekit {flags} node show al"


@pytest.mark.parametrize("words", [["node", "show", ""], ["node", "set", ""], ["module", "activate", "x", ""]])
def test_without_a_site_nothing_is_offered_made_or_said(tmp_path: Path, words: list[str]) -> None:
    folders = {"CAPSULEKIT_CONFIG_DIR": str(tmp_path / "etc"), "CAPSULEKIT_STATE_DIR": str(tmp_path / "var")}
    env = {
        **os.environ,
        **folders,
        "_CAPSULEKIT_COMPLETE": "bash_complete",
        "COMP_LINE": f"capsulekit {' '.join(words)}",
    }
    done = subprocess.run([BIN / "capsulekit"], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", ["capsulekit", "perceus"])
def test_each_shell_has_a_script_for_both_programs(shell: str, program: str) -> None:
    done = subprocess.run(
        [BIN / "capsulekit", "completion", shell, program], capture_output=True, text=True, check=True
    )
    assert program in done.stdout and f"_{program.upper()}_COMPLETE" in done.stdout
