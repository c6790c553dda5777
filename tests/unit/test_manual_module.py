"""The manual's transcript of modules: activate, summary, deactivate."""

from __future__ import annotations

from pathlib import Path

import pytest
from perceus_shell import Shell, shell_of

MODULES = "groupfile hostfile hostname passwdfile"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """The manual's four activations, on a site that has what they name."""
    made = shell_of(tmp_path)
    made.add("node0000", "other")
    made.set("groupname", "newgroup", "node0000")
    made.set("groupname", "anothergroup", "other")
    made("perceus module activate hostfile")
    made("perceus module activate hostname init/all")
    made("perceus module activate passwdfile init/group/newgroup")
    made("perceus module activate groupfile init/node/node0000 init/group/anothergroup")
    return made


def test_summary_prints_the_manuals_stack(shell: Shell) -> None:
    assert shell(f"perceus module summary {MODULES}") == (
        "groupfile:\n"
        "        init/group/anothergroup\n"
        "        init/node/node0000\n"
        "hostfile:\n"
        "        init/all\n"
        "hostname:\n"
        "        init/all\n"
        "passwdfile:\n"
        "        init/group/newgroup\n"
    )


def test_deactivate_ends_one_role_and_then_all(shell: Shell) -> None:
    shell("perceus module deactivate groupfile init/group/anothergroup")
    assert shell("perceus module summary groupfile") == "groupfile:\n        init/node/node0000\n"
    shell("perceus module activate groupfile init/group/anothergroup")
    shell("perceus module deactivate groupfile")
    assert shell("perceus module summary groupfile") == "groupfile:\n"


def test_list_has_them(shell: Shell) -> None:
    assert set(MODULES.split()) <= set(shell("perceus module list").split())


@pytest.mark.parametrize("words", ["groupfile boot/all", "groupfile init/all init/grp/x", "nothing", "groupfile init"])
def test_a_wrong_role_activates_nothing(shell: Shell, words: str) -> None:
    before = shell("perceus module summary")
    assert shell.run(f"perceus module activate {words}").returncode == 1
    assert shell("perceus module summary") == before
