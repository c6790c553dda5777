"""``capsulekit stage1 iso``: what is in the image, that it is the same each time, and what is refused. Real tools."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from small_capsule import AUTHOR
from small_site import make_site, stage1_folder

from capsulekit.cli.main import main
from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot import iso
from provisioner.netboot.stage1 import install, read_source
from provisioner.pki import pki_dir
from provisioner.siteconf import load_site

Iso = Callable[..., tuple[int, str, str]]


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return make_site(tmp_path)


@pytest.fixture
def make(paths: SitePaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iso:
    """Run ``stage1 iso -o x.iso`` with more words; gives (exit status, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        place = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]
        status = main([*place, "stage1", "iso", "-o", str(tmp_path / "x.iso"), *words])
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


def tool(*argv: str | Path) -> str:
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=True, timeout=60).stdout


def unpacked(image: Path) -> Path:
    """The image's files in a folder beside it."""
    folder = image.with_suffix(".files")
    tool("xorriso", "-osirrox", "on", "-indev", image, "-extract", "/", folder)
    return folder


def test_it_holds_stage_1_the_site_and_nothing_secret(make: Iso, paths: SitePaths, tmp_path: Path) -> None:
    status, out, _ = make()
    assert status == 0
    assert out.startswith(f"{tmp_path / 'x.iso'}: ") and out.endswith(" MB, stage 1 for amd64\n")
    files = unpacked(tmp_path / "x.iso")
    for name in ("vmlinuz", "stage1.img"):
        assert (files / "boot/amd64" / name).read_bytes() == (paths.state / "stage1/amd64" / name).read_bytes()
    site = subprocess.run(
        ["cpio", "-i", "--quiet", "-d", "-D", tmp_path / "site"],
        input=(files / "boot/site.img").read_bytes(),
        check=False,
    )
    assert site.returncode == 0
    assert (tmp_path / "site/site/ca.pem").read_bytes() == (pki_dir(paths) / "ca.pem").read_bytes()
    assert (tmp_path / f"site/site/keys/{AUTHOR.public.id}.pub").exists()
    image = (tmp_path / "x.iso").read_bytes()
    for secret in pki_dir(paths).glob("*.key"):
        assert secret.read_bytes().split(b"\n")[1] not in image, secret
    assert b"ck.ticket" not in image


def test_bios_and_uefi_both_find_their_program_on_a_cd_and_on_a_stick(make: Iso, tmp_path: Path) -> None:
    make()
    image = tmp_path / "x.iso"
    report = tool("xorriso", "-indev", image, "-report_el_torito", "plain", "-report_system_area", "plain")
    kinds = [line.split()[6] for line in report.splitlines() if line.startswith("El Torito boot img")]
    assert kinds == ["BIOS", "UEFI"]
    assert "grub2-mbr" in report
    line = next(line for line in report.splitlines() if line.startswith("GPT start and size :   2"))
    start = int(line.split()[-2])
    program = tmp_path / "BOOTX64.EFI"
    tool("mcopy", "-i", f"{image}@@{start * 512}", "::/EFI/BOOT/BOOTX64.EFI", program)
    data = program.read_bytes()
    header = int.from_bytes(data[0x3C:0x40], "little")  # PE format: the offset of its header
    assert data[header : header + 6] == b"PE\0\0\x64\x86"  # and its machine: x86-64


