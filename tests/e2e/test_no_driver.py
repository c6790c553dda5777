"""A machine whose network card stage 1 has no driver for: it tells the person before it which card that is."""

from __future__ import annotations

from collections.abc import Iterator

import built
import pytest
from e2e_bench import Bench

from provisioner.lab.qemu import Node as Machine
from provisioner.netboot.siteimg import SiteImage
from provisioner.siteconf import load_site

pytestmark = pytest.mark.timeout(600)
MAC = "52:54:00:E2:E0:D1"


@pytest.fixture(scope="module")
def stranded(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Started without firmware and network (QEMU loads stage 1 itself); the kernel for virtual machines has no 8139."""
    stage1, paths = built.stage1(), bench.site.paths
    initrd = tmp_path_factory.mktemp("stranded") / "initrd"
    site = SiteImage(paths, load_site(paths)).current()
    initrd.write_bytes((stage1 / "stage1.img").read_bytes() + site.read_bytes())
    line = f"console=ttyS0,115200 rootfstype=ramfs ck.mac={MAC} ck.ticket={'0' * 32}"
    kernel = (stage1 / "vmlinuz", initrd, line)
    machine = bench.lab.node(MAC, memory=384, kernel=kernel, nic="rtl8139")
    machine.start()
    yield machine
    machine.stop()


def test_the_console_names_the_card_that_has_no_driver(stranded: Machine) -> None:
    said = r"no driver in this stage 1 for network device 0000:00:0\d\.0 \[10ec:8139\], class 0200"
    stranded.console.expect(rf"capsulekit: {said}\r", 120)
    # In the step's own line too, and then in the reason why the node can't go on.
    stranded.console.expect(rf"capsulekit: drivers: ok, [0-9.]+ s \({said}\)", 60)
    stranded.console.expect(rf"FAILED network: no network interface has the address {MAC}[^\r]*; {said}", 120)
