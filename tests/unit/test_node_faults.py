"""Every way in which stage 1 can fail, driven: each `fail` of its shell has a row here, under busybox ash and dash."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from node_shell import DIGEST, LIB, MAC, SHELLS, SOURCE, Node, a_plan

from capsulekit.trust import minisign

VERBS = ("fail", "because", "reboot_needed", "session_lost", "no_nic")
OTHER = "52:54:00:12:34:99"

# Time goes by only while something sleeps.
CLOCK = "FAKE=0; sleep() { FAKE=$((FAKE + $1 * 100)); }; centiseconds() { echo $FAKE; }; "
# A master that gives one answer to everything.
ANSWER = 'tls() {{ while [ $# -gt 0 ]; do [ "$1" != -o ] || echo "{text}" >"$2"; shift; done; printf {code}; }}; '
NO_MASTER = "tls() { echo 'curl: (7) refused' >&2; return 7; }; "
ADDRESS = "ip() { :; }; "
UP = CLOCK + ADDRESS


def answer(code: int, text: str = "why") -> str:
    return ANSWER.format(code=code, text=text)


# --- what a row needs beforehand


def nics(node: Node, *names: str, carrier: str = "1") -> None:
    """Interfaces as sysfs shows them; the first has this node's MAC."""
    for number, name in enumerate(names):
        folder = node.run.parent / "net" / name
        (folder / "device").mkdir(parents=True)
        (folder / "address").write_text((MAC if number == 0 else OTHER).lower() + "\n")
        (folder / "type").write_text("1\n")
        (folder / "carrier").write_text(carrier + "\n")


def one_nic(node: Node) -> None:
    nics(node, "eth0")


def two_nics(node: Node) -> None:
    nics(node, "eth0", "eth1")


def dead_nic(node: Node) -> None:
    nics(node, "eth0", carrier="0")


def command_line(text: str) -> Callable[[Node], None]:
    def write(node: Node) -> None:
        one_nic(node)
        (node.proc / "cmdline").write_text(text + "\n")

    return write


def plan(**changes: str | None) -> Callable[[Node], None]:
    def write(node: Node) -> None:
        (node.run / "plan").write_text(a_plan(**changes))

    return write


def raw_plan(text: bytes) -> Callable[[Node], None]:
    def write(node: Node) -> None:
        (node.run / "plan").write_bytes(text)

    return write


def signed(node: Node) -> None:
    """A plan and the signed sums that belong to it, with the key trusted."""
    secret, public = minisign.generate(None)
    key_file = node.run.parent / "k"
    key_file.write_text(secret)
    key_file.chmod(0o600)
    key = minisign.parse_public(public)
    names = ("boot/vmlinuz", "boot/initrd.img", "capsule.toml", "layers/rootfs.squashfs")
    sums = "".join(f"{DIGEST[d]}  {name}\n" for d, name in zip("abcd", names, strict=True))
    capsule = node.run.parent / "capsule"
    capsule.mkdir()
    (capsule / "SHA256SUMS").write_text(sums)
    comment = "capsule mini 1.0 amd64 recipe " + "0" * 64
    signature = minisign.sign(sums.encode(), minisign.load_secret(key_file, lambda: b""), comment)
    (capsule / "SHA256SUMS.minisig").write_text(signature)
    identity = hashlib.sha256(sums.encode()).hexdigest()
    (node.run / "plan").write_text(a_plan(identity=f"identity {identity}", key=f"key {key.text}"))
    (node.site / "keys/x.pub").write_text(f"untrusted comment: x\n{key.text}\n")


def composed(node: Node) -> None:
    plan()(node)
    (node.run.parent / "initrd").write_bytes(b"x" * 9000)
    (node.run / "composed").write_text(f"layers/rootfs.squashfs {DIGEST['d']} 4096 4096 8400\n")


def failing_script(node: Node) -> None:
    text = "echo going wrong; exit 7\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    plan(extra=f"script init 20 name module {digest} {len(text)} required")(node)
    (node.run / "scripts").mkdir()
    (node.run / "scripts" / digest).write_text(text)


def failing_tar(node: Node) -> None:
    program = node.run.parent / "tar"
    program.write_text("#!/bin/sh\nexit 2\n")
    program.chmod(0o755)
    node.env["CK_TAR"] = str(program)
    (node.run.parent / "upper").mkdir()


