"""What a finished image holds, path by path: the facts that a check asks for, read in one pass over its bytes.

A path is spoken of as the kernel makes it: an entry below a link to a folder (lib → usr/lib) lies in that folder, a
later entry replaces an earlier one, one whose folder is not there is dropped. Only the facts are kept: what programs
load, what modules say of themselves, and the text of small files.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from initramfs_builder.applets import applet_names
from initramfs_builder.elf import Elf, parse_elf
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.kmodule import Kmodule, read_kmodule
from initramfs_builder.unpack import Member, read_image

LINK_LIMIT = 40  # the kernel's own limit of links in one look-up
PROGRAM_MAX = 256 << 20
TEXT_MAX = 16 << 20
BUSYBOX = re.compile(r"busybox[^/]*")
TEXTS_MAX = 128 << 20
TEXT_SIZE = 64  # what Python needs for a text besides its letters
WORDS_MAX = 16 << 20  # of a program whose words are kept
MODULE = re.compile(r"(?:usr/)?lib/modules/[^/]+/.*\.ko(?:\.xz|\.zst|\.gz)?")
FIRMWARE = re.compile(r"(?:usr/)?lib/firmware/.*")  # for other processors, in any format
KEPT = re.compile(r"(?:init|etc/.*|(?:usr/)?lib/capsulekit/.*|(?:usr/)?lib/modules/[^/]+/modules\.[^/]+)")
# Texts that programs hold, each between two NULs, and a check compares: by the file's name.
WORDS = (
    # the folders a loader searches without being told to
    (re.compile(r"ld[-.].*"), re.compile(rb"\0(/(?:usr/)?lib[a-z0-9_/-]*/|/lib:[^\0]*)(?=\0)")),
    # what the C library opens by name, and how new it is
    (re.compile(r"libc[.-].*"), re.compile(rb"\0(GLIBC_[0-9.]+|lib[a-z_]+\.so\.[0-9]+|/lib:[^\0]*)(?=\0)")),
)


@dataclass(frozen=True)
class Fact:
    """What is known of one path.

    ``mode`` is a full st_mode, ``size`` in bytes, ``target`` what a link says, ``rdev`` (major, minor) of a device,
    ``elf`` what the loader reads, ``module`` what a kernel module says of itself, ``words`` what WORDS finds (of
    busybox its applets), ``data`` the bytes of scripts and configuration. ``broken`` says why a file cannot be read.
    """

    mode: int
    size: int = 0
    target: str | None = None
    rdev: tuple[int, int] = (0, 0)
    elf: Elf | None = None
    module: Kmodule | None = None
    words: frozenset[str] = frozenset()
    data: bytes | None = None
    broken: str | None = None

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """A folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def can_run(self) -> bool:
        """A file that root may execute."""
        return self.is_file and bool(self.mode & 0o111)

    @property
    def text(self) -> str:
        """The kept bytes as text; those that are not UTF-8 as surrogate escapes."""
        return (self.data or b"").decode("utf-8", "surrogateescape")


@dataclass
class Image:
    """An image's paths (relative, as they lie after unpacking) and their facts.

    ``name`` is what messages call the image, ``dropped`` are the entries whose folder is not there.
    """

    name: str
    facts: Mapping[str, Fact]
    dropped: tuple[str, ...] = ()
    _resolved: dict[str, str | None] = field(default_factory=dict, repr=False)

    def resolve(self, path: str) -> str | None:
        """Where a path leads, links followed inside the image; None when it leads nowhere."""
        if path not in self._resolved:
            self._resolved[path] = follow(self.facts, path)
        return self._resolved[path]

    def fact(self, path: str) -> Fact | None:
        """The facts of what a path leads to."""
        real = self.resolve(path)
        return None if real is None else self.facts.get(real, ROOT)

    def file(self, path: str) -> Fact | None:
        """The same for a regular file only."""
        fact = self.fact(path)
        return fact if fact is not None and fact.is_file else None

    def below(self, folder: str) -> Iterator[tuple[str, Fact]]:
        """Everything below a folder, links to it followed, in the order of the paths."""
        real = self.resolve(folder)
        if real is not None:
            start = f"{real}/" if real else ""
            yield from ((path, fact) for path, fact in sorted(self.facts.items()) if path.startswith(start))

    def without(self, paths: Iterable[str]) -> Image:
        """The image as it would be if these entries were not in it; what lies below a folder goes with it."""
        gone = tuple(paths)
        starts = tuple(f"{path}/" for path in gone)
        left = {p: fact for p, fact in self.facts.items() if p not in gone and not p.startswith(starts)}
        return Image(self.name, left, self.dropped)


