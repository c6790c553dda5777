"""The shell that runs on nodes: shellcheck-clean, and its functions driven under busybox ash and dash on real data."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from node_shell import AGENT, DIGEST, LIB, MAC, PARTS, SHELL_FILES, SHELLS, SOURCE, Node, a_plan, check, node

from capsulekit.trust import minisign

__all__ = ["node"]  # the fixture


# --- the files themselves


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_shellcheck_finds_nothing(path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-x", str(path)], capture_output=True, text=True, cwd=SOURCE.parent)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("shell", sorted(SHELLS))
@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_file_parses_in_every_shell(path: Path, shell: str) -> None:
    done = subprocess.run([*SHELLS[shell], "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_file_names_the_commands_it_needs(path: Path) -> None:
    needs = re.findall(r"^# needs: (.+)$", path.read_text(), re.MULTILINE)
    assert len(needs) == 1
    assert needs[0].split() == sorted(needs[0].split())


def test_init_sources_every_part() -> None:
    sourced = re.findall(r"^\. /lib/capsulekit/(\w+)\.sh$", (SOURCE / "stage1" / "init").read_text(), re.MULTILINE)
    assert sourced == PARTS
    assert {p.stem for p in LIB.glob("*.sh")} == {*PARTS, "dhcp"}


# --- small things


def test_a_kernel_argument_is_found_by_its_whole_name(node: Node) -> None:
    assert node.out("karg ck.mac").strip() == MAC.lower()
    assert node.out("karg ck.none") == ""
    assert node.out('upper "$(karg ck.mac)"') == MAC


def test_times_keep_hundredths_and_no_number_becomes_octal(node: Node) -> None:
    assert node.out("centiseconds") == "1205\n"
    assert node.out("as_seconds 1205; as_seconds 9; as_seconds 0") == "12.05\n0.09\n0.00\n"


def test_backoff_grows_and_stays_between_5_and_60_seconds(node: Node) -> None:
    for text in ("00000000", "ffffffff", "00000003"):
        number = f"random_number() {{ echo $((0x{text})); }}; "
        script = number + 'for n in 1 2 3 4 5 6 50 1000000; do backoff "$n"; done'
        waits = [int(w) for w in node.out(script).split()]
        assert all(5 <= wait <= 60 for wait in waits)
    assert waits[-1] > waits[0]


@pytest.mark.parametrize("word", ["0", "7", "123456789012345"])
def test_numbers_are_taken(node: Node, word: str) -> None:
    assert node.do('is_number "$1"', word).returncode == 0


@pytest.mark.parametrize("word", ["", "-1", "010", "1e3", "0x10", "1 2", "9" * 16, "1;reboot", "$(id)"])
def test_what_is_no_number_is_refused(node: Node, word: str) -> None:
    assert node.do('is_number "$1"', word).returncode != 0


@pytest.mark.parametrize("path", ["/etc", "a/../b", "a//b", "a b", "", "-x", "a/", "a\nb", "$(x)", "a;b", "a*"])
def test_hostile_member_paths_are_refused(node: Node, path: str) -> None:
    assert node.do('is_member "$1"', path).returncode != 0


def test_text_for_consoles_and_forms_is_plain_and_short(node: Node) -> None:
    assert node.out('printable "$1"', "a\x1b[31mb\tc\xff" + "x" * 500).startswith("a [31mb c")
    assert len(node.out('printable "$1"', "x" * 500).strip()) == 300


# --- plans


def test_a_good_plan_is_taken(node: Node) -> None:
    script = f"script init 05 net network {DIGEST['a']} 12 optional\ndata sshkeys key {DIGEST['b']} 0"
    assert check(node, a_plan()) == ""
    assert check(node, a_plan(extra=script, kargs="kargs", group="group -")) == ""
    assert node.out("plan_value hostname") == "n0001\n"


def test_a_cut_plan_is_refused_wherever_it_was_cut(node: Node) -> None:
    plan = a_plan()
    for end in (0, 1, 7, len(plan) // 2, len(plan) - 5, len(plan) - 4, len(plan) - 1):
        assert check(node, plan[:end]).startswith("plan: "), end


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan": "plan 2"}, "not a plan of format 1"),
        ({"nodeid": "nodeid 52:54:00:00:00:99"}, "line 2"),
        ({"hostname": None}, "exactly one line 'hostname'"),
        ({"hostname": "hostname n1\nhostname n2"}, "exactly one line 'hostname'"),
        ({"hostname": "hostname $(reboot)"}, "not understood"),
        ({"hostname": "hostname ../x"}, "not understood"),
        ({"identity": "identity abc"}, "not understood"),
        ({"identity": f"identity {DIGEST['e'].upper()}"}, "not understood"),
        ({"key": "key RW" + "A" * 53 + "'"}, "not understood"),
        ({"debug": "debug 4"}, "not understood"),
        ({"init": "init sbin/init"}, "not understood"),
        ({"init": "init /sbin/init single"}, "not understood"),
        ({"vmlinuz": None}, "boot/vmlinuz has no 'file' line"),
        ({"rootfs": None}, "layers/rootfs.squashfs has no 'file' line"),
        ({"layer": None}, "names no layer"),
        ({"layer": "layer layers/order 1"}, "not understood"),
        ({"layer": "layer layers/a/b 1"}, "not understood"),
        ({"toml": f"file ../capsule.toml {DIGEST['a']} 1 public"}, "not understood"),
        ({"toml": f"file /etc/passwd {DIGEST['a']} 1 public"}, "not understood"),
        ({"toml": f"file capsule.toml {DIGEST['a']} 010 public"}, "not understood"),
        ({"toml": f"file capsule.toml {DIGEST['a']} -1 public"}, "not understood"),
        ({"toml": f"file capsule.toml {DIGEST['a']} 1 secret"}, "not understood"),
        ({"toml": f"file capsule.toml {DIGEST['a']} 1 public more"}, "not understood"),
        ({"extra": f"file capsule.toml {DIGEST['a']} 1 public"}, "named twice"),
        ({"extra": "provision provision/init/10-x"}, "has no 'file' line"),
        ({"extra": "provision boot/vmlinuz"}, "not understood"),
        ({"extra": f"data ssh ../key {DIGEST['a']} 1"}, "not understood"),
        ({"extra": f"script init 5x n m {DIGEST['a']} 1 required"}, "not understood"),
        ({"extra": "surprise 1"}, "not understood"),
        ({"extra": "end"}, "exactly one line 'end'"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_reason(node: Node, changes: dict[str, str | None], reason: str) -> None:
    assert reason in check(node, a_plan(**changes))


@pytest.mark.parametrize("byte", [b"\0", b"\x1b", b"\t", b"\r", b"\xff"])
def test_bytes_that_are_not_text_are_refused(node: Node, byte: bytes) -> None:
    assert "not plain text" in check(node, a_plan().encode().replace(b"quiet", b"qui" + byte + b"et"))


# --- memory


def test_memory_is_checked_with_the_numbers_said(node: Node) -> None:
    big = f"file layers/rootfs.squashfs {DIGEST['d']} 209715200 public"
    assert check(node, a_plan(rootfs=big)) == ""
    assert node.reason("mem_check 0") == (
        "not enough memory: needs 703 MB (boot files 1 MB and layers 200 MB, held three times around kexec, and the "
        "new kernel), has 403 MB available of 480 MB"
    )
    node.out("mem_check 314572800")  # what an earlier attempt fetched is held already
    assert "has 703 MB" in (node.run / "detail").read_text()


def test_all_files_count_three_times_and_the_new_kernel_is_unpacked_beside_them(node: Node) -> None:
    mb = 1 << 20
    assert node.out("mem_needed 0 0") == f"{(3 * 10 + 72) * mb}\n"
    assert node.out(f"mem_needed {10 * mb} {100 * mb}") == f"{(3 * 120 + 72) * mb}\n"


# --- the initrd


def test_composed_archive_is_read_by_cpio_and_layers_lie_at_4096(node: Node, tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    layer, archive = os.urandom(10_000), tmp_path / "initrd"
    (tmp_path / "layer").write_bytes(layer)
    node.out(
        ': >"$INITRD"; cpio_dir "$INITRD" layers; cpio_open_file "$INITRD" layers/a.squashfs 10000; '
        f'file_size "$INITRD" >"$RUN/at"; cat {tmp_path}/layer >>"$INITRD"; cpio_close_file "$INITRD"; '
        'printf "node\\n" >"$RUN/order"; cpio_small "$INITRD" layers/order "$RUN/order"; cpio_trailer "$INITRD"'
    )
    offset = int((node.run / "at").read_text())
    assert offset % 4096 == 0
    assert archive.read_bytes()[offset : offset + 10_000] == layer
    assert archive.stat().st_size % 512 == 0
    with archive.open("rb") as stdin:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=stdin, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "layers/a.squashfs").read_bytes() == layer
    assert (tmp_path / "layers/order").read_text() == "node\n"


@pytest.mark.parametrize("length", range(1, 9))
def test_headers_are_padded_whatever_the_length_of_the_name(node: Node, length: int) -> None:
    name = "n" * length
    size = len(node.out(f"cpio_header {name} 0 0"))
    assert size % 4 == 0
    assert node.out(f"cpio_head_size {name}") == f"{size}\n"


def test_a_file_too_big_for_the_archive_is_refused(node: Node) -> None:
    assert "do not fit a cpio archive" in node.reason("cpio_header x 0 4294967296")


# --- trust


@pytest.fixture
def signed(node: Node, tmp_path: Path) -> tuple[str, str]:
    """SHA256SUMS with a signature, and a plan that names it: (public key line, key id)."""
    if shutil.which("minisign") is None:
        pytest.skip("minisign is not installed")
    secret, public = minisign.generate(None)
    (tmp_path / "k").write_text(secret)
    (tmp_path / "k").chmod(0o600)
    key = minisign.parse_public(public)
    names = ("boot/vmlinuz", "boot/initrd.img", "capsule.toml", "layers/rootfs.squashfs")
    sums = "".join(f"{DIGEST[d]}  {name}\n" for d, name in zip("abcd", names, strict=True))
    comment = "capsule mini 1.0 amd64 recipe " + "0" * 64
    (tmp_path / "SHA256SUMS").write_text(sums)
    signature = minisign.sign(sums.encode(), minisign.load_secret(tmp_path / "k", lambda: b""), comment)
    (tmp_path / "SHA256SUMS.minisig").write_text(signature)
    identity = hashlib.sha256(sums.encode()).hexdigest()
    assert check(node, a_plan(identity=f"identity {identity}", key=f"key {key.text}")) == ""
    return key.text, key.id


VERIFY = 'verify_sums "$1" "$(plan_value identity)" "$(plan_value key)" "$(plan_value comment)"'


def test_signed_sums_are_believed(node: Node, signed: tuple[str, str], tmp_path: Path) -> None:
    node.out(VERIFY, str(tmp_path / "SHA256SUMS"))


def test_a_key_the_site_does_not_trust_is_named(node: Node, signed: tuple[str, str]) -> None:
    assert node.reason("get_sums") == f"unknown signing key {signed[1]}"
    (node.site / "keys" / "x.pub").write_text(f"untrusted comment: x\n{signed[0]}\n")
    assert node.do('key_trusted "$1"', signed[0]).returncode == 0
    assert node.do('key_trusted "$1"', signed[0][:-1]).returncode != 0


def test_changed_sums_another_comment_or_a_bad_signature_are_refused(
    node: Node, signed: tuple[str, str], tmp_path: Path
) -> None:
    sums = tmp_path / "SHA256SUMS"
    good = sums.read_text()
    other = VERIFY.replace('"$(plan_value comment)"', "another")
    assert "trusted comment disagrees" in node.reason(other, str(sums))
    sums.write_text(good.replace(DIGEST["a"], DIGEST["b"]))
    assert "SHA256SUMS: digest mismatch" in node.reason(VERIFY, str(sums))
    forged = VERIFY.replace('"$(plan_value identity)"', hashlib.sha256(sums.read_bytes()).hexdigest())
    assert f"signature does not hold for key {signed[1]}" in node.reason(forged, str(sums))


def test_a_plan_that_names_another_digest_than_the_signed_one_is_refused(
    node: Node, signed: tuple[str, str], tmp_path: Path
) -> None:
    good = f"file layers/rootfs.squashfs {DIGEST['d']}"
    plan = (node.run / "plan").read_text().replace(good, f"file layers/rootfs.squashfs {DIGEST['a']}")
    (node.run / "plan").write_text(plan)
    assert "layers/rootfs.squashfs: the plan's digest" in node.reason(VERIFY, str(tmp_path / "SHA256SUMS"))


# --- scripts


def prepare_script(node: Node, text: str, need: str = "required") -> None:
    digest = hashlib.sha256(text.encode()).hexdigest()
    line = f"script init 20 name module {digest} {len(text)} {need}"
    assert check(node, a_plan(extra=line, cluster="cluster c1")) == ""
    (node.run / "scripts").mkdir(exist_ok=True)
    (node.run / "scripts" / digest).write_text(text)
    node.out('scripts_list >"$RUN/scripts.list"')


def test_scripts_of_modules_and_capsule_run_in_the_order_of_their_numbers(node: Node) -> None:
    plan = a_plan(
        extra=f"script init 30 late m {DIGEST['a']} 1 required\nscript ready 01 other m {DIGEST['a']} 1 required\n"
        f"script init 5 first m {DIGEST['b']} 1 optional\nprovision provision/init/10-mine\n"
        f"file provision/init/10-mine {DIGEST['c']} 5 public"
    )
    assert check(node, plan) == ""
    assert [line.split()[1] for line in node.out("scripts_list").splitlines()] == ["first", "mine", "late"]


def test_a_script_sees_the_node_in_its_environment(node: Node) -> None:
    names = "NODEID NODENAME HOSTNAME CLUSTER GROUPNAME VNFS STATE NEWROOT MODULE_DATA"
    prepare_script(node, "".join(f'echo "{n}=${n}"\n' for n in names.split()) + 'cat; ls -ld "$MODULE_DATA"\n')
    node.out("run_scripts")
    log = (node.run / "log/20-name").read_text()
    assert f"NODEID={MAC}\nNODENAME=n0001.c1\nHOSTNAME=n0001\nCLUSTER=c1\nGROUPNAME=cluster\n" in log
    assert f"VNFS=mini-1.0.amd64\nSTATE=init\nNEWROOT={node.run.parent}/root\n" in log
    assert "drwx------" in log


def test_a_failing_script_stops_the_boot_unless_it_is_optional(node: Node, tmp_path: Path) -> None:
    prepare_script(node, "echo going wrong; exit 7\n")
    assert node.reason("run_scripts") == "script 20-name (module): status 7: going wrong"
    prepare_script(node, "exit 7\n", "optional")
    node.out("run_scripts")
    assert "failed but optional: 20-name" in (node.run / "detail").read_text()


# --- steps, reports, secrets


def test_a_failing_step_says_so_and_ends_the_attempt(node: Node, tmp_path: Path) -> None:
    done = node.do("broken() { false; echo not reached; }; step layers broken; echo not reached")
    assert (done.returncode, done.stdout) == (1, "")
    assert "capsulekit: FAILED layers: status 1" in (tmp_path / "console").read_text()
    done = node.do('broken() { fail "no such thing"; }; step layers broken')
    assert "capsulekit: FAILED layers: no such thing" in (tmp_path / "console").read_text()


def test_a_good_step_is_shown_with_its_seconds_and_detail_and_queued(node: Node, tmp_path: Path) -> None:
    node.out('good() { detail "3 \\"files\\""; }; step layers good')
    assert 'capsulekit: layers: ok, 0.00 s (3 "files")' in (tmp_path / "console").read_text()
    reports = sorted((node.run / "queue").iterdir())
    assert len(reports) == 2
    assert "status=start" in reports[0].read_text()
    assert "detail=3 'files'\"" in reports[1].read_text()
    assert f"mem_used_kb={491520 - 412672}" in reports[1].read_text()


def test_the_session_key_is_in_a_file_of_mode_0600_and_in_no_argument(node: Node, tmp_path: Path) -> None:
    (node.site / "masters").write_text("http://a https://a\n")
    log = tmp_path / "argv"
    curl = tmp_path / "curl"
    curl.write_text(
        f'#!/bin/sh\necho "$@" >>{log}\nwhile [ $# -gt 0 ]; do\n'
        f'[ "$1" = -o ] && echo "session {"ab" * 32}" >"$2"\nshift; done\nprintf 200\n'
    )
    curl.chmod(0o755)
    node.env["PATH"] = f"{tmp_path}:{node.env['PATH']}"
    node.out(f"open_session secret-ticket {MAC}")
    session = node.run / "session.curl"
    assert session.read_text() == f'header = "Authorization: Bearer {"ab" * 32}"\n'
    assert session.stat().st_mode & 0o777 == 0o600
    assert "secret-ticket" not in log.read_text()
    assert "abab" not in log.read_text()


# --- the agent


@pytest.mark.parametrize("shell", sorted(SHELLS))
@pytest.mark.parametrize(("text", "seconds"), [("5\n", 5), ("junk\n", 60), ("0\n", 60), ("", 60)])
def test_the_agents_interval_comes_from_a_file_or_is_60_seconds(
    shell: str, text: str, seconds: int, tmp_path: Path
) -> None:
    (tmp_path / "interval").write_text(text)
    env = {"PATH": os.environ["PATH"], "CK_AGENT_SOURCED": "1", "CK_AGENT_CONF": str(tmp_path)}
    script = f". {AGENT}; interval; jittered 60"
    done = subprocess.run([*SHELLS[shell], "-c", script], env=env, capture_output=True, text=True, timeout=30)
    interval, jittered = map(int, done.stdout.split())
    assert interval == seconds
    assert 45 <= jittered <= 75


def test_scripts_of_one_number_and_name_run_in_the_order_of_their_modules(node: Node) -> None:
    digests = {"b": "a", "c": "e", "a": "d"}
    lines = [f"script init 50 50-x {module} {DIGEST[d]} 1 required" for module, d in digests.items()]
    (node.run / "plan").write_text(a_plan(extra="\n".join([*lines, f"script init 05 05-y z {DIGEST['b']} 1 optional"])))
    listed = [line.split() for line in node.out("scripts_list").splitlines()]
    assert [(nn, name, module) for nn, name, _, module, _ in listed] == [
        ("05", "y", "z"), ("50", "x", "a"), ("50", "x", "b"), ("50", "x", "c"),
    ]  # fmt: skip
