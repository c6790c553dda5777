"""A module's signed archive: what a trusted author signed is used, and nothing else is even looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_capsule import AUTHOR, STRANGER

from capsulekit.capsule import layout, tar
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import sha256_bytes
from capsulekit.sitepaths import SitePaths
from capsulekit.trust import minisign
from capsulekit.trust.keyring import Keyring
from capsulekit.trust.minisign import SecretKey
from provisioner.catalog import Catalog, site_catalog
from provisioner.catalog.pmod import MAX_FILE, MAX_PMOD, read_pmod, write_pmod

TOML = b'name = "mine"\nversion = "1.0"\nsummary = "s"\nroles = ["init/all"]\nstates = ["init"]\n'
FILES = {"module.toml": TOML, "init/10-x": b"#!/bin/sh\necho x\n", "tests/test.sh": b"true\n"}


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    paths = SitePaths(tmp_path / "config", tmp_path / "state")
    (tmp_path / "author.pub").write_text(AUTHOR.public.file_text)
    Keyring(paths.trust).add(tmp_path / "author.pub")
    return paths


def raw(members: list[tuple[str, bytes]], mtime: int = 0) -> bytes:
    body = b"".join(tar.header(name, len(data), mtime) + tar.padded(data) for name, data in members)
    return body + tar.ending(len(body))


def signed(
    files: dict[str, bytes], key: SecretKey = AUTHOR, comment: str = "module mine 1.0", **sums: bytes
) -> list[tuple[str, bytes]]:
    """Members as an author who means harm would sign them: sums and signature hold."""
    text = sums.get("sums") or layout.dump_sums({name: sha256_bytes(data) for name, data in files.items()})
    return [
        (layout.SUMS, text),
        (layout.SIGNATURE, minisign.sign(text, key, comment).encode()),
        *sorted(files.items()),
    ]


def refused(tmp_path: Path, paths: SitePaths, data: bytes) -> str:
    file = tmp_path / "x.pmod"
    file.write_bytes(data)
    with pytest.raises(CapsulekitError) as caught:
        read_pmod(file, paths)
    return caught.value.message


def test_what_was_packed_is_what_is_read(tmp_path: Path, paths: SitePaths) -> None:
    made = write_pmod(tmp_path / "mine.pmod", FILES, AUTHOR)
    read = read_pmod(tmp_path / "mine.pmod", paths)
    assert (read.name, read.digest, read.key_id) == ("mine", made.digest, AUTHOR.public.id)
    assert [script.text for script in read.scripts] == [FILES["init/10-x"]]
    first = (tmp_path / "mine.pmod").read_bytes()
    write_pmod(tmp_path / "mine.pmod", dict(reversed(FILES.items())), AUTHOR)
    assert (tmp_path / "mine.pmod").read_bytes() == first == raw(signed(FILES))


@pytest.mark.parametrize("flip", range(0, 10240, 97))
def test_no_byte_can_be_changed(tmp_path: Path, paths: SitePaths, flip: int) -> None:
    data = bytearray(raw(signed(FILES)))
    data[flip % len(data)] ^= 0x41
    refused(tmp_path, paths, bytes(data))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"init/../../../etc/passwd": b""}, "none that a module may hold"),
        ({"/etc/passwd": b""}, "none that a module may hold"),
        ({"init/.hidden": b""}, "none that a module may hold"),
        ({"init/10-big": b"#!/bin/sh\n" + b"x" * MAX_FILE}, "larger than 1 MiB"),
        ({"init/nonumber": b"#!/bin/sh\n"}, "two digits"),
        ({"init/20-binary": b"\x7fELF"}, "starts with #!/bin/sh"),
        ({"module.toml": TOML + b'data = "hostkeys"\n'}, "only shipped modules"),
        ({"module.toml": TOML.replace(b'"mine"', b'"../mine"')}, "can't be called"),
        ({"module.toml": TOML.replace(b'"mine"', b'"vnfs"')}, "can't be called"),
        ({"module.toml": TOML.replace(b'"1.0"', b'"2.0"')}, "not for this module"),
        ({"module.toml": b"\xff"}, "not TOML"),
        ({"module.toml": TOML + b"x = " + b"[" * 100000}, "not TOML"),
        ({"module.toml": TOML + b"every = " + b"9" * 5000}, "not TOML"),
        ({"module.toml": TOML.replace(b'["init"]', b'["../x"]')}, "name of a state"),
        ({"module.toml": TOML + b"every = -1\n"}, "every must be"),
        ({"module.toml": TOML + b"limit = true\n"}, "limit must be"),
        ({"module.toml": TOML + b"[[writes]]\npath = 'relative'\n"}, "absolute path"),
        ({"module.toml": TOML + b"[settings.A]\ndefault = 1\n"}, "small letters"),
        ({"module.toml": TOML + b"[settings.a]\ndefault = [1]\nsummary = 's'\n"}, "default must be"),
        ({"module.toml": TOML + b"[text]\nfile = '../x'\n"}, "file must be"),
        ({"module.toml": TOML + b"[text]\njoin = 'x'\n"}, "join must be"),
    ],
)  # fmt: skip
def test_a_signed_archive_may_still_not_be_anything(
    tmp_path: Path, paths: SitePaths, files: dict[str, bytes], said: str
) -> None:
    assert said in refused(tmp_path, paths, raw(signed({**FILES, **files})))


def test_sums_and_members_must_be_the_same(tmp_path: Path, paths: SitePaths) -> None:
    members = signed(FILES)
    extra = sorted([*members[2:], ("init/20-y", b"#!/bin/sh\n")])
    assert "init/20-y is not in both" in refused(tmp_path, paths, raw([*members[:2], *extra]))
    assert "init/10-x is not in both" in refused(tmp_path, paths, raw([m for m in members if m[0] != "init/10-x"]))
    other = [(name, b"#!/bin/sh\nrm -rf /\n" if name == "init/10-x" else data) for name, data in members]
    assert "wrong digest of init/10-x" in refused(tmp_path, paths, raw(other))
    assert "not in order" in refused(tmp_path, paths, raw([*members[:2], *reversed(members[2:])]))
    assert "not in order" in refused(tmp_path, paths, raw([*members, members[-1]]))
    assert "does not start with its sums" in refused(tmp_path, paths, raw(members[1:]))
    assert "missing member module.toml" in refused(tmp_path, paths, raw(signed({"init/10-x": b"#!/bin/sh\n"})))
    assert "dated" in refused(tmp_path, paths, raw(members, mtime=5))


def test_who_signed_it_decides(tmp_path: Path, paths: SitePaths) -> None:
    assert f"key {STRANGER.public.id}, which is not trusted here" in refused(
        tmp_path, paths, raw(signed(FILES, STRANGER))
    )
    forged = SecretKey(AUTHOR.key_id, STRANGER.seed)
    assert "wrong signature" in refused(tmp_path, paths, raw(signed(FILES, forged)))
    assert "not for this module" in refused(tmp_path, paths, raw(signed(FILES, comment="module mine 0.9")))
    Keyring(paths.trust).revoke(AUTHOR.public.id)
    assert "was revoked here" in refused(tmp_path, paths, raw(signed(FILES)))


@pytest.mark.parametrize("data", [b"", b"\0" * 10240, b"x" * 10240, b"BZh91AY&SY", b"\x1f\x8b", raw([])])
def test_what_is_no_module_is_refused(tmp_path: Path, paths: SitePaths, data: bytes) -> None:
    refused(tmp_path, paths, data)


def test_a_module_of_perceus_is_named_as_one(tmp_path: Path, paths: SitePaths) -> None:
    assert "module of Perceus 1" in refused(tmp_path, paths, b"BZh91AY&SY...")


def test_links_devices_and_folders_are_no_members(tmp_path: Path, paths: SitePaths) -> None:
    data = bytearray(raw(signed(FILES)))
    at = data.rindex(b"init/10-x\0")
    for kind in b"12345L":
        data[at + 156] = kind
        head = data[at : at + 148] + b" " * 8 + data[at + 156 : at + 512]
        data[at + 148 : at + 156] = b"%06o\0 " % sum(head)
        assert "not a file" in refused(tmp_path, paths, bytes(data))


def test_a_fifo_a_folder_and_a_file_too_large_hang_and_fill_nothing(tmp_path: Path, paths: SitePaths) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "none"):
        with pytest.raises(CapsulekitError):
            read_pmod(tmp_path / name, paths)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_PMOD + 1)
    with pytest.raises(TrustError, match="larger than a module"):
        read_pmod(tmp_path / "large", paths)


@pytest.mark.parametrize("files", [{}, {"module.toml": TOML, "a b": b""}, {"module.toml": b"x"}])
def test_a_wrong_module_is_not_packed(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(CapsulekitError):
        write_pmod(tmp_path / "x.pmod", files, AUTHOR)
    assert list(tmp_path.iterdir()) == []


def test_the_catalog_sees_imports_and_revocations_without_a_new_start(tmp_path: Path, paths: SitePaths) -> None:
    catalog = site_catalog(paths)
    assert catalog.module("mine") is None
    store = paths.state / "modules"
    store.mkdir(parents=True)
    write_pmod(store / "mine.pmod", FILES, AUTHOR)
    module = catalog.module("mine")
    assert module is not None and module.version == "1.0"
    assert "mine" in {m.name for m in catalog.modules()}
    Keyring(paths.trust).revoke(AUTHOR.public.id)
    with pytest.raises(TrustError, match="revoked"):
        catalog.module("mine")
    assert "mine" not in {m.name for m in catalog.modules()}
    assert list(catalog.broken()) == ["mine"]
    assert Catalog().module("mine") is None


def test_an_archive_under_another_name_is_not_that_module(tmp_path: Path, paths: SitePaths) -> None:
    (paths.state / "modules").mkdir(parents=True)
    write_pmod(paths.state / "modules" / "other.pmod", FILES, AUTHOR)
    with pytest.raises(CapsulekitError, match="holds the module 'mine'"):
        site_catalog(paths).module("other")
