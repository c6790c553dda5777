"""Kernel modules in an edited root: whose folder, depmod over the stack, moving, adopting; with real modules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import kernel_packages
import pytest

from capsulekit.capsule.manifest import Layer
from capsulekit.edit.depmod import index_modules, modules_folder
from capsulekit.edit.modules import adopt_kernel, settle
from capsulekit.edit.restack import write_restacked
from capsulekit.edit.stack import Image
from capsulekit.errors import CapsulekitError
from capsulekit.image.listing import Layer as Squashfs
from capsulekit.image.listing import list_layer
from capsulekit.image.squashfs import layer_from_tar

EPOCH = 1_700_000_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes device nodes")


class Edit:
    """A merged root of one kernel, and what an edit has written on it: the same files below ``upper`` and in ``at``."""

    def __init__(self, folder: Path, release: str, tree: Path) -> None:
        self.at, self.upper, self.release = folder / "at", folder / "u", release
        shutil.copytree(tree / "lib/modules", self.at / "usr/lib/modules", symlinks=True)
        (self.at / "lib").symlink_to("usr/lib")
        self.upper.mkdir()
        index_modules(self.at, release)

    def take(self, module: str, to: str) -> None:
        """A module that the kernel comes with goes to another place, as if an edit had built it."""
        (old,) = (self.at / "usr/lib/modules" / self.release).rglob(f"{module}.ko*")
        data = old.read_bytes()
        old.unlink()
        self.write(to, data)

    def write(self, path: str, data: bytes) -> None:
        for top in (self.at, self.upper):
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(data)

    def add_tree(self, tree: Path) -> None:
        """A whole kernel package, as apt would have unpacked it in the edit."""
        for top in (self.at, self.upper):
            shutil.copytree(tree / "boot", top / "boot", dirs_exist_ok=True)
            shutil.copytree(tree / "lib/modules", top / "usr/lib/modules", symlinks=True, dirs_exist_ok=True)

    def modprobe(self, module: str, release: str = "") -> list[str]:
        """The files that the node's modprobe would load, innermost first; empty when it finds none."""
        words = ["modprobe", "-d", self.at, "-S", release or self.release, "--show-depends", module]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        lines = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("insmod")]
        return [line.rpartition(f"/modules/{release or self.release}/")[2] for line in lines]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two real kernels' packages, unpacked."""
    folder = tmp_path_factory.mktemp("kernels")
    return {one: kernel_packages.unpacked(kernel_packages.deb(one), folder / one) for one in ("12", "13")}


@pytest.fixture
def edit(tmp_path: Path, trees: dict[str, Path]) -> Edit:
    return Edit(tmp_path, kernel_packages.release_in(kernel_packages.deb("12")), trees["12"])


def other_release() -> str:
    return kernel_packages.release_in(kernel_packages.deb("13"))


