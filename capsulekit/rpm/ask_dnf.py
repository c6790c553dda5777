"""Asks dnf: run by dnf's own Python, which has the module dnf; imports nothing of ours. One JSON in, one JSON out.

What goes in: "action" (update, solve, download), "folder" (private state), "repos" (the folder with the *.repo files
and their keys), "vars" (folders with dnf variables), "release", "arch", "platform", and per action:
  solve      sets: {name: [[package name, ...] per stage]}, essential: names that go before the first stage of rootfs,
             keep: packages that stay at their version, each with the file it can come from ("" for none)
  download   packages (name, version, arch, sha256), to: the folder for them
What comes out: the answer, or {"error": kind, "text": what is wrong, "name": what it is about}.
"""

from __future__ import annotations

import hashlib
import json
import logging.handlers
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dnf
import dnf.exceptions
import dnf.repo
import hawkey

# How this machine reaches the network is the one thing taken over from its own dnf.
NETWORK = (
    "proxy", "proxy_username", "proxy_password", "proxy_auth_method", "sslcacert", "sslclientcert", "sslclientkey",
    "ip_resolve",
)  # fmt: skip
HOST_CONFIGURATION = Path("/etc/dnf/dnf.conf")


class Refused(Exception):
    """Ends the work with an answer of the kind ``error``."""

    def __init__(self, error: str, text: str, name: str = "") -> None:
        super().__init__(text)
        self.answer = {"error": error, "text": text, "name": name}


def prepared(asked: dict[str, Any]) -> Any:
    """A dnf.Base that knows the repositories of the folder and nothing of the host; raises Refused."""
    base = dnf.Base()
    conf, folder = base.conf, asked["folder"]
    host = dnf.conf.MainConf()
    if HOST_CONFIGURATION.exists():
        host.read(str(HOST_CONFIGURATION))
    for option in NETWORK:
        setattr(conf, option, getattr(host, option))
    conf.config_file_path = "/dev/null"
    conf.reposdir, conf.varsdir, conf.pluginpath = [asked["repos"]], asked["vars"], []
    conf.cachedir = conf.logdir = conf.persistdir = folder
    conf.system_cachedir = folder
    empty = Path(folder, "root")  # nothing is installed
    empty.mkdir(exist_ok=True)
    conf.installroot = str(empty)
    conf.module_platform_id = asked["platform"]
    conf.install_weak_deps, conf.best, conf.skip_if_unavailable, conf.fastestmirror = False, True, False, False
    conf.max_parallel_downloads, conf.retries, conf.timeout, conf.ignorearch = 10, 3, 30, True
    if hasattr(conf, "optional_metadata_types"):  # newer ones load the lists of files, which solve /bin/sh, when asked
        conf.optional_metadata_types = ["filelists"]
    conf.substitutions.update_from_etc("/", varsdir=asked["vars"])
    conf.substitutions["arch"] = conf.substitutions["basearch"] = asked["arch"]
    conf.substitutions["releasever"] = asked["release"]
    base.read_all_repos()
    if not list(base.repos.iter_enabled()):
        raise Refused("repos", "no enabled repository in its *.repo files")
    return base


def use_keys(base: Any, repos: str) -> list[str]:
    """Make every repository take its keys from local files; their paths, sorted. Raises Refused for another one."""
    files: set[str] = set()
    for repo in base.repos.iter_enabled():
        named = [key for key in repo.gpgkey if key.strip()]
        if not named:
            raise Refused("key", "names no gpgkey: nothing would vouch for its packages", repo.id)
        local = [key_file(repo.id, key, repos) for key in named]
        repo.gpgkey = [f"file://{path}" for path in local]
        repo.skip_if_unavailable = False
        files.update(local)
    return sorted(files)


def key_file(repo: str, key: str, repos: str) -> str:
    """The local file of a gpgkey: beside the .repo file under its name, else where a file: address says."""
    path = Path(key.removeprefix("file://"))
    for candidate in (Path(repos, path.name), path):
        if candidate.is_absolute() and candidate.is_file():
            return str(candidate)
    raise Refused("key", f"names the key {key}, which is not there as {path.name}", repo)


