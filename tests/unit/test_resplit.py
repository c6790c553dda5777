"""The site's hybridize list, and a capsule's root divided anew by it (real layers, mounted)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from capsule_files import listed
from split_capsule import MODES, NAME, ROOT, layer_of, split_site

from capsulekit.capsule.manifest import HYBRID, Layer
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_file
from capsulekit.sitepaths import SitePaths
from provisioner.registry.registry import open_registry
from provisioner.vnfs.generation import Generation, stored
from provisioner.vnfs.resplit import Resplit, needs_resplit, resplit, wanted_globs
from provisioner.vnfs.store import VnfsStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
OWN = "layers/rootfs.squashfs"


class Split:
    """The site, its store, the capsule as it was imported, and a place to work in."""

    def __init__(self, paths: SitePaths, work: Path) -> None:
        self.paths, self.work = paths, work
        self.registry = open_registry(paths)
        self.store = VnfsStore(paths, self.registry)
        row = self.store.get(NAME)
        self.base: Generation = stored(self.store, row, row.identity)

    def list_of(self, text: str, name: str = NAME) -> Path:
        """The site's list for a capsule."""
        file = self.paths.config / "vnfs" / name / "hybridize"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def split(self, *globs: str) -> Resplit:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        return resplit(self.store, self.base, globs, self.work)

    def refused(self, *globs: str) -> str:
        with pytest.raises(CapsulekitError) as error:
            self.split(*globs)
        assert "\n" not in str(error.value)
        assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.work) in line]
        return str(error.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("split"))
    split_site(folder)
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Iterator[Split]:
    for name in ("config", "state"):
        shutil.copytree(made / name, tmp_path / name, symlinks=True)
    found = Split(SitePaths(tmp_path / "config", tmp_path / "state"), tmp_path / "work")
    yield found
    found.registry.close()


def paths_of(made: Resplit, name: str) -> dict[str, object]:
    part = next(part for part in made.parts if part.name == name)
    assert isinstance(part.source, Path) and not part.private
    return listed(part.source)


# --- which list counts


def test_the_capsules_own_list_counts_until_the_site_has_one(site: Split) -> None:
    assert wanted_globs(site.store, site.base) == ("/usr/share/old",)
    assert not needs_resplit(site.store, site.base, ("/usr/share/old/",))
    site.list_of("# ours\n/usr/share/doc   # papers\n\n/usr/share/old\n/usr/share/doc\n", "split")
    assert wanted_globs(site.store, site.base) == ("/usr/share/doc", "/usr/share/old")
    site.list_of("/usr/share/other\n")
    assert wanted_globs(site.store, site.base) == ("/usr/share/other",), "the installed name goes over the short one"
    assert needs_resplit(site.store, site.base, ("/usr/share/other",))
    site.list_of("# nothing\n")
    assert wanted_globs(site.store, site.base) == ()


def test_the_authors_list_is_found_again_when_the_sites_goes(site: Split) -> None:
    site.base = replace(site.base, manifest=replace(site.base.manifest, hybridize=("/usr/share/doc",)))
    assert wanted_globs(site.store, site.base) == ("/usr/share/old",)
    assert needs_resplit(site.store, site.base, wanted_globs(site.store, site.base))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("usr/share\n", "1: the glob 'usr/share' is not a path from the root"),
        ("/ok\n/../etc\n", "2: the glob '/../etc' is not a path from the root"),
        ("/a/[b\n", "1: the glob /a/[b has a [ without its ]"),
        ("/\n", "1: the glob '/' is not a path from the root"),
        ("/a\x01b\n", "1: '/a\\x01b' holds what is no printable UTF-8"),
    ],
)
def test_a_line_that_is_no_glob_is_named(site: Split, text: str, told: str) -> None:
    file = site.list_of(text)
    with pytest.raises(CapsulekitError) as error:
        wanted_globs(site.store, site.base)
    assert str(error.value) == f"{file}:{told}"


