"""What a capsule was is kept, told and gone back to, also by several at once; edits, answers and clones are in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from asking_capsule import NAME, answers_file, asking_capsule, kit, stored
from edited_capsule import MAC, asked, edited, handed, paths, store, told, whole

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from provisioner.registry.registry import Registry
from provisioner.sitekey import ensure_site_key
from provisioner.vnfs.generation import switch
from provisioner.vnfs.store import SITE_ACL, SITE_LAYER, VnfsStore

__all__ = ["asked", "paths", "store"]  # the fixtures


# --- history


def test_history_tells_who_when_what_and_why(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    before = time.time() - 120
    first = edited(paths, NAME, {"opt/a": b"1", "opt/b": b"2"}, "a tool for alice")
    lines = told(paths)
    assert [(line["number"], line["kind"], line["current"], line["imported"]) for line in lines] == [
        (1, "import", False, True), (2, "configure", False, False), (3, "edit", True, False),
    ]  # fmt: skip
    assert [line["identity"] for line in lines] == [asked, lines[2]["parent"], first]
    assert lines[1]["parent"] == asked and lines[0]["parent"] == ""
    assert lines[2]["message"] == "a tool for alice" and lines[2]["changes"]["paths"] == {"added": 2}  # type: ignore[index]
    assert all(before < float(str(line["time"])) <= time.time() for line in lines)
    assert lines[0]["who"], "whoever imported it"
    text = kit(paths, "vnfs", "history", "tiny")
    assert text.status == 0
    assert re.search(
        r"(?m)^3 +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ +edit +[0-9a-f]{16}… current +0 +"
        r"a tool for alice; \+htop 3\.2\.2; paths: 2 added$",
        text.out,
    ), text.out
    assert re.search(r"(?m)^1 .* import .* imported ", text.out), text.out


def test_history_says_which_nodes_run_which_generation(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    second = store.get(NAME).identity
    kit(paths, "node", "add", MAC), kit(paths, "node", "add", "52:54:00:00:00:02", "other")
    handed(paths, second)
    handed(paths, asked, mac="52:54:00:00:00:02")
    edited(paths, NAME, {"a": b""})
    assert [line["nodes"] for line in told(paths)] == [["other"], ["n0000"], []]
    assert "n0000" in kit(paths, "vnfs", "history", "-v", NAME).out


def test_what_was_installed_before_there_was_a_history_gets_one(paths: SitePaths, asked: str) -> None:
    """As a site looks right after the upgrade: a capsule's row, its folders, and an empty table."""
    registry = Registry(paths.state / "registry.db")
    with registry.db.write() as con:
        con.execute("DELETE FROM generations")
    lines = told(paths)
    assert [(line["number"], line["kind"]) for line in lines] == [(1, "import"), (2, "configure")]
    assert registry.generations(NAME) == [], "whoever only looks changes nothing"
    edited(paths, NAME, {"a": b""})
    assert [past.kind for past in registry.generations(NAME)] == ["import", "configure", "edit"]
    assert registry.generations(NAME)[0].identity == asked
    with registry.db.write() as con:
        con.execute("DELETE FROM generations WHERE number > 1")
    assert whole(paths)
    registry.close()


# --- rollback


