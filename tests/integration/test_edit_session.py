"""An edit's life: opened, used, frozen, closed, killed at any moment and put right, resumed after a restart."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from edit_stack import Capsule, layer_of, left_of, write

from capsulekit.edit import record as records
from capsulekit.edit import session
from capsulekit.edit.record import lock, read_record, write_record
from capsulekit.edit.stack import Image, merged, sweep
from capsulekit.errors import CapsulekitError

ROUNDS = 20


@pytest.fixture
def capsule(tmp_path: Path) -> Iterator[Capsule]:
    """Two small layers."""
    for name in ("root", "top"):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc" / name).write_text(name)
    for name in ("dev", "proc", "run", "sys", "tmp"):
        (tmp_path / "root" / name).mkdir()
    images = [layer_of(tmp_path / name, tmp_path / f"{name}.squashfs") for name in ("top", "root")]
    made = Capsule(tmp_path, images, [b"etc/root\taccess\tu::rw-,u:5:r--,g::r--,m::r--,o::r--\n"])
    yield made
    made.close()


def test_closing_leaves_nothing_and_changes_nothing(capsule: Capsule, tmp_path: Path) -> None:
    """Mounts, loop devices, folders, the mount point that was made."""
    before = {image.path: image.path.read_bytes() for image in capsule.images}
    capsule.open()
    write("etc/new")(capsule.at)
    assert len(left_of(tmp_path)) == 5  # the overlay, two layers, two loop devices
    session.discard(capsule.edit)
    assert left_of(tmp_path) == []
    assert not capsule.edit.exists()
    assert not capsule.at.exists()
    assert {image.path: image.path.read_bytes() for image in capsule.images} == before


def test_nobody_becomes_root_by_what_lies_in_a_capsule(capsule: Capsule) -> None:
    """A mount point is open to all users of the machine: no setuid program counts there, also after a failed umount."""
    capsule.open()
    for _ in range(2):
        assert os.statvfs(capsule.at).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
        with session.frozen(capsule.edit):
            pass


def test_a_mount_point_that_was_there_stays(capsule: Capsule) -> None:
    """Only what was made is removed."""
    capsule.at.mkdir()
    capsule.open()
    session.discard(capsule.edit)
    assert capsule.at.is_dir()


@pytest.mark.parametrize("what", ["files", "mount", "file"])
def test_a_mount_point_in_use_is_refused_before_anything_is_made(capsule: Capsule, what: str) -> None:
    """It says where else."""
    if what == "file":
        capsule.at.write_text("x")
    else:
        capsule.at.mkdir()
        if what == "files":
            (capsule.at / "x").touch()
        else:
            subprocess.run(["mount", "-t", "tmpfs", "none", capsule.at], check=True)
    with pytest.raises(CapsulekitError) as refused:
        capsule.open()
    assert refused.value.hint == "choose another place with --at"
    assert not capsule.edit.exists()


def test_a_second_edit_is_refused_and_says_who(capsule: Capsule) -> None:
    """One editor at a time."""
    capsule.open()
    with pytest.raises(CapsulekitError, match=rf"small-1 is mounted at {capsule.at} by anna since 20"):
        capsule.open()
    assert session.is_mounted(capsule.edit)


def test_two_commands_at_once_do_not_work_on_one_edit(capsule: Capsule) -> None:
    """The second says which process works on it; when that is dead the lock is free."""
    state = capsule.folder / "state"
    code = "import sys, time; from pathlib import Path; from capsulekit.edit.record import lock\n"
    code += "with lock(Path(sys.argv[1]), 'small'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, state], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"held\n"
        with (
            pytest.raises(CapsulekitError, match=rf"working on the edit of small \(process {child.pid}\)"),
            lock(state, "small"),
        ):
            pass
        child.kill()
        child.wait()
        with lock(state, "small"):
            pass


def test_who_uses_it_is_named_and_it_stays_as_it_was(capsule: Capsule) -> None:
    """By working folder, open file, program, mounts inside."""
    capsule.open()
    sleep = ["sleep", "60"]
    subprocess.run(["cp", "/bin/sleep", capsule.at / "etc/program"], check=True)
    with (
        subprocess.Popen(sleep, cwd=capsule.at / "etc") as works,
        (capsule.at / "etc/root").open() as opened,
        subprocess.Popen(sleep, stdin=opened) as holds,
        subprocess.Popen([capsule.at / "etc/program", "60"]) as runs,
    ):
        opened.close()
        try:
            for act in (session.discard, lambda folder: session.frozen(folder).__enter__()):
                with pytest.raises(CapsulekitError) as busy:
                    act(capsule.edit)
                told = busy.value.message
                assert f"sleep 60 (pid {works.pid}) works in it" in told
                assert f"sleep 60 (pid {holds.pid}) has files of it open" in told
                assert f"program 60 (pid {runs.pid}) runs a program of it" in told
                write("etc/still-writable")(capsule.at)
        finally:
            for child in (works, holds, runs):
                child.kill()
    subprocess.run(["mount", "-t", "tmpfs", "none", capsule.at / "tmp"], check=True)
    with pytest.raises(CapsulekitError, match=f"{capsule.at}/tmp is mounted in it"):
        session.discard(capsule.edit)
    subprocess.run(["umount", capsule.at / "tmp"], check=True)
    session.discard(capsule.edit)


def test_frozen_nobody_writes_and_afterwards_everybody_can_again(capsule: Capsule) -> None:
    """Also when packing failed."""
    capsule.open()
    with pytest.raises(ZeroDivisionError), session.frozen(capsule.edit) as record:
        assert record.state == records.PACKING
        with pytest.raises(OSError, match="Read-only"):
            write("etc/x")(capsule.at)
        raise ZeroDivisionError
    write("etc/x")(capsule.at)
    found = read_record(capsule.edit)
    assert found and found.state == records.OPEN


STEPS = """
import sys
from pathlib import Path
from capsulekit.edit import session
from capsulekit.edit.pack import pack_changes
from capsulekit.edit.record import lock
from capsulekit.edit.stack import Image
state, at, images, acl = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:5], sys.argv[5].encode()
print("begun", flush=True)
with lock(state, "small") as folder:
    for turn in range(100):
        session.open_edit(state, "small", name="small-1", base="0" * 64, at=at,
            images=[Image(Path(image)) for image in images], who="anna", acls=[acl])
        (at / "etc/new").write_text("new")
        session.bind(folder)
        with session.frozen(folder):
            pack_changes(folder, state / "new.squashfs", state / "new.acl")
            session.switching(folder, "1" * 64)
            session.finish(folder)
