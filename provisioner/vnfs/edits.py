"""Which installed capsules are mounted for editing, and what their nodes are told meanwhile: blocking mode.

The one truth about it is the edit's record, ``STATE/edits/NAME/record.json``: nothing of it is in the registry, so a
killed command or a restarted master leaves no node waiting for something that nobody can see or end.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from capsulekit.edit.record import EDITS, FILE, EditRecord, boot_id, edit_folder, read_record
from capsulekit.errors import CapsulekitError, printable
from capsulekit.sitepaths import SitePaths

# What a node that waits is told first; the rest of the line is for people.
MOUNTED = "capsule-mounted"
LONGEST_WHO = 64


def when(since: float) -> str:
    """Epoch seconds as ``2026-11-23 01:40 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))


def left_behind(record: EditRecord) -> bool:
    """Whether the machine was restarted since the capsule was mounted: its changes are there, its mounts are not."""
    return record.boot_id != boot_id()


def told(record: EditRecord) -> str:
    """ "tiny-1.0.amd64 is mounted for editing by alice since 2026-11-23 01:40 UTC", in plain ASCII, one line."""
    who = "".join(c if c.isascii() else "?" for c in printable(record.who))[:LONGEST_WHO] or "somebody"
    gone = ", and the master was restarted meanwhile" if left_behind(record) else ""
    return f"{record.name} is mounted for editing by {who} since {when(record.since)}{gone}"


@dataclass
class Edits:
    """The edits of one site, as the server looks at them: one stat each time, as long as nothing changes."""

    paths: SitePaths
    _known: dict[str, tuple[tuple[int, ...], EditRecord | None]] = field(default_factory=dict)

    def of(self, name: str) -> EditRecord | None:
        """The edit of the capsule of exactly this name, or None. Raises CapsulekitError for a damaged record."""
        folder = edit_folder(self.paths.state, name)
        try:
            seen = (folder / FILE).stat()
        except OSError:
            self._known.pop(name, None)
            return None
        mark = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
        known = self._known.get(name)
        if known is None or known[0] != mark:
            known = self._known[name] = (mark, read_record(folder))
        return known[1]

    def wait_reason(self, name: str) -> str:
        """Why nodes of this capsule wait (``capsule-mounted`` and a sentence), or ""."""
        try:
            record = self.of(name)
        except CapsulekitError:
            return f"{MOUNTED} {name} is mounted for editing, and the record of the edit is damaged"
        return f"{MOUNTED} {told(record)}" if record is not None and record.blocking else ""


def mounted(paths: SitePaths, name: str) -> dict[str, Any] | None:
    """What lists say of the edit of a capsule: where, who, since (epoch seconds), blocking, and a sentence; or None."""
    try:
        record = Edits(paths).of(name)
    except CapsulekitError as damaged:
        return {"at": "", "who": "", "since": 0, "blocking": True, "told": damaged.message}
    if record is None:
        return None
    waits = "nodes wait" if record.blocking else "nodes take the last generation"
    sentence = f"{told(record)}, at {record.at}: {waits}"
    return {"at": record.at, "who": record.who, "since": record.since, "blocking": record.blocking, "told": sentence}


def known_edits(paths: SitePaths) -> list[EditRecord]:
    """Every edit whose record can be read, by key; of one that is damaged nothing is known."""
    found = []
    for folder in sorted((paths.state / EDITS).glob("*/")):
        with suppress(CapsulekitError):
            record = read_record(folder)
            found += [record] if record is not None else []
    return found


def warning(paths: SitePaths, name: str) -> str:
    """What to tell whoever changes a capsule that is mounted, or ""."""
    record = next((one for one in known_edits(paths) if one.key == name), None)
    if record is None:
        return ""
    return f"{told(record)}: what is changed there is not in this generation, and its umount will be refused"
