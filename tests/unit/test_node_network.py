"""Stage 1 and its network: ip= as the kernel documents it, which card is used, patience, under busybox ash and dash."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from node_shell import LIB, MAC, Node, node

__all__ = ["node"]  # the fixture
OTHER = "52:54:00:12:34:99"
# Time goes by only while something sleeps.
CLOCK = "FAKE=0; sleep() { FAKE=$((FAKE + $1 * 100)); }; centiseconds() { echo $FAKE; }; "
IP = 'ip() { printf "%s\\n" "$*" >>"$RUN/ip"; }; '
BAD = ["", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.256", "1.2.3.-4", "a.b.c.d", "1..2.3", "1.2.3.4 ", "$(id)"]


def card(node: Node, name: str, mac: str = MAC, *, carrier: str = "1", kind: str = "1", wireless: bool = False) -> None:
    folder = node.run.parent / "net" / name
    folder.mkdir(parents=True)
    (folder / "address").write_text(mac.lower() + "\n")
    (folder / "type").write_text(kind + "\n")
    (folder / "carrier").write_text(carrier + "\n")
    if name != "lo":
        (folder / "device").mkdir()
    if wireless:
        (folder / "wireless").mkdir()


def command_line(node: Node, text: str) -> None:
    (node.proc / "cmdline").write_text(text + "\n")


def parsed(node: Node, value: str) -> list[str]:
    return node.out('ip_parse "$1"; printf "%s\\n" "$IP_HOW" "$IP_ADDRESS" "$IP_PREFIX" "$IP_GATEWAY" "$IP_DEVICE" '
                    '"${IP_DNS# }"', value).split("\n")[:-1]  # fmt: skip


# --- ip=


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("", ["dhcp", "", "", "", "", ""]),
        ("dhcp", ["dhcp", "", "", "", "", ""]),
        ("on", ["dhcp", "", "", "", "", ""]),
        ("auto6", ["auto6", "", "", "", "", ""]),
        (":::::eth1:dhcp", ["dhcp", "", "", "", "eth1", ""]),
        ("10.0.0.5::10.0.0.1:255.255.240.0:n1:eth0:off", ["static", "10.0.0.5", "20", "10.0.0.1", "eth0", ""]),
        ("10.0.0.5:::24::52-54-00-12-34-56:none", ["static", "10.0.0.5", "24", "", MAC, ""]),
        (f"10.0.0.5:::24::[{MAC.lower()}]:static", ["static", "10.0.0.5", "24", "", MAC, ""]),
        ("192.168.1.2::::::", ["static", "192.168.1.2", "24", "", "", ""]),
        ("172.16.0.2:", ["static", "172.16.0.2", "16", "", "", ""]),
        ("10.1.1.1:", ["static", "10.1.1.1", "8", "", "", ""]),
        ("10.0.0.5:::24:::off:10.0.0.1:10.0.0.2:10.0.0.3", ["static", "10.0.0.5", "24", "", "", "10.0.0.1 10.0.0.2"]),
        ("[fd00::5]::[fd00::1]:64::eth0:off:[fd00::53]", ["static", "fd00::5", "64", "fd00::1", "eth0", "fd00::53"]),
        ("[fd00::5]:", ["static", "fd00::5", "64", "", "", ""]),
        ("10.0.0.5:::0", ["static", "10.0.0.5", "0", "", "", ""]),
        ("10.0.0.5:::255.255.255.255", ["static", "10.0.0.5", "32", "", "", ""]),
    ],
)
def test_ip_is_read_as_the_kernel_documents_it(node: Node, value: str, wanted: list[str]) -> None:
    assert parsed(node, value) == wanted


BAD_IP = ["$(reboot)", "none", "[fd00::5", "x[fd::1]:", "[fd00::5]x:", "[12345::1]:", "[:::1]:", "10.0.0.1:::33",
          "10.0.0.1:::255.0.255.0", "10.0.0.1:::08", "10.0.0.1:::24::../x", "10.0.0.1::fd::1:24", "dhcp6"]  # fmt: skip


@pytest.mark.parametrize("value", [*(f"{bad}:::24" for bad in BAD[1:]), *BAD_IP])
def test_a_wrong_ip_is_refused_by_its_value(node: Node, value: str) -> None:
    assert node.reason('ip_parse "$1"', value).startswith(f"ip={value}: ")


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_ipv4_address_is_refused(node: Node, text: str) -> None:
    assert node.do('is_ipv4 "$1"', text).returncode != 0


@pytest.mark.parametrize("url", ["http://10.0.0.1:80/a_b~c", "https://[fd00::1]:8009", "http://cache.site.example"])
def test_mirrors_addresses_are_taken(node: Node, url: str) -> None:
    assert node.do('is_url "$1"', url).returncode == 0


@pytest.mark.parametrize("url", ["", "http://", "ftp://x", "http://a/", "http://a b", 'http://a"', "http://a/../b",
                                 "http://a\\b", "http://$(id)", "http://a?b", "http://a#b", "file:///etc"])  # fmt: skip
def test_what_is_no_mirrors_address_is_refused(node: Node, url: str) -> None:
    assert node.do('is_url "$1"', url).returncode != 0


# --- which card


DHCP = 'udhcpc() {{ {{ [ "$1" = x ] || case " $* " in *" {nic} "*) ;; *) sleep 12; return 1 ;; esac; }}; ' \
       'echo 10.0.0.9 >"$RUN/lease"; }}; '  # fmt: skip


def test_the_card_that_booted_is_the_one_that_is_used(node: Node) -> None:
    card(node, "eth0", OTHER)
    card(node, "eth1", MAC)
    node.out(f"{CLOCK}{IP}{DHCP.format(nic='eth1')}network_up {MAC}")
    assert (node.run / "node").read_text() == MAC
    assert "eth0" not in (node.run / "ip").read_text()
    assert (node.run / "detail").read_text() == "10.0.0.9 on eth1\n"


def test_without_a_mac_the_first_wired_card_that_leads_to_a_master_is_used(node: Node) -> None:
    for name, mac, more in (
        ("dummy", "52:54:00:00:00:01", {"kind": "772"}), ("eth0", "52:54:00:00:00:02", {"carrier": "0"}),
        ("eth1", "52:54:00:00:00:03", {}), ("eth2", "52:54:00:00:00:04", {}), ("eth3", MAC, {}),
        ("wlan0", "52:54:00:00:00:05", {"wireless": True}),
    ):  # fmt: skip
        card(node, name, mac, **more)  # type: ignore[arg-type]
    # eth1 has no DHCP, eth2's network has another master, which does not answer to our certificate.
    stub = """
