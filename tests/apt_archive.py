"""A small apt archive made on the spot: real packages, a real index, signed by a throw-away key, served over HTTP.

It stands in for a mirror where a test needs one that misbehaves; what reads it is the real apt.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import threading
import time
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def run(*argv: str | Path, env: dict[str, str] | None = None, stdin: bytes | None = None) -> bytes:
    done = subprocess.run([str(a) for a in argv], capture_output=True, check=False, env=env, input=stdin, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class Mirror(ThreadingHTTPServer):
    """Serves a folder on loopback; of the files in ``cut`` only the first half is sent, then the line goes dead."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.cut: set[str] = set()
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(SimpleHTTPRequestHandler):
    server: Mirror

    def log_message(self, *words: object) -> None:
        self.server.asked.append(self.path)

    def copyfile(self, source: object, outputfile: object) -> None:
        data = source.read()  # type: ignore[attr-defined]
        cut = Path(self.path).name in self.server.cut
        outputfile.write(data[: len(data) // 2] if cut else data)  # type: ignore[attr-defined]
        if cut:
            self.close_connection = True


class Archive:
    """``folder`` is the archive, ``repos`` what CAPSULEKIT_REPOS_DIR has to be; Debian 12 amd64 by its name."""

    def __init__(self, where: Path) -> None:
        self.folder, self.repos, self._home = where / "archive", where / "repos", where / "gnupg"
        self._home.mkdir(parents=True, mode=0o700)
        self._env = {"PATH": os.environ["PATH"], "GNUPGHOME": str(self._home), "LC_ALL": "C.UTF-8"}
        (self.folder / "pool").mkdir(parents=True)
        self.own = self.repos / "debian-12"
        self.own.mkdir(parents=True)
        self.mirror = Mirror(self.folder)
        address = f"http://127.0.0.1:{self.mirror.server_address[1]}"
        (self.own / "sources.list").write_text(f"deb {address} bookworm main\n")
        # HTTP tells times in seconds: two publications within one would be "not modified" to apt.
        self._published = int(time.time()) - 3600
        self.key = self.new_key("archive")
        self.publish_key(self.key)

    def new_key(self, name: str, *when: str) -> str:
        """Make a signing key; ``when`` are (creation, expiry) as gpg takes them. Returns its fingerprint."""
        created, expires = when or ("", "never")
        fake = ["--faked-system-time", created] if created else []
        who = f"{name} <{name}@example>"
        run("gpg", "--batch", "--quiet", *fake, "--passphrase", "", "--quick-generate-key", who, "ed25519", "sign",
            expires, env=self._env)  # fmt: skip
        listed = run("gpg", "--batch", "--with-colons", "--list-keys", who, env=self._env).decode()
        return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))

    def publish_key(self, key: str) -> None:
        """Make a key the one that builds trust."""
        (self.own / "keys.gpg").write_bytes(run("gpg", "--batch", "--export", key, env=self._env))

    def package(self, name: str, version: str, files: dict[str, bytes], **fields: str) -> Path:
        """Add a package with these files (path -> content; a trailing "!" makes it executable)."""
        tree = self.folder.parent / "trees" / f"{name}-{version}-{time.monotonic_ns()}"
        for path, data in files.items():
            target = tree / path.rstrip("!").lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if path.endswith("!") else 0o644)
        (tree / "DEBIAN").mkdir(parents=True)
        lines = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": "nobody <n@example>",
                 "Description": "made by a test", **{k.replace("_", "-"): v for k, v in fields.items()}}  # fmt: skip
        (tree / "DEBIAN/control").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
        deb = self.folder / "pool" / f"{name}_{version}_amd64.deb"
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, deb)
        return deb

    def publish(self, key: str = "", date: float | None = None, faked: str = "", **more: str) -> None:
        """Write the index of what is in the pool and sign it: with another ``key``, at another time (``faked``)."""
        stanzas = []
        for deb in sorted((self.folder / "pool").glob("*.deb")):
            control = run("dpkg-deb", "-f", deb).decode().strip()
            data = deb.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            stanzas.append(f"{control}\nFilename: pool/{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n")
        index = "\n".join(stanzas).encode()
        dists = self.folder / "dists/bookworm"
        (dists / "main/binary-amd64").mkdir(parents=True, exist_ok=True)
        lines = ""
        for name, data in (("Packages", index), ("Packages.gz", gzip.compress(index, mtime=0))):
            (dists / "main/binary-amd64" / name).write_bytes(data)
            lines += f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/{name}\n"
        head = {"Origin": "test", "Suite": "stable", "Codename": "bookworm", "Architectures": "amd64",
                "Components": "main", "Date": formatdate(date or 1_700_000_000, usegmt=True), **more}  # fmt: skip
        release = "".join(f"{k.replace('_', '-')}: {v}\n" for k, v in head.items()) + "SHA256:\n" + lines
        when = ["--faked-system-time", faked] if faked else []
        signed = run("gpg", "--batch", "--quiet", *when, "--passphrase", "", "--pinentry-mode", "loopback",
                     "--local-user", key or self.key, "--clearsign", env=self._env, stdin=release.encode())  # fmt: skip
        (dists / "InRelease").write_bytes(signed)
        self._published += 60
        for path in (p for p in dists.rglob("*") if p.is_file()):
            os.utime(path, (self._published, self._published))

    def stop(self) -> None:
        """End the mirror, and gpg's agent, which works in the background for this folder only."""
        self.mirror.shutdown()
        self.mirror.server_close()
        subprocess.run(["gpgconf", "--kill", "all"], env=self._env, capture_output=True, check=False, timeout=30)
