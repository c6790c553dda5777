"""Accounts that RPM packages declare: what a line means, which numbers they get, what is left alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.rpm.sysusers import Entry, add, parse

DAY = 19675
EPOCH = DAY * 86400 + 5


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    texts = {
        "passwd": "root:x:0:0:root:/root:/bin/bash\ntaken:x:999:999::/:/bin/sh\n",
        "group": "root:x:0:\ntaken:x:999:\nwheel:x:10:\n",
        "shadow": "root:*:::::::\n",
        "gshadow": "root:::\nwheel:::\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "shadow").chmod(0)
    return tmp_path


def added(etc: Path, *lines: str) -> dict[str, list[str]]:
    entries = [entry for line in lines if (entry := parse(line))]
    add(etc, entries, EPOCH)
    return {name: (etc / name).read_text().splitlines() for name in ("passwd", "group", "shadow", "gshadow")}


def test_a_user_gets_the_highest_free_number_and_a_group_of_its_own(etc: Path) -> None:
    files = added(etc, 'u chrony - "Time keeper" /var/lib/chrony')
    assert files["passwd"][-1] == "chrony:x:998:998:Time keeper:/var/lib/chrony:/usr/sbin/nologin"
    assert files["group"][-1] == "chrony:x:998:"
    assert files["shadow"][-1] == f"chrony:!*:{DAY}::::::"
    assert files["gshadow"][-1] == "chrony:!*::"


def test_fixed_numbers_go_before_free_ones_whatever_the_order(etc: Path) -> None:
    lines = ["u zebra 998", "u apple -", "g pear 997"]
    assert added(etc, *lines)["passwd"][2:] == [
        "zebra:x:998:998::/:/usr/sbin/nologin",
        "apple:x:996:996::/:/usr/sbin/nologin",
    ]


def test_the_order_of_the_packages_plays_no_part(etc: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in etc.glob("*"):
        if path.is_file():
            (other / path.name).write_text(path.read_text())
    lines = ["u b -", "m b wheel", "u a -", "g c -", "u! locked -"]
    assert added(etc, *lines) == added(other, *reversed(lines))


def test_a_user_may_belong_to_another_group_and_become_a_member_of_more(etc: Path) -> None:
    files = added(etc, "u tss 59:wheel", "m tss wheel", "m tss fresh")
    assert "tss:x:59:10::/:/usr/sbin/nologin" in files["passwd"]
    assert "wheel:x:10:tss" in files["group"] and "wheel:::tss" in files["gshadow"]
    assert "fresh:x:998:tss" in files["group"]


def test_a_locked_account_has_expired(etc: Path) -> None:
    assert added(etc, "u! daemon2 -")["shadow"][-1] == f"daemon2:!*:{DAY}:::::1:"


def test_what_is_there_stays_as_it_is(etc: Path) -> None:
    before = (etc / "passwd").read_text()
    files = added(etc, "u taken 500 - /elsewhere", "g wheel 20")
    assert "\n".join(files["passwd"]) + "\n" == before and "wheel:x:10:" in files["group"]
    assert stat.S_IMODE((etc / "shadow").stat().st_mode) == 0


def test_lines_of_other_kinds_and_comments_make_nothing() -> None:
    assert [parse(line) for line in ("r - 500-900", "# u x -", "u", "", 'u "unclosed')] == [None] * 5


def test_a_number_taken_from_a_file_is_a_free_one() -> None:
    assert parse("u x /some/file") == Entry("u", "x")


@pytest.mark.parametrize("line", ["u ../x -", 'u x - "a:b"', "u x - - /home:0:0"])
def test_an_account_that_cannot_stand_in_etc_passwd_is_refused(line: str) -> None:
    with pytest.raises(CapsulekitError, match="declares an account that cannot be"):
        parse(line)
