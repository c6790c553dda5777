"""An edit's changes as one more layer: what is stored is what was changed, all of it, and nothing else."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_stack import (
    Capsule,
    attributes_of,
    layer_listing,
    layer_of,
    listing,
    paths,
    remove,
    shell,
    told,
    write,
)

from capsulekit.edit import session
from capsulekit.edit.changes import changes
from capsulekit.edit.mounts import mounts
from capsulekit.edit.packages import DATABASES, package_changes
from capsulekit.errors import CapsulekitError

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep, revision 2
RAW = b"caf\xe9 \xff\n"


@pytest.fixture
def capsule(tmp_path: Path) -> Iterator[Capsule]:
    """A root with an ACL list, modules on top of it, and a hybrid layer below."""
    root, modules, shared = tmp_path / "root", tmp_path / "modules", tmp_path / "shared"
    for name in ("etc/app/conf.d", "usr/bin", "usr/share/doc/app", "var/log", "tmp", "run", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    for name in ("etc/app/a", "etc/app/b", "etc/app/conf.d/one", "etc/app/conf.d/two", "usr/bin/tool", "etc/listed"):
        (root / name).write_text(f"{name}\n" * 10)
    (root / "etc/secret").write_text("listed\n")
    (root / "etc/hosts").write_text("hosts\n")
    (root / "etc/machine-id").touch()
    (root / "var/log/dpkg.log").touch()
    os.link(root / "usr/bin/tool", root / "usr/bin/same-tool")
    (root / "etc/link").symlink_to("app/a")
    os.setxattr(root / "usr/bin/tool", "security.capability", CAPABILITY)
    (modules / "usr/lib/modules/6.1").mkdir(parents=True)
    (modules / "usr/lib/modules/6.1/modules.dep").write_text("dep\n")
    (shared / "usr/share/doc/app").mkdir(parents=True)
    (shared / "usr/share/doc/app/copyright").write_text("free\n")
    (shared / "usr/share/doc/app/readme").write_text("read\n")
    acl = (
        b"etc/app\tdefault\tu::rwx,u:70000:r-x,g::r-x,m::r-x,o::r-x\n"
        b"etc/secret\taccess\tu::rw-,u:70000:r--,g::r--,m::r--,o::---\n"
    )
    made = Capsule(
        tmp_path,
        [layer_of(modules, tmp_path / "modules.squashfs"), layer_of(root, tmp_path / "rootfs.squashfs")],
        [b"", acl],
        layer_of(shared, tmp_path / "hybrid.squashfs"),
    )
    yield made
    made.close()


def test_what_a_node_sees_afterwards_is_what_the_editor_saw(capsule: Capsule) -> None:
    """Every kind of path, and everything that a path can bear."""
    capsule.open()
    root = capsule.at
    (root / "usr/bin/suid").write_bytes(b"\x7fELF" * 9999)
    (root / "usr/bin/suid").chmod(0o4755)
    os.setxattr(root / "usr/bin/suid", "security.capability", CAPABILITY)
    os.setxattr(root / "etc/hosts", "user.note", b"\x00\xffbytes")
    os.mkfifo(root / "etc/fifo", 0o640)
    os.link(root / "etc/fifo", root / "etc/fifo-too")
    os.mknod(root / "etc/device", stat.S_IFBLK | 0o660, os.makedev(8, 3))
    (root / "etc/odd-link").symlink_to(os.fsdecode(b"nowhere\xff"))
    Path(os.fsdecode(os.fsencode(root) + b"/etc/" + RAW)).write_text("raw")
    os.link(root / "usr/bin/suid", root / "etc/suid-too")
    os.chown(root / "usr/bin", 12, 34)
    (root / "etc/old").write_text("old")
    os.utime(root / "etc/old", (86400, 86400))
    (root / "etc/plain/deep/er").mkdir(parents=True)
    (root / "etc/app/a").chmod(0o644)  # overlay refuses an ACL while the file below is squashfs's, which knows none
    subprocess.run(["setfacl", "-m", "u:1234:rw", root / "etc/app/a"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "g:77:rx", root / "etc/plain"], check=True)
    (root / "etc/app/b").unlink()
    before = listing(root)
    packed = capsule.pack()
    after = capsule.listing()
    for name in ("usr/sbin", "usr/sbin/policy-rc.d", "etc/resolv.conf"):  # the edit's own, see below
        before.pop(name, None)
    assert after == before
    assert packed.acl is not None
    assert oct(packed.acl.stat().st_mode & 0o777) == "0o600"


def test_only_what_was_changed_is_stored(capsule: Capsule, tmp_path: Path) -> None:
    """Folders on the way, and nothing else."""
    packed = capsule.change(write("etc/app/conf.d/one", "new\n"))
    assert told(packed.changes) == {"etc/app/conf.d/one": ("content", "time")}
    assert sorted(layer_listing(capsule.images[0], tmp_path / "m")) == ["etc", "etc/app", "etc/app/conf.d",
        "etc/app/conf.d/one"]  # fmt: skip
    assert packed.acl is None
    assert packed.unpacked == 4


def test_what_was_only_copied_up_is_no_change(capsule: Capsule) -> None:
    """Modes and owners set to what they are, a file rewritten with its own bytes and time, an ACL set again."""

    def touch(root: Path) -> None:
        (root / "etc/hosts").chmod(0o644)
        os.chown(root / "etc/app", 0, 0)
        (root / "etc/app/a").write_bytes((root / "etc/app/a").read_bytes())
        os.utime(root / "etc/app/a", (1_700_000_000, 1_700_000_000))
        (root / "etc/secret").chmod(0o640)
        (root / "new").touch()
        (root / "new").unlink()
        (root / "usr/bin/tool").chmod(0o644)

    packed = capsule.change(touch)
    assert packed.changes.empty
    assert packed.layer is None
    assert packed.changes.lines() == ["nothing was changed"]
    assert not (capsule.folder / "01-edit.squashfs").exists()


def test_a_mount_alone_changes_nothing_though_files_have_acls(capsule: Capsule) -> None:
    """The ACLs are there to see."""
    capsule.open()
    shown = subprocess.run(["getfacl", "-cpn", capsule.at / "etc/secret"], capture_output=True, text=True, check=True)
    assert "user:70000:r--" in shown.stdout
    assert capsule.pack().changes.empty


def test_an_acl_that_was_taken_away_is_gone_on_the_node(capsule: Capsule) -> None:
    """Although the list of the layer below gives it."""
    packed = capsule.change(shell("setfacl", "-b", "etc/secret"), shell("setfacl", "-k", "etc/app"))
    assert told(packed.changes) == {"etc/app": ("ACL",), "etc/secret": ("ACL",)}
    lines = capsule.acls[0].decode().splitlines()
    assert lines == ["etc/app\tdefault\t", "etc/secret\taccess\tu::rw-,g::r--,o::---"]
    with capsule.seen() as root:
        assert attributes_of(root / "etc/app") == attributes_of(root / "etc/secret") == {}


def test_what_stands_in_the_place_of_a_file_with_an_acl_has_none(capsule: Capsule) -> None:
    """And another edit above keeps that."""
    capsule.change(remove("etc/secret"))
    packed = capsule.change(write("etc/secret", "mine", 0o600))
    assert "etc/secret\taccess\tu::rw-,g::---,o::---" in capsule.acls[0].decode()
    assert packed.acl
    with capsule.seen() as root:
        assert attributes_of(root / "etc/secret") == {}
        assert stat.S_IMODE((root / "etc/secret").stat().st_mode) == 0o600


def test_deletions_and_replaced_folders_hide_what_is_below(capsule: Capsule, tmp_path: Path) -> None:
    """Also what lies in the hybrid layer only."""

    def replace(root: Path) -> None:
        subprocess.run(["rm", "-r", root / "etc/app/conf.d", root / "usr/share/doc/app"], check=True)
        (root / "etc/app/conf.d").mkdir()
        (root / "etc/app/conf.d/three").write_text("3")

    packed = capsule.change(replace, remove("etc/hosts"))
    assert paths(packed.changes.removed) == ["etc/app/conf.d/one", "etc/app/conf.d/two", "etc/hosts",
        "usr/share/doc/app"]  # fmt: skip
    held = layer_listing(capsule.images[0], tmp_path / "m")
    assert held["etc/app/conf.d"][4] == (("trusted.overlay.opaque", b"y"),)
    assert held["usr/share/doc/app"][0] == held["etc/hosts"][0] == oct(stat.S_IFCHR)
    assert all(entry[4] == () for path, entry in held.items() if path != "etc/app/conf.d")
    with capsule.seen() as root:
        assert [path.name for path in (root / "etc/app/conf.d").iterdir()] == ["three"]
        assert not (root / "etc/hosts").exists()
        assert list((root / "usr/share/doc").iterdir()) == []


def test_a_folder_that_was_made_anew_with_the_same_in_it_is_no_change(capsule: Capsule) -> None:
    """As it comes about when a package is installed again."""
    packed = capsule.change(shell("cp", "-a", "etc/app/conf.d", "saved"), remove("etc/app/conf.d"),
                            shell("mv", "saved", "etc/app/conf.d"))  # fmt: skip
    assert packed.changes.empty


def test_nothing_is_marked_as_deleted_where_there_is_nothing_below(capsule: Capsule, tmp_path: Path) -> None:
    """A folder that is new needs no mark."""
    capsule.change(write("srv/a/b"), remove("srv/a"), write("srv/a/c"))
    held = layer_listing(capsule.images[0], tmp_path / "m")
    assert sorted(held) == ["srv", "srv/a", "srv/a/c"]
    assert all(entry[4] == () for entry in held.values())


def test_names_of_one_file_stay_one_file(capsule: Capsule) -> None:
    """Also where the file itself did not change, and only a name came."""
    packed = capsule.change(lambda root: os.link(root / "etc/hosts", root / "etc/hosts2"))
    assert told(packed.changes) == {"etc/hosts": ("hard link",), "etc/hosts2": ("added",)}
    with capsule.seen() as root:
        assert (root / "etc/hosts").stat().st_ino == (root / "etc/hosts2").stat().st_ino


def test_a_socket_fails_by_name_and_the_edit_goes_on(capsule: Capsule) -> None:
    """No tar, and so no layer, can hold one."""
    capsule.open()
    (capsule.at / "srv").mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(capsule.at / "srv/s"))
    with pytest.raises(CapsulekitError, match="/srv/s in the edit is a socket"):
        capsule.pack()
    (capsule.at / "srv/s").unlink()
    assert told(capsule.pack().changes) == {"srv": ("added",)}


def test_the_root_folders_own_mode_fails_by_name(capsule: Capsule) -> None:
    """Every layer's root is 0755 and root's."""
    capsule.open()
    capsule.at.chmod(0o700)
    with pytest.raises(CapsulekitError, match="root folder itself"):
        capsule.pack()


def test_identity_caches_and_logs_are_not_stored_but_named(capsule: Capsule) -> None:
    """By the normaliser's table; a log that was there is empty as it was, a new one is empty."""
    steps = [
        write("etc/machine-id", "0123456789abcdef\n"),
        write("etc/resolv.conf", "nameserver 192.0.2.1\n"),
        write("etc/ssh/ssh_host_ed25519_key", "secret", 0o600),
        write("var/lib/systemd/random-seed", "seed"),
        write("var/log/dpkg.log", "installed\n"),
        write("var/log/new.log", "started\n"),
        write("var/lib/apt/lists/index", "x" * 100),
        write("var/cache/apt/archives/a.deb", "deb"),
        write("var/cache/ldconfig/aux-cache", "aux"),
        write("tmp/x"),
        write("run/x/y"),
        write("etc/passwd-", "old"),
        write("etc/kept", "kept"),
    ]
    packed = capsule.change(*steps)
    with capsule.seen() as root:
        assert (root / "etc/machine-id").read_bytes() == b""
        assert (root / "var/log/dpkg.log").read_bytes() == (root / "var/log/new.log").read_bytes() == b""
        assert (root / "etc/kept").read_text() == "kept"
        for gone in ("etc/resolv.conf", "etc/ssh/ssh_host_ed25519_key", "var/lib/systemd/random-seed", "etc/passwd-",
                     "var/lib/apt/lists/index", "var/cache/apt/archives/a.deb", "var/cache/ldconfig/aux-cache",
                     "tmp/x", "run/x"):  # fmt: skip
            assert not (root / gone).exists(), gone
    assert "etc/kept" in told(packed.changes)
    assert "var/log/dpkg.log" not in told(packed.changes)
    assert {"etc/machine-id", "var/log/dpkg.log", "etc/resolv.conf", "tmp/x", "run/x"} <= set(packed.changes.cleaned)
    assert "cleaned /etc/machine-id" in packed.changes.lines(verbose=True)


