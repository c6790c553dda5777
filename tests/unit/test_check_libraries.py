"""`stage1 check` finds a library where the image's own loader would, and nowhere else."""

from __future__ import annotations

from image_of import image_of
from initramfs_builder import cpio
from initramfs_builder.check.closure import check_facts
from initramfs_builder.cpio import Entry
from small_image import entries, library, program

LIB = "usr/lib/test"


def put(known: dict[str, Entry], path: str, data: bytes) -> None:
    known[path] = cpio.regular(path, data, 0o755)


def problems(known: dict[str, Entry]) -> list[str]:
    return [problem.text for problem in check_facts(image_of(known.values()))]


def test_an_rpath_reaches_through_a_library_that_has_a_runpath_of_its_own() -> None:
    known = entries()
    old = program("libone.so.1", options=("-Wl,-rpath,$ORIGIN/../own", "-Wl,--disable-new-dtags"))
    own = ("-Wl,-rpath,/usr/elsewhere", "-Wl,--enable-new-dtags")
    put(known, "usr/bin/tool", old)
    put(known, "usr/own/libone.so.1", library("libone.so.1", "libmid.so", options=own))
    put(known, "usr/elsewhere/libmid.so", library("libmid.so", "liblast.so"))
    put(known, "usr/own/liblast.so", library("liblast.so"))
    assert problems(known) == []
    # A file that has a RUNPATH is itself searched for by that alone (ld.so(8)).
    put(known, "usr/own/libmid.so", library("libmid.so"))
    del known["usr/elsewhere/libmid.so"]
    assert problems(known) == ["usr/bin/tool needs libone.so.1, which needs libmid.so: not in the image"]


def test_origin_is_where_a_library_was_found_not_where_its_link_leads() -> None:
    known = entries()
    put(known, "usr/real/libone.so.1", library("libone.so.1", "libinner.so", options=("-Wl,-rpath,$ORIGIN",)))
    one = f"{LIB}/libone.so.1"
    known[one] = cpio.symlink(one, "../../real/libone.so.1")
    put(known, "usr/real/libinner.so", library("libinner.so"))
    assert problems(known) == ["usr/bin/tool needs libone.so.1, which needs libinner.so: not in the image"]
    put(known, f"{LIB}/libinner.so", library("libinner.so"))
    assert problems(known) == []
