"""capsule-tree on a real overlay, under busybox ash, dash and bash; the agent sends its list when the master asks."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from agent_shell import SHELLS, Agent
from livesync_bench import AGENT, APPLETS
from small_site import MAC, OTHER_MAC, Running, make_site, running

from provisioner.trees.entry import escape
from provisioner.trees.report import MOST_BYTES, NodeTree, parse_report

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
OPTIONS = "redirect_dir=off,metacopy=off,index=off,xino=off"


class Shown:
    """What stage 2 shows: a capsule of two layers, a node's own, and what was written on top."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.folder, self.shell = folder, SHELLS[shell]
        for name in ("low", "high", "node", "upper", "work", "root", "bin", *(f"shown/{one}" for one in "uncbm")):
            (folder / name).mkdir(parents=True)
        for name in (*APPLETS, "busybox"):
            (folder / "bin" / name).symlink_to(shutil.which("busybox") or "")
        self.env = {"PATH": f"{folder}/bin" if shell == "busybox" else os.environ["PATH"],
                    "CK_SHOWN": str(folder / "shown"), "CK_TREE": str(folder / "keep")}  # fmt: skip

    def mount(self) -> None:
        lower, options = ":".join(str(self.folder / one) for one in ("node", "high", "low")), OPTIONS
        own = f"upperdir={self.folder}/upper,workdir={self.folder}/work,{options}"
        self._overlay(f"lowerdir={lower},{own}", self.folder / "root")
        self._overlay(f"ro,lowerdir={lower},{options}", self.folder / "shown/b")
        self._overlay(f"ro,lowerdir={lower.partition(':')[2]},{options}", self.folder / "shown/c")
        for name, view in (("upper", "u"), ("node", "n"), ("root", "m")):
            subprocess.run(["mount", "--bind", self.folder / name, self.folder / "shown" / view], check=True)

    def _overlay(self, options: str, at: Path) -> None:
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", at], check=True)

    def unmount(self) -> None:
        for name in ("shown/m", "shown/n", "shown/u", "shown/c", "shown/b", "root"):
            subprocess.run(["umount", "-l", self.folder / name], check=False, capture_output=True)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def list(self, **env: str) -> bytes:
        argv = [*self.shell, str(AGENT / "capsule-tree"), "print"]
        done = subprocess.run(argv, env={**self.env, **env}, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done
        kept = self.folder / "keep"
        assert done.stdout == (kept / "list").read_bytes()
        assert sha256(done.stdout).hexdigest() == (kept / "digest").read_text().strip()
        assert {one.name for one in kept.iterdir()} == {"list", "digest", "sums"}, "nothing is left over"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o700
        return done.stdout

    def read(self, **env: str) -> NodeTree:
        return parse_report(self.list(**env))


@pytest.fixture(params=sorted(SHELLS))
def shown(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shown]:
    made = Shown(tmp_path, request.param)
    yield made
    made.unmount()


ODD = ["a b%c", "new\nline", "é", "tab\there", "back\\slash", "quote'\"", "*", "-n", "end\n", "#x", ".hidden", "..two"]


def test_names_of_any_kind_are_told_and_all_that_can_lie_there(shown: Shown) -> None:
    shown.mount()
    for name in ODD:
        (shown.root / name).write_text(name)
    (shown.root / "dir\nline").mkdir()
    (shown.root / "dir\nline/in side").write_text("x")
    os.mkdir(os.fsencode(shown.root) + b"/\xff")  # noqa: PTH102 - no text
    (shown.root / "link").symlink_to("to gone%\n")
    os.mkfifo(shown.root / "fifo")
    os.mknod(shown.root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (shown.root / "mode").write_text("")
    os.chown(shown.root / "mode", 12, 34)
    (shown.root / "mode").chmod(0o6751)
    upper = shown.read().upper
    for name in ODD:
        assert upper[escape(name.encode())].what == sha256(name.encode()).hexdigest(), name
    assert upper["dir%0Aline/in%20side"].size == 1 and upper["%FF"].kind == "d"
    assert (upper["link"].kind, upper["link"].what) == ("l", "to%20gone%25%0A")
    assert (upper["fifo"].kind, upper["device"].kind, upper["device"].what) == ("p", "c", "1:3")
    mode = upper["mode"]
    assert (mode.mode, mode.uid, mode.gid) == (0o6751, 12, 34)
    assert len(upper) == len(ODD) + 7


def test_what_is_gone_is_told_however_it_went(shown: Shown) -> None:
    for name in ("low/etc/a", "low/etc/b", "low/skel/one", "low/skel/two", "low/dir/x", "low/dir/sub/y", "low/was",
                 "high/etc/c", "node/etc/own"):  # fmt: skip
        (shown.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shown.folder / name).write_text(name)
    os.mknod(shown.folder / "high/etc/b", stat.S_IFCHR, os.makedev(0, 0))  # gone in the capsule already
    (shown.folder / "node/skel").mkdir()
    os.setxattr(shown.folder / "node/skel", "trusted.overlay.opaque", b"y")
    (shown.folder / "node/skel/only").write_text("")
    shown.mount()
    (shown.root / "etc/a").unlink()
    shutil.rmtree(shown.root / "dir")
    (shown.root / "dir").mkdir()
    (shown.root / "dir/new").write_text("")
    (shown.root / "was").unlink()
    (shown.root / "was").mkdir()
    (shown.root / "etc/own").unlink()
    found = shown.read()
    kinds = {path: one.kind for path, one in found.node.items()}
    assert kinds == {"etc": "d", "etc/own": "f", "skel": "d", "skel/one": "x", "skel/only": "f", "skel/two": "x"}
    kinds = {path: one.kind for path, one in found.upper.items()}
    assert kinds == {"dir": "d", "dir/new": "f", "dir/sub": "x", "dir/x": "x", "etc": "d", "etc/a": "x",
                     "etc/own": "x", "was": "d"}  # fmt: skip


def test_volatile_places_and_the_agents_own_are_not_even_looked_at(shown: Shown) -> None:
    shown.mount()
    for name in ("tmp/x", "var/log/x", "var/tmp/x", "run/x", "usr/lib/capsulekit/curl", "etc/capsulekit/agent/session",
                 "etc/capsulekit/kept", "var/lib/x"):  # fmt: skip
        (shown.root / name).parent.mkdir(parents=True, exist_ok=True)
        (shown.root / name).write_text("secret")
    files = {path for path, one in shown.read().upper.items() if one.kind == "f"}
    assert files == {"etc/capsulekit/kept", "var/lib/x"}


def test_only_what_changed_is_summed_again_and_a_change_in_the_same_second_is_not_missed(shown: Shown) -> None:
    shown.mount()
    for name in ("one", "two"):
        (shown.root / name).write_text("1111")
    shown.list()
    (shown.root / "one").write_text("2222")  # the same size, and perhaps the same second
    assert shown.read().upper["one"].what == sha256(b"2222").hexdigest()
    deadline = time.monotonic() + 30
    while "two " not in (shown.folder / "keep/sums").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.3)
        shown.list()
    # No time at all for sums: what did not change is known all the same, the rest is said to be unknown.
    (shown.root / "one").write_text("33333")
    upper = shown.read(CK_TREE_SECONDS="0").upper
    assert (upper["two"].what, upper["one"].what, upper["one"].size) == (sha256(b"1111").hexdigest(), "-", 5)
    assert shown.read().upper["one"].what == sha256(b"33333").hexdigest()


def test_lists_are_made_one_after_the_other(shown: Shown) -> None:
    shown.mount()
    (shown.folder / "keep/lock").mkdir(parents=True)
    (shown.folder / "keep/lock/pid").write_text(f"{os.getpid()}\n")
    running = subprocess.Popen([*shown.shell, str(AGENT / "capsule-tree")], env=shown.env)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(1)
    (shown.root / "late").write_text("x")
    shutil.rmtree(shown.folder / "keep/lock")
    assert running.wait(30) == 0
    assert "late f" in (shown.folder / "keep/list").read_text(), "it looked once it was its turn"


def test_one_that_was_killed_keeps_no_other_from_its_turn(shown: Shown) -> None:
    shown.mount()
    (shown.folder / "keep/lock").mkdir(parents=True)
    (shown.folder / "keep/lock/pid").write_text("4194304\n")  # more than a pid can be (pid_max)
    assert shown.read().upper == {}


def test_a_list_that_would_be_too_long_says_that_it_is_not_all(shown: Shown) -> None:
    (shown.folder / "upper/deep").mkdir()
    for number in range(600):
        os.mkdir(os.fsencode(shown.folder) + b"/upper/deep/" + b"\x01" * 248 + b"%07d" % number)  # noqa: PTH102
    shown.mount()
    argv = f"sed 's/^MOST_BYTES=[0-9]*/MOST_BYTES=100000/' {AGENT}/capsule-tree >{shown.folder}/short"
    subprocess.run(["sh", "-c", argv], check=True)
    (shown.folder / "short").chmod(0o755)
    done = subprocess.run([*shown.shell, shown.folder / "short", "print"], env=shown.env, capture_output=True,
                          timeout=60)  # fmt: skip
    assert parse_report(done.stdout).cut and len(done.stdout) < 100_100


def test_a_stage_2_that_shows_nothing_is_said(shown: Shown) -> None:
    done = subprocess.run([*shown.shell, AGENT / "capsule-tree"], env={**shown.env, "CK_SHOWN": "/nowhere"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "does not show the layers" in done.stderr


# --- the agent and the master


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(make_site(tmp_path / "site")) as run:
        yield run


@pytest.mark.parametrize("shell", sorted(SHELLS))
async def test_the_list_is_sent_once_and_again_when_it_is_another(shell: str, master: Running, tmp_path: Path) -> None:
    agent = Agent(shell, tmp_path / "node", master, await master.session())
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(AGENT / "capsule-tree", home)
    for name in "uncbm":
        (tmp_path / "shown" / name).mkdir(parents=True)
    agent.env |= {"CK_AGENT_HOME": str(home), "CK_SHOWN": str(tmp_path / "shown")}

    async def once() -> None:
        await agent.rounds()
        deadline = time.monotonic() + 30
        while (agent.run / "tree.busy").exists() or not (agent.run / "tree/digest").exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    await once()
    assert master.registry.tree_marks() == {}, "a report does not wait for the list"
    await once()
    first = master.registry.tree_marks()[MAC]
    assert parse_report(master.registry.tree(MAC) or b"").upper == {}
    (tmp_path / "shown/u/etc").mkdir()
    (tmp_path / "shown/u/etc/x").write_text("x")
    await once()
    second = master.registry.tree_marks()[MAC]
    assert (second.digest, second.time) == (first.digest, first.time) and second.seen > first.seen, "only confirmed"
    await once()
    assert set(parse_report(master.registry.tree(MAC) or b"").upper) == {"etc", "etc/x"}
    assert master.registry.tree_marks()[MAC].digest != first.digest


async def posted(master: Running, key: str, data: bytes, kind: str = "text/plain") -> tuple[int, str]:
    headers = {"Content-Type": kind, **({"Authorization": f"Bearer {key}"} if key else {})}
    async with master.client().post(f"{master.https}/v1/tree", data=io.BytesIO(data), headers=headers) as answer:
        return answer.status, await answer.text()


async def test_the_master_takes_no_list_that_no_agent_writes(master: Running) -> None:
    key, good = await master.session(), b"capsulekit-tree 1\nnode\nupper\netc/x f 0644 0 0 1 -\nend\n"
    assert await posted(master, key, good) == (200, "ok\n")
    assert (await posted(master, "", good))[0] == 401
    assert (await posted(master, key, good, "application/json"))[0] == 415
    assert (await posted(master, key, good.replace(b"etc/x", b"../x")))[0] == 400
    assert (await posted(master, key, b"x" * (MOST_BYTES + 1)))[0] == 413
    assert master.registry.tree(MAC) == good and set(master.registry.tree_marks()) == {MAC}


async def test_a_node_sends_one_list_at_a_time_so_that_the_others_get_their_turn(master: Running) -> None:
    key, good = await master.session(), b"capsulekit-tree 1\nnode\nupper\nend\n"
    goes_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield good[:10]
        await goes_on.wait()
        yield good[10:]

    headers = {"Content-Type": "text/plain", "Authorization": f"Bearer {key}"}
    async with asyncio.TaskGroup() as group:
        first = group.create_task(master.client().post(f"{master.https}/v1/tree", data=slowly(), headers=headers))
        async with asyncio.timeout(20):
            while (answer := await posted(master, key, b"no list"))[0] == 400:  # until the first has come
                await asyncio.sleep(0.01)
        assert answer == (429, "the list of files is being sent already\n")
        goes_on.set()
    assert first.result().status == 200 and (await posted(master, key, good))[0] == 200


async def test_a_report_tells_whether_the_list_is_wanted(master: Running) -> None:
    key, good = await master.session(), b"capsulekit-tree 1\nnode\nupper\nend\n"

    async def ready(**form: str) -> tuple[int, str | None]:
        headers = {"Authorization": f"Bearer {key}"}
        async with master.client().post(f"{master.https}/v1/state/ready", data=form, headers=headers) as answer:
            return answer.status, answer.headers.get("Capsulekit-Tree")

    assert await ready() == (200, None)
    assert await ready(tree=sha256(good).hexdigest()) == (200, "wanted")
    assert (await posted(master, key, good))[0] == 200
    assert await ready(tree=sha256(good).hexdigest()) == (200, None)
    assert await ready(tree="0" * 64) == (200, "wanted")
    assert (await ready(tree="../../etc"))[0] == 400


async def test_a_list_goes_with_its_node(master: Running) -> None:
    await master.session()
    good = b"capsulekit-tree 1\nnode\nupper\nend\n"
    assert master.registry.record_tree(MAC, good) and not master.registry.record_tree(OTHER_MAC, good)
    master.registry.replace_node(MAC, OTHER_MAC)
    assert master.registry.tree_marks() == {} and master.registry.tree(MAC) is None
    assert master.registry.record_tree(OTHER_MAC, good)
    master.registry.delete_node(OTHER_MAC)
    assert master.registry.tree_marks() == {} and master.registry.tree(OTHER_MAC) is None
