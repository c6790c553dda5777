"""Libraries that programs load by name while running and say so nowhere: what .note.dlopen would tell, as a table.

All of it is taken when the tree has it; a tree without is no error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from initramfs_builder.tree import Tree


@dataclass(frozen=True)
class Loaded:
    """Who needs the library ``by`` may load ``names``: libraries, or globs below the folders of libraries.

    ``calling`` narrows it to programs that call a function.
    """

    by: str
    names: tuple[str, ...]
    why: str
    calling: str | None = None


ALWAYS = (
    Loaded("libc.so.6", ("libgcc_s.so.1",), "glibc aborts a program whose thread ends early when it is missing"),
    Loaded("libc.so.6", ("libnss_files.so.2", "libnss_dns.so.2"), "before 2.34 glibc looked names up through them"),
)
IN_IMAGES = (
    *ALWAYS,
    Loaded("libpam.so.0", ("security/pam_*.so",), "PAM's modules are named in its configuration"),
    Loaded("libcrypto.so.3", ("ossl-modules/*.so",), "OpenSSL's providers beside the built-in one"),
    Loaded(
        "libc.so.6",
        ("gconv/gconv-modules", "gconv/gconv-modules.cache", "gconv/gconv-modules.d/*",
         *(f"gconv/{name}.so" for name in ("UTF-7", "UTF-16", "UTF-32", "UNICODE", "ISO8859-1", "ISO8859-15", "CP1252",
                                           "IBM437", "IBM850"))),
        "glibc itself converts between UTF-8 and ASCII only",
        calling="iconv_open",
    ),
)  # fmt: skip


def loaded_in(tree: Tree) -> tuple[Loaded, ...]:
    """The table for an image made of a tree, whose nsswitch.conf names further libraries (nsswitch.conf(5))."""
    found = tree.resolve("etc/nsswitch.conf")
    text = found.host.read_text("utf-8", "replace") if found is not None and found.host.is_file() else ""
    services: dict[str, None] = {}
    for line in text.splitlines():
        _, _, value = line.partition("#")[0].partition(":")
        services.update(dict.fromkeys(re.sub(r"\[[^]]*\]", " ", value).split()))
    names = tuple(f"libnss_{service}.so.2" for service in services if "/" not in service)
    return (*IN_IMAGES, Loaded("libc.so.6", names, "etc/nsswitch.conf names them"))
