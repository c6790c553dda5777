"""`stage1 build`: packages chosen and fetched like a capsule's, then assembled by initramfs_builder."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from initramfs_builder.check.closure import Verdict, check_image, must_be_closed
from initramfs_builder.check.problem import Problem
from initramfs_builder.record import PATH as RECORD
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage1 import assemble
from initramfs_builder.store import Store

from capsulekit.build import fetch_packages
from capsulekit.cache import Cache, code_identity
from capsulekit.distro.base import Distro, distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_file, sha256_file
from capsulekit.kernel import unpack_kernel
from capsulekit.lock.model import Lock, Request
from capsulekit.progress import Progress
from capsulekit.stage1recipe import Stage1Recipe, load_stage1

NAMES = ("vmlinuz", "stage1.img", "stage1.json")
REMARKS = "remarks"


@dataclass(frozen=True)
class Stage1Result:
    """Where the files are, sizes in bytes, and remarks for the author."""

    folder: Path
    kernel_size: int
    image_size: int
    remarks: tuple[str, ...] = ()


def build_stage1(recipe: Path, out: Path, cache_dir: Path, progress: Progress) -> Stage1Result:
    """Write ``out/vmlinuz``, ``out/stage1.img`` and its record ``out/stage1.json``; raises CapsulekitError."""
    wanted = load_stage1(recipe)
    try:
        out.mkdir(parents=True, exist_ok=True)  # what would stop the last step is said before the first
    except (FileExistsError, NotADirectoryError):
        raise CapsulekitError(f"{out} is not a folder", hint="name the folder to write stage 1 to") from None
    cache = Cache(cache_dir)
    maker = distro(wanted.distro, wanted.release, wanted.arch, cache, wanted.components)
    with progress.step("choose packages"):
        lock = maker.resolve(Request("extract", (), (wanted.kernel,), wanted.packages))
    fetch_packages([p for packages in lock.sets.values() for p in packages], lock, maker, progress, False)
    with progress.step("assemble stage 1") as record:
        step = cache.step("stage1", _inputs(wanted, lock), lambda folder: _make(wanted, lock, maker, cache, folder))
        record.reused = step.reused
    for name in NAMES:
        with atomic_file(out / name) as target, (step.folder / name).open("rb") as source:
            while chunk := source.read(1 << 20):
                target.write(chunk)
    kernel_size, image_size = ((out / name).stat().st_size for name in NAMES[:2])
    return Stage1Result(out, kernel_size, image_size, tuple((step.folder / REMARKS).read_text().splitlines()))


def check_stage1(path: Path) -> Verdict:
    """Check what ``build_stage1`` wrote, or one image: the record beside it must be the one in it.

    Raises TrustError for a damaged image, OSError when it cannot be read.
    """
    verdict = check_image(path)
    beside = path / "stage1.json"
    own = verdict.image.file(RECORD)
    if path.is_dir() and own is not None and (not beside.is_file() or beside.read_bytes() != own.data):
        said = Problem("record", (str(beside),), "is not what the image itself says")
        verdict = Verdict(verdict.image, (*verdict.problems, said))
    return verdict


def _inputs(wanted: Stage1Recipe, lock: Lock) -> dict[str, Any]:
    shell = shell_dir("stage1")
    return {
        "recipe": asdict(wanted),
        "kernel": [p.sha256 for p in lock.sets["kernel"]],
        "packages": [p.sha256 for p in lock.sets["initrd"]],
        "epoch": lock.epoch,
        "tools": lock.tools,
        "shell": {str(p.relative_to(shell)): sha256_file(p) for p in sorted(shell.rglob("*")) if p.is_file()},
        "code": code_identity(
            "initramfs_builder",
            "capsulekit.stage1",
            "capsulekit.stage1recipe",
            "capsulekit.kernel",
            "capsulekit.apt.deb",
            "capsulekit.rpm",
            "capsulekit.distro",
        ),
    }


def _make(wanted: Stage1Recipe, lock: Lock, maker: Distro, cache: Cache, folder: Path) -> None:
    with cache.scratch() as scratch:
        tree, kernel = scratch / "tree", scratch / "kernel"
        with ThreadPoolExecutor(1) as pool:  # the kernel's package takes as long as all others
            indexed = pool.submit(unpack_kernel, lock.sets["kernel"], maker, kernel)
            for package in lock.sets["initrd"]:
                maker.unpack(package, tree)
            unpacked = indexed.result()
        store = Store(cache.root / "compressed", scratch)
        with (folder / "stage1.img").open("wb") as image:
            made = assemble(
                image, tree, kernel, unpacked.release, wanted.config, lock.epoch, wanted.level, store=store
            )  # fmt: skip
        must_be_closed(folder / "stage1.img", "this stage 1")
        (folder / "stage1.json").write_bytes(made.record)
        (folder / REMARKS).write_text("".join(f"{remark}\n" for remark in made.remarks))
        shutil.copyfile(unpacked.image, folder / "vmlinuz")
