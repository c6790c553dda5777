"""Which kernel modules an image gets; the modules are small ELF objects, the indexes are depmod's own."""

from __future__ import annotations

import lzma
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.modules import ModuleTree, read_modinfo

RELEASE = "6.1.0-test"


def module(folder: Path, file: str, *info: str, gives: str = "", wants: tuple[str, ...] = ()) -> Path:
    """Compile a module with these .modinfo lines, a symbol it exports and symbols it uses."""
    out = folder / "kernel" / file
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ['.section .modinfo,"a"', *(f'.asciz "{line}"' for line in info), '.asciz "license=GPL"']
    if gives:
        lines += ['.section __ksymtab_strings,"a"', f'.asciz "{gives}"', ".text", f".globl {gives}", f"{gives}:", "nop"]
    lines += [".data", *(f".quad {symbol}" for symbol in wants)]
    source = ("\n".join(lines) + "\n").encode()
    subprocess.run(["gcc", "-c", "-x", "assembler", "-", "-o", str(out)], input=source, check=True)
    return out


def depmod(root: Path) -> None:
    subprocess.run(["depmod", "-b", str(root), RELEASE], check=True, capture_output=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("kernel")
    folder = root / "lib/modules" / RELEASE
    module(folder, "lib/base.ko", gives="base_call")
    module(folder, "net/failover.ko", gives="failover_call", wants=("base_call",))
    module(folder, "drivers/net/virtio-net.ko", "alias=virtio:d00000001v*", wants=("failover_call",))
    module(folder, "drivers/net/r8169.ko", "softdep=pre: realtek post: late-phy", "alias=pci:v000010ECd*sv*sd*bc*sc*i*")
    module(folder, "drivers/net/phy/realtek.ko", gives="phy_call", wants=("base_call",))
    module(folder, "drivers/net/phy/late_phy.ko")
    module(folder, "crypto/crc32c_generic.ko", "alias=crypto-crc32c", "alias=crc32c")
    module(folder, "crypto/crc32c-intel.ko", "alias=crypto-crc32c", "alias=crc32c")
    module(folder, "fs/ext9.ko", "softdep=pre: crc32c", "softdep=pre: nobody-has-this")
    module(folder, "drivers/fw.ko", "firmware=acme/one.bin", "firmware=acme/blob-*.bin", "firmware=acme/gone.bin")
    (folder / "modules.builtin").write_text("kernel/fs/binfmt_script.ko\nkernel/drivers/block/loop.ko\n")
    (folder / "modules.builtin.modinfo").write_bytes(
        b"loop.license=GPL\0loop.alias=block-major-7-*\0ext4.alias=fs-ext4\0"
    )
    (folder / "modules.order").write_text("")
    firmware = root / "lib/firmware/acme"
    firmware.mkdir(parents=True)
    for name in ("real.bin", "blob-1.bin.xz", "blob-2.bin"):
        (firmware / name).write_bytes(b"fw")
    (firmware / "one.bin").symlink_to("real.bin")
    depmod(root)
    yield root


@pytest.fixture
def kernel(shared: Path) -> ModuleTree:
    return ModuleTree(shared, RELEASE)


def names(files: tuple[str, ...]) -> list[str]:
    return [Path(file).name for file in files]


def test_a_module_comes_with_all_it_depends_on(kernel: ModuleTree) -> None:
    assert kernel.closure(["virtio_net"]) == (
        "kernel/drivers/net/virtio-net.ko",
        "kernel/lib/base.ko",
        "kernel/net/failover.ko",
    )


def test_dash_and_underscore_are_the_same(kernel: ModuleTree) -> None:
    assert kernel.closure(["virtio-net"]) == kernel.closure(["virtio_net"])


def test_soft_dependencies_before_and_after_are_taken_with_theirs(kernel: ModuleTree) -> None:
    assert names(kernel.closure(["r8169"])) == ["late_phy.ko", "realtek.ko", "r8169.ko", "base.ko"]


def test_a_soft_dependency_may_be_an_alias_of_several_and_one_nobody_has_is_passed_over(kernel: ModuleTree) -> None:
    assert names(kernel.closure(["ext9"])) == ["crc32c-intel.ko", "crc32c_generic.ko", "ext9.ko"]


def test_a_whole_modalias_finds_its_driver(kernel: ModuleTree) -> None:
    alias = "pci:v000010ECd00008168sv00001458sd0000E000bc02sc00i00"
    assert "kernel/drivers/net/r8169.ko" in kernel.closure([alias])


def test_a_name_with_a_slash_is_a_glob_over_files(kernel: ModuleTree) -> None:
    assert "kernel/drivers/net/phy/late_phy.ko" in kernel.closure(["kernel/drivers/net/phy/*"])
    with pytest.raises(CapsulekitError, match="kernel/none"):
        kernel.closure(["kernel/none/*"])


@pytest.mark.parametrize("name", ["loop", "binfmt-script", "fs-ext4"])
def test_what_is_built_in_needs_no_file(kernel: ModuleTree, name: str) -> None:
    assert kernel.closure([name]) == ()


def test_an_unknown_module_is_an_error_with_its_name(kernel: ModuleTree) -> None:
    with pytest.raises(CapsulekitError, match=r"kernel 6\.1\.0-test has no module mlx5_core"):
        kernel.closure(["mlx5_core"])


def test_weak_dependencies_are_taken_when_they_exist(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/modules" / RELEASE
    module(folder, "a.ko")
    module(folder, "b.ko")
    depmod_in_usr(tmp_path)
    (folder / "modules.weakdep").write_text("# weak\nweakdep a b not-there\n")
    assert ModuleTree(tmp_path, RELEASE).closure(["a"]) == ("kernel/a.ko", "kernel/b.ko")


def depmod_in_usr(root: Path) -> None:
    """Debian 12's depmod knows only lib/modules; a tree with usr/lib/modules alone gets the link for its sake."""
    (root / "lib").symlink_to("usr/lib")
    depmod(root)
    (root / "lib").unlink()


def test_a_missing_file_is_named_with_the_chain_that_wants_it(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules" / RELEASE
    base = module(folder, "base.ko", gives="base_call")
    module(folder, "top.ko", wants=("base_call",))
    depmod(tmp_path)
    base.unlink()
    with pytest.raises(CapsulekitError, match=r"base\.ko is missing: wanted by kernel/top\.ko, wanted by top"):
        ModuleTree(tmp_path, RELEASE).closure(["top"])


def test_a_tree_without_the_release_or_without_depmods_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="no modules of kernel"):
        ModuleTree(tmp_path, RELEASE)
    module(tmp_path / "lib/modules" / RELEASE, "a.ko")
    with pytest.raises(CapsulekitError) as error:
        ModuleTree(tmp_path, RELEASE)
    assert error.value.hint == f"run: depmod -b {tmp_path} {RELEASE}"


def test_compressed_modules_come_unpacked_under_their_plain_name(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules" / RELEASE
    plain: dict[str, bytes] = {}
    for name, pack in (("a", lzma.compress), ("b", zstandard.ZstdCompressor().compress)):
        file = module(folder, f"{name}.ko", f"firmware={name}.bin")
        plain[name] = file.read_bytes()
        suffix = {"a": ".xz", "b": ".zst"}[name]
        file.with_name(file.name + suffix).write_bytes(pack(plain[name]))
        file.unlink()
    (folder / "modules.dep").write_text("kernel/a.ko.xz: kernel/b.ko.zst\nkernel/b.ko.zst:\n")
    kernel = ModuleTree(tmp_path, RELEASE)
    files = kernel.closure(["a"])
    assert files == ("kernel/a.ko.xz", "kernel/b.ko.zst")
    assert [kernel.contents(file) for file in files] == [plain["a"], plain["b"]]
    assert [kernel.image_name(file) for file in files] == [
        f"usr/lib/modules/{RELEASE}/kernel/a.ko",
        f"usr/lib/modules/{RELEASE}/kernel/b.ko",
    ]
    assert kernel.index(files)["modules.dep"] == b"kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n"
    assert kernel.firmware(files).missing == ("a.bin", "b.bin")


def test_a_damaged_compressed_module_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "a.ko.xz"
    broken.write_bytes(b"not xz")
    with pytest.raises(CapsulekitError, match="cannot be unpacked"):
        read_modinfo(broken)


def test_firmware_is_found_by_name_and_glob_and_the_missing_is_listed(kernel: ModuleTree) -> None:
    firmware = kernel.firmware(kernel.closure(["fw"]))
    assert sorted(found.path for found in firmware.found) == [
        "usr/lib/firmware/acme/blob-1.bin.xz",
        "usr/lib/firmware/acme/blob-2.bin",
        "usr/lib/firmware/acme/real.bin",
    ]
    links = {link: target for found in firmware.found for link, target in found.links.items()}
    assert links == {"usr/lib/firmware/acme/one.bin": "real.bin"}
    assert firmware.missing == ("acme/gone.bin",)


def test_the_index_speaks_only_of_the_modules_kept(kernel: ModuleTree) -> None:
    index = kernel.index(kernel.closure(["virtio_net"]))
    assert index["modules.alias"] == b"alias virtio:d00000001v* virtio_net\n"
    assert b"r8169" not in b"".join(index.values())
    assert b"kernel/drivers/block/loop.ko" in index["modules.builtin"]


def test_busybox_modprobe_loads_soft_dependencies_first(shared: Path, tmp_path: Path) -> None:
    # busybox reads /lib/modules/$(uname -r) only, so the index is put under the running kernel's name, in a chroot.
    if os.geteuid() != 0:
        pytest.skip("needs root for chroot")
    kernel = ModuleTree(shared, RELEASE)
    folder = tmp_path / "lib/modules" / os.uname().release
    folder.mkdir(parents=True)
    for name, text in kernel.index(kernel.closure(["r8169", "virtio_net"])).items():
        (folder / name).write_bytes(text)
    (tmp_path / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tmp_path / "busybox").chmod(0o755)

    def shown(name: str) -> list[str]:
        argv = ["chroot", str(tmp_path), "/busybox", "modprobe", "-D", name]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        return [Path(line.split()[1]).name for line in done.stdout.splitlines()]

    assert shown("r8169") == ["base.ko", "realtek.ko", "r8169.ko"]
    assert shown("pci:v000010ECd00008168sv00001458sd0000E000bc02sc00i00") == ["base.ko", "realtek.ko", "r8169.ko"]
    assert shown("virtio_net") == ["base.ko", "failover.ko", "virtio-net.ko"]
