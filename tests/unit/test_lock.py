"""Locks: the same lock is the same text, a hostile one is refused in one line, other tools are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capsulekit import build, tools
from capsulekit.errors import CapsulekitError
from capsulekit.lock.model import Archive, Lock, Package, load, loads
from capsulekit.recipe.load import load_recipe

A, B = "a" * 64, "b" * 64
BASH = Package("bash", "5.2.15-2+b7", "amd64", 1_490_976, A, "pool/main/b/bash/bash_5.2.15-2+b7_amd64.deb")
VIM = Package("vim-tiny", "2:9.0.1378-2", "amd64", 720_000, B, "pool/main/v/vim/vim-tiny_9.0.1378-2_amd64.deb")
KERNEL = Package("linux-image-cloud-amd64", "6.1.1-1", "amd64", 1484, "c" * 64, "pool/main/l/linux/l_6.1.1-1_amd64.deb")
LOCK = Lock(
    distro="debian",
    release="12",
    arch="amd64",
    epoch=1_700_000_000,
    archives=(Archive("bookworm", "d" * 64), Archive("bookworm-updates", "e" * 64)),
    sets={"rootfs": (BASH, VIM), "kernel": (KERNEL,), "initrd": ()},
    tools={"dpkg": "1.21.22", "mmdebstrap": "1.3.5"},
)
TEXT = LOCK.dumps()


def test_a_lock_survives_its_own_text() -> None:
    assert loads(TEXT, "x") == LOCK
    assert loads(TEXT, "x").dumps() == TEXT


def test_the_order_in_which_it_was_made_changes_nothing() -> None:
    turned = replace(
        LOCK,
        archives=LOCK.archives[::-1],
        sets={k: v[::-1] for k, v in reversed(LOCK.sets.items())},
        tools=dict(reversed(LOCK.tools.items())),
    )
    assert turned.dumps() == TEXT and turned.digest == LOCK.digest


def test_every_field_changes_the_digest() -> None:
    others = [
        replace(LOCK, epoch=LOCK.epoch + 1),
        replace(LOCK, tools={"dpkg": "1.21.23", "mmdebstrap": "1.3.5"}),
        replace(LOCK, archives=LOCK.archives[:1]),
        replace(LOCK, sets={**LOCK.sets, "rootfs": (BASH,)}),
        replace(LOCK, sets={**LOCK.sets, "rootfs": (BASH, replace(VIM, sha256=A))}),
    ]
    assert len({LOCK.digest, *(o.digest for o in others)}) == 6


def test_a_version_with_an_epoch_is_named_as_apt_names_it() -> None:
    assert VIM.filename == "vim-tiny_2%3a9.0.1378-2_amd64.deb"


HOSTILE = {
    "empty": "",
    "not TOML": "= 1",
    "deep": "x = " + "[" * 5000,
    "another format": TEXT.replace("format = 1", "format = 2"),
    "no format": TEXT.replace("format = 1", ""),
    "an extra key": "extra = 1\n" + TEXT,
    "a set is missing": TEXT.replace("[[kernel]]", "[[kernal]]"),
    "a set of texts": TEXT.replace("initrd = []", 'initrd = ["x"]'),
    "a set that is a number": TEXT.replace("initrd = []", "initrd = 1"),
    "a field is missing": TEXT.replace(f'sha256 = "{A}"\n', ""),
    "a digest too short": TEXT.replace(A, "a" * 63),
    "a digest in capitals": TEXT.replace(A, "A" * 64),
    "a size that is text": TEXT.replace("1490976", '"1490976"'),
    "a size below zero": TEXT.replace("1490976", "-1"),
    "a size that is true": TEXT.replace("1490976", "true"),
    "an option for apt as a name": TEXT.replace('name = "bash"', 'name = "-oDir::Bin::dpkg"'),
    "a name that climbs": TEXT.replace('name = "bash"', 'name = "../bash"'),
    "a list as a name": TEXT.replace('name = "bash"', 'name = ["bash"]'),
    "a name with a comma": TEXT.replace('name = "bash"', 'name = "bash,evil"'),
    "a version that is an option": TEXT.replace('version = "5.2.15-2+b7"', 'version = "-2"'),
    "a version with a slash": TEXT.replace('version = "5.2.15-2+b7"', 'version = "5/../x"'),
    "a full path": TEXT.replace("pool/main/b", "/pool/main/b"),
    "a path that climbs": TEXT.replace("pool/main/b", "pool/../../b"),
    "an address as a path": TEXT.replace("pool/main/b/", "h?x#//"),
    "a date as epoch": TEXT.replace("epoch = 1700000000", "epoch = 2023-01-01"),
    "epoch below zero": TEXT.replace("epoch = 1700000000", "epoch = -1"),
    "epoch beyond squashfs": TEXT.replace("epoch = 1700000000", "epoch = 4294967296"),
    "epoch true": TEXT.replace("epoch = 1700000000", "epoch = true"),
    "tools that are a text": TEXT.replace("[tools]", 'tools = "x"\n[other]'),
    "a tool that is a number": TEXT.replace('dpkg = "1.21.22"', "dpkg = 1"),
    "a suite that is a number": TEXT.replace('suite = "bookworm"', "suite = 1"),
    "a release that is a number": TEXT.replace('release = "12"', "release = 12"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_lock_is_refused_in_one_line(name: str) -> None:
    assert HOSTILE[name] != TEXT
    with pytest.raises(CapsulekitError) as caught:
        loads(HOSTILE[name], "my.lock")
    assert caught.value.message.startswith("my.lock: ") and "\n" not in caught.value.message


def test_a_lock_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.lock").write_bytes(b"\xff")
    for path, why in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "b.lock", "it is not UTF-8 text"),
    ):
        with pytest.raises(CapsulekitError, match=f"^{path}: the lock cannot be read: {why}$"):
            load(path)


# --- a lock and its recipe and tools

RECIPE = """[capsule]
name = "tiny"
version = "1"
[distro]
name = "debian"
release = "12"
[packages]
include = ["bash"]
[kernel]
package = "linux-image-cloud-amd64"
"""


def accepted(folder: Path, lock: Lock, recipe: str = RECIPE) -> Lock:
    (folder / "r.toml").write_text(recipe)
    (folder / "r.lock").write_text(lock.dumps())
    return build._lock(load_recipe(folder / "r.toml"), folder / "r.lock", None)  # type: ignore[arg-type]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This machine's tools are those of the lock."""
    versions = dict(LOCK.tools)
    monkeypatch.setattr(tools, "tool_versions", lambda: versions)
    return versions


