"""Locks: the same lock is the same text, a hostile one is refused in one line, other tools are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capsulekit import build, tools
from capsulekit.apt.solver import Stanza, apt_filename, needed_by
from capsulekit.errors import CapsulekitError
from capsulekit.lock.model import Archive, Key, Lock, Package, Request, load, loads
from capsulekit.lock.write import chain_to, changes
from capsulekit.recipe.load import load_recipe
from capsulekit.rootfs.normalise import VERSION as NORMALISER

A, B = "a" * 64, "b" * 64
BASH = Package("bash", "5.2.15-2+b7", "amd64", 1_490_976, A, "pool/main/b/bash/bash_5.2.15-2+b7_amd64.deb")
VIM = Package("vim-tiny", "2:9.0.1378-2", "amd64", 720_000, B, "pool/main/v/vim/vim-tiny_9.0.1378-2_amd64.deb")
KERNEL = Package("linux-image-cloud-amd64", "6.1.1-1", "amd64", 1484, "c" * 64, "pool/main/l/linux/l_6.1.1-1_amd64.deb")
REQUEST = Request("essential", (("bash",),), ("linux-image-cloud-amd64",), ("busybox-static",))
KEY = Key("F" * 40, "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQ==\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n")
LOCK = Lock(
    distro="debian",
    release="12",
    arch="amd64",
    epoch=1_700_000_000,
    request=REQUEST.digest,
    normaliser=NORMALISER,
    keys=(KEY,),
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
    others += [
        replace(LOCK, request="0" * 64),
        replace(LOCK, normaliser=LOCK.normaliser + 1),
        replace(LOCK, keys=()),
        replace(LOCK, sets={**LOCK.sets, "rootfs": (BASH, replace(VIM, stage=1))}),
        replace(LOCK, sets={**LOCK.sets, "rootfs": (BASH, replace(VIM, by="bash"))}),
    ]
    assert len({LOCK.digest, *(o.digest for o in others)}) == len(others) + 1


def test_every_part_of_a_request_changes_its_digest() -> None:
    others = [
        replace(REQUEST, base="extract"),
        replace(REQUEST, stages=(("bash", "less"),)),
        replace(REQUEST, stages=(("bash",), ("less",))),
        replace(REQUEST, kernel=("linux-image-amd64",)),
        replace(REQUEST, initrd=("busybox-static", "acl")),
    ]
    assert len({REQUEST.digest, *(o.digest for o in others)}) == len(others) + 1


def test_a_version_with_an_epoch_is_named_as_apt_names_it() -> None:
    assert apt_filename(VIM) == "vim-tiny_2%3a9.0.1378-2_amd64.deb"


HOSTILE = {
    "empty": "",
    "not TOML": "= 1",
    "deep": "x = " + "[" * 5000,
    "another format": TEXT.replace("format = 2", "format = 1"),
    "no format": TEXT.replace("format = 2", ""),
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
    "a stage below zero": TEXT.replace("stage = 0", "stage = -1", 1),
    "a stage that is text": TEXT.replace("stage = 0", 'stage = "0"', 1),
    "an option as what asked for it": TEXT.replace('by = ""', 'by = "-x"', 1),
    "a short fingerprint": TEXT.replace("F" * 40, "F" * 16),
    "a key that is no key": TEXT.replace("-----BEGIN PGP", "-----BEGIN"),
    "a key that is a number": TEXT.replace(TEXT[TEXT.index("text = ") : TEXT.index("[[rootfs]]")], "text = 1\n\n"),
    "a normaliser that is text": TEXT.replace(f"normaliser = {NORMALISER}", 'normaliser = "2"'),
    "a request that is a number": TEXT.replace(f'request = "{REQUEST.digest}"', "request = 1"),
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
    return build.given_lock(load_recipe(folder / "r.toml"), folder / "r.lock", Maker())  # type: ignore[arg-type]


class Maker:
    """As much of a distribution as a lock is compared with."""

    stage2_packages = REQUEST.initrd


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This machine's tools are those of the lock."""
    versions = dict(LOCK.tools)
    monkeypatch.setattr(tools, "tool_versions", lambda maker: versions)
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
        ('include = ["bash"]', 'include = ["vim-tiny"]', "was made for other packages"),
        ("[kernel]", '[rootfs]\nbase = "extract"\n[kernel]', "was made for other packages"),
    ],
)
def test_a_lock_of_another_recipe_is_refused(
    tmp_path: Path, here: dict[str, str], old: str, new: str, message: str
) -> None:
    with pytest.raises(CapsulekitError, match=message):
        accepted(tmp_path, LOCK, RECIPE.replace(old, new))