"""


def test_killed_at_any_moment_nothing_leaks_and_the_next_command_works(capsule: Capsule, tmp_path: Path) -> None:
    """By dice, with a seed: a process that opens, writes, packs and finishes again and again dies at some moment."""
    dice = random.Random(6)
    state = tmp_path / "state"
    state.mkdir()
    words = [str(state), str(capsule.at), *(str(image.path) for image in capsule.images), capsule.acls[0].decode()]
    seen = set()
    for _ in range(ROUNDS):
        with subprocess.Popen([sys.executable, "-c", STEPS, *words], stdout=subprocess.PIPE) as child:
            assert child.stdout and child.stdout.readline() == b"begun\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(dice.uniform(0, 1.2))
            child.send_signal(signal.SIGKILL)
        with lock(state, "small") as folder:
            before = read_record(folder) if folder.exists() else None
            seen.add(before.state if before else "none")
            left = session.recover(folder)
            if left:
                assert session.is_mounted(folder)
                (capsule.at / "etc/again").write_text("writable")
                session.discard(folder)
        assert left_of(tmp_path) == []
        assert not folder.exists()
        assert not capsule.at.exists()
    assert len(seen) >= 3, seen


def test_between_its_loop_device_and_its_mount_a_killed_command_leaks_nothing(capsule: Capsule, tmp_path: Path) -> None:
    """The device goes with the mount's process, because it is set to go with its last user."""
    capsule.open()
    record = read_record(capsule.edit)
    assert record
    subprocess.run(["umount", capsule.at], check=True)
    write_record(capsule.edit, replace(record, state=records.MOUNTING))
    assert session.recover(capsule.edit) is None
    assert left_of(tmp_path) == []


