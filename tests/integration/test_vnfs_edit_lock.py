"""One editor at a time: who is in the way is named; a killed command, or a restart of the master, is no dead end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from edit_site import NAME, NEEDS_ROOT, SHORT, EditSite, edit_site
from serving import until

from capsulekit.edit import record as records
from capsulekit.edit.mounts import mounts_in
from capsulekit.edit.syscalls import unmount

WAIT = "import time; print(1, flush=True); time.sleep(60)"

pytestmark = [NEEDS_ROOT, pytest.mark.timeout(300)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[EditSite]:
    with edit_site(tmp_path) as made:
        yield made


def test_a_second_mount_names_who_has_it_since_when_and_where(site: EditSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    at = site.mount()
    (at / "etc/motd").write_text("hers\n")
    monkeypatch.setenv("SUDO_USER", "bob")
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(site.record.since))
    for words in (("mount", SHORT), ("mount", SHORT, "--dry-run"), ("shell", SHORT, "--", "/bin/busybox", "true")):
        said = site.bad(*words)
        assert f"{NAME} is mounted for editing by alice since {since}, at {at}" in said
        assert "capsulekit umount" in said and "capsulekit close" in said
    assert (at / "etc/motd").read_text() == "hers\n"
    site.good("umount", SHORT, "--message", "taken over by bob")
    assert site.history[-1].who == "bob"


def test_while_a_command_works_on_it_every_other_one_is_refused(site: EditSite) -> None:
    """The command's process is named."""
    argv = site.process(
        "shell", SHORT, "--at", site.at, "--", "/bin/busybox", "sh", "-c", "echo begun >/etc/begun; read word"
    )
    work = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: (site.at / "etc/begun").exists() or work.poll() is not None)
        for words in (("mount", SHORT), ("umount", SHORT), ("-y", "close", SHORT)):
            assert f"process {work.pid} of " in site.bad(*words)
        out, err = work.communicate(b"go on\n", timeout=60)
        assert work.returncode == 0, (out, err)
    finally:
        work.kill()
    assert site.seen("etc/begun") == "begun\n"
    site.check_clean()


@pytest.mark.parametrize("way", ["cwd", "open", "running", "mounted"])
def test_a_busy_mount_names_the_processes_and_nothing_is_changed(site: EditSite, way: str) -> None:
    at, base = site.mount(), site.identity
    (at / "etc/motd").write_text("x\n")
    user = None
    if way == "mounted":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", at / "tmp"], check=True)
        named = f"{at}/tmp is mounted in it"
    else:
        argv = {
            "cwd": [sys.executable, "-c", f"import os; os.chdir({str(at)!r}); {WAIT}"],
            "open": [sys.executable, "-c", f"f = open({str(at / 'etc/motd')!r}, 'a'); {WAIT}"],
            "running": [str(at / "bin/busybox"), "sh", "-c", "echo 1; sleep 60"],
        }[way]  # fmt: skip
        user = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert user.stdout is not None
        user.stdout.readline()
        named = f"(pid {user.pid})"
    try:
        for words in (("umount", SHORT), ("-yq", "close", SHORT)):
            assert named in site.bad(*words)
        assert site.identity == base and (at / "etc/motd").read_text() == "x\n"
        (at / "etc/still").write_text("can be written to\n")
    finally:
        if user is None:
            unmount(at / "tmp")
        else:
            user.kill()
            user.communicate()
    site.good("umount", SHORT)
    assert site.seen("etc/still") == "can be written to\n"


def test_a_restart_of_the_master_loses_nothing_mount_goes_on(site: EditSite) -> None:
    at = site.mount()
    (at / "etc/motd").write_text("half done\n")
    site.reboot()
    assert not (at / "etc").exists()
    assert "the machine was restarted" in site.bad("umount", SHORT)
    said = site.good("mount", SHORT)
    assert "the machine was restarted" in said and f"mounted at {at}" in said
    assert (at / "etc/motd").read_text() == "half done\n"
    site.good("umount", SHORT)
    assert site.seen("etc/motd") == "half done\n"
    site.check_clean()


