"""Where a site's file really goes: links in the root are followed inside of it, and folders keep their look."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.image.listing import FILE, FOLDER, LINK, Entry
from capsulekit.image.squashfs import layer_from_tar
from provisioner.vnfs.questions import SiteFile
from provisioner.vnfs.sitelayer import place, seen_root, write_layer

ROOT = {
    "": Entry(FOLDER, 0o755, 0, 0),
    "etc": Entry(FOLDER, 0o755, 0, 0),
    "etc/file": Entry(FILE, 0o644, 0, 0),
    "etc/localtime": Entry(LINK, 0o777, 0, 0, target="/usr/share/zone"),
    "lib": Entry(LINK, 0o777, 0, 0, target="usr/lib"),
    "out": Entry(LINK, 0o777, 0, 0, target="../../../etc"),
    "absolute": Entry(LINK, 0o777, 0, 0, target="/lib/deep"),
    "one": Entry(LINK, 0o777, 0, 0, target="two"),
    "two": Entry(LINK, 0o777, 0, 0, target="one"),
    "dangling": Entry(LINK, 0o777, 0, 0, target="new/place"),
    "usr": Entry(FOLDER, 0o755, 0, 0),
    "usr/lib": Entry(FOLDER, 0o751, 3, 4),
}


def file(path: str) -> SiteFile:
    return SiteFile(path, b"x", 0o644)


@pytest.mark.parametrize(
    ("wanted", "real"),
    [
        ("etc/new", "etc/new"),
        ("new/folder/x", "new/folder/x"),
        ("x", "x"),
        ("lib/x", "usr/lib/x"),
        ("absolute/x", "usr/lib/deep/x"),
        ("out/x", "etc/x"),
        ("dangling/x", "new/place/x"),
        ("etc/localtime", "etc/localtime"),
        ("etc/file", "etc/file"),
    ],
)
def test_links_on_the_way_are_followed_inside_of_the_root(wanted: str, real: str) -> None:
    assert [one.path for one in place(ROOT, [file(wanted)])] == [real]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (["one/x"], "links that never end"),
        (["etc/file/x"], "/etc/file is no folder"),
        (["usr/lib"], "a folder at /usr/lib"),
        (["lib/x", "usr/lib/x"], "one and the same"),
    ],
)
def test_a_place_that_is_none_is_named(wanted: list[str], told: str) -> None:
    with pytest.raises(CapsulekitError, match=told):
        place(ROOT, [file(path) for path in wanted])


def layer(out: Path, *paths: tuple[str, bytes]) -> Path:
    with layer_from_tar(out, 1, 1) as sink, tarfile.open(fileobj=sink, mode="w|") as tar:
        for path, kind in paths:
            info = tarfile.TarInfo(path)
            info.type, info.linkname = kind, "target" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info, io.BytesIO())
    return out


def test_upper_layers_hide_and_remove_what_is_below(tmp_path: Path) -> None:
    below = layer(
        tmp_path / "a",
        ("d", tarfile.DIRTYPE),
        ("d/x", tarfile.REGTYPE),
        ("e", tarfile.DIRTYPE),
        ("e/y", tarfile.REGTYPE),
    )
    above = layer(tmp_path / "b", ("d", tarfile.CHRTYPE), ("e", tarfile.SYMTYPE))
    root = seen_root([above, below])
    assert {path: entry.kind for path, entry in root.items() if path} == {"e": LINK}
    assert set(seen_root([below, above])) == {"", "d", "d/x", "e", "e/y"}


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    placed = place(ROOT, [file("lib/x"), file("etc/a")])
    sizes = [write_layer(tmp_path / name, ROOT, placed, 1_700_000_000) for name in ("one", "two")]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sizes[0] == sizes[1] > 0
