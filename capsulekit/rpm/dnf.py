"""dnf: the one place that calls it, to choose and download packages and to make a root of them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.memory import room_for
from capsulekit.run import DiskFull, failed, run, run_apart, tool

HERE = Path(__file__).parent
ASK = HERE / "ask_dnf.py"
SHELL = "/bin/sh"
PURPOSE = "build the root file system"
# Of the caller's environment dnf gets its way to the network and nothing else.
NETWORK = re.compile(r"(https?|ftp|all|no)_proxy|SSL_CERT_(FILE|DIR)|CURL_CA_BUNDLE", re.IGNORECASE)
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SCRIPTLET = re.compile(r"^Error in (\w+) scriptlet in rpm package (\S+)$", re.MULTILINE)
STARTED = re.compile(r"^  Running scriptlet: .*$", re.MULTILINE)
OWNER = re.compile(r"^warning: (user|group) (\S+) does not exist - using root$", re.MULTILINE)

# rpm's settings for one installation, read from the home folder. The database is the target's, not this machine's
# (Debian's rpm keeps its own under ~/.rpmdb). What is mounted while scriptlets run is not the packages' to change.
# The packages' signatures were checked when they were fetched, with the keys of the lock.
MACROS = """%_dbpath {dbpath}
%_db_backend sqlite
%_dbpath_rebuild %{{_dbpath}}
%_rpmlock_path %{{_dbpath}}/.rpm.lock
%_keyringpath %{{_dbpath}}/pubkeys/
%_netsharedpath /proc:/sys:/dev
%_pkgverify_level digest
%_transaction_color 3
%__plugindir {nothing}
"""
# What dnf writes for itself goes into a folder of the root that install.sh removes.
CONFIGURATION = """[main]
assumeyes=True
best=True
cachedir=/.capsulekit/cache
logdir=/.capsulekit/log
persistdir=/.capsulekit/state
reposdir={nothing}
varsdir={nothing}
pluginpath={nothing}
plugins=False
protected_packages=
module_platform_id={platform}
install_weak_deps=False
history_record=False
localpkg_gpgcheck=False
diskspacecheck=False
color=never
"""


@dataclass(frozen=True)
class Target:
    """A release as dnf and rpm have to know it: ``arch`` in RPM's spelling, ``links`` as unpack.sh takes them."""

    release: str
    arch: str
    platform: str
    dbpath: str
    links: str


@cache
def version() -> str:
    """dnf's version; noted in the lock beside rpm's. (Its own --version opens this machine's database and logs.)"""
    return run([_python(), "-I", "-c", "import dnf; print(dnf.VERSION)"], purpose=PURPOSE).strip()


@cache
def _python() -> str:
    """The Python that dnf itself runs with: it has the module dnf."""
    program = Path(tool("dnf", "choose the packages"))
    with program.open("rb") as file:
        first = file.readline(200).split()
    if not first or not first[0].startswith(b"#!"):
        raise CapsulekitError(
            f"{program} is not dnf 4, whose Python module is needed to choose the packages", hint="install dnf 4"
        )
    return first[0][2:].decode()


