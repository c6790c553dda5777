"""Hybridize: what leaves a root for the network, what stays and why, and what fails the build."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs.hybrid import Hybrid, Kept, Moved, describe
from capsulekit.rootfs.normalise import Ledger, Normaliser
from capsulekit.sitepaths import SitePaths
from provisioner.registry.model import InstalledCapsule
from provisioner.vnfs.hybridlist import taken_folders

EPOCH = 1_700_000_000
DOC = b"a page of text\n" * 1000


def file(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes | None]:
    info = tarfile.TarInfo(f"./{name}")
    info.size, info.mode = len(data), 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def other(name: str, kind: bytes, mode: int = 0o755, **fields: object) -> tuple[tarfile.TarInfo, bytes | None]:
    return file(name, b"", type=kind, mode=mode, **fields)[0], None


def folder(name: str, mode: int = 0o755, **fields: object) -> tuple[tarfile.TarInfo, bytes | None]:
    return other(name, tarfile.DIRTYPE, mode, **fields)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes | None]:
    return other(name, tarfile.SYMTYPE, 0o777, linkname=target)


def same(name: str, first: str) -> tuple[tarfile.TarInfo, bytes | None]:
    return other(name, tarfile.LNKTYPE, 0o644, linkname=f"./{first}")


@dataclass
class Split:
    """One root taken apart: the names in each layer, the members of both, what was noted."""

    local: dict[str, tarfile.TarInfo]
    shared: dict[str, tarfile.TarInfo]
    ledger: Ledger
    hybrid: Hybrid

    @property
    def kept(self) -> dict[str, str]:
        return {k.path: k.reason for k in self.hybrid.kept}

    @property
    def moved(self) -> set[str]:
        return {name for name, member in self.shared.items() if not member.isdir()}


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        return {m.name.removeprefix("./"): m for m in tar}


def split(
    tmp_path: Path,
    globs: list[str],
    *entries: tuple[tarfile.TarInfo, bytes | None],
    closure: Mapping[str, str] | None = None,
) -> Split:
    path = tmp_path / "root.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for info, data in entries:
            tar.addfile(info, None if data is None else io.BytesIO(data))
    hybrid = Hybrid(globs, closure or {})
    hybrid.scan(path)
    local, shared = io.BytesIO(), io.BytesIO()
    with path.open("rb") as source:
        ledger = Normaliser(EPOCH, hybrid=hybrid).stream(source, local, shared)
    return Split(members(local.getvalue()), members(shared.getvalue()), ledger, hybrid)


# --- which paths a glob means


DOCS = [folder("usr"), folder("usr/share"), folder("usr/share/doc", 0o2755, gid=50), file("usr/share/doc/a", DOC)]


@pytest.mark.parametrize(
    "glob", ["/usr/share/doc", "/usr/share/doc/", "/usr/share/doc/*", "/usr/**/a", "/usr/share/d*"]
)
def test_a_glob_that_names_a_folder_means_everything_below_it(tmp_path: Path, glob: str) -> None:
    assert split(tmp_path, [glob], *DOCS).moved == {"usr/share/doc/a"}


@pytest.mark.parametrize("glob", ["/share/doc", "/usr/share/do", "/*/doc", "/usr/*/a", "/usr/share/doc/a/b"])
def test_globs_are_anchored_and_a_star_stays_in_its_folder(tmp_path: Path, glob: str) -> None:
    taken = split(tmp_path, [glob], *DOCS)
    assert taken.hybrid.empty and taken.hybrid.unmatched() == [glob] and "usr/share/doc/a" in taken.local


def test_the_merged_spelling_of_a_folder_is_as_good_as_the_other(tmp_path: Path) -> None:
    root = [link("lib", "usr/lib"), folder("usr"), folder("usr/lib"), file("usr/lib/x/big")]
    assert split(tmp_path, ["/lib/x"], *root).moved == {"usr/lib/x/big"}
    assert split(tmp_path, ["/usr/lib/x"], folder("lib"), file("lib/x/big")).moved == {"lib/x/big"}


def test_the_first_glob_that_matches_counts(tmp_path: Path) -> None:
    taken = split(tmp_path, ["/usr/share/doc/a", "/usr/share", "/opt"], *DOCS, file("usr/share/b", b"123"))
    assert {glob: (m.paths, m.unpacked) for glob, m in taken.ledger.moved.items()} == {
        "/usr/share/doc/a": (1, len(DOC)), "/usr/share": (1, 3), "/opt": (0, 0),
    }  # fmt: skip
    assert taken.hybrid.unmatched() == ["/opt"]


# --- what the layers hold


def test_folders_stay_and_those_that_lead_to_what_left_are_in_both_layers(tmp_path: Path) -> None:
    taken = split(tmp_path, ["/usr/share/doc"], *DOCS, folder("usr/share/doc/empty"), folder("usr/bin"))
    assert set(taken.shared) == {"usr", "usr/share", "usr/share/doc", "usr/share/doc/a"}
    assert set(taken.local) == {"usr", "usr/share", "usr/share/doc", "usr/share/doc/empty", "usr/bin"}
    assert (taken.shared["usr/share/doc"].mode, taken.shared["usr/share/doc"].gid) == (0o2755, 50)
    assert {m.mtime for m in (*taken.shared.values(), *taken.local.values())} == {EPOCH}


def test_both_layers_are_there_in_full_and_nothing_twice(tmp_path: Path) -> None:
    root = [*DOCS, link("usr/share/doc/l", "a"), file("usr/share/doc/caf\udce9"), file("etc/passwd")]
    taken = split(tmp_path, ["/usr/share/doc"], *root)
    files = {n for n, m in taken.local.items() if not m.isdir()}
    assert taken.moved == {"usr/share/doc/a", "usr/share/doc/l", "usr/share/doc/caf\udce9"}
    assert files == {"etc/passwd"}


def test_what_the_normaliser_removes_is_in_no_layer(tmp_path: Path) -> None:
    taken = split(tmp_path, ["/var/cache"], file("var/cache/man/index.db"), file("var/cache/x"))
    assert taken.moved == {"var/cache/x"} and not taken.local
    assert taken.ledger.moved["/var/cache"].paths == 1


# --- what must stay


CAPABILITY = {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02 x"}
ACL = {"SCHILY.xattr.system.posix_acl_access": "\x02\x00\x00\x00"}
STAYS = [
    (file("s/x", mode=0o4755), "setuid or setgid"),
    (file("s/x", mode=0o2755), "setuid or setgid"),
    (file("s/x", mode=0o640), "not everyone may read it"),
    (file("s/x", pax_headers=CAPABILITY), "it has capabilities"),
    (file("s/x", pax_headers=ACL), "it has an ACL"),
    (file("s/x", pax_headers={"SCHILY.xattr.user.note": "x"}), "it has extended attributes"),
    (other("s/x", tarfile.CHRTYPE, 0o666), "a device or a fifo"),
    (other("s/x", tarfile.BLKTYPE, 0o666), "a device or a fifo"),
    (other("s/x", tarfile.FIFOTYPE, 0o666), "a device or a fifo"),
]


@pytest.mark.parametrize(("entry", "reason"), STAYS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_the_network_cannot_carry_stays_and_is_named(
    tmp_path: Path, entry: tuple[tarfile.TarInfo, bytes | None], reason: str
) -> None:
    headers = dict(entry[0].pax_headers)
    taken = split(tmp_path, ["/s"], folder("s"), entry, file("s/leaves"))
    assert taken.kept == {"s/x": reason} and taken.moved == {"s/leaves"} and "s/x" in taken.local
    kept = {k: v for k, v in taken.local["s/x"].pax_headers.items() if k.startswith("SCHILY")}
    assert kept == {k: v for k, v in headers.items() if "acl" not in k}


def test_attributes_that_no_layer_keeps_hold_nothing_back(tmp_path: Path) -> None:
    origin = {"SCHILY.xattr.trusted.overlay.origin": "x"}
    assert split(tmp_path, ["/s"], file("s/x", pax_headers=origin)).moved == {"s/x"}


def test_files_in_a_folder_that_not_everyone_may_enter_stay(tmp_path: Path) -> None:
    taken = split(tmp_path, ["/s"], folder("s"), folder("s/secret", 0o750), file("s/secret/deep/x"), file("s/y"))
    assert taken.kept == {"s/secret/deep/x": "not everyone may enter /s/secret"} and taken.moved == {"s/y"}


def test_names_of_one_file_move_together(tmp_path: Path) -> None:
    taken = split(tmp_path, ["/s"], file("s/a", DOC), same("s/b", "s/a"), same("s/c", "s/a"))
    assert taken.moved == {"s/a", "s/b", "s/c"} and taken.shared["s/b"].islnk()
    assert taken.ledger.moved["/s"] == Moved(3, len(DOC), taken.ledger.moved["/s"].packed)


@pytest.mark.parametrize(
    ("globs", "held"), [(["/s/a"], "s/b"), (["/s/b"], "s/a"), (["/s/a", "/s/b"], "t"), (["/t"], "s/a")]
)
def test_names_of_one_file_stay_together_when_one_of_them_stays(tmp_path: Path, globs: list[str], held: str) -> None:
    taken = split(tmp_path, globs, file("s/a"), same("s/b", "s/a"), same("t", "s/a"))
    assert taken.hybrid.empty and set(taken.local) == {"s/a", "s/b", "t"}
    assert taken.kept == {glob[1:]: f"the same file as /{held}, which stays" for glob in globs}


def test_a_setuid_file_holds_its_other_names(tmp_path: Path) -> None:
    taken = split(tmp_path, ["/s"], file("s/su", mode=0o4755), same("s/b", "s/su"))
    assert taken.kept == {"s/b": "the same file as /s/su, which stays", "s/su": "setuid or setgid"}


# --- what a node needs to boot


CLOSURE = {
    "usr/lib/libc.so.6": "the first program: /sbin/init -> /usr/lib/systemd/systemd -> /usr/lib/libc.so.6",
    "usr/lib/ld.so.2": "the first program: /sbin/init -> /usr/lib/ld.so.2",
}


@pytest.mark.parametrize("top", ["usr/lib", "lib"])
@pytest.mark.parametrize("glob", ["/usr/lib/l*", "/usr/lib/ld.so.2", "/usr/lib/**/l*"])
def test_a_glob_that_means_what_a_node_needs_to_boot_fails_with_the_chain(tmp_path: Path, top: str, glob: str) -> None:
    root = [folder(top), file(f"{top}/libc.so.6", mode=0o755), file(f"{top}/ld.so.2"), file(f"{top}/lx")]
    with pytest.raises(CapsulekitError) as caught:
        split(tmp_path, ["/opt", glob], *root, closure=CLOSURE)
    more = "" if glob.endswith(".2") else " (and 1 more)"
    assert str(caught.value) == (
        f"[hybridize] {glob} takes /{top}/ld.so.2{more}, which a node needs to boot: "
        "the first program: /sbin/init -> /usr/lib/ld.so.2"
    )
    assert split(tmp_path, ["/usr/lib/lx"], *root, closure=CLOSURE).moved == {f"{top}/lx"}


@pytest.mark.parametrize("glob", ["/usr/lib", "/usr/lib/", "/usr/lib/**", "/usr"])
def test_below_a_folder_that_a_glob_names_what_a_node_needs_to_boot_stays_and_is_named(
    tmp_path: Path, glob: str
) -> None:
    root = [folder("usr/lib"), file("usr/lib/libc.so.6", mode=0o755), file("usr/lib/ld.so.2"), file("usr/lib/x")]
    done = split(tmp_path, [glob], *root, closure=CLOSURE)
    assert done.moved == {"usr/lib/x"}
    assert [(kept.path, kept.reason) for kept in done.hybrid.kept] == [
        (path, "a node needs it to boot (the first program)") for path in ("usr/lib/ld.so.2", "usr/lib/libc.so.6")
    ]


def test_a_folder_of_nothing_else_is_refused(tmp_path: Path) -> None:
    root = [folder("usr/lib"), file("usr/lib/libc.so.6", mode=0o755), file("usr/lib/ld.so.2")]
    with pytest.raises(CapsulekitError, match=r"/usr/lib takes /usr/lib/ld\.so\.2 \(and 1 more\), which a node needs"):
        split(tmp_path, ["/usr/lib"], *root, closure=CLOSURE)


def test_a_tar_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("s/a", "s/b"):
            info, content = file(name, b"x" * 600)
            tar.addfile(info, io.BytesIO(content or b""))
    (tmp_path / "root.tar").write_bytes(data.getvalue()[:700])
    with pytest.raises(CapsulekitError, match="tar broke off"):
        Hybrid(["/s"], {}).scan(tmp_path / "root.tar")


# --- what is said


def test_the_report_says_what_each_glob_saves_and_what_stays_by_reason() -> None:
    moved = {"/usr/share/doc/**": Moved(812, 9_100_000, 3_000_000), "/opt": Moved(0, 0, 0)}
    kept = [Kept("usr/a", "setuid or setgid"), Kept("usr/b", "it has an ACL"), Kept("usr/c", "setuid or setgid")]
    assert describe(moved, kept) == [
        "/usr/share/doc/**: 812 paths stay out of RAM, which saves 3.0 MB (9.1 MB unpacked)",
        "/opt: nothing leaves the node",
        "/usr/b stays on the node: it has an ACL",
        "/usr/a and 1 more stay on the node: setuid or setgid",
    ]


def test_what_is_saved_is_counted_compressed(tmp_path: Path) -> None:
    moved = split(tmp_path, ["/usr/share/doc"], *DOCS).ledger.moved["/usr/share/doc"]
    assert moved.unpacked == len(DOC) and 0 < moved.packed < len(DOC) // 50


@pytest.mark.parametrize("folder", ["/lib/site", "/usr/lib//site/", "/usr/lib/x/../site", "/usr/./lib/site"])
def test_what_nodes_mount_is_taken_however_it_is_spelled(tmp_path: Path, folder: str) -> None:
    settings = tmp_path / "etc/modules/nfsmounts"
    settings.mkdir(parents=True)
    (settings / "all").write_text(f"10.0.0.5:/vol {folder} ro\n10.0.0.5:/root /.\n")
    row = InstalledCapsule("tiny-1.0.amd64", "aa" * 32, "00" * 8, "RWQ", "1.0", "amd64", 5.0)
    taken = taken_folders(SitePaths(tmp_path / "etc", tmp_path / "var"), row)
    assert "" not in taken and len(taken) == 2
    for glob in ("/lib/site", "/usr/lib/site/a*"):
        with pytest.raises(CapsulekitError, match=r"is refused: nodes mount a file system there"):
            Hybrid((glob,), {}, taken=taken)