def test_a_lock_of_another_normaliser_is_refused(tmp_path: Path, here: dict[str, str]) -> None:
    with pytest.raises(CapsulekitError, match=f"version 1 of the normaliser, this program has {NORMALISER}"):
        accepted(tmp_path, replace(LOCK, normaliser=1))


# --- why, and what changed


def stanza(name: str, **fields: str) -> Stanza:
    package = Package(name, "1", "amd64", 1, "a" * 64, "p")
    return Stanza(package, "", {"Package": name, **{k.replace("_", "-"): v for k, v in fields.items()}})


def test_every_package_knows_what_asked_for_it_by_the_shortest_way() -> None:
    chosen = [
        stanza("sshd", Depends="libssl (>= 3), client | other-client, virtual"),
        stanza("client", Depends="libc:any"),
        stanza("libssl", Pre_Depends="libc"),
        stanza("libc"),
        stanza("mta", Provides="virtual (= 1)"),
        stanza("base-files", Essential="yes", Depends="awk"),
        stanza("mawk", Provides="awk"),
        stanza("tzdata"),
    ]
    assert needed_by(chosen, ["sshd"]) == {
        "sshd": "recipe",
        "client": "sshd",
        "libssl": "sshd",
        "libc": "libssl",
        "mta": "sshd",
        "base-files": "essential",
        "mawk": "base-files",
        "tzdata": "essential",
    }


def test_why_gives_the_chain_up_to_the_recipe(tmp_path: Path) -> None:
    libc = Package("libc6", "2.36", "amd64", 1, "f" * 64, "p", by="bash")
    sets = {**LOCK.sets, "rootfs": (replace(BASH, by="recipe"), libc)}
    (tmp_path / "r.lock").write_text(replace(LOCK, sets=sets).dumps())
    assert chain_to(tmp_path / "r.lock", "libc6") == ["libc6 2.36", "bash", "the recipe (rootfs)"]
    assert chain_to(tmp_path / "r.lock", "bash") == ["bash 5.2.15-2+b7", "the recipe (rootfs)"]
    with pytest.raises(CapsulekitError, match="does not lock a package zsh"):
        chain_to(tmp_path / "r.lock", "zsh")


def test_a_lock_whose_chain_is_a_loop_ends(tmp_path: Path) -> None:
    sets = {**LOCK.sets, "rootfs": (replace(BASH, by="vim-tiny"), replace(VIM, by="bash"))}
    (tmp_path / "r.lock").write_text(replace(LOCK, sets=sets).dumps())
    assert chain_to(tmp_path / "r.lock", "bash")[-1] in ("bash", "vim-tiny")


def test_changes_name_what_came_went_and_moved() -> None:
    new = replace(LOCK, sets={**LOCK.sets, "rootfs": (replace(BASH, version="5.3"),), "initrd": (VIM,)})
    assert changes(LOCK, new) == [
        "initrd vim-tiny: added 2:9.0.1378-2",
        "rootfs bash: 5.2.15-2+b7 -> 5.3",
        "rootfs vim-tiny: removed, was 2:9.0.1378-2",
    ]
    assert changes(LOCK, LOCK) == []
