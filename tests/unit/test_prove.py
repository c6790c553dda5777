"""A proof says what really differed in the surroundings, and which paths came out otherwise; its verdict is signed."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from small_capsule import AUTHOR

from capsulekit.image.compare import Difference, compare
from capsulekit.image.listing import Layer
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.perturb import BOTH, Perturbation, judge
from capsulekit.prove import MemberDifference, Proof, Verdict, describe, write_verdict
from capsulekit.witness import Seen, look

HERE = Seen(1e9, "home", 3600, "C.UTF-8", 0o022, 0, False, "/home/cache", 2, ["a", "b", "c"])
THERE = Seen(1e9, "away", 0, "C", 0o077, 4242, False, "/mnt/b", 1, ["b", "c", "a"], inside=True)


def judged(
    there: Seen, moved: float = 400 * 86400 + 5, refused: dict[str, str] | None = None
) -> dict[str, Perturbation]:
    return {one.what: one for one in judge(HERE, there, moved, 60, refused or {})}


# --- what counts as a perturbation


def test_what_was_seen_to_differ_is_told_with_its_value() -> None:
    told = {what: one.value for what, one in judged(THERE).items()}
    assert told == {
        "clock": "+400 days",
        "clock inside the root": "+400 days",
        "hostname": "away",
        "time zone": "+0 h",
        "locale": "C",
        "umask": "0077",
        "user": "uid 4242",
        "path": "/mnt/b",
        "cores": "1",
        "readdir": "another order",
    }


def test_what_was_not_seen_to_differ_is_never_claimed_and_has_its_reason() -> None:
    told = judged(replace(HERE, inside=False), 5, {"clock": "datefudge is not installed"})
    assert {one.value for one in told.values()} == {""}
    assert told["clock"].reason == "datefudge is not installed"
    assert told["cores"].reason == "it is the same as outside"
    assert all(one.reason for one in told.values())


def test_a_clock_that_only_the_builder_sees_moved_is_not_claimed_for_the_root() -> None:
    told = judged(replace(THERE, inside=False))
    assert told["clock"].value == "+400 days" and told["clock inside the root"].value == ""


def test_roots_of_a_namespace_and_of_the_machine_are_told_apart() -> None:
    assert judged(replace(THERE, uid=0, contained=True))["user"].value == "root of a user namespace"
    assert judged(replace(HERE, uid=0))["user"].value == ""


def test_both_surroundings_differ_from_each_other_in_everything() -> None:
    for one, two in itertools.combinations(BOTH, 2):
        assert not {name for name in vars(one) if vars(one)[name] == vars(two)[name]}


def test_a_program_sees_its_own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    seen = look(tmp_path)
    assert seen.locale == "C", "a locale that is not installed is none"
    assert sorted(seen.order) == sorted(f"name-{n}" for n in range(32)) and not list(tmp_path.iterdir())
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert look(tmp_path).locale == "C.UTF-8"


# --- the verdict


def verdict(same: bool = True) -> Verdict:
    perturbations = tuple(judge(HERE, THERE, 400 * 86400, 60, {}))
    found = Difference("etc/odd name\udcff", ("content", "mode"))
    differing = () if same else (MemberDifference("layers/rootfs.squashfs", ((found, "script 50-motd"),)),)
    return Verdict(
        "tiny-1.0.amd64",
        "aa" * 32,
        AUTHOR.public.id,
        (
            Proof("A", perturbations, "aa" * 32, ()),
            Proof(
                "B",
                (*perturbations[:-1], Perturbation("readdir", reason="no")),
                ("aa" if same else "bb") * 32,
                differing,
            ),
        ),
    )


def test_a_verdict_names_differing_paths_with_their_owner_and_what_was_not_applied() -> None:
    told = json.loads(verdict(same=False).dumps())
    assert told["same"] is False and [one["same"] for one in told["rebuilds"]] == [True, False]
    assert told["rebuilds"][1]["differing"] == [
        {
            "member": "layers/rootfs.squashfs",
            "paths": [{"path": "/etc/odd%20name%FF", "what": ["content", "mode"], "owner": "script 50-motd"}],
        }
    ]
    assert told["rebuilds"][1]["not_applied"] == [{"what": "readdir", "reason": "no"}]
    assert {"what": "umask", "value": "0077"} in told["rebuilds"][0]["perturbations"]
    text = describe(verdict(same=False))
    assert (
        "/etc/odd%20name%FF (content, mode): script 50-motd" in text and "rebuild B: not applied: readdir: no" in text
    )


def test_the_same_findings_give_the_same_bytes() -> None:
    assert verdict().dumps() == verdict().dumps() and json.loads(verdict().dumps())["same"] is True


@pytest.mark.skipif(not shutil.which("minisign"), reason="needs minisign")
def test_stock_minisign_checks_the_verdict(tmp_path: Path) -> None:
    out = tmp_path / "x.vnfs.verdict.json"
    write_verdict(verdict(), out, AUTHOR)
    check = ["minisign", "-V", "-m", out, "-P", AUTHOR.public.text]
    done = subprocess.run(check, capture_output=True, text=True, check=True)
    assert f"Trusted comment: verdict same capsule tiny-1.0.amd64 identity {'aa' * 32}" in done.stdout
    out.write_bytes(verdict(same=False).dumps())
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


# --- which paths of a layer differ

needs_squashfs = pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")


def packed_layer(path: Path, **changes: object) -> Layer:
    """A layer of a few files; ``changes`` are for etc/file: data, mode, uid, xattr, name."""
    with layer_from_tar(path, 1, 3) as sink, tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("etc", tarfile.DIRTYPE), ("etc/same", tarfile.REGTYPE), ("etc/link", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname = kind, 0o755, "same" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info)
        data = bytes(changes.get("data", b"hello"))  # type: ignore[call-overload]
        info = tarfile.TarInfo(str(changes.get("name", "etc/file")))
        info.size, info.mode, info.uid = len(data), int(changes.get("mode", 0o644)), int(changes.get("uid", 0))  # type: ignore[call-overload]
        if "xattr" in changes:
            info.pax_headers = {"SCHILY.xattr.user.note": str(changes["xattr"])}
        tar.addfile(info, io.BytesIO(data))
    return Layer(path)


@needs_squashfs
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"data": b"other"}, [("etc/file", ("content",))]),
        ({"mode": 0o600, "uid": 7}, [("etc/file", ("mode", "owner"))]),
        ({"xattr": "two"}, [("etc/file", ("xattr",))]),
        ({"name": "etc/öther"}, [("etc/file", ("missing",)), ("etc/öther", ("new",))]),
    ],
)
def test_each_differing_path_is_named_with_what_differs(
    tmp_path: Path, changes: dict[str, object], found: list[tuple[str, tuple[str, ...]]]
) -> None:
    base = {"xattr": "one"} if "xattr" in changes else {}
    one, two = packed_layer(tmp_path / "one", **base), packed_layer(tmp_path / "two", **changes)
    (tmp_path / "work").mkdir()
    assert [(d.path, d.what) for d in compare(one, two, tmp_path / "work")] == found
