"""Every way in which stage 2 gives up, driven: each `fail` of its shell has a row here, in every shell it runs in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from stage2_shell import FILES, MAC, SHELLS, Stage2

HYBRID = "ck.hybrid=nfs4:10.0.0.1:/x"
CARD = f"ck.nic={MAC} ck.ip=10.0.0.5/24"


@dataclass(frozen=True)
class Fault:
    """The text as the shell file has it, what stage 2 says, what runs on which command line, without which files."""

    template: str
    said: str
    script: str
    line: str = ""
    without: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


FAULTS = [
    Fault("init=$init_path is not a full path", "init=bash is not a full path", "chosen_init", "init=bash"),
    Fault("the capsule has no $init_path", "the capsule has no /sbin/init", "chosen_init"),
    Fault("ck.overlay-size=$upper_text is no size: a number with k, m, g or %, such as 2g or 40%",
          "ck.overlay-size=junk is no size: a number with k, m, g or %, such as 2g or 40%", "mount_stack",
          "ck.overlay-size=junk"),
    Fault("it is missing or empty", "it is missing or empty", "mount_layers", layers=("order",)),
    Fault("$LAYERS/order is missing or empty", "@/layers/order is missing or empty", "mount_layers"),
    Fault("this capsule was built without one: hybridize in its recipe, or take ck.hybrid away",
          "this capsule was built without one: hybridize in its recipe, or take ck.hybrid away", "add_network_layer",
          HYBRID, ("hybrid.sh", "nic.sh")),
    Fault("so many do not fit the page of options a mount may have: join some of the capsule's layers",
          "so many do not fit the page of options a mount may have: join some of the capsule's layers",
          "stack_n=900 stack_lower=$(printf '/s/%03d:' $(seq 900)); mount_overlay"),
    Fault("this kernel has no NFS 4, built in or among the capsule's modules",
          "this kernel has no NFS 4, built in or among the capsule's modules",
          "stack_lower=/s/0 stack_n=1; nic_up() { :; }; add_network_layer", HYBRID),
    Fault("ck.hybrid is not nfs4:SERVER:/PATH", "ck.hybrid is not nfs4:SERVER:/PATH", "add_network_layer",
          "ck.hybrid=10.0.0.1:/x"),
    Fault("the server $hybrid_server is not an address: no names are looked up this early",
          "the server master is not an address: no names are looked up this early", "add_network_layer",
          "ck.hybrid=nfs4:master:/x"),
    Fault("ck.nic=$nic_mac is not the address of a network card", "ck.nic=eth0 is not the address of a network card",
          "nic_up", "ck.nic=eth0 ck.ip=10.0.0.5/24"),
    Fault("ck.ip=$1 is not ADDRESS/PREFIX[,GATEWAY][,dhcp]", "ck.ip=dhcp is not ADDRESS/PREFIX[,GATEWAY][,dhcp]",
          "nic_up", f"ck.nic={MAC} ck.ip=dhcp"),
    Fault("no card has this address after 30 s$(nic_list)",
          "no card has this address after 30 s, and there is no other card: is its driver in the capsule?", "nic_up",
          CARD),
    Fault("it is gone", "it is gone", f"nic_find() {{ nic=eth0; }}; nic_mac={MAC}; nic_up", CARD),
]  # fmt: skip


def texts() -> Iterator[str]:
    """What every call of `fail` says."""
    for path in FILES:
        for line in path.read_text().splitlines():
            if found := re.search(r"(?<![\w-])fail (\"[^\"]*\"|'[^']*')", line.partition(" # ")[0]):
                yield found[1][1:-1]


def test_every_failure_in_the_shell_has_its_row() -> None:
    assert sorted(texts()) == sorted(fault.template for fault in FAULTS)
    calls = "\n".join(path.read_text() for path in FILES).count(" fail ")
    assert calls == len(FAULTS) + 1, "one comment has the word; every call stands on a line of its own"


@pytest.mark.parametrize("shell", sorted(SHELLS))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.said[:50])
def test_it_stops_with_its_reason_and_reboots(fault: Fault, shell: str, tmp_path: Path) -> None:
    stage2 = Stage2(shell, tmp_path)
    stage2.cmdline(fault.line)
    for name in ("chroot", "ip", "modprobe", "mount", "reboot", "sleep", "umount"):
        stage2.fake(name)
    for name in fault.without:
        (stage2.folder / "lib" / name).unlink()
    for name in fault.layers:
        (stage2.folder / "layers" / name).write_text("gone.squashfs\n")
    done = stage2.do(f"DOING=x; trap 'stop_here $?' EXIT; {fault.script}; echo not reached")
    (said,) = [line for line in stage2.said.splitlines() if "FAILED" in line]
    assert said.endswith(": " + fault.said.replace("@", str(stage2.folder)))
    assert "not reached" not in done.stdout
    assert [call for call in stage2.calls() if call.startswith(("sleep 3", "reboot"))] == ["sleep 37", "reboot -f"]
