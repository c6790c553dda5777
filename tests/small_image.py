"""A whole image of stage 1 in small: programs by the real compiler, one of each thing that a check looks at."""

from __future__ import annotations

import json
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from initramfs_builder import cpio
from initramfs_builder.cpio import Entry
from initramfs_builder.modindex import binary_index

RELEASE = "6.1.0-test"
MODULES = f"usr/lib/modules/{RELEASE}"
LOADER = "/lib64/ld-test.so.2"
APPLETS = ("cat", "modprobe", "mount", "sh")  # sorted, as busybox's are
INIT = """#!/bin/sh
# needs: mount tool
LIB=${CK_LIB:-/lib/capsulekit}
. "$LIB/parts.sh"
mount -t proc proc /proc
part
tool
"""
PARTS = """# shellcheck shell=sh
# needs: cat
part() {
    cat /etc/motd
    "$LIB/helper"
}
"""


def compiled(source: str, *options: str, kind: str = "c") -> bytes:
    """What gcc makes of a source."""
    with tempfile.NamedTemporaryFile() as out:
        argv = ["gcc", "-nostdlib", "-fPIC", "-x", kind, "-", "-x", "none", "-o", out.name, *options]
        subprocess.run(argv, input=source.encode(), check=True, capture_output=True)
        return Path(out.name).read_bytes()


@cache
def library(name: str, *needs: str, source: str = "", options: tuple[str, ...] = ()) -> bytes:
    """A shared library that needs others by name."""
    with tempfile.TemporaryDirectory() as folder:
        for need in needs:
            Path(folder, need).write_bytes(library(need))
        wanted = [f"{folder}/{need}" for need in needs]
        shared = ("-shared", "-Wl,--no-as-needed", f"-Wl,-soname,{name}")
        return compiled(f"void f(void) {{}} {source}", *shared, *options, *wanted)


