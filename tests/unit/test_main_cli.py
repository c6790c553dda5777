"""The command line itself: options anywhere, exit statuses, errors on stderr in a line or two, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import click
import pytest

from capsulekit.cli import main as module
from capsulekit.cli.main import PERCEUS, Options, hoist, main
from capsulekit.errors import CapsulekitError, PartialError, TrustError, UsageError

BIN = Path(sys.executable).parent
RECIPES = Path(__file__).parents[2] / "recipes"


def program(*words: str | Path, name: str = "capsulekit", stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / name, *words], input=stdin, capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip


def flags(options: Options) -> set[str]:
    names = ("nodeid", "yes", "no", "quiet", "verbose", "debug", "json")
    return {name for name in names if getattr(options, name)}


FLAGS = [
    ("-i", {"nodeid"}), ("--nodeid", {"nodeid"}), ("-y", {"yes"}), ("--yes", {"yes"}), ("-n", {"no"}), ("--no", {"no"}),
    ("-q", {"quiet"}), ("--quiet", {"quiet"}), ("-v", {"verbose"}), ("--verbose", {"verbose"}), ("-d", {"debug"}),
    ("--debug", {"debug"}), ("--json", {"json"}), ("-e", {"yes", "quiet"}), ("--embeded", {"yes", "quiet"}),
    ("-yq", {"yes", "quiet"}), ("-iv", {"nodeid", "verbose"}), ("-ei", {"yes", "quiet", "nodeid"}),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "meant"), FLAGS)
@pytest.mark.parametrize("at", range(4))
def test_a_flag_may_stand_anywhere(flag: str, meant: set[str], at: int) -> None:
    words = ["node", "list", "n0*"]
    got = hoist([*words[:at], flag, *words[at:]])
    assert (flags(got.options), got.rest) == (meant, words)


@pytest.mark.parametrize("name", ["--config-dir", "--state-dir"])
def test_the_sites_folders_may_stand_anywhere_in_both_spellings(name: str) -> None:
    for order in permutations([["node", "list"], [name, "/x"], ["-q"]]):
        got = hoist([w for words in order for w in words])
        assert got.rest == ["node", "list"] and got.options.quiet
        assert getattr(got.options, name[2:].replace("-", "_")) == Path("/x")
    assert hoist([f"{name}=/x=y"]).options.paths is not None
    with pytest.raises(click.UsageError, match=f"{name} needs a folder"):
        hoist(["node", "list", name])
    for words in ([name, ""], [f"{name}="]):
        with pytest.raises(click.UsageError, match=f"{name} needs a folder"):
            hoist(["node", "list", *words])


def test_after_two_dashes_everything_is_an_argument() -> None:
    got = hoist(["node", "set", "desc", "--", "-y", "--json"])
    assert got.rest == ["node", "set", "desc", "--", "-y", "--json"] and not flags(got.options)


@pytest.mark.parametrize("word", ["-x", "-yx", "-", "--offline", "-o", "-1", "n-y", "--js"])
def test_other_words_are_left_to_the_command(word: str) -> None:
    got = hoist(["build", word])
    assert got.rest == ["build", word] and not flags(got.options)


def test_the_flags_reach_the_command(tmp_path: Path) -> None:
    for words in (["--json", "inspect"], ["inspect", "--json"]):
        done = program(*words, tmp_path / "none.vnfs")
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("ERROR: ")


# --- exit status and errors


@pytest.mark.parametrize(
    "words",
    [["nod"], ["node", "lst"], ["build"], ["build", "--frob"], ["keygen"], ["--config-dir"], ["stage1"], ["node"]],
)
def test_wrong_usage_ends_with_status_2_on_stderr(words: list[str]) -> None:
    done = program(*words)
    assert done.returncode == 2, done
    assert done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_no_command_tells_what_there_is_and_help_and_version_work() -> None:
    assert "capsulekit build RECIPE" in program().stdout
    for words in (["-h"], ["--help"], ["build", "-h"], ["--version"]):
        done = program(*words)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout


@click.command()
@click.pass_obj
def probe(options: Options) -> None:
    """Raises what the test put in."""
    assert isinstance(options, Options)
    raise Probe.error


class Probe:
    error: BaseException = CapsulekitError("")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs a command that raises the given error."""
    monkeypatch.setattr(module.Tree, "get_command", lambda self, ctx, name: probe)

    def run(error: BaseException, *flags: str) -> int:
        Probe.error = error
        return main(["probe", *flags])

    yield run


ERRORS = [
    (CapsulekitError("what", hint="way out"), 1, "ERROR: what\n       way out\n"),
    (CapsulekitError("what"), 1, "ERROR: what\n"),
    (UsageError("what"), 2, "ERROR: what\n"),
    (TrustError("what"), 3, "ERROR: what\n"),
    (PartialError("what"), 4, "ERROR: what\n"),
    (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "ERROR: No space left on device: /x\n"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "ERROR: Permission denied: /x\n"),
    (KeyboardInterrupt(), 1, "\nInterrupted.\n"),
    (click.Abort(), 1, "Aborted: nothing was changed.\n"),
]


