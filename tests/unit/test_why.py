"""`why` names what made a path what it is, or what removed it; an unknown path is refused with near names."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_capsule import AUTHOR, STRANGER
from told_capsule import OWNERS, ROOT, Node, Told, package, told_capsule

from capsulekit.cli.main import main
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.metadata.owners import Cause
from capsulekit.why import Why, describe, owner_of, why

pytestmark = pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")


@pytest.fixture(scope="module")
def capsule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told_capsule(tmp_path_factory.mktemp("why") / "told.vnfs")


def ask(capsule: Path, path: str) -> Why:
    return why(capsule, path, [AUTHOR.public])


def causes(capsule: Path, path: str) -> list[str]:
    return [str(cause) for cause in ask(capsule, path).causes]


def line(capsule: Path, number: int) -> str:
    from capsulekit.capsule.read import open_capsule

    with open_capsule(capsule) as opened:
        return opened.read_member("recipe.toml").decode().splitlines()[number - 1]


def test_a_packages_file_leads_to_those_who_asked_for_it_and_to_the_recipes_line(capsule: Path) -> None:
    answer = ask(capsule, "/usr/lib/libtool.so")
    assert answer.what == "file, mode 0644, owner 0:0, 1500 bytes"
    assert (answer.member, answer.verified) == ("layers/rootfs.squashfs", True)
    (cause,) = answer.causes
    assert cause.chain == ("lib", "tool", "recipe")
    assert cause.detail == "2:2.0 amd64"
    where, key = cause.place.split(" ", 1)
    assert key == "[packages] include"
    assert '"tool"' in line(capsule, int(where.rpartition(":")[2]))


def test_a_path_through_a_folder_that_is_a_link_is_answered_for_the_real_one(capsule: Path) -> None:
    answer = ask(capsule, "/bin/tool")
    assert (answer.asked, answer.path) == ("/bin/tool", "/usr/bin/tool")
    assert causes(capsule, "/bin/tool") == causes(capsule, "/usr/bin/tool") == ["package tool"]
    assert ask(capsule, "/lib").what.startswith("link to usr/lib")


@pytest.mark.parametrize(
    ("path", "cause", "key", "text"),
    [
        ("/etc/motd", "file /etc/motd", '[files."/etc/motd"]', "/etc/motd"),
        ("/etc/stamp", "script 50-stamp", "[scripts] rootfs", "[[scripts.rootfs]]"),
        (
            "/etc/systemd/system/multi-user.target.wants/tool.service",
            "service tool.service",
            "[services] enable",
            "tool.service",
        ),
    ],
)
def test_what_the_recipe_made_leads_to_its_line(capsule: Path, path: str, cause: str, key: str, text: str) -> None:
    found = ask(capsule, path).causes[0]
    assert str(found) == cause
    where, _, shown = found.place.partition(" ")
    assert shown == key
    assert text in line(capsule, int(where.rpartition(":")[2]))


def test_a_script_that_changed_a_packages_file_has_the_last_word(tmp_path: Path) -> None:
    owners = {**OWNERS, "script 50-stamp": ["etc/stamp", "etc/tool.conf"]}
    capsule = told_capsule(tmp_path / "t.vnfs", Told(owners=owners))
    assert causes(capsule, "/etc/tool.conf") == ["script 50-stamp", "package tool"]
    assert owner_of(capsule, "etc/tool.conf") == "script 50-stamp"
    assert owner_of(capsule, "/etc/nothing") == ""


def test_users_are_told_by_their_name_and_all_of_them_for_the_lists_of_accounts(tmp_path: Path) -> None:
    owners = {"users": ["home/ann/.profile", "etc/passwd"]}
    root = {**ROOT, "home/ann/.profile": Node(b""), "etc/passwd": Node(b"")}
    capsule = told_capsule(tmp_path / "t.vnfs", Told(owners=owners, root=root, users=("ann", "bob")))
    assert causes(capsule, "/home/ann/.profile") == ["user ann"]
    assert causes(capsule, "/etc/passwd") == ["user ann", "user bob"]


def test_a_row_of_the_normaliser_that_changed_a_file_is_named_beside_its_package(capsule: Path) -> None:
    row, package = ask(capsule, "/etc/shadow").causes
    assert (row.kind, row.name) == ("normaliser", "/etc/shadow")
    assert row.detail.startswith("fix: the day of the last change")
    assert str(package) == "package base"


def test_a_path_that_a_row_removes_is_said_to_be_removed_and_why(capsule: Path) -> None:
    answer = ask(capsule, "/var/tmp/left/over")
    assert (answer.member, answer.what) == ("", "removed by the normaliser")
    assert answer.causes == (Cause("normaliser", "/var/tmp/**", "remove: left by installers"),)
    assert "NOT in the capsule" in describe(answer)


def test_a_packages_file_that_is_gone_names_its_package(tmp_path: Path) -> None:
    root = {path: node for path, node in ROOT.items() if path not in ("etc/tool.conf",)}
    capsule = told_capsule(tmp_path / "t.vnfs", Told(root=root))
    answer = ask(capsule, "/etc/tool.conf")
    assert answer.what == "removed after its package was installed"
    assert [str(c) for c in answer.causes] == ["package tool"]


def test_what_install_scripts_made_names_the_package_whose_script_or_file_it_is(capsule: Path) -> None:
    assert causes(capsule, "/etc/tool.cache") == ["install tool"]
    assert causes(capsule, "/etc/alternatives/t") == ["install tool"]
    assert causes(capsule, "/usr/bin/twin") == ["install tool"]
    assert causes(capsule, "/var/lib/dpkg/info/lib:amd64.list") == ["package lib"]


def test_the_kernel_its_modules_and_stage_2_name_their_packages(capsule: Path) -> None:
    for path in ("/boot/vmlinuz", "/lib/modules/6.1.0-1/kernel/loop.ko"):
        assert causes(capsule, path) == ["kernel linux-image"]
    assert ask(capsule, "/lib/modules/6.1.0-1/modules.dep").member == "layers/modules.squashfs"
    assert causes(capsule, "/boot/initrd.img") == ["package busybox"]
    # A folder of both layers belongs to both.
    assert causes(capsule, "/usr") == ["package base", "package tool", "kernel linux-image"]


SPEC = """Name: hello
Version: 1
Release: 2
Summary: x
License: MIT
BuildArch: noarch
%description
x
%install
mkdir -p %{buildroot}/usr/bin
echo hi >%{buildroot}/usr/bin/hello
%files
/usr/bin/hello
"""


@pytest.mark.skipif(not shutil.which("rpmbuild"), reason="needs rpm")
def test_the_database_of_rpm_is_asked_where_the_root_has_one(tmp_path: Path) -> None:
    (tmp_path / "hello.spec").write_text(SPEC)
    where = ["--define", f"_topdir {tmp_path}", "--define", f"_rpmdir {tmp_path}"]
    subprocess.run(["rpmbuild", "-bb", *where, tmp_path / "hello.spec"], check=True, capture_output=True)
    database = ["--dbpath", tmp_path / "db", "--define", "_db_backend sqlite"]
    made = tmp_path / "noarch/hello-1-2.noarch.rpm"
    subprocess.run(["rpm", *database, "-i", "--justdb", "--nodeps", made], check=True, capture_output=True)
    root = {
        "usr/bin/hello": Node(b"hi\n"),
        "bin": Node(link="usr/bin"),
        "usr/lib/sysimage/rpm/rpmdb.sqlite": Node((tmp_path / "db/rpmdb.sqlite").read_bytes()),
    }
    told = Told(root=root).locked("rootfs", package("hello", "1-2", "recipe"))
    capsule = told_capsule(tmp_path / "t.vnfs", told)
    assert causes(capsule, "/bin/hello") == ["package hello"]
    assert ask(capsule, "/var/lib/yum/history").causes[0].name == "/var/lib/yum/**"
    with pytest.raises(CapsulekitError, match="there is no /var/lib/dpkg/lock"):  # a row for roots of dpkg
        ask(capsule, "/var/lib/dpkg/lock")


def test_a_hybridized_path_says_so(tmp_path: Path) -> None:
    told = Told(
        hybrid={"usr/share/doc/tool/b\udcffd": Node(b"x")}, root={p: n for p, n in ROOT.items() if "doc" not in p}
    )
    answer = ask(told_capsule(tmp_path / "t.vnfs", told), "/usr/share/doc/tool/b\udcffd")
    assert answer.member == "layers/hybrid.squashfs"
    assert str(answer.causes[0]) == "hybridize /usr/share/doc/**"


def test_a_layer_on_top_that_took_a_path_away_is_named(tmp_path: Path) -> None:
    told = Told(modules={**Told().modules, "etc/motd": Node(device=(0, 0))})
    answer = ask(told_capsule(tmp_path / "t.vnfs", told), "/etc/motd")
    assert (answer.member, answer.what) == ("", "removed by layers/modules.squashfs")


def test_an_unknown_path_exits_1_with_near_names(capsule: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", str(capsule), "/usr/bin/tol"]) == 1
    said = capsys.readouterr().err
    assert "there is no /usr/bin/tol in this capsule" in said
    assert "did you mean /usr/bin/tool?" in said
    with pytest.raises(CapsulekitError) as elsewhere:
        ask(capsule, "/opt/libtool.so")
    assert elsewhere.value.hint == "did you mean /usr/lib/libtool.so?"


def test_nobodys_word_is_taken_for_more_than_it_is(capsule: Path, tmp_path: Path) -> None:
    answer = why(capsule, "/etc/motd", [STRANGER.public])
    assert not answer.verified
    assert "not trusted here" in answer.reason
    assert "NOT VERIFIED" in describe(answer)
    assert "NOT VERIFIED" not in describe(ask(capsule, "/etc/motd"))
    forged = bytearray(capsule.read_bytes())
    forged[-20000] ^= 1
    (tmp_path / "forged.vnfs").write_bytes(forged)
    with pytest.raises(TrustError):
        ask(tmp_path / "forged.vnfs", "/etc/motd")


@pytest.fixture
def pubkey(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "author.pub"
    path.write_text(AUTHOR.public.file_text)
    yield str(path)


def test_the_command_prints_text_for_people_and_json_for_programs(
    capsule: Path, pubkey: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why", str(capsule), "/bin/tool", "--pubkey", pubkey]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "/usr/bin/tool (asked for as /bin/tool)",
        "  in layers/rootfs.squashfs: file, mode 0755, owner 0:0, 4000 bytes",
        "  package tool 1.0 amd64",
        "    asked for: tool ← recipe",
        "    recipe.toml:15 [packages] include",
    ]
    assert main(["why", str(capsule), "/usr/share/doc/tool/b\udcffd", "--pubkey", pubkey, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["present"], told["verified"]) == ("/usr/share/doc/tool/b%FFd", True, True)
    assert told["causes"][0]["kind"] == "install"
