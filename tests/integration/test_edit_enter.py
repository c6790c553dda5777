"""Commands inside an edited root: what they find, what stays of them, and where a hostile root can't lead us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_stack import Capsule, layer_of, left_of, told
from own_programs import copy_programs, root_with

from capsulekit.edit import session
from capsulekit.errors import CapsulekitError

PROGRAMS = ["usr/bin/id", "usr/bin/setsid"]


def _root(folder: Path) -> Path:
    """A root of busybox' programs, with the folders that a capsule has."""
    root = root_with(folder, "busybox")
    copy_programs(root, PROGRAMS)
    (root / "usr/bin/sh").symlink_to("busybox")
    for name in ("dev", "proc", "run", "sys", "tmp", "etc", "root", "usr/sbin", "var"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var/run").symlink_to("../run")
    return root


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Capsule]:
    """A root to enter; a test may give a function that changes it first."""
    root = _root(tmp_path / "root")
    getattr(request, "param", lambda _: None)(root)
    capsule = Capsule(tmp_path, [layer_of(root, tmp_path / "root.squashfs")])
    yield capsule
    capsule.close()


def inside(capsule: Capsule, script: str) -> tuple[int, list[str]]:
    """Status and output of a script run inside, through a process of its own (so that its output is only its)."""
    code = "import sys; from pathlib import Path; from capsulekit.edit import session\n"
    code += "sys.exit(session.enter(Path(sys.argv[1]), ['busybox', 'sh', '-c', sys.argv[2]]))"
    argv = [sys.executable, "-c", code, capsule.edit, script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def no_change(capsule: Capsule) -> None:
    """The edit is empty, and closing it leaves nothing."""
    assert capsule.pack().changes.empty
    assert left_of(capsule.folder) == []


def test_the_commands_own_status_is_passed_on(made: Capsule) -> None:
    """Also a signal's, and those of what can't be run."""
    made.open()
    assert inside(made, "exit 7")[0] == 7
    assert inside(made, "kill -9 $$")[0] == 137
    assert session.enter(made.edit, ["no-such-program"]) == 127
    assert session.enter(made.edit, ["/etc"]) == 126
    no_change(made)


def test_it_finds_what_programs_expect(made: Capsule) -> None:
    """Fresh /run and /tmp, a /dev of its own, its own processes only; nothing of the machine's environment."""
    made.open()
    os.environ["SECRET_OF_OURS"] = "x"
    script = """
        busybox cat /proc/1/comm; busybox ls /run /tmp; echo x >/dev/null; [ -c /dev/urandom ] && [ -d /sys/kernel ]
        echo up >/run/up; echo up >/tmp/up; : >/dev/shm/x; busybox readlink /dev/fd; busybox env | busybox grep SECRET
        busybox ls /proc | busybox grep -c '^[0-9]'; echo "$SYSTEMD_OFFLINE $HOME"
        busybox touch /sys/x 2>/dev/null || echo ro
    """
    status, said = inside(made, script)
    del os.environ["SECRET_OF_OURS"]
    assert status == 0
    lines = [line for line in said if line not in ("/run:", "/tmp:", "")]
    assert lines[0].startswith("python")
    assert lines[1] == "/proc/self/fd"
    assert int(lines[2]) <= 5
    assert lines[3:] == ["1 /root", "ro"]
    no_change(made)


def test_services_stay_off_and_nothing_of_that_is_in_the_result(made: Capsule) -> None:
    """invoke-rc.d and deb-systemd-invoke ask this program."""
    made.open()
    status, said = inside(made, "/usr/sbin/policy-rc.d x start; echo $?")
    assert (status, said) == (0, ["101"])
    no_change(made)


def _own_policy(root: Path) -> None:
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 0\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)


@pytest.mark.parametrize("made", [_own_policy], indirect=True)
def test_a_capsules_own_policy_is_covered_for_the_time_only(made: Capsule) -> None:
    """And is as it was afterwards."""
    made.open()
    assert inside(made, "/usr/sbin/policy-rc.d; echo $?")[1] == ["101"]
    assert "exit 0" in (made.at / "usr/sbin/policy-rc.d").read_text()
    no_change(made)


def _file(root: Path) -> None:
    (root / "etc/resolv.conf").write_text("# the capsule's own\n")


def _dangling(root: Path) -> None:
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


def _by_var_run(root: Path) -> None:
    (root / "etc/resolv.conf").symlink_to("/var/run/resolvconf/resolv.conf")


