"""Configuring a capsule: its answers become a private layer on what its author signed, and nothing else changes."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from asking_capsule import ANSWERS, NAME, QUESTIONS, answers_file, asking_capsule, kit, store_of, stored, trusting_site
from small_capsule import AUTHOR

from capsulekit.files import atomic_file
from capsulekit.sitepaths import SitePaths
from provisioner.sitekey import ensure_site_key, site_key_path
from provisioner.vnfs import place
from provisioner.vnfs.store import SITE_LAYER as PATH

PROGRAM = Path(sys.executable).with_name("capsulekit")


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return trusting_site(tmp_path)


@pytest.fixture
def capsule(tmp_path: Path) -> Path:
    asking_capsule(tmp_path / "t.vnfs")
    return tmp_path / "t.vnfs"


def imported(paths: SitePaths, capsule: Path, text: str = ANSWERS) -> None:
    done = kit(paths, "vnfs", "import", capsule, "--answers", answers_file(capsule.parent, text), "-y")
    assert done.status == 0, done.err


def layer_files(paths: SitePaths, folder: Path) -> dict[str, tuple[int, int, str]]:
    """The site's layer, unpacked: mode, owner and text by path."""
    store = store_of(paths)
    blob = store.blob(store.digests(NAME)[PATH])
    subprocess.run(["unsquashfs", "-q", "-n", "-f", "-d", folder, blob], check=True, capture_output=True)
    seen = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        text = path.read_text() if path.is_file() else ""
        seen[str(path.relative_to(folder))] = (stat.S_IMODE(info.st_mode), info.st_uid, text)
    return seen


def test_an_import_with_answers_makes_a_private_layer_signed_by_the_site(
    paths: SitePaths, capsule: Path, tmp_path: Path
) -> None:
    imported(paths, capsule, ANSWERS + 'syslog = "loghost"\n')
    store = store_of(paths)
    row, key = store.get(NAME), ensure_site_key(paths)
    assert (row.key_id, row.private) == (key.public.id, True)
    assert site_key_path(paths).stat().st_mode & 0o777 == 0o600
    told = store.manifest(NAME)
    assert [layer.path for layer in told.layers] == [PATH, "layers/modules.squashfs", "layers/rootfs.squashfs"]
    assert [layer.private for layer in told.layers] == [True, False, False]
    modes = {m.name: store.blob(m.sha256).stat().st_mode & 0o777 for m in store.members(NAME)}
    assert {name for name, mode in modes.items() if mode != 0o644} == {PATH}
    answers = store.folder(NAME) / "answers.toml"
    assert answers.stat().st_mode & 0o777 == 0o600 and "geheim" not in answers.read_text()
    seen = layer_files(paths, tmp_path / "layer")
    assert seen["etc/ntp.conf"] == (0o644, 0, "server 10.0.0.1 iburst\n{other} stays\n")
    assert seen["root"][:2] == (0o700, 0), "a folder must look as it does in the root"
    assert seen["root/.config/hash"][0] == 0o600 and seen["root/.config/hash"][2].startswith("root:$6$")
    assert seen["usr/lib"][:2] == (0o751, 7) and seen["usr/lib/syslog.conf"][2] == "loghost"
    assert "lib" not in seen, "it would hide the link to usr/lib"


def test_the_parents_sums_and_signature_go_along_and_hold_with_stock_tools(
    paths: SitePaths, capsule: Path, tmp_path: Path
) -> None:
    imported(paths, capsule)
    done = kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs")
    assert done.status == 0 and "private layers" in done.err
    assert (tmp_path / "out.vnfs").stat().st_mode & 0o777 == 0o600
    folder = tmp_path / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "xf", tmp_path / "out.vnfs", "-C", folder], check=True)
    (folder / "author.pub").write_text(AUTHOR.public.file_text)
    for sums, pub in (("SHA256SUMS", f"{site_key_path(paths)}.pub"), ("parent/0/SHA256SUMS", "author.pub")):
        subprocess.run(["minisign", "-Vm", sums, "-p", pub], cwd=folder, check=True, capture_output=True)
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    assert kit(paths, "vnfs", "verify", NAME, tmp_path / "out.vnfs").status == 0


