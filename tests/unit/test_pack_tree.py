"""What `pack` knows of a tree before it packs it: the system in it, what a layer could not hold, and its tar."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from own_programs import RELEASE
from packed_tree import packable

from capsulekit.errors import CapsulekitError
from capsulekit.image.survey import survey
from capsulekit.image.system import identify
from capsulekit.image.tree import literal, tar_of
from capsulekit.pack import LEFT_OUT
from capsulekit.rootfs.globs import regex
from capsulekit.rootfs.table import TABLE

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packable(tmp_path_factory.mktemp("made") / "tree")


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "tree", symlinks=True)
    return tmp_path / "tree"


# --- the system


def test_distribution_machine_kernel_and_init_are_read_from_the_tree(tree: Path) -> None:
    found = identify(tree, "/sbin/init", None)
    assert (found.distro, found.release, found.arch, found.family) == ("testos", "7.2", "amd64", "any")
    assert (found.init_file, found.kernel.release) == ("usr/sbin/init", RELEASE)
    assert (found.kernel.modules, found.kernel.image.name) == (f"usr/lib/modules/{RELEASE}", f"vmlinuz-{RELEASE}")


@pytest.mark.parametrize(
    ("database", "family", "arch"),
    [
        ("var/lib/dpkg/status", "deb", "amd64"),
        ("usr/lib/sysimage/rpm/rpmdb.sqlite", "rpm", "x86_64"),
        ("var/lib/rpm/Packages", "rpm", "x86_64"),
    ],
)
def test_the_family_is_that_of_the_package_database_and_names_the_machine(
    tree: Path, database: str, family: str, arch: str
) -> None:
    (tree / database).parent.mkdir(parents=True, exist_ok=True)
    (tree / database).write_text("")
    found = identify(tree, "/sbin/init", None)
    assert (found.family, found.arch) == (family, arch)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ID='fedora'\nVERSION_ID=42\n", ("fedora", "42")),
        ("# ID=no\nID=arch\nBUILD_ID=rolling\n", ("arch", "rolling")),
        ('ID=debian\nVERSION_CODENAME="sid"\nVERSION_ID=""\n', ("debian", "sid")),
        ('ID="unclosed\nnonsense\n', ('"unclosed', "unversioned")),
        ("", ("linux", "unversioned")),
    ],
)
def test_os_release_is_read_as_its_manual_says(tree: Path, text: str, named: tuple[str, str]) -> None:
    (tree / "etc/os-release").write_text(text)
    found = identify(tree, "/sbin/init", None)
    assert (found.distro, found.release) == named


def test_os_release_is_found_by_a_link_that_stays_in_the_tree(tree: Path) -> None:
    (tree / "etc/os-release").rename(tree / "usr/lib/os-release")
    (tree / "etc/os-release").symlink_to("/usr/lib/os-release")
    assert identify(tree, "/sbin/init", None).distro == "testos"


def test_a_kernel_beside_its_modules_is_found(tree: Path) -> None:
    (tree / f"boot/vmlinuz-{RELEASE}").rename(tree / f"usr/lib/modules/{RELEASE}/vmlinuz")
    kernel = identify(tree, "/sbin/init", None).kernel
    assert (kernel.release, kernel.image) == (RELEASE, tree / f"usr/lib/modules/{RELEASE}/vmlinuz")


def test_one_kernel_in_both_places_is_one_and_an_image_without_modules_is_none(tree: Path) -> None:
    shutil.copy(tree / f"boot/vmlinuz-{RELEASE}", tree / f"usr/lib/modules/{RELEASE}/vmlinuz")
    (tree / "boot/vmlinuz-0-rescue-abc").write_bytes(b"kernel")
    (tree / "usr/lib/modules/5.0-only-modules").mkdir()
    assert identify(tree, "/sbin/init", None).kernel.release == RELEASE


def test_modules_of_a_tree_without_merged_usr_are_found_where_they_are(tree: Path) -> None:
    (tree / "lib").unlink()
    (tree / "lib").mkdir()
    (tree / "usr/lib/modules").rename(tree / "lib/modules")
    assert identify(tree, "/sbin/init", None).kernel.modules == f"lib/modules/{RELEASE}"


def no_init(tree: Path) -> None:
    (tree / "sbin/init").unlink()


def init_out_of_the_tree(tree: Path) -> None:
    (tree / "sbin/init").unlink()
    (tree / "sbin/init").symlink_to(os.path.relpath("/usr/bin/dash", tree / "usr/sbin"))


def no_kernel(tree: Path) -> None:
    (tree / f"boot/vmlinuz-{RELEASE}").unlink()


def no_modules(tree: Path) -> None:
    shutil.rmtree(tree / f"usr/lib/modules/{RELEASE}")


def two_kernels(tree: Path) -> None:
    (tree / "boot/vmlinuz-5.10").write_bytes(b"kernel")
    (tree / "usr/lib/modules/5.10").mkdir()


def modules_elsewhere(tree: Path) -> None:
    (tree / f"usr/lib/modules/{RELEASE}").rename(tree / "opt")
    (tree / f"usr/lib/modules/{RELEASE}").symlink_to("/opt")


def no_program(tree: Path) -> None:
    (tree / "usr/bin/busybox").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_init, "has no /sbin/init to start"),
        (init_out_of_the_tree, "has no /sbin/init to start"),
        (no_kernel, r"has no kernel \(boot/vmlinuz-RELEASE\)"),
        (no_modules, f"has no modules for its kernel {RELEASE}"),
        (two_kernels, f"has 2 kernels: 5.10, {RELEASE}"),
        (modules_elsewhere, "are a link to /opt"),
        (no_program, "holds no program that says for which machine it is"),
    ],
)
def test_a_tree_that_is_no_bootable_system_is_refused_saying_why(
    tree: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(tree)
    with pytest.raises(CapsulekitError, match=said) as error:
        identify(tree, "/sbin/init", None)
    assert error.value.hint


def test_a_kernel_is_chosen_by_name_and_an_unknown_one_refused_with_those_there_are(tree: Path) -> None:
    two_kernels(tree)
    assert identify(tree, "/sbin/init", "5.10").kernel.release == "5.10"
    with pytest.raises(CapsulekitError, match="has no kernel 4") as error:
        identify(tree, "/sbin/init", "4")
    assert error.value.hint == f"kernels there: 5.10, {RELEASE}"


# --- the survey


def test_newest_mtime_paths_and_bytes_are_counted_without_what_is_left_out(tmp_path: Path) -> None:
    for name, when in (("a", 100), ("b/c", 2_000_000_000), ("tmp/new", 3_000_000_000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, (when, when))
    os.utime(tmp_path / "b", (1, 1))
    seen = survey(tmp_path, ("tmp",))
    assert (seen.newest, seen.paths, seen.size, seen.mounts) == (2_000_000_000, 3, 10, ())


def a_socket(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tree / "there"))


def a_linked_fifo(tree: Path) -> None:
    os.mkfifo(tree / "there")
    (tree / "there again").hardlink_to(tree / "there")


def an_odd_attribute(tree: Path) -> None:
    (tree / "there").write_bytes(b"")
    os.setxattr(tree / "there", "user.a=b", b"1")


def too_deep(tree: Path) -> None:
    fd = os.open(tree, os.O_RDONLY)
    for name in ["there", *["d" * 250] * 17]:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (a_socket, "is a socket"),
        (a_linked_fifo, "is a fifo of several names"),
        (an_odd_attribute, "an extended attribute that a layer can't hold"),
        (too_deep, "has a path that no program could open"),
    ],
)
def test_what_a_layer_could_not_hold_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path)
    with pytest.raises(CapsulekitError, match=f"(?s)^/there.*{said}") as error:
        survey(tmp_path)
    assert error.value.hint


def test_an_odd_name_is_told_on_one_line(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fsencode(tmp_path) + b"/a\nb\xff")
    with pytest.raises(CapsulekitError) as error:
        survey(tmp_path)
    assert error.value.message.startswith("/a\\nb\\xff in ")


@needs_root
def test_what_is_mounted_is_named_and_not_looked_into(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "with blank").mkdir(parents=True)
    (tree / "file").write_bytes(b"")
    (tree / "same").mkdir()
    mounts = [["-t", "tmpfs", "none", tree / "with blank"], ["--bind", "/etc/passwd", tree / "file"]]
    mounts.append(["--bind", tmp_path, tree / "same"])  # the same file system
    try:
        for words in mounts:
            subprocess.run(["mount", *words], check=True)
        (tree / "with blank/in it").write_bytes(b"1")
        seen = survey(tree)
        assert seen.mounts == ("file", "same", "with blank")
        assert seen.size == 0
    finally:
        for place in ("with blank", "file", "same"):
            subprocess.run(["umount", "-q", tree / place], check=False)


def test_what_is_left_out_unread_is_what_the_normaliser_takes_out_whole() -> None:
    removed = [re.compile(regex(row.glob)) for row in TABLE if row.action == "remove"]
    for folder in LEFT_OUT:
        assert any(rule.fullmatch(f"{folder}/x") for rule in removed), folder


# --- the tar


def members(root: Path, names: list[str], log: Path, **how: list[str]) -> list[str]:
    with tar_of(root, names, log, **how) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[arg-type]
        return [member.name for member in tar]


def test_names_are_sorted_and_what_is_left_out_is_not_read(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("b", "a", "x*y", "xzy", "sub/c", "sub/d/e", "-dash", "tmp/f"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"1")
    left = [literal("x*y"), "tmp/*", literal("sub/d")]
    found = members(tree, ["."], tmp_path / "log", leave_out=left)
    assert found == [".", "./-dash", "./a", "./b", "./sub", "./sub/c", "./tmp", "./xzy"]
    assert members(tree, ["sub/d"], tmp_path / "log", alone=["sub"]) == ["./sub", "./sub/d", "./sub/d/e"]


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "big").write_bytes(bytes(20 << 20))  # more than all the pipes hold
    with (
        pytest.raises(CapsulekitError, match=r"the tree changed while it was read: \./big"),
        tar_of(tree, ["."], tmp_path / "log") as stream,
    ):
        stream.read(1)
        with (tree / "big").open("ab") as file:
            file.write(b"more")
    with tar_of(tree, ["."], tmp_path / "log", changing=True) as stream:
        stream.read(1)
        (tree / "big").write_bytes(b"less")


def test_a_reader_that_fails_ends_tar_and_its_own_error_is_the_one_that_is_seen(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20 << 20))
    with pytest.raises(CapsulekitError, match=r"^my own$"), tar_of(tmp_path, ["big"], tmp_path / "log"):
        raise CapsulekitError("my own")


def test_a_folder_that_vanished_is_told_with_tars_own_words(tmp_path: Path) -> None:
    with (
        pytest.raises(CapsulekitError, match=r"could not read the folder: .*none.*No such file"),
        tar_of(tmp_path, ["none"], tmp_path / "log") as stream,
    ):
        stream.read()
