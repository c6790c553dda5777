"""Who vouches for packages: the repositories' keys, whether they have expired, and every package's signature."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.lock.model import Key, Package
from capsulekit.run import CommandFailed, run

PURPOSE = "check the packages' signatures"
# rpm accepts what is not signed unless it is told not to.
STRICT = ("--define", "_pkgverify_level all")
# Package files checked by one process: a command line has an end.
AT_ONCE = 500
SIGNER = re.compile(r"Signature, key ID ([0-9a-fA-F]+): (\w+)")


@cache
def rpm_version() -> str:
    """rpm's version: it lays the files down and writes the root's database."""
    return run(["rpmkeys", "--version"], purpose="install packages").split()[-1]


class Keyring:
    """A private keyring below ``scratch``: what is signed by another key, or by none, is refused."""

    def __init__(self, keys: Sequence[Key], scratch: Path) -> None:
        self._keys, self._folder = keys, scratch / "keyring"
        self._folder.mkdir(mode=0o700)
        for key in keys:
            self._file(key).write_text(key.text)

    def _file(self, key: Key) -> Path:
        return self._folder / f"{key.fingerprint}.asc"

    def refuse_expired(self) -> None:
        """Raise TrustError when a key's own signature says that its time is over."""
        for key in self._keys:
            words = ["--homedir", str(self._folder), "--batch", "--no-options", "--with-colons", "--show-keys"]
            said = run(["gpg", *words, self._file(key)], purpose="read the packages' keys")
            fields = said.split("\n")[0].split(":")
            # doc/DETAILS of GnuPG: field 2 is e for a key past its day, field 7 that day in seconds since 1970.
            if fields[0] == "pub" and fields[1] == "e":
                day = time.strftime("%Y-%m-%d", time.gmtime(int(fields[6])))
                raise TrustError(
                    f"the key {key.fingerprint} that vouches for the packages expired on {day}",
                    hint="get the distribution's new key, or its key with a new date, then make the lock again",
                )

    def check(self, packages: Mapping[Path, Package]) -> None:
        """Check the signature of every package file; raises TrustError naming the first that fails.

        rpm checks the signature over the header, and by the digest in the header the payload.
        """
        if not packages:
            return
        ring = ["--dbpath", str(self._folder / "db")]
        for key in self._keys:
            try:
                run(["rpmkeys", *ring, "--import", self._file(key)], purpose=PURPOSE)
            except CommandFailed as error:
                raise CapsulekitError(f"rpm refuses the key {key.fingerprint}: {error}") from None
        with tempfile.TemporaryDirectory(dir=self._folder) as links:
            # Names of our own: rpm takes some characters of a path for a pattern.
            named = {Path(links, f"{number}.rpm"): path for number, path in enumerate(packages)}
            for link, path in named.items():
                link.symlink_to(path)
            paths = list(named)
            for start in range(0, len(paths), AT_ONCE):
                if not _good(ring, paths[start : start + AT_ONCE]):
                    bad = next((p for p in paths[start : start + AT_ONCE] if not _good(ring, [p])), paths[start])
                    raise _refused(ring, bad, packages[named[bad]])


def _good(ring: Sequence[str], paths: Sequence[Path]) -> bool:
    try:
        run(["rpmkeys", *ring, *STRICT, "--checksig", *paths], purpose=PURPOSE)
    except CommandFailed:
        return False
    return True


def _refused(ring: Sequence[str], path: Path, package: Package) -> TrustError:
    """Why one package fails: rpm's own word, made a sentence."""
    try:
        said = run(["rpmkeys", *ring, *STRICT, "--checksig", "-v", path], purpose=PURPOSE)
    except CommandFailed as error:
        said = error.output
    name = f"{package.name} {package.version}"
    signer = SIGNER.search(said)
    if signer is None:
        return TrustError(f"the package {name} is not signed", hint="its repository must sign it, or leave it out")
    if signer[2] == "NOKEY":
        return TrustError(
            f"the package {name} is signed by the key {signer[1].upper()}, which is none of its distribution's keys",
            hint="name that key in the .repo file's gpgkey if you trust it, then make the lock again",
        )
    return TrustError(f"the signature of the package {name} does not hold", hint="the mirror serves something else")
