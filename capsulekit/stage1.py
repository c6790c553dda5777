"""`stage1 build`: packages chosen and fetched like a capsule's, then assembled by initramfs_builder."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from initramfs_builder.resources import shell_dir
from initramfs_builder.stage1 import Stage1Config, assemble

from capsulekit.build import fetch_packages
from capsulekit.cache import Cache, code_identity
from capsulekit.distro.base import Distro, distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_file, sha256_file
from capsulekit.kernel import unpack_kernel
from capsulekit.lock.model import Lock, Request
from capsulekit.progress import Progress

NAMES = ("vmlinuz", "stage1.img")
SECTIONS: dict[str, dict[str, type]] = {
    "distro": {"name": str, "release": str, "arch": str},
    "packages": {"include": list},
    "kernel": {"package": str},
    "stage1": {"binaries": list, "applets": list, "modules": list, "files": list, "level": int},
}


@dataclass(frozen=True)
class Stage1Recipe:
    """What stage 1 is made of: a release, its packages, its kernel's package, and what goes into the image."""

    distro: str
    release: str
    arch: str
    packages: tuple[str, ...]
    kernel: str
    config: Stage1Config
    level: int


@dataclass(frozen=True)
class Stage1Result:
    """Where the two files are and their sizes in bytes."""

    folder: Path
    kernel_size: int
    image_size: int


def default_recipe() -> Path:
    """The shipped stage-1 recipe: in the source tree, or inside the installed package."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "recipes", here / "recipes"):
        if (path := folder / "stage1-debian-12.toml").exists():
            return path
    raise CapsulekitError("the shipped stage-1 recipe is missing", hint="install capsulekit again, or name a recipe")


def build_stage1(recipe: Path, out: Path, cache_dir: Path, progress: Progress) -> Stage1Result:
    """Write ``out/vmlinuz`` and ``out/stage1.img``; raises CapsulekitError."""
    wanted = load_stage1(recipe)
    try:
        out.mkdir(parents=True, exist_ok=True)  # what would stop the last step is said before the first
    except (FileExistsError, NotADirectoryError):
        raise CapsulekitError(f"{out} is not a folder", hint="name the folder to write stage 1 to") from None
    cache = Cache(cache_dir)
    maker = distro(wanted.distro, wanted.release, wanted.arch, cache)
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
    return Stage1Result(out, *((out / name).stat().st_size for name in NAMES))


def load_stage1(path: Path) -> Stage1Recipe:
    """Read and check a stage-1 recipe; raises CapsulekitError naming what is wrong."""
    table = _table(path)
    lists = {key: tuple(value) for key, value in table["stage1"].items() if isinstance(value, list)}
    return Stage1Recipe(
        distro=table["distro"]["name"],
        release=table["distro"]["release"],
        arch=table["distro"]["arch"],
        packages=tuple(table["packages"]["include"]),
        kernel=table["kernel"]["package"],
        config=Stage1Config(**lists),
        level=table["stage1"]["level"],
    )


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise CapsulekitError(f"{path}: the stage-1 recipe cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise CapsulekitError(f"{path}: the stage-1 recipe cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CapsulekitError(f"{path}: not valid TOML: {error}") from None
    checked: dict[str, Any] = {}
    for section, keys in SECTIONS.items():
        if not isinstance(table.get(section), dict):
            raise CapsulekitError(f"{path}: the section [{section}] is missing")
        for key, kind in keys.items():
            value = table[section].pop(key, None)
            texts = not isinstance(value, list) or all(isinstance(v, str) for v in value)
            if not isinstance(value, kind) or isinstance(value, bool) or not texts:
                what = "list of texts" if kind is list else kind.__name__
                raise CapsulekitError(f"{path}: [{section}] {key} must be a {what}")
            checked.setdefault(section, {})[key] = value
        if left := table.pop(section, {}):
            raise CapsulekitError(
                f"{path}: unknown key {next(iter(left))} in [{section}]", hint="known: " + ", ".join(keys)
            )
    if not 1 <= checked["stage1"]["level"] <= 22:
        raise CapsulekitError(f"{path}: [stage1] level must be a number from 1 to 22")
    if table:
        raise CapsulekitError(f"{path}: unknown section [{next(iter(table))}]", hint="known: " + ", ".join(SECTIONS))
    return checked


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
            "capsulekit.kernel",
            "capsulekit.apt.deb",
            "capsulekit.rpm",
            "capsulekit.distro",
        ),
    }


def _make(wanted: Stage1Recipe, lock: Lock, maker: Distro, cache: Cache, folder: Path) -> None:
    with cache.scratch() as scratch:
        tree, kernel = scratch / "tree", scratch / "kernel"
        for package in lock.sets["initrd"]:
            maker.unpack(package, tree)
        unpacked = unpack_kernel(lock.sets["kernel"], maker, kernel)
        with (folder / "stage1.img").open("wb") as image:
            assemble(image, tree, kernel, unpacked.release, wanted.config, lock.epoch, wanted.level)
        (folder / "vmlinuz").write_bytes(unpacked.image.read_bytes())