def forget_if_changed(asked: dict[str, Any], keys: Iterable[str]) -> None:
    """Metadata that was verified with other keys, or came from other places, does not count any more."""
    digest = hashlib.sha256()
    for path in [*map(Path, keys), *sorted(Path(asked["repos"]).glob("*.repo"))]:
        digest.update(path.read_bytes() + b"\0")
    folder = Path(asked["folder"])
    mark = folder / "verified-with"
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return
    for path in folder.iterdir():
        if path.name != "root":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    mark.write_text(digest.hexdigest())


def update(asked: dict[str, Any]) -> dict[str, Any]:
    """Refresh the metadata: which repositories, the digest and the newest time of each index, the files of keys."""
    base = prepared(asked)
    keys = use_keys(base, asked["repos"])
    forget_if_changed(asked, keys)
    found = []
    for repo in sorted(base.repos.iter_enabled()):
        load(repo)
        index = Path(repo._repo.getCachedir(), "repodata", "repomd.xml")
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        found.append({"id": repo.id, "digest": digest, "time": repo._repo.getMaxTimestamp()})
    return {"repos": found, "keys": keys}


def load(repo: Any) -> None:
    """Bring one repository's metadata up to date; raises Refused."""
    repo._repo.expire()
    no_agent(Path(repo._repo.getCachedir(), "pubring"))
    warned = logging.handlers.MemoryHandler(1000, flushLevel=logging.CRITICAL + 1)
    logging.getLogger("dnf").addHandler(warned)  # why every mirror failed is said there and nowhere else
    try:
        repo.load()
    except dnf.exceptions.RepoError as error:
        text = " ".join(f"{error} {' '.join(record.getMessage() for record in warned.buffer)}".split())
        bad = "checksum" in text or (repo.repo_gpgcheck and any(word in text for word in ("GPG", "repomd.xml.asc")))
        raise Refused("untrusted" if bad else "unreachable", text, repo.id) from None
    finally:
        logging.getLogger("dnf").removeHandler(warned)


def no_agent(ring: Path) -> None:
    """Keep GnuPG, which checks an index's signature with the keys in this folder, from leaving a daemon running."""
    ring.mkdir(mode=0o700, parents=True, exist_ok=True)
    (ring / "gpg.conf").write_text("no-autostart\n")


def solver(asked: dict[str, Any]) -> Any:
    """A dnf.Base with the metadata as `update` left it, ready to choose packages."""
    base = prepared(asked)
    use_keys(base, asked["repos"])
    for repo in base.repos.iter_enabled():
        repo._repo.setSyncStrategy(dnf.repo.SYNC_ONLY_CACHE)
    base.fill_sack(load_system_repo=False)
    return base


def solve(asked: dict[str, Any]) -> dict[str, Any]:
    """Choose the packages of every set; per package what the lock holds of it."""
    base = solver(asked)
    files = pin(base, asked["keep"])
    answer = {}
    for name, stages in asked["sets"].items():
        essential = asked["essential"] if name == "rootfs" else []
        chosen: dict[Any, tuple[int, str]] = {}
        for number, names in enumerate(stages):
            first = essential if number == 0 else []
            install(base, [*first, *names], chosen)
            note(base, chosen, number, first, names)
        answer[name] = [described(package, *about, files) for package, about in chosen.items()]
    return {"sets": answer}


