"""mount, umount, close: what an edit of an installed capsule comes to, as its commands say and its layers show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_site import NAME, NEEDS_ROOT, SHORT, EditSite, edit_site

from capsulekit.capsule.manifest import MEMBER, loads
from capsulekit.capsule.read import open_capsule
from capsulekit.files import sha256_bytes

pytestmark = [NEEDS_ROOT, pytest.mark.timeout(300)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[EditSite]:
    with edit_site(tmp_path) as made:
        yield made


def test_mount_says_where_it_is_and_what_to_do_next(site: EditSite) -> None:
    said = site.good("mount", SHORT, "--at", site.at)
    assert said.splitlines()[0] == f"{NAME} is mounted at {site.at}"
    for command in (f"chroot {site.at}", f"capsulekit umount {SHORT}", f"capsulekit close {SHORT}"):
        assert command in said
    assert "Nodes that boot it wait until then" in said
    assert (site.at / "sbin/init").read_text().startswith("#!/bin/busybox sh")


def test_without_a_place_it_is_mounted_below_mnt_by_the_name_that_was_typed(site: EditSite) -> None:
    """The manual's spellings; the folder was made, and goes again."""
    at = Path(f"/mnt/{SHORT}")
    assert not at.exists()
    try:
        assert f"mounted at {at}" in site.good("vnfs", "mount", SHORT)
        assert (at / "sbin/init").exists()
        (at / "etc/motd").write_text("hello\n")
        assert "unmounted" in site.good("vnfs", "umount", at)
    finally:
        site.run("-y", "close", NAME)
    assert not at.exists()
    assert site.seen("etc/motd") == "hello\n"


def test_umount_packs_only_what_was_changed_and_says_it(site: EditSite) -> None:
    base, at = site.identity, site.mount()
    before = {path.name for path in (site.paths.state / "blobs").glob("??/*")}
    (at / "etc/motd").write_text("welcome\n")
    os.utime(at / "etc/motd", (1_600_000_000, 1_600_000_000))
    (at / "etc/udhcpc.sh").unlink()
    done = site.json("umount", SHORT, "--message", "a greeting")
    assert (done["changed"], done["identity"]) == (True, site.identity) and site.identity != base
    assert done["changes"]["paths"] == {"added": 1, "changed": 0, "removed": 1}
    assert 0 < done["layer_bytes"] < 8192
    assert site.layers[0] == "layers/01-edit.squashfs"
    new = {path for path in (site.paths.state / "blobs").glob("??/*") if path.name not in before}
    assert sum(path.stat().st_size for path in new) < 32768, "what was not changed is not stored again"
    last = site.history[-1]
    assert (last.kind, last.message, last.parent, last.changes["paths"]["added"]) == ("edit", "a greeting", base, 1)
    assert last.who
    site.good("vnfs", "verify", NAME)
    site.check_clean()
    at = site.mount()
    assert (at / "etc/motd").read_text() == "welcome\n" and (at / "etc/motd").stat().st_mtime == 1_600_000_000
    assert not (at / "etc/udhcpc.sh").exists()
    assert "nothing was changed in it" in site.good("close", SHORT)


