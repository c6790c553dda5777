"""The build cache: packages by their sha256, and the results of steps by the hash of all that went into them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import exclusive_lock, sha256_file
from capsulekit.run import remove_apart


def default_cache_dir() -> Path:
    """CAPSULEKIT_CACHE_DIR, else capsulekit/ below XDG_CACHE_HOME or ~/.cache."""
    if set_ := os.environ.get("CAPSULEKIT_CACHE_DIR"):
        return Path(set_)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capsulekit"


class Cache:
    """A folder that may be removed at any time; nothing in it is used before it is checked."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        try:
            for sub in ("packages", "steps", "tmp", "apt"):
                (self.root / sub).mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise CapsulekitError(
                f"the cache folder {self.root} cannot be written: {error.strerror}",
                hint="choose another with --cache-dir, or run the same command with sudo",
            ) from None

    @contextmanager
    def scratch(self, prefix: str = "build") -> Iterator[Path]:
        """A private folder on the cache's file system, removed at the end of the ``with``."""
        with exclusive_lock(self.root / "tmp" / ".lock"):
            folder = Path(tempfile.mkdtemp(dir=self.root / "tmp", prefix=f"{prefix}-"))
            held = _claim(folder)
        try:
            yield folder
        finally:
            _remove(folder)
            if held is not None:
                os.close(held)

    def _sweep(self) -> None:
        """Remove the scratch folders of builds that were killed: nobody holds their lock any more."""
        with exclusive_lock(self.root / "tmp" / ".lock"):
            for folder in (self.root / "tmp").iterdir():
                if folder.is_dir() and (held := _claim(folder)) is not None:
                    _remove(folder)
                    os.close(held)

    def package(self, sha256: str) -> Path:
        """Where the package with that digest lies or would lie."""
        return self.root / "packages" / sha256[:2] / f"{sha256}.pkg"

    def has_package(self, sha256: str) -> bool:
        """Whether the package is there and still has its digest; a damaged one is removed."""
        path = self.package(sha256)
        if not path.exists():
            return False
        if sha256_file(path) == sha256:
            return True
        path.unlink(missing_ok=True)
        return False

    def checked_package(self, sha256: str) -> Path:
        """The package with that digest, for use now; raises CapsulekitError when it is missing or was damaged."""
        if not self.has_package(sha256):
            raise CapsulekitError(
                f"the package {sha256} is missing from the cache, or was damaged and has been removed",
                hint="run the same command again: it will be fetched",
            )
        return self.package(sha256)

    def add_package(self, source: Path, sha256: str) -> Path:
        """Take a downloaded file in (hard link or copy); raises CapsulekitError when it has another digest."""
        got = sha256_file(source)
        if got != sha256:
            source.unlink()  # or it would be taken for the package at the next try
            raise TrustError(
                f"{source.name}: the downloaded package has digest {got}, the lock says {sha256}",
                hint="the mirror serves something else under that name; try again later, or make the lock again",
            )
        target = self.package(sha256)
        target.parent.mkdir(exist_ok=True)
        with self.scratch("package") as folder:  # where the next build sweeps when this one is killed
            part = folder / target.name
            try:
                os.link(source, part)
            except OSError:
                shutil.copyfile(source, part)
            part.rename(target)
        return target

    def has_step(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a result of these inputs is there (it is checked when it is taken up)."""
        return (self.root / "steps" / f"{name}-{_identify(name, inputs)[1]}").is_dir()

    def step(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Step:
        """The result folder of a step: reused when the same inputs were built before, else made by ``make(folder)``.

        The identity is the sha256 of the name and every input; the result is checked against the digests noted when
        it was made, and only a complete one ever gets its name. Two builds that want the same step wait for each other.
        """
        text, identity = _identify(name, inputs)
        final = self.root / "steps" / f"{name}-{identity}"
        with exclusive_lock(self.root / "steps" / f".{name}-{identity}.lock"):
            if _intact(final):
                return Step(name, identity, final, reused=True)
            shutil.rmtree(final, ignore_errors=True)
            with self.scratch(name) as work, self._room():
                out = work / "out"
                out.mkdir()
                make(out)
                _note(out, text)
                out.rename(final)
        return Step(name, identity, final, reused=False)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CapsulekitError(
                f"the disk is full: no space left for the cache {self.root}",
                hint="free some space, or choose another place with --cache-dir",
            ) from None


def _identify(name: str, inputs: Mapping[str, Any]) -> tuple[str, str]:
    """What goes into a step as one text, and its sha256."""
    text = json.dumps({"step": name, **inputs}, sort_keys=True, separators=(",", ":"))
    return text, hashlib.sha256(text.encode()).hexdigest()


class Step:
    """A finished step: its files lie in ``folder``; ``reused`` says that nothing had to be made."""

    def __init__(self, name: str, identity: str, folder: Path, reused: bool) -> None:
        self.name, self.identity, self.folder, self.reused = name, identity, folder, reused
        noted = json.loads((folder / ".step.json").read_text())
        self._digests: dict[str, list[Any]] = noted["files"]

    def digest(self, name: str) -> str:
        """Hex sha256 of one result file, checked when the step was taken up."""
        return str(self._digests[name][1])

    def size(self, name: str) -> int:
        """Bytes of one result file."""
        return int(self._digests[name][0])


def _remove(folder: Path) -> None:
    """Remove a scratch folder, even under the last writes of a killed program's child, such as dpkg-deb's tar."""
    for pause in (0.0, 0.1, 0.2, 0.4, 0.8, 1.6):
        time.sleep(pause)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        if os.geteuid() != 0:  # a root file system made in a user namespace belongs to subordinate ids
            remove_apart(folder)


def _claim(folder: Path) -> int | None:
    """Lock a scratch folder: the descriptor to keep open, or None while its owner lives. Freed when that one dies."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _note(folder: Path, inputs: str) -> None:
    """Write the digests of a finished step's files beside them.

    Nothing is forced to the disk: a result is checked against its digests whenever it is taken up, so one that a crash
    has cut short is made again.
    """
    digests = {p.name: [p.stat().st_size, sha256_file(p)] for p in sorted(folder.iterdir())}
    (folder / ".step.json").write_text(json.dumps({"files": digests, "inputs": inputs}))


def _intact(folder: Path) -> bool:
    try:
        noted = json.loads((folder / ".step.json").read_text())["files"]
        present = {p.name for p in folder.iterdir()} - {".step.json"}
        return present == set(noted) and all(sha256_file(folder / n) == sha for n, (_, sha) in noted.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@cache
def code_identity(*packages: str) -> str:
    """Hex sha256 over the source files of the named packages or modules: changed code never reuses an old result."""
    digest = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise CapsulekitError(f"the package {package} is not installed completely")
        here = Path(spec.origin)
        files = (
            [here] if here.name != "__init__.py" else [p for p in here.parent.rglob("*") if p.suffix in (".py", ".sh")]
        )
        for path in sorted(files):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
