"""What goes wrong on the way, on real machines: they end `ready` by themselves, or stop with their reason shown.

Stage 1 is started without PXE, as from a stick: no boot script, so no MAC and no ticket on the command line either.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from e2e_bench import SMALL, shell

from capsulekit.capsule.manifest import loads
from capsulekit.capsule.read import open_capsule
from provisioner.lab.lab import Lab
from provisioner.lab.qemu import Node as Machine
from provisioner.lab.site import LabSite
from provisioner.netboot.siteimg import write_site_image
from provisioner.registry.model import Event, Node
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU: run ./setup.sh test"),
]
MAC = "52:54:00:FA:17:{:02X}"
ROOTFS = "layers/rootfs.squashfs"
MIRROR_PORT = 8099
PART = 300_000  # bytes a mirror sends before it falls silent
SECOND = "test-busybox-2.amd64"


@dataclass
class Bench:
    """A lab, its site, a mirror that can be told what to do, and the master's process."""

    lab: Lab
    site: LabSite
    folder: Path
    server: subprocess.Popen[bytes]

    @property
    def store(self) -> VnfsStore:
        return VnfsStore(self.site.paths, self.site.registry)

    @property
    def mirror_log(self) -> list[list[str]]:
        path = self.folder / "mirror/log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def mirror(self, mode: str) -> None:
        (self.folder / "mirror/mode").write_text(mode)

    def layer(self, capsule: str) -> str:
        """The digest of a capsule's root."""
        manifest = loads((self.store.folder(capsule) / "capsule.toml").read_bytes())
        return next(la.sha256 for la in manifest.layers if la.path == ROOTFS)

    def machine(self, number: int, memory: int, kargs: str = "", extra: tuple[str, ...] = ()) -> Machine:
        """A machine that starts stage 1 as from a stick."""
        image = self.folder / f"initrd{number}"
        site = write_site_image(self.folder / "site.img", self.site.paths, load_site(self.site.paths), int(time.time()))
        image.write_bytes((built.stage1() / "stage1.img").read_bytes() + site.read_bytes())
        line = f"console=ttyS0,115200 rootfstype=ramfs {kargs}".strip()
        kernel = (built.stage1() / "vmlinuz", image, line)
        return self.lab.node(MAC.format(number), memory=memory, kernel=kernel, extra=extra)

    def failed(self, machine: Machine, step: str, words: str) -> None:
        """Wait until a step failed for this reason, on the console and on the master."""
        machine.console.expect(rf"FAILED {step}: [^\r\n]*{words}", 120)

        def is_it(_node: Node, events: list[Event]) -> bool:
            return any(e.step == step and e.status == "failed" and re.search(words, e.detail) for e in events)

        self.site.wait(machine.machine.mac, is_it, 60, f"failed {step}")

    def serve(self, on: bool) -> None:
        """Switch the master on or off."""
        if on:
            self.server = self.lab.serve(self.site.paths)
        else:
            self.server.terminate()
            self.server.wait(timeout=20)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small capsule's next version: one more file."""
    recipe = tmp_path_factory.mktemp("second") / "recipe.toml"
    text = built.BUSYBOX.read_text().replace('version = "1"', 'version = "2"')
    recipe.write_text(text + '\n[files."/etc/second"]\ncontent = "second\\n"\n')
    return built.capsule(recipe)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, second: Path) -> Iterator[Bench]:
    small, stage1 = built.capsule(built.BUSYBOX), built.stage1()
    folder = Path(tmp_path_factory.mktemp("faults"))
    (folder / "mirror").mkdir()
    with Lab(folder / "lab") as lab:
        site = LabSite(folder / "site")
        site.init(lab, stage1, "--default-vnfs", SMALL)
        site.command("trust", "add", f"{built.author_key()}.pub")
        for capsule in (small, second):
            site.command("vnfs", "import", str(capsule))
        conf = site.paths.config / "site.toml"
        # One mirror has a name, and nobody to ask for it: DHCP names no DNS server.
        mirrors = f"http://mirror.invalid:81 http://{lab.ip}:{MIRROR_PORT}"
        text = conf.read_text().replace('mirrors = ""', f'mirrors = "{mirrors}"')
        conf.write_text(text.replace('order = "shuffled"', 'order = "listed"'))
        (site.paths.config / "dnsmasq.d").mkdir()
        (site.paths.config / "dnsmasq.d/nodns.conf").write_text("dhcp-option=option:dns-server\n")
        program = str(built.ROOT / "tests/blob_server.py")
        lab.spawn([sys.executable, program, lab.ip, str(MIRROR_PORT), str(folder / "mirror")], folder / "mirror.log")
        yield Bench(lab, site, folder, lab.serve(site.paths))