def ask(question: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Ask dnf (see ask_dnf.py); ``what`` names the distribution in errors.

    Raises CapsulekitError, or TrustError when something does not hold that a key or the lock vouches for.
    """
    env = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
    env |= {"PATH": PATHS, "LC_ALL": "C.UTF-8", "HOME": question["folder"]}
    text = run([_python(), "-I", ASK], purpose="choose the packages", env=env, stdin=json.dumps(question).encode())
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise _refused(answer["error"], answer["text"], answer["name"], str(question["repos"]), what)
    return answer


def _refused(kind: str, text: str, name: str, repos: str, what: str) -> CapsulekitError:
    """dnf's refusals as ours: what, where, the way out."""
    again = "make the lock again with capsulekit lock"
    if re.search(r"No space left|Disk quota", text):
        return DiskFull("could not download the packages: the disk is full", hint="free some space")
    if kind == "missing":
        return CapsulekitError(
            f"there is no package {name} in {what}",
            hint="check its name in the recipe's [packages] or [kernel]; of what several provide, name one",
        )
    if kind == "repos":
        return CapsulekitError(f"{repos}: {text}", hint=f"put the .repo files of {what} there")
    if kind == "key":
        return CapsulekitError(f"{repos}: the repository {name} {text}", hint=f"put the key's file into {repos}")
    if kind == "digest":
        return CapsulekitError(f"the repository {name} {text}", hint="createrepo_c --checksum sha256")
    if kind == "untrusted":
        return TrustError(f"the index of the repository {name} does not hold: {text}")
    if kind == "changed":
        return TrustError(f"the package {name} has changed under its name: its sha256 is now {text}", hint=again)
    if kind == "gone":
        return CapsulekitError(f"the repositories of {what} no longer hold {name}", hint=again)
    if kind == "conflict":
        return CapsulekitError(
            f"the packages cannot be installed together: {text}", hint="remove one of them from the recipe's [packages]"
        )
    if kind in ("unreachable", "download"):
        whom = f"the repository {name}" if name else "a package"
        return CapsulekitError(
            f"{whom} cannot be downloaded: {text}",
            hint="check the network and its proxy, or build from a lock: --lock LOCK --offline",
        )
    return CapsulekitError(f"dnf: {text}")


def make_root(
    target: Target, packages: Path, before: Path | None, extract: bool, epoch: int, work: Path, out: IO[bytes]
) -> None:
    """Install the package files of a folder, with nothing else in reach; stream the whole root as a tar into ``out``.

    ``before`` is the tar of a root to install on top of; ``extract`` only unpacks. Raises CommandFailed, and
    CapsulekitError when a package's own script fails.
    """
    nothing = work / "nothing"
    nothing.mkdir()
    (work / ".rpmmacros").write_text(MACROS.format(dbpath=target.dbpath, nothing=nothing))
    (work / "dnf.conf").write_text(CONFIGURATION.format(platform=target.platform, nothing=nothing))
    argv: list[str | Path] = [
        SHELL, HERE / "install.sh", work, before or "-", packages, "extract" if extract else "install",
        target.dbpath, target.links, sys.executable, target.release, target.arch,
    ]  # fmt: skip
    log = work / "install.log"
    with log.open("wb") as errors:
        env = _environment(work, epoch)
        # A package's files take three to four times what it takes itself.
        needed = 4 * sum(p.stat().st_size for p in packages.iterdir()) + (before.stat().st_size if before else 0)
        memory = room_for(needed)
        status = run_apart(argv, purpose=PURPOSE, env=env, cwd=work, stdout=out, stderr=errors, memory=memory)
    said = log.read_bytes()
    _refuse_half_installed(said.decode("utf-8", "replace"))
    if status != 0:
        raise failed(argv, PURPOSE, status, said)


def _refuse_half_installed(said: str) -> None:
    """What rpm only warns of and goes on; raises CapsulekitError."""
    if scriptlet := SCRIPTLET.search(said):
        why = " ".join(STARTED.split(said[: scriptlet.start()])[-1].split())
        raise CapsulekitError(
            f"the {scriptlet[1]} script of the package {scriptlet[2]} failed: {why}",
            hint="leave the package out, or name what its script needs in [packages]",
        )
    if owner := OWNER.search(said):
        raise CapsulekitError(
            f"a package's files belong to the {owner[1]} {owner[2]}, which no package had made by then",
            hint="the package must declare it (rpm-sysusers(7)) or make it in its %pre script; or leave it out",
        )


def unpack(package: Path, links: str, folder: Path) -> None:
    """Unpack a package's files below ``folder``, through the links of a merged /usr; nothing of it is run."""
    run([SHELL, HERE / "unpack.sh", folder, links, package], purpose="unpack a package")


def _environment(work: Path, epoch: int) -> dict[str, str]:
    """Nothing of the caller's environment reaches the packages' scripts."""
    return {
        "PATH": PATHS,
        "HOME": str(work),
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(work),
        "SOURCE_DATE_EPOCH": str(epoch),
    }
