"""The rootfs step: packages installed from the cache, the recipe's changes, the normaliser, one squashfs layer."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_from_bytes

from capsulekit.cache import Cache, Step, code_identity
from capsulekit.distro.base import Distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.lock.model import Lock, Package
from capsulekit.memory import room_for
from capsulekit.metadata.licences import Licences
from capsulekit.progress import Progress
from capsulekit.recipe.model import Recipe
from capsulekit.rootfs.hybrid import Hybrid, describe
from capsulekit.rootfs.normalise import VERSION, Ledger, Normaliser
from capsulekit.rootfs.table import regenerate_commands
from capsulekit.run import PLAIN, failed, run_apart

LAYER = "rootfs.squashfs"
ACL = "rootfs.acl"
HYBRID_LAYER = "hybrid.squashfs"
TAR = "root.tar"
LICENCES = "licences.json"
# A recipe's files below these folders are what the caches are made of (as are whatever its scripts do).
CACHED = ("/usr/lib/python3", "/usr/local/lib/python3", "/usr/share/fonts", "/usr/local/share/fonts")
SCRIPT = Path(__file__).with_name("customize.sh")
PURPOSE = "bring the recipe's parts into the root"
# The status of customize.sh after the shell of --break.
STOPPED = 90


class Stopped(CapsulekitError):
    """The build ended in the shell that --break opened."""


@dataclass(frozen=True)
class RootFacts:
    """What later steps need to know of the root.

    ``unpacked`` is in bytes. ``owners`` says which paths a part of the recipe changed ("users", "services",
    "script NAME", "caches"), ``licences`` what the packages' own papers say, ``hybrid`` one line per hybridize glob.
    """

    unpacked: int
    paths: int
    merged_usr: bool
    acls: int
    unmatched: tuple[str, ...]
    owners: Mapping[str, Sequence[str]]
    licences: Mapping[str, str]
    hybrid: tuple[str, ...]


def install_inputs(recipe: Recipe, lock: Lock, distro: Distro, stage: int) -> dict[str, Any]:
    """Everything that decides the root with the packages of the stages up to ``stage``."""
    return {
        "distro": [lock.distro, lock.release, lock.arch],
        "packages": [[p.sha256 for p in lock.sets["rootfs"] if p.stage == n] for n in range(stage + 1)],
        "base": recipe.base,
        "epoch": lock.epoch,
        "tools": lock.tools,
        "caches": regenerate_commands(),
        "code": code_identity(*distro.code, "capsulekit.namespace", "capsulekit.run"),
    }


def inputs(recipe: Recipe, lock: Lock, distro: Distro) -> dict[str, Any]:
    """Everything that decides the rootfs layer's bytes."""
    return {
        "installed": install_inputs(recipe, lock, distro, _last_stage(lock)),
        "init": recipe.init,
        "level": recipe.level,
        "groups": [asdict(g) for g in recipe.groups],
        "users": [asdict(u) for u in recipe.users],
        "files": [[f.path, f.mode, f.owner, f.group, sha256_bytes(f.data)] for f in recipe.files],
        "scripts": [[s.name, sha256_bytes(s.data)] for s in recipe.scripts],
        "units": [recipe.enable, recipe.disable, recipe.mask],
        "hybridize": recipe.hybridize,
        "normaliser": VERSION,
        "code": code_identity(
            "capsulekit.rootfs", "capsulekit.image", "capsulekit.metadata.licences", "initramfs_builder"
        ),
    }


def _last_stage(lock: Lock) -> int:
    return max((p.stage for p in lock.sets["rootfs"]), default=0)


def unbuilt_packages(recipe: Recipe, lock: Lock, distro: Distro, cache: Cache) -> list[Package]:
    """The packages of the stages that have to be installed anew; none when the layer itself is there."""
    if cache.has_step("rootfs", inputs(recipe, lock, distro)):
        return []
    made = -1
    for stage in range(_last_stage(lock) + 1):
        if cache.has_step("install", install_inputs(recipe, lock, distro, stage)):
            made = stage
    return [p for p in lock.sets["rootfs"] if p.stage > made]


