"""`diff` tells what differs by package, path, size and kernel, and puts every path down to its cause."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_capsule import AUTHOR
from told_capsule import LOCK, MODULES, OWNERS, ROOT, Node, Told, package, told_capsule

from capsulekit.cli.main import main
from capsulekit.diff import Difference, as_json, describe, diff

pytestmark = pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")
BEFORE = Told()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told_capsule(tmp_path_factory.mktemp("diff") / "first.vnfs")


def against(first: Path, folder: Path, told: Told) -> Difference:
    return diff(first, told_capsule(folder / "second.vnfs", told), [AUTHOR.public])


def grouped(found: Difference) -> dict[str, dict[str, tuple[str, ...]]]:
    """Cause -> path -> what differs."""
    return {group.cause: {change.path: change.what for change in group.changes} for group in found.causes}


def test_a_capsule_and_its_copy_have_no_difference(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = against(first, tmp_path, BEFORE)
    assert found.same
    assert describe(found).endswith("\nno difference")
    assert main(["diff", str(first), str(tmp_path / "second.vnfs")]) == 0
    assert capsys.readouterr().out.endswith("\nno difference\n")
    assert main(["diff", str(first), str(tmp_path / "second.vnfs"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["same"], told["causes"], told["members"]) == (True, [], [])


def test_an_updated_package_explains_its_files_and_its_database_entry(first: Path, tmp_path: Path) -> None:
    tool = package("tool", "1.1", "recipe")
    after = BEFORE.locked("rootfs", *LOCK.sets["rootfs"][:2], tool)
    after = replace(after, root={**ROOT, "usr/bin/tool": Node(b"TOOL" * 2000, mode=0o755)})
    found = against(first, tmp_path, after)
    assert [(p.name, p.part, p.before, p.after) for p in found.packages] == [("tool", "rootfs", "1.0", "1.1")]
    # The twin is a hard link: the same file.
    assert grouped(found) == {
        "package tool 1.0 → 1.1": {"usr/bin/tool": ("content",)},
        "packages' install scripts and databases": {"usr/bin/twin": ("content",)},
    }
    assert found.unpacked == {"tool": (4013, 8013)}


def test_added_and_removed_packages_explain_the_paths_that_came_and_went(first: Path, tmp_path: Path) -> None:
    extra = package("extra", "3", "recipe")
    lists = {
        "var/lib/dpkg/info/extra.list": Node(b"/usr/bin/extra\n"),
        "var/lib/dpkg/info/tool.list": ROOT["var/lib/dpkg/info/tool.list"],
    }
    kept = {path: node for path, node in ROOT.items() if "libtool" not in path and "lib:amd64" not in path}
    after = BEFORE.locked("rootfs", LOCK.sets["rootfs"][0], LOCK.sets["rootfs"][2], extra)
    found = against(first, tmp_path, replace(after, root={**kept, **lists, "usr/bin/extra": Node(b"e" * 10)}))
    assert grouped(found) == {
        "package extra 3 added": {"usr/bin/extra": ("added",), "var/lib/dpkg/info/extra.list": ("added",)},
        "package lib 2:2.0 removed": {
            "usr/lib/libtool.so": ("removed",),
            "var/lib/dpkg/info/lib:amd64.list": ("removed",),
        },
    }


def test_a_file_of_the_recipe_and_a_script_that_changed_explain_theirs(first: Path, tmp_path: Path) -> None:
    root = {**ROOT, "etc/motd": Node(b"bye\n"), "etc/stamp": Node(b"other\n")}
    found = against(first, tmp_path, replace(BEFORE, motd="bye\\n", script="echo other >/etc/stamp", root=root))
    assert found.recipe == {"file /etc/motd": "changed", "script 50-stamp": "changed"}
    assert grouped(found) == {
        "recipe: file /etc/motd changed": {"etc/motd": ("content",)},
        "recipe: script 50-stamp changed": {"etc/stamp": ("content",)},
    }


def test_what_a_unit_or_a_script_took_away_is_put_down_to_it(first: Path, tmp_path: Path) -> None:
    link = "etc/systemd/system/multi-user.target.wants/tool.service"
    root = {path: node for path, node in ROOT.items() if path not in (link, "etc/tool.conf")}
    found = against(first, tmp_path, replace(BEFORE, verb="disable", script="rm /etc/tool.conf", root=root))
    assert grouped(found)["recipe: service tool.service changed"] == {link: ("removed",)}
    (cause,) = [c for c, paths in grouped(found).items() if "etc/tool.conf" in paths]
    assert cause == "recipe: script 50-stamp changed (which may remove the path)"


def test_a_script_that_gives_other_bytes_each_time_is_named(first: Path, tmp_path: Path) -> None:
    found = against(first, tmp_path, replace(BEFORE, root={**ROOT, "etc/stamp": Node(b"Monday\n")}))
    assert grouped(found) == {"script 50-stamp, unchanged: its output varies": {"etc/stamp": ("content",)}}


def test_a_change_that_no_input_explains_is_said_to_be_unexplained(first: Path, tmp_path: Path) -> None:
    found = against(first, tmp_path, replace(BEFORE, root={**ROOT, "etc/tool.conf": Node(b"a = 2\n")}))
    assert list(grouped(found)) == ["nothing that was given: the build of one of them was not reproducible"]


def test_another_normaliser_and_another_build_time_explain_the_paths_they_touch(first: Path, tmp_path: Path) -> None:
    root = {**ROOT, "etc/shadow": Node(b"root:*:20000:0:99999:7:::\n", mode=0o640)}
    newer = replace(BEFORE, root=root, lock=replace(LOCK, normaliser=4))
    assert list(grouped(against(first, tmp_path, newer))) == ["normaliser 3 → 4"]
    later = replace(BEFORE, root=root, lock=replace(LOCK, epoch=LOCK.epoch + 9))
    found = against(first, tmp_path, later)
    assert list(grouped(found)) == [f"build epoch {LOCK.epoch} → {LOCK.epoch + 9}"]
    assert found.settings == {"epoch": (str(LOCK.epoch), str(LOCK.epoch + 9))}


def test_another_kernel_is_told_by_release_package_and_paths(first: Path, tmp_path: Path) -> None:
    modules = {path.replace("6.1.0-1", "6.1.0-2"): node for path, node in MODULES.items()}
    after = BEFORE.locked("kernel", package("linux-image", "6.1-2", "recipe"))
    found = against(first, tmp_path, replace(after, modules=modules, kernel="6.1.0-2"))
    assert found.settings["kernel_release"] == ("6.1.0-1", "6.1.0-2")
    (cause,) = found.causes
    assert cause.cause == "kernel linux-image 6.1-1 → 6.1-2"
    assert {change.what for change in cause.changes} == {("added",), ("removed",)}
    assert "boot/vmlinuz" in found.members


def test_mode_owner_type_target_and_acl_are_told_apart(first: Path, tmp_path: Path) -> None:
    changed = {
        "etc/tool.conf": Node(b"a = 1\n", mode=0o600),
        "usr/lib/libtool.so": Node(b"lib" * 500, uid=7),
        "etc/tool.cache": Node(link="elsewhere"),
        "lib": Node(link="./usr/lib"),
    }
    acl = b"etc/motd\taccess\tu::rw-,u:7:r--\n"
    found = against(first, tmp_path, replace(BEFORE, root={**ROOT, **changed}, acl=acl))
    assert {c.path: c.what for group in found.causes for c in group.changes} == {
        "etc/tool.conf": ("mode",),
        "usr/lib/libtool.so": ("owner",),
        "etc/tool.cache": ("type", "content", "target", "mode"),
        "lib": ("target",),
        "etc/motd": ("ACL",),
    }


def test_a_path_that_moved_to_the_hybrid_layer_is_moved_not_removed(first: Path, tmp_path: Path) -> None:
    path = "usr/share/doc/tool/b\udcffd"
    root = {p: node for p, node in ROOT.items() if p != path}
    found = against(first, tmp_path, replace(BEFORE, root=root, hybrid={path: ROOT[path]}))
    assert grouped(found)["recipe: hybridize changed"][path] == ("layer",)


def test_another_level_alone_changes_bytes_and_no_path(first: Path, tmp_path: Path) -> None:
    found = against(first, tmp_path, replace(BEFORE, level=15))
    assert (found.same, found.causes, found.settings) == (False, (), {"level": ("3", "15")})
    assert "every path, content, mode and owner is the same" in describe(found)


def test_every_size_is_told_for_the_capsule_its_layers_and_its_packages(first: Path, tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(50000)
    found = against(first, tmp_path, replace(BEFORE, root={**ROOT, "usr/lib/libtool.so": Node(noise)}))
    assert found.sizes["capsule"] == (first.stat().st_size, (tmp_path / "second.vnfs").stat().st_size)
    assert found.sizes["layers/modules.squashfs"][0] == found.sizes["layers/modules.squashfs"][1]
    assert found.sizes["layers/rootfs.squashfs"][0] < found.sizes["layers/rootfs.squashfs"][1]
    assert found.unpacked == {"lib": (1500, 50000)}
    assert found.causes[0].grown == 48500


def test_people_see_few_paths_of_a_cause_and_all_of_them_when_they_ask(first: Path, tmp_path: Path) -> None:
    many = {f"etc/many/{n:02}": Node(b"") for n in range(12)}
    owners = {**OWNERS, "script 50-stamp": ["etc/stamp", *many]}
    told = replace(BEFORE, script="touch many", root={**ROOT, **many, "etc/b\udcff\n": Node(b"")}, owners=owners)
    found = against(first, tmp_path, told)
    assert "… and 7 more" in describe(found)
    assert "more" not in describe(found, verbose=True)
    for path in many:
        assert f"/{path}: added" in describe(found, verbose=True)
    assert "/etc/b%FF%0A: added" in describe(found)
    assert "/etc/b%FF%0A" in json.dumps(as_json(found))


def test_what_no_known_key_signed_is_compared_and_said_to_be_unverified(first: Path, tmp_path: Path) -> None:
    found = diff(first, told_capsule(tmp_path / "s.vnfs", replace(BEFORE, version="2")), [])
    assert [reason.rpartition("/")[2].partition(":")[0] for reason in found.unverified] == ["first.vnfs", "s.vnfs"]
    assert describe(found).count("NOT VERIFIED") == 2
    assert found.names == ("told-1.amd64", "told-2.amd64")
