"""Kernel modules and firmware: what modprobe will look for and what the modules themselves say they need.

Every module of modules.dep, and what it depends on, is a file of the image, built for its kernel and of a kind that the
image's modprobe unpacks; kmod's binary indexes say what the text files say; soft dependencies and the names that were
asked for are there or built in; firmware that a module names is there or recorded as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from initramfs_builder.check.libraries import load
from initramfs_builder.check.problem import Problem
from initramfs_builder.check.record import Record
from initramfs_builder.check.scripts import find_command
from initramfs_builder.depmod import COMPRESSED, module_of, spelled
from initramfs_builder.drivers import ModuleIndex, module_index
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.image import Image
from initramfs_builder.modindex import read_values
from initramfs_builder.patterns import Patterns

MODPROBE = "sbin/modprobe"  # where the kernel calls it (CONFIG_MODPROBE_PATH)
BINARY = ("dep", "alias", "symbols", "builtin", "builtin.alias")
# The library with which kmod unpacks a module.
UNPACKED_BY = {".zst": "libzstd.so", ".xz": "liblzma.so", ".gz": "libz.so"}


def check_modules(image: Image, record: Record) -> Iterator[Problem]:
    """Everything about modules that is not as it must be."""
    try:
        index = module_index(image)
    except CapsulekitError as error:
        yield Problem("module", ("lib/modules",), error.message)
        return
    if index.release != record.release:
        yield Problem("record", ("lib/modules",), f"are those of kernel {index.release}, not of {record.release}")
    yield from _indexed(index)
    yield from _wanted(index, record)
    yield from _own_words(index)
    yield from _firmware(index, record)
    yield from _modprobe(index)


def _indexed(index: ModuleIndex) -> Iterator[Problem]:
    """Files of modules.dep that are not there, and files that it does not name."""
    if index.image.file(f"{index.folder}/modules.dep") is None:
        yield Problem("module", ("modprobe", f"{index.folder}/modules.dep"))
    named = {need for needs in index.deps.values() for need in needs}
    above = _above(index)
    if index.builtin and index.image.file(f"{index.folder}/modules.builtin.modinfo") is None:
        yield Problem("module", ("modules.builtin", f"{index.folder}/modules.builtin.modinfo"))
    for need in sorted({*index.deps, *named}):
        if index.fact(need) is None:
            yield Problem("module", (*(_way(above, need) or ("modules.dep",)), need))
        elif need not in index.deps:
            yield Problem("module", (*_way(above, need), need), "has no line of its own in modules.dep")
    for path, fact in index.image.below(index.folder):
        file = path[len(index.folder) + 1 :]
        if fact.broken and fact.is_file:
            yield Problem("module", (file,), fact.broken)
        elif fact.module is not None and file not in index.deps:
            yield Problem("module", (file,), "is not in modules.dep, so modprobe cannot find it")


def _above(index: ModuleIndex) -> dict[str, str]:
    """File → one that needs it: by its own word where one says so, as modules.dep names what is further down too."""
    above: dict[str, str] = {}
    for file, needs in sorted(index.deps.items()):
        fact = index.fact(file)
        said = map(spelled, fact.module.depends) if fact is not None and fact.module is not None else ()
        own = set(said)
        for need in needs:
            if module_of(need) in own or need not in above:
                above[need] = file
    return above


def _way(above: dict[str, str], file: str) -> tuple[str, ...]:
    """From a module that nothing needs down to the one above ``file``."""
    way: tuple[str, ...] = ()
    while file in above and above[file] not in way:
        file = above[file]
        way = (file, *way)
    return way


def _wanted(index: ModuleIndex, record: Record) -> Iterator[Problem]:
    for name in Patterns(record.modules).wanted:
        files = index.named(name)
        if files is None:
            yield Problem("module", ("the recipe", name), "neither in the image nor built into the kernel")


def _own_words(index: ModuleIndex) -> Iterator[Problem]:
    """What modules say of themselves, which modules.dep must say too."""
    for file in sorted(index.deps):
        fact = index.fact(file)
        module = fact.module if fact is not None else None
        if module is None:
            continue
        if module.release != index.release:
            yield Problem("module", (file,), f"was built for kernel {module.release or '(it does not say)'}")
        for name in module.depends:
            own = index.files.get(spelled(name))
            if own is None and spelled(name) not in index.builtin:
                yield Problem("module", (file, name), "neither in the image nor built into the kernel")
            elif own is not None and own not in index.deps[file]:
                yield Problem("module", (file, own), "modules.dep does not say so")
        for word in _soft_words(module.softdeps):
            if word not in index.soft.get(module.name, ()):
                yield Problem("module", (file, word), "modules.softdep does not say so")
    for name, words in sorted(index.soft.items()):
        for word in words:
            if name in index.files and index.named(word) is None:
                what = "its soft dependency is neither in the image nor built into the kernel"
                yield Problem("module", (index.files[name], word), what)


def _soft_words(lines: Iterable[str]) -> Iterator[str]:
    """The modules that softdep lines of a .modinfo name."""
    for line in lines:
        words = line.split()
        start = next((at for at, word in enumerate(words) if word in ("pre:", "post:")), len(words))
        yield from (word for word in words[start:] if word not in ("pre:", "post:"))


def _firmware(index: ModuleIndex, record: Record) -> Iterator[Problem]:
    named = [(module_of(file), firmware) for file in sorted(index.deps) for firmware in index.firmware_of(file)]
    inside = {spelled(name) for name in record.modules} & index.builtin
    named += [(name, firmware) for name in sorted(inside) for firmware in index.builtin_firmware.get(name, ())]
    for module, firmware in dict.fromkeys(named):
        if (module, firmware) not in record.firmware_missing and not index.firmware(firmware):
            yield Problem("firmware", (module, firmware), "neither in the image nor recorded as missing")


def _modprobe(index: ModuleIndex) -> Iterator[Problem]:
    """The modprobe that the kernel calls, and whether it can read what is there for it."""
    image, real = index.image, index.image.resolve(MODPROBE)
    fact = image.file(MODPROBE)
    if what := find_command(image, MODPROBE):
        yield Problem("command", ("the kernel", MODPROBE), what)
    if fact is None or real is None:
        return
    kmod = not real.rpartition("/")[2].startswith("busybox")
    kinds = {hit[0] for file in index.deps if (hit := COMPRESSED.search(file))}
    libraries = load(image, real, fact.elf)[0].names if kinds and fact.elf else {}
    for kind in sorted(kinds):
        if not kmod or not any(name.startswith(UNPACKED_BY[kind]) for name in libraries):
            yield Problem(
                "module", (MODPROBE, f"{UNPACKED_BY[kind]}.*"), f"it does not load it, and modules end in {kind}"
            )
    if kmod:
        for name in BINARY:
            yield from _binary(index, name)


def _binary(index: ModuleIndex, name: str) -> Iterator[Problem]:
    path = f"{index.folder}/modules.{name}.bin"
    fact = index.image.file(path)
    if fact is None:
        yield Problem("module", (MODPROBE, path))
        return
    try:
        values = _values(fact.data or b"")
    except ValueError as error:
        yield Problem("module", (path,), f"is a damaged index: {error}")
        return
    if (expected := _expected(index, name)) is not None:
        found = {(key, value) for key, rows in values.items() for _, value in rows}
        for key, _ in sorted(expected - found)[:1]:
            yield Problem("module", (path, key), "the text index has it, the binary one does not")
        for key, _ in sorted(found - expected)[:1]:
            yield Problem("module", (path, key), "the binary index has it, the text one does not")


@lru_cache(maxsize=len(BINARY))
def _values(data: bytes) -> dict[str, list[tuple[int, str]]]:
    return read_values(data)


def _expected(index: ModuleIndex, name: str) -> set[tuple[str, str]] | None:
    """(key, value) pairs of an index as the text files say them; None for what no text says."""
    match name:
        case "dep":
            return {
                (module_of(file), f"{file}:{''.join(f' {need}' for need in needs)}")
                for file, needs in index.deps.items()
            }
        case "alias":
            return index.alias_pairs
        case "builtin":
            return {(module, "") for module in index.builtin}
    return None
