"""apt as the solver and the downloader, in a root of its own: the host's packages and sources play no part.

Only the host's way to the network (proxy and certificate settings of Acquire) is taken over. Index files are verified
by apt against the distribution's keyring and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_write, sha256_file
from capsulekit.lock.model import Archive, Package
from capsulekit.run import CommandFailed, run

NETWORK = re.compile(r"Acquire::(?:(?:https?|ftp)::(?:[^:]+::)?(?:Proxy|Proxy-Auto-Detect|CaInfo))\b.*")
MISSING = re.compile(r"Unable to locate package (\S+)|Package '(\S+)' has no installation candidate")
UNTRUSTED = re.compile(r"NO_PUBKEY|is not signed|BADSIG|EXPKEYSIG|couldn't be verified|Hash Sum mismatch")
CONFLICT = re.compile(r"^ (\S+ : (?:Depends|PreDepends|Conflicts|Breaks): .*)$", re.MULTILINE)
UNREACHABLE = re.compile(
    r"Could not resolve|Could not connect|Temporary failure|Unable to connect|unreachable|timed out|Failed to fetch"
)

CONF = """APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
Dir::State "{root}";
Dir::State::Lists "{root}/lists";
Dir::State::Status "{root}/status";
Dir::State::Extended_States "{root}/extended_states";
Dir::Cache "{root}";
Dir::Cache::archives "{root}/archives";
Dir::Etc::Parts "{root}/empty";
Dir::Etc::Main "/dev/null";
Dir::Etc::SourceList "{root}/sources.list";
Dir::Etc::SourceParts "{root}/empty";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "{root}/empty";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "{root}/empty";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
pkgCacheGen::ForceEssential ",";
"""


class AptRoot:
    """A private apt: index files kept between builds below ``root``, one suite and architecture each."""

    def __init__(self, root: Path, arch: str, sources: str, keyring: Path) -> None:
        self.root, self.arch = root, arch
        for sub in ("lists/partial", "archives/partial", "empty"):
            (root / sub).mkdir(parents=True, exist_ok=True)
        signed = re.sub(r"^deb (?:\[[^]]*\] )?", f"deb [signed-by={keyring}] ", sources, flags=re.MULTILINE)
        self._keep("sources.list", signed)
        self._keep("status", "")
        self._keep("apt.conf", CONF.format(arch=arch, root=root) + _host_network())

    def _keep(self, name: str, text: str) -> None:
        path = self.root / name
        if not path.exists() or path.read_text() != text:
            atomic_write(path, text.encode())

    def _apt(self, program: str, *args: str, purpose: str, cwd: Path | None = None) -> str:
        env = {
            "APT_CONFIG": str(self.root / "apt.conf"),
            "LC_ALL": "C.UTF-8",
            "PATH": os.environ.get("PATH", ""),
            "DEBIAN_FRONTEND": "noninteractive",
        }
        env |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
        return run([program, *args], purpose=purpose, env=env, cwd=cwd)

    def update(self) -> None:
        """Refresh the index files; raises CapsulekitError when the archive cannot be reached or is not signed well."""
        try:
            self._apt("apt-get", "-q", "update", purpose="read the package archive's index")
        except CommandFailed as error:
            if bad := UNTRUSTED.search(error.output):
                line = next(line for line in error.output.splitlines() if bad[0] in line)
                raise TrustError(f"the package archive's index does not hold: {_short(line)}") from None
            if UNREACHABLE.search(error.output):
                cause = next(line for line in error.output.splitlines() if UNREACHABLE.search(line))
                raise CapsulekitError(
                    f"the package archive cannot be reached: {_short(cause)}",
                    hint="check the network and its proxy, or build from a lock: --lock LOCK --offline",
                ) from None
            raise

    def archives(self) -> tuple[tuple[Archive, ...], int]:
        """The signed index files in use, and the newest date among them in seconds since 1970."""
        found, newest = [], 0
        for path in sorted((self.root / "lists").glob("*Release")):
            text = path.read_text(encoding="utf-8", errors="replace")
            date = re.search(r"^Date: (.+)$", text, re.MULTILINE)
            suite = re.search(r"^Codename: (.+)$", text, re.MULTILINE)
            if not date or not suite:
                raise CapsulekitError(f"{path.name}: the archive's Release file has no date or codename")
            newest = max(newest, int(parsedate_to_datetime(date[1]).timestamp()))
            found.append(Archive(suite[1], sha256_file(path)))
        return tuple(found), newest

    def solve(self, names: Sequence[str], essential: bool) -> tuple[Package, ...]:
        """Every package that has to be installed for ``names``, sorted; raises CapsulekitError for an unknown one."""
        if not names and not essential:
            return ()
        wanted = [*(["?essential"] if essential else []), *names]
        try:
            text = self._apt(
                "apt-get", "-q", "-y", "--print-uris", "install", "--", *wanted, purpose="choose the packages"
            )
        except CommandFailed as error:
            if missing := MISSING.search(error.output):
                raise _no_package(missing[1] or missing[2], self.arch) from None
            if conflict := CONFLICT.search(error.output):
                raise CapsulekitError(
                    f"the packages cannot be installed together: {conflict[1]}",
                    hint="remove one of them from the recipe's [packages]",
                ) from None
            raise
        files = [line.split() for line in text.splitlines() if line.startswith("'")]
        chosen = [(f[1].split("_")[0], f[1].split("_")[1].replace("%3a", ":")) for f in files]
        # apt takes a name it does not know for a pattern, or for what some other package provides: say so instead.
        if unknown := [n for n in names if n.split(":")[0] not in {name for name, _ in chosen}]:
            raise _no_package(unknown[0], self.arch)
        return tuple(sorted(self._packages([f"{name}={version}" for name, version in chosen])))

    def _packages(self, specs: Sequence[str]) -> list[Package]:
        text = self._apt("apt-cache", "show", "--no-all-versions", "--", *specs, purpose="read the packages' digests")
        found: dict[str, Package] = {}
        for stanza in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
            if "Package" not in fields:
                continue
            package = Package(
                fields["Package"],
                fields["Version"],
                fields["Architecture"],
                int(fields["Size"]),
                fields["SHA256"],
                fields["Filename"],
            )
            found[f"{package.name}={package.version}"] = package
        if lacking := [s for s in specs if s not in found]:
            raise CapsulekitError(f"apt chose {lacking[0]} but its index does not describe it")
        return list(found.values())

    def download(self, packages: Sequence[Package]) -> list[Path]:
        """Download packages by exact version, without what they depend on; the files, in the same order."""
        specs = [f"{p.name}={p.version}" for p in packages]
        folder = self.root / "archives"
        try:
            self._apt("apt-get", "-q", "download", "--", *specs, purpose="download the packages", cwd=folder)
        except CommandFailed as error:
            if "was not found" in error.output or "Unable to locate" in error.output:
                raise CapsulekitError(
                    "the lock names packages the archive no longer holds",
                    hint="make the lock again with capsulekit lock",
                ) from None
            if UNREACHABLE.search(error.output):
                raise CapsulekitError(
                    "the packages cannot be downloaded: the archive is out of reach",
                    hint="check the network and its proxy, then run the same command again",
                ) from None
            raise
        return [folder / p.filename for p in packages]


def _no_package(name: str, arch: str) -> CapsulekitError:
    return CapsulekitError(
        f"there is no package {name} in this release for {arch}",
        hint="check its name in the recipe's [packages] or [kernel]; of a virtual package, name one that provides it",
    )


def _host_network() -> str:
    """How this host reaches the network, as apt's own configuration says it."""
    text = run(["apt-config", "dump"], purpose="read how this machine reaches the network")
    return "".join(line + "\n" for line in text.splitlines() if NETWORK.match(line))


def _short(line: str) -> str:
    return re.sub(r"^[EW]: (Failed to fetch )?", "", line).strip()
