"""The rootfs step: packages installed from the cache, the recipe's changes, the normaliser, one squashfs layer."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_from_bytes

from capsulekit.cache import Cache, Step, code_identity
from capsulekit.distro.base import Distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.lock.model import Lock
from capsulekit.recipe.model import Recipe
from capsulekit.rootfs.normalise import VERSION, Ledger, Normaliser

LAYER = "rootfs.squashfs"
ACL = "rootfs.acl"


@dataclass(frozen=True)
class RootFacts:
    """What later steps need to know of the root: bytes unpacked, merged /usr, normaliser rows that never matched."""

    unpacked: int
    paths: int
    merged_usr: bool
    acls: int
    unmatched: tuple[str, ...]


def rootfs_step(recipe: Recipe, lock: Lock, distro: Distro, cache: Cache) -> Step:
    """Make (or reuse) the rootfs layer."""
    return cache.step("rootfs", inputs(recipe, lock), lambda out: _make(recipe, lock, distro, cache, out))


def facts(step: Step) -> RootFacts:
    """What was noted when the root was made."""
    noted = json.loads((step.folder / "facts.json").read_text())
    return RootFacts(**{**noted, "unmatched": tuple(noted["unmatched"])})


def inputs(recipe: Recipe, lock: Lock) -> dict[str, Any]:
    """Everything that decides the rootfs layer's bytes."""
    return {
        "packages": [p.sha256 for p in lock.sets["rootfs"]],
        "init": recipe.init,
        "base": recipe.base,
        "epoch": lock.epoch,
        "tools": lock.tools,
        "arch": lock.arch,
        "level": recipe.level,
        "files": [[f.path, f.mode, sha256_bytes(f.data)] for f in recipe.files],
        "scripts": [[s.name, sha256_bytes(s.data)] for s in recipe.scripts],
        "units": [recipe.enable, recipe.disable, recipe.mask],
        "normaliser": VERSION,
        "code": code_identity("capsulekit.rootfs", "capsulekit.apt", "capsulekit.image"),
    }


def _make(recipe: Recipe, lock: Lock, distro: Distro, cache: Cache, out: Path) -> None:
    with cache.scratch() as work:
        # mmdebstrap's helpers drop privileges; the folder itself must be reachable for them, its content is public.
        work.chmod(0o755)
        _prepare(recipe, work)
        normaliser = Normaliser(lock.epoch, recipe.init)
        with (
            _streamed(lambda pipe: distro.bootstrap(lock, recipe.base, work, pipe)) as tar,
            layer_from_tar(out / LAYER, lock.epoch, recipe.level) as layer,
        ):
            ledger = normaliser.stream(tar, layer)
    if ledger.paths == 0:
        raise CapsulekitError("the root file system came out empty")
    if not ledger.has_init:
        raise CapsulekitError(
            f"the root has no {recipe.init}, which [capsule] init names as its first program",
            hint="install one, such as systemd-sysv, or name the right one",
        )
    _note(ledger, out)


def _note(ledger: Ledger, out: Path) -> None:
    if ledger.acls:
        (out / ACL).write_bytes(acl_text(ledger.acls))
    noted = {
        "unpacked": ledger.unpacked,
        "paths": ledger.paths,
        "merged_usr": ledger.merged_usr,
        "acls": len(ledger.acls),
        "unmatched": ledger.unmatched(),
    }
    (out / "facts.json").write_text(json.dumps(noted))


def acl_text(acls: list[tuple[str, str, bytes]]) -> bytes:
    """The layer's ACL list: sorted lines of percent-escaped path, ``access`` or ``default``, and the entries.

    ``acls`` are (path, kind, value of the system.posix_acl_* attribute).
    """
    lines = []
    for path, kind, value in acls:
        name = quote_from_bytes(path.encode("utf-8", "surrogateescape"))
        lines.append(f"{name}\t{kind}\t{_acl_entries(path, value)}\n")
    return "".join(sorted(lines)).encode()


ACL_TAGS = {1: "u:", 2: "u", 4: "g:", 8: "g", 16: "m:", 32: "o:"}


def _acl_entries(path: str, value: bytes) -> str:
    """setfacl's short spelling of one attribute: version 2, then (tag, bits, id) (linux/posix_acl_xattr.h)."""
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != 2:
        raise CapsulekitError(f"/{path} has an ACL of an unknown form")
    entries = []
    for tag, bits, number in struct.iter_unpack("<HHI", value[4:]):
        if tag not in ACL_TAGS:
            raise CapsulekitError(f"/{path} has an ACL with an unknown entry {tag}")
        who = ACL_TAGS[tag] if ACL_TAGS[tag].endswith(":") else f"{ACL_TAGS[tag]}:{number}"
        entries.append(f"{who}:{''.join(c if bits & b else '-' for c, b in (('r', 4), ('w', 2), ('x', 1)))}")
    return ",".join(entries)


def _prepare(recipe: Recipe, work: Path) -> None:
    """Lay out what customize.sh reads: files and content/, scripts/, units."""
    content = work / "content"
    content.mkdir()
    for number, file in enumerate(recipe.files):
        (content / str(number)).write_bytes(file.data)
    lines = [f"{number} {file.mode:04o} {file.path}\n" for number, file in enumerate(recipe.files)]
    (work / "files").write_text("".join(lines), encoding="utf-8")
    scripts = work / "scripts"
    scripts.mkdir()
    for number, script in enumerate(recipe.scripts):
        (scripts / f"{number:04}-{script.name}").write_bytes(script.data)
    verbs = (("enable", recipe.enable), ("disable", recipe.disable), ("mask", recipe.mask))
    (work / "units").write_text("".join(f"{verb} {unit}\n" for verb, units in verbs for unit in units))


@contextmanager
def _streamed(produce: Any) -> Iterator[IO[bytes]]:
    """Run ``produce(pipe)`` in a thread and give the reading end; its error wins over the reader's."""
    reading, writing = os.pipe()

    def work() -> None:
        with os.fdopen(writing, "wb") as pipe:
            produce(pipe)

    with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb", buffering=1 << 20) as source:
        job = pool.submit(work)
        try:
            yield source
            while source.read(1 << 20):  # tar pads its end: let the writer finish
                pass
        except BaseException:
            # A stream that broke off means that the producer has just failed; else it fails because we stop reading.
            ended_first = bool(wait([job], timeout=1).done)
            source.close()
            if not isinstance(job.exception(), CapsulekitError) or not ended_first:
                raise
        job.result()
