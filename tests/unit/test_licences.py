"""Licences out of Debian's machine-readable copyright files, and nothing claimed of any other."""

from __future__ import annotations

import pytest
from cyclonedx.spdx import is_expression

from capsulekit.metadata.licences import Licences, expression
from capsulekit.metadata.sbom import LICENCE_REF

HEAD = "Format: copyright-format/1.0\nUpstream-Name: x\n"


def copyright_of(*fields: str, head: str = HEAD) -> bytes:
    stanzas = [f"Files: {n}\nCopyright: somebody\nLicense: {field}\n the text\n" for n, field in enumerate(fields)]
    return "\n".join([head, *stanzas, "License: GPL-9\n A text alone, of no file.\n"]).encode()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["GPL-2+"], "GPL-2.0-or-later"),
        (["GPL-2"], "GPL-2.0-only"),
        (["LGPL-2.1+"], "LGPL-2.1-or-later"),
        (["Apache-2.0"], "Apache-2.0"),
        (["Expat", "BSD-3-clause", "Expat"], "BSD-3-Clause AND MIT"),
        (["GPL-2+ or Artistic"], "GPL-2.0-or-later OR Artistic-1.0-Perl"),
        (["Expat", "GPL-2+, or Artistic"], "(GPL-2.0-or-later OR Artistic-1.0-Perl) AND MIT"),
        (["Expat and ISC", "ISC"], "ISC AND MIT"),
        (["public-domain"], "LicenseRef-public-domain"),
        (["GPL-3+ with Bison exception"], "LicenseRef-GPL-3-with-Bison-exception"),
        (["Perl"], "(Artistic-1.0-Perl OR GPL-1.0-or-later)"),
        (["or or and", "ISC"], "ISC"),
        ([""], ""),
    ],
)
def test_short_names_become_one_spdx_expression(fields: list[str], said: str) -> None:
    got = expression(copyright_of(*fields))
    assert got == said
    assert not got or is_expression(LICENCE_REF.sub("MIT", got))


def test_the_header_may_name_the_licence_of_the_whole() -> None:
    assert expression(copyright_of(head=HEAD + "License: MIT\n")) == "MIT"


@pytest.mark.parametrize("data", [b"", b"This is GPL-2.\nLicense: GPL-2\n", b"\xff\xfe", b"Files: *\nLicense: MIT\n"])
def test_of_a_file_that_is_not_machine_readable_nothing_is_claimed(data: bytes) -> None:
    assert expression(data) == ""


def test_only_copyright_files_of_packages_are_asked_for_and_kept_by_package() -> None:
    seen = Licences()
    wanted = {"usr/share/doc/b/copyright": "GPL-2+", "usr/share/doc/a/copyright": "Expat"}
    for path, name in wanted.items():
        assert seen.wants(path)
        seen.see(path, copyright_of(name))
    for path in ("usr/share/doc/a/README", "etc/copyright", "usr/share/doc/a/b/copyright", "usr/share/doc/copyright"):
        assert not seen.wants(path)
    assert list(seen.result().items()) == [("a", "MIT"), ("b", "GPL-2.0-or-later")]


def test_bytes_that_are_no_text_do_no_harm() -> None:
    seen = Licences()
    seen.see("usr/share/doc/a/copyright", HEAD.encode() + b"\nFiles: *\nLicense: \xff\x00\n")
    assert seen.result() == {"a": "LicenseRef-unnamed"}