def test_a_list_that_is_no_list_is_refused(site: Split) -> None:
    file = site.list_of("")
    file.write_bytes(b"/usr/share/\xff\xfe\n")
    with pytest.raises(CapsulekitError, match=r"hybridize:1: .*no printable UTF-8"):
        wanted_globs(site.store, site.base)
    file.write_bytes(b"/a\n" * 400_000)
    with pytest.raises(CapsulekitError, match="is longer than 1048576 bytes"):
        wanted_globs(site.store, site.base)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CapsulekitError, match="is not a file"):
        wanted_globs(site.store, site.base)
    file.unlink()
    file.mkdir()
    with pytest.raises(CapsulekitError, match=r"is not a file|Is a directory"):
        wanted_globs(site.store, site.base)


# --- the split


def test_what_a_glob_names_moves_and_the_rest_comes_home(site: Split) -> None:
    made = site.split("/usr/share/doc", "/usr/share/shut")
    moved, stays = paths_of(made, HYBRID), paths_of(made, OWN)
    assert {path for path, kind in moved.items() if kind != "folder"} == {
        "usr/share/doc/a", "usr/share/doc/same", "usr/share/doc/link", "usr/share/doc/x/deep",
    }  # fmt: skip
    assert {"usr/share/old/home", "usr/share/other", "usr/share/doc/x", "usr/share/doc"} <= set(stays)
    assert not {path for path in moved if moved[path] != "folder"} & set(stays)
    assert {*ROOT, "usr/share/old", "usr/share/old/home"} == {*stays, *moved}
    assert made.manifest.hybridize == ("/usr/share/doc", "/usr/share/shut") and made.drop == ()


def test_what_stays_is_named_with_its_reason(site: Split) -> None:
    told = "\n".join(site.split("/usr/share/doc", "/usr/share/shut", "/usr/share/none").lines)
    for path, why in [
        ("caps", "it has capabilities"), ("acl", "it has an ACL"), ("suid", "setuid or setgid"),
        ("hidden", "not everyone may read it"),
    ]:  # fmt: skip
        assert f"/usr/share/doc/{path} stays on the node: {why}" in told
    assert "/usr/share/shut/inside stays on the node: not everyone may enter /usr/share/shut" in told
    assert "/usr/share/none: nothing of the root is called so" in told
    assert "/usr/share/doc: 4 paths stay out of RAM" in told


def test_the_manifest_says_what_the_new_layers_are(site: Split) -> None:
    made = site.split("/usr/share/doc")
    layer = next(one for one in made.manifest.layers if one.path == OWN)
    file = next(part.source for part in made.parts if part.name == OWN)
    assert isinstance(file, Path)
    assert (layer.size, layer.sha256, layer.acl) == (file.stat().st_size, sha256_file(file), "layers/rootfs.acl")
    size = sum(len(content) for content in ROOT.values() if isinstance(content, bytes))
    gone = len(ROOT["usr/share/doc/a"] or b"") + len(b"deep\n")
    assert layer.unpacked == size + len(b"old\n") - gone
    assert [part.name for part in made.parts] == [OWN, HYBRID], "its initrd could mount a network layer before"
    made.manifest.dumps()


def test_the_same_list_gives_the_same_bytes(site: Split) -> None:
    made = [site.split("/usr/share/doc").manifest for _ in range(2)]
    assert made[0] == made[1]


def test_an_emptied_list_brings_everything_home(site: Split) -> None:
    made = site.split()
    assert (made.drop, made.hybrid, made.manifest.hybridize) == ((HYBRID,), False, ())
    stays = paths_of(made, OWN)
    assert {*ROOT, "usr/share/old", "usr/share/old/home"} == set(stays)


def edited(site: Split, tmp_path: Path, private: bool) -> Generation:
    """The capsule with an edit on top: one of its pages replaced, one deleted, one of its own."""
    image = tmp_path / "edit.squashfs"
    folders = dict.fromkeys(["usr", "usr/share", "usr/share/doc"])
    layer_of(image, {**folders, "usr/share/doc/a": b"ours\n", "usr/share/doc/new": b"new\n"})
    sha256 = sha256_file(image)
    blob = site.store.blob(sha256)
    blob.parent.mkdir(exist_ok=True)
    shutil.copy(image, blob)
    layer = Layer("layers/01-edit.squashfs", image.stat().st_size, sha256, 9, private=private)
    told = replace(site.base.manifest, layers=(layer, *site.base.manifest.layers))
    return replace(site.base, manifest=told, digests={**site.base.digests, layer.path: sha256})


