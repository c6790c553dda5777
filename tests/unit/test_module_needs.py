"""Every command that a module or the agent runs is there: in stage 1's image, on the node, or brought by the agent."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from image_of import files_image
from initramfs_builder.check.scripts import TRIES, externals, our_programs, stated
from node_shell import AGENT, LIB

from provisioner.catalog import SHIPPED

SCRIPTS = sorted(SHIPPED.glob("*/*/[0-9]*"))
STAGE1 = tomllib.loads((Path(__file__).parents[2] / "recipes/stage1/common.toml").read_text())["stage1"]
IN_STAGE1 = {*STAGE1["applets"], *(path.rpartition("/")[2] for path in STAGE1["binaries"])}
(BROUGHT,) = re.findall(r"^AGENT_PROGRAMS='([^']*)'$", (LIB / "nodelayer.sh").read_text(), re.MULTILINE)
# What a system that mounts, reboots and loads modules has of its own.
SYSTEMS_OWN = {"modprobe", "mount", "reboot", "sh"}


def ran(text: str) -> set[str]:
    (program,) = our_programs(files_image({"init": text}))
    return {name for _, name in externals(program, "init")}


def id_of(path: Path) -> str:
    return "-".join(path.parts[-3:])


@pytest.mark.parametrize("script", [*SCRIPTS, AGENT, AGENT.parent / "capsule-agent.init"], ids=id_of)
def test_the_line_needs_names_every_command_and_no_other(script: Path) -> None:
    text = script.read_text()
    assert {name for name in ran(text) if not name.startswith("/")} == set(stated(text)) | set(stated(text, TRIES))


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.parent.name == "init"], ids=id_of)
def test_what_runs_before_the_handoff_is_in_stage_1(script: Path) -> None:
    assert set(stated(script.read_text())) <= IN_STAGE1


@pytest.mark.parametrize(
    "script", [*(s for s in SCRIPTS if s.parent.name == "ready"), AGENT, AGENT.parent / "capsule-agent.init"], ids=id_of
)
def test_what_runs_on_the_node_is_brought_by_the_agent_or_the_systems_own(script: Path) -> None:
    assert set(stated(script.read_text())) <= {*BROUGHT.split(), *SYSTEMS_OWN}
