"""What programs need to run, found without running them; the programs are made by the real compiler."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from initramfs_builder import elf
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.loaded import loaded_in
from initramfs_builder.tree import Tree, merged

MULTIARCH = next(Path("/usr/lib").glob("*-linux-gnu/libc.so.6")).parent.name
LIB = f"usr/lib/{MULTIARCH}"


def compiled(out: Path, *options: str, source: bytes = b"void _start(void) {}") -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    argv = ["gcc", "-nostdlib", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(out), "-Wl,--no-as-needed", *options]
    subprocess.run(argv, input=source, check=True, capture_output=True)
    return out


def library(out: Path, *options: str) -> Path:
    return compiled(out, "-shared", f"-Wl,-soname,{out.name}", *options)


def program(out: Path, *options: str) -> Path:
    return compiled(out, "-pie", "-Wl,--dynamic-linker=/lib64/ld-test.so.2", *options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree as two Debian 12 packages leave it: /lib and /usr/lib are both real folders."""
    top = tmp_path / "root"
    library(top / "lib" / MULTIARCH / "ld-test.so.2")
    (top / "lib64").mkdir()
    (top / "lib64/ld-test.so.2").symlink_to(f"/lib/{MULTIARCH}/ld-test.so.2")
    return top


def test_the_closure_of_curl_is_what_the_loader_itself_would_load() -> None:
    paths = elf.closure(Path("/"), ["usr/bin/curl"])
    loaded = subprocess.run(["ldd", "/usr/bin/curl"], check=True, capture_output=True, text=True).stdout
    want = {merged(path) for path in re.findall(r"(/\S+) \(0x", loaded)}
    assert want <= set(paths)
    extra = {Path(p).name for p in paths} - {Path(p).name for p in want}
    real = {Path("/", p).resolve().name for p in want}
    assert extra - real - {"curl"} <= {"libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2"}


def test_a_static_program_needs_only_itself() -> None:
    assert elf.closure(Path("/"), ["bin/busybox"]) == ("usr/bin/busybox",)


def test_a_script_stands_for_itself(root: Path) -> None:
    script = root / "usr/bin/script"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    assert elf.closure(root, ["usr/bin/script"]) == ("usr/bin/script",)


def test_a_package_tree_that_is_not_merged_gives_merged_paths_and_links(root: Path) -> None:
    library(root / LIB / "libone.so.1.0")
    (root / LIB / "libone.so.1").symlink_to("libone.so.1.0")
    program(root / "bin/tool", str(root / LIB / "libone.so.1.0"))
    (root / LIB / "libone.so.1.0").rename(root / "lib" / MULTIARCH / "libone.so.1.0")
    (root / LIB / "libone.so.1").unlink()
    (root / LIB / "libone.so.1.0").symlink_to(f"../../../lib/{MULTIARCH}/libone.so.1.0")
    result = elf.find_closure(Tree(root), ["/bin/tool"])
    assert result.paths == (
        "usr/bin/tool",
        f"{LIB}/ld-test.so.2",
        f"{LIB}/libone.so.1.0",
        "usr/lib64/ld-test.so.2",
    )
    assert result.files[f"{LIB}/ld-test.so.2"].links == {"usr/lib64/ld-test.so.2": f"../lib/{MULTIARCH}/ld-test.so.2"}


def test_links_on_the_way_to_a_library_are_part_of_the_closure(root: Path) -> None:
    real = library(root / LIB / "libone.so.1")
    program(root / "usr/bin/tool", str(real))
    real.rename(root / LIB / "libone.so.1.2.3")
    real.symlink_to("libone.so.1.2")
    (root / LIB / "libone.so.1.2").symlink_to("libone.so.1.2.3")
    assert {f"{LIB}/libone.so.1", f"{LIB}/libone.so.1.2", f"{LIB}/libone.so.1.2.3"} <= set(
        elf.closure(root, ["usr/bin/tool"])
    )


def test_runpath_with_origin_is_followed_for_the_file_that_has_it(root: Path) -> None:
    inner = library(root / "opt/app/lib/libinner.so")
    program(root / "opt/app/bin/tool", str(inner), "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib")
    assert "opt/app/lib/libinner.so" in elf.closure(root, ["opt/app/bin/tool"])


