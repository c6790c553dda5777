"""An image for a CD or a USB stick that starts stage 1 without PXE: GRUB for BIOS and UEFI, stage 1, the site's image.

The same site gives the same bytes: times are those of what goes in, identifiers are made of its digests.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_file, sha256_bytes, sha256_file
from capsulekit.run import PLAIN, run
from capsulekit.sitepaths import SitePaths
from provisioner.netboot import stage1
from provisioner.netboot.siteimg import newest_input, write_site_image
from provisioner.netboot.templates import render
from provisioner.siteconf import SiteConfig

PURPOSE = "make a boot image"
GRUB = Path("/usr/lib/grub")
# All that the two GRUBs can do is inside them: they load no module from the image.
COMMON = ("boot", "configfile", "cpuid", "echo", "iso9660", "linux", "normal", "part_gpt", "part_msdos", "reboot",
          "search", "search_fs_file", "serial", "sleep", "terminal", "test")  # fmt: skip
BIOS, UEFI = ("biosdisk",), ("all_video", "efi_gop", "fat")
MARK = "capsulekit"  # folder of the file by which GRUB finds this very image among all disks
VOLUME = "CAPSULEKIT"


@dataclass(frozen=True)
class IsoResult:
    """The image, its size in bytes, and the architectures it starts."""

    path: Path
    size: int
    arches: tuple[str, ...]


def make_iso(paths: SitePaths, config: SiteConfig, out: Path, arches: Sequence[str] = (), kargs: str = "") -> IsoResult:
    """Write the image of an initialised site to ``out``, with the stage 1 of ``arches`` (default: all there are).

    ``kargs`` follow the site's own kernel arguments of stage 1. Raises CapsulekitError when the site lacks a stage 1,
    when an argument can't be written for GRUB, or when a program that is needed is missing.
    """
    chosen = _chosen(paths, arches)
    words = kernel_words(f"{config.stage1_kargs} {kargs}")
    with TemporaryDirectory(prefix="capsulekit-iso-") as name:
        scratch = Path(name)
        files = {
            f"boot/{arch}/{file}": (stage1.folder_of(paths, arch) / file).resolve()
            for arch in chosen
            for file in stage1.FILES
        }
        epoch = newest_input(paths, files.values())
        files["boot/site.img"] = write_site_image(scratch / "site.img", paths, config, epoch)
        files["boot/grub/grub.cfg"] = scratch / "grub.cfg"
        text = render("grub.cfg.j2", kargs=words, locked=int(config.console != "open"))
        files["boot/grub/grub.cfg"].write_text(text)
        mark = sha256_bytes("".join(f"{at} {sha256_file(path)}\n" for at, path in sorted(files.items())).encode())[:16]
        files[f"{MARK}/{mark}"] = scratch / "mark"
        files[f"{MARK}/{mark}"].write_text(f"{mark}\n")
        image = _write(scratch, files, mark, epoch)
        with atomic_file(out) as target, image.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
    return IsoResult(out, out.stat().st_size, chosen)


def kernel_words(kargs: str) -> list[str]:
    """Kernel arguments as words for GRUB. Raises CapsulekitError for one that GRUB would hand over changed."""
    words = kargs.split()
    for word in words:
        # GRUB's linux command puts a backslash before each of these (lib/cmdline.c), and the kernel knows none.
        if set(word) & set("'\"\\"):
            raise CapsulekitError(
                f"kernel argument {word!r} holds a quote or a backslash, which GRUB can't hand over",
                hint="change stage1_kargs in site.toml, or --kargs",
            )
    return words


def _chosen(paths: SitePaths, arches: Sequence[str]) -> tuple[str, ...]:
    there = stage1.require_stage1(paths)
    for arch in arches:
        if arch not in there:
            raise CapsulekitError(
                f"this site has no stage 1 for {arch}, only for " + " and ".join(there),
                hint="capsulekit stage1 build RECIPE -o DIR, then: capsulekit init --stage1 DIR",
            )
    return tuple(arch for arch in there if not arches or arch in arches)


def _write(scratch: Path, files: Mapping[str, Path], mark: str, epoch: int) -> Path:
    """The finished image in ``scratch``."""
    env = {**PLAIN, "SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "LC_ALL": "C"}
    early = scratch / "early.cfg"
    early.write_text(f"search --no-floppy --file --set=root /{MARK}/{mark}\nset prefix=($root)/boot/grub\n")
    bios, uefi = scratch / "bios.img", scratch / "BOOTX64.EFI"
    _grub("i386-pc", "i386-pc-eltorito", (*COMMON, *BIOS), early, bios, env)
    _grub("x86_64-efi", "x86_64-efi", (*COMMON, *UEFI), early, uefi, env)
    system = _efi_system(scratch / "efi.img", uefi, mark, env)
    out = scratch / "image.iso"
    argv: list[str | Path] = [
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-o",
        out,
        "-V",
        VOLUME,
        "-r",
        "-J",
        "-graft-points",
    ]
    argv += ["--set_all_file_dates", datetime.fromtimestamp(epoch, UTC).strftime("%Y%m%d%H%M%S00")]
    # BIOS: from a CD by El Torito; from a USB stick by the first sector, which loads the same program.
    argv += ["-b", "boot/grub/bios.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    argv += ["--grub2-boot-info", "--grub2-mbr", GRUB / "i386-pc" / "boot_hybrid.img"]
    # UEFI: the same small FAT file system as El Torito's second image and as a partition.
    argv += ["-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot"]
    argv += ["-append_partition", "2", "0xef", system, "-appended_part_as_gpt"]
    argv += [f"boot/grub/bios.img={bios}", *(f"{at}={path}" for at, path in sorted(files.items()))]
    run(argv, purpose=PURPOSE, env=env, timeout=600)
    return out


def _grub(folder: str, kind: str, modules: Sequence[str], early: Path, out: Path, env: Mapping[str, str]) -> None:
    if not (GRUB / folder).is_dir():
        package = "grub-pc-bin" if folder == "i386-pc" else "grub-efi-amd64-bin"
        raise CapsulekitError(
            f"{GRUB / folder} is missing; it is needed to {PURPOSE}", hint=f"apt-get install {package}"
        )
    argv: list[str | Path] = ["grub-mkimage", "-O", kind, "-d", GRUB / folder, "-p", "/boot/grub"]
    run([*argv, "-c", early, "-o", out, *modules], purpose=PURPOSE, env=env, timeout=60)


def _efi_system(image: Path, program: Path, mark: str, env: Mapping[str, str]) -> Path:
    """The FAT file system that UEFI firmware looks into (UEFI 2.10, 3.5.1.1), with one program."""
    # A 2.88 MB floppy's format: the program is about half a megabyte.
    run(["mformat", "-C", "-i", image, "-f", "2880", "-N", mark[:8], "::"], purpose=PURPOSE, env=env, timeout=60)
    run(["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"], purpose=PURPOSE, env=env, timeout=60)
    run(["mcopy", "-i", image, program, "::/EFI/BOOT/BOOTX64.EFI"], purpose=PURPOSE, env=env, timeout=60)
    return image
