"""The lines "# needs:" of the node's shell: they name every command that a script runs, and no other."""

from __future__ import annotations

import pytest
from image_of import files_image, shell_image
from initramfs_builder.check.scripts import TRIES, externals, our_programs, stated
from initramfs_builder.resources import shell_dir

# What stands where a command does and only running would tell → what it runs, and who says so.
TOLD = {
    "$@": (),  # in functions that run their arguments: read where they are called
    "$MODPROBE": ("modprobe",),  # drivers.sh: kmod's by its path, as busybox's shell prefers its applet
    "$pack_tar": ("tar",),  # nodelayer.sh: GNU tar by its path, for the same reason
    "$(…)": (),  # nodelayer.sh: the dynamic loader of curl, which curl itself needs
}
STAGES = [("stage1",), ("stage2", "stage2-hybrid")]


def spelled(parts: tuple[object, ...]) -> str:
    return "".join("$(…)" if part is None else part if isinstance(part, str) else f"${part.name}" for part in parts)  # type: ignore[attr-defined]


def told(program: object, path: str) -> list[str]:
    """The words in command position that cannot be read."""
    found = program.scripts[path].commands  # type: ignore[attr-defined]
    return [spelled(c.words[0].parts) for c in found if c.words[0].text(program.values) is None]  # type: ignore[attr-defined]


@pytest.mark.parametrize("folders", STAGES, ids="+".join)
def test_each_line_names_every_command_that_its_script_runs_and_no_other(folders: tuple[str, ...]) -> None:
    image = shell_image(*map(shell_dir, folders))
    seen: set[str] = set()
    for program in our_programs(image):
        for path in program.scripts:
            text = image.facts[path].text
            runs = {name for _, name in externals(program, path)}
            needs, tries = set(stated(text)), set(stated(text, TRIES))
            assert runs <= needs | tries, f"{path} runs {sorted(runs - needs - tries)}: add it to its line # needs:"
            unread = told(program, path)
            assert set(unread) <= TOLD.keys(), f"{path} runs {unread}: say in TOLD what that is"
            allowed = {name for word in unread for name in TOLD[word]}
            assert needs - runs <= allowed, f"{path} does not run {sorted(needs - runs - allowed)}"
            assert {name for word in unread for name in TOLD[word]} <= needs, path
            assert tries <= runs - needs, path
            seen.add(path)
    shell = {path for path, fact in image.facts.items() if path.endswith(".sh") or path == "init"}
    assert seen == shell
    assert len(seen) > 3


def runs(text: str) -> list[str]:
    (program,) = our_programs(files_image({"init": f"#!/bin/sh\n{text}\n"}))
    return sorted({name for _, name in externals(program, "init")})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("exec a b", ["a"]),
        ("command a; command -v b; command -p c", ["a", "c"]),
        ("x | xargs -r -n 1 a -q", ["a", "x", "xargs"]),
        ("xargs -0 -I{} sh -c '{}'", ["sh", "xargs"]),
        ("find / -exec a {} + -o -exec b \\;", ["a", "b", "find"]),
        ("env -u X A=1 B=2 a", ["a", "env"]),
        ("setsid -w cttyhack a", ["a", "cttyhack", "setsid"]),
        ("timeout -k 1 5 a; timeout 5 b; nice -n 5 c; nice -10 d", ["a", "b", "c", "d", "nice", "timeout"]),
        ("trap 'a; b' EXIT; trap - EXIT; trap '' INT; eval 'c $x'", ["a", "b", "c"]),
        ("trap -- 'a' EXIT; busybox b", ["a", "b", "busybox"]),
        ("sh -c 'a; b'; sh -ec \"c\"; sh x -c; sh -c \"$x\"", ["a", "b", "c", "sh"]),
        ("/bin/sh +x -c 'a $0' b", ["/bin/sh", "a"]),
        ("timeout 5 sh -c 'a'", ["a", "sh", "timeout"]),
        ("chroot /x a", ["chroot"]),  # runs there, not here
        ("f() { shift; x; \"$@\"; }\nf a b; f a c d", ["b", "c", "x"]),
        ("f() { \"$@\" 2>y; }\ng() { f a; }\nf g", ["a"]),
        ("$x a; \"$(b)\" c", ["b"]),
        ("X=a; $X; Y=${Z:-b}; \"$Y\" c", ["a", "b"]),
        ("X=a; X=b; $X", []),
        ("for X in a b; do $X; done; X=c", []),
        ("X=a; read -r X; $X; Y=b; unset Y; $Y; Z=c; getopts x Z; $Z", []),
        ("export X=a; readonly Y; $X; Y=b; export Y; $Y", ["a", "b"]),
        ("X='a -b'; $X c; Y=; $Y", ["a"]),
        ("/usr/bin/a", ["/usr/bin/a"]),
        ("[ a ] && test b && printf c && kill 1 && ulimit -f 1", []),
        ("local a; hash; type b", []),
        ("source a; let b; pushd", ["let", "pushd", "source"]),  # bash's own
    ],
)  # fmt: skip
def test_commands_within_commands_are_read(text: str, names: list[str]) -> None:
    assert runs(text) == names