@pytest.mark.parametrize("made", [lambda root: None, _file, _dangling, _by_var_run], indirect=True)
def test_name_servers_are_the_machines_and_the_capsules_own_file_is_as_it_was(made: Capsule) -> None:
    """Missing, a file, or a link into the /run that is empty now; writing to it changes neither."""
    here = Path("/etc/resolv.conf").read_text().splitlines() if Path("/etc/resolv.conf").exists() else []
    made.open()
    status, said = inside(made, "busybox cat /etc/resolv.conf; echo bad >/etc/resolv.conf")
    assert (status, said) == (0, here)
    assert "bad" not in Path("/etc/resolv.conf").read_text()
    no_change(made)


def test_what_is_left_running_ends_with_the_command(made: Capsule) -> None:
    """A daemon would keep the edit busy for ever."""
    made.open()
    status, said = inside(made, "setsid busybox sleep 1000 >/dev/null 2>&1 & echo started")
    assert (status, said) == (0, ["started"])
    session.discard(made.edit)


def test_changes_are_made_in_the_edit(made: Capsule) -> None:
    """And nowhere else."""
    made.open()
    assert inside(made, "busybox mkdir /srv && echo new >/srv/new && busybox rm -r /root")[0] == 0
    assert told(made.pack().changes) == {"srv": ("added",), "srv/new": ("added",), "root": ("removed",)}


def test_killed_inside_nothing_stays_mounted_and_nothing_runs(made: Capsule) -> None:
    """All of it lives in namespaces that end with their first process."""
    made.open()
    code = "import sys; from pathlib import Path; from capsulekit.edit import session\n"
    code += "session.enter(Path(sys.argv[1]), ['busybox', 'sh', '-c', 'echo in; exec busybox sleep 1000'])"
    with subprocess.Popen([sys.executable, "-c", code, made.edit], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"in\n"
        child.kill()
        child.stdout.read()  # until the last process that could write to it is gone
    session.discard(made.edit)
    assert left_of(made.folder) == []


HOSTILE = "outside"


def _hostile(root: Path) -> None:
    """Links where things are mounted, that lead out of the root by full paths and by .. ."""
    out = root.parent / HOSTILE
    for name in ("proc", "dev", "run", "sys", "tmp", "systemd"):
        (out / name).mkdir(parents=True)
    (out / "resolv.conf").write_text("outside\n")
    up = "../" * 40
    for name in ("proc", "sys", "dev", "tmp"):
        (root / name).rmdir()
        (root / name).symlink_to(f"{up}{out}/{name}".replace("//", "/"))
    (root / "etc/resolv.conf").symlink_to(f"{out}/resolv.conf")
    (root / "run").rmdir()
    (root / "run").symlink_to(f"/proc/1/root{out}/run")


@pytest.mark.parametrize("made", [_hostile], indirect=True)
def test_a_hostile_root_leads_nowhere_outside(made: Capsule) -> None:
    """Neither mounts nor writes: it is refused, or stays in the root."""
    out = made.folder / HOSTILE
    before = sorted(str(path) for path in out.rglob("*")), (out / "resolv.conf").read_text()
    made.open()
    for act in (lambda: session.enter(made.edit, ["busybox", "true"]), lambda: session.bind(made.edit)):
        with pytest.raises(CapsulekitError, match="in the capsule"):
            act()
    session.discard(made.edit)
    assert (sorted(str(path) for path in out.rglob("*")), (out / "resolv.conf").read_text()) == before
    # Wherever it might have led to, all of this test is below its folder, and so are those that it did not lead out of.
    assert left_of(made.folder) == []


def _links_inside(root: Path) -> None:
    """Links that a root may have, such as to a folder elsewhere in it."""
    (root / "var/real-tmp").mkdir()
    (root / "tmp").rmdir()
    (root / "tmp").symlink_to("/var/real-tmp")
    (root / "etc/resolv.conf").symlink_to("/usr/../../../etc/elsewhere")
    (root / "etc/elsewhere").write_text("own\n")


@pytest.mark.parametrize("made", [_links_inside], indirect=True)
def test_links_inside_lead_where_they_do_on_a_node(made: Capsule) -> None:
    """A full path is one from the root's own top."""
    made.open()
    assert inside(made, ": >/tmp/x; busybox ls /var/real-tmp")[1] == ["x"]
    with pytest.raises(CapsulekitError, match="/tmp in the capsule is a link"):
        session.bind(made.edit)
    no_change(made)