@pytest.mark.parametrize("private", [True, False])
def test_an_edits_files_stay_where_they_are_and_are_named(site: Split, tmp_path: Path, private: bool) -> None:
    site.base = edited(site, tmp_path, private)
    made = site.split("/usr/share/doc")
    assert [part.name for part in made.parts] == [OWN, HYBRID]
    assert made.manifest.layers[0] == site.base.manifest.layers[0]
    assert "usr/share/doc/new" not in {**paths_of(made, HYBRID), **paths_of(made, OWN)}
    assert "/usr/share/doc/a and 1 more stay on the node: it is in layers/01-edit.squashfs" in "\n".join(made.lines)


def test_a_root_without_a_hybrid_layer_stays_whole(site: Split) -> None:
    site.base = replace(site.base, digests={k: v for k, v in site.base.digests.items() if k != HYBRID})
    assert set(paths_of(site.split(), OWN)) == set(ROOT)


# --- what is refused


def test_the_boot_closure_is_refused_with_its_chain(site: Split) -> None:
    assert "/usr/bin/in* takes /usr/bin/init (and 1 more), which a node needs to boot: the first" in site.refused(
        "/usr/bin/in*"
    )
    assert "/etc takes /etc/passwd, which a node needs to boot: settings" in site.refused("/etc")


def test_a_program_that_only_an_edit_needs_to_boot_is_in_the_closure_too(site: Split, tmp_path: Path) -> None:
    image = tmp_path / "edit.squashfs"
    layer_of(image, {**dict.fromkeys(["usr", "usr/bin"]), "usr/bin/init": b"#!/usr/share/other\n"})
    sha256 = sha256_file(image)
    site.store.blob(sha256).parent.mkdir(exist_ok=True)
    shutil.copy(image, site.store.blob(sha256))
    layer = Layer("layers/01-edit.squashfs", image.stat().st_size, sha256, 9)
    told = replace(site.base.manifest, layers=(layer, *site.base.manifest.layers))
    site.base = replace(site.base, manifest=told, digests={**site.base.digests, layer.path: sha256})
    assert "takes /usr/share/other, which a node needs to boot: the first program" in site.refused("/usr/share/other")


def test_the_state_folder_is_refused(site: Split) -> None:
    state = str(site.paths.state)
    for glob in (state, f"{state}/blobs/*", f"{state}/**"):
        assert f"{glob} is refused: it is the site's state folder" in site.refused(glob)


def test_what_nodes_mount_by_nfs_is_refused(site: Split) -> None:
    folder = site.paths.config / "modules/nfsmounts"
    (folder / "group").mkdir(parents=True)
    (folder / "all").write_text("# SERVER:PATH FOLDER\n10.0.0.9:/export/home /home/\n")
    (folder / "group/gpu").write_text("10.0.0.9:/x /usr/share/doc/x ro\n")
    assert "/home is refused: nodes mount a file system there" in site.refused("/home")
    said = site.refused("/usr/share/d*")
    assert "takes /usr/share/doc/x/deep, which is refused: nodes mount" in said and "group/gpu" in said
    assert site.split("/usr/share/old").hybrid


def test_a_kernel_without_nfs_is_refused(tmp_path: Path) -> None:
    from split_capsule import BUILT_IN, MODULES

    paths = split_site(tmp_path, modules={**BUILT_IN, f"{MODULES}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n"})
    site = Split(paths, tmp_path / "work")
    assert "can't mount a network layer: " in site.refused("/usr/share/doc")
    assert not site.split().hybrid, "bringing it home needs none"
    site.registry.close()


def test_a_private_root_is_never_divided(site: Split) -> None:
    layers = tuple(replace(one, private=True) for one in site.base.manifest.layers)
    site.base = replace(site.base, manifest=replace(site.base.manifest, layers=layers))
    assert "private files never travel by NFS" in site.refused("/usr/share/doc")


def test_modes_of_the_root_survive(site: Split) -> None:
    from capsulekit.image import listing

    made = site.split("/usr/share/doc")
    found = listing.list_layer(listing.Layer(next(p.source for p in made.parts if p.name == OWN)))  # type: ignore[arg-type]
    assert {path: found[path].mode for path in MODES} == MODES
