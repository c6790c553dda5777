"""unsquashfs: what a layer holds, read out of the middle of a capsule file; nothing is mounted or unpacked.

unsquashfs writes a file system as a "pseudo file" (squashfs-tools, README, "Pseudo file examples"): one line a path,
then the bytes of all regular files one after the other. It shows no extended attributes.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import CHUNK
from capsulekit.run import CommandFailed, ToolMissing, run

PURPOSE = "list a layer"
FOLDER, FILE, LINK = "folder", "file", "link"
_KINDS = {"D": FOLDER, "R": FILE, "S": LINK, "B": "block device", "C": "character device"}
# A name's blanks, quotes and backslashes are escaped by a backslash; a line break is not (squashfs-tools 4.5).
_NAME = rb"((?:[^\\ ]|\\.)+)"
_NODE = re.compile(_NAME + rb" ([DRSBCI]) \S+ ([0-7]+) ([0-9]+) ([0-9]+)(?: (.*))?", re.DOTALL)
_HARD = re.compile(_NAME + rb" L " + _NAME, re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_DATA = b"# START OF DATA - DO NOT MODIFY\n"
_LONGEST = 1 << 16  # bytes; a path and a link's target end at 4096 each


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a layer. ``size`` in bytes (files only); ``target`` of a link, "MAJOR:MINOR" of a device.

    ``hard`` is the path, sorted before this one, that is the same file; ``digest`` is the hex sha256 of a file's
    content where it was asked for.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    target: str = ""
    hard: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Layer:
    """A squashfs in a file: ``offset`` in bytes."""

    image: Path
    offset: int = 0


def list_layer(layer: Layer) -> dict[str, Entry]:
    """Every path of a layer, relative to its root ("" is the root itself), bytes that are no UTF-8 as surrogates."""
    with _opened(layer, ()) as opened:
        return opened.entries


def list_digested(layer: Layer) -> dict[str, Entry]:
    """The same with every file's sha256: the whole layer is read once, and only the listing is kept."""
    digests: dict[str, str] = {}

    def digest(path: str, size: int, data: IO[bytes]) -> None:
        summed = hashlib.sha256()
        for chunk in _pieces(path, size, data):
            summed.update(chunk)
        digests[path] = summed.hexdigest()

    entries = _read(layer, (), digest)
    for path, entry in entries.items():
        if entry.kind == FILE:
            entries[path] = replace(entry, digest=digests[entry.hard or path])
    return entries


def read_files(layer: Layer, globs: Sequence[str], limit: int = 16 << 20) -> dict[str, bytes]:
    """The content of the regular files that a glob names (shell's rules, ``*`` does not cross ``/``).

    For small files: raises TrustError when one has more than ``limit`` bytes.
    """
    found: dict[str, bytes] = {}

    def keep(path: str, size: int, data: IO[bytes]) -> None:
        if size > limit:
            raise TrustError(f"/{path} in {layer.image} has {size} bytes; at most {limit} are expected")
        found[path] = b"".join(_pieces(path, size, data))

    entries = _read(layer, globs, keep)
    return found | {p: found[e.hard] for p, e in entries.items() if e.hard in found}


def copy_file(layer: Layer, path: str, out: IO[bytes]) -> None:
    """Stream one regular file into ``out``; raises TrustError when the layer has no such file."""
    name = path.strip("/")
    copied = []

    def copy(got: str, size: int, data: IO[bytes]) -> None:
        for chunk in _pieces(got, size, data):
            if got == name:
                out.write(chunk)
        copied.append(got)

    _read(layer, [re.sub(r"([*?[\\])", r"\\\1", name)], copy)
    if name not in copied:
        raise TrustError(f"{layer.image} holds no file /{name}")


def _read(layer: Layer, globs: Sequence[str], take: Callable[[str, int, IO[bytes]], None]) -> dict[str, Entry]:
    """List, then hand every file's bytes to ``take`` in the order in which they come."""
    with _opened(layer, globs) as opened:
        at = 0
        for place, size, path in sorted((place, opened.entries[p].size, p) for p, place in opened.places.items()):
            if place != at:
                raise TrustError(f"the layer is damaged: the data of /{path} does not begin where its listing says")
            take(path, size, opened.data)
            at += size
        opened.finish()
    return opened.entries