def test_the_new_layer_is_private_and_its_parents_are_named(site: EditSite) -> None:
    first, at = site.identity, site.mount()
    (at / "etc/one").write_text("1\n")
    site.good("umount", SHORT)
    second, at = site.identity, site.mount()
    (at / "etc/two").write_text("2\n")
    site.good("umount", SHORT)
    out = site.top / "out.vnfs"
    site.good("vnfs", "export", NAME, out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert site.layers[:2] == ["layers/02-edit.squashfs", "layers/01-edit.squashfs"]
    with open_capsule(out) as capsule:
        told = loads(capsule.read_member(MEMBER))
        assert [layer.private for layer in told.layers[:2]] == [True, True]
        parents = [sha256_bytes(capsule.read_member(f"parent/{n}/SHA256SUMS")) for n in (0, 1)]
        assert parents == [second, first]
        assert not any(name.startswith("parent/2/") for name in capsule.members)


def test_no_change_makes_no_generation_and_says_so(site: EditSite) -> None:
    base, at = site.identity, site.mount()
    (at / "etc/same").write_text("x")
    (at / "etc/same").unlink()
    (at / "tmp/leftover").write_text("x")
    done = site.json("umount", SHORT)
    assert (done["changed"], site.identity, len(site.history)) == (False, base, 1)
    site.mount()
    assert "nothing was changed, so there is no new generation" in site.good("umount", SHORT)
    site.check_clean()


def test_a_dry_run_says_it_all_changes_nothing_and_leaves_it_mounted(site: EditSite) -> None:
    base, at = site.identity, site.mount()
    (at / "etc/motd").write_text("x\n")
    said = site.good("umount", SHORT, "--dry-run")
    assert "added /etc/motd" in said and "would be unmounted" in said
    assert site.identity == base and (at / "etc/motd").exists()
    assert json.loads(site.good("umount", SHORT, "--dry-run", "--json"))["changed"] is True
    assert "would be closed" in site.good("close", SHORT, "--dry-run")
    (at / "etc/more").write_text("y\n")
    site.good("umount", SHORT)
    assert "would be mounted at" in site.good("mount", SHORT, "--dry-run", "--at", site.at)
    site.check_clean()


def test_close_discards_truly_and_says_what_is_lost(site: EditSite) -> None:
    base, at = site.identity, site.mount()
    (at / "etc/motd").write_text("gone\n")
    done = site.run("close", SHORT)
    assert done.status == 0 and "added /etc/motd" in done.err and "is discarded" in done.out
    assert site.identity == base and len(site.history) == 1
    site.check_clean()
    assert site.seen("etc/motd") is None


def test_its_mount_point_its_name_and_its_short_name_all_mean_it(site: EditSite) -> None:
    for word in (NAME, SHORT, str(site.at), f"{site.at}/../mnt/"):
        site.mount()
        site.good("umount", word)
        site.mount()
        site.good("close", word)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("mount", "nowhere"), 1, "nowhere"),
        (("mount", "."), 1, "."),
        (("mount", "/etc/passwd"), 3, "/etc/passwd"),
        (("mount", "/etc"), 2, "is a folder"),
        (("umount", NAME), 1, "is not mounted"),
        (("umount", "/"), 1, "is not mounted"),
        (("close", "/mnt/nothing"), 1, "is not mounted"),
        (("mount", SHORT, "--at", "/proc"), 1, "/proc"),
        (("mount", SHORT, "--at", "/etc"), 1, "/etc is not empty"),
        (("mount", SHORT, "--at", "/etc/passwd"), 1, "/etc/passwd is not a folder"),
        (("shell", SHORT), 2, "a shell needs a terminal"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(site: EditSite, words: tuple[str, ...], status: int, said: str) -> None:
    assert said in site.bad(*words, status=status)
    site.check_clean() if (site.paths.state / "edits").exists() else None


def test_links_in_a_circle_are_said(site: EditSite) -> None:
    (site.top / "a").symlink_to("b")
    (site.top / "b").symlink_to("a")
    assert "symbolic links" in site.bad("mount", SHORT, "--at", site.top / "a")
    for command in ("umount", "close"):
        assert "is not mounted" in site.bad(command, site.top / "a")
    assert "symbolic links" in site.bad("mount", site.top / "a")
    site.check_clean()


def test_a_message_that_is_no_text_is_refused_before_anything_is_done(site: EditSite) -> None:
    base, at = site.identity, site.mount()
    (at / "etc/motd").write_text("x\n")
    no_text = os.fsdecode(b"caf\xe9")
    for words in (("umount", SHORT), ("vnfs", "rollback", SHORT)):
        assert "--message is no text in UTF-8" in site.bad(*words, "-m", no_text, status=2)
    site.good("umount", SHORT, "-m", "two\nlines \x1b[31m")
    assert site.identity != base and site.history[-1].message == "two\nlines \x1b[31m"
    assert "two\\nlines \\x1b[31m" in site.good("vnfs", "history", SHORT)
    bad = site.run("shell", SHORT, "-m", no_text, "--", "/bin/busybox", "touch", "/etc/2")
    assert bad.status == 2 and site.seen("etc/2") is None


def test_options_of_files_are_refused_for_what_is_installed(site: EditSite) -> None:
    site.mount()
    assert "-o is for capsule files" in site.bad("umount", SHORT, "-o", site.top / "x.vnfs")
    assert "--key is for capsule files" in site.bad("umount", SHORT, "--key", site.top / "key")
    site.good("close", SHORT)


def test_more_than_sixteen_edits_become_one_with_the_same_tree(site: EditSite) -> None:
    """Deletions, replaced folders, modes and owners hold; the seventeenth umount flattens by itself and says so."""
    for number in range(16):
        at = site.mount()
        (at / f"etc/file{number}").write_text(f"{number}\n")
        (at / "etc/last").write_text(f"{number}\n")
        if number:
            (at / f"etc/file{number - 1}").unlink()
        folder = at / "opt/replaced"
        if folder.exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        folder.mkdir(parents=True)
        (folder / f"only{number}").write_text("x")
        os.chown(folder / f"only{number}", 7, 8)
        (folder / f"only{number}").chmod(0o4755)
        assert "became" not in site.good("umount", SHORT)
    assert len([name for name in site.layers if "edit" in name]) == 16
    at = site.mount()
    (at / "etc/udhcpc.sh").unlink()
    before = _tree(at)
    said = site.good("umount", SHORT)
    assert "17 edit layers became 1 (more than 16 are not kept)" in said
    assert len([name for name in site.layers if "edit" in name]) == 1
    at = site.mount()
    assert _tree(at) == before
    assert (at / "opt/replaced/only15").stat().st_mode & 0o7777 == 0o4755
    assert sorted(path.name for path in (at / "opt/replaced").iterdir()) == ["only15"]
    (at / "etc/after").write_text("x")
    site.good("umount", SHORT)
    site.check_clean()


def test_flatten_can_be_asked_for_also_without_a_change(site: EditSite) -> None:
    for number in range(2):
        at = site.mount()
        (at / f"etc/f{number}").write_text("x")
        site.good("umount", SHORT)
    at = site.mount()
    before = _tree(at)
    assert "would become one" in site.good("umount", SHORT, "--flatten", "--dry-run")
    assert "2 edit layers became 1" in site.good("umount", SHORT, "--flatten")
    assert site.history[-1].kind == "flatten"
    at = site.mount()
    assert _tree(at) == before
    site.good("close", SHORT)


def _tree(root: Path) -> dict[str, tuple[object, ...]]:
    """All of a mounted capsule but the empty file that is shown where it has none to mount resolv.conf at."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        body = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        when = () if path.is_dir() else (seen.st_mtime,)
        found[str(path.relative_to(root))] = (seen.st_mode, seen.st_uid, seen.st_gid, hash(body), *when)
    del found["etc/resolv.conf"]
    return found


def test_a_layer_of_another_size_than_was_signed_is_not_mounted(site: EditSite) -> None:
    """Its bytes are summed by `vnfs verify`, by nodes, and where something is made of it."""
    at = site.mount()
    (at / "etc/one").write_text("1\n" * 100)
    site.good("umount", SHORT)
    blob = _blob_of(site, "layers/01-edit.squashfs")
    data = blob.read_bytes()
    blob.write_bytes(data + b"more")
    assert "01-edit.squashfs" in site.bad("mount", SHORT, "--at", site.at, status=3)
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    at = site.mount()
    (at / "etc/two").write_text("2\n")
    assert "is not what was signed" in site.bad("umount", SHORT, "--flatten", status=3)
    assert (at / "etc/two").exists(), "it is mounted still"
    site.good("umount", SHORT)
    site.bad("vnfs", "verify", SHORT, status=3)


def _blob_of(site: EditSite, member: str) -> Path:
    from contextlib import closing

    from provisioner.registry.registry import open_registry
    from provisioner.vnfs.store import VnfsStore

    with closing(open_registry(site.paths)) as registry:
        store = VnfsStore(site.paths, registry)
        return store.blob(store.digests(NAME)[member])


def test_diff_and_why_tell_what_was_edited_and_what_an_edit_took_away(site: EditSite) -> None:
    """Of sealed files: every path that an edit changed, none that it did not, and that the build is not to blame."""
    first = site.top / "first.vnfs"
    site.good("vnfs", "export", SHORT, first)
    at = site.mount()
    (at / "etc/motd").write_text("once\n")
    subprocess.run(["setfacl", "-m", "u:77:r", at / "etc/motd"], check=True)
    (at / "etc/udhcpc.sh").write_bytes((at / "etc/udhcpc.sh").read_bytes()[:-1] + b"#")  # as many bytes
    site.good("umount", SHORT)
    at = site.mount()
    subprocess.run(["setfacl", "-b", at / "etc/motd"], check=True)
    (at / "sbin/init").chmod(0o700)
    shutil.rmtree(at / "usr/share/doc")
    site.good("umount", SHORT)
    once, twice = site.top / "once.vnfs", site.top / "twice.vnfs"
    site.good("vnfs", "export", SHORT, once, "--generation", "2")
    site.good("vnfs", "export", SHORT, twice)

    def told(one: Path, two: Path) -> dict[str, dict[str, list[str]]]:
        causes = json.loads(site.run("diff", one, two, "--json").out)["causes"]
        return {group["cause"]: {c["path"].lstrip("/"): c["what"] for c in group["paths"]} for group in causes}

    assert told(first, once) == {
        "edited at a site: layers/01-edit.squashfs": {"etc/motd": ["added"], "etc/udhcpc.sh": ["content"]}
    }
    later = told(once, twice)["edited at a site: layers/02-edit.squashfs"]
    assert later.pop("etc/motd") == ["ACL"] and later.pop("sbin/init") == ["mode"]
    assert all(path.startswith("usr/share/doc") and what == ["removed"] for path, what in later.items()), later
    assert "usr/share/doc/busybox-static/copyright" in later
    assert "layers/01-edit.squashfs" in site.good("why", twice, "/etc/udhcpc.sh")
    assert "removed by layers/02-edit" in site.good("why", twice, "/usr/share/doc/busybox-static/copyright")


def test_diff_names_an_edit_of_capabilities_alone(site: EditSite) -> None:
    """Listings show no extended attributes: no path differs, and it is not said that nothing does."""
    first, second = site.top / "first.vnfs", site.top / "second.vnfs"
    site.good("vnfs", "export", SHORT, first)
    subprocess.run(["setcap", "cap_net_raw=ep", site.mount() / "bin/busybox"], check=True)
    site.good("umount", SHORT)
    site.good("vnfs", "export", SHORT, second)
    told = json.loads(site.good("diff", first, second, "--json"))
    assert (told["same"], told["causes"], told["silent"]) == (False, [], ["layers/01-edit.squashfs"])
