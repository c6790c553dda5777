"""Which kernel modules an image gets; the modules are small ELF objects, the indexes are depmod's own."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from initramfs_builder.cpio import Slice
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.indexes import indexes
from initramfs_builder.modulefile import read_modinfo
from initramfs_builder.modules import BUSYBOX, Modprobe, ModuleTree
from initramfs_builder.patterns import Patterns
from initramfs_builder.store import Store, passing
from initramfs_builder.tree import Tree

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


@pytest.mark.parametrize("name", ["loop", "binfmt-script", "fs-ext4", "block-major-7-3"])
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
    with passing() as store:
        kept = kernel.all_contents(files, BUSYBOX, store, 3)
    base = f"usr/lib/modules/{RELEASE}/kernel"
    assert kept == [(f"{base}/a.ko", plain["a"]), (f"{base}/b.ko", plain["b"])]
    assert indexes(kernel, files)["modules.dep"] == b"kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n"
    assert kernel.firmware(files).missing == (("a", "a.bin"), ("b", "b.bin"))


DAMAGED = {
    "nothing": b"",
    "no ELF": b"not a module at all, but long enough to have a header if it were one, and some more",
    "a header alone": b"\x7fELF\x02\x01" + bytes(58),
    "cut short": None,
    "sections far away": b"\x7fELF\x02\x01" + bytes(34) + b"\xff" * 8 + bytes(10) + b"\x40\0\x05\0\x04\0",
    "of no class": b"\x7fELF\x07\x01" + bytes(58),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_module_is_an_error_or_says_nothing(shared: Path, tmp_path: Path, data: bytes | None) -> None:
    whole = (shared / "lib/modules" / RELEASE / "kernel/drivers/fw.ko").read_bytes()
    broken = tmp_path / "a.ko"
    broken.write_bytes(data if data is not None else whole[: len(whole) // 2])
    try:
        assert read_modinfo(broken) == []
    except CapsulekitError as error:
        assert "is not a kernel module" in error.message


def test_a_compressed_module_that_is_cut_short_is_an_error_also_behind_its_sections(tmp_path: Path) -> None:
    path = module(tmp_path, "x.ko")
    packed = zstandard.ZstdCompressor().compress(path.read_bytes() + os.urandom(9000))
    path.with_suffix(".ko.zst").write_bytes(packed[:-4000])
    with pytest.raises(CapsulekitError, match=r"x\.ko\.zst cannot be unpacked: it is cut short"):
        read_modinfo(path.with_suffix(".ko.zst"))
    packed = gzip.compress(path.read_bytes())
    path.with_suffix(".ko.gz").write_bytes(packed[:20] + bytes(20) + packed[40:])
    with pytest.raises(CapsulekitError, match=r"x\.ko\.gz cannot be unpacked"):
        read_modinfo(path.with_suffix(".ko.gz"))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("softdep", "softdep"), ("softdep", "x"), ("weakdep", "weakdep"), ("alias", "alias"), ("alias", "alias x"),
        ("alias", "alias dmi:svn Two Words* only"),
    ],
)  # fmt: skip
def test_a_line_of_depmod_without_all_its_words_is_passed_over(tmp_path: Path, name: str, line: str) -> None:
    folder = tmp_path / "lib/modules" / RELEASE
    module(folder, "only.ko", "alias=pci:v1*")
    depmod(tmp_path)
    before = indexes(ModuleTree(tmp_path, RELEASE), ["kernel/only.ko"], Modprobe(True))
    with (folder / f"modules.{name}").open("a") as file:
        file.write(f"{line}\n")
    kernel = ModuleTree(tmp_path, RELEASE)
    assert indexes(kernel, kernel.closure(["only"]), Modprobe(True)) == before


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
    assert firmware.missing == (("fw", "acme/gone.bin"),)


def test_an_exception_takes_out_what_globs_found_but_not_what_is_named_or_needed(kernel: ModuleTree) -> None:
    net = "kernel/drivers/net/*"
    assert names(kernel.closure([net])) == ["late_phy.ko", "realtek.ko", "r8169.ko", "virtio-net.ko", "base.ko",
                                            "failover.ko"]  # fmt: skip
    without = ["virtio-net.ko", "base.ko", "failover.ko"]
    assert names(kernel.closure([net, "!kernel/drivers/net/phy/*", "!r8169"])) == without
    assert names(kernel.closure(["!kernel/drivers/net/phy/*", "!r81*", net])) == without, "in any order"
    assert names(kernel.closure([net, "!base", "!failover", "!*phy*", "!real*", "!r8169"])) == without, "others need it"
    assert "r8169.ko" in names(kernel.closure([net, "!r8169", "r8169"])), "it is named"
    assert names(kernel.closure(["r8169", "!late_phy"])) == ["realtek.ko", "r8169.ko", "base.ko"], "a wish is none"


def test_a_glob_without_a_slash_is_one_over_module_names(kernel: ModuleTree) -> None:
    assert names(kernel.closure(["crc32c_*"])) == ["crc32c-intel.ko", "crc32c_generic.ko"]
    with pytest.raises(CapsulekitError, match=r"has no module crc64\*"):
        kernel.closure(["crc64*"])


def test_an_exception_that_matches_nothing_is_named(kernel: ModuleTree) -> None:
    asked = ["kernel/drivers/net/*", "!kernel/drivers/nat/*", "!r8169", "!r8168"]
    assert kernel.idle_exceptions(asked) == ("!kernel/drivers/nat/*", "!r8168")


def test_firmware_may_be_left_out_and_is_then_told_as_missing(kernel: ModuleTree) -> None:
    files = kernel.closure(["fw"])
    firmware = kernel.firmware(files, patterns=Patterns(["!acme/blob-*"]))
    assert [found.path for found in firmware.found] == ["usr/lib/firmware/acme/real.bin"]
    assert firmware.missing == (("fw", "acme/blob-*.bin"), ("fw", "acme/gone.bin"))
    part = kernel.firmware(files, patterns=Patterns(["!acme/blob-2*"]))
    assert "usr/lib/firmware/acme/blob-1.bin.xz" in {found.path for found in part.found}
    assert part.missing == (("fw", "acme/gone.bin"),)


def test_firmware_may_be_wanted_that_no_module_names(kernel: ModuleTree) -> None:
    firmware = kernel.firmware((), patterns=Patterns(["acme/blob-*"]))
    assert [Path(found.path).name for found in firmware.found] == ["blob-1.bin.xz", "blob-2.bin"]
    with pytest.raises(CapsulekitError, match="the firmware acme/none is in none of the packages"):
        kernel.firmware((), patterns=Patterns(["acme/none"]))


def test_firmware_is_looked_up_beside_the_kernel_too_the_kernels_own_first(shared: Path, tmp_path: Path) -> None:
    kernel = ModuleTree(shared, RELEASE)
    other = tmp_path / "usr/lib/firmware/acme"
    other.mkdir(parents=True)
    for name in ("gone.bin", "one.bin"):
        (other / name).write_bytes(b"other")
    firmware = kernel.firmware(kernel.closure(["fw"]), beside=[Tree(tmp_path)])
    assert firmware.missing == ()
    assert [found.host.name for found in firmware.found if found.host.is_relative_to(tmp_path)] == ["gone.bin"]


def test_what_is_built_in_names_firmware_too(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules" / RELEASE
    module(folder, "a.ko")
    (folder / "modules.builtin").write_text("kernel/drivers/card.ko\n")
    (folder / "modules.builtin.modinfo").write_bytes(b"card.firmware=acme/card.bin\0other.firmware=acme/other.bin\0")
    depmod(tmp_path)
    kernel = ModuleTree(tmp_path, RELEASE)
    assert kernel.builtin(["card", "a"]) == ("card",)
    assert kernel.firmware((), kernel.builtin(["card", "a"])).missing == (("card", "acme/card.bin"),)


@pytest.mark.parametrize(
    ("unpacks", "kept"),
    [
        ((), ["a.ko", "b.ko", "c.ko"]),
        ((".xz",), ["a.ko.xz", "b.ko", "c.ko"]),
        ((".zst",), ["a.ko.zst", "b.ko.zst", "c.ko.zst"]),
        ((".xz", ".zst", ".gz"), ["a.ko.xz", "b.ko.zst", "c.ko.zst"]),
    ],
)
def test_modules_are_kept_as_they_came_or_compressed_as_the_images_modprobe_unpacks_them(
    tmp_path: Path, unpacks: tuple[str, ...], kept: list[str]
) -> None:
    folder = tmp_path / "lib/modules" / RELEASE
    plain = {}
    for name, pack in (("a.ko.xz", lzma.compress), ("b.ko.zst", zstandard.ZstdCompressor().compress), ("c.ko", bytes)):
        file = module(folder, name.removesuffix(".xz").removesuffix(".zst"))
        # What a distribution appends to a module, and nobody may strip.
        plain[name[0]] = file.read_bytes() + b"signature~Module signature appended~\n"
        file.unlink()
        file.with_name(name).write_bytes(pack(plain[name[0]]))
    (folder / "modules.dep").write_text("kernel/a.ko.xz: kernel/c.ko\nkernel/b.ko.zst:\nkernel/c.ko:\n")
    kernel, modprobe = ModuleTree(tmp_path, RELEASE), Modprobe(True, frozenset(unpacks))
    files = kernel.closure(["kernel/*"])
    with passing() as store:
        for path, content in kernel.all_contents(files, modprobe, store, 3):
            name = path.rpartition("/")[2]
            data = content if isinstance(content, bytes) else content.path.read_bytes()[: content.size] if isinstance(
                content, Slice
            ) else content.read_bytes()  # fmt: skip
            if name.endswith(".zst"):
                assert zstandard.ZstdDecompressor().decompressobj().decompress(data) == plain[name[0]]
            else:
                assert (lzma.decompress(data) if name.endswith(".xz") else data) == plain[name[0]]
            if name in ("a.ko.xz", "b.ko.zst"):
                assert data == (folder / "kernel" / name).read_bytes(), "never compressed anew"
            assert name in kept
    lines = indexes(kernel, files, modprobe)["modules.dep"].decode()
    assert lines == f"kernel/{kept[0]}: kernel/{kept[2]}\nkernel/{kept[1]}:\nkernel/{kept[2]}:\n"


def test_a_module_is_compressed_once(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    store = Store(tmp_path / "store", tmp_path / "scratch")
    kernel, modprobe = ModuleTree(shared, RELEASE), Modprobe(True, frozenset({".zst"}))
    files = kernel.closure(["virtio_net"])
    first = kernel.all_contents(files, modprobe, store, 3)
    other = kernel.all_contents(files, modprobe, store, 4)
    monkeypatch.setattr(store, "make", lambda *_: pytest.fail("made again"))
    assert kernel.all_contents(files, modprobe, store, 3) == first
    assert kernel.all_contents(files, modprobe, store, 4) == other != first


def test_the_index_speaks_only_of_the_modules_kept(kernel: ModuleTree) -> None:
    index = indexes(kernel, kernel.closure(["virtio_net"]))
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
    for name, text in indexes(kernel, kernel.closure(["r8169", "virtio_net"])).items():
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
