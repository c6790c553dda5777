"""apt as the solver and the downloader, in a root of its own: the host's packages and sources play no part.

Only the host's way to the network (proxy and certificate settings of Acquire) is taken over. Index files are verified
by apt against the distribution's keyring and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_write, sha256_bytes, sha256_file
from capsulekit.lock.model import Archive, Package
from capsulekit.run import CommandFailed, run

NETWORK = re.compile(r"Acquire::(?:(?:https?|ftp)::(?:[^:]+::)?(?:Proxy|Proxy-Auto-Detect|CaInfo))\b.*")
MISSING = re.compile(r"Unable to locate package (\S+)|Package '(\S+)' has no installation candidate")
UNTRUSTED = re.compile(
    r"NO_PUBKEY|is not signed|BADSIG|EXPKEYSIG|EXPSIG|KEYEXPIRED|couldn't be verified|Hash Sum mismatch|"
    r"does not have a Release file|not a clearsigned|Clearsigned file isn't valid|is expired|File has unexpected size"
)
MISSING_VERSION = re.compile(r"Version '([^']+)' for '([^']+)' was not found")
CONFLICT = re.compile(r"^ (\S+ : (?:Depends|PreDepends|Conflicts|Breaks): .*)$", re.MULTILINE)
# What a mirror that serves something else than its index promised makes apt say, with the file's name.
NOT_AS_SIGNED = re.compile(r"(Hash Sum mismatch|File has unexpected size|Size mismatch)")
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
Dir::Etc::Preferences "{root}/preferences";
Dir::Etc::PreferencesParts "{root}/empty";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "{root}/empty";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
pkgCacheGen::ForceEssential ",";
"""


class AptRoot:
    """A private apt: index files kept between builds below ``root``, one suite and architecture each."""

    def __init__(self, root: Path, arch: str, sources: str, keyring: Path) -> None:
        self.root, self.arch = root, arch
        for sub in ("lists/partial", "archives/partial", "empty"):
            (root / sub).mkdir(parents=True, exist_ok=True)
        self._signed = re.sub(r"^deb (?:\[[^]]*\] )?", f"deb [signed-by={keyring}] ", sources, flags=re.MULTILINE)
        self._keep("sources.list", self._signed)
        self._keep("status", "")
        self._keep("preferences", "")
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

    def indexes(self) -> list[Path]:
        """The signed index files (InRelease) in use."""
        return sorted((self.root / "lists").glob("*Release"))

    def archives(self) -> tuple[tuple[Archive, ...], int]:
        """The signed index files in use, and the newest date among them in seconds since 1970."""
        found, newest = [], 0
        for path in self.indexes():
            text = path.read_text(encoding="utf-8", errors="replace")
            date = re.search(r"^Date: (.+)$", text, re.MULTILINE)
            suite = re.search(r"^Codename: (.+)$", text, re.MULTILINE)
            if not date or not suite:
                raise CapsulekitError(f"{path.name}: the archive's Release file has no date or codename")
            newest = max(newest, int(parsedate_to_datetime(date[1]).timestamp()))
            found.append(Archive(suite[1], sha256_file(path)))
        return tuple(found), newest

    def pin(self, kept: Sequence[Package], repository: Path | None) -> None:
        """Keep packages at their versions; those the archive no longer holds lie in the flat ``repository``."""
        pins = [f"Package: {p.name}\nPin: version {p.version}\nPin-Priority: 1001\n" for p in kept]
        self._keep("preferences", "\n".join(pins))
        own = f"\ndeb [trusted=yes] copy:{repository} ./\n" if repository else ""
        self._keep("sources.list", self._signed + own)

    def solve_stages(self, stages: Sequence[Sequence[str]], essential: bool) -> tuple[Package, ...]:
        """The packages of every stage, each chosen on top of those before; sorted; raises CapsulekitError."""
        chosen: list[Package] = []
        stanzas: list[Stanza] = []
        for number, names in enumerate(stages):
            more = self.solve(names, essential and number == 0, number, stanzas)
            fresh = [s.package for s in more]
            chosen += fresh
            stanzas += more
        by = needed_by(stanzas, [n for names in stages for n in names])
        return tuple(sorted(replace(p, by=by.get(p.name, "")) for p in chosen))

    def solve(self, names: Sequence[str], essential: bool, stage: int = 0, have: Sequence[Stanza] = ()) -> list[Stanza]:
        """Every package that has to be installed for ``names`` beside the installed ``have``.

        Raises CapsulekitError, for an unknown name or a conflict.
        """
        wanted = [*(["?essential"] if essential else []), *names]
        if not wanted:
            return []
        installed = "".join(f"{s.text}\nStatus: install ok installed\n\n" for s in have)
        # A name of its own: several parts of a lock are solved at once.
        status = self.root / f"status-{sha256_bytes(installed.encode())[:16]}"
        self._keep(status.name, installed)
        try:
            text = self._apt(
                "apt-get", "-o", f"Dir::State::Status={status}", "-q", "-y", "--no-remove", "--no-upgrade",
                "--print-uris", "install", "--", *wanted, purpose="choose the packages",
            )  # fmt: skip
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
        there = {name for name, _ in chosen} | {s.package.name for s in have}
        if unknown := [n for n in names if n.split(":")[0] not in there]:
            raise _no_package(unknown[0], self.arch)
        return self._packages([f"{name}={version}" for name, version in chosen], stage)

    def _packages(self, specs: Sequence[str], stage: int) -> list[Stanza]:
        if not specs:
            return []
        text = self._apt("apt-cache", "show", "--no-all-versions", "--", *specs, purpose="read the packages' digests")
        found: dict[str, Stanza] = {}
        for one in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", one, re.MULTILINE))
            if "Package" not in fields:
                continue
            package = Package(
                fields["Package"],
                fields["Version"],
                fields["Architecture"],
                int(fields["Size"]),
                fields["SHA256"],
                fields["Filename"].removeprefix("./"),
                stage,
            )
            found[f"{package.name}={package.version}"] = Stanza(package, one.strip(), fields)
        if lacking := [s for s in specs if s not in found]:
            raise CapsulekitError(f"apt chose {lacking[0]} but its index does not describe it")
        return [found[s] for s in specs]

    def download(
        self, packages: Sequence[Package], folder: Path, take: Callable[[Package, Path], None], lanes: int = 4
    ) -> None:
        """Download packages by exact version, several at once; ``take`` gets each file. Raises CapsulekitError.

        apt fetches one file at a time from a host: so there are ``lanes`` apts, each with its share of the bytes.
        """
        shares: list[list[Package]] = [[] for _ in range(min(lanes, len(packages)))]
        for package in sorted(packages, key=lambda p: p.size, reverse=True):
            min(shares, key=lambda share: sum(p.size for p in share)).append(package)
        with ThreadPoolExecutor(len(shares)) as pool:
            jobs = [pool.submit(self._lane, share, folder / str(n), take) for n, share in enumerate(shares)]
        for job in jobs:
            job.result()

    def _lane(self, packages: Sequence[Package], folder: Path, take: Callable[[Package, Path], None]) -> None:
        folder.mkdir()
        try:
            specs = [f"{p.name}={p.version}" for p in packages]
            self._apt("apt-get", "-q", "download", "--", *specs, purpose="download the packages", cwd=folder)
        except CommandFailed as error:
            raise _not_downloaded(error, packages) from None
        for package in packages:
            take(package, folder / apt_filename(package))


