"""The running server's record, which its own threads write."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from capsulekit.sitepaths import SitePaths
from provisioner.server import record
from provisioner.server.record import Record, record_file, write_record


class Manager:
    """Stands in for the network manager and the NFS manager: only what it says of itself is asked for here."""

    def status(self) -> dict[str, Any]:
        return {"dnsmasq": {}}


def test_an_older_look_never_comes_after_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reload came to was lost where the look of each half second was written between it and its note."""
    paths = SitePaths(tmp_path / "etc", tmp_path / "var")
    paths.state.mkdir()
    older_began, newer_written, older_ended = threading.Event(), threading.Event(), threading.Event()

    def slowly(paths: SitePaths, since: float, more: dict[str, Any]) -> None:
        # Without a lock: the newer is written first, the older over it, and the newer is noted last.
        if more["reloads"] == 0:
            older_began.set()
            newer_written.wait(1)
        write_record(paths, since, more)
        if more["reloads"] == 1:
            newer_written.set()
            older_ended.wait(5)

    monkeypatch.setattr(record, "write_record", slowly)
    kept = Record(paths, Manager(), Manager())  # type: ignore[arg-type]

    def look() -> None:
        kept.write()
        older_ended.set()

    older, newer = threading.Thread(target=look), threading.Thread(target=kept.write)
    older.start()
    assert older_began.wait(5)
    kept.reloads = 1
    newer.start()
    for thread in (older, newer):
        thread.join(10)
    kept.write()  # the next half second's look
    assert json.loads(record_file(paths).read_text())["reloads"] == 1