def test_a_driver_in_updates_is_found_once_the_edit_is_settled(edit: Edit) -> None:
    edit.take("dummy", f"usr/lib/modules/{edit.release}/updates/dummy.ko")
    assert edit.modprobe("dummy") == ["kernel/drivers/net/dummy.ko"], "the index still names the old place"
    settled = settle(edit.at, edit.upper, [], edit.release)
    assert settled.touched and not settled.adopted and settled.release == edit.release
    assert edit.modprobe("dummy") == ["updates/dummy.ko"]
    before = (edit.at / f"usr/lib/modules/{edit.release}/modules.dep.bin").stat()
    settle(edit.at, edit.upper, [], edit.release)
    after = (edit.at / f"usr/lib/modules/{edit.release}/modules.dep.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns), "nothing changed, nothing written"


def test_an_edit_without_modules_touches_nothing(edit: Edit) -> None:
    edit.write("etc/motd", b"hello")
    edit.write("boot/notes", b"no kernel")
    settled = settle(edit.at, edit.upper, [], edit.release)
    assert (settled.touched, settled.leave_out, settled.lines) == (False, (), ())


def test_depmod_follows_the_roots_own_configuration_and_no_link_out_of_it(edit: Edit, tmp_path: Path) -> None:
    folder = edit.at / "usr/lib/modules" / edit.release
    driver = next(folder.rglob("dummy.ko")).read_bytes()
    edit.write(f"usr/lib/modules/{edit.release}/mine/dummy.ko", driver)
    edit.write("etc/depmod.d/mine.conf", b"search mine built-in\n")
    host = tmp_path / "host"
    host.mkdir()
    (host / "ours.ko").write_bytes(driver)
    (folder / "out").symlink_to(host)
    (folder / "linked.ko").symlink_to(host / "ours.ko")
    settle(edit.at, edit.upper, [], edit.release)
    assert edit.modprobe("dummy") == ["mine/dummy.ko"]
    dep = (folder / "modules.dep").read_text()
    assert "out/" not in dep and "linked" not in dep


def test_a_root_whose_lib_is_an_absolute_link_never_leads_depmod_to_this_host(edit: Edit) -> None:
    (edit.at / "lib").unlink()
    (edit.at / "lib").symlink_to("/usr/lib")
    edit.take("dummy", f"usr/lib/modules/{edit.release}/updates/dummy.ko")
    settle(edit.at, edit.upper, [], edit.release)
    assert "updates/dummy.ko:" in (edit.at / f"usr/lib/modules/{edit.release}/modules.dep").read_text()
    assert not Path("/usr/lib/modules", edit.release).exists()


def test_a_modules_folder_that_is_a_link_is_refused(edit: Edit) -> None:
    folder = edit.at / "usr/lib/modules" / edit.release
    folder.rename(edit.at / "elsewhere")
    folder.symlink_to("/elsewhere")
    with pytest.raises(CapsulekitError, match="is a link to /elsewhere"):
        modules_folder(edit.at, edit.release)
    with pytest.raises(CapsulekitError, match=r"holds no modules of kernel 1\.2\.3"):
        modules_folder(edit.at, "1.2.3")


# --- another kernel's folder


def test_modules_of_another_kernel_are_refused_by_name_with_the_ways_out(edit: Edit) -> None:
    for number in range(7):
        edit.write(f"usr/lib/modules/5.0.0-old/updates/{number}.ko", b"x")
    with pytest.raises(CapsulekitError) as error:
        settle(edit.at, edit.upper, [], edit.release)
    assert f"kernel 5.0.0-old, and the capsule's kernel is {edit.release}" in error.value.message
    assert "/usr/lib/modules/5.0.0-old/updates/4.ko and 2 more" in error.value.message
    assert error.value.hint is not None and "--move-modules" in error.value.hint and "--adopt" not in error.value.hint


def test_moved_modules_are_found_and_their_old_folder_is_gone(edit: Edit) -> None:
    edit.take("dummy", "usr/lib/modules/5.0.0-old/updates/dummy.ko")
    edit.write("usr/lib/modules/5.0.0-old/modules.dep", b"updates/dummy.ko:\n")
    seen = sorted(edit.at.rglob("*"))
    planned = settle(edit.at, edit.upper, [], edit.release, move=True, dry_run=True)
    assert sorted(edit.at.rglob("*")) == seen, "a dry run moves nothing"
    settled = settle(edit.at, edit.upper, [], edit.release, move=True)
    assert settled.lines == planned.lines and settled.touched
    assert f"/usr/lib/modules/5.0.0-old/updates/dummy.ko moves to the folder of kernel {edit.release}" in settled.lines
    assert not (edit.at / "usr/lib/modules/5.0.0-old").exists()
    assert edit.modprobe("dummy") == ["updates/dummy.ko"]


def test_a_module_that_was_built_for_another_kernel_is_said_to_be(edit: Edit, trees: dict[str, Path]) -> None:
    (driver,) = (trees["13"] / "lib/modules").rglob("dummy.ko*")
    edit.write(f"usr/lib/modules/{other_release()}/updates/{driver.name.replace('dummy', 'mine')}", driver.read_bytes())
    settled = settle(edit.at, edit.upper, [], edit.release, move=True, dry_run=True)
    assert any(f"built for kernel {other_release()}" in line for line in settled.lines)


def test_what_would_meet_another_file_is_not_moved(edit: Edit) -> None:
    (own,) = (edit.at / "usr/lib/modules" / edit.release).rglob("dummy.ko")
    inside = own.relative_to(edit.at / "usr/lib/modules" / edit.release).as_posix()
    edit.write(f"usr/lib/modules/5.0.0-old/{inside}", b"x")
    edit.write("usr/lib/modules/5.0.0-old/updates/a.ko", b"x")
    with pytest.raises(CapsulekitError, match=r"can't be moved: kernel .* has its own kernel/drivers/net/dummy\.ko"):
        settle(edit.at, edit.upper, [], edit.release, move=True)
    assert (edit.at / "usr/lib/modules/5.0.0-old/updates/a.ko").exists(), "nothing is moved before all can be"


def edit_layer(out: Path, tree: Path) -> Image:
    """An edit layer of the capsule, made of a tree."""
    tar = subprocess.run(
        ["tar", "-C", tree, "--xattrs-include=*", "-cf", "-", *(path.name for path in tree.iterdir())],
        check=True,
        capture_output=True,
    )
    with layer_from_tar(out, EPOCH, 1) as sink:
        sink.write(tar.stdout)
    return Image(out)


@needs_root
def test_edit_layers_below_count_and_what_was_removed_in_them_does_not(edit: Edit, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "usr/lib/modules/5.0.0-old").mkdir(parents=True)
    (lower / "usr/lib/modules/5.0.0-old/a.ko").write_bytes(b"x")
    below = edit_layer(tmp_path / "01.squashfs", lower)
    with pytest.raises(CapsulekitError, match=r"5\.0\.0-old/a\.ko"):
        settle(edit.at, edit.upper, [below], edit.release)
    folder = edit.upper / "usr/lib/modules"
    folder.mkdir(parents=True)
    os.mknod(folder / "5.0.0-old", 0o020000, os.makedev(0, 0))
    assert not settle(edit.at, edit.upper, [below], edit.release).touched
    (folder / "5.0.0-old").unlink()
    (folder / "5.0.0-old").mkdir()
    os.setxattr(folder / "5.0.0-old", "trusted.overlay.opaque", b"y")
    assert not settle(edit.at, edit.upper, [below], edit.release).touched, "an opaque folder hides what is below"


# --- adopting


def test_a_kernel_installed_in_an_edit_is_refused_unless_it_is_adopted(edit: Edit, trees: dict[str, Path]) -> None:
    edit.add_tree(trees["13"])
    new = other_release()
    with pytest.raises(CapsulekitError) as error:
        settle(edit.at, edit.upper, [], edit.release)
    assert error.value.hint is not None
    assert error.value.hint.startswith(f"to make {new} the capsule's kernel: --adopt-kernel")
    settled = settle(edit.at, edit.upper, [], edit.release, adopt=True)
    assert (settled.release, settled.adopted, settled.touched) == (new, True, True)
    assert settled.leave_out == (f"boot/vmlinuz-{new}", f"usr/lib/modules/{new}")
    assert (
        edit.modprobe("squashfs", new) or "squashfs" in (edit.at / f"usr/lib/modules/{new}/modules.builtin").read_text()
    )


def test_an_adopted_kernel_is_the_image_and_a_layer_of_its_modules_with_the_old_firmware(
    edit: Edit, trees: dict[str, Path], tmp_path: Path
) -> None:
    edit.add_tree(trees["13"])
    old = tmp_path / "old"
    for name, data in {"nic.bin": b"firmware", "gone.bin": b"x"}.items():
        (old / "usr/lib/firmware").mkdir(parents=True, exist_ok=True)
        (old / "usr/lib/firmware" / name).write_bytes(data)
    edit.write("usr/lib/firmware/nic.bin", b"firmware")
    layer = edit_layer(tmp_path / "modules-old.squashfs", old)
    new = settle(edit.at, edit.upper, [], edit.release, adopt=True).release
    (tmp_path / "work").mkdir()
    made = adopt_kernel(edit.at, new, tmp_path / "work", EPOCH, old=layer)
    assert made.image.read_bytes() == (trees["13"] / f"boot/vmlinuz-{new}").read_bytes()
    held = list_layer(Squashfs(made.layer))
    assert f"usr/lib/modules/{new}/modules.dep.bin" in held and "usr/lib/firmware/nic.bin" in held
    assert "usr/lib/firmware/gone.bin" not in held, "an edit that removed it meant it"
    assert not any(edit.release in path for path in held) and {entry.uid for entry in held.values()} == {0}
    Layer("layers/modules.squashfs", made.size, made.sha256, made.unpacked)
    (tmp_path / "again").mkdir()
    assert adopt_kernel(edit.at, new, tmp_path / "again", EPOCH, old=layer).sha256 == made.sha256


def test_only_one_kernel_can_be_adopted(edit: Edit, trees: dict[str, Path]) -> None:
    with pytest.raises(CapsulekitError, match=r"no kernel can be adopted .*: it holds no kernel with its modules"):
        settle(edit.at, edit.upper, [], edit.release, adopt=True)
    edit.add_tree(trees["13"])
    edit.write("boot/vmlinuz-5.0.0-old", b"kernel")
    edit.write("usr/lib/modules/5.0.0-old/kernel/a.ko", b"x")
    with pytest.raises(CapsulekitError, match=f"it holds 2 kernels: 5.0.0-old, {other_release().replace('+', '.')}"):
        settle(edit.at, edit.upper, [], edit.release, adopt=True)


def test_a_driver_for_the_kernel_that_goes_is_refused_when_another_is_adopted(
    edit: Edit, trees: dict[str, Path]
) -> None:
    edit.add_tree(trees["13"])
    edit.write(f"usr/lib/modules/{edit.release}/updates/mine.ko", b"x")
    with pytest.raises(CapsulekitError, match=f"modules of kernel {edit.release}, and the capsule's kernel is"):
        settle(edit.at, edit.upper, [], edit.release, adopt=True)


# --- a layer for a swapped kernel


@needs_root
def test_a_restacked_layer_moves_by_a_whiteout_and_new_indexes(edit: Edit, tmp_path: Path) -> None:
    from capsulekit.edit.modules import foreign_modules, upper_listing

    edit.take("dummy", "usr/lib/modules/5.0.0-old/updates/dummy.ko")
    foreign = foreign_modules([upper_listing(edit.upper)], edit.release)
    seen = sorted(str(path) for path in edit.at.rglob("*"))
    out = tmp_path / "02-edit.squashfs"
    assert write_restacked(out, edit.at, foreign, edit.release, EPOCH)
    assert sorted(str(path) for path in edit.at.rglob("*")) == seen, "the root is only read"
    held = list_layer(Squashfs(out))
    assert held["usr/lib/modules/5.0.0-old"].kind == "folder", "that kernel may come back"
    assert held["usr/lib/modules/5.0.0-old/updates/dummy.ko"].target == "0:0"
    assert f"usr/lib/modules/{edit.release}/updates/dummy.ko" in held
    assert f"usr/lib/modules/{edit.release}/modules.dep.bin" in held
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-f", "-d", tmp_path / "x", out, f"usr/lib/modules/{edit.release}"], check=True
    )
    shutil.copytree(tmp_path / "x", edit.at, dirs_exist_ok=True)
    assert edit.modprobe("dummy") == ["updates/dummy.ko"]
    assert write_restacked(tmp_path / "03.squashfs", edit.at, [], edit.release, EPOCH) is None, "all is right already"