@pytest.fixture(scope="module")
def troubled(bench: Bench) -> Iterator[Machine]:
    """A machine whose clock is decades ahead, on a port that spanning tree blocks for 40 s.

    The mirror has nothing but the capsules' roots.
    """
    for capsule in (SMALL, SECOND):
        digest = bench.layer(capsule)
        shutil.copyfile(bench.store.blob(digest), bench.folder / "mirror" / digest)
    bench.mirror(f"hang {PART}")
    spanning_tree(bench, on=True)
    machine = bench.machine(1, 512, extra=("-rtc", "base=2060-06-01"))
    machine.start()
    yield machine
    machine.stop()


def spanning_tree(bench: Bench, *, on: bool) -> None:
    """The bridge's own, with 20 s of listening and 20 s of learning."""
    words = ["stp_state", "1", "forward_delay", "2000"] if on else ["stp_state", "0"]
    bench.lab.run(["ip", "link", "set", bench.lab.network.bridge, "type", "bridge", *words])


def older(bench: Bench, *, on: bool) -> None:
    """Another of the author's signed lists in place of the capsule's own, or that one again."""
    for name in ("SHA256SUMS", "SHA256SUMS.minisig"):
        path, kept = bench.store.folder(SMALL) / name, bench.folder / name
        if on:
            shutil.copyfile(path, kept)
        other = path.with_name(name + ".new")
        shutil.copyfile(bench.store.folder(SECOND) / name if on else kept, other)
        other.replace(path)


def test_a_clock_decades_ahead_is_set_before_anybody_is_asked(troubled: Machine) -> None:
    troubled.console.expect(r"the clock was set back by \d{4,5} days to the time the site's image was made", 120)


def test_an_address_comes_late_behind_spanning_tree_and_without_dns(bench: Bench, troubled: Machine) -> None:
    # No ck.mac: the card was found by its link, its master by asking it.
    found = troubled.console.expect(r"network: ok, (\d+)\.\d+ s \(10\.77\.0\.\d+ on ", 150)
    assert int(found.group(1)) >= 15
    spanning_tree(bench, on=False)


def test_a_master_that_goes_in_the_middle_of_a_layer_is_waited_for(bench: Bench, troubled: Machine) -> None:
    wait_for(lambda: bool(bench.mirror_log) and bench.mirror_log[-1][2] == "200", 90)
    bench.serve(on=False)
    bench.mirror("error")  # and the mirror goes too
    troubled.console.expect(rf"FAILED layers: {ROOTFS}: truncated: {PART} of \d+ bytes \(curl: \(7\)", 120)
    bench.mirror(f"hang {PART}")
    bench.serve(on=True)


def test_an_older_signed_capsule_is_refused(bench: Bench, troubled: Machine) -> None:
    # Put in place after the master looked at its own copy: it would notice, and make no plan.
    troubled.console.expect("plan: ok", 120)
    older(bench, on=True)
    bench.failed(troubled, "sums", "SHA256SUMS: digest mismatch: expected .*not the capsule of the plan")
    older(bench, on=False)


def test_a_capsule_replaced_while_it_is_fetched_leads_to_a_new_plan(bench: Bench, troubled: Machine) -> None:
    # The mirror goes on where it was cut, in the attempt before: nothing that came is fetched again.
    wait_for(lambda: [range_start(bench.mirror_log[-1]), bench.mirror_log[-1][2]] == [PART, "206"], 120)
    bench.site.command("node", "set", "vnfs", SECOND, "--nodeid", troubled.machine.mac)
    blob = bench.store.blob(bench.layer(SMALL))
    blob.unlink()
    bench.mirror("garbage")
    bench.failed(troubled, "layers", r"no longer on the master \(404\): the capsule was replaced or removed")


