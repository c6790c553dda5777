"""Every setting a recipe may hold, in one typed table.

Validation (check.py), the JSON Schema and the reference page (pages.py) and ``capsulekit new`` are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs.globs import anchored

# line: text without line ends or control characters; text: any text; lines: a list of lines; lists: a list of those;
# scripts: a list of script files, or of scripts written down in the recipe.
Kind = Literal["line", "text", "number", "flag", "lines", "lists", "scripts"]


@dataclass(frozen=True)
class Shape:
    """What a value looks like: its kind, and what it, or each item of it, has to match.

    ``pattern`` is for the whole text, in the syntax that Python and JSON Schema share; ``rule`` is what a pattern
    cannot say; ``least`` and ``most`` are for numbers.
    """

    kind: Kind
    expected: str
    pattern: str = ""
    choices: tuple[str, ...] = ()
    least: int = 0
    most: int = 0
    rule: Callable[[str], bool] | None = None

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern or "(?s:.*)")

    def fits(self, text: str) -> bool:
        """Whether one text, or one item of a list, is right."""
        if self.kind != "text" and not text.isprintable():
            return False
        if self.choices and text not in self.choices:
            return False
        return self._regex.fullmatch(text) is not None and (self.rule is None or self.rule(text))


@dataclass(frozen=True)
class Setting:
    """One key: what its value looks like, what it is for, and its default (None: there is none)."""

    shape: Shape
    help: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Named:
    """A family of sections, such as ``[files."/etc/motd"]``: how the names look, and the keys of each."""

    header: str
    name: Shape
    help: str
    settings: dict[str, Setting]


def _is_glob(text: str) -> bool:
    try:
        anchored(text)
    except CapsulekitError:
        return False
    return True


# The base of a root that was made elsewhere.
PACKED = "packed"

_FULL = r"(?:/(?!\.{1,2}(?:/|$))[^/]+)+"
_ACCOUNT = r"[a-z_][a-z0-9_-]{0,31}"
# The highest, -1, means "leave it" to chown(2).
_ID = Shape("number", "a number from 0 to 4294967294", most=(1 << 32) - 2)

LINE = Shape("line", "one line of text")
TEXT = Shape("text", "text")
FLAG = Shape("flag", "true or false")
NAME = Shape("line", "a name of letters, digits, '.', '_' and '-'", r"[A-Za-z0-9][A-Za-z0-9._-]*")
# No "-" at the end: apt would take "name-" for "remove name".
_PACKAGE = r"[A-Za-z0-9](?:[A-Za-z0-9+._-]*[A-Za-z0-9+._])?(?::[a-z0-9]+)?"
PACKAGE = Shape("line", "a package name", _PACKAGE)
PACKAGES = Shape("lines", "a list of package names", _PACKAGE)
STAGES = Shape("lists", "a list of lists of package names", _PACKAGE)
MODULES = Shape("lines", "a list of module names", r"[^\s]+")
UNITS = Shape(
    "lines",
    'a list of unit names, such as "ssh.service"',
    r"(?!-)[A-Za-z0-9@:._\\-]+\.(?:service|socket|timer|target|mount|automount|swap|slice|path)",
)
PATH = Shape("line", "a full path without '.' or '..'", _FULL)
# A line of /etc/passwd holds it.
HOME = Shape("line", "a full path without '.', '..', ':' or blanks", r"(?:/(?!\.{1,2}(?:/|$))[^/:\s]+)+")
GLOBS = Shape(
    "lines",
    "a list of globs that start with /, without '.' or '..' and with each [ closed",
    _FULL + "/?",
    rule=_is_glob,
)
SCRIPTS = Shape("scripts", 'a list of script files, or of tables {name = "...", text = "..."}')
SCRIPT_NAME = Shape("line", "a name of letters, digits, '.', '_' and '-'", r"[A-Za-z0-9][A-Za-z0-9._-]*")
NUMBERED = Shape("line", "named NN-name, such as 50-motd: NN is its order", r"[0-9]{2}-[A-Za-z0-9][A-Za-z0-9._-]*")
ACCOUNT = Shape("line", "up to 32 small letters, digits, '_' and '-'", _ACCOUNT)
ACCOUNTS = Shape("lines", "a list of group names", _ACCOUNT)
MODE = Shape("line", 'octal text such as "0644"', r"0[0-7]{3,4}")
SIZE = Shape("line", 'a size such as "900M" or "2G"', r"[1-9][0-9]{0,11}[KMG]?")
LEVEL = Shape("number", "a number from 1 to 22", least=1, most=22)
PASSWORD = Shape("line", 'a hash of crypt(5), which starts with "$", or "!" for none', r"\$[!-9;-~]+|!")
SSH_KEYS = Shape(
    "lines",
    "a list of public ssh keys, each a line as in authorized_keys",
    r"(?:.* )?(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp[0-9]+|sk-[a-z0-9-]+@openssh\.com) [A-Za-z0-9+/]{16,}=*(?: .*)?",
)
QUESTION = Shape("line", "a name of small letters, digits, '_' and '-'", r"[a-z][a-z0-9_-]*")
VARIABLE = Shape("line", "a name of letters, digits, '_' and '-'", r"[A-Za-z][A-Za-z0-9_-]*")

SETTINGS: dict[str, dict[str, Setting]] = {
    "capsule": {
        "name": Setting(NAME, "name of the capsule", required=True),
        "version": Setting(NAME, "version of the capsule", required=True),
        "init": Setting(PATH, "first program of the booted root", "/sbin/init"),
        "cmdline": Setting(Shape("line", "one line of kernel arguments"), "kernel arguments", ""),
    },
    "distro": {
        "name": Setting(NAME, "distribution", required=True),
        "release": Setting(NAME, "release of the distribution, as its users say it", required=True),
        "arch": Setting(NAME, "architecture, in Debian's spelling", "amd64"),
    },
    "packages": {
        "include": Setting(PACKAGES, "packages to install, with what they depend on", []),
        "then": Setting(
            STAGES,
            "lists of packages, each installed in a step of its own on top of those before; what a child recipe "
            "includes becomes such a list",
            [],
        ),
    },
    "kernel": {
        "package": Setting(PACKAGE, "package that brings (or depends on) the kernel", required=True),
        "extra": Setting(PACKAGES, "more packages whose modules or firmware belong to the kernel", []),
        "modules": Setting(MODULES, "keep only these modules and what they need; empty keeps all", []),
        "stage2": Setting(MODULES, "modules that stage 2 loads to mount the layers", ["loop", "squashfs", "overlay"]),
    },
    "rootfs": {
        "base": Setting(
            Shape("line", '"essential" or "extract"', choices=("essential", "extract", PACKED)),
            '"essential": a working system; "extract": unpacked packages, no script is run; "packed" stands in the '
            "recipe of a capsule that `pack` made, and cannot be built",
            "essential",
        ),
    },
    "services": {
        "enable": Setting(UNITS, "units to enable", []),
        "disable": Setting(UNITS, "units to disable", []),
        "mask": Setting(UNITS, "units to mask", []),
    },
    "scripts": {
        "rootfs": Setting(SCRIPTS, "scripts run as root inside the new root, after all else, in this order", []),
    },
    "hybridize": {
        "paths": Setting(GLOBS, "globs of paths that may live on the network instead of in RAM", []),
    },
    "provision": {
        "init": Setting(
            SCRIPTS, "scripts stage 1 runs on the node against NEWROOT; their names start with two digits", []
        ),
        "ready": Setting(SCRIPTS, "scripts run on the node once it is up; their names start with two digits", []),
    },
    "image": {
        "level": Setting(LEVEL, "zstd level of the layers; past 9 it only costs time", 3),
        "release_level": Setting(LEVEL, "the level that `build --release` uses", 15),
        "ram_max": Setting(SIZE, "RAM the booted root may take; a build that needs more fails", None),
    },
}

_QUESTIONS = ("text", "password", "number", "choice", "yesno")

NAMED: dict[str, Named] = {
    "files": Named(
        '[files."/path"]',
        PATH,
        "A file of the root: one of `content`, `source` and `base64`. A child's file replaces the parent's.",
        {
            "content": Setting(TEXT, "the file's text"),
            "source": Setting(LINE, "or the file it is copied from, beside the recipe"),
            "base64": Setting(TEXT, "or its bytes in base64"),
            "mode": Setting(MODE, "permission bits", "0644"),
            "owner": Setting(ACCOUNT, "user that owns it", "root"),
            "group": Setting(ACCOUNT, "group that owns it", "root"),
        },
    ),
    "users": Named(
        "[users.NAME]",
        ACCOUNT,
        "An account, made if it is not there.",
        {
            "uid": Setting(_ID, "its number; the system chooses one if it is left out"),
            "gid": Setting(_ID, "number of its main group"),
            "groups": Setting(ACCOUNTS, "further groups", []),
            "home": Setting(HOME, "home folder"),
            "shell": Setting(HOME, "login shell"),
            "password": Setting(PASSWORD, "hash of its password; a capsule is public, and so is this"),
            "ssh_keys": Setting(SSH_KEYS, "public keys that may log in", []),
            "system": Setting(FLAG, "an account of a service, not of a person", False),
        },
    ),
    "groups": Named(
        "[groups.NAME]",
        ACCOUNT,
        "A group, made if it is not there.",
        {"gid": Setting(_ID, "its number; the system chooses one if it is left out")},
    ),
    "configure": Named(
        "[configure.KEY]",
        QUESTION,
        "A question asked when the capsule is imported; the answers become files of a layer of the site's own. In "
        "`template`, `{KEY}` stands for the answer to the question of that name, and `{KEY:crypt}` for its hash as "
        "/etc/shadow holds it; other braces are text.",
        {
            "prompt": Setting(LINE, "the question", required=True),
            "type": Setting(
                Shape("line", "one of " + ", ".join(f'"{q}"' for q in _QUESTIONS), choices=_QUESTIONS),
                "kind of answer",
                "text",
            ),
            "default": Setting(LINE, "the answer if none is given; not for a password"),
            "required": Setting(FLAG, "whether it must be answered", False),
            "choices": Setting(Shape("lines", "a list of answers"), "the answers of a choice", []),
            "target": Setting(PATH, "file the answer goes to"),
            "template": Setting(TEXT, "text of that file, with {KEY} in it"),
        },
    ),
}

# What may stand at the top of a recipe beside the sections above.
EXTENDS = Shape("lines", "a list of recipe files")
SECTIONS = (*SETTINGS, *NAMED, "variables")