udhcpc() {
    case " $* " in
        *" eth1 "*) sleep 12 && return 1 ;;
        *" eth2 "*) echo 10.2 ;;
        *) echo 10.3 ;;
    esac >"$RUN/lease"
}
master_answers() {
    [ "$(cat "$RUN/lease")" != 10.3 ] || return 0
    echo 'curl: (60) bad certificate' >"$RUN/curl.err"
    return 1
}
"""
    node.out(f"{CLOCK}{IP}{stub}network_up ''")
    assert (node.run / "node").read_text() == MAC
    shown = (node.run.parent / "console").read_text()
    assert "eth1: no DHCP answer within 15 s" in shown
    assert "eth2: 10.2, but no master answers: curl: (60) bad certificate" in shown
    used = (node.run / "ip").read_text()
    # An address that led nowhere is taken away again; wireless and other interfaces are left alone.
    assert "addr flush dev eth2" in used
    assert "wlan0" not in used and "dummy" not in used


def test_ip_may_name_the_card_by_name_or_by_mac(node: Node) -> None:
    card(node, "eth0", OTHER)
    card(node, "eth1", MAC)
    for value in (":::::eth1:dhcp", f":::::{MAC.replace(':', '-')}:dhcp"):
        command_line(node, f"ip={value}")
        (node.run / "lease").unlink(missing_ok=True)
        node.out(f"{CLOCK}{IP}{DHCP.format(nic='eth1')}network_up ''")
        assert (node.run / "node").read_text() == MAC


def test_a_static_address_needs_no_dhcp(node: Node) -> None:
    card(node, "eth0")
    command_line(node, "ip=10.0.0.5::10.0.0.1:24::eth0:off:10.0.0.53")
    node.out(f"{CLOCK}{IP}udhcpc() {{ exit 9; }}; master_answers() {{ :; }}; network_up {MAC}")
    assert (node.run / "ip").read_text().splitlines()[1:] == [
        "link set eth0 up", "addr flush dev eth0", "addr add 10.0.0.5/24 dev eth0",
        "route replace default via 10.0.0.1 dev eth0",
    ]  # fmt: skip
    assert (node.run / "address").read_text() == "10.0.0.5/24,10.0.0.1\n"
    assert (node.run.parent / "resolv.conf").read_text() == "nameserver 10.0.0.53\n"


# What busybox prints; the address may not be used before the kernel has looked for a double of it.
ADDR6 = """
ip() {
    [ "$1" = -6 ] || return 0
    [ "$FAKE" -ge 300 ] || flag=' tentative'
    printf '%s\\n' "2: eth0    inet6 fd00::5/64 scope global dynamic${flag:-} "
}
"""


def test_a_site_with_ipv6_alone_waits_for_the_routers_announcement(node: Node) -> None:
    card(node, "eth0")
    (node.site / "masters").write_text("http://[fd00::1]:8009 https://[fd00::1]:8010\n")
    node.out(f"{CLOCK}{ADDR6}udhcpc() {{ exit 9; }}; network_up {MAC}")
    assert (node.run / "lease").read_text() == "fd00::5\n"
    assert (node.run / "address").read_text() == "fd00::5/64\n"


# --- patience


@pytest.mark.parametrize(("argument", "seconds"), [("", 90), ("ck.linkwait=200", 200), ("ck.linkwait=5", 5)])
def test_a_slow_link_is_waited_for_as_long_as_it_is_told(node: Node, argument: str, seconds: int) -> None:
    card(node, "eth0", carrier="0")
    command_line(node, argument)
    slow = f'has_carrier() {{ [ "$FAKE" -ge {(seconds - 1) * 100} ]; }}; '
    node.out(f"{CLOCK}{IP}{slow}{DHCP.format(nic='eth0')}network_up {MAC}")
    (node.run / "lease").unlink()
    dead = f"{CLOCK}{IP}network_up {MAC}"
    assert node.reason(dead) == f"eth0: no carrier after {seconds} s"


def test_dhcp_is_asked_again_and_again_while_a_switch_blocks_the_port(node: Node) -> None:
    card(node, "eth0")
    late = 'udhcpc() { sleep 12; [ "$FAKE" -ge 5500 ] && echo 10.0.0.9 >"$RUN/lease"; }; '
    node.out(f"{CLOCK}{IP}{late}network_up {MAC}")
    tries = 'udhcpc() { sleep 12; echo x >>"$RUN/tries"; return 1; }; '
    (node.run / "lease").unlink()
    node.reason(f"{CLOCK}{IP}{tries}network_up {MAC}")
    assert 6 <= (node.run / "tries").read_text().count("x") <= 8


@pytest.mark.parametrize("argument", ["0", "3601", "soon", "-1", "1.5", "$(reboot)"])
def test_a_wrong_linkwait_is_refused(node: Node, argument: str) -> None:
    card(node, "eth0")
    command_line(node, f"ck.linkwait={argument}")
    assert node.reason(f"network_up {MAC}").startswith("ck.linkwait=")


def test_an_address_that_is_there_is_kept(node: Node) -> None:
    (node.run / "lease").write_text("10.0.0.9\n")
    node.out(f"ip() {{ exit 9; }}; network_up {MAC}")


# --- udhcpc's script


def dhcp(node: Node, event: str, **lease: str) -> str:
    """What it made `ip` do."""
    log = node.run / "ip"
    log.unlink(missing_ok=True)
    text = (LIB / "dhcp.sh").read_text().replace("set -eu\n", 'set -eu\nip() { printf "%s\\n" "$*" >>"$RUN/ip"; }\n')
    script = node.run / "dhcp.sh"
    script.write_text(text)
    subprocess.run([*node.shell, str(script), event], env={**node.env, **lease}, check=True, timeout=30)
    return log.read_text() if log.exists() else ""


LEASE = {"interface": "eth0", "ip": "10.0.0.9", "mask": "16", "router": "10.0.0.1 10.0.0.2", "domain": "site.test",
         "dns": "10.0.0.1 10.0.0.53"}  # fmt: skip


def test_a_lease_is_applied_and_a_renewal_of_the_same_address_leaves_it_alone(node: Node, tmp_path: Path) -> None:
    assert dhcp(node, "bound", **LEASE).splitlines() == [
        "addr flush dev eth0", "addr add 10.0.0.9/16 dev eth0", "route replace default via 10.0.0.1 dev eth0",
    ]  # fmt: skip
    assert (tmp_path / "resolv.conf").read_text() == "search site.test\nnameserver 10.0.0.1\nnameserver 10.0.0.53\n"
    assert (node.run / "lease").read_text() == "10.0.0.9\n"
    assert (node.run / "address").read_text() == "10.0.0.9/16,10.0.0.1,dhcp\n"
    assert dhcp(node, "renew", **LEASE) == ""
    assert "addr add 10.0.0.8/16" in dhcp(node, "renew", **{**LEASE, "ip": "10.0.0.8"})


def test_a_lease_without_router_and_names_is_enough(node: Node, tmp_path: Path) -> None:
    assert dhcp(node, "bound", interface="eth0", ip="10.0.0.9").splitlines()[1:] == ["addr add 10.0.0.9/24 dev eth0"]
    assert (tmp_path / "resolv.conf").read_text() == ""
    assert (node.run / "lease").exists()
    # A lease that ran out takes the address with it.
    assert dhcp(node, "deconfig", interface="eth0") == "addr flush dev eth0\n"
    assert not (node.run / "lease").exists()


# As busybox's does when the file goes between its look at it and its removal; WHAT happens to the file meanwhile.
RM = 'rm() { case $* in *udhcpc.pid*) WHAT; echo "rm: no such file" >&2; return 1 ;; *) command rm "$@" ;; esac; }; '


def test_a_dhcp_client_that_takes_its_own_file_away_meanwhile_stops_no_boot(node: Node) -> None:
    for meanwhile, word in (('command rm "$2"', "goes on"), (":", "")):
        (node.run / "udhcpc.pid").write_text("999999999\n")
        (node.run / "lease").write_text("10.0.0.9\n")
        done = node.do(RM.replace("WHAT", meanwhile) + "dhcp_stop; echo goes on")
        assert (done.stdout.strip(), done.stderr) == (word, "")
        assert (node.run / "lease").exists() == (not word)


def test_a_dhcp_client_that_is_gone_leaves_nothing_to_stop(node: Node) -> None:
    (node.run / "lease").write_text("10.0.0.9\n")
    assert node.out("dhcp_stop; echo goes on") == "goes on\n"
