"""Generations are deleted, but not while they are needed; exported, and checked, any of them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from asking_capsule import NAME, answers_file, kit, store_of, stored, trusting_site
from edited_capsule import MAC, asked, edited, handed, paths, store, told, whole
from small_capsule import small_capsule

from capsulekit.capsule import layout
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_file
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from provisioner.registry.registry import Registry
from provisioner.sitekey import ensure_site_key
from provisioner.vnfs.remove import delete_generations, older_generations
from provisioner.vnfs.store import SITE_LAYER, VnfsStore

__all__ = ["asked", "paths", "store"]  # the fixtures


# --- delete


def test_generations_go_one_by_one_but_never_the_current_or_the_imported_one(
    paths: SitePaths, asked: str, store: VnfsStore
) -> None:
    third = edited(paths, NAME, {"a": b"3" * 9999})
    fourth = edited(paths, NAME, {"a": b"4" * 9999})
    for wanted, word in (("1", "what was imported"), ("4", "what nodes boot"), (fourth[:12], "what nodes boot")):
        done = kit(paths, "vnfs", "delete", NAME, "--generation", wanted, "-y")
        assert done.status == 1 and f"is {word}" in done.err, done.err
    dry = kit(paths, "vnfs", "delete", NAME, "-g", "3", "--dry-run")
    assert dry.out == f"Would be deleted: generation 3 of {NAME} ({third[:16]}…)\n"
    assert kit(paths, "vnfs", "delete", NAME, "-g", "3", "-n").status == 1
    assert store.generation(NAME, third).exists()
    done = kit(paths, "vnfs", "delete", NAME, "-g", "3", "-g", third[:10], "-y", "--json")
    assert done.status == 0, done.err
    record = json.loads(done.out)
    assert record["generations"] == {NAME: [third]} and record["freed"] > 0 and record["kept"] == []
    assert not store.generation(NAME, third).exists()
    assert store.blob(store.digests(NAME, fourth)["layers/01-edit.squashfs"]).exists(), "the fourth has that layer too"
    assert told(paths)[2]["deleted"] is not None and "deleted" in kit(paths, "vnfs", "history", NAME).out
    assert whole(paths)
    bad = [
        ((NAME, "-g", "3"), 1, "was deleted"),
        ((NAME, "-g", "77"), 1, "no generation 77"),
        ((NAME, "-g", "x"), 2, "names no generation"),
        ((NAME, "-g", "2", "--keep", "1"), 2, "not together"),
        ((NAME, "--keep", "-1"), 2, "--keep"),
        (("nope", "-g", "2"), 1, "no capsule 'nope'"),
    ]
    for words, status, said in bad:
        done = kit(paths, "vnfs", "delete", *words, "-y")
        assert (done.status, said in done.err) == (status, True), (words, done.err)


def test_all_but_the_newest_older_generations_go(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    made = [edited(paths, NAME, {"a": bytes([65 + number])}) for number in range(4)]
    done = kit(paths, "vnfs", "delete", NAME, "--keep", "2", "-y")
    assert done.status == 0, done.err
    assert store.generations(NAME) == (made[3], asked, made[2], made[1])
    assert kit(paths, "vnfs", "delete", NAME, "--keep", "2", "-y").out == "No older generation is to be deleted\n"
    assert kit(paths, "vnfs", "rollback", NAME, "--to", "4").status == 0
    assert kit(paths, "vnfs", "delete", NAME, "--keep", "0", "-y").status == 0
    assert store.generations(NAME) == (made[1], asked)
    assert {folder.name for folder in store.home(NAME).iterdir()} == {made[1], asked} and whole(paths)


def test_what_was_gone_back_to_while_older_ones_were_to_be_deleted_stays(
    paths: SitePaths, asked: str, store: VnfsStore
) -> None:
    third, _fourth = edited(paths, NAME, {"a": b"3"}), edited(paths, NAME, {"a": b"4"})
    chosen = {NAME: older_generations(store, NAME, 0)}
    assert third in chosen[NAME]
    assert kit(paths, "vnfs", "rollback", NAME, "--to", third).status == 0
    with pytest.raises(CapsulekitError, match=rf"was changed meanwhile: generation {third[:16]}… is what nodes boot"):
        delete_generations(store, chosen, by_age=True)
    assert third in store.generations(NAME) and asked in store.generations(NAME) and whole(paths)


def test_what_a_node_was_told_to_boot_stays_until_it_boots_something_else(
    paths: SitePaths, asked: str, store: VnfsStore, tmp_path: Path
) -> None:
    second = store.get(NAME).identity
    secret = store.blob(store.digests(NAME)[SITE_LAYER])
    kit(paths, "node", "add", MAC), kit(paths, "node", "add", "52:54:00:00:00:02")
    handed(paths, second)
    edited(paths, NAME, {"a": b""})
    assert kit(paths, "vnfs", "configure", NAME, "-y", "--answers", answers_file(tmp_path, 'root = "x"')).status == 0
    dry = kit(paths, "vnfs", "delete", NAME, "--keep", "0", "--dry-run")
    assert f"Would be kept until they boot something else, for n0000: {NAME} {second[:16]}…" in dry.out
    done = kit(paths, "vnfs", "delete", NAME, "--keep", "0", "-y")
    assert f"kept until they boot something else, for n0000: {NAME} {second[:16]}…" in done.out
    assert secret.exists() and store.generation(NAME, second).exists()
    done = kit(paths, "vnfs", "delete", NAME, "-y", "--force", "--json")
    assert json.loads(done.out)["kept"] == [] and secret.exists(), "it was deleted before"
    assert sha256_file(secret) == secret.name and secret.stat().st_mode & 0o777 == 0o600
    small_capsule(tmp_path / "o.vnfs", version="2.0")
    assert kit(paths, "vnfs", "import", tmp_path / "o.vnfs").status == 0
    assert kit(paths, "vnfs", "delete", "tiny", "-y").status == 0 and secret.exists(), "gc runs, and it stays"
    handed(paths, "ab" * 32, "tiny-2.0.amd64")
    assert kit(paths, "vnfs", "import", tmp_path / "o.vnfs").status == 0
    assert kit(paths, "vnfs", "delete", "tiny", "-y").status == 0
    assert stored(paths) == []


def test_a_deleted_node_holds_nothing(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    kit(paths, "node", "add", MAC)
    handed(paths, store.get(NAME).identity)
    done = kit(paths, "vnfs", "delete", NAME, "-y", "--force")
    assert "for n0000" in done.out and stored(paths) != []
    assert kit(paths, "node", "delete", "n0000", "-y").status == 0
    registry = Registry(paths.state / "registry.db")
    registry.record_booted(MAC, json.dumps({"vnfs": NAME, "identity": asked}))  # its last request came late
    registry.close()
    assert kit(paths, "vnfs", "import", paths.state.parent / "t.vnfs", "-y", "--as", "x",
               "--answers", answers_file(paths.state.parent)).status == 0  # fmt: skip
    assert kit(paths, "vnfs", "delete", "x", "-y").status == 0 and stored(paths) == []


# --- export


@pytest.mark.parametrize("generation", ["2", "3"])
def test_an_older_generation_goes_out_sealed_and_comes_in_elsewhere(
    paths: SitePaths, asked: str, store: VnfsStore, tmp_path: Path, generation: str
) -> None:
    edited(paths, NAME, {"a": b"3"})
    edited(paths, NAME, {"a": b"4"})
    wanted = str(told(paths)[int(generation) - 1]["identity"])
    out = tmp_path / "out" / "old.vnfs"
    out.parent.mkdir()
    done = kit(paths, "vnfs", "export", NAME, out, "--generation", generation)
    assert done.status == 0 and "holds private layers" in done.err
    key = tmp_path / "site.pub"
    key.write_text(ensure_site_key(paths).public.file_text)
    assert kit(paths, "verify", out, "--pubkey", key).status == 0
    subprocess.run(["tar", "xf", out, "-C", out.parent], check=True)
    for argv in (["minisign", "-Vm", "SHA256SUMS", "-p", str(key)], ["sha256sum", "-c", "SHA256SUMS"]):
        subprocess.run(argv, cwd=out.parent, check=True, capture_output=True)
    assert sha256_file(out.parent / "SHA256SUMS") == wanted
    parents = sorted(p.parent.name for p in out.parent.glob(f"parent/*/{layout.SUMS}"))
    assert parents == (["0"] if generation == "2" else ["0", "1"])
    assert sha256_file(out.parent / "parent" / parents[-1] / layout.SUMS) == asked
    (tmp_path / "there").mkdir()
    other = trusting_site(tmp_path / "there")
    Keyring(other.trust).add(key)
    done = kit(other, "vnfs", "import", out)
    assert done.status == 0, done.err
    assert store_of(other).get(NAME).identity == wanted and kit(other, "vnfs", "verify", NAME).status == 0
    # Edited there, too: it names what was changed, what was imported, and what that was made from; never more.
    for number in range(3):
        edited(other, NAME, {"b": b"%d" % number})
    there = store_of(other)
    made_from = {m.split("/")[1]: s for m, s in there.digests(NAME).items() if m.endswith(f"/{layout.SUMS}")}
    assert sorted(made_from) == [str(n) for n in range(2 + len(parents))]
    assert made_from["1"] == wanted and made_from[str(1 + len(parents))] == asked
    assert kit(other, "vnfs", "verify", NAME).status == 0
    refused = kit(other, "vnfs", "configure", NAME, "-y", "--answers", answers_file(tmp_path))
    assert refused.status == 1 and "it was configured where it was exported" in refused.err
    # Here it is the same capsule still, and only mended.
    assert kit(paths, "vnfs", "import", out).status == 0 and len(told(paths)) == 4
    bad = kit(paths, "vnfs", "export", NAME, tmp_path / "x.vnfs", "-g", generation, "--without-private")
    assert (bad.status, (tmp_path / "x.vnfs").exists()) == (2, False)
    done = kit(paths, "vnfs", "export", NAME, tmp_path / "x.vnfs", "--without-private")
    assert (tmp_path / "x.vnfs").read_bytes() == (tmp_path / "t.vnfs").read_bytes()


# --- verify, and many of them


def test_verify_looks_at_every_generation_and_names_what_is_not_the_authors(
    paths: SitePaths, asked: str, store: VnfsStore
) -> None:
    third = edited(paths, NAME, {"a": b"3"})
    good = kit(paths, "vnfs", "verify", NAME)
    assert good.status == 0 and "of 3 generations" in good.out
    assert re.findall("not its author's: (.*)", good.out) == ["layers/01-edit.squashfs", SITE_LAYER]
    edited(paths, NAME, {"a": b"4"})
    sums = store.generation(NAME, third) / layout.SUMS
    data = sums.read_bytes()
    sums.write_bytes(data[:-2] + b"\n")
    done = kit(paths, "vnfs", "verify", NAME)
    assert done.status == 3 and "generation 3: wrong signature" in done.err
    sums.write_bytes(data)
    parent = store.blob(store.digests(NAME)[f"parent/1/{layout.SIGNATURE}"])
    parent.write_bytes(b"x")
    done = kit(paths, "vnfs", "verify", NAME)
    assert done.status == 3 and f"parent/1/{layout.SIGNATURE}" in done.err


@pytest.mark.slow
def test_many_generations_are_no_burden(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    from provisioner.registry.registry import open_registry
    from provisioner.vnfs.configure import configure

    registry = open_registry(paths)
    for number in range(20):
        edited(paths, NAME, {"a": b"%d" % number}, registry=registry)
    parents = {m.split("/")[1] for m in store.digests(NAME) if m.startswith("parent/")}
    assert parents == {"0", "1"}, "what was changed, what was imported, and no more"
    for number in range(10):
        configure(store, NAME, lambda _, known, n=number: {**known, "ntp": f"10.0.0.{n}"})  # type: ignore[misc]
    assert len(told(paths)) == 32 and len(store.digests(NAME)) < 50
    started = time.process_time()
    assert kit(paths, "vnfs", "list", "-v").status == 0
    assert time.process_time() - started < 2
    registry.close()


def test_what_is_private_everywhere_is_for_nodes_alone_again(paths: SitePaths, asked: str, store: VnfsStore) -> None:
    """Bytes that a deleted capsule had in public: verify and rollback would refuse what still has them."""
    assert kit(paths, "vnfs", "clone", NAME, "open").status == 0
    edited(paths, "open", {"opt/a": b"the same"}, private=False)
    secret = edited(paths, NAME, {"opt/a": b"the same"})
    blob = store.blob(store.digests(NAME, secret)["layers/01-edit.squashfs"])
    assert blob.stat().st_mode & 0o777 == 0o644
    assert whole(paths)
    edited(paths, NAME, {"opt/b": b"another"})
    assert kit(paths, "vnfs", "delete", "open", "-y").status == 0
    assert blob.stat().st_mode & 0o777 == 0o600
    assert whole(paths)
    assert kit(paths, "vnfs", "rollback", NAME).status == 0