def no_tar(node: Node) -> None:
    node.env["CK_TAR"] = "/nowhere/tar"


def filesystems(*names: str) -> Callable[[Node], None]:
    def write(node: Node) -> None:
        (node.proc / "filesystems").write_text("".join(f"nodev\t{name}\n" for name in names))
        node.env |= {"CK_SYS": str(node.run.parent / "sys"), "CK_DEV": str(node.run.parent / "dev")}
        node.env["CK_MODPROBE"] = "false"

    return write


def long_arguments(node: Node) -> None:
    plan(kargs="kargs " + "x" * 3000)(node)


# --- the rows


@dataclass(frozen=True)
class Fault:
    """One failure: the text as the shell file has it, the reason that a node gives, and how it comes to that."""

    template: str
    reason: str
    script: str
    before: Callable[[Node], None] = field(default=lambda _node: None)


CHECK = f'plan_check "$PLAN" {MAC}'
VERIFY = 'verify_sums "$CAPSULE/SHA256SUMS" "$(plan_value identity)" "$(plan_value key)" "$(plan_value comment)"'
TAKE = 'printf abc >"$RUN/f"; take "$RUN/f" layers/x.squashfs ' + DIGEST["a"] + " 400 public 3"
NO_GET = "get() { echo 'curl: (7) refused' >&2; return 7; }; "
KEXEC = "kexec() {{ echo 'kexec_file_load failed: {why}'; return 1; }}; uname() {{ echo {machine}; }}; load_kernel"
OPEN = f"open_session abc {MAC}"


def ip(value: str, template: str, why: str) -> Fault:
    return Fault(template, f"ip={value}: {why}", f"ip_parse '{value}'")


