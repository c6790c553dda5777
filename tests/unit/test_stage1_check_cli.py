"""`stage1 check` as a command and as a gate: which image it takes, what it prints, how it ends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from capsulekit_cli import cli
from image_of import packed
from initramfs_builder import cpio
from initramfs_builder.check.closure import ClosureError, check_image, must_be_closed
from initramfs_builder.check.record import Record
from initramfs_builder.cpio import Entry
from small_image import RELEASE, entries, record

Entries = dict[str, Entry]
Change = Callable[[Entries], object]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/stage1.img").write_bytes(packed(entries().values()))
    (tmp_path / "stage1/stage1.json").write_bytes(record())
    return tmp_path / "stage1"


def without(folder: Path, *paths: str) -> Path:
    known = entries()
    for path in paths:
        del known[path]
    (folder / "stage1.img").write_bytes(packed(known.values()))
    return folder


def test_an_image_that_was_not_closed_is_refused_with_everything_it_lacks(good: Path) -> None:
    must_be_closed(good / "stage1.img", "it")
    with pytest.raises(ClosureError, match="it would not boot: 2 things are missing") as error:
        must_be_closed(without(good, "usr/bin/tool", "proc") / "stage1.img", "it")
    assert error.value.details == ("init needs tool: not in the image", "init needs proc: not in the image")
    with pytest.raises(ClosureError, match="it would not boot: 1 thing is missing"):
        must_be_closed(without(good, "proc") / "stage1.img", "it")


def test_an_image_without_a_record_is_checked_against_what_is_told(good: Path) -> None:
    without(good, "usr/lib/capsulekit/stage1.json")
    told = Record(RELEASE, ("net", "loop"), frozenset({("net", "net/old.bin")}))
    assert check_image(good, told).problems == ()
    assert [p.text for p in check_image(good, dataclasses.replace(told, modules=("wifi",))).problems] == [
        "the recipe needs wifi: neither in the image nor built into the kernel"
    ]


@pytest.mark.parametrize("form", ["folder", "image", "default"])
def test_the_command_says_what_it_looked_at(good: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(good.parent)
    words = {"folder": [str(good)], "image": [str(good / "stage1.img")], "default": []}[form]
    done = cli("stage1", "check", *words)
    assert (done.status, done.err) == (0, "")
    assert "nothing is missing (50 entries, 5 programs, 3 scripts, 2 modules)" in done.out
    assert cli("stage1", "check", "-q", *words) == (0, "", "")


def test_the_command_lists_what_is_missing_and_ends_with_1(good: Path) -> None:
    done = cli("stage1", "check", without(good, "usr/bin/tool", "proc"))
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines()[0] == f"ERROR: {good}/stage1.img would not boot: 2 things are missing"
    assert done.err.splitlines()[1:3] == ["  init needs tool: not in the image", "  init needs proc: not in the image"]


def test_programs_get_the_same_as_json(good: Path) -> None:
    assert json.loads(cli("--json", "stage1", "check", good).out)["ok"] is True
    done = cli("--json", "stage1", "check", without(good, "proc"))
    told = json.loads(done.out)
    assert (done.status, told["ok"], told["looked_at"]["modules"]) == (1, False, 2)
    assert told["problems"] == [
        {"kind": "folder", "chain": ["init", "proc"], "what": "not in the image",
         "text": "init needs proc: not in the image"}
    ]  # fmt: skip


def test_a_record_beside_the_image_must_be_the_images_own(good: Path) -> None:
    (good / "stage1.json").write_bytes(record(profile="other"))
    done = cli("stage1", "check", good)
    assert done.status == 1 and f"{good}/stage1.json: is not what the image itself says" in done.err
    (good / "stage1.json").unlink()
    assert cli("stage1", "check", good).status == 1
    assert cli("stage1", "check", good / "stage1.img").status == 0


def test_a_damaged_image_ends_with_3_and_a_wrong_name_with_2(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = good / "stage1.img"
    image.write_bytes(image.read_bytes()[:5000])
    done = cli("stage1", "check", good)
    assert done.status == 3 and "is a damaged image" in done.err and len(done.err.splitlines()) == 2
    assert cli("stage1", "check", good / "nothing").status == 2
    monkeypatch.chdir("/")
    done = cli("stage1", "check")
    assert done.status == 2 and "there is no stage1" in done.err
    image.unlink()
    done = cli("stage1", "check", good)
    assert done.status == 2 and f"there is no {image}" in done.err


def test_names_of_any_bytes_are_said_on_one_line_and_harmless_to_a_terminal(good: Path) -> None:
    known = entries()
    odd = "usr/lib/a\nb\x1b[2J\udcff"
    known[odd] = cpio.symlink(odd, "x\ty")
    (good / "stage1.img").write_bytes(packed(known.values()))
    said = "usr/lib/a\\nb\\x1b[2J\\udcff needs x\\ty: not in the image"
    assert cli("stage1", "check", good).err.splitlines()[1] == f"  {said}"
    assert json.loads(cli("--json", "stage1", "check", good).out)["problems"][0]["text"] == said
