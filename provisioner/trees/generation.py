"""A generation's tree: one file beside its sums, made when somebody first asks, and searched without being read.

    vnfs/NAME/IDENTITY/tree            what a node's local layers show, without the node's own one
    vnfs/NAME/IDENTITY/SHA256.tree     the list of one layer; the next generation takes those of layers it shares

They go with the generation, and are made again when they are missing. What private layers hold is for root alone.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from capsulekit.capsule.manifest import HYBRID, Layer
from capsulekit.edit import acls
from capsulekit.edit.stack import Image, merged, need_root, sweep
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_file
from provisioner.trees.entry import Entry, key_of, parse
from provisioner.trees.layers import stacked, walk_layer
from provisioner.vnfs.store import VnfsStore

TREE, SUFFIX = "tree", ".tree"
PUBLIC, PRIVATE = 0o644, 0o600


class Tree:
    """A sorted list in a file; memory does not grow with it. Use it as a context manager. Safe to share by threads."""

    def __init__(self, path: Path) -> None:
        """Open the list; raises OSError."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def get(self, path: str) -> Entry | None:
        """The entry of a path (escaped)."""
        at = self._first(key_of(path))
        line = self._line(at)
        return parse(line) if line.startswith(path + " ") else None

    def below(self, path: str) -> Iterator[Entry]:
        """Everything in a folder (escaped), at any depth, in order."""
        at, start = self._first(key_of(path) + "\x01"), path + "/"
        while (line := self._line(at)).startswith(start):
            yield parse(line)
            at += len(line) + 1

    def __iter__(self) -> Iterator[Entry]:
        at = 0
        while line := self._line(at):
            yield parse(line)
            at += len(line) + 1

    def _line(self, at: int) -> str:
        end = self._data.find(b"\n", at)
        return self._data[at:end].decode("ascii") if end >= 0 else ""

    def _first(self, key: str) -> int:
        """Where the first line begins that does not sort before ``key``."""
        low, high = 0, len(self._data)
        while low < high:
            middle = self._data.rfind(b"\n", low, (low + high) // 2) + 1 or low
            line = self._line(middle)
            if line and key_of(line.partition(" ")[0]) < key:
                low = middle + len(line) + 1
            else:
                high = middle
        return low


@contextmanager
def generation_tree(store: VnfsStore, name: str, identity: str) -> Iterator[Tree]:
    """The tree of a generation, made unless it is there (root only).

    Raises CapsulekitError when its layers are gone.
    """
    path = store.generation(name, identity) / TREE
    if not path.exists():
        told = store.manifest(name, identity)
        lists = [layer_list(store, name, identity, layer) for layer in told.layers]
        held = [store.small(name, layer.acl, identity) or b"" for layer in told.layers if layer.acl]
        private = any(layer.private for layer in told.layers)
        with ExitStack() as opened:
            layers = [iter(opened.enter_context(Tree(one))) for one in lists]
            _write(path, stacked(layers, acls.effective(held)), private)
    with Tree(path) as tree:
        yield tree


@contextmanager
def hybrid_tree(store: VnfsStore, name: str, identity: str) -> Iterator[Tree | None]:
    """The list of what a generation has on the network, or None when it has nothing there."""
    sha256 = store.digests(name, identity).get(HYBRID)
    if sha256 is None:
        yield None
        return
    with Tree(layer_list(store, name, identity, Layer(HYBRID, 0, sha256, 0))) as tree:
        yield tree


def layer_list(store: VnfsStore, name: str, identity: str, layer: Layer) -> Path:
    """The file with the list of one layer, made unless some generation has it."""
    path = store.generation(name, identity) / f"{layer.sha256}{SUFFIX}"
    if path.exists():
        return path
    for other in sorted((store.paths.state / "vnfs").glob(f"*/*/{path.name}")):
        with suppress(OSError):
            os.link(other, path)
            return path
    need_root("list a capsule's files")
    with views(store) as folder, merged([Image(store.blob(layer.sha256))], folder):
        _write(path, walk_layer(folder / "0"), layer.private)  # the layer as it is: its marks show
    return path


@contextmanager
def views(store: VnfsStore) -> Iterator[Path]:
    """A folder for ``capsulekit.edit.stack.merged``; those that killed commands left are cleared first."""
    parent = store.paths.state / "views"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(parent)
    yield Path(tempfile.mkdtemp(prefix="v", dir=parent))


def _write(path: Path, entries: Iterator[Entry], private: bool) -> None:
    try:
        with atomic_file(path, PRIVATE if private else PUBLIC) as out:
            for entry in entries:
                out.write(entry.line().encode("ascii") + b"\n")
    except OSError as wrong:
        raise CapsulekitError(f"can't list the files of {path.parent.parent.name}: {wrong.strerror}") from wrong


def differing(old: Iterable[Entry], new: Iterable[Entry]) -> Iterator[str]:
    """The paths (escaped) in which two sorted lists differ, in order."""
    done = object()
    ours, theirs = iter(old), iter(new)
    one, two = next(ours, done), next(theirs, done)
    while isinstance(one, Entry) or isinstance(two, Entry):
        if isinstance(one, Entry) and (not isinstance(two, Entry) or one.key < two.key):
            yield one.path
            one = next(ours, done)
        elif isinstance(two, Entry) and (not isinstance(one, Entry) or two.key < one.key):
            yield two.path
            two = next(theirs, done)
        else:
            if isinstance(one, Entry) and isinstance(two, Entry) and not one.same(two):
                yield two.path
            one, two = next(ours, done), next(theirs, done)


class Between:
    """The paths in which two generations differ, on the disk: found once, read for each of a thousand nodes."""

    def __init__(self, find: Callable[[], Iterator[str]]) -> None:
        """``find`` gives the paths; it is asked at once."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        paths = find()
        while some := list(islice(paths, 1000)):
            self._file.write("".join(f"{path}\n" for path in some).encode("ascii"))
        self._file.flush()

    def __iter__(self) -> Iterator[str]:
        # By number of byte, not by the file's own place: several threads read at once.
        at, rest = 0, b""
        while piece := os.pread(self._file.fileno(), 1 << 16, at):
            at += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode("ascii") for line in lines)

    def close(self) -> None:
        """Forget them."""
        self._file.close()
