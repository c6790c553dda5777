"""What the kernel and the programs expect to find: /init, folders to mount on, devices, links that lead somewhere, and
the configuration without which a program would not do what we count on.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from initramfs_builder.check.problem import Problem
from initramfs_builder.check.scripts import find_command
from initramfs_builder.image import Image

# What the first script mounts on before anything could make the folder, and where programs write.
FOLDERS = ("dev", "proc", "run", "sys", "tmp")
# The kernel opens the first one for /init before /dev is mounted; the second is where output goes until then.
DEVICES = {"dev/console": (5, 1), "dev/null": (1, 3)}
# What appears when the system runs: a link there may lead nowhere now.
RUNNING = re.compile(r"/(?:proc|sys|dev|run)(?:/.*)?")
# Names that the C library has in itself from 2.34 on (nss_files and nss_dns moved into it).
BUILTIN_SERVICES = frozenset(("files", "dns"))
BUILTIN_SINCE = "GLIBC_2.34"
NSSWITCH = "etc/nsswitch.conf"
# The C library's own files, by the databases of nsswitch.conf.
DATABASES = {"passwd": "etc/passwd", "group": "etc/group", "hosts": "etc/hosts"}


@dataclass(frozen=True)
class Wish:
    """A file that ``program`` wants when the image has it, and ``why`` it would not do without."""

    program: str
    path: str
    why: str


WISHES = (
    Wish("curl", NSSWITCH, "glibc would not look up names in files first"),
    Wish("curl", "etc/hosts", "localhost has no address without DNS"),
    Wish("id", "etc/passwd", "root has no name and no home"),
    Wish("id", "etc/group", "root's group has no name"),
)


def check_files(image: Image) -> Iterator[Problem]:
    """Everything of this kind that is missing or not what it should be."""
    yield from _init(image)
    for folder in FOLDERS:
        fact = image.fact(folder)
        if fact is None or not fact.is_folder:
            yield Problem("folder", ("init", folder), "not in the image" if fact is None else "is not a folder")
    for path, numbers in DEVICES.items():
        fact = image.fact(path)
        if fact is None or fact.rdev != numbers or fact.mode >> 12 != 2:  # S_IFCHR
            what = "not in the image" if fact is None else f"is not the character device {numbers[0]}:{numbers[1]}"
            yield Problem("device", ("the kernel", path), what)
    for path in image.dropped:
        yield Problem("entry", (path,), "comes before its folder, so the kernel drops it")
    for path, fact in sorted(image.facts.items()):
        if fact.target is not None and image.resolve(path) is None and not _appears(path, fact.target):
            yield Problem("link", (path, fact.target))
        if fact.broken is not None and fact.module is None and not path.endswith((".ko", ".xz", ".zst", ".gz")):
            yield Problem("entry", (path,), fact.broken)
    yield from _configuration(image)


def _init(image: Image) -> Iterator[Problem]:
    fact = image.fact("init")
    if fact is None:
        yield Problem("entry", ("the kernel", "init"))
    elif not fact.can_run:
        yield Problem("entry", ("the kernel", "init"), "cannot be executed")
    elif fact.elf is None and not (fact.data or b"").startswith(b"#!"):
        yield Problem("entry", ("the kernel", "init"), "is neither a program nor a script")


def _appears(path: str, target: str) -> bool:
    return RUNNING.fullmatch(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target))) is not None


def _configuration(image: Image) -> Iterator[Problem]:
    for wish in WISHES:
        if find_command(image, wish.program) is None and image.file(wish.path) is None:
            yield Problem("config", (wish.program, wish.path), f"not in the image, and without it {wish.why}")
    switch = image.file(NSSWITCH)
    for line in switch.text.splitlines() if switch is not None else ():
        database, _, services = line.partition("#")[0].partition(":")
        for service in re.sub(r"\[[^]]*\]", " ", services).split():
            yield from _service(image, database.strip(), service)


def _service(image: Image, database: str, service: str) -> Iterator[Problem]:
    """What looking something up by a service of nsswitch.conf takes."""
    said = f"{NSSWITCH} ({database}: {service})"
    if service == "files" and database in DATABASES and image.file(DATABASES[database]) is None:
        yield Problem("config", (said, DATABASES[database]))
    libc = [fact for fact in image.facts.values() if fact.elf is not None and fact.elf.soname == "libc.so.6"]
    for fact in libc:
        if service in BUILTIN_SERVICES and BUILTIN_SINCE in fact.words:
            continue
        name = f"libnss_{service}.so.2"
        held = (path for path, one in image.facts.items() if one.elf and path.rpartition("/")[2] == name)
        if not any(image.facts[path].elf for path in held):
            yield Problem("library", (said, name))
