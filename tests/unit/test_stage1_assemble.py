"""Stage 1 and stage 2 assembled from this machine's own programs and a small kernel tree."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from images import archives, unpack_image
from initramfs_builder.archive import Archive
from initramfs_builder.cpio import regular
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.pack import Packing, Report, pack
from initramfs_builder.patterns import Patterns
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage import add_paths
from initramfs_builder.stage1 import Stage1Config, assemble
from initramfs_builder.stage2 import assemble_stage2
from initramfs_builder.tree import Tree

RELEASE = "6.1.0-test"
MTIME = 1_700_000_000
CONFIG = Stage1Config(
    arch="amd64",
    profile="test",
    binaries=("bin/busybox", "usr/bin/curl"),
    modules=("loop",),
    applets=("sh", "mount", "modprobe", "tar"),
)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    root = tmp_path / "kernel"
    folder = root / "lib/modules" / RELEASE / "kernel/drivers/block"
    folder.mkdir(parents=True)
    source = b'.section .modinfo,"a"\n.asciz "license=GPL"\n.asciz "firmware=none.bin"\n'
    subprocess.run(["gcc", "-c", "-x", "assembler", "-", "-o", str(folder / "loop.ko")], input=source, check=True)
    (root / "lib/modules" / RELEASE / "modules.dep").write_text("kernel/drivers/block/loop.ko:\n")
    return root


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    folder = tmp_path / "shell"
    (folder / "lib").mkdir(parents=True)
    (folder / "agent").mkdir()
    (folder / "init").write_text("#!/bin/sh\n# needs: mount modprobe\n# needs: curl\n. /lib/capsulekit/net.sh\n")
    (folder / "lib/net.sh").write_text("# needs: curl\n")
    (folder / "agent/capsule-agent").write_text("#!/bin/sh\n# needs: systemctl\n")
    return folder


def assembled(kernel: Path, shell: Path, config: Stage1Config = CONFIG) -> tuple[bytes, Report]:
    out = io.BytesIO()
    report = assemble(out, Path("/"), kernel, RELEASE, config, MTIME, level=1, shell=shell)
    return out.getvalue(), report


def listed(image: bytes) -> dict[str, str]:
    """What the real cpio lists: path → mode, with a link's target after the path's arrow as "mode target"."""
    lines = {}
    for archive in archives(image):
        done = subprocess.run(["cpio", "-tv", "--quiet"], input=archive, capture_output=True, check=True)
        for line in done.stdout.decode().splitlines():
            mode = line.split()[0]
            name, _, target = line[line.index(" 2023 ") + 6 :].partition(" -> ")
            lines[name] = f"{mode} {target}".strip()
    return lines


def test_stage1_holds_programs_libraries_modules_devices_and_shell(kernel: Path, shell: Path) -> None:
    image, report = assembled(kernel, shell)
    files = listed(image)
    assert files["bin"] == "lrwxrwxrwx usr/bin"
    assert files["lib64"] == "lrwxrwxrwx usr/lib64"
    assert files["dev/console"] == "crw-------"
    assert files["init"] == "-rwxr-xr-x"
    assert files["usr/bin/sh"] == "lrwxrwxrwx busybox"
    assert files["usr/sbin/modprobe"] == "lrwxrwxrwx /usr/bin/busybox"
    assert files["usr/lib/capsulekit/net.sh"] == "-rw-r--r--"
    assert files["usr/lib/capsulekit/agent/capsule-agent"] == "-rwxr-xr-x"
    assert f"usr/lib/modules/{RELEASE}/kernel/drivers/block/loop.ko" in files
    assert f"usr/lib/modules/{RELEASE}/modules.dep" in files
    assert any(name.endswith("/libcurl.so.4") for name in files)
    assert files["tmp"] == "drwxrwxrwt"
    assert files["root"] == "drwx------"
    size = sum(map(len, archives(image)))
    told = json.loads(report.record)
    assert list(told.items()) == [
        ("format", 1),
        ("arch", "amd64"),
        ("release", RELEASE),
        ("profile", "test"),
        ("commands", ["busybox", "curl", "modprobe", "mount", "sh", "tar"]),
        ("modules", ["loop"]),
        ("firmware_missing", [{"module": "loop", "firmware": "none.bin"}]),
    ]
    assert report.record in archives(image)[-1]
    assert files["usr/lib/capsulekit/stage1.json"] == "-rw-r--r--"
    remark = "kernel 6.1.0-test comes without its configuration: zstd is taken by its number"
    missing = (("loop", "none.bin"),)
    assert report == Report(len(files), size, len(image), missing, (remark,), report.record)


def test_the_image_unpacks_to_a_system_whose_programs_run(kernel: Path, shell: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for device nodes and chroot")
    root = unpack_image(assembled(kernel, shell)[0], tmp_path / "unpacked")
    script = "curl --version && curl -s file:///etc/passwd"
    done = subprocess.run(["chroot", str(root), "/bin/sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "https" in done.stdout
    assert "root:x:0:0" in done.stdout


def test_the_image_is_zstd_frames_with_their_sizes_padded_to_four_bytes(kernel: Path, shell: Path) -> None:
    image, report = assembled(kernel, shell)
    at, sizes = 0, 0
    while any(image[at:]):
        parameters = zstandard.get_frame_parameters(image[at : at + 18])
        assert parameters.window_size <= 128 << 20
        assert parameters.has_checksum
        frame = zstandard.ZstdDecompressor().decompressobj()
        assert len(frame.decompress(image[at:])) == parameters.content_size
        sizes += parameters.content_size
        at = len(image) - len(frame.unused_data)
    assert sizes == report.unpacked
    assert len(image) % 4 == 0
    assert len(image) - at < 4


ONCE_MORE = """
import sys
from pathlib import Path
from initramfs_builder.stage1 import Stage1Config, assemble
with Path(sys.argv[1]).open("wb") as out:
    binaries = ("bin/busybox", "usr/bin/curl")
    config = Stage1Config("amd64", "test", binaries, ("loop",), ("sh", "mount", "modprobe", "tar"))
    assemble(out, Path("/"), Path(sys.argv[2]), "6.1.0-test", config, 1_700_000_000, 1, Path(sys.argv[3]))
