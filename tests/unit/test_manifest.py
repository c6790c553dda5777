"""capsule.toml: one spelling out, strict reading in."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_capsule import layer, manifest

from capsulekit.capsule.manifest import MAX_SIZE, Manifest, loads
from capsulekit.errors import CapsulekitError, TrustError

GOOD = manifest().dumps().decode()


def test_what_is_written_reads_back_the_same() -> None:
    assert loads(manifest().dumps()) == manifest()


def test_the_spelling_is_pinned() -> None:
    assert GOOD.startswith('format = 1\nname = "tiny"\nversion = "1.0"\narch = "amd64"\ndistro = "debian"\n')
    assert '\n[kernel]\nrelease = "6.1.0-18-amd64"\n\n[[layers]]\npath = "layers/modules.squashfs"\n' in GOOD
    assert GOOD.endswith('private = false\nacl = "layers/rootfs.acl"\n')


def test_every_field_is_in_the_file() -> None:
    raw = tomllib.loads(GOOD)
    written = set(raw) - {"format", "kernel"} | {"kernel_release"}
    assert written == {field.name for field in fields(Manifest)}


def test_name_and_trusted_comment_are_made_from_the_fields() -> None:
    assert manifest().full_name == "tiny-1.0.amd64"
    assert manifest().trusted_comment == "capsule tiny 1.0 amd64 recipe " + "ab" * 32


@given(st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=200))
def test_any_printable_kernel_arguments_survive(text: str) -> None:
    told = manifest(cmdline=text)
    assert loads(told.dumps()) == told


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_as_untrusted(data: bytes) -> None:
    with pytest.raises(TrustError):
        loads(data)


@given(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]))
def test_a_changed_letter_is_refused_or_read_as_a_manifest_that_can_be_written(at: int, letter: str) -> None:
    try:
        told = loads((GOOD[:at] + letter + GOOD[at + 1 :]).encode())
    except TrustError:
        return
    assert loads(told.dumps()) == told


REFUSED = [
    ("format = 1", "format = 2", "unknown capsule format 2"),
    ("format = 1", "format = true", "unknown capsule format True"),
    ("format = 1\n", "", "unknown capsule format 'none'"),
    ("format = 1", "format = 1\nextra = 1", "unknown key 'extra'"),
    ("[kernel]", "[kernel]\nextra = 1", r"unknown key kernel\.'extra'"),
    ("private = false\nacl", "colour = 1\nprivate = false\nacl", r"unknown key layers\[1\]\.'colour'"),
    ('name = "tiny"\n', "", "name is missing"),
    ('[kernel]\nrelease = "6.1.0-18-amd64"\n', "", "kernel is missing"),
    ('name = "tiny"', "name = 3", "name is a whole number, not a string"),
    ("epoch = 1700000000", 'epoch = "now"', "epoch is a string, not a whole number"),
    ("epoch = 1700000000", "epoch = true", "epoch is true or false"),
    ("epoch = 1700000000", "epoch = -1", "epoch can't be -1"),
    ("epoch = 1700000000", "epoch = 9223372036854775808", "epoch can't be"),
    ("size = 448", "size = -448", "size can't be -448"),
    ("size = 448", "size = 448.0", "size is a fraction"),
    ("unpacked = 4096", "unpacked = -1", "unpacked can't be -1"),
    ("private = false", "private = 0", "private is a whole number"),
    ('name = "tiny"', 'name = "../tiny"', "name can't be"),
    ('name = "tiny"', 'name = ""', "name can't be"),
    ('name = "tiny"', 'name = ".tiny"', "name can't be"),
    ('name = "tiny"', 'name = "tiny\\n"', "name can't be"),
    ('version = "1.0"', 'version = "1 0"', "version can't be"),
    ('arch = "amd64"', 'arch = "amd/64"', "arch can't be"),
    ('recipe_digest = "abab', 'recipe_digest = "ABab', "recipe_digest can't be"),
    ('init = "/sbin/init"', 'init = "sbin/init"', "init can't be"),
    ('init = "/sbin/init"', 'init = "/sbin/../init"', "init can't be"),
    ("quiet", "quiet\\nlayer x", "cmdline holds a control character"),
    ("quiet", "q" * 3000, "cmdline is longer"),
    ("doc/**", "doc\\u0000", "hybridize holds a control character"),
    ('hybridize = ["/usr/share/doc/**"]', "hybridize = [1]", "hybridize holds something that is not a string"),
    ("10-hello", "../10-hello", "provision can't be"),
    ("10-hello", "hello", "provision can't be"),
    (
        '["provision/init/10-hello"]',
        '["provision/init/10-hello", "provision/init/10-hello"]',
        "provision script is listed twice",
    ),
    ("layers/modules.squashfs", "layers/../boot/vmlinuz", "layer path can't be"),
    ("layers/modules.squashfs", "/layers/modules.squashfs", "layer path can't be"),
    ("layers/modules.squashfs", "layers/hybrid.squashfs", "is in the mount list"),
    ("layers/modules.squashfs", "layers/rootfs.squashfs", "a layer is listed twice"),
    ('acl = "layers/rootfs.acl"', 'acl = "boot/vmlinuz"', "acl can't be"),
    ("format = 1", "format = 1\nlayers = 3", "not TOML"),
    ("format", "\ufefform\udcffat", "not TOML"),
]


@pytest.mark.parametrize(("old", "new", "why"), REFUSED)
def test_a_malformed_manifest_is_refused_with_its_cause(old: str, new: str, why: str) -> None:
    assert old in GOOD
    with pytest.raises(TrustError, match=why):
        loads(GOOD.replace(old, new, 1).encode("utf-8", "surrogateescape"))


def test_a_manifest_without_layers_is_refused() -> None:
    with pytest.raises(TrustError, match="it has no layers"):
        loads(GOOD[: GOOD.index("[[layers]]")].replace("[kernel]", "layers = []\n[kernel]").encode())


def test_a_huge_or_deeply_nested_manifest_is_refused() -> None:
    with pytest.raises(TrustError, match="larger than"):
        loads(b"#" * (MAX_SIZE + 1))
    with pytest.raises(TrustError, match="not TOML"):
        loads(b"a = " + b"[" * 100_000)


def test_what_could_not_be_read_is_not_written() -> None:
    for bad in (
        manifest(name="a b"),
        manifest(layers=()),
        manifest(layers=(replace(layer("layers/rootfs.squashfs"), size=-1),)),
    ):
        with pytest.raises(CapsulekitError, match="can't be described") as caught:
            bad.dumps()
        assert caught.value.exit_code == 1
