"""What a livesync does about each difference, and which list tells it what to leave alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from small_capsule import AUTHOR, CONTENT, layer, manifest
from small_site import make_site

from capsulekit.capsule.write import Member, write_capsule
from capsulekit.errors import CapsulekitError
from provisioner.livesync.choose import Rules, work_of
from provisioner.livesync.skip import NEVER, fits, parse_skip, skip_list
from provisioner.registry.registry import open_registry
from provisioner.trees.compare import Difference
from provisioner.trees.entry import Entry
from provisioner.vnfs.store import VnfsStore


@dataclass
class Has:
    """A tree of these paths."""

    paths: set[str] = field(default_factory=set)

    def get(self, path: str) -> Entry | None:
        return file(path) if path in self.paths else None

    def below(self, path: str) -> list[Entry]:
        return []


def file(path: str, kind: str = "f") -> Entry:
    return Entry(path, kind, 0o644, 0, 0)


def rules(delete: bool = False, skip: str = "/opt\n/etc/host*\n") -> Rules:
    matcher = parse_skip(skip.encode(), "list").matcher()
    trees = Has(), Has({"etc/last"}), Has({"usr/share/net"})
    return Rules(matcher, *trees, delete, frozenset({"etc/ready.conf"}))  # type: ignore[arg-type]


def lacks(path: str, **more: object) -> Difference:
    return Difference(path, None, file(path), **more)  # type: ignore[arg-type]


def extra(path: str, **more: object) -> Difference:
    return Difference(path, file(path), None, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "word", "deleting"),
    [
        (lacks("etc/a"), "send", "send"),
        (lacks("etc/a", module=True), "module", "module"),
        (lacks("etc/ready.conf"), "module", "module"),
        (extra("etc/ready.conf", under=file("etc/ready.conf")), "module", "module"),
        (lacks("opt/x/y"), "skipped", "skipped"),
        (lacks("etc/hosts"), "skipped", "skipped"),
        (lacks("boot/vmlinuz"), "kernel", "kernel"),
        (extra("usr/lib/modules/6.1/x.ko", under=file("x")), "kernel", "kernel"),
        (extra("etc/own"), "own", "own"),
        (extra("etc/old", under=file("etc/old")), "undeleted", "remove"),
        (extra("etc/last"), "undeleted", "remove"),
        (extra("usr/share/net", under=file("x")), "hybrid", "hybrid"),
        (Difference("etc/d", file("etc/d", "d"), file("etc/d")), "undeleted", "send"),
        (lacks("usr/lib/capsulekit/curl"), "skipped", "skipped"),
        (lacks("etc/capsulekit/agent/session"), "skipped", "skipped"),
        (lacks("tmp/x"), "skipped", "skipped"),
    ],
)
def test_each_difference_has_one_answer(found: Difference, word: str, deleting: str) -> None:
    assert (rules().decide(found), rules(delete=True).decide(found)) == (word, deleting)


def test_what_was_changed_on_the_node_is_named_where_it_is_overwritten() -> None:
    work = work_of([lacks("etc/a", edited=True), lacks("opt/b", edited=True), lacks("etc/c")], rules())
    assert (work.send, work.edited, work.left["skipped"]) == (["etc/a", "etc/c"], ["etc/a"], 1)


def test_a_folder_goes_only_with_all_that_is_in_it() -> None:
    """Else a node with a file of its own there would fail for ever."""
    gone = [("a", "d"), ("a/b", "d"), ("a/b/old", "f"), ("a/c", "d"), ("a/c/old", "f"), ("a.d", "d"), ("z", "d")]
    found = [Difference(path, file(path, kind), None, under=file(path, kind)) for path, kind in gone]
    found[3:3] = [extra("a/b/own")]
    work = work_of(found, rules(delete=True))
    assert work.remove == ["a/b/old", "a/c", "a/c/old", "a.d", "z"]
    assert work.left["own"] == 3 and not work.undeleted
    work = work_of([*found, extra("z/x", module=True)], rules(delete=True))
    assert "z" not in work.remove and "a.d" in work.remove


@pytest.mark.parametrize(
    ("line", "path", "left"),
    [
        ("/etc/passwd", "etc/passwd", True), ("/etc/passwd", "etc/passwd-", False), ("etc/passwd", "etc/passwd", True),
        ("/data/*", "data/a/b", True), ("/data/*", "data", False), ("/opt/", "opt/x", True), ("# /opt", "opt", False),
        ("/opt", "usr/opt", False), ("/a b", "a%20b", True), ("/*.conf", "x.conf/in", True), ("", "etc/x", False),
        ("/**/cache", "usr/lib/cache/x%0Ay", True),
    ],
)  # fmt: skip
def test_a_list_is_anchored_at_the_root(line: str, path: str, left: bool) -> None:
    assert fits(parse_skip(f"\n  \n{line}\n".encode(), "list").matcher(), path) is left


@pytest.mark.parametrize("line", ["/etc/../x", "/a//b", "/", "//", "/[z", "/./a"])
def test_a_line_that_is_no_path_is_named(line: str) -> None:
    with pytest.raises(CapsulekitError, match=r"^list, line 2: "):
        parse_skip(f"/etc\n{line}\n".encode(), "list")


def test_the_nearest_list_counts(tmp_path: Path) -> None:
    paths = make_site(tmp_path / "site")
    content = {**CONTENT, "livesync.skip": b"/from/capsule\n"}
    told = manifest(content, name="own", layers=(layer("layers/rootfs.squashfs", content),))
    del content["layers/modules.squashfs"], content["layers/rootfs.acl"]
    write_capsule(tmp_path / "own.vnfs", told, [Member(name, data) for name, data in content.items()], AUTHOR)
    registry = open_registry(paths)
    store = VnfsStore(paths, registry)
    row = store.import_file(tmp_path / "own.vnfs")
    assert "/etc/passwd" in skip_list(store, store.get("tiny")).globs
    assert skip_list(store, row).globs == ("/from/capsule",)
    (paths.config / "livesync.skip").write_text("/from/site\n")
    assert skip_list(store, row).globs == ("/from/site",)
    (paths.config / "vnfs/own").mkdir(parents=True)
    (paths.config / "vnfs/own/livesync.skip").write_text("")
    assert skip_list(store, row).globs == ()
    assert all(fits(skip_list(store, row).matcher(), one.strip("/")) for one in NEVER), "whatever a list says"
    (paths.config / "vnfs/own/livesync.skip").unlink()
    (paths.config / "vnfs/own/livesync.skip").symlink_to("/nowhere")
    with pytest.raises(CapsulekitError, match="can't read"):
        skip_list(store, row)
    registry.close()
