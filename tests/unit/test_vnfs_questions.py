"""Questions of a capsule: what they may be, what an answer may be, and the files that answers become."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from asking_capsule import QUESTIONS

from capsulekit.errors import CapsulekitError, TrustError, UsageError
from provisioner.vnfs.answers import check_answers, dump_answers, load_answers, read_answers
from provisioner.vnfs.crypt import hashed, is_hashed
from provisioner.vnfs.questions import Question, loads

ASKED = loads(QUESTIONS)
ONE = '[[question]]\nkey = "a"\nprompt = "A?"\n'


@pytest.mark.parametrize("password", ["x", "geheim", "p" * 64, "a" * 63, "ü" * 100, "with 'quotes' \\ and $dollar"])
def test_a_password_is_hashed_as_openssl_does_it(password: str) -> None:
    argv = ["openssl", "passwd", "-6", "-salt", "saltsaltsaltsalt", "-stdin"]
    want = subprocess.run(argv, input=password.encode(), capture_output=True, check=True).stdout.decode().strip()
    assert hashed(password, "saltsaltsaltsalt") == want
    assert is_hashed(want) and hashed(want) == want
    assert hashed(password) != hashed(password)


def test_answers_become_files_with_the_other_braces_left_alone() -> None:
    answers = ASKED.settled({"root": "geheim", "ntp": "{mode}", "mode": "offline"})
    assert answers["root"].startswith("$6$") and "geheim" not in str(answers)
    files = {file.path: file for file in ASKED.files(answers)}
    assert set(files) == {"root/.config/hash", "etc/ntp.conf"}, "what is not answered makes no file"
    assert files["etc/ntp.conf"].data == b"server {mode} offline\n{other} stays\n"
    assert files["root/.config/hash"].data.decode() == f"root:{answers['root']}\n"
    assert {path: file.mode for path, file in files.items()} == {"etc/ntp.conf": 0o644, "root/.config/hash": 0o600}


def test_required_questions_without_an_answer_are_all_named() -> None:
    asked = loads((ONE + "required = true\n" + ONE.replace('"a"', '"b"') + "required = true\n").encode())
    with pytest.raises(CapsulekitError, match=r"questions without an answer: a, b$"):
        asked.settled({})


@pytest.mark.parametrize(
    ("kind", "answer", "told"),
    [
        ("number", "1.5", "must be a whole number, not '1.5'"),
        ("number", "9" * 40, "must be a whole number"),
        ("yesno", "maybe", "must be yes or no"),
        ("choice", "three", "can't be 'three'"),
        ("text", "two\nlines", "must be one line"),
        ("text", "\x1b[31m", "must be one line"),
        ("text", "x" * 5000, "at most 4096 letters"),
    ],
)
def test_an_answer_that_is_none_names_its_key(kind: str, answer: str, told: str) -> None:
    question = Question("a", "A?", kind, choices=("one", "two") if kind == "choice" else ())
    with pytest.raises(CapsulekitError) as caught:
        question.check(answer)
    assert "a" in caught.value.message and told in caught.value.message


def test_a_password_is_never_in_a_message() -> None:
    with pytest.raises(CapsulekitError) as caught:
        Question("a", "A?", "password").check("geheim\n")
    assert "geheim" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "is not TOML"),
        ("\xff", "is not TOML"),
        ("x = 1\n", "unknown key 'x'"),
        ("question = 1\n", "question must be a list"),
        ("question = [1]\n", "question 1 is no table"),
        ('[[question]]\nkey = "a"\n', "prompt must be one line"),
        ('[[question]]\nkey = "A"\nprompt = "x"\n', "key can't be 'A'"),
        (ONE + ONE, "two questions have the key 'a'"),
        (ONE + "secret = true\n", "unknown key 'secret'"),
        (ONE + "required = 1\n", "required is of the wrong type"),
        (ONE + 'type = "file"\n', "type can't be 'file'"),
        (ONE + 'type = "choice"\n', "choices belong to"),
        (ONE + "choices = [1]\n", "choices must be lines"),
        (ONE + 'type = "password"\ndefault = "x"\n', "a password has no default"),
        (ONE + 'type = "number"\ndefault = "x"\n', "default: the answer to a must be a whole number"),
        (ONE + 'target = "/x"\n', "target and template belong together"),
        (ONE + 'template = "{a}"\n', "target and template belong together"),
        *(
            (f'{ONE}template = "{{a}}"\ntarget = "{path}"\n', "target can't be")
            for path in ("x", "/", "/a/../b", "/a//b", "/a/./b", "/a\\n", "/" + "x" * 300, "/x" * 1000)
        ),
        (
            ONE + 'template = "{a}"\ntarget = "/x"\n' + ONE.replace('"a"', '"b"') + 'template = "{a}"\ntarget = "/x"\n',
            "two questions have the target",
        ),
        (ONE * 300, "at most 256"),
        ("[[question]]\n" * 5 + "a = " + "[" * 2000, "is not TOML"),
    ],
)
def test_questions_that_are_none_are_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(TrustError) as caught:
        loads(text.encode("latin-1"))
    assert caught.value.message.startswith("malformed configure.toml: ") and told in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(TrustError, match="larger than"):
        loads(b"#" * (2 << 20))


def test_kept_answers_come_back_as_they_were() -> None:
    answers = {"a": 'quotes " and \\ and üñ \U0001f600', "b": "", "c": "{x}"}
    assert load_answers(dump_answers(answers), "x") == answers


def test_an_answers_file_takes_toml_types(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('t = "x"\nn = 5\ny = true\nz = false\n')
    assert read_answers(tmp_path / "a") == {"t": "x", "n": "5", "y": "yes", "z": "no"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'root = "geheim', "is not TOML"),
        (b"\xff", "is not TOML"),
        (b"a = [1]", "'a' must be one line"),
        (b"#" * (2 << 20), "larger"),
    ],
)
def test_a_wrong_answers_file_is_refused_and_its_secrets_are_not_shown(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_answers(tmp_path / "a")
    assert told in caught.value.message and "geheim" not in caught.value.message


def test_an_answers_file_must_be_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path, "is a directory"),
        (tmp_path / "no", "No such file"),
        (tmp_path / "pipe", "not a file"),
    ):
        with pytest.raises(UsageError, match=f"(?i){told}"):
            read_answers(path)


def test_an_answers_file_with_a_password_must_be_private_and_may_not_answer_what_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("")
    path.chmod(0o644)
    check_answers(path, {"ntp": "x"}, ASKED)
    with pytest.raises(UsageError, match=r"holds a password \(root\) and others may read it"):
        check_answers(path, {"root": "x"}, ASKED)
    path.chmod(0o600)
    check_answers(path, {"root": "x"}, ASKED)
    with pytest.raises(UsageError, match="answers 'ntpp', which this capsule does not ask"):
        check_answers(path, {"ntpp": "x"}, ASKED)