def test_without_the_private_layer_the_very_file_goes_out_that_came_in(
    paths: SitePaths, capsule: Path, tmp_path: Path
) -> None:
    imported(paths, capsule)
    assert kit(paths, "vnfs", "export", "tiny", tmp_path / "out.vnfs", "--without-private") == (
        0, f"tiny has been exported to {tmp_path / 'out.vnfs'} (0.0 MB)\n", "",
    )  # fmt: skip
    assert (tmp_path / "out.vnfs").read_bytes() == capsule.read_bytes()


def test_the_same_answers_again_change_nothing_and_others_make_a_generation(
    paths: SitePaths, capsule: Path, tmp_path: Path
) -> None:
    imported(paths, capsule)
    store = store_of(paths)
    first, files = store.get(NAME), stored(paths)
    done = kit(paths, "vnfs", "configure", NAME, "-y")
    assert (done.status, done.out.split(" (")[0]) == (0, f"{NAME} is configured like that")
    assert (store.get(NAME), stored(paths)) == (first, files)
    old = store.blob(store.digests(NAME)[PATH])
    dry = kit(paths, "vnfs", "configure", "tiny", "-y", "--dry-run", "--answers", answers_file(tmp_path, 'ntp = "x"'))
    assert (dry.status, dry.out.split(" (")[0]) == (0, f"{NAME} would be configured")
    assert (store.get(NAME), stored(paths)) == (first, files)
    done = kit(paths, "vnfs", "configure", "tiny", "-y", "--answers", answers_file(tmp_path, 'ntp = "10.0.0.9"'))
    assert (done.status, done.out.split(" (")[0]) == (0, f"{NAME} has been configured")
    assert store.get(NAME).identity != first.identity and old.exists()
    seen = layer_files(paths, tmp_path / "layer")
    assert seen["etc/ntp.conf"][2].startswith("server 10.0.0.9 ")
    assert seen["root/.config/hash"][2].startswith("root:$6$"), "what is not asked again keeps its answer"
    assert [layer.path for layer in store.manifest(NAME).layers].count(PATH) == 1
    gone = kit(paths, "vnfs", "delete", NAME, "--generation", "2", "-y")
    assert (gone.status, old.exists(), len(stored(paths))) == (0, False, len(files)), gone.err


def test_importing_a_configured_capsule_again_repairs_it_and_keeps_its_answers(paths: SitePaths, capsule: Path) -> None:
    imported(paths, capsule)
    store = store_of(paths)
    row = store.get(NAME)
    kernel = store.blob(store.digests(NAME)["boot/vmlinuz"])
    kernel.write_bytes(b"rotten")
    assert kit(paths, "vnfs", "verify", NAME).status == 3
    done = kit(paths, "vnfs", "import", capsule)
    assert (done.status, done.out.split(" (")[0]) == (0, f"{NAME} is installed already: nothing to do"), done.err
    assert store.get(NAME) == row
    assert kit(paths, "vnfs", "verify", NAME).status == 0


def test_a_required_answer_that_is_missing_is_named_and_nothing_is_imported(paths: SitePaths, capsule: Path) -> None:
    done = kit(paths, "vnfs", "import", capsule, "-y")
    assert (done.status, done.out) == (1, "") and "question without an answer: root" in done.err
    assert kit(paths, "vnfs", "list").out == "" and stored(paths) == []