def test_after_a_restart_it_can_be_discarded_or_mounted_elsewhere(site: EditSite) -> None:
    base, at = site.identity, site.mount()
    (at / "etc/motd").write_text("x\n")
    site.reboot()
    elsewhere = site.top / "elsewhere"
    site.good("mount", SHORT, "--at", elsewhere)
    assert (elsewhere / "etc/motd").exists()
    site.reboot()
    done = site.run("-y", "close", SHORT)
    assert done.status == 0 and "before the machine was restarted" in done.err
    assert site.identity == base
    site.check_clean()


def test_what_was_unmounted_by_hand_is_said_and_nothing_is_lost(site: EditSite) -> None:
    (site.mount("--chroot") / "etc/motd").write_text("x\n")
    subprocess.run(["umount", "-R", site.at], check=True)
    assert "not mounted any more: it was unmounted by hand" in site.bad("umount", SHORT)
    assert "it was unmounted by hand: gone on with" in site.good("mount", SHORT)
    site.good("umount", SHORT)
    assert site.seen("etc/motd") == "x\n"
    site.check_clean()


def test_what_is_mounted_in_another_mount_namespace_is_neither_mounted_twice_nor_discarded(site: EditSite) -> None:
    """The upper folder of an overlay must not be written by two mounts of it."""
    words = shlex.join(site.process("mount", SHORT, "--at", site.at))
    script = f"{words} && echo theirs >{shlex.quote(str(site.at))}/etc/motd && echo mounted && read word"
    theirs = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert theirs.stdout is not None
    try:
        assert "mounted\n" in theirs.stdout, "its last line; without it, it has ended"
        assert not (site.at / "etc").exists()
        for refused in (("mount", SHORT), ("umount", SHORT), ("-y", "close", SHORT)):
            said = site.bad(*refused)
            assert f"mounted at {site.at} in the mount namespace of" in said and f"--target {theirs.pid}" in said
        inside = ["nsenter", "--mount", "--target", str(theirs.pid), *site.process("umount", SHORT)]
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert site.seen("etc/motd") == "theirs\n"
    finally:
        theirs.kill()
        theirs.communicate()
    site.good("mount", SHORT, "--at", site.at)
    site.good("-y", "close", SHORT)
    site.check_clean()


def test_an_edit_is_gone_on_with_when_the_mount_namespace_it_was_in_has_ended(site: EditSite) -> None:
    script = (
        f"{shlex.join(site.process('mount', SHORT, '--at', site.at))} && echo x >{shlex.quote(str(site.at))}/etc/motd"
    )
    subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True, timeout=60)
    assert "gone on with" in site.good("mount", SHORT)
    site.good("umount", SHORT)
    assert site.seen("etc/motd") == "x\n"
    site.check_clean()


def test_after_a_restart_a_place_that_will_not_do_is_not_kept(site: EditSite) -> None:
    (site.mount() / "etc/motd").write_text("x\n")
    site.reboot()
    assert "/etc is not empty" in site.bad("mount", SHORT, "--at", "/etc")
    assert f"mounted at {site.at}\n" in site.good("mount", SHORT)
    site.good("-y", "close", SHORT)
    assert not site.at.exists()


def test_an_umount_after_the_capsule_was_changed_is_refused_with_the_ways_out(site: EditSite) -> None:
    at, base = site.mount(), site.identity
    (at / "etc/one").write_text("1\n")
    site.good("umount", SHORT)
    at = site.mount()
    (at / "etc/two").write_text("2\n")
    mine = site.identity
    done = site.run("-y", "vnfs", "rollback", NAME, "--to", "1")
    assert done.status == 0 and "WARNING: " in done.err and "its umount will be refused" in done.err
    assert site.identity == base
    said = site.bad("umount", SHORT)
    assert "was changed while it was mounted" in said and base[:16] in said and mine[:16] in said
    assert "vnfs rollback" in said and "capsulekit close" in said
    assert (at / "etc/two").read_text() == "2\n", "it is still mounted"
    number = next(past.number for past in site.history if past.identity == mine)
    site.good("-y", "vnfs", "rollback", NAME, "--to", str(number))
    site.good("umount", SHORT)
    assert site.seen("etc/two") == "2\n" and site.seen("etc/one") == "1\n"


