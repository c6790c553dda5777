"""What a node does while it may not go on, and its agent for ever after: it says why once, and never hurries."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from node_shell import AGENT, MAC, SHELLS, SOURCE, Node, a_plan, node

__all__ = ["node"]  # the fixture

# A master that answers with the next line of a list ("CODE TEXT") each time it is asked.
MASTER = """
tls() {
    asked=$(($(grep -c . "$RUN/asked" 2>/dev/null || :) + 1))
    echo x >>"$RUN/asked"
    answer=$(sed -n "${asked}p" "$RUN/answers")
    while [ $# -gt 0 ]; do
        [ "$1" != -o ] || out=$2
        shift
    done
    case $answer in
        200*) cp "$RUN/good" "$out" ;;
        *) printf '%s\\n' "${answer#* }" >"$out" ;;
    esac
    printf '%s' "${answer%% *}"
}
FAKE=0
centiseconds() { echo $FAKE; }
sleep() { FAKE=$((FAKE + $1 * 100)); echo "$1" >>"$RUN/slept"; }
"""
REASONS = {
    "disabled": "this node is disabled on the master; it goes on by itself once enabled",
    "not-accepted": "this node is not accepted yet (capsulekit node accept); it goes on by itself then",
    "no-capsule": "no capsule is set for this node on the master",
    "capsule-missing": "this node's capsule is not on the master",
    "capsule-mounted x-1.0.amd64 is mounted for editing by al since 2026-11-23 UTC": (
        "x-1.0.amd64 is mounted for editing by al since 2026-11-23 UTC; it goes on by itself after umount or close"
    ),
    "something new": "the master says: something new",
}


def console(node: Node) -> list[str]:
    path = node.run.parent / "console"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_plan(node: Node, *answers: str) -> list[int]:
    """How long it slept between asking."""
    (node.run / "answers").write_text("".join(f"{line}\n" for line in answers))
    (node.run / "good").write_text(a_plan())
    node.out(f"{MASTER}clock_from_master() {{ :; }}; get_plan {MAC}")
    slept = node.run / "slept"
    return [int(line) for line in slept.read_text().split()] if slept.exists() else []


def test_a_node_that_must_wait_says_each_reason_once_and_goes_on_by_itself(node: Node) -> None:
    told = [word for word in REASONS for _ in range(3)]
    slept = wait_for_plan(node, *(f"202 wait {word}" for word in told), "200 plan")
    assert console(node) == [f"capsulekit: waiting: {text}" for text in REASONS.values()]
    assert (node.run / "detail").read_text() == "n0001 boots mini-1.0.amd64\n"
    # A master that answers at once, as a stopping one does, is not asked without end.
    assert len(slept) == len(told) and min(slept) >= 4


def test_a_master_that_keeps_the_request_is_asked_again_at_once(node: Node) -> None:
    # It held the node for 25 s.
    slow = MASTER.replace("tls() {", "tls() {\n    FAKE=$((FAKE + 2500))")
    (node.run / "answers").write_text("202 wait disabled\n202 wait disabled\n200 plan\n")
    (node.run / "good").write_text(a_plan())
    held = slow.replace("centiseconds() { echo $FAKE; }", 'centiseconds() { echo $(($(cat "$RUN/now") + 0)); }')
    held = held.replace("FAKE=$((FAKE + 2500))", 'echo $(($(cat "$RUN/now") + 2500)) >"$RUN/now"')
    (node.run / "now").write_text("0\n")
    node.out(f"{held}clock_from_master() {{ :; }}; get_plan {MAC}")
    assert not (node.run / "slept").exists()
    assert len(console(node)) == 1


def test_a_reason_from_the_master_is_one_harmless_line(node: Node) -> None:
    wait_for_plan(node, "202 wait \x1b[2J" + "x" * 900, "200 plan")
    (line,) = console(node)
    assert line.startswith("capsulekit: waiting: the master says:  [2Jxxx") and len(line) < 350


def test_reports_for_a_master_that_is_away_for_days_do_not_fill_the_memory(node: Node) -> None:
    folder = node.run / "queue"
    folder.mkdir()
    for number in range(101):
        (folder / f"{number:06d}").touch()
    node.do("bad() { fail gone; }; step plan bad")
    assert len(list(folder.iterdir())) == 1
    assert "status=failed" in next(folder.iterdir()).read_text()


def test_a_step_that_gave_no_reason_is_explained_by_its_last_complaint(node: Node) -> None:
    node.do("bad() { echo first >&2; echo 'tool: no such thing' >&2; return 3; }; step mount bad")
    assert "capsulekit: FAILED mount: status 3: tool: no such thing" in console(node)
    assert "capsulekit:   | first" in console(node)


def test_a_jump_that_fails_ends_in_a_reboot_also_when_the_network_does_not_come_back(node: Node) -> None:
    (node.run / "node").write_text(MAC)
    script = 'echo busy >"$RUN/kexec.err"; network_up() { fail "eth0: no carrier after 90 s"; }; jump_failed'
    assert node.reason(script) == "kexec did not start the capsule's kernel: busy"
    assert (node.run / "reboot").exists()
    assert console(node) == ["capsulekit: kexec came back: busy", "capsulekit: eth0: no carrier after 90 s"]


# --- process 1


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_process_1_says_so_and_reboots_when_it_ends_for_whatever_reason(shell: str, tmp_path: Path) -> None:
    text = (SOURCE / "stage1/init").read_text()
    start = text[text.index("last_resort() {") : text.index("first_mounts\n\n")]
    (tmp_path / "init").write_text(
        f'set -eu\nreboot() {{ echo "reboot $*"; }}\nsleep() {{ echo "sleep $*"; }}\n'
        f"{start.replace('/dev/console', str(tmp_path / 'console'))}\n"
        'echo "$not_set"\n'
    )
    done = subprocess.run([*SHELLS[shell], str(tmp_path / "init")], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == ["sleep 30", "reboot -f"]
    assert "stage 1 ended unexpectedly; rebooting in 30 s" in (tmp_path / "console").read_text()


# --- the agent


CURL = """#!/bin/sh
printf '%s\\n' "$*" >>"{log}"
for word; do :; done
case $word in https://up/*) exit 0 ;; esac
exit 7
"""


def agent(shell: str, folder: Path, masters: str, rounds: int) -> tuple[list[str], list[int]]:
    """(curl's arguments, the pauses) of so many rounds."""
    (folder / "conf").mkdir(exist_ok=True)
    for name, text in (("masters", masters), ("session", 'header = "Authorization: Bearer secret"\n')):
        (folder / "conf" / name).write_text(text)
    (folder / "curl").write_text(CURL.format(log=folder / "log"))
    (folder / "curl").chmod(0o755)
    env = {"PATH": os.environ["PATH"], "CK_AGENT_SOURCED": "1", "CK_AGENT_CONF": str(folder / "conf"),
           "CK_AGENT_CURL": str(folder / "curl"), "CK_AGENT_RUN": str(folder / "run")}  # fmt: skip
    script = f'. {AGENT}; n=0; sleep() {{ echo "$1"; n=$((n + 1)); [ $n -lt {rounds} ] || exit 0; }}; main'
    done = subprocess.run([*SHELLS[shell], "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return (folder / "log").read_text().splitlines(), [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_the_agent_asks_the_next_master_and_then_rests_a_minute(shell: str, tmp_path: Path) -> None:
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    asked, pauses = agent(shell, tmp_path, "http://down https://down\nhttp://up https://up\n", 3)
    assert [line.rpartition(" ")[2] for line in asked] == [
        "https://down/v1/state/ready", "https://up/v1/state/ready",
    ] * 3  # fmt: skip
    assert all(45 <= pause <= 75 for pause in pauses)
    assert all("--proto =https" in line and "--cacert" in line and "secret" not in line for line in asked)


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_the_agent_without_a_master_waits_longer_and_longer_up_to_a_minute(shell: str, tmp_path: Path) -> None:
    _, pauses = agent(shell, tmp_path, "http://down https://down\n", 12)
    assert pauses[0] == 1 and all(pause >= 1 for pause in pauses)
    assert sum(pauses[:6]) >= 40
    assert all(45 <= pause <= 75 for pause in pauses[7:])
