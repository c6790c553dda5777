"""Each command of the tree with words that cannot be meant: an error of one line, status 1 to 3, nothing changed."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import click
import pytest
from command_tree import Found, commands, leaves

from capsulekit.cli.main import PERCEUS, main
from capsulekit.sitepaths import SitePaths
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry

pytestmark = pytest.mark.timeout(120)

EVERY = list(commands())
LEAVES = leaves()
# No option and no argument of any command can mean this: no text of ours has control characters, no path is so long.
IMPOSSIBLE = "a\nb\x1b[31m\x07" * 1000
HOSTILE = {
    "newline": "a\nb",
    "long": "x" * 5000,
    "parent": "../../../x",
    "control": "\x1b[31mred\x07",
    "not text": "\udcff\udcfe",
    "empty": "",
    "dash": "-",
    "shell": "$(touch pwned);`touch pwned`|touch pwned",
    "pattern": "[",
    "here": ".",
    "braces": "{{x}}%s%n",
}
# The verbs that change nothing.
READING = {
    "history",
    "list",
    "nodelist",
    "show",
    "status",
    "summary",
    "states",
    "about",
    "config",
    "system",
    "drift",
    "console-log",
    "verify",
}
# Commands whose argument is a new file's name, or free text: odd, and the user's to choose.
MAY_WORK = {("keygen",), ("new",), ("registry", "backup")}

Run = Callable[..., tuple[int, str, str]]


class Place:
    """A site (when made) and the folder that commands are run in, deep enough for ``../`` to stay inside."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.paths = SitePaths(top / "etc", top / "var")
        self.work = top / "a/b/c/d/e"
        self.work.mkdir(parents=True)

    def make(self) -> None:
        init_site(self.paths, InitRequest("ck0", "10.0.0.1/16", "10.0.1.1-10.0.1.250"))
        registry = open_registry(self.paths)
        for number in range(3):
            registry.add_node(f"52:54:00:00:00:0{number}", defaults=Defaults())
        registry.activate("hostname", ["init/all"])
        registry.close()

    def state(self) -> dict[str, str]:
        """Every file by its content, the registry by what it says."""
        found = {}
        for path in sorted(self.top.rglob("*")):
            name = str(path.relative_to(self.top))
            if path.name.endswith(("-wal", "-shm")) or path.name in (".init.lock", ".lock"):
                continue
            if path.name == "registry.db":
                with sqlite3.connect(path) as con:
                    found[name] = "\n".join(con.iterdump())
                con.close()
            else:
                found[name] = sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setenv("CAPSULEKIT_CONFIG_DIR", str(made.paths.config))
    monkeypatch.setenv("CAPSULEKIT_STATE_DIR", str(made.paths.state))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(made.work)
    return made


@pytest.fixture
def site(place: Place) -> Place:
    place.make()
    return place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        capsys.readouterr()
        try:
            status = main(words)
        except SystemExit as stop:  # what click does for --version and completion
            status = int(stop.code or 0)
        return (status, *capsys.readouterr())

    return call


def filled(found: Found, word: str) -> list[str]:
    """As many words as the command's arguments need at least."""
    return [word for one in found.arguments for _ in range(max(one.nargs, 1))]


def check(words: list[str], status: int, out: str, err: str, may_work: bool = False) -> None:
    """A refusal: status, one line that says it, nothing that a terminal would obey."""
    assert status in ((0, 1, 2, 3) if may_work else (1, 2, 3)), (words, status, out, err)
    assert "Traceback" not in err and "this is a bug" not in err, err
    assert not any(ord(char) < 32 and char != "\n" for char in out + err), repr(out + err)
    if status:
        errors = [line for line in err.splitlines() if line.startswith("ERROR: ")]
        assert len(errors) == 1 or err.startswith(("Aborted", "Usage: ")), (words, err)
        assert all(len(line) <= 2000 for line in err.splitlines())


@pytest.mark.parametrize("found", EVERY, ids=str)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_there_and_needs_no_site(place: Place, run: Run, found: Found, flag: str) -> None:
    before = place.state()
    status, out, err = run(*found.words, flag)
    assert (status, err) == (0, "")
    assert f"Usage: capsulekit {' '.join(found.words)}" in out
    assert len(out.splitlines()) > 3 and found.command.help, "says nothing of what it does"
    assert place.state() == before