def apt_filename(package: Package) -> str:
    """Name under which apt keeps a package: the epoch's colon is escaped."""
    return f"{package.name}_{package.version.replace(':', '%3a')}_{package.arch}.deb"


def _not_downloaded(error: CommandFailed, packages: Sequence[Package]) -> CapsulekitError:
    failed = " ".join(line for line in error.output.splitlines() if line.startswith("E: "))
    named = [p for p in packages if apt_filename(p) in failed or p.path.rpartition("/")[2] in failed]
    if NOT_AS_SIGNED.search(error.output):
        return TrustError(
            f"the mirror serves another {named[0].name if named else 'package'} than its signed index says",
            hint="nothing of it was kept; try again later, or another mirror",
        )
    if "was not found" in error.output or "Unable to locate" in error.output:
        lacking = MISSING_VERSION.search(error.output)
        which = f", such as {lacking[2]} {lacking[1]}" if lacking else ""
        return CapsulekitError(
            f"the lock names packages the archive no longer holds{which}",
            hint="make the lock again with capsulekit lock",
        )
    if UNREACHABLE.search(error.output):
        return CapsulekitError(
            f"{f'the package {named[0].name}' if named else 'a package'} cannot be downloaded: {_short(failed)}",
            hint="check the network and its proxy, then run the same command again",
        )
    return error


@dataclass(frozen=True)
class Stanza:
    """A package as the index describes it: the whole text, and its one-line fields."""

    package: Package
    text: str
    fields: Mapping[str, str]


def needed_by(stanzas: Sequence[Stanza], wanted: Sequence[str]) -> dict[str, str]:
    """Package -> what asked for it: "recipe", "essential", or the package that depends on it on the shortest way."""
    names = {s.package.name for s in stanzas}
    provided: dict[str, list[str]] = {}
    for s in stanzas:
        for virtual in _names(s.fields.get("Provides", "")):
            provided.setdefault(virtual[0], []).append(s.package.name)
    by = dict.fromkeys((n.split(":")[0] for n in wanted if n.split(":")[0] in names), "recipe")
    essential = [s.package.name for s in stanzas if s.fields.get("Essential") == "yes"]
    by = dict.fromkeys(essential, "essential") | by
    of = {s.package.name: s for s in stanzas}
    queue = sorted(by)
    while queue:
        name = queue.pop(0)
        fields = of[name].fields
        for choice in _names(f"{fields.get('Pre-Depends', '')}, {fields.get('Depends', '')}"):
            there = [n for one in choice for n in ([one] if one in names else provided.get(one, []))]
            for needed in sorted(there):
                if needed not in by:
                    by[needed] = name
                    queue.append(needed)
    # What is left (essential packages' own, priority required) comes with the system.
    return {name: by.get(name, "essential") for name in names}


def _names(relation: str) -> list[list[str]]:
    """ "a (>= 1), b | c:any" -> [["a"], ["b", "c"]] (Debian policy 7.1)."""
    groups = [[re.split(r"[\s(:\[<]", one.strip(), maxsplit=1)[0] for one in g.split("|")] for g in relation.split(",")]
    return [[n for n in group if n] for group in groups if any(group)]


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
