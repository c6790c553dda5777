"""Recipes broken in every way we know: how each is made, the place its error names, and words of the message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

GOOD = """[capsule]
name = "tiny"
version = "1.0"

[distro]
name = "debian"
release = "12"

[kernel]
package = "linux-image-cloud-amd64"

"""
Prepare = Callable[[Path], object]


def text(more: str, good: str = GOOD) -> Prepare:
    """A recipe that goes wrong behind, or instead of, a good one."""
    return lambda path: path.write_text(good + more)


def raw(data: bytes) -> Prepare:
    return lambda path: path.write_bytes(data)


def with_file(name: str, data: bytes, more: str) -> Prepare:
    def prepare(path: Path) -> None:
        (path.parent / name).write_bytes(data)
        path.write_text(GOOD + more)

    return prepare


def circle(path: Path) -> None:
    (path.parent / "a.toml").write_text('extends = ["b.toml"]\n')
    (path.parent / "b.toml").write_text('\nextends = [\n  "a.toml",\n]\n')
    path.write_text('extends = ["a.toml"]\n' + GOOD)


def link_loop(path: Path) -> None:
    path.symlink_to("s.toml")
    (path.parent / "s.toml").symlink_to(path.name)


def parent_loop(path: Path) -> None:
    (path.parent / "s.toml").symlink_to("s.toml")
    path.write_text('extends = ["s.toml"]\n' + GOOD)


def folder_parent(path: Path) -> None:
    (path.parent / "sub").mkdir()
    path.write_text('extends = ["sub"]\n' + GOOD)


def fifo_parent(path: Path) -> None:
    os.mkfifo(path.parent / "p.toml")
    path.write_text('extends = ["p.toml"]\n' + GOOD)


def wrong_parent(path: Path) -> None:
    (path.parent / "a.toml").write_text("[capsule]\nnmae = 'x'\n")
    path.write_text('extends = ["a.toml"]\n' + GOOD)


def huge_file(path: Path) -> None:
    with (path.parent / "big").open("wb") as file:
        file.truncate((16 << 20) + 1)
    path.write_text(GOOD + '[files."/big"]\nsource = "big"\n')


def many_huge_files(path: Path) -> None:
    with (path.parent / "big").open("wb") as file:
        file.truncate(16 << 20)
    path.write_text(GOOD + "".join(f'[files."/big{n}"]\nsource = "big"\n' for n in range(5)))


def deep_chain(path: Path) -> None:
    for number in range(80):
        (path.parent / f"p{number}.toml").write_text(f'extends = ["p{number + 1}.toml"]\n')
    (path.parent / "p80.toml").write_text(GOOD)
    path.write_text('extends = ["p0.toml"]\n')


# What is broken → how; where the error points to (a file, with a line where one is to blame); words of the message.
BROKEN: dict[str, tuple[Prepare, str, str]] = {
    "no file": (lambda path: None, "r.toml", "there is no recipe"),
    "a folder": (lambda path: path.mkdir(), "r.toml", "Is a directory"),
    "a pipe": (lambda path: os.mkfifo(path), "r.toml", "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "r.toml", "not a regular file"),
    "links in a circle": (link_loop, "r.toml", "Too many levels of symbolic links"),
    "a megabyte of comments": (raw(b"#" * ((1 << 20) + 1)), "r.toml", "larger than 1 MiB"),
    "not UTF-8": (raw(GOOD.encode() + b"x = '\xe9'\n"), "r.toml:12", "not UTF-8 text"),
    "UTF-16": (raw(GOOD.encode("utf-16")), "r.toml:1", "not UTF-8 text"),
    "NUL": (raw(GOOD.encode() + b"\0\n"), "r.toml:12", "not valid TOML"),
    "a byte order mark": (raw(b"\xef\xbb\xbf" + GOOD.encode()), "r.toml:1", "not valid TOML"),
    "half a surrogate pair": (text('[users]\n"\\ud800" = 1\n'), "r.toml:13", "not a Unicode scalar value"),
    "empty": (text("", ""), "r.toml", "[capsule] name is missing"),
    "an open string": (text('[image]\nlevel = "3\n'), "r.toml:13", "not valid TOML"),
    "a key twice": (text('package = "x"\n'), "r.toml:12", "Cannot overwrite a value"),
    "a section twice": (text("[capsule]\n"), "r.toml:12", "twice"),
    "nested deeply": (text("x = " + "[" * 3000), "r.toml", "nested too deeply"),
    "a number of ten thousand digits": (text("[image]\nlevel = " + "9" * 10000), "r.toml", "not valid TOML"),
    "unknown section": (text("[pakages]\n"), "r.toml:12", "unknown section pakages"),
    "unknown key": (text("[packages]\ninclde = []\n"), "r.toml:13", "unknown key inclde in [packages]"),
    "unknown key of a file": (text('[files."/a"]\nmod = "0644"\n'), "r.toml:13", 'unknown key mod in [files."/a"]'),
    "key of no section": (text("x = 1\n", ""), "r.toml:1", "unknown section x"),
    "text for a list": (text('[packages]\ninclude = "vim"\n'), "r.toml:13", "must be a list of package names"),
    "number for a text": (text("[rootfs]\nbase = 3\n"), "r.toml:13", '[rootfs] base must be "essential" or "extract"'),
    "text for a number": (text('[image]\nlevel = "3"\n'), "r.toml:13", "[image] level must be a number"),
    "true for a number": (text("[image]\nlevel = true\n"), "r.toml:13", "[image] level must be a number"),
    "number out of range": (text("[image]\nrelease_level = 23\n"), "r.toml:13", "from 1 to 22, not 23"),
    "date in a list": (text("[packages]\ninclude = [\n2020-01-01]\n"), "r.toml:14", "must be a list of package names"),
    "a table for a list": (text("[packages]\ninclude = {a = 1}\n"), "r.toml:13", "must be a list of package names"),
    "a list for a section": (text("[[distro]]\nname = 'x'\n", ""), "r.toml:1", "must be a section [distro]"),
    "a package called like an option": (text('[packages]\ninclude = ["vim",\n "-o=x"]\n'), "r.toml:14", "not '-o=x'"),
    "a package that removes": (text('[packages]\nthen = [[\n"vim-"]]\n'), "r.toml:14", "[packages] then must be"),
    "removing what is not there": (text('[packages]\ninclude = ["!vim"]\n'), "r.toml:13", '"!vim" takes out what'),
    "control characters in a value": (text('[capsule.x]\n"\\u001b[2J" = 1\n'), "r.toml", "x in [capsule]"),
    "kernel arguments of two lines": (
        text('', GOOD.replace('"1.0"\n', '"1.0"\ncmdline = "a\\nb"\n')), "r.toml:4", "one line of kernel arguments"),
    "bad unit": (text('[services]\nmask = ["a.timer", "ssh"]\n'), "r.toml:13", "list of unit names"),
    "bad mode": (text('[files."/a"]\ncontent = ""\nmode = "rw-r--r--"\n'), "r.toml:14", 'octal text such as "0644"'),
    "mode as a number": (text('[files."/a"]\ncontent = ""\nmode = 0o644\n'), "r.toml:14", "octal text"),
    "a file outside": (text('[files."/a/../../etc"]\ncontent = ""\n'), "r.toml:12", "a full path"),
    "a relative file": (text('[files."etc/motd"]\ncontent = ""\n'), "r.toml:12", "a full path"),
    "a file of nothing": (text('[files."/a"]\nmode = "0600"\n'), "r.toml:12", "content, source or base64"),
    "a file of two things": (text('[files."/a"]\ncontent = ""\nsource = "x"\n'), "r.toml:14", "exclude each other"),
    "bad base64": (text('[files."/a"]\nbase64 = "abc"\n'), "r.toml:13", "must be base64"),
    "bad owner": (text('[files."/a"]\ncontent = ""\nowner = "a b"\n'), "r.toml:14", "owner must be up to 32"),
    "missing file": (text('[files."/a"]\nsource = "none"\n'), "r.toml:13", "an existing file (No such file"),
    "a folder as a file": (text('[files."/a"]\nsource = "."\n'), "r.toml:13", "an existing file (Is a directory"),
    "huge file": (huge_file, "r.toml:13", "larger than 16 MiB"),
    "too many huge files": (many_huge_files, "r.toml:21", "one too many: 64 MiB"),
    "a name longer than any": (text(f'[files."/a"]\nsource = "{"a" * 300}"\n'), "r.toml:13", "File name too long"),
    "bad user name": (text('[users."Root;x"]\nuid = 1\n'), "r.toml:12", "must be up to 32 small letters"),
    "a user id below nothing": (text("[users.ada]\nuid = -1\n"), "r.toml:13", "a number from 0 to 4294967294"),
    "a password in the clear": (text('[users.ada]\npassword = "secret"\n'), "r.toml:13", "a hash of crypt(5)"),
    "a private key as a public one": (
        text('[users.ada]\nssh_keys = ["-----BEGIN OPENSSH PRIVATE KEY-----"]\n'), "r.toml:13", "public ssh keys"),
    "a home with a blank": (text('[users.ada]\nhome = "/home/a b"\n'), "r.toml:13", "a full path"),
    "a shell with a colon": (text('[users.ada]\nshell = "/bin/sh:0"\n'), "r.toml:13", "a full path"),
    "missing script": (text('[scripts]\nrootfs = ["none.sh"]\n'), "r.toml:13", "an existing file (No such file"),
    "a script in Python": (
        with_file("s.py", b"#!/usr/bin/python3\n", '[scripts]\nrootfs = ["s.py"]\n'), "r.toml:13", "start with #!"),
    "a script that only begins well": (
        with_file("s", b"#!/bin/shell\n", '[scripts]\nrootfs = ["s"]\n'), "r.toml:13", "start with #!"),
    "a script in Latin-1": (
        with_file("s", b"#!/bin/sh\n\necho \xe9\n", '[scripts]\nrootfs = ["s"]\n'), "r.toml:13", "line 3 of s is not"),
    "a binary as a script": (
        with_file("s", b"#!/bin/sh\n\0", '[scripts]\nrootfs = ["s"]\n'), "r.toml:13", "holds a NUL byte"),
    "a script without its text": (text('[scripts]\nrootfs = [{name = "a"}]\n'), "r.toml:13", "a table with name and"),
    "an unnumbered provision script": (
        with_file("s", b"#!/bin/sh\n", '[provision]\ninit = ["s"]\n'), "r.toml:13", "must be named NN-name"),
    "an unknown state": (text("[provision]\nboot = []\n"), "r.toml:13", "unknown key boot in [provision]"),
    "two scripts of a name": (
        text('[scripts]\nrootfs = [{name = "a", text = "#!/bin/sh"},\n{name = "a", text = "#!/bin/sh -e"}]\n'),
        "r.toml:14", "two scripts have the same file name a"),
    "an open bracket": (text('[hybridize]\npaths = ["/opt/**", "/usr/[a-z"]\n'), "r.toml:13", "with each [ closed"),
    "a range that runs backwards": (text('[hybridize]\npaths = ["/opt/[z-a]"]\n'), "r.toml:13", "a list of globs"),
    "a root made elsewhere": (text('[rootfs]\nbase = "packed"\n'), "r.toml", "base packed cannot be built"),
    "a relative glob": (text('[hybridize]\npaths = ["usr/share/**"]\n'), "r.toml:13", "globs that start with /"),
    "a glob that leaves": (text('[hybridize]\npaths = ["/usr/../etc/*"]\n'), "r.toml:13", "without '.' or '..'"),
    "an empty glob": (text('[hybridize]\npaths = [\n""]\n'), "r.toml:14", "globs that start with /"),
    "bad size": (text('[image]\nram_max = "1.5G"\n'), "r.toml:13", 'a size such as "900M" or "2G"'),
    "a question without words": (text('[configure.ntp]\ndefault = "x"\n'), "r.toml:12", "prompt must be given"),
    "a question of an unknown type": (
        text('[configure.ntp]\nprompt = "?"\ntype = "date"\n'), "r.toml:14", "type must be one of"),
    "unknown variable": (text('[files."/a"]\ncontent = """\n@{HOME}"""\n'), "r.toml:13", "unknown variable HOME"),
    "half a variable": (text('[files."/a"]\ncontent = "@{a b}"\n'), "r.toml:13", "write @@{ for the characters @{"),
    "a variable that is no text": (text("[variables]\nn = 3\n"), "r.toml:13", "must be one line of text"),
    "a variable in extends": (text("", 'extends = ["@{x}.toml"]\n' + GOOD), "r.toml:1", "without variables"),
    "parents in a circle": (circle, "b.toml:3", "the recipe extends itself"),
    "its own parent": (text("", 'extends = ["r.toml"]\n' + GOOD), "r.toml:1", "the recipe extends itself"),
    "missing parent": (text("", '\nextends = [\n"none.toml"]\n' + GOOD), "r.toml:3", "not 'none.toml'"),
    "a parent that is a folder": (folder_parent, "sub", "Is a directory"),
    "a parent that is a pipe": (fifo_parent, "p.toml", "not a regular file"),
    "a parent that links to itself": (parent_loop, "s.toml", "Too many levels of symbolic links"),
    "parents without an end": (deep_chain, "p", "more than 64 parents"),
    "a wrong parent": (wrong_parent, "a.toml:2", "unknown key nmae in [capsule]"),
}  # fmt: skip