FAULTS = [
    # clock, drivers
    Fault("site/stamp: is missing: no site.img was loaded beside stage1.img",
          "site/stamp: is missing: no site.img was loaded beside stage1.img", "INIT; clock_step"),
    Fault("site/stamp: is no number: $(printable \"$1\")", "site/stamp: is no number: soon", "clock_from_stamp soon"),
    Fault("this kernel has no $driver, built in or as a module in stage 1",
          "this kernel has no overlay, built in or as a module in stage 1", "load_drivers", filesystems("squashfs")),
    Fault("this kernel has no loop devices, built in or as a module in stage 1",
          "this kernel has no loop devices, built in or as a module in stage 1", "load_drivers",
          filesystems("squashfs", "overlay")),
    # the address
    ip("[fd00::5", "ip=$1: the brackets do not match", "the brackets do not match"),
    ip("1:2:3:4:5:6:7:8:9:10:11", "ip=$1: more than 10 fields", "more than 10 fields"),
    ip("off", "ip=$2: $1 needs an address to use instead", "off needs an address to use instead"),
    ip("bootp", "ip=$2: $1 is not supported: use dhcp, auto6, or off with an address",
       "bootp is not supported: use dhcp, auto6, or off with an address"),
    ip("magic", "ip=$2: $(printable \"$1\") is no way to get an address: dhcp, auto6, off, none or static",
       "magic is no way to get an address: dhcp, auto6, off, none or static"),
    ip("10.0.0.5:::24::a/b:off", "ip=$1: $(printable \"$IP_DEVICE\") is not the name of a network interface",
       "a/b is not the name of a network interface"),
    ip("10.0.0.5:::24::abcdefghijklmnop:off", "ip=$1: $IP_DEVICE is too long for an interface's name",
       "abcdefghijklmnop is too long for an interface's name"),
    ip("10.0.0.5:::24::52-54-00-12-34-5g:off", "ip=$1: $(printable \"$IP_DEVICE\") is no MAC",
       "52:54:00:12:34:5g is no MAC"),
    ip("10.0.0.5:::24:::off:dns", "ip=$1: $(printable \"$ip_server\") is no address of a name server",
       "dns is no address of a name server"),
    ip("10.0.0.5:::255.0.255.0", "ip=$1: the netmask is none", "the netmask is none"),
    ip("10.0.0.5::gw:24", "ip=$1: $(printable \"$IP_GATEWAY\") is no IPv4 gateway", "gw is no IPv4 gateway"),
    ip("[fd00::5]:::129", "ip=$1: the prefix length is none: $(printable \"$IP_PREFIX\")",
       "the prefix length is none: 129"),
    ip("[fd00::5]::10.0.0.1:64", "ip=$1: $(printable \"$IP_GATEWAY\") is no IPv6 gateway",
       "10.0.0.1 is no IPv6 gateway"),
    ip("10.0.0.256::", "ip=$1: $(printable \"$IP_ADDRESS\") is no address", "10.0.0.256 is no address"),
    # the interface
    Fault("ck.linkwait=$(printable \"$LINKWAIT\"): must be a number of seconds from 1 to 3600",
          "ck.linkwait=0: must be a number of seconds from 1 to 3600", f"network_up {MAC}",
          command_line("ck.linkwait=0")),
    Fault("ip= names the interface $IP_DEVICE, but this node booted from $1",
          f"ip= names the interface {OTHER}, but this node booted from {MAC}", f"{UP}network_up {MAC}",
          command_line(f"ip=10.0.0.5:::24::{OTHER.replace(':', '-')}:off")),
    Fault("ip=: no network interface is called $IP_DEVICE; there are: $(nic_list)",
          "ip=: no network interface is called eth7; there are: eth0", f"{UP}network_up ''",
          command_line("ip=:::::eth7:dhcp")),
    Fault("ck.mac=$(printable \"$1\") is no MAC", "ck.mac=52:54 is no MAC", f"{UP}network_up 52:54", one_nic),
    Fault("no network interface has the address $1 this node booted from",
          f"no network interface has the address {OTHER} this node booted from; there are: eth0",
          f"{UP}say_undriven_nics() {{ :; }}; network_up {OTHER}", one_nic),
    Fault("$1$(say_undriven_nics all); there are: $(nic_list)",
          f"no network interface has the address {OTHER} this node booted from; no driver for X; there are: eth0",
          f"{UP}say_undriven_nics() {{ echo '; no driver for X'; }}; network_up {OTHER}", one_nic),
    Fault("ip= names $NIC, but this node booted from $(nic_by_mac \"$1\")",
          "ip= names eth1, but this node booted from eth0",
          f"{UP}network_up {MAC}", lambda n: (two_nics(n), (n.proc / "cmdline").write_text("ip=:::::eth1:dhcp"))[0]),
    Fault("no wired network interface was found", "no wired network interface was found; there are: none",
          f"{UP}say_undriven_nics() {{ :; }}; network_up ''"),
    Fault("no wired interface leads to a master; the last one tried: $(cat \"$RUN/reason\")",
          "no wired interface leads to a master; the last one tried: eth1: no DHCP answer within 15 s",
          f"{UP}udhcpc() {{ sleep 12; return 1; }}; network_up ''", two_nics),
    Fault("no wired interface has a link; there are: $(nic_list)", "no wired interface has a link; there are: eth0",
          f"{UP}network_up ''", dead_nic),
    Fault("$1: $(cat \"$RUN/lease\"), but no master answers: $(curl_why)",
          "eth0: 10.0.0.9, but no master answers: curl: (7) refused",
          f"{UP}{NO_MASTER}echo 10.0.0.9 >\"$RUN/lease\"; nic_leads_to_master eth0"),
    Fault("$1: could not be brought up", "eth0: could not be brought up",
          f"{UP}ip() {{ case \"$*\" in *eth0*) return 2 ;; esac; }}; network_up {MAC}", one_nic),
    Fault("$1: no carrier after $2 s", "eth0: no carrier after 90 s", f"{UP}network_up {MAC}", dead_nic),
    Fault("$1: the kernel refuses the address $IP_ADDRESS/$IP_PREFIX",
          "eth0: the kernel refuses the address 10.0.0.5/24",
          f"{UP}ip() {{ case \"$*\" in *'addr add'*) return 2 ;; esac; }}; network_up {MAC}",
          command_line("ip=10.0.0.5:::24:::off")),
    Fault("$1: the kernel refuses the gateway $IP_GATEWAY (not in $IP_ADDRESS/$IP_PREFIX?)",
          "eth0: the kernel refuses the gateway 10.9.0.1 (not in 10.0.0.5/24?)",
          f"{UP}ip() {{ case \"$*\" in route*) return 2 ;; esac; }}; network_up {MAC}",
          command_line("ip=10.0.0.5::10.9.0.1:24:::off")),
    Fault("$1: no master answers to $IP_ADDRESS within $2 s: $(curl_why)",
          "eth0: no master answers to 10.0.0.5 within 30 s: curl: (7) refused", f"{UP}{NO_MASTER}network_up {MAC}",
          command_line("ck.linkwait=30 ip=10.0.0.5:::24:::off")),
    Fault("$1: no IPv6 address within $2 s (does a router announce the network?)",
          "eth0: no IPv6 address within 90 s (does a router announce the network?)", f"{UP}network_up {MAC}",
          lambda n: (one_nic(n), (n.site / "masters").write_text("http://[fd::1]:1 https://[fd::1]:2\n"))[0]),
    Fault("$1: no DHCP answer within $2 s", "eth0: no DHCP answer within 90 s",
          f"{UP}udhcpc() {{ sleep 12; return 1; }}; network_up {MAC}", one_nic),
    Fault("$1: the DHCP lease carried no address", "eth0: the DHCP lease carried no address",
          f"{UP}udhcpc() {{ :; }}; network_up {MAC}", one_nic),
    # the master
    Fault("site/order: is neither listed nor shuffled: $(printable \"$ordered_how\")",
          "site/order: is neither listed nor shuffled: maybe", 'echo maybe >"$SITE/order"; masters'),
    Fault("no master answers: $(curl_why)", "no master answers: curl: (7) refused", f"{NO_MASTER}{OPEN}"),
    Fault("the master has no ticket for this node yet: $(first_line \"$RUN/ticket.answer\")",
          "the master has no ticket for this node yet: slow down", answer(429, "slow down") + f"open_session '' {MAC}"),
    Fault("the master gives no ticket ($ticket_code): $(first_line \"$RUN/ticket.answer\")",
          "the master gives no ticket (403): no", answer(403, "no") + f"open_session '' {MAC}"),
    Fault("the master answered $ticket_code when asked for a ticket: $(first_line \"$RUN/ticket.answer\")",
          "the master answered 500 when asked for a ticket: why", answer(500) + f"open_session '' {MAC}"),
    Fault("the master's ticket is not understood", "the master's ticket is not understood",
          answer(200, "ticket ../x") + f"open_session '' {MAC}"),
    Fault("the master refused the ticket: $(first_line \"$RUN/session.answer\")",
          "the master refused the ticket: ticket refused: used", answer(403, "ticket refused: used") + OPEN),
    Fault("the master answered $session_code to the ticket: $(first_line \"$RUN/session.answer\")",
          "the master answered 503 to the ticket: why", answer(503) + OPEN),
    Fault("the master's answer to the ticket is not understood", "the master's answer to the ticket is not understood",
          answer(200, "session short") + OPEN),
    Fault("the master no longer knows this session ($plan_code)", "the master no longer knows this session (401)",
          answer(401) + f"get_plan {MAC}"),
    Fault("the master answered $plan_code to init: $(first_line \"$RUN/plan.new\")",
          "the master answered 500 to init: why", answer(500) + f"get_plan {MAC}"),
    Fault("the master no longer knows this session ($state_code), told of $1",
          "the master no longer knows this session (403), told of ready", answer(403) + "tell_state ready"),
    Fault("the master answered $state_code to $1: $(first_line \"$RUN/state.answer\")",
          "the master answered 503 to ready: why", answer(503) + "tell_state ready"),
    # the plan
    Fault("plan: empty", "plan: empty", CHECK, raw_plan(b"")),
    Fault("plan: holds bytes that are not plain text", "plan: holds bytes that are not plain text", CHECK,
          raw_plan(a_plan().encode().replace(b"quiet", b"q\x1b"))),
    Fault("plan: cut short: its last line has no end", "plan: cut short: its last line has no end", CHECK,
          raw_plan(a_plan().encode()[:-1])),
    Fault("plan: cut short: its last line is not 'end'", "plan: cut short: its last line is not 'end'", CHECK,
          raw_plan(a_plan().encode()[:-4])),
    Fault("plan: not a plan of format 1: $(printable \"$(head -n 1 \"$1\")\")", "plan: not a plan of format 1: plan 2",
          CHECK, plan(plan="plan 2")),
    Fault("plan: needs exactly one line '$plan_key'", "plan: needs exactly one line 'hostname'", CHECK,
          plan(hostname=None)),
    Fault("plan: line $plan_number is not understood: $(printable \"$plan_kind $plan_rest\")",
          "plan: line 20 is not understood: mirror file:///etc", CHECK, plan(extra="mirror file:///etc")),
    Fault("plan: $plan_kind $plan_twice is named twice", "plan: layer layers/rootfs.squashfs is named twice", CHECK,
          plan(extra="layer layers/rootfs.squashfs 9000")),
    Fault("plan: nfs is named twice", "plan: nfs is named twice", CHECK,
          plan(extra="nfs 10.0.0.1:/a\nnfs 10.0.0.1:/b")),
    Fault("plan: names no layer", "plan: names no layer", CHECK, plan(layer=None)),
    Fault("plan: $plan_path has no 'file' line", "plan: boot/vmlinuz has no 'file' line", CHECK, plan(vmlinuz=None)),
    Fault("not enough memory: $mem_text",
          "not enough memory: needs 703 MB (boot files 1 MB and layers 200 MB, held three times around kexec, and the "
          "new kernel), has 403 MB available of 480 MB", "mem_check 0",
          plan(rootfs=f"file layers/rootfs.squashfs {DIGEST['d']} 209715200 public")),
    # fetching
    Fault("$2: no longer on the master (404): the capsule was replaced or removed",
          "layers/x.squashfs: no longer on the master (404): the capsule was replaced or removed",
          f"{CLOCK}get() {{ echo 'curl: (22) The requested URL returned error: 404' >&2; return 22; }}; {TAKE}"),
    Fault("$2: $fill_why", "layers/x.squashfs: truncated: 0 of 400 bytes (curl: (7) refused)", CLOCK + NO_GET + TAKE),
    Fault("$1: $take_reason", f"layers/x.squashfs: digest mismatch: expected {DIGEST['a']} got "
          + hashlib.sha256(b"e" * 400).hexdigest(), CLOCK + "get() { printf %0400d 0 | tr 0 e; }; " + TAKE),
    Fault("$1: $3 bytes do not fit a cpio archive (4 GiB)", "big: 4294967296 bytes do not fit a cpio archive (4 GiB)",
          "cpio_header big 0 4294967296"),
    # trust
    Fault("unknown signing key $(key_id \"$sums_key\")", "unknown signing key HEX",
          'rm "$SITE/keys/x.pub"; get_sums', signed),
    Fault("$sums_name: $(curl_why)", "SHA256SUMS: curl: (7) refused", NO_GET + "get_sums", signed),
    Fault("SHA256SUMS: digest mismatch: expected $2 got $verify_got (not the capsule of the plan)",
          "SHA256SUMS: digest mismatch: expected HEX got HEX (not the capsule of the plan)",
          'echo older >>"$CAPSULE/SHA256SUMS"; ' + VERIFY, signed),
    Fault("SHA256SUMS: signature does not hold for key $(key_id \"$3\")",
          "SHA256SUMS: signature does not hold for key HEX",
          'echo more >>"$CAPSULE/SHA256SUMS"; verify_sums "$CAPSULE/SHA256SUMS" '
          '"$(sha256sum "$CAPSULE/SHA256SUMS" | cut -d" " -f1)" "$(plan_value key)" x', signed),
    Fault("SHA256SUMS: trusted comment disagrees with the plan: $(printable \"$verify_comment\")",
          "SHA256SUMS: trusted comment disagrees with the plan: capsule mini 1.0 amd64 recipe " + "0" * 64,
          VERIFY.replace('"$(plan_value comment)"', "older"), signed),
    Fault("$agrees_path: the plan's digest is not the signed one",
          "layers/rootfs.squashfs: the plan's digest is not the signed one",
          f'sed -i "s/{DIGEST["d"]}/{DIGEST["e"]}/" "$PLAN"; {VERIFY}', signed),
    # the stack
    Fault("$1: no free loop device", "layers/rootfs.squashfs: no free loop device",
          "losetup() { return 1; }; mount_layers", composed),
    Fault("$1: loop device $layer_loop could not be set up",
          "layers/rootfs.squashfs: loop device /dev/loop9 could not be set up",
          'losetup() { [ "$1" = -f ] && echo /dev/loop9; }; mount_layers', composed),
    Fault("$1: could not be mounted (is it a squashfs?)",
          "layers/rootfs.squashfs: could not be mounted (is it a squashfs?)",
          "losetup() { echo /dev/loop9; }; mount() { return 32; }; mount_layers", composed),
    Fault("overlay: could not be mounted over $layers_n layers", "overlay: could not be mounted over 1 layers",
          'losetup() { echo /dev/loop9; }; mount() { [ "$2" != overlay ]; }; mount_layers', composed),
    Fault("$run_text", "script 20-name (module): status 7: going wrong",
          'scripts_list >"$RUN/scripts.list"; run_scripts', failing_script),
    Fault("GNU tar is missing in stage 1", "GNU tar is missing in stage 1", "gnu_tar", no_tar),
    Fault("the node's layer could not be packed", "the node's layer could not be packed",
          'mksquashfs() { cat >/dev/null; }; pack_upper "${RUN%/*}/upper" "$RUN/out"', failing_tar),
    # the jump
    Fault("the kernel arguments are ${#arguments_line} bytes long; the kernel takes $MOST_ARGUMENTS",
          "the kernel arguments are 3036 bytes long; the kernel takes 2047", "kernel_arguments", long_arguments),
    Fault("kexec_file_load refuses the capsule's kernel: $(kexec_why)",
          "kexec_file_load refuses the capsule's kernel: kexec_file_load failed: Key was rejected by service",
          KEXEC.format(why="Key was rejected by service", machine="x86_64"), plan()),
    Fault("kexec_load refuses the capsule's kernel: $(kexec_why)",
          "kexec_load refuses the capsule's kernel: kexec_file_load failed: Function not implemented",
          KEXEC.format(why="Function not implemented", machine="x86_64"), plan()),
    Fault("the master no longer knows this session", "the master no longer knows this session",
          'echo x >"$SESSION"; ' + answer(401) + "tell_handoff"),
    Fault("kexec did not start the capsule's kernel: ${jump_why:-it says nothing}",
          "kexec did not start the capsule's kernel: Device or resource busy",
          "ip() { :; }; sync() { :; }; network_up() { :; }; "
          "kexec() { echo 'Device or resource busy' >&2; return 1; }; hand_off", plan()),
]  # fmt: skip


