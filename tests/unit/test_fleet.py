"""`stage1 check --fleet`: which nodes' devices an image drives. The image is real, its modules are small objects."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import fake_sysfs as fake
import pytest
from initramfs_builder.image import read_facts

from capsulekit.cli.main import main
from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.devices import Device
from provisioner.fleet import FleetReport, compare, fleet_report
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry, open_registry
from provisioner.siteconf import NotInitialised

RELEASE = "6.1.0-test"
MODULES = {
    "e1000": ["alias=pci:v00008086d0000100Esv*sd*bc*sc*i*"],
    "mlx5_core": ["alias=pci:v000015B3d00001017sv*sd*bc*sc*i*", "firmware=mellanox/there.bin"],
    "bnx2x": ["alias=pci:v000014E4d0000168Esv*sd*bc*sc*i*", "firmware=bnx2x/here.fw", "firmware=bnx2x/gone.fw"],
    "ahci": ["alias=pci:v*d*sv*sd*bc01sc06i01*"],
    "virtio_net": ["alias=virtio:d00000001v*"],
    "xhci_pci": ["alias=pci:v*d*sv*sd*bc0Csc03i30*"],
}
BNX2X = "pci:v000014E4d0000168Esv0000103Csd0000337Bbc02sc00i00"
TG3 = "pci:v000014E4d00001657sv0000103Csd0000169Dbc02sc00i00"
NIC = Device(fake.E1000, "e1000", "e1000", boot=True)
DISK = Device(fake.AHCI, "ahci", "ahci", count=2)

pytestmark = pytest.mark.skipif(not all(map(shutil.which, ("gcc", "depmod", "cpio"))), reason="needs gcc, kmod, cpio")


def image(folder: Path, leave_out: str = "") -> Path:
    """An image with all MODULES but one, virtio_pci built in, and one firmware file too few."""
    root, modules = folder / "root", folder / "root/usr/lib/modules" / RELEASE
    (modules / "kernel").mkdir(parents=True)
    for name, info in MODULES.items():
        if name != leave_out:
            text = '.section .modinfo,"a"\n' + "".join(f'.asciz "{line}"\n' for line in (*info, "license=GPL"))
            argv = ["gcc", "-c", "-x", "assembler", "-", "-o", str(modules / f"kernel/{name}.ko")]
            subprocess.run(argv, input=text.encode(), check=True)
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/ata/ata_piix.ko\n")
    (modules / "modules.order").write_text("")
    for name in ("mellanox/there.bin", "bnx2x/here.fw"):
        (root / "usr/lib/firmware" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "usr/lib/firmware" / name).write_bytes(b"fw")
    (root / "lib").symlink_to("usr/lib")
    subprocess.run(["depmod", "-b", str(root), RELEASE], check=True, capture_output=True)
    listed = subprocess.run(["find", ".", "-mindepth", "1"], cwd=root, capture_output=True, check=True).stdout
    out = folder / "stage1.img"
    with out.open("wb") as file:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=listed, stdout=file, check=True)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def without_e1000(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("without"), "e1000")


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = SitePaths(tmp_path / "etc", tmp_path / "var")
    init_site(made, InitRequest("ck0", "10.0.0.1/16", "10.0.1.1-10.0.1.250"))
    return made


@pytest.fixture
def registry(paths: SitePaths) -> Registry:
    return open_registry(paths)


def add(registry: Registry, *lists: tuple[Device, ...]) -> None:
    """One node more for each list, named n0000 and on."""
    for devices in lists:
        mac = f"52:54:00:00:00:{len(registry.nodes()):02X}"
        registry.add_node(mac, defaults=Defaults())
        if devices:
            registry.record_devices(mac, devices)


def text(report: FleetReport) -> str:
    return "\n".join(report.lines())


def test_covered_devices_are_counted_by_class(registry: Registry, paths: SitePaths, whole: Path) -> None:
    add(registry, (NIC, DISK, Device(fake.XHCI, "xhci_hcd", "xhci_pci"), Device(fake.BRIDGE), Device(fake.GPU)))
    add(registry, (NIC, DISK, Device(fake.MLX5, "mlx5_core", "mlx5_core")))
    report = fleet_report(paths, whole)
    report.refuse()
    assert report.problem == ""
    assert report.lines() == [
        "2 nodes of 2 kinds reported their devices",
        "boot interface: 2/2 nodes",
        "network: 3/3 devices, firmware present",
        "storage: 4/4 devices, firmware present",
        "usb: 1/1 device, firmware present",
        "not looked for: 2 devices of other classes",
    ]


def test_nodes_with_a_network_device_that_nothing_drives_are_named(
    registry: Registry, paths: SitePaths, without_e1000: Path
) -> None:
    add(registry, (NIC, DISK), (NIC, DISK), (Device(fake.MLX5, "mlx5_core", "mlx5_core", boot=True),))
    report = fleet_report(paths, without_e1000.parent)
    with pytest.raises(CapsulekitError, match="n0000 n0001") as caught:
        report.refuse()
    assert (caught.value.exit_code, "recipe" in (caught.value.hint or "")) == (1, True)
    assert report.problem == f"{without_e1000} has no driver for a network device of n0000 n0001"
    assert "network: 1/3 devices" in text(report)
    assert "boot interface: 1/3 nodes" in text(report)
    assert report.lines()[-1] == (
        "no driver for network device 8086:100e that a node booted through: n0000 n0001; e1000 drove it"
    )


def test_a_device_that_never_had_a_driver_counts_when_it_is_a_network_or_a_disk(
    registry: Registry, paths: SitePaths, whole: Path
) -> None:
    nvme = "pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02"
    add(registry, (NIC, Device(TG3), Device(nvme), Device(fake.WIFI), Device(fake.GPU)))
    report = fleet_report(paths, whole)
    assert [(gap.ids, gap.network) for gap in report.uncovered.values()] == [("144d:a808", False), ("14e4:1657", True)]
    assert "n0000" in report.problem
    assert report.others == 2


def test_a_disk_without_a_driver_is_named_and_is_no_failure(registry: Registry, paths: SitePaths, whole: Path) -> None:
    add(registry, (NIC, Device("pci:v00001000d00000097sv00001000sd00003090bc01sc07i00")))
    report = fleet_report(paths, whole)
    assert report.problem == ""
    assert "no driver for storage device 1000:0097: n0000" in report.lines()


def test_what_another_node_had_a_driver_for_is_looked_for_everywhere(
    registry: Registry, paths: SitePaths, whole: Path
) -> None:
    add(registry, (NIC, Device(fake.WIFI)), (NIC, Device(fake.WIFI, "iwlwifi", "iwlwifi")))
    report = fleet_report(paths, whole)
    assert "no driver for other device 8086:2723: n0000 n0001; iwlwifi drove it" in report.lines()
    assert report.problem == ""


def test_a_driver_built_into_the_images_kernel_counts_by_its_name(
    registry: Registry, paths: SitePaths, whole: Path
) -> None:
    # Its aliases are not in the image; only that it drove the device somewhere tells.
    ide = "pci:v00008086d00007010sv00001AF4sd00001100bc01sc01i80"
    virtio = (Device(fake.VIRTIO_PCI, "virtio-pci", "virtio_pci", boot=True),
              Device(fake.VIRTIO_NET, "virtio_net", "virtio_net", boot=True))  # fmt: skip
    add(registry, (*virtio, Device(ide, "ata_piix")))
    report = fleet_report(paths, whole)
    assert report.uncovered == {}
    assert "virtio: 1/1 device, firmware present" in report.lines()


def test_a_module_of_that_name_that_does_not_know_the_device_does_not_count(
    registry: Registry, paths: SitePaths, whole: Path
) -> None:
    newer = "pci:v00008086d00009999sv00008086sd00000001bc02sc00i00"
    add(registry, (Device(newer, "e1000", "e1000", boot=True),))
    assert "n0000" in fleet_report(paths, whole).problem


def test_the_way_to_a_booting_virtio_nic_needs_its_driver_too(
    registry: Registry, paths: SitePaths, whole: Path
) -> None:
    add(registry, (Device(fake.VIRTIO_PCI, "virtio-mystery", "virtio_mystery"), Device(fake.VIRTIO_NET, "virtio_net")))
    report = fleet_report(paths, whole)
    assert list(report.uncovered) == [fake.VIRTIO_PCI]
    assert report.problem


def test_firmware_that_is_not_in_the_image_is_named(registry: Registry, paths: SitePaths, whole: Path) -> None:
    add(registry, (NIC, Device(BNX2X, "bnx2x", "bnx2x"), Device(fake.MLX5, "mlx5_core", "mlx5_core")))
    report = fleet_report(paths, whole)
    assert "network: 3/3 devices, firmware missing: bnx2x/gone.fw" in report.lines()
    assert report.problem == ""


def test_nodes_that_never_reported_are_counted_and_named(registry: Registry, paths: SitePaths, whole: Path) -> None:
    add(registry, (NIC,), *[()] * 25)
    report = fleet_report(paths, whole)
    assert len(report.never_reported) == 25
    line = report.lines()[1]
    assert line.startswith("25 nodes never did: n0001 n0002 ") and line.endswith(" n0020 and 5 more")


def test_a_node_that_reports_new_devices_meanwhile_is_counted(
    registry: Registry, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry, (NIC,))
    known = registry.modaliases()
    add(registry, (Device(fake.MLX5, "mlx5_core", "mlx5_core", boot=True), Device(TG3)))
    monkeypatch.setattr(registry, "modaliases", lambda: known)  # as it was a moment before
    report = compare(registry, read_facts(whole))
    assert (report.boot_nodes, report.boot_covered) == (2, 2)
    assert list(report.uncovered) == [TG3]


def test_an_empty_site_has_no_problem(registry: Registry, paths: SitePaths, whole: Path) -> None:
    report = fleet_report(paths, whole)
    assert (report.problem, report.nodes, report.lines()[0]) == ("", 0, "0 nodes of 0 kinds reported their devices")


def test_the_record_holds_every_name_and_is_json(registry: Registry, paths: SitePaths, without_e1000: Path) -> None:
    add(registry, *[(NIC, DISK)] * 30, ())
    record = json.loads(json.dumps(fleet_report(paths, without_e1000).record()))
    assert record["ok"] is False
    assert record["classes"]["storage"] == {"devices": 60, "covered": 60, "firmware_missing": []}
    (gap,) = record["uncovered"]
    assert gap["nodes"] == [f"n{number:04}" for number in range(30)]
    assert (gap["modalias"], gap["boot"], gap["network"], gap["modules"]) == (fake.E1000, True, True, ["e1000"])
    assert (record["boot"], record["never_reported"]) == ({"nodes": 30, "covered": 0}, ["n0030"])


def test_a_damaged_image_and_one_without_modules_are_refused(
    registry: Registry, paths: SitePaths, whole: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.img"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CapsulekitError) as damaged:
        fleet_report(paths, cut)
    assert damaged.value.exit_code == 3
    empty = tmp_path / "empty.img"
    argv = ["cpio", "-o", "-H", "newc", "--quiet"]
    empty.write_bytes(subprocess.run(argv, cwd=tmp_path, input=b"etc\n", capture_output=True, check=True).stdout)
    with pytest.raises(CapsulekitError, match="no kernel's modules"):
        fleet_report(paths, empty)
    with pytest.raises(OSError, match="nowhere"):
        fleet_report(paths, tmp_path / "nowhere.img")


def test_a_site_that_was_never_made_says_so(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(NotInitialised):
        fleet_report(SitePaths(tmp_path / "no", tmp_path / "where"), whole)


# --- the command


def check(paths: SitePaths, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run `stage1 check --fleet`: exit status, stdout, stderr."""
    place = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]
    capsys.readouterr()
    status = main(["stage1", "check", "--fleet", *words, *place])
    return (status, *capsys.readouterr())


def test_the_command_prints_the_classes_and_ends_well(
    registry: Registry, paths: SitePaths, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(registry, (NIC, DISK))
    status, out, err = check(paths, capsys, str(whole.parent))
    assert (status, err) == (0, "")
    assert "network: 1/1 device, firmware present\n" in out


def test_the_command_fails_with_the_nodes_named_after_all_was_printed(
    registry: Registry, paths: SitePaths, without_e1000: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(registry, (NIC, DISK))
    status, out, err = check(paths, capsys, str(without_e1000))
    assert status == 1
    assert "no driver for network device 8086:100e that a node booted through: n0000" in out
    assert "has no driver for a network device of n0000" in err and "recipe" in err
    status, out, _ = check(paths, capsys, "--json", str(without_e1000))
    assert (status, json.loads(out)["ok"]) == (1, False)


def test_the_command_says_when_there_is_no_site_or_no_image(
    registry: Registry, paths: SitePaths, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = check(SitePaths(tmp_path / "no", tmp_path / "where"), capsys, str(whole))
    assert (status, "never initialised" in err) == (1, True)
    assert check(paths, capsys, str(tmp_path / "nowhere"))[0] == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = check(paths, capsys, str(empty))
    assert (status, "stage1.img" in err) == (2, True)
