"""Stage 1 and stage 2 assembled from this machine's own programs and a small kernel tree."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from initramfs_builder.archive import Archive, Report, pack
from initramfs_builder.cpio import regular
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage1 import Stage1Config, assemble
from initramfs_builder.stage2 import assemble_stage2

RELEASE = "6.1.0-test"
MTIME = 1_700_000_000
CONFIG = Stage1Config(
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


def unpacked(image: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(image)


def listed(image: bytes) -> dict[str, str]:
    """What the real cpio lists: path → mode, with a link's target after the path's arrow as "mode target"."""
    done = subprocess.run(["cpio", "-tv", "--quiet"], input=unpacked(image), capture_output=True, check=True)
    lines = {}
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
    assert report == Report(len(files), len(unpacked(image)), len(image), ("none.bin",))


def test_the_image_unpacks_to_a_system_whose_programs_run(kernel: Path, shell: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for device nodes and chroot")
    root = tmp_path / "unpacked"
    root.mkdir()
    image, _ = assembled(kernel, shell)
    subprocess.run(["cpio", "-i", "--quiet"], input=unpacked(image), cwd=root, check=True)
    script = "curl --version && curl -s file:///etc/passwd"
    done = subprocess.run(["chroot", str(root), "/bin/sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "https" in done.stdout
    assert "root:x:0:0" in done.stdout


def test_the_image_is_one_zstd_frame_with_its_size_padded_to_four_bytes(kernel: Path, shell: Path) -> None:
    image, report = assembled(kernel, shell)
    parameters = zstandard.get_frame_parameters(image)
    assert parameters.content_size == report.unpacked
    assert parameters.window_size <= 128 << 20
    assert parameters.has_checksum
    assert len(image) % 4 == 0
    frame = zstandard.ZstdDecompressor().decompressobj()
    frame.decompress(image)
    assert frame.unused_data in (b"", b"\0", b"\0\0", b"\0\0\0")


ONCE_MORE = """
import sys
from pathlib import Path
from initramfs_builder.stage1 import Stage1Config, assemble
with Path(sys.argv[1]).open("wb") as out:
    config = Stage1Config(("bin/busybox", "usr/bin/curl"), ("loop",), ("sh", "mount", "modprobe", "tar"))
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
        pack(io.BytesIO(), Archive(), MTIME, 22)


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