def test_a_capsule_that_is_mounted_is_not_deleted(site: EditSite) -> None:
    site.mount()
    said = site.bad("-y", "vnfs", "delete", NAME, "--force")
    assert "is mounted for editing by" in said and "capsulekit umount" in said
    site.reboot()
    assert "is mounted for editing" in site.bad("-y", "vnfs", "delete", NAME, "--force")
    site.good("-y", "close", NAME)
    site.good("-y", "vnfs", "delete", NAME, "--force")


def test_a_damaged_record_is_said_and_close_ends_it(site: EditSite) -> None:
    site.mount()
    file = site.folder() / "record.json"
    for damage in (b"", b"{", b"[]", b'{"key": 1}', file.read_bytes().replace(b'"open"', b'"elsewhere"')):
        file.write_bytes(damage)
        for words in (("mount", SHORT), ("umount", SHORT)):
            assert "damaged" in site.bad(*words)
    site.good("-y", "close", NAME)
    site.check_clean()
    site.mount()
    site.good("umount", SHORT)


# --- shell


def test_shell_mounts_runs_and_umounts_in_one(site: EditSite) -> None:
    said = site.good("shell", SHORT, "--message", "by a script", "--", "/bin/busybox", "sh", "-c", "echo hi >/etc/motd")
    assert "added /etc/motd" in said and "it is generation" in said
    assert site.history[-1].message == "by a script"
    assert site.seen("etc/motd") == "hi\n"
    site.check_clean()


