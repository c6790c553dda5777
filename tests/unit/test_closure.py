"""The boot closure: what a root needs to boot, with the chain, found in the tree alone; real ELF files, made by gcc."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs import closure
from capsulekit.rootfs.closure import boot_closure
from capsulekit.rootfs.globs import regex
from capsulekit.rootfs.needed import NEEDED, reference

LIB = "usr/lib"
SYSTEMD = "the first program: /usr/sbin/init -> /usr/lib/systemd/systemd"


def compiled(out: Path, *options: str) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    argv = ["gcc", "-nostdlib", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(out), "-Wl,--no-as-needed", *options]
    subprocess.run(argv, input=b"void _start(void) {}", check=True, capture_output=True)
    return out


def library(out: Path, *options: str) -> str:
    return str(compiled(out, "-shared", f"-Wl,-soname,{out.name}", *options))


def program(out: Path, *options: str) -> Path:
    return compiled(out, "-pie", "-Wl,--dynamic-linker=/lib64/ld-test.so.2", *options)


def text(root: Path, path: str, content: str = "x\n") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small systemd root with a merged /usr."""
    top = tmp_path_factory.mktemp("root")
    for name in ("bin", "sbin", "lib", "lib64"):
        (top / "usr" / name).mkdir(parents=True)
        (top / name).symlink_to(f"usr/{name}")
    library(top / "usr/lib64/ld-test.so.2")
    core = library(top / LIB / "libcore.so.1.2")
    (top / LIB / "libcore.so.1").symlink_to("libcore.so.1.2")
    shared = library(top / LIB / "systemd/libsystemd-shared.so", core)
    program(top / LIB / "systemd/systemd", shared, "-Wl,-rpath,/usr/lib/systemd")
    (top / "usr/sbin/init").symlink_to("../lib/systemd/systemd")
    library(top / LIB / "security/pam_site.so", library(top / LIB / "libsite.so"))
    library(top / LIB / "security/pam_broken.so", library(top / "elsewhere/libgone.so"))
    (top / "elsewhere/libgone.so").unlink()
    (top / LIB / "security/pam_damaged.so").write_bytes(b"\x7fELF" + bytes(8))
    program(top / "usr/bin/mawk")
    (top / "etc/alternatives").mkdir(parents=True)
    (top / "usr/bin/awk").symlink_to("/etc/alternatives/awk")
    (top / "etc/alternatives/awk").symlink_to("/usr/bin/mawk")
    text(top, "usr/share/zoneinfo/Etc/UTC")
    text(top, "usr/share/zoneinfo/Etc/GMT")
    (top / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    text(
        top,
        "lib/systemd/system/armour.service",
        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStartPre=-/usr/libexec/pre %i\nExecStart=+/opt/armour start\n",
    )
    text(top, "lib/systemd/system/late.service", "[Service]\nExecStart=/opt/late\n")
    text(top, "opt/armour", "#!/opt/perl -w\n")
    text(top, "usr/libexec/pre")
    program(top / "opt/perl", library(top / LIB / "libperl.so"))
    text(top, "opt/late")
    text(top, "usr/share/doc/a/copyright")
    text(top, "usr/bin/gcc")
    (top / "usr/bin/loop").symlink_to("loop")
    (top / "usr/bin/sh").symlink_to("loop")
    return top  # fmt: skip


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, str]:
    return boot_closure(root, "/sbin/init")


CHAINS = {
    "usr/sbin/init": SYSTEMD,
    "usr/lib/systemd/systemd": SYSTEMD,
    "usr/lib64/ld-test.so.2": f"{SYSTEMD} -> /usr/lib64/ld-test.so.2",
    "usr/lib/systemd/libsystemd-shared.so": f"{SYSTEMD} -> /usr/lib/systemd/libsystemd-shared.so",
    "usr/lib/libcore.so.1.2": f"{SYSTEMD} -> /usr/lib/systemd/libsystemd-shared.so -> /usr/lib/libcore.so.1.2",
    "usr/lib/libsite.so": "someone logs in: /usr/lib/security/pam_site.so -> /usr/lib/libsite.so",
    "usr/bin/mawk": "tools that scripts of the boot call: /usr/bin/awk -> /usr/bin/mawk",
    "etc/alternatives/awk": "tools that scripts of the boot call: /usr/bin/awk -> /usr/bin/mawk",
    "usr/share/zoneinfo/Etc/UTC": "settings that are links: /etc/localtime -> /usr/share/zoneinfo/Etc/UTC",
    "opt/armour": "systemd starts it early: /usr/lib/systemd/system/armour.service -> /opt/armour",
    "opt/perl": "systemd starts it early: /usr/lib/systemd/system/armour.service -> /opt/armour -> /opt/perl",
    "usr/lib/libperl.so": "systemd starts it early: /usr/lib/systemd/system/armour.service -> /opt/armour -> /opt/perl "
    "-> /usr/lib/libperl.so",
    "usr/libexec/pre": "systemd starts it early: /usr/lib/systemd/system/armour.service -> /usr/libexec/pre",
    "usr/bin/sh": "scripts of the boot run in it: /usr/bin/sh",
    "usr/lib": "links to the folders of programs: /usr/lib",
}


