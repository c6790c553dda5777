"""umount killed with -9 at random moments: the old or the new generation, nothing left over, the next command works."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import built
import pytest
from dying import KILLED
from edit_site import NAME, NEEDS_ROOT, SHORT, EditSite, edit_site

from capsulekit.capsule.read import open_capsule
from capsulekit.edit.mounts import mounts_in

KILLS = int(os.environ.get("CAPSULEKIT_SOAK", "20"))
pytestmark = [NEEDS_ROOT, pytest.mark.long, pytest.mark.timeout(120 + 30 * KILLS)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[EditSite]:
    with edit_site(tmp_path) as made:
        yield made


def check_whole(site: EditSite) -> None:
    """What nodes boot verifies, whichever it is."""
    done = site.run("vnfs", "verify", NAME)
    assert done.status == 0, done


def test_killed_at_random_moments_of_umount(site: EditSite) -> None:
    """Each time another next command: umount, mount and close, close, or umount with --flatten."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice, took = random.Random(seed), 1.5
    for number in range(KILLS):
        base, count = site.identity, len(site.history)
        at = site.mount()
        (at / "etc/motd").write_text(f"round {number}\n")
        (at / "etc/large").write_bytes(os.urandom(1 << 20))
        words = ["umount", SHORT, *(["--flatten"] if number % 3 == 2 else [])]
        began = time.monotonic()
        process = subprocess.Popen(site.process(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        pause = dice.uniform(0.1, took)
        while process.poll() is None and time.monotonic() - began < pause:
            time.sleep(0.002)
        if process.poll() is None:
            process.kill()
        else:
            took = max(0.5, 0.95 * (time.monotonic() - began))
        process.communicate()
        check_whole(site)
        switched = site.identity != base
        assert len(site.history) == count + switched
        after_kill(site, number, switched)
        check_whole(site)
        site.check_clean()
        assert not site.at.exists(), "the mount point was ours"
    assert site.seen("etc/udhcpc.sh")


@pytest.mark.parametrize("then", ["umount", "mount", "close"])
def test_killed_just_after_the_switch_and_gone_back_from_it_is_not_open_any_more(site: EditSite, then: str) -> None:
    """The edit had become a generation, whatever nodes boot since."""
    base = site.identity
    (site.mount() / "etc/motd").write_text("x\n")
    dying = "import os; from capsulekit.edit import session; session.finish = lambda folder: os._exit(9); "
    python, option, start, *words = site.process("umount", SHORT)
    subprocess.run([python, option, dying + start, *words], capture_output=True, check=False, timeout=120)
    made = site.identity
    assert made != base and site.record.made == made
    site.good("-y", "vnfs", "rollback", SHORT)
    assert site.identity == base
    if then == "umount":
        assert "was unmounted already, by a command that was killed" in site.good("umount", SHORT)
    elif then == "mount":
        assert not (site.mount() / "etc/motd").exists()
    site.run("-y", "close", SHORT)
    assert site.identity == base and {made, base} == {line.identity for line in site.history}
    site.check_clean()


def after_kill(site: EditSite, number: int, switched: bool) -> None:
    """The next command takes over."""
    way = ("umount", "mount", "close", "flatten")[number % 4]
    if way == "mount":
        done = site.run("mount", SHORT, "--at", site.at)
        # An edit that was only interrupted is somebody's still; one that had come through is not there any more.
        assert done.status == 0 or (not switched and "is mounted for editing by" in done.err), done
        assert (site.at / "etc/motd").read_text() == f"round {number}\n"
        site.good("-y", "close", SHORT)
        return
    words = {"umount": ["umount", SHORT], "close": ["-y", "close", SHORT], "flatten": ["umount", SHORT, "--flatten"]}[
        way
    ]
    done = site.run(*words)
    assert done.status == 0 or "is not mounted" in done.err, done
    if way != "close" or switched:
        assert site.seen("etc/motd") == f"round {number}\n"


@pytest.mark.parametrize("what", ["umount", "close", "mount"])
def test_killed_before_any_write(site: EditSite, what: str) -> None:
    """Not at random: before each durable write in turn."""
    base = site.identity
    for step in range(400):
        if what == "mount":
            words = ["mount", SHORT, "--at", str(site.at)]
        else:
            at = site.mount()
            (at / "etc/motd").write_text(f"{step}\n")
            words = ["-y", what, SHORT]
        argv = [site.process()[0], "-c", KILLED, str(step), *site.words(*words)]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=120)
        check_whole(site)
        assert what == "umount" or site.identity == base
        ended = site.run("-y", "close", SHORT)
        assert ended.status == 0 or "is not mounted" in ended.err, ended
        site.check_clean()
        assert not site.at.exists(), "the mount point was ours"
        if done.returncode == 0:
            assert step > 2
            return
        assert done.returncode == -9, done.stderr
    raise AssertionError("it never ended")


def test_a_file_is_the_old_or_the_new_one_whenever_umount_is_killed(site: EditSite) -> None:
    file = site.top / "x.vnfs"
    file.write_bytes(built.capsule(built.BUSYBOX).read_bytes())
    dice = random.Random(1)
    for number in range(max(KILLS // 4, 3)):
        site.good("mount", file, "--at", site.at)
        (site.at / "etc/motd").write_text(f"{number}\n")
        process = subprocess.Popen(site.process("umount", file), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(dice.uniform(0.3, 1.2))
        process.kill()
        process.communicate()
        with open_capsule(file):
            pass
        done = site.run("umount", file)
        assert done.status == 0 or "is not mounted" in done.err, done
        site.good("mount", file, "--at", site.at)
        assert (site.at / "etc/motd").read_text() == f"{number}\n"
        site.good("close", file)
        assert list(mounts_in(site.top)) == []
        assert [path.name for path in site.top.glob(".x.vnfs*")] == []
