"""Stage 2's programs come from any distribution: busybox where there is one, otherwise the tree's own commands."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from images import archives, names_in, unpack_image
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.indexes import indexes
from initramfs_builder.modules import Modprobe, ModuleTree
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage import needed_commands
from initramfs_builder.stage2 import PACKAGES, assemble_stage2
from own_programs import RELEASE, add_kernel, copy_programs, merged_root, root_with

MTIME = 1_700_000_000
MODULES = ("loop", "squashfs", "overlay")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for device nodes and chroot")


def image_of(root: Path, hybrid: bool = False) -> bytes:
    out = io.BytesIO()
    assemble_stage2(out, root, root, RELEASE, MODULES, MTIME, level=1, hybrid=hybrid)
    return out.getvalue()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for shell in ("busybox", "dash", "bash"):
        made[shell] = root_with(tmp_path_factory.mktemp("root") / shell, shell)
        add_kernel(made[shell])
    return made


def test_every_command_of_the_shell_has_a_package_that_is_named_when_it_lacks(tmp_path: Path) -> None:
    root = merged_root(tmp_path / "root")
    add_kernel(root)
    copy_programs(root, ["usr/bin/busybox"])
    with pytest.raises(CapsulekitError, match="stage 2 needs the command setfacl, which is not in") as error:
        image_of(root)
    assert error.value.hint == "install there: acl"
    needed = {command for name in ("stage2", "stage2-hybrid") for _, command in needed_commands(shell_dir(name))}
    assert set(PACKAGES) <= needed


def test_only_a_hybrid_capsules_image_can_bring_up_a_network(roots: dict[str, Path], tmp_path: Path) -> None:
    for shell in ("busybox", "dash"):
        plain, hybrid = names_in(image_of(roots[shell])), names_in(image_of(roots[shell], hybrid=True))
        assert hybrid - plain >= {"usr/lib/capsulekit/hybrid.sh", "usr/lib/capsulekit/nic.sh"}
        assert any(name.endswith("bin/ip") for name in hybrid - plain)
        assert not [name for name in hybrid - plain if ".ko" in name], "the drivers are in the modules layer"
    root = tmp_path / "root"
    shutil.copytree(roots["dash"], root, symlinks=True)
    (root / "usr/sbin/ip").unlink()
    (root / "usr/bin/ip").unlink(missing_ok=True)
    image_of(root)
    with pytest.raises(CapsulekitError, match="needs the command ip, which") as error:
        image_of(root, hybrid=True)
    assert error.value.hint is not None and "iproute" in error.value.hint


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_without_busybox_every_command_is_the_trees_own_with_what_it_loads(roots: dict[str, Path], shell: str) -> None:
    names = names_in(image_of(roots[shell]))
    assert not any("busybox" in name for name in names)
    for _, command in needed_commands(shell_dir("stage2")):
        assert f"usr/bin/{command}" in names or f"usr/sbin/{command}" in names
    assert f"usr/bin/{shell}" in names
    assert {"usr/bin/sh", "usr/sbin/modprobe"} <= names
    assert any(name.endswith("/libmount.so.1") for name in names)
    assert f"usr/lib/modules/{RELEASE}/modules.dep.bin" in names


def test_with_busybox_nothing_but_setfacl_is_added_and_no_binary_index(roots: dict[str, Path]) -> None:
    names = names_in(image_of(roots["busybox"]))
    assert {"usr/bin/mount", "usr/bin/switch_root", "usr/bin/sh", "usr/sbin/modprobe", "usr/bin/reboot"} <= names
    assert "usr/bin/setfacl" in names
    assert not any(name.endswith(".bin") for name in names)
    assert not any("libmount" in name for name in names)


@needs_root
@pytest.mark.parametrize("shell", ["busybox", "dash", "bash"])
def test_every_command_of_the_unpacked_image_runs(roots: dict[str, Path], shell: str, tmp_path: Path) -> None:
    root = unpack_image(image_of(roots[shell], hybrid=True), tmp_path / "image")
    done = subprocess.run(["chroot", root, "sh", "-c", "echo fine"], capture_output=True, text=True)
    assert done.stdout == "fine\n"
    folders = (shell_dir("stage2"), shell_dir("stage2-hybrid"))
    for command in {command for folder in folders for _, command in needed_commands(folder)} - {"sh", "ip"}:
        done = subprocess.run(["chroot", root, command, "--help"], capture_output=True, text=True)
        assert done.returncode in (0, 1), f"{command}: {done.stderr}"  # 126 and 127: cannot be run
        assert "usage" in (done.stdout + done.stderr).lower(), command
    done = subprocess.run(["chroot", root, "ip", "link", "show", "lo"], capture_output=True, text=True)
    assert "LOOPBACK" in done.stdout, done.stderr


@needs_root
@pytest.mark.parametrize("shell", ["busybox", "dash"])
@pytest.mark.parametrize("asked", ["overlay", "fs-overlay"])
def test_modprobe_of_the_image_finds_a_module_with_all_it_needs(
    roots: dict[str, Path], shell: str, asked: str, tmp_path: Path
) -> None:
    root = unpack_image(image_of(roots[shell]), tmp_path / "image")
    said = "-D" if shell == "busybox" else "--show-depends"
    # modprobe looks below the running kernel's release.
    modules = root / "usr/lib/modules"
    (modules / os.uname().release).symlink_to(RELEASE)
    done = subprocess.run(["chroot", root, "modprobe", said, asked], capture_output=True, text=True, check=True)
    loaded = [line.split()[1].rpartition("/")[2] for line in done.stdout.splitlines()]
    kept = "" if shell == "busybox" else ".zst"  # kmod's modprobe unpacks it
    assert loaded[-3:] == [f"{name}.ko{kept}" for name in ("loop", "squashfs", "overlay")]


def test_binary_indexes_of_names_are_the_ones_that_depmod_writes(roots: dict[str, Path]) -> None:
    kernel = ModuleTree(roots["dash"], RELEASE)
    made = indexes(kernel, kernel.closure(["kernel/*"]), Modprobe(kmod=True))
    folder = roots["dash"] / "usr/lib/modules" / RELEASE
    assert made["modules.builtin.bin"] == (folder / "modules.builtin.bin").read_bytes()
    assert len(made["modules.alias.bin"]) == (folder / "modules.alias.bin").stat().st_size


def test_a_command_that_is_a_script_brings_its_interpreter(roots: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(roots["bash"], root, symlinks=True)
    # As in a distribution where coreutils is one program.
    (root / "usr/bin/cat").rename(root / "usr/bin/coreutils")
    (root / "usr/bin/cat").write_text("#!/usr/bin/coreutils --coreutils-prog-shebang=cat\n")
    (root / "usr/bin/cat").chmod(0o755)
    assert {"usr/bin/cat", "usr/bin/coreutils"} <= names_in(image_of(root))


def test_a_tree_without_sh_has_its_dash_or_bash_stand_in(roots: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(roots["bash"], root, symlinks=True)
    (root / "usr/bin/sh").unlink()
    image = image_of(root)
    assert {"usr/bin/sh", "usr/bin/bash"} <= names_in(image)
    (root / "usr/bin/bash").unlink()
    with pytest.raises(CapsulekitError, match="needs the command sh"):
        image_of(root)


def test_a_tree_whose_sbin_is_bin_gives_the_same_commands(roots: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(roots["dash"], root, symlinks=True)
    for path in (root / "usr/sbin").iterdir():
        path.rename(root / "usr/bin" / path.name)
    (root / "usr/sbin").rmdir()
    (root / "usr/sbin").symlink_to("bin")
    names = names_in(image_of(root))
    assert {"usr/bin/switch_root", "usr/bin/losetup", "usr/sbin/modprobe"} <= names


def test_a_module_or_an_index_that_is_a_link_out_of_the_tree_is_not_followed(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(roots["dash"], root, symlinks=True)
    folder = root / "usr/lib/modules" / RELEASE
    secret = tmp_path / "secret"
    secret.write_text("kernel/only-of-the-host.ko\n")
    (folder / "modules.builtin").unlink()
    (folder / "modules.builtin").symlink_to(secret)
    assert b"only-of-the-host" not in b"".join(archives(image_of(root)))
    module = folder / "kernel/fs/overlayfs/overlay.ko"
    module.rename(tmp_path / "overlay.ko")
    module.symlink_to(tmp_path / "overlay.ko")
    with pytest.raises(CapsulekitError, match=r"overlay\.ko is missing"):
        image_of(root)