# --- the texts, as the shell files have them


def quoted(text: str, at: int) -> str:
    """What stands between the double quote at ``at`` and its end; $( ) inside may hold quotes of its own."""
    depth, end = 0, at + 1
    while depth or text[end] != '"':
        if text.startswith("$(", end):
            depth += 1
        elif text[end] == ")" and depth:
            depth -= 1
        end += 1
    return text[at + 1 : end]


def templates() -> Iterator[tuple[str, str]]:
    """(file, text) of every call that fails."""
    for path in (SOURCE / "stage1/init", *sorted(LIB.glob("*.sh"))):
        text = path.read_text()
        for found in re.finditer(rf"(?<![\w-])({'|'.join(VERBS)}) (\"|')", text):
            line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
            if not re.search(r"(^| )# ", line):
                yield path.name, quoted(text, found.end() - 1)


def pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression: what the shell fills in may be anything."""
    out, at = "", 0
    while at < len(template):
        if template.startswith("$(", at):
            depth, end = 1, at + 2
            while depth:
                depth += {"(": 1, ")": -1}.get(template[end], 0)
                end += 1
            out, at = out + ".*", end
        elif found := re.compile(r"\$\{[^}]*\}|\$\w+|\$@").match(template, at):
            out, at = out + ".*", found.end()
        else:
            out, at = out + re.escape(template[at]), at + 1
    return re.compile(out)


PASSED_ON = {"$@"}  # what another call of this list said


def test_every_failure_in_the_shell_has_its_row() -> None:
    found = [text for _, text in templates() if text not in PASSED_ON]
    assert len(found) > 70
    assert sorted(found) == sorted({f.template for f in FAULTS})
    assert len(FAULTS) == len({f.template for f in FAULTS})


@pytest.mark.parametrize("shell", sorted(SHELLS))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.reason[:60])
def test_it_fails_with_its_reason(fault: Fault, shell: str, tmp_path: Path) -> None:
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    node = Node(SHELLS[shell], tmp_path)
    (node.site / "masters").write_text("http://a https://a\n")
    (node.run / "mirrors").write_text("")
    (node.run / "node").write_text(MAC)
    fault.before(node)
    reason = node.reason(fault.script.replace("INIT; ", init_functions()))
    assert pattern(fault.template).match(reason), reason
    assert re.fullmatch(re.escape(fault.reason).replace("HEX", "[0-9A-Fa-f]{16,64}"), reason), reason


def init_functions() -> str:
    """The functions of stage1/init itself, without what it does when it is started."""
    text = (SOURCE / "stage1/init").read_text()
    return text[text.index("\nroad() {") : text.rindex("\nmain")]