def test_rpath_serves_the_libraries_below_but_runpath_does_not(root: Path) -> None:
    deep = library(root / "opt/app/lib/libdeep.so")
    outer = library(root / "opt/app/lib/libouter.so", str(deep))
    link = f"-Wl,-rpath-link,{deep.parent}"
    program(root / "opt/app/bin/old", str(outer), link, "-Wl,--disable-new-dtags,-rpath,${ORIGIN}/../lib")
    program(root / "opt/app/bin/new", str(outer), link, "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib")
    assert "opt/app/lib/libdeep.so" in elf.closure(root, ["opt/app/bin/old"])
    with pytest.raises(CapsulekitError, match=r"libdeep\.so is not in .*: wanted by opt/app/lib/libouter\.so"):
        elf.closure(root, ["opt/app/bin/new"])


def test_rpath_reaches_through_a_library_that_has_a_runpath_of_its_own(root: Path) -> None:
    last = library(root / "opt/old/liblast.so")
    mid = library(root / "opt/new/libmid.so", str(last))
    one = library(root / "opt/old/libone.so", str(mid), "-Wl,--enable-new-dtags,-rpath,/opt/new")
    program(root / "usr/bin/tool", str(one), "-Wl,--allow-shlib-undefined,--disable-new-dtags,-rpath,/opt/old")
    assert "opt/old/liblast.so" in elf.closure(root, ["usr/bin/tool"])


def test_origin_is_where_a_library_was_found_not_where_its_link_leads(root: Path) -> None:
    inner = library(root / "opt/real/libinner.so")
    outer = library(root / "opt/real/libouter.so", str(inner), "-Wl,--enable-new-dtags,-rpath,$ORIGIN")
    program(root / "usr/bin/tool", str(outer), "-Wl,--allow-shlib-undefined,--enable-new-dtags,-rpath,/opt/lib")
    (root / "opt/lib").mkdir()
    (root / "opt/lib/libouter.so").symlink_to("../real/libouter.so")
    with pytest.raises(CapsulekitError, match=r"libinner\.so is not in"):
        elf.closure(root, ["usr/bin/tool"])
    library(root / "opt/lib/libinner.so")
    paths = elf.closure(root, ["usr/bin/tool"])
    assert "opt/lib/libinner.so" in paths and "opt/real/libinner.so" not in paths


def test_a_missing_library_is_named_with_the_chain_that_wants_it(root: Path) -> None:
    leaf = library(root / LIB / "libleaf.so")
    middle = library(root / LIB / "libmiddle.so", str(leaf))
    program(root / "usr/bin/tool", str(middle), f"-Wl,-rpath-link,{leaf.parent}")
    leaf.unlink()
    with pytest.raises(CapsulekitError) as error:
        elf.closure(root, ["usr/bin/tool"])
    assert error.value.message.endswith(f": wanted by {LIB}/libmiddle.so, wanted by usr/bin/tool")
    assert error.value.message.startswith("libleaf.so is not in ")
    assert error.value.hint


def test_a_missing_program_or_loader_is_an_error(root: Path) -> None:
    with pytest.raises(CapsulekitError, match="usr/bin/none is not in"):
        elf.closure(root, ["usr/bin/none"])
    program(root / "usr/bin/tool")
    (root / "lib" / MULTIARCH / "ld-test.so.2").unlink()
    with pytest.raises(CapsulekitError, match=r"ld-test\.so\.2 is not in .*wanted by usr/bin/tool"):
        elf.closure(root, ["usr/bin/tool"])


def test_what_only_ld_so_conf_finds_gets_a_link_beside_the_loader(root: Path) -> None:
    far = library(root / "opt/far/libfar.so.1")
    program(root / "usr/bin/tool", str(far))
    (root / "etc/ld.so.conf.d").mkdir(parents=True)
    (root / "etc/ld.so.conf").write_text("include ld.so.conf.d/*.conf\n")
    (root / "etc/ld.so.conf.d/far.conf").write_text("# far away\n/opt/far\n")
    result = elf.find_closure(Tree(root), ["usr/bin/tool"])
    assert "opt/far/libfar.so.1" in result.paths
    assert result.links == {f"{LIB}/libfar.so.1": "../../../opt/far/libfar.so.1"}


