"""The agent's loop against the real master over real TLS, under busybox ash, dash and bash."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agent_shell import SHELLS, Agent, steps_of
from node_shell import AGENT as AGENT_FILE
from small_capsule import AUTHOR
from small_site import MAC, Running, make_site, running

from provisioner.catalog.pmod import write_pmod
from provisioner.registry.model import Node

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("busybox", "curl", "dash"))), reason="needs busybox, curl, dash"
)


class Site:
    """A running master, and a node with a session and an agent."""

    def __init__(self, running: Running, agent: Agent) -> None:
        self.master, self.agent = running, agent
        self.paths = running.site.desk.paths

    def module(
        self, name: str, scripts: dict[str, str], more: str = "", roles: tuple[str, ...] = ("ready/all",)
    ) -> None:
        """Sign, install and activate a module."""
        states = sorted({path.partition("/")[0] for path in scripts})
        toml = f'name = "{name}"\nversion = "1"\nsummary = "a test"\nstates = {states}\n{more}\n'
        files = {path: f"#!/bin/sh\n{text}\n".encode() for path, text in scripts.items()}
        store = self.paths.state / "modules"
        store.mkdir(exist_ok=True)
        write_pmod(store / f"{name}.pmod", {"module.toml": toml.encode(), **files}, AUTHOR)
        self.master.registry.activate(name, roles, self.master.site.desk.config.all_states)

    @property
    def node(self) -> Node:
        node = self.master.registry.node(MAC)
        assert node is not None
        return node

    def log(self) -> list[str]:
        path = self.agent.root / "log"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(params=sorted(SHELLS))
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    paths = make_site(tmp_path / "site")
    conf = paths.config / "site.toml"
    conf.write_text(conf.read_text().replace('states = ""', 'states = "boot"'))
    async with running(paths) as run:
        key = await run.session()
        yield Site(run, Agent(request.param, tmp_path / "node", run, key))


LOG = 'echo "$STATE $0 $NODENAME $GROUPNAME $VNFS $NODEID" | sed "s|/.*/||" >>"$NEWROOT/log"'


async def test_without_modules_the_agent_only_says_ready(site: Site) -> None:
    done = await site.agent.rounds(2)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(45 <= int(pause) <= 75 for pause in done.stdout.split())
    assert (site.node.status, steps_of(site.master)) == ("ready", [])
    assert site.agent.kept_from_others()


async def test_scripts_run_in_order_with_their_environment_and_each_is_reported(site: Site) -> None:
    site.module("second", {"ready/60-b": f"{LOG}; echo fine"})
    site.module("first", {"ready/50-a": "exit_here=1; cd /nowhere 2>/dev/null; " + LOG})
    await site.agent.rounds()
    digests = [line.split()[1] for line in site.log()]
    assert len(digests) == 2 and digests[0] != digests[1]
    assert site.log()[0].startswith("ready ")
    assert site.log()[0].split(" ", 2)[2] == f"n0000.new cluster tiny-1.0.amd64 {MAC}"
    assert steps_of(site.master) == [
        ("ready/first/50-a", "ok", "script 50-a (first): status 0:"),
        ("ready/second/60-b", "ok", "script 60-b (second): status 0: fine"),
    ]
    assert site.node.status == "ready"


async def test_nothing_runs_again_until_the_plan_changes(site: Site) -> None:
    site.module("one", {"ready/50-a": LOG})
    await site.agent.rounds(3)
    await site.agent.rounds(1)  # the service was started anew
    assert len(site.log()) == 1
    site.module("two", {"ready/40-b": LOG})
    await site.agent.rounds(2)
    assert len(site.log()) == 3
    site.master.registry.deactivate("one")
    site.master.registry.deactivate("two")
    await site.agent.rounds()
    assert not (site.agent.run / "ready").exists()


async def test_a_failing_script_is_reported_by_name_and_the_others_run(site: Site) -> None:
    site.module("bad", {"ready/10-bad": "echo the disk is full; exit 3"})
    site.module("good", {"ready/50-good": LOG})
    await site.agent.rounds(2)
    assert len(site.log()) == 1
    assert steps_of(site.master)[0] == ("ready/bad/10-bad", "failed", "script 10-bad (bad): status 3: the disk is full")
    assert (site.node.status, site.node.error) == ("failed", "script 10-bad (bad): status 3: the disk is full")
    # Mended: the plan is another one.
    site.module("bad", {"ready/10-bad": "echo better"}, roles=())
    await site.agent.rounds()
    assert (site.node.status, site.node.error) == ("ready", "")


async def test_an_optional_script_may_fail(site: Site) -> None:
    site.module("may", {"ready/10-may": "echo not here; exit 1"}, 'optional = ["ready/10-may"]')
    await site.agent.rounds()
    assert steps_of(site.master) == [
        ("ready/may/10-may", "ok", "script 10-may (may): failed but optional: status 1: not here")
    ]
    assert site.node.status == "ready"


async def test_a_script_that_takes_too_long_is_ended_and_the_next_one_runs(site: Site) -> None:
    site.module("slow", {"ready/10-slow": "echo began; exec sleep 600"}, "limit = 1")
    site.module("good", {"ready/50-good": LOG})
    await site.agent.rounds()
    step, status, detail = steps_of(site.master)[0]
    assert (step, status) == ("ready/slow/10-slow", "failed")
    assert "began" in detail and ("longer than 1 s" in detail or "status 143" in detail)
    assert len(site.log()) == 1


async def test_a_module_may_ask_to_run_again_and_again(site: Site) -> None:
    site.module("again", {"ready/10-a": LOG}, "every = 5")
    site.module("once", {"ready/20-b": LOG})
    clock = site.agent.run.parent / "proc"
    (clock / "sys/kernel/random").mkdir(parents=True)
    (clock / "sys/kernel/random/uuid").write_text("00000000-\n")
    (clock / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable: 5 kB\n")
    site.agent.env["CK_PROC"] = str(clock)
    for now in (100, 102, 106):
        (clock / "uptime").write_text(f"{now}.00 1.0\n")
        await site.agent.rounds()
    assert len(site.log()) == 3


async def test_a_file_that_is_not_what_the_plan_says_runs_nothing(site: Site) -> None:
    site.module("first", {"ready/10-a": LOG})
    site.module("second", {"ready/20-b": LOG + "; :"})
    wrong = 'sha256sum() { m=$(cat "$RUN/m" 2>/dev/null || echo 0); echo $((m + 1)) >"$RUN/m"; '
    wrong += 'if [ "$m" -ne 1 ]; then command sha256sum; else echo 0 -; fi; };'
    await site.agent.rounds(1, before=wrong)
    assert site.log() == []
    assert (site.node.status, site.node.error) == (
        "failed",
        "can't fetch second/20-b as the plan has it; nothing was run",
    )
    await site.agent.rounds()
    assert len(site.log()) == 2 and site.node.status == "ready"


@pytest.mark.parametrize("cut", ["sed '$d'", "sed 's/^script/scrpt/'", "sed 's/ 10-a / ..\\/a /'", "tr -d '\\n'"])
async def test_a_plan_that_is_cut_or_not_understood_runs_nothing(site: Site, cut: str) -> None:
    site.module("first", {"ready/10-a": LOG})
    change = (
        'eval "real_$(sed -n \'/^report() {/,/^}/p\' "$CK_AGENT")"; '
        f'report() {{ real_report "$@" && {cut} <"$RUN/$1.answer" >"$RUN/x" && mv "$RUN/x" "$RUN/$1.answer"; }};'
    )
    from node_shell import AGENT

    site.agent.env["CK_AGENT"] = str(AGENT)
    await site.agent.rounds(2, before=change)
    assert site.log() == []
    assert "not understood" in site.node.error


async def test_an_agent_that_was_killed_half_way_starts_over(site: Site) -> None:
    site.module("first", {"ready/10-a": LOG})
    site.module("second", {"ready/20-b": LOG + "; :"})
    done = await site.agent.rounds(1, before="tell() { case $1 in *20-b) kill -9 $$ ;; esac; };")
    assert done.returncode == -9
    assert not (site.agent.run / "ready/done").exists()
    await site.agent.rounds()
    assert (site.agent.run / "ready/done").exists()
    assert len(site.log()) == 4


async def test_a_module_that_is_no_longer_trusted_stops_nothing_else(site: Site) -> None:
    from capsulekit.trust.keyring import Keyring

    site.module("first", {"ready/10-a": LOG})
    await site.agent.rounds()
    Keyring(site.paths.trust).revoke(AUTHOR.public.id)
    await site.agent.rounds()
    assert site.node.status == "failed" and "revoked" in site.node.error
    assert (site.agent.run / "ready/plan").exists()
    assert len(site.log()) == 1


async def test_the_next_master_is_asked_and_the_key_is_never_an_argument(site: Site) -> None:
    masters = site.agent.conf / "masters"
    masters.write_text("http://127.0.0.1:1 https://127.0.0.1:1\n" + masters.read_text())
    site.agent.stub("watched", 'printf "%s\\n" "$*" >>"$0.log"; exec curl "$@"')
    site.agent.env["CK_AGENT_CURL"] = str(site.agent.run.parent / "bin/watched")
    site.module("first", {"ready/10-a": LOG + '; env >>"$NEWROOT/env"'})
    await site.agent.rounds()
    assert len(site.log()) == 1
    key = (site.agent.conf / "session").read_text().split()[-1].strip('"')
    assert key not in (site.agent.run.parent / "bin/watched.log").read_text()
    assert key not in (site.agent.root / "env").read_text()


async def test_a_state_of_the_sites_own_is_reported_once(site: Site) -> None:
    site.module("booting", {"boot/10-a": LOG}, roles=("boot/all",))
    done = await site.agent.do(f"sh {AGENT_FILE} boot", CK_AGENT_SOURCED="")
    assert done.returncode == 0, done.stderr
    assert len(site.log()) == 1
    assert (site.node.status, steps_of(site.master)[0][0]) == ("boot", "boot/booting/10-a")
    done = await site.agent.do(f"sh {AGENT_FILE} nosuch", CK_AGENT_SOURCED="")
    assert done.returncode == 1


async def test_a_capsules_own_scripts_for_ready_are_the_module_vnfs(tmp_path: Path) -> None:
    from small_capsule import small_capsule
    from small_site import SECRET_CONTENT

    paths = make_site(tmp_path / "site")
    path = "provision/ready/45-own"
    content = {name: data for name, data in SECRET_CONTENT.items() if name != "layers/secret.squashfs"}
    content[path] = b'#!/bin/sh\necho own >>"$NEWROOT/log"\n'
    small_capsule(tmp_path / "own.vnfs", content, name="own", provision=("provision/init/10-hello", path))
    async with running(paths) as run:
        run.site.desk.store.import_file(tmp_path / "own.vnfs")
        agent = Agent("dash", tmp_path / "node", run, await run.session())
        run.registry.set_nodes("vnfs", "own-1.0.amd64", [MAC])
        await agent.rounds()
        assert (agent.root / "log").read_text() == "own\n"
        assert steps_of(run)[0][0] == "ready/vnfs/45-own"


async def test_a_plan_that_could_not_be_fetched_and_was_taken_back_leaves_no_complaint(site: Site) -> None:
    site.module("one", {"ready/10-a": LOG})
    await site.agent.rounds()
    site.module("two", {"ready/20-b": LOG + "; :"})
    await site.agent.rounds(1, before="take() { return 1; };")
    assert (site.node.status, len(site.log())) == ("failed", 1)
    site.master.registry.deactivate("two")
    await site.agent.rounds()
    assert (site.node.status, site.node.error, len(site.log())) == ("ready", "", 1)


async def test_a_failed_script_stays_failed_when_another_plan_came_and_went(site: Site) -> None:
    site.module("bad", {"ready/10-bad": "echo no; exit 3"})
    await site.agent.rounds()
    site.module("two", {"ready/20-b": LOG})
    await site.agent.rounds(1, before="take() { return 1; };")
    assert "can't fetch" in site.node.error
    site.master.registry.deactivate("two")
    await site.agent.rounds(2)
    assert (site.node.status, site.node.error) == ("failed", "script 10-bad (bad): status 3: no")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small /run")
async def test_a_script_that_prints_without_end_fills_nothing_and_its_end_is_told(site: Site) -> None:
    with small_run(site.agent.run, "1m"):
        loop = "n=0; while [ $n -lt 40000 ]; do n=$((n + 1)); printf '%080d\\n' $n; done"
        site.module("much", {"ready/10-a": f"{loop}; printf 'the \\0 \\377 end\\n'; exit 5"})
        await site.agent.rounds(2)
        status, told = site.node.status, site.node.error
        assert (status, told[:30]) == ("failed", "script 10-a (much): status 5: ") and told.endswith("40000 the end")
        assert not list(site.agent.run.glob("*.log*"))


async def test_a_program_that_a_script_leaves_running_is_not_waited_for(site: Site) -> None:
    left = 'left() { while [ -e "$NEWROOT/go" ]; do echo still here; sleep 0.2; done; : >"$NEWROOT/well"; }'
    site.module("daemon", {"ready/10-a": f"{left}; echo begun; left & exit 0"})
    site.module("next", {"ready/20-b": LOG})
    (site.agent.root / "go").touch()
    await site.agent.rounds()
    assert len(site.log()) == 1
    assert steps_of(site.master)[0][2].endswith("still here")
    (site.agent.root / "go").unlink()
    await asyncio.sleep(1)
    # Nobody closed its output under it.
    assert (site.agent.root / "well").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small /run")
async def test_a_full_disk_is_a_failure_that_is_said(site: Site) -> None:
    with small_run(site.agent.run, "64k"):
        (site.agent.run / "full").write_bytes(bytes(60 << 10))
        site.module("one", {"ready/10-a": LOG})
        await site.agent.rounds(2)
        assert (site.node.status, site.log()) == ("failed", [])
        assert "there is no room" in site.node.error
        (site.agent.run / "full").unlink()
        await site.agent.rounds()
        assert (site.node.status, len(site.log())) == ("ready", 1)


@contextmanager
def small_run(folder: Path, size: str) -> Iterator[None]:
    """The agent's /run with little room."""
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