def rootfs_step(
    recipe: Recipe, lock: Lock, distro: Distro, cache: Cache, progress: Progress, stop_after: str = ""
) -> Step:
    """Make (or reuse) the rootfs layer; with ``stop_after`` a shell opens after that step, and Stopped is raised."""

    def make(out: Path) -> None:
        installed = _installed(recipe, lock, distro, cache, progress, _last_stage(lock))
        _make(recipe, lock, distro, cache, installed.folder, out, stop_after)

    identity = inputs(recipe, lock, distro)
    if stop_after:
        with cache.scratch() as nowhere:
            make(nowhere)
        raise CapsulekitError(f"there is no step {stop_after}", hint="known: " + ", ".join(break_points(recipe)))
    return cache.step("rootfs", identity, make)


def break_points(recipe: Recipe) -> list[str]:
    """The steps after which ``build --break`` can open a shell."""
    return ["install", "users", "files", "services", *(f"script {s.name}" for s in recipe.scripts), "caches"]


def _installed(recipe: Recipe, lock: Lock, distro: Distro, cache: Cache, progress: Progress, stage: int) -> Step:
    """The root with the packages of the stages up to ``stage``, as a tar; the stages before are made when lacking."""

    def make(out: Path) -> None:
        before, licences = None, {}
        if stage > 0:
            done = _installed(recipe, lock, distro, cache, progress, stage - 1).folder
            before, licences = done / TAR, json.loads((done / LICENCES).read_text())
        packages = [p for p in lock.sets["rootfs"] if p.stage == stage]
        with (
            progress.step(f"install {len(packages)} packages"),
            cache.scratch() as work,
            (out / TAR).open("wb") as tar,
        ):
            # Every stage ends with its caches made, so that a further stage leaves those before as they are.
            _write_lines(work / "caches", regenerate_commands())
            distro.install(lock, recipe.base, stage, before, work, tar)
        (out / LICENCES).write_text(json.dumps({**licences, **distro.licences(packages)}, sort_keys=True))

    return cache.step("install", install_inputs(recipe, lock, distro, stage), make)


def facts(step: Step) -> RootFacts:
    """What was noted when the root was made."""
    noted = json.loads((step.folder / "facts.json").read_text())
    return RootFacts(**{**noted, "unmatched": tuple(noted["unmatched"]), "hybrid": tuple(noted["hybrid"])})


def _make(
    recipe: Recipe, lock: Lock, distro: Distro, cache: Cache, installed: Path, out: Path, stop_after: str
) -> None:
    licences = Licences()
    with cache.scratch() as work:
        _prepare(recipe, distro, work, stop_after)
        with ExitStack() as stack:
            hybrid, shared = None, None
            if recipe.hybridize:
                # What moves depends on what else is there (hard links, the boot closure): look first, then stream.
                finished = work / TAR
                with finished.open("wb") as tar:
                    _customize(lock, installed / TAR, work, tar, bool(stop_after))
                hybrid = Hybrid(recipe.hybridize, json.loads((work / "closure.json").read_text()))
                hybrid.scan(finished)
                source: IO[bytes] = stack.enter_context(finished.open("rb"))
                if not hybrid.empty:
                    shared = stack.enter_context(
                        layer_from_tar(out / HYBRID_LAYER, lock.epoch, recipe.level, exported=True)
                    )
            else:
                source = stack.enter_context(
                    _streamed(lambda pipe: _customize(lock, installed / TAR, work, pipe, bool(stop_after)))
                )
            layer = stack.enter_context(layer_from_tar(out / LAYER, lock.epoch, recipe.level))
            normaliser = Normaliser(lock.epoch, recipe.init, distro.purl[0], hybrid, licences)
            ledger = normaliser.stream(source, layer, shared)
        owners = _owners(work)
    if ledger.paths == 0:
        raise CapsulekitError("the root file system came out empty")
    if not ledger.has_init:
        raise CapsulekitError(
            f"the root has no {recipe.init}, which [capsule] init names as its first program",
            hint="install one, such as systemd-sysv, or name the right one",
        )
    known = json.loads((installed / LICENCES).read_text())
    _note(ledger, owners, {**licences.result(), **known}, out)