def test_a_library_of_another_machine_is_passed_over(root: Path) -> None:
    good = library(root / "usr/lib/libone.so")
    program(root / "usr/bin/tool", str(good))
    foreign = bytearray(good.read_bytes())
    struct.pack_into("<H", foreign, 18, 183 if foreign[18] != 183 else 62)  # e_machine
    (root / LIB).mkdir(parents=True)
    (root / LIB / "libone.so").write_bytes(foreign)
    paths = elf.closure(root, ["usr/bin/tool"])
    assert "usr/lib/libone.so" in paths
    assert f"{LIB}/libone.so" not in paths


def test_absolute_links_never_leave_the_root(root: Path) -> None:
    program(root / "usr/bin/tool", str(library(root / LIB / "libc.so.6")))
    (root / LIB / "libc.so.6").unlink()
    (root / LIB / "libc.so.6").symlink_to(f"/../../../../usr/lib/{MULTIARCH}/libcrypt.so.1")
    assert Path(f"/usr/lib/{MULTIARCH}/libcrypt.so.1").exists()
    with pytest.raises(CapsulekitError, match=r"libc\.so\.6 is not in"):
        elf.closure(root, ["usr/bin/tool"])


def test_a_loop_of_links_is_an_error(root: Path) -> None:
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/a").symlink_to("b")
    (root / "usr/bin/b").symlink_to("a")
    with pytest.raises(CapsulekitError, match="loop"):
        elf.closure(root, ["usr/bin/a"])


def dlopen_note(tmp_path: Path, priority: str, *sonames: str) -> str:
    """An object file with a .note.dlopen, to be linked in."""
    text = json.dumps([{"soname": list(sonames), "feature": "test", "priority": priority}]).encode() + b"\0"
    source = (
        f'.section .note.dlopen,"a",%note\n.balign 4\n.long 4\n.long {len(text)}\n.long 0x407c0c0a\n.asciz "FDO"\n'
        f".byte {','.join(map(str, text))}\n.balign 4\n"
    )
    out = tmp_path / "note.o"
    subprocess.run(["gcc", "-c", "-x", "assembler", "-", "-o", str(out)], input=source.encode(), check=True)
    return str(out)


def tool_with_note(root: Path, note: str) -> None:
    (root / "usr/bin").mkdir(parents=True)
    argv = ["gcc", "-nostdlib", "-fPIC", "-pie", "-x", "c", "-", "-x", "none", note, "-o", str(root / "usr/bin/tool")]
    argv += ["-Wl,--dynamic-linker=/lib64/ld-test.so.2"]
    subprocess.run(argv, input=b"void _start(void) {}", check=True)


def test_a_required_dlopen_that_is_missing_is_an_error(root: Path, tmp_path: Path) -> None:
    tool_with_note(root, dlopen_note(tmp_path, "required", "libmust.so.2", "libmust.so.1"))
    with pytest.raises(CapsulekitError, match=r"libmust\.so\.2 or libmust\.so\.1 is not in"):
        elf.closure(root, ["usr/bin/tool"])
    library(root / LIB / "libmust.so.1")
    assert f"{LIB}/libmust.so.1" in elf.closure(root, ["usr/bin/tool"])


@pytest.mark.parametrize(("priority", "taken"), [("recommended", True), ("suggested", False)])
def test_other_dlopens_are_taken_when_recommended_and_there(
    root: Path, tmp_path: Path, priority: str, taken: bool
) -> None:
    tool_with_note(root, dlopen_note(tmp_path, priority, "libmay.so.1"))
    before = elf.closure(root, ["usr/bin/tool"])
    library(root / LIB / "libmay.so.1")
    after = elf.closure(root, ["usr/bin/tool"])
    assert (set(after) - set(before) == {f"{LIB}/libmay.so.1"}) is taken


def test_libgcc_comes_with_libc(root: Path) -> None:
    libc = library(root / LIB / "libc.so.6")
    library(root / LIB / "libgcc_s.so.1")
    program(root / "usr/bin/tool", str(libc))
    assert f"{LIB}/libgcc_s.so.1" in elf.closure(root, ["usr/bin/tool"])