def pin(base: Any, keep: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Hide the other versions of kept packages; those the repositories lost come from their files. By full name."""
    kept = {}
    for one in keep:
        evr = one["version"] if ":" in one["version"] else "0:" + one["version"]
        epoch, _, rest = evr.partition(":")
        version, _, release = rest.rpartition("-")
        every = base.sack.query().filter(name=one["name"], arch=one["arch"])
        same = every.filter(epoch=int(epoch), version=version, release=release)
        if not same and one["file"]:
            base.sack.add_cmdline_package(one["file"])
            every = base.sack.query().filter(name=one["name"], arch=one["arch"])
            same = every.filter(epoch=int(epoch), version=version, release=release)
        if same:
            base.sack.add_excludes(every.difference(same))
            kept[f"{one['name']}-{one['version']}.{one['arch']}"] = one
    return kept


def install(base: Any, names: list[str], chosen: dict[Any, Any]) -> None:
    """Solve for ``names`` on top of ``chosen``; the result is base.transaction. Raises Refused."""
    base.reset(goal=True)
    for package in chosen:
        base.package_install(package)
    for name in names:
        if not base.sack.query().available().filter(name=name):
            raise Refused("missing", "", name)
        base.install(name, forms=[hawkey.FORM_NAME])
    try:
        base.resolve()
    except dnf.exceptions.DepsolveError as error:
        raise Refused("conflict", " ".join(str(error).split())) from None


def note(base: Any, chosen: dict[Any, tuple[int, str]], stage: int, essential: list[str], names: list[str]) -> None:
    """Add what this stage brings to ``chosen``, each with what asked for it (the shortest chain wins)."""
    new = sorted(set(base.transaction.install_set if base.transaction else ()) - set(chosen))
    here = base.sack.query().filter(pkg=[*new, *chosen])
    asked = {**dict.fromkeys(essential, "essential"), **dict.fromkeys(names, "recipe")}
    by = {package: asked[package.name] for package in new if package.name in asked}
    todo = [*sorted(by), *(package for package in chosen if package not in by)]
    for package in todo:  # grows while it is walked
        for needed in needs(here, package):
            if needed not in by and needed not in chosen:
                by[needed] = package.name
                todo.append(needed)
    for package in new:
        chosen[package] = (stage, by.get(package, ""))


def needs(here: Any, package: Any) -> Iterator[Any]:
    """The packages of ``here`` that provide what ``package`` requires, in a fixed order."""
    for wanted in sorted({*package.requires, *package.requires_pre}, key=str):
        found = here.filter(provides=wanted)
        if not found and str(wanted).startswith("/"):
            found = here.filter(file=str(wanted))
        yield from sorted(found)


def described(package: Any, stage: int, by: str, kept: dict[str, dict[str, str]]) -> dict[str, Any]:
    """One package for the lock; raises Refused when its repository gives no sha256."""
    version = evr(package)
    one = kept.get(f"{package.name}-{version}.{package.arch}")
    about = {"name": package.name, "version": version, "arch": package.arch, "stage": stage, "by": by}
    if package.reponame == "@commandline" and one:
        return {**about, "size": one["size"], "sha256": one["sha256"], "path": one["path"]}
    return {**about, "size": package.downloadsize, "sha256": sha256(package), "path": package.location}


def evr(package: Any) -> str:
    """EPOCH:VERSION-RELEASE, the epoch only when it is not 0."""
    epoch = f"{package.epoch}:" if package.epoch else ""
    return f"{epoch}{package.version}-{package.release}"


def sha256(package: Any) -> str:
    """The digest that the repository's signed or fetched index gives; raises Refused for another kind."""
    kind, digest = package.chksum or (0, b"")
    if kind != hawkey.CHKSUM_SHA256:
        raise Refused("digest", "lists its packages without sha256", package.reponame)
    return str(digest.hex())


def download(asked: dict[str, Any]) -> dict[str, Any]:
    """Fetch packages side by side into a folder; path by sha256. Raises Refused for one that is gone or changed."""
    base = prepared(asked)
    forget_if_changed(asked, use_keys(base, asked["repos"]))
    for repo in base.repos.iter_enabled():
        load(repo)
        repo.pkgdir = asked["to"] if not repo._repo.isLocal() else repo.pkgdir
    base.fill_sack(load_system_repo=False)
    found = {one["sha256"]: lookup(base, one) for one in asked["packages"]}
    remote = [package for package in found.values() if not package._is_local_pkg()]
    try:
        base.download_packages(remote)
    except dnf.exceptions.DownloadError as error:
        raise Refused("download", " ".join(str(error).split())) from None
    paths = {}
    for digest, package in found.items():
        path = package.localPkg()
        if package._is_local_pkg():  # it stays where it is; the cache gets a copy
            path = shutil.copy(path, Path(asked["to"], Path(path).name))
        paths[digest] = str(path)
    return {"paths": paths}


def lookup(base: Any, one: dict[str, str]) -> Any:
    """The package of that name, version, architecture and digest; raises Refused."""
    same = [p for p in base.sack.query().filter(name=one["name"], arch=one["arch"]) if evr(p) == one["version"]]
    for package in same:
        if sha256(package) == one["sha256"]:
            return package
    name = f"{one['name']} {one['version']}"
    raise Refused("changed" if same else "gone", sha256(same[0]) if same else "", name)


def main() -> None:
    """Read what is asked, answer it."""
    asked = json.load(sys.stdin)
    try:
        answer = {"update": update, "solve": solve, "download": download}[asked["action"]](asked)
    except Refused as refused:
        answer = refused.answer
    except dnf.exceptions.Error as error:
        answer = {"error": "dnf", "text": " ".join(str(error).split()), "name": ""}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
