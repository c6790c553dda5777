"""Recipes: parents are merged, variables replaced, files taken in; hostile text ends in one line."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.recipe.load import load_recipe, loads_recipe
from capsulekit.recipe.model import Group, Recipe, User
from capsulekit.recipe.settings import SETTINGS

BASE = """[capsule]
name = "tiny"
version = "1.0"

[distro]
name = "debian"
release = "12"

[packages]
include = ["bash", "g++", "python3.11", "libc6:amd64"]

[kernel]
package = "linux-image-cloud-amd64"
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def recipe(folder: Path, text: str = BASE) -> Recipe:
    return load_recipe(write(folder / "r.toml", text))


def refused(folder: Path, text: str) -> CapsulekitError:
    with pytest.raises(CapsulekitError) as caught:
        recipe(folder, text)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message and caught.value.message.isprintable()
    return caught.value


def test_a_recipe_that_cannot_be_read_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    for path, why in ((tmp_path, ": the recipe cannot be read: Is a directory"),
                      (tmp_path / "b.toml", ":2: the recipe cannot be read: it is not UTF-8 text")):  # fmt: skip
        with pytest.raises(CapsulekitError) as caught:
            load_recipe(path)
        assert caught.value.message == f"{path}{why}"


def test_a_recipe_is_read_with_its_defaults(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    assert made.full_name == "tiny-1.0.amd64"
    assert made.packages == ("bash", "g++", "libc6:amd64", "python3.11")
    assert (made.init, made.cmdline, made.base, made.level) == ("/sbin/init", "", "essential", 3)
    assert made.stage2_modules == ("loop", "squashfs", "overlay")


# (what is added or replaced, the line in error, words of the message, words of the hint)
WRONG = [
    (BASE + '\n[pakages]\ninclude = ["x"]\n', 15, "unknown section pakages", "did you mean packages?"),
    (BASE.replace("version", "versoin"), 3, "unknown key versoin in [capsule]", "did you mean version?"),
    (BASE + "[image]\nlevle = 4\n", 15, "unknown key levle in [image]", "did you mean level?"),
    (BASE + "[image]\nzzz = 4\n", 15, "unknown key zzz in [image]", "known here: level, ram_max, release_level"),
    ('distor = "x"\n' + BASE, 1, "unknown section distor", "did you mean distro?"),
    (BASE + '[image]\nlevel = "high"\n', 15, "[image] level must be a number from 1 to 22, not 'high'", None),
    (BASE + "[image]\nlevel = true\n", 15, "level must be a number", None),
    (BASE + "# a comment\n[image]\n\nlevel = 23\n", 17, "[image] level must be a number from 1 to 22, not 23", None),
    (BASE.replace('"tiny"', '"ti ny"'), 2, "[capsule] name must be a name of letters", None),
    (BASE.replace('"tiny"', "7"), 2, "[capsule] name must be a name", None),
    (BASE.replace('"bash"', '"ba sh"'), 10, "[packages] include must be a list of package names, not 'ba sh'", None),
    (BASE.replace('"bash"', '"bash-"'), 10, "not 'bash-'", None),
    (BASE.replace('"bash"', '"-oDir=/"'), 10, "not '-oDir=/'", None),
    (BASE.replace('"bash"', "3"), 10, "[packages] include must be a list of package names, not 3", None),
    (BASE.replace('["bash", "g++", "python3.11", "libc6:amd64"]', '"bash"'), 10, "must be a list of package", None),
    (BASE + '[rootfs]\nbase = "tiny"\n', 15, '[rootfs] base must be "essential" or "extract", not \'tiny\'', None),
    (BASE + '[services]\nenable = ["ssh"]\n', 15, '[services] enable must be a list of unit names, such as', None),
    (BASE + '[services]\nmask = ["-x.timer"]\n', 15, "[services] mask", None),
    (BASE + '[hybridize]\npaths = ["usr/share"]\n', 15, "[hybridize] paths must be a list of globs", None),
    (BASE + '[hybridize]\npaths = ["/a\\nb"]\n', 15, "[hybridize] paths must be a list of globs", None),
    (BASE + '[files."etc/motd"]\ncontent = "x"\n', 14, "etc/motd must be a full path without '.' or '..'", None),
    (BASE + '[files."/../etc/motd"]\ncontent = "x"\n', 14, "must be a full path", None),
    (BASE + '[files."/etc/motd"]\ncontnet = "x"\n', 15, "unknown key contnet", "did you mean content?"),
    (BASE + '[files."/etc/motd"]\nmode = "0644"\n', 14, "/etc/motd must be a file with content, source or", None),
    (BASE + '[files."/m"]\ncontent = "x"\nsource = "y"\n', 16, '[files."/m"] source must be left out', None),
    (BASE + '[files."/m"]\nbase64 = "?"\n', 15, '[files."/m"] base64 must be base64: ', None),
    (BASE + '[files."/etc/motd"]\ncontent = "x"\nmode = "rw"\n', 16, 'mode must be octal text such as "0644"', None),
    (BASE + '[files."/etc/motd"]\nsource = "none"\n', 15, "source must be an existing file (No such file", None),
    (BASE + '[scripts]\nrootfs = ["none.sh"]\n', 15, "[scripts] rootfs must be an existing file (No such", None),
    (BASE + '[scripts]\nrootfs = ["/dev/zero"]\n', 15, "must be an existing file (not a regular", None),
    ('extends = "base.toml"\n' + BASE, 1, "extends must be a list of recipe files", None),
    ('extends = ["none.toml"]\n' + BASE, 1, "extends must be a list of recipe files, not 'none.toml'", None),
    (BASE.replace('"bash"', '"!vim"'), 10, '"!vim" takes out what a parent puts in', None),
    ("packages = 3\n", 1, "packages must be a section [packages]", None),
    (BASE + "files = 3\n", 14, "unknown key files in [kernel]", None),
    (BASE + 'x = "', 15, "not valid TOML", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message", "hint"), WRONG, ids=lambda v: str(v)[-30:])
def test_an_error_names_file_line_key_and_what_was_expected(
    tmp_path: Path, text: str, line: int, message: str, hint: str | None
) -> None:
    error = refused(tmp_path, text)
    assert error.message.startswith(f"{tmp_path}/r.toml:{line}: ") or "not valid TOML" in error.message, error.message
    assert message in error.message
    assert hint is None or (error.hint and hint in error.hint)


@pytest.mark.parametrize(
    ("section", "key"), [(s, k) for s, keys in SETTINGS.items() for k, v in keys.items() if v.required]
)
def test_a_missing_setting_is_named_with_its_meaning(tmp_path: Path, section: str, key: str) -> None:
    text = "".join(line + "\n" for line in BASE.splitlines() if not line.startswith(key + " "))
    if section == "distro" and key == "name":
        text = BASE.replace('name = "debian"\n', "")
    elif section == "capsule" and key == "name":
        text = BASE.replace('name = "tiny"\n', "")
    error = refused(tmp_path, text)
    assert f"[{section}] {key} is missing" in error.message
    assert error.hint and SETTINGS[section][key].help in error.hint


HOSTILE = [
    "a = 1\na = 2\n",
    "[capsule]\n[capsule]\n",
    "x = " + "[" * 5000,
    "\x00",
    "[[capsule]]\nname = 'x'\n",
    "capsule = []\n",
    "extends = [[1]]\n",
    "extends = [1]\n",
    "extends = ['.']\n",
    "extends = ['\\u0000']\n",
    "[packages]\ninclude = [{a = 1}]\n",
    "[packages]\ninclude = [2020-01-01]\n",
    "[files]\n'/x' = 3\n",
    "[files]\n'/x\\n' = {content='x'}\n",
    '[files]\n"/x\\ny" = {content="x"}\n',
    '["\\u001b[2J"]\n',
    "[capsule]\nname = " + "9" * 5000 + "\n",
    "[image]\nlevel = 1e400\n",
    "[image]\nlevel = nan\n",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: repr(t[:25]))
def test_a_hostile_recipe_ends_in_one_line(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="[]{}=\"'.\\#\n abc!/0é\x00", max_size=60))
def test_no_text_makes_the_reader_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text(text)
    with pytest.raises(CapsulekitError):
        load_recipe(path)


def test_bytes_that_are_no_text_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "b.toml", tmp_path, tmp_path / "none.toml"):
        with pytest.raises(CapsulekitError, match=str(path)):
            load_recipe(path)


# --- parents


def test_parents_are_merged_in_order_and_the_recipe_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", BASE + '[image]\nlevel = 5\n[services]\nenable = ["a.service"]\n')
    write(tmp_path / "b.toml", '[capsule]\ncmdline = "b"\n[image]\nlevel = 6\n[services]\nenable = ["b.service"]\n')
    made = recipe(
        tmp_path,
        'extends = ["a.toml", "b.toml"]\n[capsule]\nname = "child"\n[services]\nenable = ["c.service", "a.service"]\n',
    )
    assert (made.name, made.version, made.cmdline, made.level) == ("child", "1.0", "b", 6)
    assert made.enable == ("a.service", "b.service", "c.service"), "parents first, the first place counts"


def test_each_recipe_that_names_packages_gives_a_stage_on_top_of_its_parents(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", BASE)
    write(tmp_path / "b.toml", '[capsule]\ncmdline = "no packages here"\n')
    write(tmp_path / "c.toml", '[packages]\ninclude = ["vim", "bash", "less"]\nthen = [["bash"], ["tmux"]]\n')
    made = recipe(tmp_path, 'extends = ["a.toml", "b.toml", "c.toml"]\n[packages]\ninclude = ["vim", "nano"]\n')
    first = ("bash", "g++", "libc6:amd64", "python3.11")
    assert made.stages == (first, ("less", "vim"), ("tmux",), ("nano",)), "sorted, each name once, no empty stage"
    assert made.packages == (*first, "less", "vim", "tmux", "nano")


def test_an_item_with_an_exclamation_mark_takes_a_parents_item_out(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", BASE + '[hybridize]\npaths = ["/usr/share/**", "/opt/**"]\n')
    write(tmp_path / "b.toml", 'extends = ["a.toml"]\n[packages]\ninclude = ["vim"]\n')
    made = recipe(
        tmp_path, 'extends = ["b.toml"]\n[packages]\ninclude = ["!g++", "!vim"]\n[hybridize]\npaths = ["!/opt/**"]\n'
    )
    assert made.stages == (("bash", "libc6:amd64", "python3.11"),), "out of any stage; an empty one vanishes"
    assert made.hybridize == ("/usr/share/**",)


def test_two_parents_may_take_the_same_item_out_of_the_one_they_share(tmp_path: Path) -> None:
    write(tmp_path / "top.toml", BASE)
    for name in ("left", "right"):
        write(tmp_path / f"{name}.toml", 'extends = ["top.toml"]\n[packages]\ninclude = ["!g++"]\n')
    made = recipe(tmp_path, 'extends = ["left.toml", "right.toml"]\n')
    assert made.stages == (("bash", "libc6:amd64", "python3.11"),)


def test_a_parent_reached_on_two_ways_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "top.toml", BASE + '[services]\nmask = ["a.timer", "b.timer"]\n')
    write(tmp_path / "left.toml", 'extends = ["top.toml"]\n[services]\nmask = ["!a.timer"]\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/same.toml").symlink_to("../top.toml")
    write(tmp_path / "sub/right.toml", 'extends = ["same.toml"]\n[packages]\ninclude = ["less"]\n')
    made = recipe(tmp_path, 'extends = ["left.toml", "sub/right.toml"]\n')
    assert made.mask == ("b.timer",), "read again, it would put a.timer back"
    assert len(made.stages) == 2


def test_a_circle_of_parents_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'extends = ["r.toml"]\n')
    error = refused(tmp_path, 'extends = ["a.toml"]\n')
    assert "a.toml:1: the recipe extends itself" in error.message
    assert error.hint == "r.toml → a.toml → r.toml"


def test_an_error_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", "[packages]\nincldue = []\n")
    assert f"{tmp_path}/a.toml:2: unknown key incldue" in refused(tmp_path, 'extends = ["a.toml"]\n').message


# --- files and scripts


def test_paths_are_relative_to_the_recipe_that_holds_them(tmp_path: Path) -> None:
    write(tmp_path / "base/one.sh", "#!/bin/sh\necho one\n")
    write(tmp_path / "base/10-late", "#!/bin/sh\n")
    write(tmp_path / "motd", "hello\n")
    write(tmp_path / "base/a.toml", BASE + '[scripts]\nrootfs = ["one.sh"]\n[provision]\ninit = ["10-late"]\n')
    write(tmp_path / "05-early", "#!/bin/sh\n")
    made = recipe(
        tmp_path,
        'extends = ["base/a.toml"]\n[provision]\ninit = ["05-early"]\n'
        '[files."/etc/motd"]\nsource = "motd"\nmode = "0600"\n',
    )
    assert [s.name for s in made.scripts] == ["one.sh"] and made.scripts[0].data.endswith(b"echo one\n")
    named = [(state, script.name) for state, script in made.provision]
    assert named == [("init", "05-early"), ("init", "10-late")], "in the order of their numbers"
    assert [(f.path, f.data, f.mode) for f in made.files] == [("/etc/motd", b"hello\n", 0o600)]
    assert str(tmp_path) not in made.text, "no path of the author's machine in the capsule"


def test_a_parents_script_can_be_taken_out_and_replaced_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "base/one.sh", "#!/bin/sh\n")
    write(tmp_path / "one.sh", "#!/bin/sh\necho mine\n")
    write(tmp_path / "base/a.toml", BASE + '[scripts]\nrootfs = ["one.sh"]\n')
    assert recipe(tmp_path, 'extends = ["base/a.toml"]\n[scripts]\nrootfs = ["!base/one.sh"]\n').scripts == ()
    made = recipe(tmp_path, 'extends = ["base/a.toml"]\n[scripts]\nrootfs = ["!one.sh", "one.sh"]\n')
    assert [s.data for s in made.scripts] == [b"#!/bin/sh\necho mine\n"]


def test_a_script_may_stand_in_the_recipe(tmp_path: Path) -> None:
    text = (
        '[[scripts.rootfs]]\nname = "a"\ntext = """\n#!/bin/sh -eu\ntrue\n"""\n'
        '[provision]\nready = [{name = "50-b", text = "#!/bin/sh"}]\n'
    )
    made = recipe(tmp_path, BASE + text)
    assert [(s.name, s.data) for s in made.scripts] == [("a", b"#!/bin/sh -eu\ntrue\n")]
    assert [(state, s.name, s.data) for state, s in made.provision] == [("ready", "50-b", b"#!/bin/sh")]


def test_a_file_of_the_recipe_replaces_its_parents_file_whichever_way_it_is_given(tmp_path: Path) -> None:
    write(tmp_path / "mine", "mine\n")
    write(tmp_path / "a.toml", BASE + '[files."/etc/motd"]\ncontent = "theirs"\nmode = "0600"\nowner = "me"\n')
    for own, data in (('source = "mine"', b"mine\n"), ('base64 = "AAE="', b"\0\1"), ('group = "us"', b"theirs")):
        made = recipe(tmp_path, f'extends = ["a.toml"]\n[files."/etc/motd"]\n{own}\n')
        assert [(f.data, f.mode, f.owner) for f in made.files] == [(data, 0o600, "me")]
    assert made.files[0].group == "us"


def test_users_and_groups_are_read_and_merged_key_by_key(tmp_path: Path) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@desk"
    write(
        tmp_path / "a.toml",
        BASE + f'[users.ada]\nuid = 1000\ngroups = ["adm", "disk"]\nssh_keys = ["{key}"]\n[groups.hpc]\ngid = 0\n',
    )
    made = recipe(
        tmp_path,
        'extends = ["a.toml"]\n[users.ada]\nuid = 1001\ngroups = ["!disk", "hpc"]\n'
        'password = "$6$x$y"\nshell = "/bin/sh"\n'
        "[users._svc]\nsystem = true\n",
    )
    assert made.users == (
        User("_svc", system=True),
        User("ada", 1001, groups=("adm", "hpc"), password="$6$x$y", shell="/bin/sh", ssh_keys=(key,)),
    )
    assert made.groups == (Group("hpc", 0),)


@pytest.mark.parametrize(("size", "count"), [("1", 1), ("3K", 3072), ("900M", 900 << 20), ("2G", 2 << 30)])
def test_ram_max_is_counted_in_bytes(tmp_path: Path, size: str, count: int) -> None:
    assert recipe(tmp_path, BASE + f'[image]\nram_max = "{size}"\n').ram_max == count


def test_a_release_is_packed_at_its_own_level(tmp_path: Path) -> None:
    path = write(tmp_path / "r.toml", BASE + "[image]\nlevel = 1\nrelease_level = 19\n")
    plain, release = load_recipe(path), load_recipe(path, release=True)
    assert (plain.level, release.level, release.release_level) == (1, 19, 19)
    assert plain.digest != release.digest and "\nlevel = 19\n" in release.text


# --- variables


def test_variables_stand_in_any_value_and_the_child_and_then_the_command_line_win(tmp_path: Path) -> None:
    text = BASE.replace('"tiny"', '"@{site}-node"').replace('"bash"', '"@{shell}"')
    write(
        tmp_path / "a.toml",
        text + '[files."/m"]\ncontent = "@{site} @{site}"\n[variables]\nsite = "a"\nshell = "dash"\n',
    )
    path = write(tmp_path / "r.toml", 'extends = ["a.toml"]\n[variables]\nsite = "b"\n')
    made = load_recipe(path)
    assert (made.name, made.files[0].data) == ("b-node", b"b b") and "dash" in made.packages
    made = load_recipe(path, {"site": "c"})
    assert (made.name, made.files[0].data) == ("c-node", b"c c") and "@{" not in made.text


def test_what_only_looks_like_a_variable_can_be_written(tmp_path: Path) -> None:
    write(tmp_path / "raw", "@{HOME} @@{x}")
    made = recipe(
        tmp_path,
        BASE + '[files."/a"]\ncontent = "@@{HOME} @@@{x} @x {y}"\n[files."/b"]\nsource = "raw"\n'
        '[files."/c"]\ncontent = "@{v}"\n[variables]\nv = "@{HOME}"\n',
    )
    # A file read from disk and a variable's value are taken as they are.
    assert [f.data for f in made.files] == [b"@{HOME} @@{x} @x {y}", b"@{HOME} @@{x}", b"@{HOME}"]
    assert loads_recipe(made.text, "flat").files == made.files


def test_an_unknown_variable_is_named_with_the_known_ones(tmp_path: Path) -> None:
    error = refused(tmp_path, BASE.replace('"tiny"', '"@{nam}"') + '[variables]\nname = "x"\n')
    assert f"{tmp_path}/r.toml:2: unknown variable nam" in error.message and error.hint == "did you mean name?"
    with pytest.raises(UsageError, match="there is no variable nmae to set") as caught:
        load_recipe(write(tmp_path / "r.toml", BASE + '[variables]\nname = "x"\n'), {"nmae": "y"})
    assert caught.value.hint == "did you mean name?"
    with pytest.raises(UsageError, match="the variable name must be set to one line of text"):
        load_recipe(tmp_path / "r.toml", {"name": "y\nz"})


# --- questions asked at import

QUESTIONS = """
[configure.ntp]
prompt = "Time server"
required = true
target = "/etc/chrony/sources.d/site.sources"
template = "server {ntp} {mode}{other}\\n"

[configure.mode]
prompt = "How?"
type = "choice"
choices = ["iburst", "offline"]
default = "iburst"
"""


def test_questions_become_one_table_each_in_the_order_of_their_keys(tmp_path: Path) -> None:
    made = recipe(tmp_path, BASE + QUESTIONS)
    assert tomllib.loads(made.configure.decode()) == {
        "question": [
            {"key": "mode", "prompt": "How?", "type": "choice", "default": "iburst", "required": False,
             "choices": ["iburst", "offline"]},
            {"key": "ntp", "prompt": "Time server", "type": "text", "required": True,
             "target": "/etc/chrony/sources.d/site.sources", "template": "server {ntp} {mode}{other}\n"},
        ]
    }  # fmt: skip
    assert recipe(tmp_path, BASE).configure == b""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('prompt = "How?"\n', "", "[configure.mode] prompt must be given"),
        ('choices = ["iburst", "offline"]\n', "", "choices must be given for a question of type"),
        (
            'default = "iburst"',
            'default = "burst"',
            "default must be an answer to a question of type choice, not 'burst'",
        ),
        ('target = "/etc/chrony/sources.d/site.sources"\n', "", "target must be given together with template"),
        ("{ntp} {mode}", "x", "template must be text with {ntp} in it"),
        ('type = "choice"\nchoices = ["iburst", "offline"]', 'type = "number"', "of type number, not 'iburst'"),
        ('type = "choice"\nchoices = ["iburst", "offline"]', 'type = "password"', "of type password"),
        ('type = "choice"\nchoices = ["iburst", "offline"]', 'type = "yesno"', "of type yesno, not 'iburst'"),
        ('"How?"', '"How?"\ntarget = "/etc/chrony/sources.d/site.sources"\ntemplate = "{mode}"', "a file of its own"),
    ],
)
def test_a_question_that_contradicts_itself_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    error = refused(tmp_path, BASE + QUESTIONS.replace(old, new))
    assert message in error.message and f"{tmp_path}/r.toml:" in error.message


# --- scripts and files that are wrong


@pytest.mark.parametrize(
    ("section", "name", "content", "message"),
    [
        ("scripts]\nrootfs", "one.py", "#!/usr/bin/python3\n", "must start with #!/bin/sh"),
        ("provision]\ninit", "late", "#!/bin/sh\n", "must be named NN-name"),
        ("provision]\ninit", "1-late", "#!/bin/sh\n", "must be named NN-name"),
        ("provision]\ninit", "10-a b", "#!/bin/sh\n", "must be named NN-name"),
    ],
)
def test_a_script_that_would_fail_on_the_node_is_refused(
    tmp_path: Path, section: str, name: str, content: str, message: str
) -> None:
    write(tmp_path / name, content)
    assert message in refused(tmp_path, BASE + f'[{section} = ["{name}"]\n').message


def test_two_scripts_of_one_name_and_huge_or_unreadable_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a/10-x", "#!/bin/sh\n")
    write(tmp_path / "b/10-x", "#!/bin/sh\nother\n")
    assert "same file name" in refused(tmp_path, BASE + '[provision]\ninit = ["a/10-x", "b/10-x"]\n').message
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(17 << 20)
    assert "larger than 16 MiB" in refused(tmp_path, BASE + '[files."/x"]\nsource = "huge"\n').message
    os.mkfifo(tmp_path / "pipe")
    assert "an existing file" in refused(tmp_path, BASE + '[files."/x"]\nsource = "pipe"\n').message


def test_the_digest_follows_every_byte_that_matters_and_nothing_else(tmp_path: Path) -> None:
    one = recipe(tmp_path / "one")
    write(tmp_path / "two/parent.toml", BASE + "# a comment\n")
    assert recipe(tmp_path / "two", 'extends = ["parent.toml"]\n').digest == one.digest
    with_file = BASE + '[files."/etc/motd"]\nsource = "motd"\n'
    digests = {one.digest, recipe(tmp_path, BASE.replace("1.0", "1.1")).digest}
    for text in ("a", "b"):
        write(tmp_path / "motd", text)
        digests.add(recipe(tmp_path, with_file).digest)
    digests.add(recipe(tmp_path, with_file + 'mode = "0600"\n').digest)
    assert len(digests) == 5
