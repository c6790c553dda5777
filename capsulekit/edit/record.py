"""What is known of an edit, in its folder: ``record.json``, the one truth about what is mounted for whom."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from capsulekit.edit.stack import Image
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write, read_bounded, remove_parts

EDITS, FILE, ROOM = "edits", "record.json", "room"
MOUNTING, OPEN, PACKING, CLOSING = "mounting", "open", "packing", "closing"
STATES = (MOUNTING, OPEN, PACKING, CLOSING)
MAX_RECORD = 1 << 20  # bytes
ROOM_SIZES = (64 << 10, 32 << 10, 16 << 10)  # bytes
DYING = 5.0  # seconds
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class EditRecord:
    """One edit. ``since`` is seconds since 1970; ``pid`` the process that works on it or has, ``pid_start`` its start.

    ``base`` is the identity of the generation that is edited, ``made`` of the one that is being switched to; ``file``
    is the capsule file, "" for an installed one. ``own_at``: the mount point was made by us. ``bound``: what ``bind``
    has mounted, in its order. ``images`` are topmost first. ``space`` is the mount namespace it was mounted in.
    """

    key: str
    name: str
    base: str
    at: str
    who: str
    since: int
    state: str = MOUNTING
    pid: int = 0
    pid_start: int = 0
    boot_id: str = ""
    blocking: bool = True
    file: str = ""
    made: str = ""
    own_at: bool = False
    space: str = ""
    bound: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    hybrid: Image | None = None

    def mine(self, state: str) -> EditRecord:
        """The same in another state, with this process as the one that works on it."""
        return replace(self, state=state, pid=os.getpid(), pid_start=start_of(os.getpid()), boot_id=boot_id())


def edit_folder(state: Path, key: str) -> Path:
    """Where an edit lies in a state directory."""
    return state / EDITS / key


def key_of_file(path: Path) -> str:
    """The key of a capsule file: by its absolute path."""
    return f"file-{sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"


def edits(state: Path) -> list[EditRecord]:
    """Every edit that has a record, by its key. Raises CapsulekitError for a damaged one."""
    found = (read_record(folder) for folder in sorted((state / EDITS).glob("*/")))
    return [record for record in found if record]


def read_record(folder: Path) -> EditRecord | None:
    """The record in an edit's folder, None where there is none. Raises CapsulekitError for a damaged one."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        data = json.loads(read_bounded(path, MAX_RECORD))
        images = tuple(_image(one) for one in data.pop("images"))
        hybrid = data.pop("hybrid")
        record = EditRecord(
            **{**data, "bound": tuple(data["bound"])}, images=images, hybrid=_image(hybrid) if hybrid else None
        )
    except (ValueError, TypeError, KeyError, AttributeError) as wrong:
        raise CapsulekitError(f"{path} is damaged: {wrong}", hint="close the edit: its changes are lost") from None
    if record.state not in STATES:
        raise CapsulekitError(f"{path} is damaged: no state {record.state!r}")
    return record


def write_record(folder: Path, record: EditRecord) -> EditRecord:
    """Write it in one step, on a full disk too (see keep_room); returns it."""
    remove_parts(folder / FILE)
    data = asdict(record)
    data["images"] = [_told(image) for image in record.images]
    data["hybrid"] = _told(record.hybrid) if record.hybrid else None
    text = json.dumps(data, indent=1).encode() + b"\n"
    try:
        atomic_write(folder / FILE, text, 0o600)
    except OSError as wrong:
        if wrong.errno not in (errno.ENOSPC, errno.EDQUOT) or not (folder / ROOM).exists():
            raise
        (folder / ROOM).unlink()
        atomic_write(folder / FILE, text, 0o600)
    return record


def keep_room(folder: Path) -> None:
    """Hold some room on the disk back: an edit that has filled it has to be closed, for which its record is written."""
    with suppress(OSError), (folder / ROOM).open("wb") as file:
        for size in ROOM_SIZES:
            with suppress(OSError):  # as much as there is
                os.posix_fallocate(file.fileno(), 0, size)
                return


def _image(data: Any) -> Image:
    return Image(Path(data["path"]), int(data["offset"]), int(data["size"]))


def _told(image: Image) -> dict[str, Any]:
    return {"path": str(image.path), "offset": image.offset, "size": image.size}


def alive(record: EditRecord) -> bool:
    """Whether the process that works (or worked) on the edit is still the same running one."""
    return record.boot_id == boot_id() and record.pid > 0 and start_of(record.pid) == record.pid_start != 0


@cache
def boot_id() -> str:
    """What the kernel calls the time since it started."""
    return BOOT_ID.read_text().strip()


def start_of(pid: int) -> int:
    """When a process started, in ticks since boot (proc_pid_stat(5), field 22); 0 when there is none, or a zombie."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if words[0] in (b"Z", b"X") else int(words[19])


@contextmanager
def lock(state: Path, key: str) -> Iterator[Path]:
    """Hold an edit for this process, and give its folder (which need not be there yet).

    Raises CapsulekitError, which names the process, when another one holds it; a dead process holds nothing.
    """
    parent = state / EDITS
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (parent / f".{key}.lock").open("a+b", buffering=0) as file:
        if (told := _take(file)) is not None:
            raise CapsulekitError(_held(key, told, edit_folder(state, key)))
        with suppress(OSError):  # a full disk: the lock holds all the same
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
        yield edit_folder(state, key)


def _take(file: IO[bytes]) -> str | None:
    """Take the lock; or what its holder wrote about itself.

    A child that a killed holder has just started may have the lock for a moment more, until it becomes its program.
    """
    deadline = time.monotonic() + DYING
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            told = (file.read(100) or b"").decode("ascii", "replace").strip()
            if time.monotonic() > deadline or (told.isdecimal() and start_of(int(told))):
                return told
            time.sleep(0.02)
        else:
            return None


def _held(key: str, told: str, folder: Path) -> str:
    record = read_record(folder)
    who = f" of {record.who}" if record else ""
    pid = f" (process {told}{who})" if told.isdecimal() else ""
    return f"another command is working on the edit of {record.name if record else key}{pid}"