@pytest.mark.parametrize(("error", "status", "said"), ERRORS, ids=lambda v: type(v).__name__)
def test_every_error_has_its_status_and_is_said_in_a_line_or_two(
    failing: Callable[..., int], capfd: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    assert failing(error) == status
    assert capfd.readouterr() == ("", said)


def test_a_bug_is_one_line_too_and_its_traceback_is_for_debug(
    failing: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert failing(ValueError("odd")) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("ERROR: this is a bug: ValueError: odd\n") and "--debug" in err
    with pytest.raises(ValueError, match="odd"):
        failing(ValueError("odd"), "--debug")
    with pytest.raises(CapsulekitError):
        failing(CapsulekitError("x"), "-d")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_like_empty_ones(tmp_path: Path, closed: str) -> None:
    """As cron, or a daemon, may start it: nobody answers, nobody reads, and that is all."""
    base = [BIN / "capsulekit", "--config-dir", tmp_path / "etc", "--state-dir", tmp_path / "var"]
    init = ["init", "--interface", "ck0", "--address", "10.0.0.1/16", "--range", "10.0.1.1-10.0.1.9"]
    add, ask = ["node", "add", "52:54:00:00:00:01", "n1"], ["node", "delete", "n1"]
    for words, status in ((["node", "list"], 1), (init, 0), (add, 0), (ask, 1), (["node", "list", "n1"], 0)):
        script = f'"$@" {closed}'
        done = subprocess.run(
            ["bash", "-c", script, "-", *base, *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, "bug" in done.stderr, "Traceback" in done.stderr) == (status, False, False), done


def test_a_terminal_that_lacks_a_letter_is_shown_its_number() -> None:
    """An ISO 8859-1 terminal, as on many an old master."""
    script = "import sys; from capsulekit.cli.main import _streams; _streams(); print('n\u2603')"
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    argv = [sys.executable, "-c", script]
    assert subprocess.run(argv, env=env, capture_output=True, check=True, timeout=60).stdout == b"n\\u2603\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{BIN}/capsulekit --help | head -1; {BIN}/capsulekit build --help | true"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""


def test_the_documented_statuses_are_those_of_the_errors() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/exit-status.md").read_text()
    for error in (CapsulekitError, UsageError, TrustError, PartialError):
        row = next(line for line in page.splitlines() if f"`{error.__name__}`" in line)
        assert row.startswith(f"| {error.exit_code} |")


# --- what is where


def listed(done: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines() if line.strip()}


def test_perceus_shows_the_provisioners_groups_only() -> None:
    ours, theirs = listed(program("--help")), listed(program("--help", name="perceus"))
    assert {"node", "vnfs", "module"} <= theirs == ours & set(PERCEUS)
    assert {"build", "keygen", "verify"} <= ours - theirs
    done = program("build", "x", name="perceus")
    assert done.returncode == 2 and "No such command 'build'" in done.stderr


def test_perceus_takes_flags_before_its_groups_as_old_scripts_do(tmp_path: Path) -> None:
    done = program("-i", "node", "list", "--config-dir", tmp_path, name="perceus")
    assert (done.returncode, done.stdout) == (1, "") and "capsulekit init" in done.stderr


@pytest.mark.parametrize("name", ["main", "_terminal", "_site", "../cli/build", "build.py", ""])
def test_what_is_no_command_is_not_found(name: str) -> None:
    done = program(name)
    assert done.returncode == 2 and "No such command" in done.stderr


def test_json_is_a_document_and_nothing_else(tmp_path: Path) -> None:
    done = program("--json", "trust", "list", "--config-dir", tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("words", "where", "said"),
    [
        (("lock", "debian-12-compute.toml", "-o"), "none/a.lock", "there is no folder {0}/none to write the lock to"),
        (("lock", "debian-12-compute.toml", "-o"), "", "{0} is a folder"),
        (("stage1", "build", "stage1-debian-12.toml", "-o"), "file", "{0}/file is not a folder"),
        (("stage1", "build", "stage1-debian-12.toml", "-o"), "file/x", "{0}/file/x is not a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_any_work(
    words: tuple[str, ...], where: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    cache = tmp_path / "cache"
    argv = [str(RECIPES / word) if word.endswith(".toml") else word for word in words]
    assert main([*argv, str(tmp_path / where), "--cache-dir", str(cache)]) == 1
    assert capsys.readouterr().err.splitlines()[0] == "ERROR: " + said.format(tmp_path)
    assert not cache.exists() and (tmp_path / "file").read_text() == "kept"


def test_who_may_not_is_told_to_try_it_as_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/x")

    monkeypatch.setattr(module.root, "main", refuse)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["node", "list"]) == 1
    assert capsys.readouterr().err == "ERROR: Permission denied: /x\n       try it as root\n"


def test_a_command_of_a_group_may_lie_in_a_file_called_after_it_in_either_package() -> None:
    shown = program("stage1", "--help").stdout
    assert {line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()} >= {"build", "check", "iso"}
    assert "Write an image" in program("stage1", "iso", "--help").stdout
    assert "stage1-iso" not in program("--help").stdout
    assert "import" in program("vnfs", "--help").stdout
    for words in (("stage1-iso",), ("stage1", "nothing"), ("stage1", "iso-x")):
        assert program(*words).returncode == 2