def test_a_lock_that_fits_is_taken(tmp_path: Path, here: dict[str, str]) -> None:
    assert accepted(tmp_path, LOCK) == LOCK


def test_a_tool_of_another_version_is_refused_by_name(tmp_path: Path, here: dict[str, str]) -> None:
    here["mmdebstrap"] = "9.9"
    with pytest.raises(CapsulekitError, match=r"made with mmdebstrap 1\.3\.5, this machine has 9\.9") as caught:
        accepted(tmp_path, LOCK)
    assert caught.value.hint and "capsulekit lock" in caught.value.hint
    del here["mmdebstrap"]
    with pytest.raises(CapsulekitError, match="this machine has none"):
        accepted(tmp_path, LOCK)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('release = "12"', 'release = "13"', "locks debian 12 amd64, the recipe wants debian 13 amd64"),
        ('["bash"]', '["bash", "less"]', "does not lock the recipe's package less"),
        ("-cloud-amd64", "-amd64", "does not lock the recipe's package linux-image-amd64"),
    ],
)
def test_a_lock_of_another_recipe_is_refused(
    tmp_path: Path, here: dict[str, str], old: str, new: str, message: str
) -> None:
    with pytest.raises(CapsulekitError, match=message):
        accepted(tmp_path, LOCK, RECIPE.replace(old, new))
