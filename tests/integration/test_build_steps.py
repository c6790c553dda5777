"""Steps: what a change makes again and what not, and looking inside; each time the bytes of a build from nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pexpect
import pytest
from building import cold_cache, nothing_left, ok, sh
from step_desk import CHILD, Desk, Report, read

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to look into layers"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
]


# --- what a change makes again


def test_nothing_changed_and_nothing_is_made(first: tuple[Desk, Report], desk: Desk) -> None:
    again = desk.build()
    assert again.made == set()
    assert again.capsule.read_bytes() == first[1].capsule.read_bytes()


CHANGES: dict[str, tuple[tuple[str, str, str], set[str], tuple[str, str]]] = {
    "a file": (("parent.toml", "@{greeting}", "bye"), {"root file system"}, ("etc/greeting", "bye\n")),
    "a script": (("odd.sh", "odd >", "even >"), {"root file system"}, ("etc/odd", "even\n")),
    "modules": (("parent.toml", '["loop", ', '["loop", "nbd", '), {"kernel and modules"}, ("etc/odd", "odd\n")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_made_again_and_nothing_else(what: str, first: tuple[Desk, Report], desk: Desk) -> None:
    (name, old, new), made, (path, content) = CHANGES[what]
    desk.edit(old, new, name)
    report = desk.build()
    assert report.made == made and read(report.capsule, path) == content
    assert report.capsule.read_bytes() != first[1].capsule.read_bytes()
    assert report.capsule.read_bytes() == desk.from_nothing().capsule.read_bytes()


def test_a_package_that_a_child_adds_is_installed_on_what_its_parents_name(desk: Desk) -> None:
    (desk.folder / "r.toml").write_text(CHILD + '[packages]\ninclude = ["hostname"]\n')
    report = desk.build("--write-lock")
    assert report.made == {"install 1 packages", "root file system"}
    assert (read(report.capsule, "bin/hostname") or "").startswith("\x7fELF")
    assert report.capsule.read_bytes() == desk.from_nothing().capsule.read_bytes()


def test_a_changed_account_or_unit_is_brought_into_the_installed_root(
    system: tuple[Desk, Report], tmp_path: Path
) -> None:
    desk = system[0].copy(tmp_path / "desk")
    desk.edit("uid = 1500", 'uid = 1501\nshell = "/bin/dash"')
    report = desk.build()
    assert report.made == {"root file system"}
    assert "admin:x:1501:1501::/home/admin:/bin/dash\n" in (read(report.capsule, "etc/passwd") or "")
    desk.edit("systemd-networkd", "systemd-pstore")
    report = desk.build(out="y.vnfs")
    assert report.made == {"root file system"}
    assert read(report.capsule, "etc/systemd/system/dbus-org.freedesktop.network1.service") is None
    listed = ok("unsquashfs", "-l", report.capsule.with_suffix(".parts") / "layers/rootfs.squashfs")
    assert "wants/systemd-pstore.service" in listed and "wants/systemd-networkd" not in listed
    assert report.capsule.read_bytes() == desk.from_nothing().capsule.read_bytes()


def test_a_root_unpacked_on_the_disk_has_the_bytes_of_one_in_memory(first: tuple[Desk, Report], desk: Desk) -> None:
    """From nothing, and nothing of it in memory."""
    cache = cold_cache(desk.folder / "cold", indexes=True, of=desk.cache)
    done = sh(*desk.words("--locked", "--offline", "-v", cache=cache), env={**os.environ, "CAPSULEKIT_SCRATCH": "disk"})
    assert done.returncode == 0 and set(re.findall(r"CAPSULEKIT_MEMORY=(\d+)", done.stderr)) == {"0"}, done.stderr
    assert (desk.folder / "x.vnfs").read_bytes() == first[1].capsule.read_bytes()
    (desk.folder / "x.vnfs").unlink()
    nothing_left(desk.folder, cache)


# --- looking inside


PLACES = {"file": "/etc/greeting", "script": "/etc/odd", "user": "/home/admin",
          "unit": "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"}  # fmt: skip


def at_a_terminal(words: list[str], ask: str = "") -> tuple[str, str, int]:
    """Run a build at a terminal: what it printed, what the shell in the root answered to ``ask``, the exit status."""
    child = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=120, dimensions=(50, 200), echo=False)
    answer = before = ""
    if ask:
        child.expect("as it is after the step")
        before = child.before
        child.expect(r"[#$] $")
        child.sendline(f"{ask}; echo that-is-$((40 + 2))")
        child.expect("that-is-42")
        answer = child.before
        child.sendline("exit")
    child.expect(pexpect.EOF)
    printed = before + child.before
    child.close()
    return printed, answer.replace("\r", ""), child.exitstatus


def seen_at(desk: Desk, step: str) -> set[str]:
    """Which of PLACES are in the root where --break stops; all that a stopped build leaves is checked too."""
    ask = "; ".join(f'[ ! -h {p} ] && [ ! -e {p} ] || echo "has {name}"' for name, p in PLACES.items())
    words = desk.words("--locked", "--offline", "--break", step)
    printed, answer, status = at_a_terminal(words, ask + "; echo in-$(id -u 2>/dev/null || /bin/busybox id -u)")
    assert status == 1 and "the build was stopped where --break said" in printed, printed
    assert "Traceback" not in printed and "in-0" in answer.split(), answer
    nothing_left(desk.folder, desk.cache)
    return set(re.findall(r"^has (\w+)$", answer, re.M))


@pytest.mark.parametrize(
    ("step", "there"),
    [
        ("install", set()),
        ("users", set()),  # also where a recipe has none
        ("files", {"file"}),
        ("services", {"file"}),
        ("script odd.sh", {"file", "script"}),
        ("caches", {"file", "script"}),
    ],
)
def test_break_opens_a_shell_in_the_root_as_it_is_after_that_step(
    step: str, there: set[str], first: tuple[Desk, Report], desk: Desk
) -> None:
    assert seen_at(desk, step) == there
    again = desk.build()
    assert again.made == set() and again.capsule.read_bytes() == first[1].capsule.read_bytes()


def test_break_shows_accounts_and_units_after_their_steps(system: tuple[Desk, Report], tmp_path: Path) -> None:
    desk = system[0].copy(tmp_path / "desk")
    assert seen_at(desk, "users") == {"user"}
    assert seen_at(desk, "services") == {"user", "file", "unit"}
    assert desk.build().capsule.read_bytes() == system[1].capsule.read_bytes()


def test_what_is_done_in_the_shell_of_break_is_in_no_later_build(first: tuple[Desk, Report], desk: Desk) -> None:
    desk.edit("odd >", "odder >", "odd.sh")  # a root that is in no cache yet
    _, answer, status = at_a_terminal(desk.words("--locked", "--break", "caches"), "echo mine >/etc/odd; echo done")
    assert "done" in answer and status == 1
    report = desk.build()
    assert report.made == {"root file system"} and read(report.capsule, "etc/odd") == "odder\n"


def test_an_unknown_step_to_break_at_is_wrong_usage_and_the_known_ones_are_listed(desk: Desk) -> None:
    printed, _, status = at_a_terminal(desk.words("--locked", "--break", "script even.sh"))
    assert status == 2 and "there is no step 'script even.sh' to stop after" in printed
    assert "known: install, users, files, services, script odd.sh, caches" in printed
    nothing_left(desk.folder, desk.cache)


def test_break_without_a_terminal_is_wrong_usage(desk: Desk) -> None:
    done = sh(*desk.words("--break", "files"), stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "--break opens a shell and needs a terminal" in done.stderr


def test_verbose_prints_every_command_and_a_pasted_one_works(first: tuple[Desk, Report], desk: Desk) -> None:
    desk.edit("@{greeting}", "verbose")
    desk.edit('["loop", ', '["loop", "dummy", ')
    done = sh(*desk.words("--locked", "--offline", "-v"))
    lines = [line.removeprefix("+ ") for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert done.returncode == 0 and len(lines) == len(done.stderr.splitlines()), done.stderr
    for program in ("shellcheck", "dpkg-deb -x", "depmod -b", "mksquashfs - ", "customize.sh"):
        assert any(program in line for line in lines), program
    # A command that works in a root brings its namespaces, its folder and its environment with it.
    (root,) = (line for line in lines if "customize.sh" in line)
    assert "unshare --mount" in root and "SOURCE_DATE_EPOCH=" in root and "--chdir=" in root
    unpacking = [line for line in lines if line.startswith("dpkg-deb -x")]
    pasted = {Path(line.split()[-1]) for line in unpacking}
    assert len(unpacking) == 2 and len(pasted) == 1 and not any(p.exists() for p in pasted), "the kernel's packages"
    for line in unpacking:
        ok("sh", "-c", line)
    (folder,) = pasted
    assert list((folder / "boot").glob("vmlinuz-*"))
    shutil.rmtree(folder)