def test_shell_discards_on_failure_and_passes_the_status_on(site: EditSite) -> None:
    base = site.identity
    for script, status in (("echo x >/etc/motd; exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)):
        done = site.run("shell", SHORT, "--", "/bin/busybox", "sh", "-c", script)
        assert done.status == status, done
        assert site.identity == base
        site.check_clean()
    assert site.run("shell", SHORT, "--", "/no/such/program").status in (126, 127)
    site.check_clean()


def test_shell_sees_what_programs_need_and_leaves_nothing_of_it(site: EditSite) -> None:
    script = "test -e /proc/1/status && test -c /dev/null && test -d /sys/kernel && test -s /etc/resolv.conf"
    site.good("shell", SHORT, "--", "/bin/busybox", "sh", "-c", script)
    assert len(site.history) == 1, "nothing of that is a change"


def test_shell_dry_run_says_what_would_be_kept_and_keeps_nothing(site: EditSite) -> None:
    base = site.identity
    said = site.good("shell", SHORT, "--dry-run", "--", "/bin/busybox", "touch", "/etc/new")
    assert "added /etc/new" in said
    assert site.identity == base
    site.check_clean()


def _terminal(site: EditSite) -> pexpect.spawn[str]:
    words = site.process("shell", SHORT, "--at", site.at)
    child = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=60, echo=False)
    child.expect("A shell in .* is kept when it ends")
    child.sendline("/bin/busybox echo rea''dy")
    child.expect("ready")
    return child


def test_an_interactive_shell_keeps_its_changes_when_it_ends_well(site: EditSite) -> None:
    child = _terminal(site)
    child.sendline("/bin/busybox echo typed >/etc/motd")
    child.sendline("exit")
    child.expect("added /etc/motd")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert site.seen("etc/motd") == "typed\n"


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_an_interactive_shell_that_failed_asks_before_it_discards(site: EditSite, answer: str) -> None:
    base, child = site.identity, _terminal(site)
    child.sendline("/bin/busybox echo typed >/etc/motd")
    child.sendline("exit 3")
    child.expect(r"status 3. Discard what was changed\? \[yes/no\]")
    child.sendline(answer)
    child.expect("is discarded" if answer == "yes" else "is still mounted at")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 3 and site.identity == base
    if answer == "no":
        site.good("umount", SHORT)
        assert site.seen("etc/motd") == "typed\n"
    site.check_clean()


def _killed_shell(site: EditSite, *command: str) -> None:
    """A shell whose process is killed with -9 after it has changed something."""
    place = site.at / "etc/begun"
    if command:
        work = subprocess.Popen(site.process("shell", SHORT, "--at", site.at, "--", *command), stdin=subprocess.PIPE)
        pid = work.pid
    else:
        child = _terminal(site)
        child.sendline("/bin/busybox touch /etc/begun")
        pid = child.pid
    until(place.exists)
    os.kill(pid, signal.SIGKILL)
    if command:
        work.communicate()
    else:
        child.close()
    # What it ran is ended by the kernel, with its process.
    until(lambda: not _busy(place.parents[1]), 10)


def _busy(at: Path) -> bool:
    from capsulekit.edit.busy import users

    return bool(users(at))


def test_a_killed_shell_is_gone_on_with_by_mount_or_closed(site: EditSite) -> None:
    _killed_shell(site)
    said = site.good("mount", SHORT)
    assert "of a shell of" in said and "was killed" in said
    assert (site.at / "etc/begun").exists()
    site.good("umount", SHORT)
    assert site.seen("etc/begun") == ""
    _killed_shell(site)
    site.good("-y", "close", SHORT)
    site.check_clean()


def test_what_a_killed_command_had_changed_is_discarded_by_the_next_one(site: EditSite) -> None:
    _killed_shell(site, "/bin/busybox", "sh", "-c", "touch /etc/begun; read word")
    done = site.run("shell", SHORT, "--", "/bin/busybox", "touch", "/etc/second")
    assert done.status == 0 and "was killed; what it had changed is discarded" in done.err
    assert site.seen("etc/begun") is None and site.seen("etc/second") == ""
    site.check_clean()


def test_umount_keeps_nothing_that_a_killed_command_left_half_done_unless_told(site: EditSite) -> None:
    base = site.identity
    _killed_shell(site, "/bin/busybox", "sh", "-c", "touch /etc/begun; read word")
    said = site.bad("umount", SHORT)
    assert "was killed" in said and f"capsulekit mount {NAME}" in said and f"capsulekit close {NAME}" in said
    assert site.identity == base and (site.at / "etc/begun").exists()
    site.good("mount", SHORT)
    site.good("umount", SHORT)
    assert site.seen("etc/begun") == ""


@pytest.mark.parametrize("all_of_them", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_from_outside_leaves_nothing(
    site: EditSite, number: signal.Signals, all_of_them: bool
) -> None:
    """By the service manager, or with its terminal: what it did is discarded, and nothing of it runs on."""
    words = site.process("shell", SHORT, "--at", site.at, "--", "/bin/busybox", "sh", "-c")
    script = "trap 'echo caught' TERM HUP; touch /etc/begun; while :; do /bin/busybox sleep 60; done"
    base = site.identity
    with subprocess.Popen([*words, script], stdout=subprocess.PIPE, text=True, start_new_session=True) as work:
        until((site.at / "etc/begun").exists)
        os.killpg(work.pid, number) if all_of_them else work.send_signal(number)
        said = work.communicate(timeout=60)[0]
    assert work.returncode == 128 + number and "is discarded" in said, said
    assert site.identity == base
    site.check_clean()


def test_a_killed_shell_at_a_terminal_is_gone_on_with_by_the_next_one(site: EditSite) -> None:
    _killed_shell(site)
    assert "is mounted for editing" in site.bad("shell", SHORT, "--", "/bin/busybox", "true")
    words = site.process("shell", SHORT, "--at", site.at)
    child = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=60, echo=False)
    child.expect("gone on with the edit of a shell")
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0 and site.seen("etc/begun") == ""


def test_the_record_is_roots_alone(site: EditSite) -> None:
    site.mount()
    assert (site.paths.state / "edits").stat().st_mode & 0o777 == 0o700
    assert (site.folder() / "record.json").stat().st_mode & 0o777 == 0o600
    told = json.loads((site.folder() / "record.json").read_text())
    assert (told["name"], told["state"], told["base"]) == (NAME, records.OPEN, site.identity)
    site.good("close", SHORT)
    assert list(mounts_in(site.at)) == []