def test_an_edit_that_became_the_capsule_is_finished_and_any_other_goes_on(capsule: Capsule) -> None:
    """Killed after the switch, and before it."""
    for switched in (False, True):
        capsule.open()
        record = read_record(capsule.edit)
        assert record
        subprocess.run(["mount", "-o", "remount,ro", capsule.at], check=True)
        write_record(capsule.edit, replace(record, state=records.PACKING, made="1" * 64))
        found = session.recover(capsule.edit, lambda one, is_now=switched: is_now and one.made == "1" * 64)
        assert (found is None) == switched
        if found:
            assert found.made == ""
            write("etc/x")(capsule.at)
            session.discard(capsule.edit)
    assert not capsule.edit.exists()


def test_after_a_restart_of_the_machine_it_is_resumed_or_discarded(capsule: Capsule, tmp_path: Path) -> None:
    """The mounts are gone, what was written is there."""
    for act in ("resume", "discard"):
        capsule.open()
        write("etc/mine", "mine")(capsule.at)
        subprocess.run(["umount", capsule.at, *(capsule.edit / name for name in "01")], check=True)
        record = read_record(capsule.edit)
        assert record
        write_record(capsule.edit, replace(record, boot_id="another", pid=1))
        found = session.recover(capsule.edit)
        assert found and not records.alive(found) and not session.is_mounted(capsule.edit)
        if act == "resume":
            session.resume(capsule.edit)
            assert (capsule.at / "etc/mine").read_text() == "mine"
            shown = subprocess.run(["getfacl", "-cn", capsule.at / "etc/root"], capture_output=True, text=True)
            assert "user:5:r--" in shown.stdout
        session.discard(capsule.edit)
        assert left_of(tmp_path) == []


def test_a_record_that_is_damaged_is_said(capsule: Capsule) -> None:
    """In one line, whatever is in it."""
    capsule.open()
    path = capsule.edit / records.FILE
    good = json.loads(path.read_text())
    for bad in ("", "[]", "{", "null", json.dumps({**good, "state": "odd"}), json.dumps({**good, "images": 3}),
                json.dumps({**good, "more": 1})):  # fmt: skip
        path.write_text(bad)
        with pytest.raises(CapsulekitError, match=rf"^{re.escape(str(path))} is damaged"):
            read_record(capsule.edit)
    path.write_text(json.dumps(good))


@pytest.mark.parametrize("kind", ["ramfs", "overlay"])
def test_a_file_system_that_cannot_hold_an_edit_is_refused_with_the_way_out(
    capsule: Capsule, kind: str, tmp_path: Path
) -> None:
    """Before anything is made there."""
    state = tmp_path / "state"
    state.mkdir()
    if kind == "ramfs":  # as NFS: it knows no attributes
        subprocess.run(["mount", "-t", "ramfs", "none", state], check=True)
    else:
        for name in "luw":
            (tmp_path / name).mkdir()
        options = f"lowerdir={tmp_path}/l,upperdir={tmp_path}/u,workdir={tmp_path}/w"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "none", state], check=True)
    try:
        with pytest.raises(CapsulekitError, match="can't hold an edit") as refused:
            capsule.open()
        assert "local disk" in str(refused.value.hint)
        assert not capsule.edit.exists()
        assert not capsule.at.exists()
    finally:
        subprocess.run(["umount", state], check=True)