@cache
def program(*needs: str, options: tuple[str, ...] = ()) -> bytes:
    """A program that the test's loader loads."""
    with tempfile.TemporaryDirectory() as folder:
        for need in needs:
            Path(folder, need).write_bytes(library(need))
        wanted = [f"{folder}/{need}" for need in needs]
        linked = ("-pie", f"-Wl,--dynamic-linker={LOADER}", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined")
        return compiled("void _start(void) {}", *linked, *options, *wanted)


@cache
def busybox() -> bytes:
    """A static program with a table of applets."""
    names = "\\0".join(("", *APPLETS, ""))
    return compiled(f'const char names[] = "{names}"; void _start(void) {{}}', "-static")


@cache
def module(name: str, depends: str = "", firmware: str = "", release: str = RELEASE, softdep: str = "") -> bytes:
    """A kernel module as far as its .modinfo goes."""
    pairs = [f"name={name}", f"depends={depends}", f"vermagic={release} SMP mod_unload"]
    pairs += [f"firmware={one}" for one in firmware.split()] + ([f"softdep={softdep}"] if softdep else [])
    lines = "".join(f'.asciz "{pair}"\n' for pair in pairs)
    return compiled(f'.section .modinfo,"a"\n{lines}', "-c", kind="assembler")


def record(**changes: object) -> bytes:
    """stage1.json."""
    told: dict[str, object] = {
        "format": 1, "arch": "amd64", "release": RELEASE, "profile": "test", "commands": ["busybox"],
        "modules": ["net", "loop", "kernel/net/*"],
        "firmware_missing": [{"module": "net", "firmware": "net/old.bin"}],
    }  # fmt: skip
    return json.dumps(told | changes).encode()


DEP = "kernel/net/net.ko: kernel/net/bus.ko\nkernel/net/bus.ko:\n"
ALIAS = "alias pci:v00008086d*sv*sd*bc*sc*i* net\nalias usb:v0B95p* net\n"


def entries() -> dict[str, Entry]:
    """Path → entry; nothing is missing."""
    loader = library("ld-test.so.2", source='const char dirs[] = "\\0/lib/test/\\0/usr/lib/";')
    every = [
        *(cpio.directory(name) for name in ("dev", "proc", "sys", "run", "tmp", "usr/bin", "usr/sbin", "usr/lib64")),
        *(cpio.symlink(name, f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")),
        cpio.char_device("dev/console", 5, 1, 0o600),
        cpio.char_device("dev/null", 1, 3, 0o666),
        cpio.regular("init", INIT.encode(), 0o755),
        cpio.regular("usr/lib/capsulekit/parts.sh", PARTS.encode()),
        cpio.regular("usr/lib/capsulekit/helper", b"#!/bin/sh\n", 0o755),
        cpio.regular("usr/lib/capsulekit/agent/agent", b"#!/bin/sh\nsystemctl\n", 0o755),
        cpio.regular("usr/lib/capsulekit/stage1.json", record()),
        cpio.regular("usr/bin/busybox", busybox(), 0o755),
        *(cpio.symlink(f"usr/bin/{name}", "busybox") for name in APPLETS if name != "modprobe"),
        cpio.symlink("usr/sbin/modprobe", "/usr/bin/busybox"),
        cpio.regular("usr/bin/tool", program("libone.so.1"), 0o755),
        cpio.regular("usr/lib/test/libone.so.1", library("libone.so.1", "libtwo.so.2")),
        cpio.regular("usr/lib/test/libtwo.so.2.5", library("libtwo.so.2")),
        cpio.symlink("usr/lib/test/libtwo.so.2", "libtwo.so.2.5"),
        cpio.regular("usr/lib/test/ld-test.so.2", loader, 0o755),
        cpio.symlink("usr/lib64/ld-test.so.2", "../lib/test/ld-test.so.2"),
        cpio.regular(f"{MODULES}/modules.dep", DEP.encode()),
        cpio.regular(f"{MODULES}/modules.alias", ALIAS.encode()),
        cpio.regular(f"{MODULES}/modules.softdep", b"softdep net pre: loop post: bus\n"),
        cpio.regular(f"{MODULES}/modules.builtin", b"kernel/drivers/block/loop.ko\n"),
        cpio.regular(f"{MODULES}/modules.builtin.modinfo", b"loop.alias=block-major-7-*\0loop.license=GPL\0"),
        cpio.regular(f"{MODULES}/kernel/net/net.ko", module("net", "bus", "net/a.bin net/b*.bin net/old.bin")),
        cpio.regular(f"{MODULES}/kernel/net/bus.ko", module("bus")),
        cpio.regular("usr/lib/firmware/net/a.bin", b"a"),
        cpio.regular("usr/lib/firmware/net/b1.bin.zst", b"b"),
    ]
    return {entry.path: entry for entry in every}


def kmod_entries() -> dict[str, Entry]:
    """The same with kmod's modprobe and modules that it unpacks."""
    import zstandard

    known = entries()
    for name in ("net", "bus"):
        plain = known.pop(f"{MODULES}/kernel/net/{name}.ko").data
        assert isinstance(plain, bytes)
        packed = zstandard.ZstdCompressor().compress(plain)
        known[f"{MODULES}/kernel/net/{name}.ko.zst"] = cpio.regular(f"{MODULES}/kernel/net/{name}.ko.zst", packed)
    dep = DEP.replace(".ko", ".ko.zst")
    lines = {line.partition(":")[0].rpartition("/")[2].partition(".")[0]: line for line in dep.splitlines()}
    aliases = [line.split()[1:] for line in ALIAS.splitlines()]
    changed = [
        cpio.regular(f"{MODULES}/modules.dep", dep.encode()),
        cpio.regular("usr/bin/kmod", program("libzstd.so.1"), 0o755),
        cpio.symlink("usr/sbin/modprobe", "../bin/kmod"),
        cpio.regular("usr/lib/test/libzstd.so.1", library("libzstd.so.1")),
        *(cpio.regular(f"{MODULES}/modules.{name}.bin", binary_index(values)) for name, values in {
            "dep": {name: [(0, line)] for name, line in lines.items()},
            "alias": {pattern: [(0, module)] for pattern, module in aliases},
            "builtin": {"loop": [(0, "")]},
            "symbols": {}, "builtin.alias": {},
        }.items()),
    ]  # fmt: skip
    return known | {entry.path: entry for entry in changed}
