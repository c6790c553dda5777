"""The network layer of a hybrid capsule in stage 2: its card, its address, and a server that comes late.

The kernel of a machine that runs tests has no NFS client and no card to rename, so mount, ip and modprobe only note
here how they were called; tests/e2e/test_stage2_hybrid.py runs the real ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from stage2_shell import MAC, SHELLS, Stage2


@pytest.fixture(params=sorted(SHELLS))
def stage2(request: pytest.FixtureRequest, tmp_path: Path) -> Stage2:
    """One for each shell."""
    return Stage2(request.param, tmp_path)


# --- the words of the command line


@pytest.mark.parametrize(
    ("value", "server", "export"),
    [
        ("nfs4:10.0.0.1:/x", "10.0.0.1", "10.0.0.1:/x"),
        ("nfs4:[fd00::1]:/a/b:c", "fd00::1", "[fd00::1]:/a/b:c"),
        ("nfs4:10.0.0.1:/", "10.0.0.1", "10.0.0.1:/"),
    ],
)
def test_the_place_of_the_layer_is_read(stage2: Stage2, value: str, server: str, export: str) -> None:
    assert stage2.out('hybrid_parse "$1"; echo "$hybrid_server $hybrid_export"', value) == f"{server} {export}\n"


@pytest.mark.parametrize("value", ["", "nfs4:", "nfs:10.0.0.1:/x", "nfs4:10.0.0.1", "nfs4:10.0.0.1:x", "nfs4::/x"])
def test_a_place_of_another_form_is_refused(stage2: Stage2, value: str) -> None:
    assert stage2.reason('hybrid_parse "$1"', value) == "ck.hybrid is not nfs4:SERVER:/PATH"


@pytest.mark.parametrize("server", ["master", "10.0.0.1;reboot", "[fd00::1", "10.0.0.1,rw", "[]"])
def test_a_server_that_is_no_address_is_refused(stage2: Stage2, server: str) -> None:
    assert "is not an address: no names are looked up this early" in stage2.reason(f"hybrid_parse 'nfs4:{server}:/x'")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("10.0.0.5/24", "10.0.0.5/24  static"),
        ("10.0.0.5/24,10.0.0.1", "10.0.0.5/24 10.0.0.1 static"),
        ("10.0.0.5/24,10.0.0.1,dhcp", "10.0.0.5/24 10.0.0.1 dhcp"),
        ("10.0.0.5/24,dhcp", "10.0.0.5/24  dhcp"),
        ("fd00::5/64,fe80::1", "fd00::5/64 fe80::1 static"),
    ],
)
def test_the_address_is_read(stage2: Stage2, value: str, parts: str) -> None:
    assert stage2.out('nic_parse_ip "$1"; echo "$nic_address $nic_gateway $nic_how"', value) == parts + "\n"


@pytest.mark.parametrize(
    "value", ["", "dhcp", "10.0.0.5", "10.0.0.5/", "/24", "10.0.0.5/24/8", "10.0.0.5/24,gw", "a b/24", "10.0.0.5/24,;x"]
)
def test_another_address_is_refused(stage2: Stage2, value: str) -> None:
    reason = stage2.reason('nic_parse_ip "$1"', value)
    assert reason == f"ck.ip={value} is not ADDRESS/PREFIX[,GATEWAY][,dhcp]"


@pytest.mark.parametrize("mac", ["", "eth0", "52:54:00:12:34"])
def test_a_card_that_is_not_named_by_its_address_is_refused(stage2: Stage2, mac: str) -> None:
    stage2.cmdline(f"ck.nic={mac} ck.ip=10.0.0.5/24")
    assert stage2.reason("nic_up") == f"ck.nic={mac} is not the address of a network card"


# --- the card


def test_the_card_is_found_by_its_address_and_a_bond_of_it_is_not_taken(stage2: Stage2) -> None:
    stage2.card("bond0", MAC, device=False)
    stage2.card("eth0", "52:54:00:00:00:01")
    stage2.card("eth1", MAC)
    assert stage2.out(f"nic_mac={MAC}; nic_by_mac") == "eth1\n"


def test_a_card_that_never_shows_up_is_named_with_those_there_are(stage2: Stage2) -> None:
    for name in ("chroot", "sleep"):
        stage2.fake(name)
    assert "there is no other card: is its driver in the capsule?" in stage2.reason(f"nic_mac={MAC}; nic_find")
    stage2.card("eth0", "52:54:00:00:00:01")
    reason = stage2.reason(f"nic_mac={MAC}; nic_find")
    assert reason == "no card has this address after 30 s, eth0 has 52:54:00:00:00:01"


def device(stage2: Stage2, name: str, alias: str) -> None:
    folder = stage2.folder / "sys/bus/pci/devices" / name
    folder.mkdir(parents=True)
    (folder / "modalias").write_text(alias + "\n")


NET = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"
DISK = "pci:v00008086d00007010sv00001AF4sd00001100bc01sc01i80"
STAR = "acpi:*:"


def test_drivers_of_network_cards_are_loaded_first_and_all_others_only_when_that_does_not_help(stage2: Stage2) -> None:
    for name, alias in (("0", NET), ("1", DISK), ("2", STAR)):
        device(stage2, name, alias)
    stage2.fake("chroot")
    stage2.fake("sleep")
    stage2.reason(f"nic_mac={MAC}; nic_find")
    loads = [call.partition("-q ")[2].split() for call in stage2.calls() if call.startswith("chroot")]
    assert loads[0] == [NET]
    assert sorted(loads[-1]) == sorted([NET, DISK, STAR])
    borrowed = f"chroot {stage2.folder}/borrowed /sbin/modprobe -a -b -q {NET}"
    assert stage2.calls()[0] == borrowed


@pytest.mark.parametrize(("status", "own"), [(0, False), (1, False), (127, True), (126, True)])
def test_stage_2s_own_modprobe_is_used_only_where_the_distribution_has_none(
    stage2: Stage2, status: int, own: bool
) -> None:
    stage2.fake("chroot", f"exit {status}")
    stage2.fake("modprobe")
    done = stage2.do("borrowed_modprobe -q nfs")
    assert done.returncode == (0 if own else status)
    assert ("modprobe -q nfs" in stage2.calls()) is own


UDEV = "echo 'ID_BUS=pci'; echo 'ID_NET_NAME_SLOT=no'; echo 'ID_NET_NAME=ens3'"


@pytest.mark.parametrize("shown", [UDEV, "echo '  ID_NET_NAME=ens3'"])
def test_the_card_gets_the_name_that_udev_would_give_it(stage2: Stage2, shown: str) -> None:
    stage2.card("eth0", MAC)
    stage2.fake("chroot", shown)
    stage2.fake("ip")
    assert stage2.out(f'nic_mac={MAC} nic=eth0; nic_rename; echo "$nic"') == "ens3\n"
    assert stage2.calls()[-1] == "ip link set dev eth0 name ens3"


@pytest.mark.parametrize("shown", ["exit 127", "echo ID_NET_NAME=", "echo ID_NET_NAME=eth0"])
def test_without_udev_or_with_its_present_name_the_card_is_left_alone(stage2: Stage2, shown: str) -> None:
    stage2.card("eth0", MAC)
    stage2.fake("chroot", shown)
    stage2.fake("ip")
    assert stage2.out(f'nic_mac={MAC} nic=eth0; nic_rename; echo "$nic"') == "eth0\n"
    assert not [call for call in stage2.calls() if call.startswith("ip")]


def test_a_name_that_is_taken_is_said_and_the_card_keeps_its_own(stage2: Stage2) -> None:
    stage2.card("eth0", MAC)
    stage2.fake("chroot", UDEV)
    stage2.fake("ip", "exit 2")
    assert stage2.out(f'nic_mac={MAC} nic=eth0; nic_rename; echo "$nic"') == "eth0\n"
    assert "eth0 could not be named ens3" in stage2.said


def test_the_card_is_named_before_it_is_up_and_has_its_address_and_route(stage2: Stage2) -> None:
    stage2.card("eth0", MAC)
    stage2.cmdline(f"ck.nic={MAC.upper()} ck.ip=10.0.0.5/24,10.0.0.1")
    stage2.fake("chroot", UDEV)
    stage2.fake("ip")
    stage2.out("nic_up")
    assert [call for call in stage2.calls() if call.startswith("ip")] == [
        "ip link set dev eth0 name ens3",
        "ip link set dev lo up",
        "ip link set dev ens3 up",
        "ip addr replace 10.0.0.5/24 dev ens3",
        "ip route replace default via 10.0.0.1 dev ens3",
    ]
    assert f"ens3 ({MAC}) is up with 10.0.0.5/24" in stage2.said


# --- who manages the network afterwards


def kept(stage2: Stage2, how: str) -> dict[str, str]:
    stage2.out(f"nic=ens3 nic_address=10.0.0.5/24 nic_gateway=10.0.0.1 nic_how={how}; nic_keep")
    run = stage2.folder / "run"
    return {str(p.relative_to(run)): p.read_text() for p in run.rglob("*") if p.is_file()}


def test_networkd_keeps_a_static_address(stage2: Stage2) -> None:
    network = kept(stage2, "static")["systemd/network/00-capsulekit.network"]
    assert network.startswith("[Match]\nName=ens3\n\n[Network]\nKeepConfiguration=yes\n")
    assert "Address=10.0.0.5/24\nGateway=10.0.0.1\n" in network and "DHCP" not in network


def test_networkd_renews_a_lease_and_never_gives_it_up(stage2: Stage2) -> None:
    network = kept(stage2, "dhcp")["systemd/network/00-capsulekit.network"]
    assert "KeepConfiguration=yes\n" in network and "DHCP=ipv4\n" in network and "SendRelease=no\n" in network
    assert "ClientIdentifier=mac\n" in network and "Address=" not in network


def test_networkmanager_leaves_the_card_and_udev_its_name(stage2: Stage2) -> None:
    files = kept(stage2, "static")
    assert files["NetworkManager/conf.d/10-capsulekit.conf"] == (
        "[device-capsulekit]\nmatch-device=interface-name:ens3\nmanaged=0\n"
    )
    rules = files["udev/rules.d/10-capsulekit.rules"]
    assert 'ACTION=="add", KERNEL=="ens3", NAME:="ens3"' in rules and 'ENV{NM_UNMANAGED}="1"' in rules


def test_ifupdown_takes_the_card_for_one_that_is_up_where_there_is_ifupdown(stage2: Stage2) -> None:
    assert "network/ifstate" not in kept(stage2, "static")
    (stage2.folder / "borrowed/etc/network").mkdir(parents=True)
    assert kept(stage2, "static")["network/ifstate"] == "lo=lo\nens3=ens3\n"


# --- the server


def test_a_server_that_comes_late_is_waited_for_with_growing_pauses(stage2: Stage2) -> None:
    counter = stage2.folder / "tries"
    stage2.fake("mount", f'echo x >>{counter}; [ "$(wc -l <{counter})" -gt 8 ] || {{ echo "refused" >&2; exit 32; }}')
    stage2.fake("sleep")
    stage2.card("ens3", MAC, carrier="0")
    stage2.out("nic=ens3; hybrid_parse nfs4:10.0.0.1:/x; hybrid_until_mounted /s/h")
    waits = [int(call.split()[1]) for call in stage2.calls() if call.startswith("sleep")]
    assert waits == [3, 5, 10, 23, 39, 67, 67, 67], "doubled up to a minute, each with up to half of it more"
    assert (
        stage2.said.count("waiting for the network layer 10.0.0.1:/x: refused (no link on ens3); trying again in") == 8
    )
    assert "the network layer 10.0.0.1:/x is mounted" in stage2.said


def test_the_layer_is_mounted_read_only_and_hard_and_the_site_may_add_options(stage2: Stage2) -> None:
    stage2.fake("mount")
    stage2.cmdline("ck.hybrid-options=vers=4.2,rw")
    stage2.out("hybrid_parse 'nfs4:[fd00::1]:/x'; hybrid_until_mounted /s/h")
    (call,) = stage2.calls()
    options = call.split()[4].split(",")
    assert call.split()[:4] == ["mount", "-t", "nfs4", "-o"] and call.split()[5:] == ["[fd00::1]:/x", "/s/h"]
    assert "hard" in options and options[-2:] == ["addr=fd00::1", "ro"]
    assert options.index("vers=4.2") > options.index("vers=4.1"), "the last word counts"


def test_a_kernel_without_nfs_is_said(stage2: Stage2) -> None:
    for name in ("chroot", "mount", "umount", "ip", "modprobe"):
        stage2.fake(name)
    stage2.card("eth0", MAC)
    stage2.cmdline(f"ck.nic={MAC} ck.ip=10.0.0.5/24 ck.hybrid=nfs4:10.0.0.1:/x")
    assert stage2.reason("stack_lower=/s/0 stack_n=1; add_network_layer").startswith("this kernel has no NFS 4")
    with (stage2.folder / "proc/filesystems").open("a") as file:
        file.write("nodev\tnfs4\n")
    (stage2.folder / "stack/h").rmdir()
    (stage2.folder / "stack/b").rmdir()
    out = stage2.out('stack_lower=/s/0 stack_n=1; add_network_layer; echo "$stack_lower $stack_n"')
    assert out == f"/s/0:{stage2.folder}/stack/h 2\n"


def test_what_was_borrowed_is_given_back_the_last_first(stage2: Stage2) -> None:
    stage2.fake("mount")
    stage2.fake("umount")
    borrowed = stage2.folder / "stack/b"
    stage2.out(f"mkdir() {{ command mkdir -p {borrowed}/proc {borrowed}/run; }}; stack_lower=/s/0:/s/1; borrow_root; "
               "return_root")  # fmt: skip
    targets = [call.split()[-1] for call in stage2.calls() if call.startswith("mount")]
    assert targets == [str(borrowed), f"{borrowed}/proc", f"{borrowed}/run"]
    assert [c.split()[-1] for c in stage2.calls() if c.startswith("umount")] == targets[::-1]