def test_what_the_admin_changed_is_kept_though_a_build_would_set_it(capsule: Capsule) -> None:
    """Dates in the shadow file, byte code and what apt knows are the edit's own."""
    shadow = "root:$6$x:20000:0:99999:7:::\n"
    capsule.change(write("etc/shadow", shadow, 0o640), write("var/lib/apt/extended_states", "Package: a\n"),
                   write("usr/lib/python3/__pycache__/a.pyc", b"\xcb\r\r\n\0\0\0\0" + b"t" * 8))  # fmt: skip
    with capsule.seen() as root:
        assert (root / "etc/shadow").read_text() == shadow
        assert (root / "var/lib/apt/extended_states").exists()
        assert (root / "usr/lib/python3/__pycache__/a.pyc").stat().st_size == 16


def test_nothing_of_what_the_edit_needs_for_itself_is_stored(capsule: Capsule) -> None:
    """Neither by a change of all owners, nor when somebody takes it away."""
    capsule.open()
    policy = capsule.at / "usr/sbin/policy-rc.d"
    assert not policy.exists()  # there is no usr/sbin in this root
    session.discard(capsule.edit)
    packed = capsule.change(write("usr/sbin/x"))
    assert "usr/sbin/policy-rc.d" not in told(packed.changes)
    capsule.open()
    assert policy.read_text() == "#!/bin/sh\nexit 101\n"
    (capsule.at / "etc/resolv.conf").chmod(0o600)
    policy.chmod(0o700)
    assert capsule.pack().changes.empty
    assert capsule.change(remove("usr/sbin/policy-rc.d"), remove("etc/resolv.conf")).changes.empty
    packed = capsule.change(write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n", 0o755))
    assert "usr/sbin/policy-rc.d" in told(packed.changes)


def test_a_dry_run_says_what_would_be_stored(capsule: Capsule) -> None:
    """While the edit goes on."""
    capsule.open()
    write("etc/new", "12345")(capsule.at)
    remove("etc/hosts")(capsule.at)
    found = changes(capsule.edit)
    assert found.summary() == {
        "paths": {"added": 1, "changed": 0, "removed": 1},
        "packages": {"added": {}, "changed": {}, "removed": {}},
        "bytes": 5,
        "cleaned": 0,
    }
    assert found.lines() == ["added /etc/new", "removed /etc/hosts"]
    write("etc/more")(capsule.at)
    assert paths(changes(capsule.edit).added) == ["etc/more", "etc/new"]


def test_packages_are_told_by_name_and_version_with_their_paths_folded(capsule: Capsule) -> None:
    """As dpkg's own files say it."""
    stanza = "Package: {}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {}\nDescription: a\n b: c\n\n"
    capsule.change(write("var/lib/dpkg/status", stanza.format("old", "1") + stanza.format("kept", "2")),
                   write("var/lib/dpkg/info/old.list", "/.\n/usr/bin/old\n"), write("usr/bin/old"))  # fmt: skip
    packed = capsule.change(
        write("var/lib/dpkg/status", stanza.format("kept", "3") + stanza.format("jq", "1.6")),
        write("var/lib/dpkg/info/jq.list", "/.\n/bin\n/usr/bin/jq\n/bin/jq2\n"),
        write("usr/bin/jq"),
        remove("usr/bin/old"),
        remove("var/lib/dpkg/info/old.list"),
    )
    assert packed.changes.summary()["packages"] == {
        "added": {"jq": "1.6"}, "changed": {"kept": ["2", "3"]}, "removed": {"old": "1"},
    }  # fmt: skip
    lines = packed.changes.lines()
    assert lines[:3] == ["package jq 1.6 added (2 paths)", "package kept 2 → 3", "package old 1 removed (2 paths)"]
    assert not any("/usr/bin/jq" in line for line in lines[1:])
    assert "added /usr/bin/jq" in packed.changes.lines(verbose=True)


def test_marks_of_overlay_in_an_upper_folder_are_stripped(capsule: Capsule, tmp_path: Path) -> None:
    """Only that a folder hides the one below is a fact; where a file came from is random."""
    capsule.open()
    write("etc/hosts", "mine")(capsule.at)
    write("etc/app/a", "mine")(capsule.at)
    upper = capsule.edit / "u"
    assert any("overlay" in name for name in os.listxattr(upper / "etc"))
    os.setxattr(upper / "etc/hosts", "user.overlay.uuid", b"1")
    capsule.pack()
    assert all(entry[4] == () for entry in layer_listing(capsule.images[0], tmp_path / "m").values())


def test_a_state_folder_that_gives_its_group_and_acl_to_all_in_it(capsule: Capsule) -> None:
    """The root folder is root's all the same, or nothing could ever be packed."""
    state = capsule.folder / "state"
    state.mkdir()
    os.chown(state, 0, 50)
    state.chmod(0o2755)
    subprocess.run(["setfacl", "-d", "-m", "u:33:rwx", state], check=True)
    packed = capsule.change(write("etc/new"))
    assert told(packed.changes) == {"etc/new": ("added",)}
    assert capsule.listing()["etc/new"][:3] == ("0o100644", 0, 0)
    assert capsule.listing()["etc/new"][4] == ()


def test_a_path_too_long_to_be_looked_at_is_named(capsule: Capsule) -> None:
    """One that no program could open; the edit is still there."""
    capsule.open()
    here = Path.cwd()
    os.chdir(capsule.at)
    try:
        for _ in range(25):
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    with pytest.raises(CapsulekitError, match="a path that no program could open"):
        capsule.pack()
    assert session.is_mounted(capsule.edit)


def test_a_package_database_is_read_from_the_capsule_alone(tmp_path: Path) -> None:
    """Not from the machine, where a link in it leads; nor from a pipe, that would never end."""
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine/rpmdb.sqlite").write_text("the machine's own, and no database")
    below, root = tmp_path / "below", tmp_path / "root"
    for tree in (below, root):
        (tree / "var/lib").mkdir(parents=True)
        (tree / "var/lib/rpm").symlink_to(tmp_path / "machine")
        (tree / "usr/lib/sysimage/rpm").mkdir(parents=True)
        os.mkfifo(tree / "usr/lib/sysimage/rpm/rpmdb.sqlite")
    for database in DATABASES:
        assert package_changes([database], below, root) == []


def test_names_of_mounts_that_a_user_chose_stop_nothing(tmp_path: Path) -> None:
    """The kernel escapes neither a carriage return nor a form feed, and whoever may mount by FUSE chooses the name."""
    table = tmp_path / "mountinfo"
    odd = b"26 1 0:23 / /home/eve/a\rb\x0cc\xff\\040d rw - fuse  rw\n27 1 0:24 / /x rw shared:1 - tmpfs none rw\n"
    table.write_bytes(odd)
    one, other = mounts(table)
    assert (one.at, one.kind, one.source) == (Path(os.fsdecode(b"/home/eve/a\rb\x0cc\xff d")), "fuse", "")
    assert (other.number, other.at, other.kind) == (27, Path("/x"), "tmpfs")