def _customize(lock: Lock, installed: Path, work: Path, out: IO[bytes], terminal: bool) -> None:
    """Unpack the installed root, let customize.sh change it, stream it to ``out``. Raises CommandFailed or Stopped."""
    argv: list[str | Path] = ["sh", SCRIPT, work, installed, sys.executable]
    log = work / "log"
    memory = room_for(installed.stat().st_size)
    env = {**PLAIN, "HOME": "/root", "TZ": "UTC", "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(lock.epoch)}
    with log.open("wb") as errors:
        status = run_apart(
            argv, purpose=PURPOSE, env=env, cwd=work, stdout=out, stderr=errors, terminal=terminal, memory=memory
        )  # fmt: skip
    if status == STOPPED:
        raise Stopped("the build was stopped where --break said", hint="no capsule was made")
    said = log.read_bytes()
    if status != 0:
        raise failed(argv, PURPOSE, status, said)
    # No tar format has sockets: GNU tar says so, leaves them out and exits 0. Nothing must be lost in silence.
    if lost := [line for line in said.decode("utf-8", "replace").splitlines() if "socket ignored" in line]:
        raise CapsulekitError(
            f"a capsule cannot hold a socket: {lost[0].removeprefix('tar: ')}", hint="remove it in a [scripts] script"
        )


def _owners(work: Path) -> dict[str, list[str]]:
    """Which paths each step changed, in the order of the steps' names."""
    found = {}
    for changed in sorted((work / "changed").iterdir()):
        paths = changed.read_bytes().split(b"\0")[:-1]
        found[changed.name] = sorted(p.decode("utf-8", "surrogateescape") for p in paths)
    return {name: paths for name, paths in found.items() if paths}


def _note(ledger: Ledger, owners: dict[str, list[str]], licences: dict[str, str], out: Path) -> None:
    if ledger.acls:
        (out / ACL).write_bytes(acl_text(ledger.acls))
    noted = {
        "unpacked": ledger.unpacked,
        "paths": ledger.paths,
        "merged_usr": ledger.merged_usr,
        "acls": len(ledger.acls),
        "unmatched": ledger.unmatched(),
        "owners": owners,
        "licences": licences,
        "hybrid": describe(ledger.moved, ledger.kept),
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


def _prepare(recipe: Recipe, distro: Distro, work: Path, stop_after: str) -> None:
    """Lay out what customize.sh reads (see there)."""

    def lines(name: str, rows: Iterable[Sequence[object]]) -> None:
        _write_lines(work / name, rows)

    for folder in ("content", "scripts", "keys"):
        (work / folder).mkdir()
    for number, file in enumerate(recipe.files):
        (work / "content" / str(number)).write_bytes(file.data)
    lines("files", [(n, f"{f.mode:04o}", f.owner, f.group, f.path) for n, f in enumerate(recipe.files)])
    for number, script in enumerate(recipe.scripts):
        (work / "scripts" / f"{number:04}-{script.name}").write_bytes(script.data)
    lines("groups", [(g.name, _or_dash(g.gid)) for g in recipe.groups])
    lines("users", [
        (u.name, _or_dash(u.uid), _or_dash(u.gid), "yes" if u.system else "no", u.home or "-", u.shell or "-",
         ",".join(u.groups) or "-")
        for u in recipe.users
    ])  # fmt: skip
    (work / "passwords").write_text("".join(f"{u.name}:{u.password}\n" for u in recipe.users if u.password))
    for user in recipe.users:
        if user.ssh_keys:
            (work / "keys" / user.name).write_text("".join(f"{key}\n" for key in user.ssh_keys), encoding="utf-8")
    verbs = (("enable", recipe.enable), ("disable", recipe.disable), ("mask", recipe.mask))
    lines("units", [(verb, unit) for verb, units in verbs for unit in units])
    if recipe.scripts or any(f.path.startswith(CACHED) for f in recipe.files):
        lines("caches", regenerate_commands())
    if recipe.hybridize:
        (work / "closure").write_text(recipe.init)
    if stop_after:
        (work / "break").write_text(stop_after)
    distro.finish(work)


def _write_lines(path: Path, rows: Iterable[Sequence[object]]) -> None:
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


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