def test_without_a_terminal_and_without_y_open_questions_are_named(
    paths: SitePaths, capsule: Path, tmp_path: Path
) -> None:
    argv = [PROGRAM, "--config-dir", paths.config, "--state-dir", paths.state, "vnfs", "import", capsule]
    done = subprocess.run(
        [*argv, "--answers", answers_file(tmp_path)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 1 and "questions without an answer: mode, syslog" in done.stderr
    assert stored(paths) == []


def test_a_capsule_that_asks_nothing_says_so(paths: SitePaths, tmp_path: Path) -> None:
    asking_capsule(tmp_path / "q.vnfs", b"")
    assert kit(paths, "vnfs", "import", tmp_path / "q.vnfs").status == 0
    done = kit(paths, "vnfs", "configure", NAME)
    assert done.status == 1 and f"{NAME} asks nothing" in done.err


def test_another_site_takes_it_as_it_is_if_it_trusts_this_one(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    imported(paths, capsule)
    assert kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs").status == 0
    (tmp_path / "two").mkdir()
    two = trusting_site(tmp_path / "two")
    assert kit(two, "vnfs", "import", tmp_path / "out.vnfs").status == 3 and stored(two) == []
    assert kit(two, "trust", "add", f"{site_key_path(paths)}.pub").status == 0
    assert kit(two, "vnfs", "import", tmp_path / "out.vnfs").status == 0
    assert store_of(two).get(NAME).identity == store_of(paths).get(NAME).identity
    assert kit(two, "vnfs", "verify", NAME).status == 0
    done = kit(two, "vnfs", "configure", NAME, "-y", "--answers", tmp_path / "answers.toml")
    assert done.status == 1 and "export it there with --without-private" in done.err
    assert kit(two, "vnfs", "export", NAME, tmp_path / "again.vnfs").status == 0
    assert (tmp_path / "again.vnfs").read_bytes() == (tmp_path / "out.vnfs").read_bytes()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("/etc", "has a folder at /etc"),
        ("/etc/ntp.conf/x", "/etc/ntp.conf is no folder"),
        ("/usr/lib/syslog.conf", "one and the same"),
    ],
)
def test_a_file_that_cannot_go_where_it_should_is_refused(
    paths: SitePaths, tmp_path: Path, target: str, told: str
) -> None:
    asking_capsule(tmp_path / "t.vnfs", QUESTIONS.replace(b"/root/.config/hash", target.encode()))
    text = ANSWERS + 'syslog = "x"\n'
    done = kit(paths, "vnfs", "import", tmp_path / "t.vnfs", "-y", "--answers", answers_file(tmp_path, text))
    assert done.status == 1 and told in done.err
    assert stored(paths) == []


def test_malformed_questions_are_refused_before_anything_is_stored(paths: SitePaths, tmp_path: Path) -> None:
    asking_capsule(tmp_path / "t.vnfs", b"[[question]]\n")
    done = kit(paths, "vnfs", "import", tmp_path / "t.vnfs", "-y")
    assert done.status == 3 and "malformed configure.toml" in done.err and stored(paths) == []


def test_a_revoked_site_key_is_refused_like_any_other(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    imported(paths, capsule)
    kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs")
    assert kit(paths, "trust", "add", f"{site_key_path(paths)}.pub").status == 0
    assert kit(paths, "trust", "revoke", ensure_site_key(paths).public.id, "-y").status == 0
    assert kit(paths, "vnfs", "verify", NAME).status == 3
    done = kit(paths, "vnfs", "import", tmp_path / "out.vnfs", "--as", "other")
    assert done.status == 3 and "was revoked here" in done.err


def test_at_a_terminal_every_question_is_asked_until_its_answer_will_do(
    paths: SitePaths, capsule: Path, tmp_path: Path
) -> None:
    words = ["--config-dir", str(paths.config), "--state-dir", str(paths.state), "vnfs"]
    with pexpect.spawn(str(PROGRAM), [*words, "import", str(capsule)], timeout=90, encoding="utf-8") as child:
        child.expect("Root password: ")
        child.sendline("")
        child.expect("the question 'root' must be answered")
        for wrong in ("other", "geheim"):
            child.expect("Root password: ")
            child.sendline("geheim")
            child.expect("Again: ")
            child.sendline(wrong)
        child.expect(r"Time server \[ntp.example\]: ")
        child.sendline("10.1.1.1")
        child.expect(r"How \(iburst, offline\) \[iburst\]: ")
        child.sendline("never")
        child.expect("can't be 'never' \\(one of iburst, offline\\)")
        child.expect("How")
        child.sendline("offline")
        child.expect("Log host: ")
        child.sendline("")
        child.expect(f"{NAME} imported")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    with pexpect.spawn(str(PROGRAM), [*words, "configure", NAME], timeout=90, encoding="utf-8") as child:
        child.expect(r"Root password \[unchanged\]: ")
        child.sendline("")
        child.expect(r"Time server \[10.1.1.1\]: ")
        child.sendline("-")
        child.expect(r"How \(iburst, offline\) \[offline\]: ")
        child.sendline("")
        child.expect("Log host: ")
        child.sendline("")
        child.expect("has been configured")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    seen = layer_files(paths, tmp_path / "layer")
    assert seen["etc/ntp.conf"][2] == "server  offline\n{other} stays\n"
    with pexpect.spawn(str(PROGRAM), [*words, "configure", NAME], timeout=90, encoding="utf-8") as child:
        child.expect("Root password")
        child.sendline("geheim")
        child.expect("Again")
        child.sendline("geheim")
        child.expect("Time server")
        child.sendeof()
        child.expect("Aborted: nothing was changed")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 1


def test_json_says_what_was_done(paths: SitePaths, capsule: Path) -> None:
    imported(paths, capsule)
    told = json.loads(kit(paths, "vnfs", "configure", NAME, "-y", "--json").out)
    assert told == {"name": NAME, "identity": store_of(paths).get(NAME).identity, "changed": False, "dry_run": False}


def test_a_dash_takes_a_password_away_too_and_is_none_itself(paths: SitePaths, tmp_path: Path) -> None:
    questions = QUESTIONS.replace(b'prompt = "Log host"\n', b'prompt = "Log host"\ntype = "password"\n')
    asking_capsule(tmp_path / "t.vnfs", questions)
    imported(paths, tmp_path / "t.vnfs", ANSWERS + 'syslog = "geheim"\n')
    assert "usr/lib/syslog.conf" in layer_files(paths, tmp_path / "before")
    words = ["--config-dir", str(paths.config), "--state-dir", str(paths.state), "vnfs", "configure", NAME]
    with pexpect.spawn(str(PROGRAM), words, timeout=90, encoding="utf-8") as child:
        for prompt, answer in (("Root password", ""), ("Time server", ""), ("How", ""), ("Log host", "-")):
            child.expect(prompt + r"[^:]*: ")
            child.sendline(answer)
        child.expect("has been configured")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    assert "usr/lib/syslog.conf" not in layer_files(paths, tmp_path / "after")


def test_a_private_layer_that_others_may_read_is_found(paths: SitePaths, capsule: Path) -> None:
    """Its mode is what keeps it from being sent to anybody who asks."""
    imported(paths, capsule)
    assert kit(paths, "vnfs", "verify", NAME).status == 0
    store = store_of(paths)
    store.blob(store.digests(NAME)[PATH]).chmod(0o644)
    done = kit(paths, "vnfs", "verify", NAME)
    assert done.status == 3 and f"{PATH} is private, and others may read it" in done.err


def test_a_file_system_without_modes_takes_no_private_layer(
    paths: SitePaths, capsule: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faked: this kernel has none such."""
    monkeypatch.setattr(place, "atomic_file", lambda path, mode: atomic_file(path, mode | 0o755))
    done = kit(paths, "vnfs", "import", capsule, "--answers", answers_file(capsule.parent, ANSWERS), "-y")
    assert done.status == 1 and "is private, and the file system of" in done.err
    assert stored(paths) == []
