"""A real PostgreSQL server of the tests' own, and the two places a registry can be at."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

USER, PASSWORD = "capsulekit", "right horse"
_number = count()


class PgServer:
    """A cluster in a temporary folder: trust on its socket, passwords on its loopback port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.as_owner: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            ids = ["--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid), "--clear-groups"]
            # --pdeathsig: it ends with whoever runs the tests, however that ends.
            self.as_owner = ["setpriv", *ids, "--pdeathsig", "INT"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        words = ["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256"]
        self._run("initdb", "-N", "-D", str(folder / "data"), *words)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        self.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")

    def _run(self, program: str, *words: str) -> None:
        argv = [*self.as_owner, program_path(program), *words]
        subprocess.run(argv, check=True, capture_output=True, cwd=self.folder, timeout=120)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": str(self.port), "max_connections": "200"}
        settings |= {"unix_socket_directories": str(self.folder)}
        flags = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.as_owner, program_path("postgres"), "-D", str(self.folder / "data"), *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                self.sql("SELECT 1")
                return
            except Exception:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server; clients lose their connections."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=60)

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """One statement as the superuser."""
        import psycopg

        where = {"host": str(self.folder), "port": self.port, "user": "postgres", "dbname": database}
        with psycopg.connect(**where, autocommit=True) as con:  # type: ignore[arg-type]
            cursor = con.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def database(self) -> Iterator[str]:
        """A new database and its address; dropped at the end."""
        name = f"site{next(_number)}"
        self.sql(f"CREATE DATABASE {name} OWNER {USER}")
        yield self.address(name)
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def address(self, database: str) -> str:
        """Through the socket, without a password."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"


def program_path(name: str) -> str:
    """A program of PostgreSQL's: Debian keeps the server's out of PATH."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    assert found, f"{name} is missing: apt-get install postgresql"
    return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[PgServer]:
    """The server, made when the first test needs it."""
    folder = Path(tempfile.mkdtemp(prefix="ckpg-", dir="/tmp"))  # short: a socket's path has 107 bytes
    server = None
    try:
        server = PgServer(folder)
        yield server
    finally:
        if server:
            server.stop()
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where a registry can be: both are tried."""
    if request.param == "sqlite":
        yield tmp_path / "registry.db"
    else:
        with request.getfixturevalue("postgres").database() as address:
            yield address
