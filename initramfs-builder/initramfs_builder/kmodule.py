"""A kernel module in an image: what it says of itself, compressed or not.

The keys are those of include/linux/module.h and moduleparam.h of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from initramfs_builder.depmod import module_of, spelled
from initramfs_builder.modulebytes import unpacked
from initramfs_builder.modulefile import parse_modinfo


@dataclass(frozen=True)
class Kmodule:
    """A module's ``name``, the ``release`` it was built for, and what it asks for.

    ``depends`` are module names, ``firmware`` file names (globs allowed), ``softdeps`` lines "pre: A B post: C".
    """

    name: str
    release: str
    depends: tuple[str, ...]
    firmware: tuple[str, ...]
    softdeps: tuple[str, ...]


def read_kmodule(data: bytes, path: str) -> Kmodule:
    """Read a module, compressed when its ``path`` ends so. Raises CapsulekitError when it is no kernel module."""
    pairs = parse_modinfo(unpacked(data, path), path)

    def values(key: str) -> tuple[str, ...]:
        return tuple(value for name, value in pairs if name == key)

    depends = tuple(word for line in values("depends") for word in line.split(",") if word)
    release = next((line.split(" ")[0] for line in values("vermagic")), "")
    name = next(iter(values("name")), module_of(path))
    return Kmodule(spelled(name), release, depends, values("firmware"), values("softdep"))
