"""A recipe's scripts are checked by the real shellcheck before anything is built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.model import Script
from capsulekit.rootfs.scripts import check_scripts
from capsulekit.run import ToolMissing

needs_shellcheck = pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
GOOD = Script("good.sh", b'#!/bin/sh\nset -eu\nprintf "%s\\n" "$HOME"\n')


@needs_shellcheck
def test_good_scripts_pass_without_a_word() -> None:
    assert check_scripts([GOOD, Script("also.sh", b"#!/bin/sh\necho 'caf\xe9 \xff'\n")]) == ()


@needs_shellcheck
def test_warnings_name_the_script_and_the_line() -> None:
    (warning,) = check_scripts([GOOD, Script("10-x", b"#!/bin/sh\nset -e\necho $unset_name\n")])
    assert warning == "10-x:3: unset_name is referenced but not assigned. (SC2154)"


@needs_shellcheck
def test_what_only_bash_understands_is_warned_about() -> None:
    (warning,) = check_scripts([Script("10-x", b'#!/bin/sh\n[[ "$HOME" = / ]]\n')])
    assert warning.startswith("10-x:2: In POSIX sh, [[ ]] is undefined")


@needs_shellcheck
def test_a_script_that_cannot_be_parsed_stops_the_build() -> None:
    with pytest.raises(CapsulekitError, match=r"the script 10-x:2: Couldn't .* \(SC10\d\d\) \(and 1 more\)"):
        check_scripts([GOOD, Script("10-x", b"#!/bin/sh\nif true; then\n")])


@needs_shellcheck
def test_the_authors_word_counts_and_the_machines_settings_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".shellcheckrc").write_text("disable=all\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELLCHECK_OPTS", "-e SC2154")
    monkeypatch.chdir(tmp_path)
    assert check_scripts([Script("a", b"#!/bin/sh\necho $lower\n")]) != ()
    assert check_scripts([Script("a", b"#!/bin/sh\n# shellcheck disable=SC2154\necho $lower\n")]) == ()


def test_without_shellcheck_only_recipes_without_scripts_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "shellcheck" else real(name))
    assert check_scripts([]) == ()
    with pytest.raises(ToolMissing) as caught:
        check_scripts([GOOD])
    assert caught.value.hint == "apt-get install shellcheck"
