"""Recipes broken in every way we know, through the command line: one line that names the file, and nothing is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_recipes import BROKEN, GOOD

from capsulekit.cli.main import main


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Exit status and lines on stderr of a build that must fail and leave nothing behind."""
    before = sorted(folder.rglob("*"))
    argv = ["build", str(folder / "r.toml"), "-o", str(folder / "out.vnfs"), "--key", str(folder / "key"), *words]
    status = main([*argv, "--cache-dir", str(folder / "cache")])
    said = capsys.readouterr()
    assert said.out == ""
    assert sorted(folder.rglob("*")) == before
    return status, said.err.splitlines()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_ends_in_one_line_that_names_the_place(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, place, words = BROKEN[name]
    prepare(tmp_path / "r.toml")
    status, lines = refused(tmp_path, capsys)
    assert status == 1
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("       ")), "one line, and perhaps a way out"
    assert all(line.isprintable() for line in lines) and len(lines[0]) < 400
    assert lines[0].startswith(f"ERROR: {tmp_path}/{place}") or lines[0] == (
        f"ERROR: there is no recipe {tmp_path / 'r.toml'}"
    ), lines[0]
    assert words in lines[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("nothing", "--set"),
        ("=x", "--set"),
        ("sitee=x", "there is no variable sitee to set"),
        ("site=a\nb", "must be set to one line of text"),
    ],
)
def test_a_wrong_set_is_wrong_usage(
    setting: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(GOOD + '[variables]\nsite = "x"\n')
    status, lines = refused(tmp_path, capsys, "--set", setting)
    assert status == 2
    assert words in "\n".join(lines)
