"""Stage 2's functions in every shell it runs in: the stack, the init, the stops, and the way back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from stage2_shell import FILES, SHELLS, SOURCE, Stage2


@pytest.fixture(params=sorted(SHELLS))
def stage2(request: pytest.FixtureRequest, tmp_path: Path) -> Stage2:
    """One for each shell."""
    return Stage2(request.param, tmp_path)


# --- the files themselves


@pytest.mark.parametrize("shell", sorted(SHELLS))
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_file_parses_in_every_shell(path: Path, shell: str) -> None:
    done = subprocess.run([*SHELLS[shell], "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- the command line


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("a.b=1 c=2", "1"),
        ("a.b=1 a.b=2", "2"),
        ("a.b-c=1 xa.b=3 a.b", ""),
        ("a.b=x=y,z", "x=y,z"),
        ("a.b=", ""),
    ],
)
def test_the_last_word_of_a_name_counts(stage2: Stage2, line: str, value: str) -> None:
    stage2.cmdline(line)
    assert stage2.out("karg a.b") == value + "\n"


@pytest.mark.parametrize(
    ("line", "init"),
    [
        ("quiet", "/sbin/init"),
        ("ck.init=/lib/own", "/lib/own"),
        ("init=/bin/sh ck.init=/lib/own", "/bin/sh"),
        ("init=/bin/sh init=/bin/dangling", "/bin/dangling"),
        ("rdinit=/no init.x=/no", "/sbin/init"),
    ],
)
def test_the_sites_init_comes_before_the_capsules(stage2: Stage2, line: str, init: str) -> None:
    for name in ("sbin", "lib", "bin"):
        (stage2.folder / "root" / name).mkdir()
    for name in ("sbin/init", "lib/own", "bin/sh"):
        (stage2.folder / "root" / name).touch()
    (stage2.folder / "root/bin/dangling").symlink_to("/only/in/the/new/root")
    stage2.cmdline(line)
    assert stage2.out('chosen_init; echo "$init_path"') == init + "\n"


@pytest.mark.parametrize(
    ("line", "reason"), [("init=bash", "init=bash is not a full path"), ("ck.init=/x", "the capsule has no /x")]
)
def test_an_init_that_is_not_there_is_named(stage2: Stage2, line: str, reason: str) -> None:
    stage2.cmdline(line)
    assert stage2.reason("chosen_init") == reason


# --- a shell on the way


def stopped(stage2: Stage2, line: str, console: str | None) -> tuple[list[str], str]:
    """The shells that were started at both places, and what was said."""
    stage2.cmdline(line)
    stage2.fake("sh")
    if console is not None:
        (stage2.folder / "layers/console").write_text(console)
    (stage2.folder / "dev/console").touch()
    stage2.out("check_breaks; break_at pre-mount; break_at pre-switch")
    return stage2.calls(), stage2.said


@pytest.mark.parametrize("console", [None, "", "locked\n", "opened\n"])
@pytest.mark.parametrize("word", ["rd.break", "rd.break=pre-mount", "rd.break=pre-switch"])
def test_a_locked_console_gives_no_shell_and_says_so(stage2: Stage2, word: str, console: str | None) -> None:
    shells, said = stopped(stage2, f"quiet {word}", console)
    assert shells == []
    assert said.count("is refused: the site's console is locked") == 1


@pytest.mark.parametrize(
    ("word", "place"),
    [("rd.break", "pre-switch"), ("rd.break=pre-mount", "pre-mount"), ("rd.break=pre-switch", "pre-switch")],
)
def test_an_open_console_gives_a_shell_at_the_place_named(stage2: Stage2, word: str, place: str) -> None:
    shells, said = stopped(stage2, f"quiet {word}", "open\n")
    assert shells == ["sh "]
    assert f"rd.break={place}: a shell" in said


@pytest.mark.parametrize(
    ("line", "said"), [("quiet rd.breakx rd.shell", ""), ("rd.break=cmdline", "rd.break=cmdline is ignored")]
)
def test_other_words_give_no_shell(stage2: Stage2, line: str, said: str) -> None:
    shells, shown = stopped(stage2, line, "open\n")
    assert shells == []
    assert said in shown and bool(said) == bool(shown)


# --- the stack


@pytest.mark.parametrize("text", ["1g", "512m", "40%", "100", "2G", "80K"])
def test_a_size_of_the_writable_part_is_taken_as_it_is(stage2: Stage2, text: str) -> None:
    stage2.cmdline(f"ck.overlay-size={text}")
    assert stage2.out("upper_size") == text + "\n"


def test_half_of_the_memory_is_writable_when_nobody_said_more(stage2: Stage2) -> None:
    assert stage2.out("upper_size") == "50%\n"


@pytest.mark.parametrize("text", ["x", "1t", "-1g", "0", "1.5g", "%", "1gg", "1g,mode=777", "$(reboot)"])
def test_another_size_is_refused_with_the_way_out(stage2: Stage2, text: str) -> None:
    stage2.cmdline(f"ck.overlay-size={text}")
    assert stage2.reason("size=$(upper_size)").startswith(f"ck.overlay-size={text} is no size: a number with")


@pytest.mark.parametrize(
    ("order", "doing", "reason"),
    [
        (None, "reading the order of the layers", "layers/order is missing or empty"),
        ("", "reading the order of the layers", "layers/order is missing or empty"),
        ("gone.squashfs\n", "mounting layer gone.squashfs", "it is missing or empty"),
        ("empty.squashfs\n", "mounting layer empty.squashfs", "it is missing or empty"),
    ],
)
def test_a_stack_without_its_files_names_what_lacks(stage2: Stage2, order: str | None, doing: str, reason: str) -> None:
    (stage2.folder / "layers/empty.squashfs").touch()
    if order is not None:
        (stage2.folder / "layers/order").write_text(order)
    note = f'echo "$DOING" >"{stage2.folder}/doing"'
    assert stage2.reason(f"trap '{note}' EXIT; mount_layers").endswith(reason)
    assert (stage2.folder / "doing").read_text() == doing + "\n"


def test_more_layers_than_the_page_of_options_holds_are_refused(stage2: Stage2) -> None:
    stage2.fake("mount")
    many = ":".join(f"/s/{n}" for n in range(500))
    stage2.out(f"STACK=/s stack_n=500 stack_lower={many}; mount_overlay")
    assert len(stage2.calls()) == 1
    more = ":".join(f"/s/{n}" for n in range(700))
    reason = stage2.reason(f"STACK=/s stack_n=700 stack_lower={more}; mount_overlay")
    assert reason.startswith("so many do not fit the page of options a mount may have")
    assert len(stage2.calls()) == 1


def test_the_layers_are_shown_to_root_alone_and_a_failure_there_stops_no_boot(stage2: Stage2) -> None:
    stage2.fake("mount")
    run, stack, root = (f"{stage2.folder}/{name}" for name in ("run/shown", "stack", "root"))
    stage2.out("stack_lower=$STACK/0:$STACK/1:$STACK/h; show_stack")
    overlay = "redirect_dir=off,metacopy=off,index=off,xino=off overlay"
    assert stage2.calls() == [
        f"mount -o bind {stack}/u {run}/u", f"mount -o remount,bind,ro {stack}/u {run}/u",
        f"mount -o bind {stack}/0 {run}/n", f"mount -o remount,bind,ro {stack}/0 {run}/n",
        f"mount -t overlay -o ro,lowerdir={stack}/1:{stack}/h,{overlay} {run}/c",
        f"mount -t overlay -o ro,lowerdir={stack}/0:{stack}/1:{stack}/h,{overlay} {run}/b",
        f"mount -o bind {root} {run}/m", f"mount -o remount,bind,ro {root} {run}/m",
    ]  # fmt: skip
    assert (stage2.folder / "run/shown").stat().st_mode & 0o777 == 0o700
    (stage2.folder / "dev/console").touch()
    stage2.fake("mount", "echo no memory >&2; exit 32")
    stage2.out("SHOWN=$SHOWN.again; stack_lower=$STACK/0:$STACK/1; show_stack")
    assert "the layers can't be shown to the running system" in stage2.said and "no memory" in stage2.said


def test_a_network_layer_without_its_part_of_the_initrd_is_refused(stage2: Stage2) -> None:
    stage2.out('stack_lower=/s/0; add_network_layer; [ "$stack_lower" = /s/0 ]')
    stage2.cmdline("ck.hybrid=nfs4:10.0.0.1:/x")
    for name in ("hybrid.sh", "nic.sh"):
        (stage2.folder / "lib" / name).unlink()
    reason = stage2.reason("stack_lower=/s/0; add_network_layer")
    assert reason.startswith("this capsule was built without one: hybridize in its recipe")


@pytest.mark.parametrize(("text", "raw"), [("a b", "a b"), ("a%20b%25", "a b%"), ("%c3%a9\\n%0a", "\u00e9\\n\n")])
def test_percent_escapes_of_acl_paths_become_bytes(stage2: Stage2, text: str, raw: str) -> None:
    assert stage2.out('unescape "$1"', text) == raw + "."


# --- the way back


def failing(stage2: Stage2, script: str) -> list[str]:
    """Fail as the node would, with programs that only note how they were called; what was called."""
    stage2.fake("sleep")
    stage2.do(f"trap 'stop_here $?' EXIT; set -e; {script}")
    return stage2.calls()


def test_a_failure_is_said_with_its_reason_and_ends_in_a_reboot(stage2: Stage2) -> None:
    stage2.fake("reboot")
    stage2.fake("mount", "echo 'mount: bad superblock' >&2; echo '  see dmesg' >&2; exit 32")
    calls = failing(stage2, "DOING='mounting layer x'; try mount -t squashfs a b; echo not reached")
    assert "capsulekit: FAILED stage 2: mounting layer x: mount: bad superblock\n" in stage2.said
    assert "rebooting in 37 s; the master sees" in stage2.said
    assert calls == ["mount -t squashfs a b", "sleep 37", "reboot -f"]


def test_without_a_reason_the_status_is_said_and_an_older_complaint_is_not(stage2: Stage2) -> None:
    stage2.fake("reboot")
    failing(stage2, "loud() { echo harmless >&2; }; DOING=work; try loud; false")
    assert "FAILED stage 2: work: status 1" in stage2.said


def test_without_a_reboot_program_the_kernels_own_key_is_pressed(stage2: Stage2) -> None:
    stage2.fake("reboot", "exit 1")
    failing(stage2, "fail 'no such thing'")
    assert "FAILED stage 2: start: no such thing" in stage2.said
    assert (stage2.folder / "proc/sysrq-trigger").read_text() == "b\n"


def test_nodes_that_failed_together_come_back_at_different_times(stage2: Stage2) -> None:
    uuid = stage2.folder / "proc/sys/kernel/random/uuid"
    waits = set()
    for number in range(0, 64, 3):
        uuid.write_text(f"{number:08x}-0000-0000-0000-000000000000\n")
        waits.add(int(stage2.out("jittered 30")))
    assert min(waits) >= 30 and max(waits) <= 45 and len(waits) > 4


@pytest.mark.parametrize(("was", "becomes"), [("0\n", "30\n"), ("5\n", "5\n"), ("-1\n", "-1\n")])
def test_a_panic_ends_in_a_reboot_unless_the_command_line_said_when(stage2: Stage2, was: str, becomes: str) -> None:
    panic = stage2.folder / "proc/sys/kernel/panic"
    panic.write_text(was)
    stage2.out("panic_reboots")
    assert panic.read_text() == becomes
