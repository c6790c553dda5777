"""What is exported, under which number, by which settings: the parts of the NFS manager by themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.nfs import blobs, ganesha
from provisioner.nfs.ganesha import Export, config_text
from provisioner.nfs.needed import BLOBS_ID, FIRST_ID, LAST_ID, export_ids
from provisioner.services import nfs as kernel

ONE, TWO = "00000001" + "a" * 56, "00000001" + "b" * 56  # the same wish


# --- numbers


def test_a_layers_number_comes_from_its_digest_and_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    first = export_ids(file, [ONE])
    assert first == {ONE: FIRST_ID + 1}
    both = export_ids(file, [TWO, ONE])
    assert both == {ONE: FIRST_ID + 1, TWO: FIRST_ID + 2}, "two that wish for one number get two"
    assert export_ids(file, [TWO]) == {TWO: FIRST_ID + 2}, "and keep them"
    file.unlink()
    assert export_ids(file, [TWO]) == {TWO: FIRST_ID + 1}


def test_numbers_are_never_those_of_the_root_or_the_public_files(tmp_path: Path) -> None:
    many = [f"{n * 65533 + 7:08x}" + "c" * 56 for n in range(200)] + ["f" * 64, "0" * 64]
    found = export_ids(tmp_path / "ids.json", many)
    assert len(set(found.values())) == len(many)
    assert all(FIRST_ID <= number <= LAST_ID for number in found.values()) and BLOBS_ID < FIRST_ID


@pytest.mark.parametrize(
    "damaged", ["", "[]", "{", '{"x": "y"}', '{"a": 0}', '{"a": 5, "b": 5}', "null", '{"a": 70000}']
)
def test_a_damaged_record_of_numbers_is_made_anew(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "ids.json").write_text(damaged)
    assert export_ids(tmp_path / "ids.json", [ONE]) == {ONE: FIRST_ID + 1}
    assert json.loads((tmp_path / "ids.json").read_text()) == {ONE: FIRST_ID + 1}


# --- ganesha's settings


def test_its_settings_say_nfs_4_this_address_and_these_networks_only(tmp_path: Path) -> None:
    text = config_text(tmp_path, "10.0.0.1", ["10.0.0.0/24", "10.1.0.0/16"], [Export(7, Path("/s/l"), "/layers/l")])
    for wanted in ("Protocols = 4;", "Bind_addr = 10.0.0.1;", "Clients = 10.0.0.0/24, 10.1.0.0/16; Access_Type = RO;",
                   "Squash = All_Squash;", "Export_Id = 7;", 'Path = "/s/l";', "Only_Numeric_Owners = true;",
                   f'RecoveryRoot = "{tmp_path}/recovery";'):  # fmt: skip
        assert wanted in text
    assert re.findall(r"^  Access_Type = (\w+);$", text, re.M) == ["None"], "who is no client has nothing"
    assert "EXPORT {" not in config_text(tmp_path, "10.0.0.1", [], [])


@pytest.mark.parametrize("path", ['/a"b', "/a\\b", "/a\nEXPORT {}"])
def test_a_path_that_its_settings_can_not_hold_is_refused(path: str) -> None:
    with pytest.raises(CapsulekitError, match="can't be told the path"):
        config_text(Path("/x"), "10.0.0.1", [], [Export(7, Path(path), "/layers/l")])


def test_nobody_answers_where_there_is_no_server() -> None:
    assert not ganesha.answers("127.0.0.1", 9, 0.3)


def test_the_packages_are_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ganesha, "PROGRAM", "ganesha.nfsd.missing")
    assert ganesha.missing() == "apt-get install nfs-ganesha nfs-ganesha-vfs"


# --- the kernel's server: it can't run here, so its file and the call of a recorded exportfs are looked at


@pytest.fixture
def exportfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exportfs that writes down how it was called, and what exports.d held then."""
    program = tmp_path / "bin" / "exportfs"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\ncat {tmp_path}/exports.d/* >>{tmp_path}/calls 2>/dev/null\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "calls"


def test_the_kernel_is_told_each_layer_by_a_file_of_its_own(tmp_path: Path, exportfs: Path) -> None:
    line = kernel.layer_line(Path("/s/nfs/layers/10.0.0.1") / ("ab" * 16), ["10.0.0.0/24", "10.1.0.0/16"], "ab" * 16)
    uuid = "abababab-abab-abab-abab-abababababab"
    options = f"ro,all_squash,no_subtree_check,sec=sys,fsid={uuid}"
    assert line == f"/s/nfs/layers/10.0.0.1/{'ab' * 16} 10.0.0.0/24({options}) 10.1.0.0/16({options})"
    kernel.export_layers("10.0.0.1", [line], tmp_path / "exports.d")
    assert exportfs.read_text().splitlines()[0] == "-ra" and line in exportfs.read_text()
    assert [path.name for path in (tmp_path / "exports.d").iterdir()] == ["capsulekit-10.0.0.1.exports"]
    (tmp_path / "exports.d/capsulekit-10.0.0.2.exports").write_text("# another master's\n")
    kernel.export_layers("10.0.0.1", [], tmp_path / "exports.d")
    assert [path.name for path in (tmp_path / "exports.d").iterdir()] == ["capsulekit-10.0.0.2.exports"]
    assert exportfs.read_text().count("-ra") == 2
    kernel.export_layers("10.0.0.1", [], tmp_path / "exports.d")
    assert exportfs.read_text().count("-ra") == 2, "nothing changed, nobody is called"


def test_public_files_have_a_number_of_their_own_in_the_kernel_too() -> None:
    one, two = (kernel.layer_line(Path("/s/nfs/blobs"), ["10.0.0.0/24"], name) for name in ("blobs", "blobs"))
    assert one == two and re.search(r"fsid=[0-9a-f]{8}-", one)


@pytest.mark.parametrize("folder", ["/a b", '/a"', "/a#b", "/a\\b", "/a\tb", "/a\nb"])
def test_a_path_that_exports_can_not_hold_is_refused(folder: str) -> None:
    with pytest.raises(CapsulekitError, match="can't hold the path"):
        kernel.layer_line(Path(folder), ["10.0.0.0/24"], "ab" * 16)


def test_without_exportfs_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "kernel_missing", lambda: "apt-get install nfs-kernel-server (RPM: nfs-utils)")
    with pytest.raises(CapsulekitError, match="exportfs is not installed") as error:
        kernel.export_layers("10.0.0.1", ["/x 10.0.0.0/24(ro)"], tmp_path / "exports.d")
    assert "nfs-kernel-server" in (error.value.hint or "")
    assert not (tmp_path / "exports.d").exists()


# --- the public files


def blob(folder: Path, data: bytes, mode: int = 0o644) -> str:
    sha256 = subprocess.run(["sha256sum"], input=data, capture_output=True, check=True).stdout[:64].decode()
    place = folder / sha256[:2] / sha256
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    place.chmod(mode)
    return sha256


def test_public_files_are_links_and_follow_what_becomes_of_them(tmp_path: Path) -> None:
    store, folder = tmp_path / "blobs", tmp_path / "nfs/blobs"
    one, two, secret = blob(store, b"1"), blob(store, b"2"), blob(store, b"3", 0o600)
    (store / one[:2] / f".{one}.x.part").write_text("unfinished")
    (store / one[:2] / "README").write_text("no member")
    assert blobs.offer(store, folder) == 2
    assert {path.name for path in folder.iterdir()} == {one, two}
    assert (folder / one).samefile(store / one[:2] / one)
    (store / one[:2] / one).chmod(0o600)
    (store / secret[:2] / secret).chmod(0o644)
    assert blobs.offer(store, folder) == 2
    assert {path.name for path in folder.iterdir()} == {secret, two}
    (store / two[:2] / two).unlink()
    (folder / "stray").write_text("not ours to offer")
    assert blobs.offer(store, folder) == 1
    blobs.withdraw(folder)
    assert list(folder.iterdir()) == [] and (store / secret[:2] / secret).exists()


def test_a_link_in_the_store_is_never_followed(tmp_path: Path) -> None:
    store, folder = tmp_path / "blobs", tmp_path / "nfs/blobs"
    (tmp_path / "registry.db").write_text("x")
    place = store / "ab" / ("ab" * 32)
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "registry.db")
    assert blobs.offer(store, folder) == 0


def test_a_blob_that_was_written_anew_is_linked_anew(tmp_path: Path) -> None:
    store, folder = tmp_path / "blobs", tmp_path / "nfs/blobs"
    one = blob(store, b"1")
    blobs.offer(store, folder)
    (store / one[:2] / one).unlink()
    blob(store, b"1")
    assert blobs.offer(store, folder) == 1
    assert (folder / one).samefile(store / one[:2] / one)