def test_a_mirror_that_serves_garbage_is_left_and_the_node_becomes_ready(bench: Bench, troubled: Machine) -> None:
    troubled.console.expect(rf"{ROOTFS}: digest mismatch: .*; mirror http://10\.77\.0\.1:\d+ is not asked again", 150)
    node = bench.site.wait_ready(troubled.machine.mac, 150)
    assert (node.vnfs, node.error) == (SECOND, "")
    assert shell(troubled, "cat /etc/second") == "second"
    assert "mirror http://mirror.invalid:81: truncated: 0 of" in troubled.console.text
    # Nobody at the console could do more than read: no shell, and Ctrl-Alt-Del did not reboot.
    assert "/ #" not in troubled.console.text.partition("handing over")[0]
    troubled.stop()


def range_start(line: list[str]) -> int:
    return int(line[1].removeprefix("bytes=").rstrip("-")) if line[1] != "-" else 0


def wait_for(what: object, seconds: float) -> None:
    """Until ``what()`` holds."""
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


# --- memory, a static address, a disk


def numbers(text: str) -> tuple[int, int]:
    """(MB needed, MB available) of the step `memory`."""
    found = re.search(r"needs (\d+) MB .* has (\d+) MB available", text)
    assert found is not None, text
    return int(found.group(1)), int(found.group(2))


STATIC = "ip=10.77.0.60::10.77.0.1:255.255.255.0:::off ck.linkwait=60"


@pytest.fixture(scope="module")
def needed(bench: Bench, troubled: Machine) -> int:
    """The MB a machine needs for the small capsule: tried with too few, by what that one said."""
    need, have = numbers(troubled.console.text)
    machine = bench.machine(2, few := 512 - (have - need) - 24, STATIC)
    bench.site.command("node", "add", machine.machine.mac, "few.new")
    bench.site.command("node", "set", "vnfs", SECOND, "few")
    machine.start()
    try:
        bench.failed(machine, "memory", "not enough memory: needs")
        need, have = numbers(machine.console.text)
        assert "members" not in machine.console.text
        return few + (need - have)
    finally:
        machine.stop()


def test_just_too_little_memory_is_said_and_just_enough_boots(bench: Bench, needed: int) -> None:
    """The second one has a static address, too, and a disk for the next boot."""
    disk = bench.folder / "disk.img"
    with disk.open("wb") as image:
        image.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-L", "CAPSULEKIT", str(disk)], check=True, capture_output=True)
    drive = ("-drive", f"file={disk},format=raw,if=virtio")
    bench.site.command("node", "add", MAC.format(3), "enough.new")
    bench.site.command("node", "set", "vnfs", SECOND, "enough")
    bench.mirror("good")
    machine = bench.machine(3, needed + 4, STATIC, drive)
    machine.start()
    try:
        machine.console.expect(r"network: ok, [^\r\n]*\(10\.77\.0\.60 on ", 120)
        machine.console.expect(r"disk: ok, [^\r\n]*/dev/vda, \d+ MB free", 60)
        machine.console.expect("handing over", 120)
        need, have = numbers(machine.console.text)
        assert 0 <= have - need <= 12
        bench.site.wait_ready(machine.machine.mac, 150)
    finally:
        machine.stop()
    listed = subprocess.run(["debugfs", "-R", "ls -p /capsulekit/blobs", str(disk)], capture_output=True, text=True)
    kept = set(re.findall(r"/([0-9a-f]{64})/", listed.stdout))
    with open_capsule(built.capsule(built.BUSYBOX)) as opened:
        modules = next(la for la in loads(opened.read_member("capsule.toml")).layers if "modules" in la.path)
    assert {bench.layer(SECOND), modules.sha256} <= kept
    events = bench.site.registry.events(machine.machine.mac)
    print(json.dumps({e.step: e.seconds for e in events if e.kind == "step" and e.status == "ok"}))
