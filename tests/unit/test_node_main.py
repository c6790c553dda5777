"""Stage 1 as a whole: attempt after attempt, the consoles, the jump, under busybox ash and dash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from node_shell import MAC, SOURCE, Node, a_plan, node

__all__ = ["node"]  # the fixture
KEY = "Authorization: Bearer secret"


def init() -> str:
    """The functions of stage1/init itself, without what it does when it is started."""
    text = (SOURCE / "stage1/init").read_text()
    return text[text.index("\nroad() {") : text.rindex("\nmain")] + "\n"


def console(node: Node) -> str:
    path = node.run.parent / "console"
    return path.read_text() if path.exists() else ""


@pytest.fixture
def kernel(node: Node) -> Path:
    """The files below /proc/sys/kernel."""
    folder = node.proc / "sys/kernel"
    (folder / "sysrq").write_text("438\n")
    (folder / "ctrl-alt-del").write_text("1\n")
    (folder / "random/uuid").write_text("00000000-1\n")
    return folder


# --- attempts


def test_a_step_that_was_killed_says_so(node: Node) -> None:
    node.do("""killed() { sh -c 'kill -9 $PPID'; }; step layers killed""")
    assert "FAILED layers: killed by signal 9 (9: out of memory)" in console(node)


def test_an_attempt_that_ends_outside_of_any_step_is_said_too(node: Node) -> None:
    node.out(f"{init()}attempt_ended 9")
    assert "FAILED: the attempt ended with status 9 outside of any step" in console(node)
    assert "status=failed" in next((node.run / "queue").iterdir()).read_text()


MAIN = """
road() { fail_it() { fail "attempt $attempt"; }; step network fail_it; }
sleep() { printf '%s\\n' "$1" >>"$RUN/slept"; [ "$(grep -c . "$RUN/slept")" -lt 6 ] || exit 9; }
mem_sampler() { :; }
main
"""


def test_main_waits_after_every_failed_attempt_and_never_ends(node: Node, kernel: Path) -> None:
    assert node.do(init() + MAIN).returncode == 9
    assert [f"FAILED network: attempt {n}\n" in console(node) for n in range(1, 8)] == [True] * 6 + [False]
    assert "outside of any step" not in console(node)
    waits = [int(line) for line in (node.run / "slept").read_text().split()]
    assert waits[:3] == sorted(waits[:3])
    assert 5 <= min(waits) < max(waits) <= 60


def test_main_goes_on_when_the_road_itself_is_killed(node: Node, kernel: Path) -> None:
    road = "road() { sh -c 'kill -9 $PPID'; }"
    assert node.do(init() + re.sub(r"road\(\) \{.*\}", road, MAIN)).returncode == 9
    assert console(node).count("FAILED: the attempt ended with status 137 outside of any step") == 6


def test_a_reboot_happens_only_where_nothing_else_helps(node: Node, kernel: Path) -> None:
    script = init() + 'reboot() { echo "reboot $*"; }; sleep() { :; }; give_up_attempt 1'
    assert node.out(script) == ""
    assert node.out(': >"$RUN/reboot"; ' + script) == "reboot -f\n"


def test_the_road_hands_the_chosen_interface_on(node: Node) -> None:
    script = 'step() { shift; echo "$*"; }; unmount_layers() { :; }; NODE= TICKET=; echo AA >"$RUN/node"; '
    (node.run / "plan").write_text(a_plan())
    steps = node.out(init() + script + "road").splitlines()
    assert steps[:5] == ["clock_step", "load_drivers", "network_up ", "open_session  AA", "send_devices AA"]
    assert steps[-3:] == ["make_node_layer", "load_kernel", "hand_off"]


def test_what_an_earlier_attempt_fetched_counts_as_memory_that_is_there(node: Node, tmp_path: Path) -> None:
    (node.run / "plan").write_text(a_plan())
    node.out(f"{init()}memory_step")
    assert "has 403 MB" in (node.run / "detail").read_text()
    (tmp_path / "capsule/boot").mkdir(parents=True)
    with (tmp_path / "capsule/boot/vmlinuz").open("wb") as kernel:
        kernel.truncate(14 << 20)
    node.out(f"{init()}memory_step")
    assert "has 417 MB" in (node.run / "detail").read_text()


# --- the clock


def clock(node: Node, now: int, script: str) -> tuple[str, str]:
    """(what the clock was set to, what the console shows)."""
    stub = f'date() {{ case $1 in -s) echo "$2" >"$RUN/set" ;; *) echo {now} ;; esac; }}; '
    (node.run.parent / "console").unlink(missing_ok=True)
    (node.run / "set").unlink(missing_ok=True)
    node.out(stub + script)
    done = node.run / "set"
    return (done.read_text().strip() if done.exists() else "", console(node))


STAMP = 1_800_000_000
YEAR = 31_557_600


@pytest.mark.parametrize(
    ("now", "set_to"),
    [
        (0, f"@{STAMP}"),
        (STAMP - 1, f"@{STAMP}"),
        (STAMP, ""),
        (STAMP + 19 * YEAR, ""),
        (STAMP + 30 * YEAR, f"@{STAMP}"),
    ],
)
def test_a_clock_that_can_not_be_right_is_set_to_the_stamp(node: Node, now: int, set_to: str) -> None:
    done, shown = clock(node, now, f"clock_from_stamp {STAMP}")
    assert done == set_to
    assert bool(shown) == bool(set_to)


@pytest.mark.parametrize(
    ("off", "words"),
    [(0, ""), (59, ""), (-59, ""), (3 * YEAR, "back by 1095 days"), (-2 * 86400, "forward by 2 days"),
     (61, "back by less than a day")],
)  # fmt: skip
def test_the_masters_clock_counts_both_ways(node: Node, off: int, words: str) -> None:
    done, shown = clock(node, STAMP + off, f"clock_from_master {STAMP}")
    assert done == (f"@{STAMP}" if words else "")
    assert words in shown


def test_a_clock_that_can_not_be_set_stops_no_boot(node: Node) -> None:
    node.out(f'date() {{ [ "$1" != -s ] && echo 0; }}; clock_from_stamp {STAMP}')
    assert "the clock could not be set" in console(node)


# --- consoles


@pytest.mark.parametrize(("word", "sysrq"), [("locked", "0\n"), ("", "0\n"), ("opened", "0\n"), ("open", "438\n")])
def test_keys_of_a_console_do_nothing_unless_the_site_opens_it(node: Node, kernel: Path, word: str, sysrq: str) -> None:
    (node.site / "console").write_text(word + "\n")
    node.out("lock_consoles")
    assert (kernel / "sysrq").read_text() == sysrq
    assert (kernel / "ctrl-alt-del").read_text() == "0\n"


def test_a_kernel_without_sysrq_boots_too(node: Node) -> None:
    node.out("lock_consoles")
    assert not (node.proc / "sys/kernel/sysrq").exists()


def test_there_is_one_place_that_starts_a_shell() -> None:
    shells = re.compile(r"cttyhack|getty|\bsh <|openvt|\blogin\b")
    paths = [path for path in (SOURCE / "stage1").rglob("*") if path.is_file()]
    lines = [(path.name, line) for path in paths for line in path.read_text().splitlines() if shells.search(line)]
    assert [name for name, line in lines if not line.startswith("# needs")] == ["handoff.sh"]


def test_debug_level_3_gives_a_shell_on_an_open_console_without_any_secret(node: Node) -> None:
    secrets = [node.run / n for n in ("session.curl", "ticket", "session.answer", "progress.curl", "data", "scripts")]
    for path in secrets[:4]:
        path.write_text(KEY)
    for path in secrets[4:]:
        path.mkdir()
        (path / "file").write_text(KEY)
    # /dev/console can't be opened in a test: a folder that has one stands for /dev.
    script = 'setsid() { echo "$*"; grep -r -c secret "$RUN" || :; }; debug_shell'
    node.env["CK_DEV"] = str(node.run.parent)
    (node.run.parent / "console").touch()
    node.out(script)
    assert all(path.exists() for path in secrets)
    assert (node.run / "detail").read_text() == "refused: the site's console is locked\n"
    (node.site / "console").write_text("open\n")
    node.out(script)
    assert not any(path.exists() for path in secrets)
    shown = console(node)
    assert "cttyhack sh" in shown
    assert not re.search(r":[1-9]", shown.partition("cttyhack sh")[2])


def test_debug_level_1_shows_commands_and_never_the_session_key(node: Node) -> None:
    (node.run / "plan").write_text(a_plan())
    (node.run / "session.curl").write_text(f'header = "{KEY}"\n')
    (node.run / "master").write_text("http://127.0.0.1:1 https://127.0.0.1:1\n")
    (node.site / "ca.pem").write_text("")
    (node.run.parent / "root/etc/capsulekit/agent").mkdir(parents=True)
    words = 'queue a ok 1 x; send_queue || :; agent_session; tell_handoff; get public http://127.0.0.1:1/ || :; ' \
            'get private https://127.0.0.1:1/ || :; echo p d 1 | prefetch private'  # fmt: skip
    done = node.do(f"all() {{ {words}; }}; DEBUG=1; step layers all")
    assert "+ send_queue" in done.stderr and "prefetch.curl" in done.stderr
    assert "secret" not in done.stderr + done.stdout + console(node)
    # What was said before the plan, the ticket and the key among it, is not traced in a later attempt either.
    script = MAIN.replace("road() {", 'road() { echo "$DEBUG"; DEBUG=3;')
    (node.run / "session.curl").unlink()
    (node.proc / "sys/kernel/random/uuid").write_text("00000000-1\n")
    assert node.do(init() + script).stdout.split() == ["0"] * 6


@pytest.mark.parametrize(("level", "pause"), [("0", False), ("1", False), ("2", True), ("3", True)])
def test_debug_level_2_waits_before_the_jump(node: Node, level: str, pause: bool) -> None:
    assert bool(node.out(f'sleep() {{ echo "$1"; }}; DEBUG={level}; debug_pause')) == pause


# --- the jump

KEXEC = """
kexec() {
    printf '%s\\n' "$*" >>"$RUN/kexecs"
    [ "$1" = "${GOOD:-}" ] || { echo "kexec_file_load failed: $WHY"; return 1; }
}
uname() { printf '%s\\n' "$MACHINE"; }
"""


def loads(node: Node, good: str, machine: str, why: str) -> list[str]:
    """The calls that were tried."""
    (node.run / "plan").write_text(a_plan())
    (node.run / "kexecs").unlink(missing_ok=True)
    node.do(f"{KEXEC}GOOD={good} MACHINE={machine} WHY='{why}'; load_kernel")
    return [line.split()[0] for line in (node.run / "kexecs").read_text().splitlines()]


def test_the_older_kexec_call_is_used_only_where_the_newer_one_is_unknown(node: Node) -> None:
    assert loads(node, "-s", "x86_64", "") == ["-s"]
    for why in ("Function not implemented", "Exec format error", "Operation not supported"):
        assert loads(node, "-c", "x86_64", why) == ["-s", "-c"]
    for why in ("Key was rejected by service", "Cannot allocate memory", "Operation not permitted"):
        assert loads(node, "-c", "x86_64", why) == ["-s"]
    assert loads(node, "-c", "i686", "") == ["-c"]


def test_a_kexec_that_was_killed_is_said_to_lack_memory(node: Node) -> None:
    (node.run / "plan").write_text(a_plan())
    script = "uname() { echo x86_64; }; kexec() { sh -c 'kill -9 $$'; }; load_kernel"
    assert node.reason(script) == "kexec_file_load refuses the capsule's kernel: killed: out of memory"


def test_the_command_line_holds_no_secret_and_a_hybrids_gets_the_address(node: Node) -> None:
    (node.run / "plan").write_text(a_plan())
    assert node.out("kernel_arguments") == "console=tty0 quiet rootfstype=ramfs ck.init=/sbin/init\n"
    (node.run / "node").write_text(MAC + "\n")
    (node.run / "address").write_text("10.0.0.9/24,10.0.0.1\n")
    (node.run / "plan").write_text(a_plan(kargs="kargs ck.hybrid=nfs4:10.0.0.1:/x"))
    assert node.out("kernel_arguments").endswith(f" ck.nic={MAC} ck.ip=10.0.0.9/24,10.0.0.1\n")


QUIET = """
for one in dhcp_stop disk_close sync kexec tell_state send_queue; do eval "$one() { echo $one \\$*; }"; done
ip() { echo "ip $*"; }
"""


def test_everything_is_quiet_before_the_jump(node: Node) -> None:
    for name in ("lo", "eth0", "eth1"):
        (node.run.parent / "net" / name).mkdir(parents=True)
    (node.run / "plan").write_text(a_plan())
    (node.run / "session.curl").write_text(KEY)
    (node.run / "node").write_text(MAC)
    done = node.do(QUIET + "network_up() { echo network_up $*; }; hand_off")
    assert done.stdout.splitlines() == [
        "send_queue", "tell_state handoff", "dhcp_stop", "disk_close", "sync",
        "ip link set eth0 down", "ip link set eth1 down", "ip link set lo down", f"network_up {MAC}",
    ]  # fmt: skip
    # kexec came back: said, with the network up again for the report, and then a clean start.
    assert (node.run / "reason").read_text().startswith("kexec did not start the capsule's kernel: kexec -e")
    assert (node.run / "reboot").exists()
    assert "kexec came back: kexec -e" in console(node)


def test_a_master_that_is_away_at_the_end_stops_no_boot(node: Node) -> None:
    (node.run / "plan").write_text(a_plan())
    (node.run / "session.curl").write_text(KEY)
    (node.run / "node").write_text(MAC)
    script = 'tell_state() { fail "no master answers: x"; }; network_up() { :; }; jump_failed() { exit 7; }; hand_off'
    assert node.do(QUIET + script).returncode == 7
    assert "no master answers: x; going on" in console(node)