ROOT = Fact(stat.S_IFDIR | 0o755)


def follow(facts: Mapping[str, Fact], path: str) -> str | None:
    """Where a path leads among these facts; None for a loop, a way through a file, or nothing there. "" is the root."""
    todo, done, hops = path.split("/")[::-1], list[str](), 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        fact = facts.get("/".join([*done, part]))
        if fact is None:
            return None
        if fact.target is None:
            if not fact.is_folder and any(rest not in ("", ".") for rest in todo):
                return None
            done.append(part)
            continue
        hops += 1
        if hops > LINK_LIMIT:
            return None
        done = [] if fact.target.startswith("/") else done
        todo += fact.target.split("/")[::-1]
    return "/".join(done)


def read_facts(path: Path) -> Image:
    """Read an image. Raises TrustError when it is damaged (see unpack), OSError when it cannot be read."""
    return collect(read_image(path), str(path))


def collect(members: Iterable[Member], name: str) -> Image:
    """The facts of an image's members, each of which is read while it is the current one."""
    facts: dict[str, Fact] = {}
    dropped: list[str] = []
    linked: dict[tuple[int, int, int, int], list[str]] = {}
    kept = 0
    for member in members:
        folder, _, last = member.path.rpartition("/")
        real = follow(facts, folder)
        if real is None or (real and not facts[real].is_folder):
            dropped.append(member.path)
            continue
        place = f"{real}/{last}".lstrip("/")
        if not place:
            continue
        fact = _fact(member, place)
        kept += _weight(fact)
        if kept > TEXTS_MAX:
            raise CapsulekitError(f"{name}: its scripts and tables are more than {TEXTS_MAX >> 20} MiB")
        facts[place] = fact
        if member.links > 1 and fact.is_file:
            same = linked.setdefault(member.inode, [])
            same.append(place)
            whole = max((facts[one] for one in same), key=lambda one: one.size)
            facts.update(dict.fromkeys(same, whole))
    return Image(name, facts, tuple(dropped))


def _weight(fact: Fact) -> int:
    """About how many bytes of text a fact keeps."""
    elf, module = fact.elf, fact.module
    texts = [*fact.words]
    if elf is not None:
        texts += [*elf.needed, *elf.rpath, *elf.runpath, *(name for wish in elf.dlopen for name in wish.sonames)]
    if module is not None:
        texts += [*module.depends, *module.firmware, *module.softdeps]
    return len(fact.data or b"") + sum(map(len, texts)) + TEXT_SIZE * len(texts)


def _fact(member: Member, path: str) -> Fact:
    plain = Fact(member.mode, member.size, member.target, member.rdev)
    if not plain.is_file or FIRMWARE.fullmatch(path):
        return plain
    if not member.size:
        return replace(plain, data=b"")
    if MODULE.fullmatch(path):
        return _module(plain, member, path)
    head = member.read(4)
    if head == b"\x7fELF":
        return _program(plain, member, head, path)
    if head[:2] == b"#!" or KEPT.fullmatch(path):
        if member.size > TEXT_MAX:
            return replace(plain, broken=f"{member.size} bytes, more than a script or a table may have")
        return replace(plain, data=head + member.read())
    return plain


def _module(plain: Fact, member: Member, path: str) -> Fact:
    try:
        return replace(plain, module=read_kmodule(_within(member), path))
    except CapsulekitError as error:
        return replace(plain, broken=error.message)


def _program(plain: Fact, member: Member, head: bytes, path: str) -> Fact:
    try:
        data = head + _within(member)
        elf = parse_elf(io.BytesIO(data), path)
    except CapsulekitError as error:
        return replace(plain, broken=error.message)
    names = {path.rpartition("/")[2], elf.soname if elf and elf.soname else ""}
    patterns = [pattern for of, pattern in WORDS if any(of.fullmatch(name) for name in names)]
    if len(data) > WORDS_MAX:
        patterns, names = [], set()
    words = frozenset(os.fsdecode(hit[1]) for pattern in patterns for hit in pattern.finditer(data))
    if any(map(BUSYBOX.fullmatch, names)):
        words |= applet_names(data)
    return replace(plain, elf=replace(elf, names=b"") if elf else None, words=words)


def _within(member: Member) -> bytes:
    if member.size > PROGRAM_MAX:
        raise CapsulekitError(f"{member.path}: {member.size} bytes, more than a program or a module may have")
    return member.read()