"""


def test_the_same_input_gives_the_same_bytes_whatever_the_surroundings(
    kernel: Path, shell: Path, tmp_path: Path
) -> None:
    image, _ = assembled(kernel, shell)
    moved = tmp_path / "moved"
    moved.mkdir()
    for tree in (kernel, shell):
        copy = ["cp", "-r", "--no-preserve=all", str(tree), str(moved)]  # other times, modes and paths
        subprocess.run(["sh", "-c", 'umask 077; exec "$@"', "sh", *copy], check=True)
    out = moved / "again.img"
    argv = [sys.executable, "-c", ONCE_MORE, str(out), str(moved / "kernel"), str(moved / "shell")]
    # One processor only, where taskset allows it: the bytes must not follow the number of cores.
    env = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    wrapped = ["sh", "-c", 'umask 077; exec taskset 1 "$@"', "sh", *argv]
    subprocess.run(wrapped, check=True, cwd=moved, env=env)
    assert out.read_bytes() == image


def test_a_real_program_wins_over_the_applet_of_its_name(kernel: Path, shell: Path) -> None:
    image, _ = assembled(kernel, shell, replace(CONFIG, binaries=(*CONFIG.binaries, "bin/tar")))
    assert listed(image)["usr/bin/tar"] == "-rwxr-xr-x"


def test_a_command_the_shell_needs_and_the_image_lacks_is_an_error(kernel: Path, shell: Path) -> None:
    (shell / "lib/disk.sh").write_text("# needs: mount blkid\n")
    with pytest.raises(CapsulekitError, match=r"shell/lib/disk\.sh needs the command blkid"):
        assembled(kernel, shell)


def test_an_applet_busybox_does_not_have_is_an_error(kernel: Path, shell: Path) -> None:
    with pytest.raises(CapsulekitError, match="has no applet frobnicate"):
        assembled(kernel, shell, replace(CONFIG, applets=("frobnicate",)))


def test_every_applet_busybox_lists_is_known(kernel: Path, shell: Path) -> None:
    applets = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    image, _ = assembled(kernel, shell, replace(CONFIG, applets=tuple(applets)))
    assert {f"usr/bin/{applet}" for applet in applets} <= set(listed(image))


def test_applets_without_busybox_are_an_error(kernel: Path, shell: Path) -> None:
    with pytest.raises(CapsulekitError, match="busybox is not among the binaries"):
        assembled(kernel, shell, replace(CONFIG, binaries=("usr/bin/curl",)))


def test_further_files_and_folders_are_taken_as_they_are(kernel: Path, shell: Path) -> None:
    image, _ = assembled(kernel, shell, replace(CONFIG, files=("etc/ld.so.conf.d", "etc/ld.so.conf")))
    names = {f"etc/ld.so.conf.d/{entry.name}" for entry in Path("/etc/ld.so.conf.d").iterdir()}
    assert names | {"etc/ld.so.conf"} <= set(listed(image))


def test_a_file_that_is_not_in_the_tree_is_an_error(kernel: Path, shell: Path) -> None:
    with pytest.raises(CapsulekitError, match="etc/none is not in"):
        assembled(kernel, shell, replace(CONFIG, files=("etc/none",)))


def test_files_may_be_globs_with_exceptions(kernel: Path, shell: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree("/etc/ld.so.conf.d", tree / "etc/conf")
    for path in ("share/a/keep.txt", "share/a/drop.md", "share/b/deep/keep.txt", "share/b/keep.md"):
        (tree / "usr" / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / "usr" / path).write_text(path)

    def taken(*files: str) -> set[str]:
        archive = Archive()
        add_paths(archive, Tree(tree), Patterns(files))
        return {entry.path for entry in archive.entries() if stat.S_ISREG(entry.mode)}

    assert taken("usr/share/*.txt") == {"usr/share/a/keep.txt", "usr/share/b/deep/keep.txt"}
    assert taken("usr/share", "!usr/share/b*") == {"usr/share/a/keep.txt", "usr/share/a/drop.md"}
    assert taken("/usr/share/?/*", "!*.md") == {"usr/share/a/keep.txt", "usr/share/b/deep/keep.txt"}
    assert taken("usr/share/a/drop.md", "!*.md") == {"usr/share/a/drop.md"}, "it is named"
    for nothing in ("usr/none/*", "usr/share/*.none"):
        with pytest.raises(CapsulekitError, match="finds nothing in"):
            taken(nothing)


def test_a_folder_with_links_to_what_holds_it_is_taken_once(tmp_path: Path) -> None:
    for path in ("usr/bin/tool", "usr/share/a/file", "usr/share/b/other"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    for path, target in (("bin/X11", "."), ("share/a/up", ".."), ("share/a/beside", "../b"), ("share/b/root", "/")):
        (tmp_path / "usr" / path).symlink_to(target)
    archive = Archive()
    add_paths(archive, Tree(tmp_path), Patterns(("usr/bin/*", "usr/share/a")))
    held = {entry.path: entry.target for entry in archive.entries() if not stat.S_ISDIR(entry.mode)}
    assert held == {
        "usr/bin/tool": None, "usr/bin/X11": ".", "usr/share/a/file": None, "usr/share/a/up": "..",
        "usr/share/a/beside": "../b", "usr/share/b/other": None, "usr/share/b/root": "../../..",
    }  # fmt: skip


def test_with_kmods_modprobe_modules_stay_compressed_and_outside_of_the_frames(kernel: Path, shell: Path) -> None:
    plain, _ = assembled(kernel, shell)
    assert len(archives(plain)) == 1
    config = replace(CONFIG, binaries=(*CONFIG.binaries, "sbin/modprobe"), applets=("sh", "mount", "tar"))
    image, _ = assembled(kernel, shell, config)
    stored, rest = archives(image)
    base = f"usr/lib/modules/{RELEASE}"
    assert f"{base}/kernel/drivers/block/loop.ko.zst\0".encode() in stored
    assert image.startswith(stored)
    files = listed(image)
    assert files["usr/sbin/modprobe"].startswith("l")
    assert f"{base}/kernel/drivers/block/loop.ko" not in files
    assert {f"{base}/modules.{name}.bin" for name in ("dep", "alias", "symbols", "builtin")} <= set(files)
    assert b"kernel/drivers/block/loop.ko.zst:\n" in rest


def test_microcode_comes_first_and_uncompressed(kernel: Path, shell: Path) -> None:
    folder = kernel / "lib/firmware/amd-ucode"
    folder.mkdir(parents=True)
    (folder / "microcode_amd.bin").write_bytes(b"DMA\0code")
    plain, _ = assembled(kernel, shell)
    assert "kernel" not in listed(plain)
    image, report = assembled(kernel, shell, replace(CONFIG, microcode=("amd-ucode/*",)))
    assert b"kernel/x86/microcode/AuthenticAMD.bin\0" in archives(image)[0]
    assert image.startswith(archives(image)[0])
    assert report.unpacked == sum(map(len, archives(image)))


def test_an_old_kernel_gets_what_its_configuration_says(kernel: Path, shell: Path) -> None:
    (kernel / "boot").mkdir()
    (kernel / f"boot/config-{RELEASE}").write_text("CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_GZIP=y\n")
    image, report = assembled(kernel, shell)
    assert image.startswith(b"\x1f\x8b")
    assert report.remarks == ()
    assert "init" in listed(image)


def test_an_exception_that_matches_nothing_is_remarked(kernel: Path, shell: Path) -> None:
    _, report = assembled(kernel, shell, replace(CONFIG, modules=("loop", "!lop")))
    assert '"!lop" matches no module of kernel 6.1.0-test' in report.remarks


def test_shell_without_init_is_an_error(kernel: Path, shell: Path) -> None:
    (shell / "init").unlink()
    with pytest.raises(CapsulekitError, match="has no init"):
        assembled(kernel, shell)


def test_a_full_disk_is_an_error_not_a_short_image(kernel: Path, shell: Path) -> None:
    with (
        pytest.raises(CapsulekitError, match="No space left on device"),
        Path("/dev/full").open("wb", buffering=0) as out,
    ):
        assemble(out, Path("/"), kernel, RELEASE, CONFIG, MTIME, level=1, shell=shell)


def test_a_level_whose_window_the_kernel_may_refuse_is_an_error() -> None:
    with pytest.raises(CapsulekitError, match="not within 1 to 19"):
        pack(io.BytesIO(), Archive(), Packing(MTIME, 22))


def test_two_different_things_at_one_path_are_an_error() -> None:
    archive = Archive()
    archive.add(regular("a", b"1"))
    archive.add(regular("a", b"1"))
    with pytest.raises(CapsulekitError, match="two different things at a"):
        archive.add(regular("a", b"2"))


def test_stage2_is_small_and_holds_only_what_it_needs(kernel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage2"
    folder.mkdir()
    (folder / "init").write_text("#!/bin/sh\n# needs: mount switch_root\n")
    out = io.BytesIO()
    assemble_stage2(out, Path("/"), kernel, RELEASE, ["loop"], MTIME, shell=folder)
    files = listed(out.getvalue())
    assert files["init"] == "-rwxr-xr-x"
    assert "usr/bin/switch_root" in files
    assert not any(name.endswith(".so") or ".so." in name for name in files)
    assert len(out.getvalue()) % 4 == 0
    assert len(out.getvalue()) < 2_000_000


def test_the_shipped_shell_is_found() -> None:
    assert shell_dir("stage1").name == "stage1"
    assert shell_dir("stage2").name == "stage2"
    with pytest.raises(CapsulekitError, match="stage9"):
        shell_dir("stage9")