def test_the_same_site_gives_the_same_bytes(
    make: Iso, paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    first = (tmp_path / "x.iso").read_bytes()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    monkeypatch.chdir("/")
    mask = os.umask(0o077)
    try:
        # Two seconds: FAT's times are no finer.
        tool("sleep", "2")
        make()
    finally:
        os.umask(mask)
    assert (tmp_path / "x.iso").read_bytes() == first
    (paths.state / "stage1/amd64/vmlinuz").write_bytes(b"another kernel")
    make()
    assert (tmp_path / "x.iso").read_bytes() != first


def config_of(image: Path) -> str:
    text = (unpacked(image) / "boot/grub/grub.cfg").read_text()
    subprocess.run(["grub-script-check"], input=text, text=True, check=True, timeout=60)
    return text


def test_a_locked_console_gives_no_way_to_change_the_entry(make: Iso, paths: SitePaths, tmp_path: Path) -> None:
    make()
    locked = config_of(tmp_path / "x.iso")
    assert "\nset superusers=nobody\n" in locked and "\nset timeout=0\n" in locked
    site = paths.config / "site.toml"
    site.write_text(site.read_text().replace('console = "locked"', 'console = "open"'))
    make("-o", str(tmp_path / "open.iso"))
    opened = config_of(tmp_path / "open.iso")
    assert "superusers" not in opened and "\nset timeout=3\n" in opened


def test_kernel_arguments_are_words_that_grub_does_not_look_into(make: Iso, paths: SitePaths, tmp_path: Path) -> None:
    assert make("--kargs", "ip=10.0.0.9::10.0.0.1:255.0.0.0::eth0:off a=$root;b  c")[0] == 0
    kernel = next(line for line in config_of(tmp_path / "x.iso").splitlines() if line.startswith("  linux "))
    assert kernel == (
        "  linux /boot/$cpu/vmlinuz 'console=tty0' 'ip=10.0.0.9::10.0.0.1:255.0.0.0::eth0:off' 'a=$root;b' 'c'"
        " rootfstype=ramfs"
    )


@pytest.mark.parametrize("kargs", ["it's", 'x="a b"', "back\\slash"])
def test_kernel_arguments_that_grub_would_change_are_refused(make: Iso, tmp_path: Path, kargs: str) -> None:
    status, _, err = make("--kargs", kargs)
    assert status == 1
    assert "which GRUB can't hand over\n" in err
    assert not (tmp_path / "x.iso").exists()


def test_every_architecture_of_the_site_is_in_it_or_those_that_are_named(
    make: Iso, paths: SitePaths, tmp_path: Path
) -> None:
    assert make("--arch", "i386")[0] == 1
    install(read_source(stage1_folder(tmp_path / "i386", "i386", "the old kind")), paths)
    _, out, _ = make()
    assert out.endswith("stage 1 for amd64 and i386\n")
    both = unpacked(tmp_path / "x.iso")
    assert (both / "boot/i386/vmlinuz").read_bytes() == b"kernel of the old kind"
    assert make("-o", str(tmp_path / "one.iso"), "--arch", "i386")[0] == 0
    assert sorted(p.name for p in (unpacked(tmp_path / "one.iso") / "boot").iterdir()) == [
        "grub",
        "i386",
        "site.img",
    ]


@pytest.mark.parametrize("arch", ["riscv64", "../amd64", ""])
def test_an_architecture_that_the_site_lacks_is_refused(make: Iso, tmp_path: Path, arch: str) -> None:
    status, _, err = make("--arch", arch)
    assert status == 1
    assert err.startswith(f"ERROR: this site has no stage 1 for {arch}, only for amd64\n       capsulekit stage1 build")
    assert not (tmp_path / "x.iso").exists()


def test_a_site_that_is_not_ready_is_refused(make: Iso, paths: SitePaths, tmp_path: Path) -> None:
    (paths.state / "stage1/amd64").unlink()
    status, _, err = make()
    assert (status, "no stage 1 is installed" in err) == (1, True)
    (paths.config / "site.toml").unlink()
    status, _, err = make()
    assert (status, "never initialised" in err) == (1, True)
    assert not (tmp_path / "x.iso").exists()


def test_a_failure_leaves_the_image_that_was_there(
    make: Iso, paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.iso").write_bytes(b"older")
    monkeypatch.setattr(iso, "GRUB", tmp_path / "no-grub")
    with pytest.raises(CapsulekitError, match="is missing; it is needed to make a boot image") as lacking:
        iso.make_iso(paths, load_site(paths), tmp_path / "x.iso")
    assert lacking.value.hint == "apt-get install grub-pc-bin"
    assert (tmp_path / "x.iso").read_bytes() == b"older"
    assert make("-o", str(tmp_path / "nowhere" / "x.iso"))[0] == 1
    assert not list(tmp_path.glob(".x.iso*"))
