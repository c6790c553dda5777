"""Edit layers that become one: the same tree as before, with and without what lies below."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_stack import Capsule, attributes_of, layer_listing, layer_of, left_of, remove, write

WHAT = ("write", "write", "mode", "remove", "tree", "swap", "link", "acl", "noacl", "cap", "odd", "note")
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def capsule(tmp_path: Path) -> Iterator[Capsule]:
    """A root of some folders, one of them with an ACL, over a hybrid layer."""
    root, shared = tmp_path / "root", tmp_path / "shared"
    for folder in "abcd":
        for inner in "xyz":
            (root / folder / inner).mkdir(parents=True)
            for name in "123":
                (root / folder / inner / name).write_text(f"{folder}{inner}{name}")
    (shared / "usr/share/doc/one").mkdir(parents=True)
    (shared / "usr/share/doc/one/copyright").write_text("free")
    acl = b"a/x/1\taccess\tu::rw-,u:5:r--,g::r--,m::r--,o::r--\nb\tdefault\tu::rwx,u:5:r-x,g::r-x,m::r-x,o::r-x\n"
    made = Capsule(
        tmp_path, [layer_of(root, tmp_path / "root.squashfs")], [acl], layer_of(shared, tmp_path / "hybrid.squashfs")
    )
    yield made
    made.close()


def _random_change(dice: random.Random, root: Path) -> None:
    """Something of what an admin, or a package, does to a tree."""
    folder, inner, name = dice.choice("abcde"), dice.choice("xyzw"), dice.choice("1234")
    path = root / folder / inner / name
    what = dice.choice(WHAT)
    there = path.is_file() and not path.is_symlink()
    if what == "remove" and os.path.lexists(path):
        subprocess.run(["rm", "-rf", path], check=True)
    elif what == "tree" and (root / folder).is_dir():
        subprocess.run(["rm", "-rf", root / folder / inner], check=True)
        if dice.random() < 0.6:
            path.parent.mkdir(parents=True)
            path.write_text(str(dice.random()))
    elif what == "swap" and path.parent.is_dir():
        subprocess.run(["rm", "-rf", path], check=True)
        path.symlink_to("nowhere") if dice.random() < 0.5 else path.mkdir()
    elif what == "link" and there:
        other = path.with_name(f"{name}-too")
        other.unlink(missing_ok=True)
        path.write_text(str(dice.random()))
        os.link(path, other)
    elif what in ("acl", "noacl", "mode", "cap", "note") and there:
        path.chmod(dice.choice([0o600, 0o644, 0o755, 0o4711]))
        if what == "acl":
            subprocess.run(["setfacl", "-m", f"u:{dice.randrange(9, 99)}:rw", path], check=True)
            path.parent.chmod(0o755)
            subprocess.run(["setfacl", "-d", "-m", "g:7:rwx", path.parent], check=True)
        elif what == "noacl":
            subprocess.run(["setfacl", "-b", path], check=True)
            path.parent.chmod(0o755)
            subprocess.run(["setfacl", "-b", path.parent], check=True)
        elif what == "cap":
            os.setxattr(path, "security.capability", CAPABILITY)
        elif what == "note":
            os.setxattr(path, "user.note", dice.randbytes(9))
    elif what == "odd" and path.parent.is_dir():
        raw = os.fsencode(path) + b"\xfe\xff"
        Path(os.fsdecode(raw)).unlink(missing_ok=True)
        os.mknod(raw, stat.S_IFIFO | 0o600)
    elif not path.is_dir() and not path.is_symlink():
        write(f"{folder}/{inner}/{name}", str(dice.random()))(root)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_sixteen_edits_become_one_layer_and_nobody_can_tell(capsule: Capsule, seed: int, tmp_path: Path) -> None:
    """Deletions, replaced folders, capabilities, ACLs, links, odd names; by dice, with a seed."""
    dice = random.Random(seed)

    def change(root: Path) -> None:
        for _ in range(12):
            _random_change(dice, root)

    while capsule.made < 16:
        capsule.open()
        change(capsule.at)
        capsule.pack()
    capsule.change(remove("usr/share/doc/one"))
    before = capsule.listing()
    assert len(capsule.images) > 10
    capsule.flatten(len(capsule.images) - 1)
    assert len(capsule.images) == 2
    assert capsule.listing() == before
    assert left_of(tmp_path) == []
    # A further edit on top of it finds nothing changed.
    assert capsule.change(lambda _: None).changes.empty


def test_some_of_the_layers_may_stay_below(capsule: Capsule) -> None:
    """What hides something in those is kept."""
    capsule.change(write("a/new/1"), write("e/f"))
    capsule.change(remove("a/new"), remove("b/x"))
    capsule.change(write("b/x/9"), remove("e/f"))
    before = capsule.listing()
    capsule.flatten(2)
    assert len(capsule.images) == 3
    assert capsule.listing() == before


def test_marks_stay_only_where_they_hide_something(capsule: Capsule, tmp_path: Path) -> None:
    """In the layers below, or the hybrid layer."""
    capsule.change(write("new/1"), write("new/2"), write("c/x/9"))
    capsule.change(remove("new/1"), remove("c/x"), remove("usr/share/doc/one/copyright"), remove("c/y"))
    capsule.change(write("c/x/8"))
    capsule.flatten(3)
    held = layer_listing(capsule.images[0], tmp_path / "m")
    whiteouts = [path for path, entry in held.items() if entry[0] == oct(stat.S_IFCHR)]
    opaque = [path for path, entry in held.items() if entry[4] == (("trusted.overlay.opaque", b"y"),)]
    assert whiteouts == ["c/y", "usr/share/doc/one/copyright"]
    assert opaque == ["c/x"]
    assert "new/1" not in held


def test_an_acl_that_an_upper_layer_took_away_stays_away(capsule: Capsule) -> None:
    """And one that it gave is there."""

    def take(root: Path) -> None:
        (root / "b").chmod(0o755)
        subprocess.run(["setfacl", "-b", root / "a/x/1", root / "b"], check=True)

    def give(root: Path) -> None:
        (root / "c").chmod(0o755)
        subprocess.run(["setfacl", "-d", "-m", "u:9:r", root / "c"], check=True)

    capsule.change(take)
    capsule.change(give)
    before = capsule.listing()
    capsule.flatten(2)
    assert capsule.listing() == before
    with capsule.seen() as root:
        assert attributes_of(root / "a/x/1") == attributes_of(root / "b") == {}
        assert "system.posix_acl_default" in attributes_of(root / "c")