def test_a_view_is_cleared_when_its_process_was_killed_and_left_alone_when_not(
    capsule: Capsule, tmp_path: Path
) -> None:
    """By its lock."""
    code = "import sys, time\nfrom pathlib import Path\nfrom capsulekit.edit.stack import Image, merged\n"
    code += "with merged([Image(Path(sys.argv[1]))], Path(sys.argv[2])): print('seen', flush=True); time.sleep(60)"
    views = tmp_path / "views"
    argv = [sys.executable, "-c", code, str(capsule.images[1].path), str(views / "one")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"seen\n"
        sweep(views)
        assert left_of(views)
        with pytest.raises(CapsulekitError, match="used by another process"), merged([], views / "one"):
            pass
        child.kill()
        child.wait()
    sweep(views)
    assert left_of(tmp_path) == []
    assert list(views.iterdir()) == []


def test_an_image_in_the_middle_of_a_capsule_file_is_mounted_by_its_place(capsule: Capsule, tmp_path: Path) -> None:
    """Offset and size in bytes."""
    first, second = (image.path.read_bytes() for image in capsule.images)
    file = tmp_path / "with a, comma:.vnfs"
    file.write_bytes(b"\0" * 1536 + first + second)
    images = [Image(file, 1536, len(first)), Image(file, 1536 + len(first), len(second))]
    with merged(images, tmp_path / "view") as root:
        assert sorted(path.name for path in (root / "etc").iterdir()) == ["root", "top"]
    assert left_of(tmp_path) == []


def test_only_root_can(capsule: Capsule) -> None:
    """It says so in one line."""
    code = "import os\nfrom capsulekit.edit.stack import need_root\nos.setuid(65534)\nneed_root('mount a capsule')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "only root can mount a capsule" in done.stderr


def test_freezing_takes_no_account_of_what_bind_mounted(capsule: Capsule) -> None:
    """It is unmounted to pack, and there again when packing fails."""
    capsule.open()
    session.bind(capsule.edit)
    assert (capsule.at / "proc/self/status").exists()
    with session.frozen(capsule.edit):
        assert not (capsule.at / "proc/self").exists()
    assert (capsule.at / "proc/self/status").exists()
    session.unbind(capsule.edit)
    session.bind(capsule.edit)
    session.discard(capsule.edit)
    assert left_of(capsule.folder) == []


def test_start_time_of_a_process_tells_it_from_one_with_the_same_number() -> None:
    """And one that is gone has none."""
    assert records.start_of(os.getpid()) > 0
    with subprocess.Popen(["true"]) as child:
        child.wait()
    deadline = time.monotonic() + 5
    while records.start_of(child.pid) and time.monotonic() < deadline:
        pass
    assert records.start_of(child.pid) == 0


def test_a_process_in_a_bound_folder_is_named_and_what_was_bound_stays(capsule: Capsule) -> None:
    """Its /run is not the capsule's, but it would be gone."""
    capsule.open()
    session.bind(capsule.edit)
    with subprocess.Popen(["sleep", "60"], cwd=capsule.at / "run") as works:
        with pytest.raises(CapsulekitError, match=rf"sleep 60 \(pid {works.pid}\) works in it"):
            session.discard(capsule.edit)
        works.kill()
    with subprocess.Popen(["sleep", "60"], cwd=capsule.at / "proc/self") as works:
        with pytest.raises(CapsulekitError, match="/proc is in use"), session.frozen(capsule.edit):
            pass
        works.kill()
    assert (capsule.at / "dev/null").is_char_device()
    assert (capsule.at / "proc/self/status").exists()
    session.discard(capsule.edit)
    assert left_of(capsule.folder) == []


@pytest.mark.parametrize("state", ["link/state", "real/../state", "real/state"])
@pytest.mark.parametrize("at", ["link/at", "real/../at"])
def test_folders_behind_links_are_mounted_found_and_unmounted(capsule: Capsule, state: str, at: str) -> None:
    """/var/lib/capsulekit, or /mnt, may lie on another disk; the kernel tells mounts without links."""
    folder = capsule.folder
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    edit = records.edit_folder(folder / state, "small")
    session.open_edit(
        folder / state, "small", name="s", base="0", at=folder / at, images=capsule.images, who="anna",
        acls=capsule.acls,
    )  # fmt: skip
    assert session.is_mounted(edit)
    write("etc/new")(folder / at)
    session.bind(edit)
    with session.frozen(edit):
        assert (edit / "u/etc/new").exists()
    session.discard(edit)
    assert left_of(folder) == []
    assert not edit.exists()
    assert not (folder / at).exists()