def _pieces(path: str, size: int, data: IO[bytes]) -> Iterator[bytes]:
    while size:
        chunk = data.read(min(CHUNK, size))
        if not chunk:
            raise TrustError(f"the layer is damaged: the data of /{path} breaks off")
        size -= len(chunk)
        yield chunk


@dataclass(frozen=True)
class _Opened:
    """The listing, where each file's data begins (bytes after the listing), and the stream with that data."""

    entries: dict[str, Entry]
    places: dict[str, int]
    data: IO[bytes]
    job: Future[None]

    def finish(self) -> None:
        """Raises what unsquashfs says, once all has been read."""
        if self.data.read(1):
            raise TrustError("the layer is damaged: there is more data than its listing says")
        self.job.result()


@contextmanager
def _opened(layer: Layer, globs: Sequence[str]) -> Iterator[_Opened]:
    """Run unsquashfs. It writes a pseudo file to a named file only, so it is given our own pipe's name in /proc."""
    reading, writing = os.pipe()
    argv = ["unsquashfs", "-no-progress", "-quiet", "-offset", str(layer.offset)]
    argv += ["-pf", f"/proc/{os.getpid()}/fd/{writing}", str(layer.image), *globs]

    def work() -> None:
        try:
            run(argv, purpose=PURPOSE, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"})
        finally:
            os.close(writing)

    with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb", buffering=CHUNK) as source:
        job = pool.submit(work)
        try:
            yield _Opened(*_entries(source), source, job)
        except (TrustError, CommandFailed) as wrong:
            source.close()
            raise _reason(job, layer, wrong) from None
        finally:
            source.close()  # unsquashfs ends at its next write


def _reason(job: Future[None], layer: Layer, wrong: CapsulekitError) -> CapsulekitError:
    """When unsquashfs itself failed, its words say why; when it ended because we stopped reading, ours do."""
    said = job.exception()
    if isinstance(said, ToolMissing):
        return said
    if isinstance(said, CapsulekitError) and not (isinstance(said, CommandFailed) and said.status == -signal.SIGPIPE):
        wrong = said
    return TrustError(f"{layer.image}: {wrong.message}")


def _entries(source: IO[bytes]) -> tuple[dict[str, Entry], dict[str, int]]:
    entries: dict[str, Entry] = {}
    places: dict[str, int] = {}
    pending = b""
    while (line := source.readline(_LONGEST)) != _DATA:
        if not line:
            raise TrustError("the layer is damaged: its listing breaks off")
        if not pending and line == b"#\n":
            continue
        pending += line
        if len(pending) > _LONGEST:
            raise TrustError("the layer is damaged: a path is too long")
        # A line that is no record is the beginning of a name with a line break.
        if _take(pending.removesuffix(b"\n"), entries, places):
            pending = b""
    source.readline()  # the "#" that closes the heading
    return entries, places


def _take(record: bytes, entries: dict[str, Entry], places: dict[str, int]) -> bool:
    if found := _HARD.fullmatch(record):
        first = _name(found[2])
        if first in entries:
            entries[_name(found[1])] = replace(entries[first], hard=first)
            return True
    node = _NODE.fullmatch(record)
    if not node:
        return False
    name, letter, rest = _name(node[1]), node[2].decode(), node[6] or b""
    kind, size, target = _KINDS.get(letter, "socket" if rest == b"s" else "fifo"), 0, ""
    if letter == "R":
        size, places[name] = (int(number) for number in rest.split(b" ")[:2])
    elif letter == "S":
        target = rest.decode("utf-8", "surrogateescape")
    elif letter in "BC":
        target = rest.decode().replace(" ", ":")
    entries["" if name == "/" else name] = Entry(kind, int(node[3], 8), int(node[4]), int(node[5]), size, target)
    return True


def _name(escaped: bytes) -> str:
    return _ESCAPED.sub(rb"\1", escaped).decode("utf-8", "surrogateescape")