@pytest.mark.parametrize("path", CHAINS)
def test_what_the_boot_needs_is_found_with_its_chain(found: dict[str, str], path: str) -> None:
    assert found[path] == CHAINS[path]


@pytest.mark.parametrize(
    "path", ["usr/share/doc/a/copyright", "usr/share/zoneinfo/Etc/GMT", "usr/bin/gcc", "opt/late", "usr/bin/loop"]
)
def test_what_the_boot_does_not_need_may_leave(found: dict[str, str], path: str) -> None:
    assert path not in found


def test_plugins_that_cannot_be_loaded_stop_nothing_and_stay(found: dict[str, str]) -> None:
    assert {"usr/lib/security/pam_broken.so", "usr/lib/security/pam_damaged.so"} <= set(found)


def test_a_root_of_busybox_alone(tmp_path: Path) -> None:
    for path in ("bin/busybox", "etc/inittab", "usr/share/x", "lib/modules/6.1/loop.ko"):
        text(tmp_path, path)
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/init").symlink_to("../bin/busybox")
    (tmp_path / "bin/mount").symlink_to("busybox")
    assert set(boot_closure(tmp_path, "/sbin/init")) == {
        "etc/inittab", "usr/bin/busybox", "usr/bin/mount", "usr/lib/modules/6.1/loop.ko", "usr/sbin/init",
    }  # fmt: skip


def test_a_first_program_that_is_a_script_brings_its_shell(tmp_path: Path) -> None:
    text(tmp_path, "init", "#! /opt/tools/sh -e\n")
    text(tmp_path, "opt/tools/sh")
    assert boot_closure(tmp_path, "/init")["opt/tools/sh"] == "the first program: /init -> /opt/tools/sh"


def test_a_root_without_its_first_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="the root has no /sbin/init"):
        boot_closure(tmp_path, "/sbin/init")


def test_links_never_lead_out_of_the_root(tmp_path: Path) -> None:
    text(tmp_path, "init")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/localtime").symlink_to("../../../../../../usr/share/zoneinfo/Etc/UTC")
    (tmp_path / "etc/systemd").symlink_to("/etc")
    assert set(boot_closure(tmp_path, "/init")) == {"init", "etc/localtime", "etc/systemd"}


def test_the_order_in_which_folders_are_read_changes_nothing(
    root: Path, found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = closure._walk

    def shuffled(top: Path) -> list[str]:
        paths = list(real(top))
        random.Random(5).shuffle(paths)
        return paths

    monkeypatch.setattr(closure, "_walk", shuffled)
    assert list(boot_closure(root, "/sbin/init").items()) == list(found.items())


def test_the_command_writes_json_and_keeps_names_that_are_not_utf_8(root: Path, tmp_path: Path) -> None:
    strange = root / os.fsdecode(b"etc/caf\xe9")
    strange.write_text("x")
    argv = [
        sys.executable,
        "-P",
        "-m",
        "capsulekit.rootfs.closure",
        root,
        tmp_path / "out.json",
        "--init",
        "/sbin/init",
    ]
    try:
        subprocess.run(argv, check=True, env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"})
    finally:
        strange.unlink()
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["etc/caf\udce9"] == "settings: /etc/caf\udce9" and read["usr/lib/systemd/systemd"] == SYSTEMD


def test_the_commands_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert closure.main([str(tmp_path), str(tmp_path / "out.json"), "--init", "/x"]) == 1
    assert capsys.readouterr().err == "E: the root has no /x, which [capsule] init names as its first program\n"


def test_the_table_says_why_and_its_globs_are_well_formed() -> None:
    assert len({need.why for need in NEEDED}) == len(NEEDED)
    for need in NEEDED:
        assert need.globs and all(regex(glob) and not glob.startswith("/") for glob in need.globs), need


def test_the_reference_page_is_current() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/hybridize.md").read_text(encoding="utf-8")
    assert page == reference(), "write capsulekit.rootfs.needed.reference() to docs/reference/hybridize.md"
