"""What stage 1 leaves for stage 2: the card and the address of a network layer, and whether a shell may be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from node_shell import LIB, MAC, Node, a_plan, check, node
from stage2_shell import Stage2

__all__ = ["node"]  # the fixture
DHCP = "ip() { :; }; interface=eth0 ip=10.0.0.5 mask=24 router='10.0.0.1 10.0.0.2'; set -- bound"


def test_a_lease_is_handed_over_with_its_card_and_read_by_stage_2(node: Node, tmp_path: Path) -> None:
    assert check(node, a_plan(kargs="kargs quiet ck.hybrid=nfs4:10.0.0.1:/x")) == ""
    node.out(f"{DHCP}; . {LIB}/dhcp.sh")
    (node.run / "node").write_text(MAC + "\n")
    words = node.out("kernel_arguments").split()
    assert [word for word in words if word.startswith("ck.nic=")] == [f"ck.nic={MAC}"]
    (address,) = (word.removeprefix("ck.ip=") for word in words if word.startswith("ck.ip="))
    stage2 = Stage2("dash", tmp_path / "stage2")
    assert stage2.out('nic_parse_ip "$1"; echo "$nic_address $nic_gateway $nic_how"', address) == (
        "10.0.0.5/24 10.0.0.1 dhcp\n"
    )


def test_a_static_address_is_handed_over_as_one_and_without_a_network_layer_none_is(node: Node) -> None:
    node.out("net_lease 10.0.0.5 24 10.0.0.1")
    (node.run / "node").write_text(MAC + "\n")
    assert check(node, a_plan(kargs="kargs ck.hybrid=nfs4:10.0.0.1:/x")) == ""
    assert "ck.ip=10.0.0.5/24,10.0.0.1" in node.out("kernel_arguments").split()
    assert check(node, a_plan(kargs="kargs ck.hybrid-options=soft")) == ""
    assert "ck.ip" not in node.out("kernel_arguments")


@pytest.mark.parametrize(
    ("kargs", "console", "has_key"),
    [
        ("quiet", "open", True),
        ("rd.break", "locked", True),
        ("rd.break", "open", False),
        ("rd.break=pre-mount quiet", "open", False),
    ],
)
def test_a_shell_in_stage_2_is_never_beside_the_session_key(
    node: Node, kargs: str, console: str, has_key: bool, tmp_path: Path
) -> None:
    assert check(node, a_plan(kargs=f"kargs {kargs}")) == ""
    (node.site / "console").write_text(console + "\n")
    (node.run / "session.curl").write_text("the key\n")
    folder = tmp_path / "root/etc/capsulekit/agent"
    folder.mkdir(parents=True)
    node.out("agent_session")
    assert (folder / "session").exists() is has_key
    if has_key:
        assert (folder / "session").stat().st_mode & 0o777 == 0o600