def test_name_services_of_nsswitch_conf_are_taken_when_they_are_there(root: Path) -> None:
    libc = library(root / LIB / "libc.so.6")
    for name in ("mymachines", "systemd", "unused"):
        library(root / LIB / f"libnss_{name}.so.2")
    program(root / "usr/bin/tool", str(libc))
    (root / "etc").mkdir()
    (root / "etc/nsswitch.conf").write_text("hosts: files [NOTFOUND=return] mymachines ../x\n# unused\npasswd: systemd")
    paths = elf.find_closure(Tree(root), ["usr/bin/tool"], loaded=loaded_in(Tree(root))).paths
    assert {f"{LIB}/libnss_mymachines.so.2", f"{LIB}/libnss_systemd.so.2"} <= set(paths)
    assert f"{LIB}/libnss_unused.so.2" not in paths


@pytest.mark.parametrize(
    ("by", "plugin"),
    [("libpam.so.0", "security/pam_unix.so"), ("libcrypto.so.3", "ossl-modules/legacy.so")],
)
def test_plugins_come_with_the_library_that_loads_them_and_with_what_they_need(
    root: Path, by: str, plugin: str
) -> None:
    other = library(root / LIB / "libother.so.1")
    library(root / LIB / plugin, str(other))
    program(root / "usr/bin/tool", str(library(root / LIB / by)))
    program(root / "usr/bin/plain", str(library(root / LIB / "libplain.so")))
    rows = loaded_in(Tree(root))
    taken = elf.find_closure(Tree(root), ["usr/bin/tool"], loaded=rows)
    assert {f"{LIB}/{plugin}", f"{LIB}/libother.so.1"} <= set(taken.paths)
    assert taken.chains[f"{LIB}/libother.so.1"][0] == "usr/bin/tool"
    assert f"{LIB}/{plugin}" not in elf.find_closure(Tree(root), ["usr/bin/plain"], loaded=rows).paths


def test_converters_come_with_a_program_that_converts_and_with_no_other(root: Path) -> None:
    libc = compiled(root / LIB / "libc.so.6", "-shared", "-Wl,-soname,libc.so.6", source=b"void iconv_open(void) {}")
    calls = b"void iconv_open(void); void _start(void) { iconv_open(); }"
    (root / LIB / "gconv").mkdir()
    (root / LIB / "gconv/gconv-modules").write_text("module UTF-16// INTERNAL UTF-16 1\n")
    for name in ("UTF-16", "EUC-KR"):
        library(root / LIB / f"gconv/{name}.so")
    loader = "-Wl,--dynamic-linker=/lib64/ld-test.so.2"
    compiled(root / "usr/bin/converts", "-pie", loader, str(libc), source=calls)
    program(root / "usr/bin/plain", str(libc))
    rows = loaded_in(Tree(root))
    taken = elf.find_closure(Tree(root), ["usr/bin/converts"], loaded=rows).paths
    assert {f"{LIB}/gconv/gconv-modules", f"{LIB}/gconv/UTF-16.so"} <= set(taken)
    assert f"{LIB}/gconv/EUC-KR.so" not in taken
    assert not [path for path in elf.find_closure(Tree(root), ["usr/bin/plain"], loaded=rows).paths if "gconv" in path]


@given(at=st.integers(0, 1 << 16), value=st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_whatever_is_damaged_in_a_program_is_an_error_or_harmless(at: int, value: bytes) -> None:
    data = bytearray(Path("/usr/bin/curl").read_bytes())
    at %= 4096  # headers, notes, the dynamic section's place
    data[at : at + len(value)] = value
    try:
        elf.parse_elf(io.BytesIO(data), "curl")
    except CapsulekitError as error:
        assert "damaged ELF file" in error.message


@pytest.mark.parametrize("size", [4, 5, 16, 52, 63, 64, 100, 1000])
def test_a_program_cut_short_is_an_error(size: int) -> None:
    with pytest.raises(CapsulekitError, match="curl is a damaged ELF file"):
        elf.parse_elf(io.BytesIO(Path("/usr/bin/curl").read_bytes()[:size]), "curl")


def test_a_damaged_program_is_an_error(root: Path) -> None:
    tool = program(root / "usr/bin/tool")
    tool.write_bytes(tool.read_bytes()[:60])
    with pytest.raises(CapsulekitError, match="damaged ELF"):
        elf.closure(root, ["usr/bin/tool"])