def test_the_page_of_commands_has_every_verb_of_its_groups() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/commands.md").read_text()
    for group in ("node", "group", "info", "contact"):
        part = page.partition(f"\n## {group}\n")[2].partition("\n## ")[0]
        verbs = {found.words[1] for found in EVERY if len(found.words) == 2 and found.words[0] == group}
        assert not {verb for verb in verbs if f"`{verb}" not in part}, group


def test_every_command_that_changes_things_has_a_dry_run() -> None:
    lacking = {
        one.words
        for one in LEAVES
        if one.words[0] in PERCEUS and not any("--dry-run" in option.opts for option in one.command.params)
    }
    assert {words[-1] for words in lacking} <= READING | {"serve", "reload"}


@pytest.mark.parametrize("found", EVERY, ids=str)
def test_an_unknown_option_is_wrong_usage(site: Place, run: Run, found: Found) -> None:
    before = site.state()
    words = [*found.words, "--no-such-option"]
    status, out, err = run(*words)
    check(words, status, out, err)
    assert (status, out) == (2, "") and "--no-such-option" in err
    assert site.state() == before


@pytest.mark.parametrize("found", [one for one in EVERY if isinstance(one.command, click.Group)], ids=str)
def test_a_group_without_a_command_or_with_an_unknown_one_is_wrong_usage(site: Place, run: Run, found: Found) -> None:
    before = site.state()
    for words in ([*found.words], [*found.words, "no-such-command"]):
        if words == [*found.words] and found.command in [leaf.command for leaf in LEAVES]:
            continue
        status, out, err = run(*words)
        check(words, status, out, err)
        assert (status, out) == (2, "")
    assert site.state() == before


@pytest.mark.parametrize("found", LEAVES, ids=str)
def test_too_few_and_too_many_arguments_are_wrong_usage(site: Place, run: Run, found: Found) -> None:
    before = site.state()
    if any(one.required for one in found.arguments):
        words = [*found.words]
        status, out, err = run(*words)
        check(words, status, out, err)
        assert (status, out) == (2, "")
    if all(one.nargs > 0 for one in found.arguments) and not isinstance(found.command, click.Group):
        words = [*found.words, *filled(found, "x"), "one-too-many"]
        status, out, err = run(*words)
        check(words, status, out, err)
        assert (status, out) == (2, "")
    assert site.state() == before


@pytest.mark.parametrize("found", [one for one in LEAVES if one.arguments], ids=str)
def test_hostile_words_are_refused_and_change_nothing(site: Place, run: Run, found: Found) -> None:
    may_work = found.words in MAY_WORK
    before = site.state()
    for word in HOSTILE.values():
        words = [*found.words, "--", *filled(found, word)]
        status, out, err = run(*words)
        check(words, status, out, err, may_work)
        after = site.state()
        assert (may_work and status == 0) or after == before, words
        before = after


@pytest.mark.parametrize("found", [one for one in LEAVES if one.valued], ids=str)
def test_each_option_refuses_what_cannot_be(site: Place, run: Run, found: Found) -> None:
    before = site.state()
    for option in found.valued:
        if option.flag_value is not None and not option.is_flag and option._flag_needs_value:
            continue  # works without a value too
        words = [*found.words, option.opts[0], IMPOSSIBLE, "--", *filled(found, "x")]
        status, out, err = run(*words)
        check(words, status, out, err)
        assert site.state() == before, option.opts
        words = [*found.words, *filled(found, "x"), option.opts[-1]]
        status, out, err = run(*words)
        check(words, status, out, err)
        assert (status, out) == (2, ""), (option.opts, "lacks its value")


@pytest.mark.parametrize("found", [one for one in LEAVES if one.words[0] in PERCEUS], ids=str)
def test_without_a_site_every_provisioner_command_says_so_and_makes_nothing(
    place: Place, run: Run, found: Found
) -> None:
    before = place.state()
    for word in ("x", *HOSTILE.values()):
        words = [*found.words, "--", *filled(found, word)]
        status, out, err = run(*words)
        if found.words == ("info", "about"):
            assert status == 0
            continue
        check(words, status, out, err)
        # An importer may read what it is to import first; init says what it needs.
        said = "never initialised" in err or found.words[0] in ("import", "init")
        assert status == 2 or said or word != "x", (words, err)
        assert place.state() == before
        if not found.arguments:
            break
