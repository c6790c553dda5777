"""RPM packages that must not get into a build: each is refused by name, and the cache stays clean."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rpm_distro import Rpm, Signer, describe_repos, index, make_rpms, signer

from capsulekit.cache import Cache
from capsulekit.distro import rocky
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.lock.model import Lock, Package, Request
from capsulekit.rpm.distro import RpmDistro

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("dnf", "rpmbuild", "createrepo_c"))), reason="needs dnf, rpm, createrepo-c"
)
WANTED = Request("extract", (("tool",),), (), ())


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, Signer]]:
    """The distribution's key, a stranger's, and one whose time is over."""
    with signer("ours") as ours, signer("stranger") as stranger, signer("old", expired=True) as old:
        yield {"ours": ours, "stranger": stranger, "old": old}


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small packages by name and version, not signed."""
    out, tree = tmp_path_factory.mktemp("rpms"), tmp_path_factory.mktemp("tree")
    for name in ("tool", "part"):
        (tree / name).write_text(name * 5000)
    made = [
        Rpm("tool", "1", header=("Requires: part",), files=("/tool",), arch="noarch"),
        Rpm("tool", "2", header=("Requires: part",), files=("/tool",), arch="noarch"),
        Rpm("part", "1", files=("/part",), arch="noarch"),
        Rpm("tool", "1", header=("Requires: part", "Group: changed"), files=("/tool",), arch="noarch"),
    ]
    paths = {}
    for number, rpm in enumerate(made):
        folder = out / str(number)
        folder.mkdir()
        paths[f"{rpm.name}-{rpm.version}" + ("-changed" if number == 3 else "")] = make_rpms([rpm], tree, folder)[0]
    return paths


@dataclass
class Site:
    """A repository, the folder that describes it, and a distribution that takes packages from it."""

    repo: Path
    repos: Path
    unsigned: dict[str, Path]
    distro: RpmDistro

    def offer(self, name: str, by: Signer | None) -> Path:
        """Put a package there, signed by a key or by none."""
        source = self.unsigned[name]
        if by:
            signed = source.with_name(by.public.name) / source.name
            if not signed.exists():
                signed.parent.mkdir(exist_ok=True)
                by.sign_packages(Path(shutil.copy(source, signed)))
            source = signed
        return Path(shutil.copy(source, self.repo))

    def fetch(self, lock: Lock) -> None:
        self.distro.fetch(lock, lock.sets["rootfs"], False, lambda _: None)

    def assert_clean(self) -> None:
        """Nothing of the refused build is left in the cache."""
        root = self.distro.cache.root
        assert [p for p in (root / "packages").rglob("*") if p.is_file()] == []
        assert [p.name for p in (root / "tmp").iterdir() if p.name != ".lock"] == []


@pytest.fixture
def site(tmp_path: Path, keys: dict[str, Signer], unsigned: dict[str, Path]) -> Site:
    repo = tmp_path / "repo"
    repo.mkdir()
    repos = describe_repos(tmp_path / "repos", {"base": f"file://{repo}"}, keys["ours"].public) / "rocky-9"
    return Site(repo, repos, unsigned, rocky.create("9", "amd64", Cache(tmp_path / "cache"), repos))


