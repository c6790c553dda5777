"""What modprobe reads in an image: indexes that speak only of the modules the image holds.

busybox's modprobe reads modules.dep, modules.alias and modules.builtin as text and knows no soft dependencies, so those
that name a module are written into modules.dep as dependencies. kmod's reads binary indexes made of the same (and no
text but modules.softdep and modules.weakdep); `stage1 check` reads the text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from initramfs_builder.depmod import module_of, spelled, text_lines
from initramfs_builder.modindex import Values, binary_index
from initramfs_builder.modules import BUSYBOX, Modprobe, ModuleTree

# Of what is built in: what a check of the image, or a modprobe asked for an alias, wants to know.
BUILTIN_KEYS = ("alias", "firmware")


def indexes(kernel: ModuleTree, files: Iterable[str], modprobe: Modprobe = BUSYBOX) -> dict[str, bytes]:
    """The files (name → content) beside the modules of an image that holds these and no others."""
    texts = _texts(kernel, sorted(files), modprobe.file_name)
    return texts | (_binary(texts, kernel) if modprobe.kmod else {})


def _texts(kernel: ModuleTree, kept: list[str], named: Callable[[str], str]) -> dict[str, bytes]:
    names = {module_of(file) for file in kept}
    dep = "".join(f"{named(file)}:{''.join(f' {named(need)}' for need in kernel.load_before(file))}\n" for file in kept)
    texts = {"modules.dep": dep}
    # A pattern with a blank in it is for no device, and modprobe would take its second word for the module.
    aliases = (line for line in text_lines(kernel.folder / "modules.alias") if len(line.split()) == 3)
    texts["modules.alias"] = "".join(f"{line}\n" for line in aliases if spelled(line.split()[2]) in names)
    for name in ("modules.softdep", "modules.weakdep"):
        lines = text_lines(kernel.folder / name, 2)
        texts[name] = "".join(f"{line}\n" for line in lines if spelled(line.split()[1]) in names)
    texts["modules.builtin"] = "".join(f"{line}\n" for line in text_lines(kernel.folder / "modules.builtin"))
    texts["modules.builtin.modinfo"] = "".join(
        f"{module}.{key}={value}\0" for module, key, value in kernel.index.builtin_info if key in BUILTIN_KEYS
    )
    return {name: os.fsencode(text) for name, text in texts.items()}


def _binary(texts: dict[str, bytes], kernel: ModuleTree) -> dict[str, bytes]:
    lines = {name: os.fsdecode(text).splitlines() for name, text in texts.items()}
    deps = {module_of(line.partition(":")[0]): [(at, line)] for at, line in enumerate(lines["modules.dep"])}
    aliases = [(pattern, module) for _, pattern, module in (line.split() for line in lines["modules.alias"])]
    tables: dict[str, Values] = {
        "dep": deps,
        "alias": _numbered(aliases),
        "symbols": {},  # asked for by symbol only in programs that no image has
        "builtin": {module_of(line): [(0, "")] for line in lines["modules.builtin"]},
        "builtin.alias": _numbered([(alias, module) for module, alias in kernel.index.builtin_values("alias")]),
    }
    return {f"modules.{name}.bin": binary_index(values) for name, values in tables.items()}


def _numbered(aliases: list[tuple[str, str]]) -> dict[str, list[tuple[int, str]]]:
    """Alias → its modules, in the order of the list."""
    table: dict[str, list[tuple[int, str]]] = {}
    for at, (pattern, module) in enumerate(aliases):
        table.setdefault(spelled(pattern), []).append((at, spelled(module)))
    return table
