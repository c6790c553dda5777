"""`stage1 check`: everything that something in an image wants is in it, and what is missing is said with its chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from image_of import image_of
from initramfs_builder import cpio
from initramfs_builder.check.closure import check_facts
from initramfs_builder.cpio import Entry
from small_image import DEP, MODULES, RELEASE, entries, kmod_entries, library, module, program, record

Entries = dict[str, Entry]
Change = Callable[[Entries], object]


def problems(known: Entries) -> list[str]:
    return [problem.text for problem in check_facts(image_of(known.values()))]


def put(path: str, data: bytes, mode: int = 0o644) -> Change:
    return lambda known: known.update({path: cpio.regular(path, data, mode)})


def link(path: str, target: str) -> Change:
    return lambda known: known.update({path: cpio.symlink(path, target)})


def drop(*paths: str) -> Change:
    return lambda known: [known.pop(path) for path in paths]


def both(one: Change, other: Change) -> Change:
    return lambda known: (one(known), other(known))


def edit(path: str, old: str, new: str) -> Change:
    def change(known: Entries) -> None:
        data = known[path].data
        assert isinstance(data, bytes) and old.encode() in data
        known[path] = dataclasses.replace(known[path], data=data.replace(old.encode(), new.encode()))

    return change


def mode(path: str, permissions: int) -> Change:
    def change(known: Entries) -> None:
        known[path] = dataclasses.replace(known[path], mode=known[path].mode & ~0o777 | permissions)

    return change


def loader() -> bytes:
    data = entries()[f"{LIB}/ld-test.so.2"].data
    assert isinstance(data, bytes)
    return data


LIB = "usr/lib/test"
NET, BUS = "kernel/net/net.ko", "kernel/net/bus.ko"
PARTS = "usr/lib/capsulekit/parts.sh"
NOT_HERE = "not in the image"
MISSING: dict[str, tuple[Change, list[str]]] = {
    "a library of a library": (
        drop(f"{LIB}/libtwo.so.2", f"{LIB}/libtwo.so.2.5"),
        ["usr/bin/tool needs libone.so.1, which needs libtwo.so.2: not in the image"],
    ),
    "a library's link": (
        drop(f"{LIB}/libtwo.so.2"),
        ["usr/bin/tool needs libone.so.1, which needs libtwo.so.2: not in the image"],
    ),
    "a library behind its link": (
        drop(f"{LIB}/libtwo.so.2.5"),
        [
            "usr/bin/tool needs libone.so.1, which needs libtwo.so.2: not in the image",
            f"{LIB}/libtwo.so.2 needs libtwo.so.2.5: not in the image",
        ],
    ),
    "a library where the loader looks": (
        lambda known: both(drop(f"{LIB}/libtwo.so.2"), link("usr/else/libtwo.so.2", f"/{LIB}/libtwo.so.2.5"))(known),
        ["usr/bin/tool needs libone.so.1, which needs libtwo.so.2: not in the image"],
    ),
    "a library of another machine": (
        put(f"{LIB}/libone.so.1", library("libone.so.1")[:18] + b"\x03" + library("libone.so.1")[19:]),
        ["usr/bin/tool needs libone.so.1: not in the image"],
    ),
    "the loader, and with it the folders it looks in": (
        drop(f"{LIB}/ld-test.so.2", "usr/lib64/ld-test.so.2"),
        ["usr/bin/tool needs /lib64/ld-test.so.2: not in the image", "usr/bin/tool needs libone.so.1: not in the image",
         f"{LIB}/libone.so.1 needs libtwo.so.2: not in the image"],
    ),
    "a loader of the program's class": (
        put(f"{LIB}/ld-test.so.2", loader()[:18] + b"\x03" + loader()[19:], 0o755),
        ["usr/bin/tool needs /lib64/ld-test.so.2: is of another class or machine"],
    ),
    "a loader that can be executed": (
        mode(f"{LIB}/ld-test.so.2", 0o644), ["usr/bin/tool needs /lib64/ld-test.so.2: cannot be executed"]
    ),
    "the loader's link": (
        drop("usr/lib64/ld-test.so.2"), ["usr/bin/tool needs /lib64/ld-test.so.2: not in the image"]
    ),
    "a command": (drop("usr/bin/tool"), ["init needs tool: not in the image"]),
    "a command of a part": (drop("usr/bin/cat"), [f"init needs {PARTS}, which needs cat: not in the image"]),
    "a command that cannot be executed": (
        mode("usr/bin/tool", 0o644), ["init needs tool: usr/bin/tool cannot be executed"]
    ),
    "an applet": (
        edit("usr/bin/busybox", "\0mount\0", "\0mouse\0"), ["init needs mount: usr/bin/busybox has no such applet"]
    ),
    "a command asked for": (
        put("usr/lib/capsulekit/stage1.json", record(commands=["vi", "sh"])), ["the recipe needs vi: not in the image"]
    ),
    "a command that no line states": (
        edit(PARTS, "    cat", "    dog"), [f"init needs {PARTS}, which needs dog: not in the image"]
    ),
    "a command that a line states": (
        edit(PARTS, "needs: cat", "needs: cat dog"), [f"init needs {PARTS}, which needs dog: not in the image"]
    ),
    "a sourced part": (
        drop(PARTS), ["init needs /lib/capsulekit/parts.sh: not in the image", "init needs part: not in the image"]
    ),
    "a file that a script names": (
        drop("usr/lib/capsulekit/helper"), [f"init needs {PARTS}, which needs /lib/capsulekit/helper: not in the image"]
    ),
    "the shell": (
        drop("usr/bin/sh"),
        ["init needs bin/sh: not in the image", "usr/lib/capsulekit/agent/agent needs bin/sh: not in the image",
         "usr/lib/capsulekit/helper needs bin/sh: not in the image"],
    ),
    "a script that is not shell": (
        edit(PARTS, "}", "fi"),
        [f"init needs {PARTS}: {PARTS}, line 6: }} is missing", "init needs part: not in the image"],
    ),
    "a command in quotes that is not shell": (
        edit(PARTS, "    cat", "    trap 'if' EXIT; cat"),
        [f"init needs {PARTS}: a command in quotes, line 1: a command is missing"],
    ),
    "a part whose name only running would tell": (
        edit("init", '"$LIB/parts.sh"', '"$1"'),
        ["init needs part: not in the image", "init: line 4 sources what only running it would tell"],
    ),
    "a module that another needs": (
        drop(f"{MODULES}/{BUS}"), [f"{NET} needs {BUS}: not in the image"]
    ),
    "a module that nothing else needs": (drop(f"{MODULES}/{NET}"), [f"modules.dep needs {NET}: not in the image"]),
    "a module in modules.dep": (
        put(f"{MODULES}/modules.dep", f"{BUS}:\n".encode()),
        [f"{NET}: is not in modules.dep, so modprobe cannot find it",
         "the recipe needs net: neither in the image nor built into the kernel"],
    ),
    "a line of modules.dep": (
        put(f"{MODULES}/modules.dep", f"{NET}: {BUS}\n".encode()),
        [f"{NET} needs bus: neither in the image nor built into the kernel",
         f"{NET} needs bus: its soft dependency is neither in the image nor built into the kernel",
         f"{NET} needs {BUS}: has no line of its own in modules.dep",
         f"{BUS}: is not in modules.dep, so modprobe cannot find it"],
    ),
    "a dependency in modules.dep": (
        put(f"{MODULES}/modules.dep", f"{NET}:\n{BUS}:\n".encode()),
        [f"{NET} needs {BUS}: modules.dep does not say so"],
    ),
    "modules.dep": (
        drop(f"{MODULES}/modules.dep"),
        [f"modprobe needs {MODULES}/modules.dep: not in the image",
         "the recipe needs kernel/net/*: neither in the image nor built into the kernel",
         f"{BUS}: is not in modules.dep, so modprobe cannot find it",
         f"{NET}: is not in modules.dep, so modprobe cannot find it",
         "the recipe needs net: neither in the image nor built into the kernel"],
    ),
    "a soft dependency": (
        put(f"{MODULES}/modules.softdep", b"softdep net pre: other\n"),
        [f"{NET} needs other: its soft dependency is neither in the image nor built into the kernel"],
    ),
    "what a module says of its soft dependencies": (
        put(f"{MODULES}/{BUS}", module("bus", softdep="pre: loop net")),
        [f"{BUS} needs loop: modules.softdep does not say so", f"{BUS} needs net: modules.softdep does not say so"],
    ),
    "what is known of the built-in modules": (
        drop(f"{MODULES}/modules.builtin.modinfo"),
        [f"modules.builtin needs {MODULES}/modules.builtin.modinfo: not in the image"],
    ),
    "a module asked for": (
        put("usr/lib/capsulekit/stage1.json", record(modules=["net", "wifi", "kernel/wifi/*"])),
        ["the recipe needs kernel/wifi/*: neither in the image nor built into the kernel",
         "the recipe needs wifi: neither in the image nor built into the kernel"],
    ),
    "a module for this kernel": (
        put(f"{MODULES}/{BUS}", module("bus", release="5.10.0")), [f"{BUS}: was built for kernel 5.10.0"]
    ),
    "a module's own bytes": (
        put(f"{MODULES}/{BUS}", b"\x7fELF"), [f"{BUS}: {MODULES}/{BUS} is not a kernel module: "]
    ),
    "firmware": (
        drop("usr/lib/firmware/net/a.bin"), ["net needs net/a.bin: neither in the image nor recorded as missing"]
    ),
    "firmware of a glob": (
        drop("usr/lib/firmware/net/b1.bin.zst"), ["net needs net/b*.bin: neither in the image nor recorded as missing"]
    ),
    "a firmware's record": (
        put("usr/lib/capsulekit/stage1.json", record(firmware_missing=[{"module": "bus", "firmware": "net/old.bin"}])),
        ["net needs net/old.bin: neither in the image nor recorded as missing"],
    ),
    "modprobe in busybox": (
        edit("usr/bin/busybox", "\0modprobe\0", "\0modprobf\0"),
        ["the kernel needs sbin/modprobe: usr/bin/busybox has no such applet"],
    ),
    "modprobe": (drop("usr/sbin/modprobe"), ["the kernel needs sbin/modprobe: not in the image"]),
    "modules": (
        lambda known: [known.pop(path) for path in list(known) if path.startswith(MODULES)],
        ["lib/modules: image holds no kernel's modules"],
    ),
    "one kernel only": (
        put("usr/lib/modules/7.0/modules.dep", b""),
        [f"lib/modules: image holds the modules of several kernels: {RELEASE}, 7.0"],
    ),
    "the record": (drop("usr/lib/capsulekit/stage1.json"), ["usr/lib/capsulekit/stage1.json: not in the image"]),
    "the record of this kernel": (
        put("usr/lib/capsulekit/stage1.json", record(release="5.10.0")),
        [f"lib/modules: are those of kernel {RELEASE}, not of 5.10.0"],
    ),
    "a mount target": (drop("proc"), ["init needs proc: not in the image"]),
    "a mount target that is a folder": (put("sys", b""), ["init needs sys: is not a folder"]),
    "init": (drop("init"), ["the kernel needs init: not in the image"]),
    "init's permission": (mode("init", 0o644), ["the kernel needs init: cannot be executed"]),
    "init's first line": (
        edit("init", "#!/bin/sh", "# shellcheck shell=sh"), ["the kernel needs init: is neither a program nor a script"]
    ),
    "the console": (drop("dev/console"), ["the kernel needs dev/console: not in the image"]),
    "the console's numbers": (
        lambda known: known.update({"dev/null": cpio.char_device("dev/null", 1, 5, 0o666)}),
        ["the kernel needs dev/null: is not the character device 1:3"],
    ),
    "what a link says": (link("usr/lib/x", "../nowhere"), ["usr/lib/x needs ../nowhere: not in the image"]),
    "a whole program": (
        put("usr/bin/tool", program("libone.so.1")[:200], 0o755), ["usr/bin/tool: usr/bin/tool is a damaged ELF file: "]
    ),
    "the interpreter of a foreign script": (
        put("usr/bin/script", b"#!/usr/bin/env perl -w\n", 0o755),
        ["usr/bin/script needs perl: not in the image", "usr/bin/script needs usr/bin/env: not in the image"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("known", [entries(), kmod_entries()], ids=["busybox", "kmod"])
def test_an_image_that_lacks_nothing_passes(known: Entries) -> None:
    assert problems(known) == []


def test_an_image_whose_usr_is_not_merged_passes_too() -> None:
    known = entries()
    for name in ("bin", "sbin", "lib", "lib64"):
        known.pop(name)
        for path in list(known):
            if path == f"usr/{name}" or path.startswith(f"usr/{name}/"):
                entry = known.pop(path)
                plain = path.removeprefix("usr/")
                target = entry.target.replace("/usr/bin/", "/bin/") if entry.target else None
                known[plain] = dataclasses.replace(entry, path=plain, target=target)
    assert problems(known) == []
    del known["lib/test/libtwo.so.2"]
    assert problems(known) == ["bin/tool needs libone.so.1, which needs libtwo.so.2: not in the image"]


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_said_with_the_chain_that_wants_it(what: str) -> None:
    change, said = MISSING[what]
    known = entries()
    change(known)
    found = problems(known)
    assert len(found) == len(said), found
    for text in said:
        assert any(one == text or (text.endswith(": ") and one.startswith(text)) for one in found), found


KMOD_MISSING: dict[str, tuple[Change, str]] = {
    "a library that unpacks": (
        put("usr/bin/kmod", program(), 0o755),
        "sbin/modprobe needs libzstd.so.*: it does not load it, and modules end in .zst",
    ),
    "a binary index": (
        drop(f"{MODULES}/modules.alias.bin"), f"sbin/modprobe needs {MODULES}/modules.alias.bin: not in the image"
    ),
    "a whole binary index": (
        put(f"{MODULES}/modules.dep.bin", b"\xb0\x07\xf4W"), f"{MODULES}/modules.dep.bin: is a damaged index: "
    ),
    "agreement of the indexes": (
        edit(f"{MODULES}/modules.dep.bin", f"{NET}.zst: {BUS}.zst", f"{NET}.zst: {NET}.zst"),
        f"{MODULES}/modules.dep.bin needs net: the text index has it, the binary one does not",
    ),
    "an alias in the binary index": (
        edit(f"{MODULES}/modules.alias", "alias usb:v0B95p* net\n", ""),
        f"{MODULES}/modules.alias.bin needs usb:v0B95p*: the binary index has it, the text one does not",
    ),
    "kmod": (link("usr/sbin/modprobe", "../bin/busybox"), "sbin/modprobe needs libzstd.so.*: "),
}  # fmt: skip


@pytest.mark.parametrize("what", KMOD_MISSING)
def test_what_kmods_modprobe_needs_is_checked(what: str) -> None:
    change, said = KMOD_MISSING[what]
    known = kmod_entries()
    change(known)
    assert any(one.startswith(said) for one in problems(known)), problems(known)


def test_everything_is_listed_not_only_the_first() -> None:
    known = entries()
    for path in ("usr/bin/cat", f"{MODULES}/{BUS}", "proc", "usr/lib/firmware/net/a.bin"):
        del known[path]
    assert len(problems(known)) == 4


def test_a_libraries_runpath_and_a_programs_rpath_are_followed() -> None:
    for tag, found in (("--enable-new-dtags", False), ("--disable-new-dtags", True)):
        known = entries()
        rpath = program("libone.so.1", options=("-Wl,-rpath,$ORIGIN/../own", f"-Wl,{tag}"))
        put("usr/bin/tool", rpath, 0o755)(known)
        for name in ("libone.so.1", "libtwo.so.2"):
            drop(f"{LIB}/{name}")(known)
        put("usr/own/libone.so.1", library("libone.so.1", "libtwo.so.2"))(known)
        put("usr/own/libtwo.so.2", library("libtwo.so.2"))(known)
        # A program's RUNPATH is its own; its old RPATH is its libraries' too (ld.so(8)).
        chain = [] if found else ["usr/bin/tool needs libone.so.1, which needs libtwo.so.2: not in the image"]
        assert problems(known) == chain


def test_what_the_c_library_opens_by_name_is_wanted() -> None:
    known = entries()
    source = 'const char opened[] = "\\0libgcc_s.so.1\\0GLIBC_2.34";'
    put(f"{LIB}/libc.so.6", library("libc.so.6", source=source))(known)
    put("usr/bin/tool", program("libone.so.1", "libc.so.6"), 0o755)(known)
    assert problems(known) == ["usr/bin/tool needs libc.so.6, which needs libgcc_s.so.1: not in the image"]
    put(f"{LIB}/libgcc_s.so.1", library("libgcc_s.so.1"))(known)
    assert problems(known) == []
    put("etc/nsswitch.conf", b"# first\npasswd: files\nhosts: files [NOTFOUND=return] dns ldap\n")(known)
    assert problems(known) == [
        "etc/nsswitch.conf (hosts: files) needs etc/hosts: not in the image",
        "etc/nsswitch.conf (passwd: files) needs etc/passwd: not in the image",
        "etc/nsswitch.conf (hosts: ldap) needs libnss_ldap.so.2: not in the image",
    ]
    put(f"{LIB}/libc.so.6", library("libc.so.6", source=source.replace("2.34", "2.31")))(known)
    assert "etc/nsswitch.conf (hosts: dns) needs libnss_dns.so.2: not in the image" in problems(known)


def test_programs_that_look_up_names_need_the_files_that_say_how() -> None:
    known = entries()
    put("usr/bin/curl", program(), 0o755)(known)
    assert [text.partition(",")[0] for text in problems(known)] == [
        "curl needs etc/hosts: not in the image",
        "curl needs etc/nsswitch.conf: not in the image",
    ]


def test_links_into_what_appears_while_the_system_runs_are_fine() -> None:
    known = entries()
    link("etc/mtab", "../proc/self/mounts")(known)
    link("etc/resolv.conf", "/run/resolv.conf")(known)
    assert problems(known) == []


def test_a_part_that_a_condition_asks_for_may_be_left_out() -> None:
    known = entries()
    more = 'if [ -e "$LIB/more.sh" ]; then\n    . "$LIB/more.sh"\n    more\nfi\n'
    edit("init", "part\n", f'part\n{more}[ -e "$LIB/more.sh" ] || exit\nmore "$LIB/x"\n')(known)
    assert problems(known) == []
    put("usr/lib/capsulekit/more.sh", b"# shellcheck shell=sh\nless() { :; }\n")(known)
    assert problems(known) == ["init needs more: not in the image", "init needs /lib/capsulekit/x: not in the image"]


@pytest.mark.parametrize(
    "text",
    [
        'if ! [ -e "$LIB/more.sh" ]; then more; fi', 'if { ! [ -e "$LIB/more.sh" ]; }; then more; fi',
        '! [ -e "$LIB/more.sh" ] || exit\nmore', '[ -e "$LIB/more.sh" ] || exit & more',
    ],
)  # fmt: skip
def test_a_condition_that_holds_without_the_part_excuses_nothing(text: str) -> None:
    known = entries()
    edit("init", "part\n", f"part\n{text}\n")(known)
    assert problems(known) == ["init needs more: not in the image"]


def test_a_command_that_is_only_tried_may_be_missing() -> None:
    known = entries()
    edit("init", "tool\n", "tool\nreboot\n")(known)
    assert problems(known) == ["init needs reboot: not in the image"]
    edit("init", "#!/bin/sh\n", "#!/bin/sh\n# tries: reboot\n")(known)
    assert problems(known) == []


RECORDS = {
    "no JSON": (b"{", "is not JSON"),
    "deep JSON": (b"[" * 100_000, "is not JSON"),
    "a list": (b"[]", "is not a record of format 1"),
    "another format": (record(format=2), "is not a record of format 1"),
    "modules": (record(modules="net"), "modules is missing"),
    "commands": (record(commands=None), "commands is missing"),
    "modules of numbers": (record(modules=[1]), "modules is missing"),
    "firmware": (record(firmware_missing=[{"module": "net"}]), "firmware_missing is missing"),
    "firmware of a list": (record(firmware_missing=[["net", "x"]]), "firmware_missing is missing"),
    "release": (record(release=None), "release is missing"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_is_none_is_a_problem(what: str) -> None:
    data, said = RECORDS[what]
    known = entries()
    put("usr/lib/capsulekit/stage1.json", data)(known)
    (found,) = problems(known)
    assert found.startswith("usr/lib/capsulekit/stage1.json") and said in found


def test_a_library_that_nobody_loads_is_checked_by_itself() -> None:
    known = entries()
    put(f"{LIB}/plugin.so", library("plugin.so", "libthree.so.3"))(known)
    assert problems(known) == [f"{LIB}/plugin.so needs libthree.so.3: {NOT_HERE}"]


def test_dependencies_are_said_from_the_top() -> None:
    known = entries()
    put(f"{MODULES}/modules.dep", f"{DEP}kernel/net/top.ko: {NET} {BUS}\n".encode())(known)
    put(f"{MODULES}/kernel/net/top.ko", module("top", "net"))(known)
    drop(f"{MODULES}/{BUS}")(known)
    assert problems(known) == [f"kernel/net/top.ko needs {NET}, which needs {BUS}: not in the image"]