def test_rollback_goes_to_what_the_current_one_was_made_from(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    second = store.get(NAME).identity
    third = edited(paths, NAME, {"a": b"3"})
    fourth = edited(paths, NAME, {"a": b"4"})
    steps = []
    for _ in range(3):
        done = kit(paths, "vnfs", "rollback", "tiny", "--message", "no good")
        assert done.status == 0, done.err
        steps.append(store.get(NAME).identity)
        assert kit(paths, "vnfs", "verify", NAME).status == 0
    assert steps == [third, second, asked], "never to and fro between two"
    row = store.get(NAME)
    assert (row.private, row.key_id != ensure_site_key(paths).public.id) == (False, True)
    last = kit(paths, "vnfs", "rollback", NAME)
    assert (last.status, last.err) == (1, f"ERROR: {NAME} is as it was imported: there is nothing to go back to\n")
    lines = told(paths)
    assert [line["kind"] for line in lines] == ["import", "configure", "edit", "edit", *3 * ["rollback"]]
    assert [line["current"] for line in lines] == [False] * 6 + [True]
    assert {line["message"] for line in lines[4:]} == {"no good"} and lines[4]["parent"] == fourth
    assert kit(paths, "vnfs", "rollback", NAME, "--to", "4").status == 0
    assert store.get(NAME).identity == fourth
    assert kit(paths, "vnfs", "rollback", NAME, "--to", second[:8]).status == 0
    assert store.get(NAME).identity == second


def test_a_rollback_that_is_only_tried_changes_nothing(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    row, lines, files = store.get(NAME), told(paths), stored(paths)
    done = kit(paths, "vnfs", "rollback", NAME, "--dry-run", "--json")
    assert json.loads(done.out) == {
        "name": NAME, "number": 1, "identity": asked, "left": row.identity, "dry_run": True,
    }  # fmt: skip
    assert (store.get(NAME), told(paths), stored(paths)) == (row, lines, files)


def test_rollback_refuses_what_nodes_could_not_boot(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    second = store.get(NAME).identity
    third = edited(paths, NAME, {"a": b"3"})
    fourth = edited(paths, NAME, {"a": b"4"})
    cases = [
        (("--to", "9"), 1, "has no generation 9"),
        (("--to", "0"), 1, "has no generation 0"),
        (("--to", "abc"), 2, "names no generation"),
        (("--to", "../../etc"), 2, "names no generation"),
        (("--to", "f" * 64), 1, "has no generation ffff"),
        (("--to", "4"), 1, "is at generation 4 already"),
        (("--to", fourth), 1, "is at generation 4 already"),
    ]
    for words, status, said in cases:
        done = kit(paths, "vnfs", "rollback", NAME, *words)
        assert (done.status, done.out) == (status, ""), words
        assert said in done.err and done.err.count("\n") <= 2, done.err
    layer = store.blob(store.digests(NAME, third)["layers/01-edit.squashfs"])
    only = store.blob(store.digests(NAME, second)["capsule.toml"])
    good = only.read_bytes()
    only.write_bytes(good[:-1] + b"#")
    done = kit(paths, "vnfs", "rollback", NAME, "--to", "2")
    assert done.status == 3 and "capsule.toml is not what was signed" in done.err
    only.write_bytes(good)
    assert kit(paths, "vnfs", "delete", NAME, "-g", "3", "-y").status == 0
    assert layer.exists(), "the fourth has it too"
    done = kit(paths, "vnfs", "rollback", NAME, "--to", "3")
    assert done.status == 1 and "generation 3 of tiny-1.0.amd64 was deleted" in done.err
    done = kit(paths, "vnfs", "rollback", NAME)
    assert done.status == 1 and "--to NUMBER" in done.err
    Keyring(paths.trust).revoke(Keyring(paths.trust).keys()[0].id)
    done = kit(paths, "vnfs", "rollback", NAME, "--to", "1")
    assert done.status == 3 and ("not trusted here" in done.err or "revoked" in done.err)
    assert store.get(NAME).identity == fourth and [line["kind"] for line in told(paths)][-1] == "edit"


def test_a_change_of_what_is_not_current_any_more_is_refused(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    base = store.get(NAME)
    edited(paths, NAME, {"a": b""})
    with pytest.raises(CapsulekitError, match=r"was changed meanwhile by \S+ \(edit, .* UTC\)"):
        switch(store, base, base=base.identity, kind="edit")
    with pytest.raises(CapsulekitError, match="was changed meanwhile"):
        switch(store, base, base=asked, kind="rollback")
    assert len(told(paths)) == 3
    assert kit(paths, "vnfs", "delete", NAME, "-y").status == 0
    with pytest.raises(CapsulekitError, match="was deleted meanwhile"):
        switch(store, base, base=base.identity, kind="edit")


COMMAND = "from capsulekit.cli.main import entry; entry()"


@pytest.mark.slow
def test_commands_at_once_lose_nothing(paths: SitePaths, tmp_path: Path, registry_place: Path | str) -> None:
    """On both databases: each starts from what the one before made, or says that somebody was quicker."""
    (paths.config / "site.toml").write_text(f'registry = "{registry_place}"\n')
    asking_capsule(tmp_path / "t.vnfs")
    registry = Registry(registry_place)
    assert kit(paths, "vnfs", "import", tmp_path / "t.vnfs", "-y", "--answers", answers_file(tmp_path)).status == 0
    made = [edited(paths, NAME, {"a": b"%d" % number}, registry=registry) for number in range(3)]
    words = [["rollback", NAME, "--to", one] for one in made] + [["clone", NAME, f"copy{n}"] for n in range(3)]
    words += [["rollback", NAME], ["delete", NAME, "--keep", "2", "-y"]]
    words += [["configure", NAME, "-y", "--answers", str(answers_file(tmp_path))]]
    base = ["--config-dir", str(paths.config), "--state-dir", str(paths.state), "vnfs"]
    running = [
        subprocess.Popen([sys.executable, "-c", COMMAND, *base, *line], stderr=subprocess.PIPE, text=True)
        for line in words
    ]
    told = [one.communicate(timeout=300)[1] for one in running]
    for line, one, said in zip(words, running, told, strict=True):
        assert one.returncode == 0 or re.search("already|was changed meanwhile|was deleted", said), (line, said)
    lines = registry.generations(NAME)
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert all(after.parent == before.identity for before, after in pairwise(lines))
    assert registry.find_capsule(NAME).identity == lines[-1].identity
    done = kit(paths, "vnfs", "verify", NAME, "copy0", "copy1", "copy2")
    assert done.status == 0, done.err
    registry.close()


# --- configure over edits


def test_configure_keeps_what_was_edited_and_puts_the_answers_on_top(
    paths: SitePaths, asked: str, store: VnfsStore, tmp_path: Path
) -> None:
    edited(paths, NAME, {"opt": b"tool"})
    answers = answers_file(tmp_path, 'ntp = "10.0.0.99"\nroot = "anders"\n')
    done = kit(paths, "vnfs", "configure", NAME, "-y", "--answers", answers)
    assert done.status == 0, done.err
    layers = [layer.path for layer in store.manifest(NAME).layers]
    assert layers[:2] == [SITE_LAYER, "layers/01-edit.squashfs"] and layers.count(SITE_LAYER) == 1
    again = kit(paths, "vnfs", "configure", NAME, "-y")
    assert "is configured like that" in again.out and [line["kind"] for line in told(paths)][-1] == "configure"
    assert len(told(paths)) == 4
    assert kit(paths, "vnfs", "verify", NAME).status == 0
    done = kit(paths, "vnfs", "rollback", NAME)
    assert done.status == 0 and store.manifest(NAME).layers[0].path == "layers/01-edit.squashfs"


def test_an_answers_file_has_no_acl_of_what_was_there_before(
    paths: SitePaths, store: VnfsStore, tmp_path: Path
) -> None:
    """Whoever the author let read /etc/ntp.conf can't read the site's own; what is no answer keeps its ACL."""
    acl = b"etc/ntp.conf\taccess\tu::rw-,u:7:r--,g::r--,m::r--,o::r--\n"
    acl += b"root\taccess\tu::rwx,u:7:r-x,g::---,m::r-x,o::---\n"
    asking_capsule(tmp_path / "a.vnfs", acl=acl)
    assert kit(paths, "vnfs", "import", tmp_path / "a.vnfs", "-y", "--answers", answers_file(tmp_path)).status == 0
    assert store.small(NAME, SITE_ACL) == b"etc/ntp.conf\taccess\tu::rw-,g::r--,o::r--\n"
    assert store.manifest(NAME).layers[0].acl == SITE_ACL
    assert store.blob(store.digests(NAME)[SITE_ACL]).stat().st_mode & 0o777 == 0o600
    assert kit(paths, "vnfs", "verify", NAME).status == 0


# --- clone


def test_a_clone_takes_the_current_and_the_imported_generation_and_says_so(
    paths: SitePaths, asked: str, store: VnfsStore
) -> None:
    edited(paths, NAME, {"a": b"1"})
    current = edited(paths, NAME, {"a": b"2"})
    blobs = stored(paths, "blobs")
    assert kit(paths, "vnfs", "clone", "tiny", "copy").status == 0
    assert stored(paths, "blobs") == blobs
    lines = told(paths, "copy")
    assert [(line["kind"], line["identity"]) for line in lines] == [("import", asked), ("clone", current)]
    assert lines[1]["message"] == f"clone of {NAME}"
    assert {folder.name for folder in store.home("copy").iterdir()} == {asked, current}
    assert kit(paths, "vnfs", "delete", NAME, "-y").status == 0
    assert kit(paths, "vnfs", "verify", "copy").status == 0
    assert kit(paths, "vnfs", "rollback", "copy").status == 0 and store.get("copy").identity == asked
    assert kit(paths, "vnfs", "delete", "copy", "-y").status == 0 and stored(paths) == []


def test_a_clone_reads_no_blob(paths: SitePaths, asked: str, store: VnfsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from provisioner.vnfs import place
    from provisioner.vnfs.clone import clone

    def refused(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(place, "sha256_file", refused)
    clone(store, NAME, "copy")
    assert store.get("copy").identity == store.get(NAME).identity


@pytest.mark.parametrize("told", [KeyboardInterrupt(), CapsulekitError("the connection was lost")])
def test_what_is_recorded_stays_although_the_command_ends_just_then(
    paths: SitePaths, asked: str, store: VnfsStore, monkeypatch: pytest.MonkeyPatch, told: BaseException
) -> None:
    """Ctrl-C while the registry commits: the generation is there, so are its parts, and it can be booted."""
    switched = Registry.switch_capsule

    def then_ends(self: Registry, *words: object, **options: object) -> None:
        switched(self, *words, **options)  # type: ignore[arg-type]
        raise told

    before = store.get(NAME).identity
    monkeypatch.setattr(Registry, "switch_capsule", then_ends)
    with pytest.raises(type(told)):
        edited(paths, NAME, {"opt/a": b"1"})
    monkeypatch.undo()
    assert store.get(NAME).identity not in (before, asked)
    assert whole(paths)
    assert edited(paths, NAME, {"opt/b": b"2"}) == store.get(NAME).identity
    assert whole(paths)
