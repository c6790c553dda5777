"""A layer is listed as it is, out of the middle of a file; a damaged one is refused in one line."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest
from told_capsule import Node, write_layer

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.image.listing import Layer, copy_file, list_digested, list_layer, read_files

pytestmark = pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")
OFFSET = 12288
BIG = bytes(range(256)) * 20000
ODD = ("a b", 'q"uote', "back\\slash", "l -> x", "dév/ü", "b\udcff\udcfe", "-dash", "nl\nx", "tab\tx", "st*ar[1]?")
NODES = {
    **{name: Node(name.encode("utf-8", "surrogateescape")) for name in ODD},
    "dir": Node(mode=0o2750, uid=70000),
    "dir/hard": Node(hard="a b"),
    "empty": Node(b""),
    "big": Node(BIG, mode=0o4755, uid=42),
    "link": Node(link="../a b -> c"),
    "null": Node(device=(1, 3)),
    "whiteout": Node(device=(0, 0)),
    "fifo": Node(kind=tarfile.FIFOTYPE),
}


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    """The layer in the middle of a file, as a capsule holds it."""
    folder = tmp_path_factory.mktemp("layer")
    packed = write_layer(folder / "layer.squashfs", NODES).read_bytes()
    (folder / "file").write_bytes(b"c" * OFFSET + packed + b"after" * 100)
    return Layer(folder / "file", OFFSET)


def test_every_name_type_mode_owner_size_and_target_is_told(layer: Layer) -> None:
    seen = list_layer(layer)
    assert seen.keys() == {"", "dév", *NODES}
    assert {name: seen[name].kind for name in ("", "dir", "big", "link", "null", "fifo")} == {
        "": "folder",
        "dir": "folder",
        "big": "file",
        "link": "link",
        "null": "character device",
        "fifo": "fifo",
    }
    assert (seen["dir"].mode, seen["dir"].uid) == (0o2750, 70000)
    assert (seen["big"].mode, seen["big"].uid, seen["big"].size) == (0o4755, 42, len(BIG))
    assert seen["link"].target == "../a b -> c"
    assert (seen["null"].target, seen["whiteout"].target) == ("1:3", "0:0")
    assert (seen["dir/hard"].hard, seen["dir/hard"].size, seen["a b"].hard) == ("a b", 3, "")


def test_every_files_content_is_digested_hard_links_too(layer: Layer) -> None:
    seen = list_digested(layer)
    contents = {name: node.data for name, node in NODES.items() if node.data is not None} | {"dir/hard": b"a b"}
    assert {name: entry.digest for name, entry in seen.items() if entry.kind == "file"} == {
        name: hashlib.sha256(data).hexdigest() for name, data in contents.items()
    }


def test_files_are_read_by_glob_and_no_more_than_is_allowed(layer: Layer) -> None:
    assert read_files(layer, ["d*v/*", "empty", "nothing*"]) == {"dév/ü": "dév/ü".encode(), "empty": b""}
    with pytest.raises(TrustError, match=r"/big .* at most 1000 are expected"):
        read_files(layer, ["big"], limit=1000)


@pytest.mark.parametrize("name", ["big", "st*ar[1]?", "back\\slash", "-dash", "b\udcff\udcfe"])
def test_one_file_is_copied_by_its_exact_name(layer: Layer, name: str) -> None:
    out = io.BytesIO()
    copy_file(layer, f"/{name}", out)
    assert out.getvalue() == NODES[name].data


def test_a_file_that_is_not_there_is_said_so(layer: Layer) -> None:
    with pytest.raises(TrustError, match="holds no file /st"):
        copy_file(layer, "st", io.BytesIO())


@pytest.mark.parametrize("damage", ["no superblock", "cut short", "zeroed"])
def test_a_damaged_layer_is_refused_in_one_line(layer: Layer, tmp_path: Path, damage: str) -> None:
    data = layer.image.read_bytes()
    forged = {
        "no superblock": data[: OFFSET - 1] + data[OFFSET:],
        "cut short": data[: OFFSET + 300],
        "zeroed": data[: OFFSET + 96] + bytes(len(data) - OFFSET - 96),
    }[damage]
    (tmp_path / "bad").write_bytes(forged)
    for read in (list_layer, list_digested):
        with pytest.raises(TrustError, match="bad: ") as refused:
            read(Layer(tmp_path / "bad", OFFSET))
        assert "\n" not in refused.value.message


def test_without_unsquashfs_the_way_out_is_said(layer: Layer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "setpriv").symlink_to(str(shutil.which("setpriv")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapsulekitError) as missing:
        list_layer(layer)
    assert missing.value.hint == "apt-get install squashfs-tools"