@contextmanager
def served(folder: Path, change: Callable[[bytes], bytes] = bytes) -> Iterator[str]:
    """The folder by HTTP; package files pass through ``change``, though announced at their full length."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith(".rpm"):
                return super().do_GET()
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(change(data))
            self.close_connection = True
            return None

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def by_http(site: Site, url: str) -> None:
    file = site.repos / "rocky.repo"
    file.write_text(re.sub(r"baseurl=.*", f"baseurl={url}", file.read_text()) + "retries=1\n")


def test_signed_packages_arrive_by_http_and_are_counted(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    seen: list[int] = []
    with served(site.repo) as url:
        by_http(site, url)
        lock = site.distro.resolve(WANTED)
        site.distro.fetch(lock, lock.sets["rootfs"], False, seen.append)
    assert [(p.name, p.version, p.by) for p in lock.sets["rootfs"]] == [
        ("part", "1-1.el9", "tool"),
        ("tool", "1-1.el9", "recipe"),
    ]
    assert seen[-1] == sum(p.size for p in lock.sets["rootfs"])
    # With everything here, the network plays no part any more.
    site.distro.fetch(lock, lock.sets["rootfs"], True, seen.append)


def test_no_process_outlives_the_choice_of_packages(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    site.fetch(site.distro.resolve(WANTED))
    running = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            running.append(path.read_bytes())
    ours = str(site.distro.cache.root).encode()
    assert [words for words in running if ours in words] == [], "such as GnuPG's agent"


def test_an_unsigned_package_is_refused(site: Site, keys: dict[str, Signer]) -> None:
    site.offer("part-1", keys["ours"])
    site.offer("tool-1", None)
    index(site.repo, keys["ours"])
    with pytest.raises(TrustError, match=r"the package tool 1-1\.el9 is not signed"):
        site.fetch(site.distro.resolve(WANTED))
    site.assert_clean()


def test_a_package_signed_by_another_key_is_refused(site: Site, keys: dict[str, Signer]) -> None:
    site.offer("part-1", keys["ours"])
    site.offer("tool-1", keys["stranger"])
    index(site.repo, keys["ours"])
    with pytest.raises(TrustError, match=r"the package tool 1-1\.el9 is signed by the key [0-9A-F]+, which is none"):
        site.fetch(site.distro.resolve(WANTED))
    site.assert_clean()


def test_a_package_is_checked_with_the_locks_keys_even_when_it_is_cached(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    lock = site.distro.resolve(WANTED)
    site.fetch(lock)
    (key,) = lock.keys
    text = keys["stranger"].public.read_text().replace("\r", "")
    with pytest.raises(TrustError, match="which is none of its distribution's keys"):
        site.distro.fetch(replace(lock, keys=(replace(key, text=text),)), lock.sets["rootfs"], True, lambda _: None)


def test_an_expired_key_is_refused(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["old"])
    index(site.repo, None)
    repos = describe_repos(site.repos.parent, {"base": f"file://{site.repo}"}, keys["old"].public, repo_gpgcheck="0")
    with pytest.raises(TrustError, match=r"the key [0-9A-F]{40} .* expired on 2020-01-02"):
        rocky.create("9", "amd64", site.distro.cache, repos / "rocky-9").resolve(WANTED)
    site.assert_clean()


def test_an_index_signed_by_an_expired_key_is_refused(site: Site, keys: dict[str, Signer]) -> None:
    site.offer("part-1", keys["old"])
    index(site.repo, keys["old"])
    describe_repos(site.repos.parent, {"base": f"file://{site.repo}"}, keys["old"].public)
    with pytest.raises(TrustError):
        site.distro.resolve(WANTED)
    site.assert_clean()


@pytest.mark.parametrize("damage", ["changed", "unsigned", "stranger", "part of it changed"])
def test_an_index_whose_signature_does_not_hold_is_refused(site: Site, keys: dict[str, Signer], damage: str) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["stranger" if damage == "stranger" else "ours"])
    data = site.repo / "repodata"
    if damage == "changed":
        (data / "repomd.xml").write_text((data / "repomd.xml").read_text().replace("1700000000", "1700000001"))
    elif damage == "unsigned":
        (data / "repomd.xml.asc").unlink()
    elif damage == "part of it changed":
        (data / "primary.xml.gz").write_bytes(
            gzip.compress(gzip.decompress((data / "primary.xml.gz").read_bytes()) + b" ")
        )
    with pytest.raises(TrustError, match="the index of the repository base does not hold"):
        site.distro.resolve(WANTED)
    site.assert_clean()


def test_an_index_that_held_once_does_not_hold_for_another_key(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    site.distro.resolve(WANTED)
    (site.repos / keys["ours"].public.name).write_text(keys["stranger"].public.read_text())
    with pytest.raises(TrustError, match="the index of the repository base does not hold"):
        site.distro.resolve(WANTED)


def test_a_package_that_changed_under_its_name_is_refused(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    lock = site.distro.resolve(WANTED)
    site.offer("tool-1-changed", keys["ours"])
    index(site.repo, keys["ours"])
    with pytest.raises(TrustError, match=r"the package tool 1-1\.el9 has changed under its name") as error:
        site.fetch(lock)
    assert error.value.hint and "make the lock again" in error.value.hint
    site.assert_clean()


def test_a_file_that_is_not_what_the_index_says_is_refused(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    lock = site.distro.resolve(WANTED)
    site.offer("tool-1-changed", keys["ours"])  # the index still describes the old one
    with pytest.raises(TrustError, match=r"the package tool 1-1\.el9 arrived as something else"):
        site.fetch(lock)
    site.assert_clean()


@pytest.mark.parametrize("change", [lambda data: data[:3000], lambda data: bytes(len(data))], ids=["cut", "replaced"])
def test_a_download_that_is_cut_short_or_replaced_is_refused(
    site: Site, keys: dict[str, Signer], change: Callable[[bytes], bytes]
) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    with served(site.repo, change) as url:
        by_http(site, url)
        lock = site.distro.resolve(WANTED)
        with pytest.raises(CapsulekitError, match=r"a package cannot be downloaded: .*(tool|part)-1-1\.el9"):
            site.fetch(lock)
    site.assert_clean()


def test_an_index_that_nobody_signed_cannot_rename_a_package(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, None)
    data = site.repo / "repodata"
    old = (data / "primary.xml.gz").read_bytes()
    text = gzip.decompress(old).replace(b"<name>part</name>", b"<name>parts</name>").replace(b'"part"', b'"parts"')
    text = text.replace(b'<rpm:entry name="parts"/>', b'<rpm:entry name="parts"/>')
    new = gzip.compress(text)
    about = (data / "repomd.xml").read_text()
    for before, after in ((old, new), (gzip.decompress(old), text)):
        about = about.replace(hashlib.sha256(before).hexdigest(), hashlib.sha256(after).hexdigest())
        about = about.replace(f"size>{len(before)}<", f"size>{len(after)}<")
    (data / "primary.xml.gz").write_bytes(new)
    (data / "repomd.xml").write_text(about)
    describe_repos(site.repos.parent, {"base": f"file://{site.repo}"}, keys["ours"].public, repo_gpgcheck="0")
    with pytest.raises(TrustError, match=r"the package parts 1-1\.el9 is in truth part 1-1\.el9"):
        site.fetch(site.distro.resolve(WANTED))
    site.assert_clean()


def test_offline_names_what_lacks_and_asks_no_repository(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    lock = site.distro.resolve(WANTED)
    shutil.rmtree(site.repo)
    with pytest.raises(CapsulekitError, match=r"2 locked packages are not in the cache, the first is part 1-1\.el9"):
        site.distro.fetch(lock, lock.sets["rootfs"], True, lambda _: None)


def test_a_package_that_is_nowhere_is_named(site: Site, keys: dict[str, Signer]) -> None:
    site.offer("part-1", keys["ours"])
    index(site.repo, keys["ours"])
    with pytest.raises(CapsulekitError, match="there is no package tool in Rocky Linux 9 for amd64"):
        site.distro.resolve(WANTED)
    site.offer("tool-1", keys["ours"])
    (site.repo / "part-1-1.el9.noarch.rpm").unlink()
    index(site.repo, keys["ours"])
    with pytest.raises(CapsulekitError, match=r"cannot be installed together: .*nothing provides part"):
        site.distro.resolve(WANTED)


def test_a_locked_package_the_repository_lost_is_named(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    lock = site.distro.resolve(WANTED)
    (site.repo / "tool-1-1.el9.noarch.rpm").unlink()
    site.offer("tool-2", keys["ours"])
    index(site.repo, keys["ours"])
    with pytest.raises(CapsulekitError, match=r"no longer hold tool 1-1\.el9"):
        site.fetch(lock)


@pytest.mark.parametrize("lost", [False, True], ids=["still there", "gone from the repository"])
def test_an_updated_lock_keeps_what_it_should(site: Site, keys: dict[str, Signer], lost: bool) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    lock = site.distro.resolve(WANTED)
    site.fetch(lock)
    site.offer("tool-2", keys["ours"])
    if lost:
        (site.repo / "tool-1-1.el9.noarch.rpm").unlink()
    index(site.repo, keys["ours"])

    def tool(keep: tuple[Package, ...]) -> Package:
        return next(p for p in site.distro.resolve(WANTED, keep).sets["rootfs"] if p.name == "tool")

    assert tool(()).version == "2-1.el9"
    assert tool(lock.sets["rootfs"]) == next(p for p in lock.sets["rootfs"] if p.name == "tool")


def test_the_same_index_gives_the_same_lock_without_being_solved_again(site: Site, keys: dict[str, Signer]) -> None:
    for name in ("tool-1", "part-1"):
        site.offer(name, keys["ours"])
    index(site.repo, keys["ours"])
    first = site.distro.resolve(WANTED)
    for path in site.distro.cache.root.glob("dnf/*/*.solv*"):
        path.unlink()
    assert site.distro.resolve(WANTED).dumps() == first.dumps()
    (fingerprint,) = [key.fingerprint for key in first.keys]
    assert len(fingerprint) == 40 and first.archives[0].suite == "base" and first.epoch == 1_700_000_000


# --- a half installed root is no result

LUA = "%{} @ -p <lua>\nerror('no such thing')"
HALF = {
    "post": ((LUA.format("post"),), "/tool", "the POSTIN script of the package tool failed: .*no such"),
    "pre": ((LUA.format("pre"),), "/tool", "the PREIN script of the package tool failed: .*no such"),
    "owner": ((), "%attr(0644,ghost,root) /tool", "files belong to the user ghost, which no package had made by then"),
}


@pytest.mark.parametrize("case", HALF)
def test_what_rpm_only_warns_of_fails_the_build(site: Site, keys: dict[str, Signer], tmp_path: Path, case: str) -> None:
    scriptlets, file, message = HALF[case]
    rpm = Rpm("tool", "1", scriptlets=scriptlets, files=(file,), arch="noarch")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/tool").write_text("a tool")
    (path,) = make_rpms([rpm], tmp_path / "tree", site.repo)
    keys["ours"].sign_packages(path)
    index(site.repo, keys["ours"])
    lock = site.distro.resolve(WANTED)
    site.fetch(lock)
    with (
        site.distro.cache.scratch() as work,
        (tmp_path / "root.tar").open("wb") as out,
        pytest.raises(CapsulekitError, match=message),
    ):
        site.distro.install(lock, "essential", 0, None, work, out)
