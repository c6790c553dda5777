"""An edit from its beginning to its end: opened, frozen to be packed, finished or discarded, put right after a crash.

Every function that changes an edit is called by one that holds its lock (record.lock). What is mounted is known by the
edit's folder and its record, which is written before anything is mounted; nothing else is ever unmounted or removed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from capsulekit.edit import record as records
from capsulekit.edit.busy import mount_space, refuse_busy, refuse_elsewhere
from capsulekit.edit.enter import bind_into, enter_root, unbind_from
from capsulekit.edit.mounts import mounted_at, read_only, real_path, remove_tree, unmount_all
from capsulekit.edit.record import EditRecord, edit_folder, keep_room, read_record, write_record
from capsulekit.edit.stack import Image, check_upper, mount_stack, need_root, source_of, unmount_stack
from capsulekit.errors import CapsulekitError

ACL_LISTS = "acls"  # a folder: the layers' ACL lists, topmost first, one file each


def open_edit(
    state: Path,
    key: str,
    *,
    name: str,
    base: str,
    at: Path,
    images: Sequence[Image],
    who: str,
    hybrid: Image | None = None,
    acls: Sequence[bytes] = (),
    blocking: bool = True,
    file: str = "",
) -> EditRecord:
    """Mount a capsule's layers, topmost first, at ``at`` for writing. The caller holds the edit's lock.

    ``state`` is the folder that ``edits/KEY`` is made in; ``base`` the identity of what is edited; ``acls`` the layers'
    ACL lists, topmost first. The mount point is made when it is missing. Raises CapsulekitError, and then nothing is
    left: not root, an edit is there already, a mount point in use, a file system that overlay can't write to.
    """
    need_root("mount a capsule")
    folder = edit_folder(state, key)
    if there := recover(folder):
        raise CapsulekitError(told(there), hint="umount or close it first")
    at = real_path(at)
    own = _check_place(at)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    record = EditRecord(
        key, name, base, str(at), who, int(time.time()),
        blocking=blocking, file=file, own_at=own, images=tuple(images), hybrid=hybrid,
        space=mount_space(),
    ).mine(records.MOUNTING)  # fmt: skip
    write_record(folder, record)
    try:
        check_upper(folder)
        keep_room(folder)
        (folder / ACL_LISTS).mkdir()
        for number, text in enumerate(acls):
            (folder / ACL_LISTS / f"{number:02}").write_bytes(text)
        _mount(folder, record)
    except BaseException:
        discard(folder)
        raise
    return write_record(folder, record.mine(records.OPEN))


def told(record: EditRecord) -> str:
    """One line on who has an edit open, where and since when."""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.since))
    return f"{record.name} is mounted at {record.at} by {record.who} since {since}"


def acls_of(folder: Path) -> list[bytes]:
    """The ACL lists of the layers below an edit, topmost first."""
    return [path.read_bytes() for path in sorted((folder / ACL_LISTS).glob("*"))]


def is_mounted(folder: Path) -> bool:
    """Whether the edit's overlay is where its record says."""
    record = read_record(folder)
    found = mounted_at(place_of(record)) if record else None
    return bool(found and found.kind == "overlay" and found.source == source_of(folder))


def resume(folder: Path) -> EditRecord:
    """Mount an edit again whose mounts are gone (the machine was started anew): what was written is still there.

    Nothing is done when it is mounted; ``recover`` was called before. Raises CapsulekitError: no edit there, or its
    mount point is used by something.
    """
    need_root("mount a capsule")
    record = _record(folder)
    if is_mounted(folder):
        return record
    unmount_stack(folder, place_of(record))
    own = _check_place(place_of(record)) or record.own_at
    record = write_record(
        folder, replace(record, own_at=own, bound=(), made="", space=mount_space()).mine(records.OPEN)
    )
    try:
        _mount(folder, record)
    except BaseException:
        unmount_stack(folder, place_of(record))
        raise
    return record


def _mount(folder: Path, record: EditRecord) -> None:
    at = place_of(record)
    at.mkdir(mode=0o755, parents=True, exist_ok=True)
    mount_stack(folder, record.images, hybrid=record.hybrid, at=at, acls=acls_of(folder))


def _check_place(at: Path) -> bool:
    """Whether the mount point has to be made. Raises CapsulekitError when something else is there."""
    if mounted_at(at):
        raise CapsulekitError(f"something is mounted at {at} already", hint="choose another place with --at")
    try:
        if any(True for _ in at.iterdir()):
            raise CapsulekitError(f"{at} is not empty", hint="choose another place with --at")
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        raise CapsulekitError(f"{at} is not a folder", hint="choose another place with --at") from None
    return False


def place_of(record: EditRecord) -> Path:
    """Where an edit is mounted, as the kernel tells it: without links on the way."""
    return real_path(Path(record.at))


def _record(folder: Path) -> EditRecord:
    record = read_record(folder)
    if record is None:
        raise CapsulekitError(f"{folder.name} is not mounted", hint="mount it first")
    return record


def discard(folder: Path) -> None:
    """Close an edit: unmounted, and what was written is gone. Nothing happens where there is no edit.

    Raises CapsulekitError naming the processes when it is in use; it is as it was then.
    """
    if not folder.exists():
        return
    record = read_record(folder)
    if record:
        _unmount(folder, record)
    _remove(folder, record)


def finish(folder: Path) -> None:
    """The end of an edit that was packed, inside ``frozen`` after the switch.

    A process that came to use it since then keeps what it sees, until it ends: nothing can be lost any more.
    """
    record = read_record(folder)
    if record:
        write_record(folder, replace(record, state=records.CLOSING))
        at = place_of(record)
        if is_mounted(folder):
            unmount_all(at, lazily=True)
    _remove(folder, record)


def _unmount(folder: Path, record: EditRecord) -> None:
    """Unmount the edit; a read-only mount, an unfinished one, and what ``bind`` has mounted go as well."""
    at = place_of(record)
    if is_mounted(folder):
        refuse_busy(at, frozenset(at / path for path in record.bound))
        unbind_from(at, record.bound)
    write_record(folder, replace(record, bound=()).mine(records.CLOSING))
    try:
        unmount_stack(folder, at)
    except OSError as wrong:
        write_record(folder, replace(record, bound=()))
        if wrong.errno != errno.EBUSY:
            raise CapsulekitError(f"can't unmount {at}: {wrong.strerror}") from wrong
        raise CapsulekitError(f"{at} is in use, maybe by an NFS export or a loop device of a file in it") from wrong


def _remove(folder: Path, record: EditRecord | None) -> None:
    """Remove what an unmounted edit has left; its record goes last."""
    unmount_all(folder, lazily=True)  # layers that such a process still sees
    if record and record.own_at:
        with suppress(OSError):
            place_of(record).rmdir()
    remove_tree(*(path for path in folder.iterdir() if path.name != records.FILE))
    (folder / records.FILE).unlink(missing_ok=True)
    folder.rmdir()


@contextmanager
def frozen(folder: Path, switched: Callable[[EditRecord], bool] = lambda _: False) -> Iterator[EditRecord]:
    """An edit that can't be written to while it is packed; the block may ``finish`` it.

    Raises CapsulekitError naming the processes when it is in use. When the block ends and the edit is still there, it
    is mounted and writable as before, or finished where ``switched`` says that its ``made`` is what the capsule is now.
    """
    record = _record(folder)
    if not is_mounted(folder):
        raise CapsulekitError(f"{record.name} is not mounted: the machine was started anew", hint="mount it again")
    at = place_of(record)
    refuse_busy(at, frozenset(at / path for path in record.bound))
    record = write_record(folder, record.mine(records.PACKING))
    bound = bool(record.bound)
    try:
        unbind_from(at, record.bound)
        record = write_record(folder, replace(record, bound=()))
        try:
            read_only(at, True)
        except OSError as wrong:
            raise CapsulekitError(f"{at} is in use: {wrong.strerror}", hint="end what writes into it") from wrong
        yield record
    finally:
        left = read_record(folder)
        if left and left.made and switched(left):
            finish(folder)
        elif left:
            _thaw(folder)
            if bound:
                bind(folder)


def _thaw(folder: Path) -> EditRecord:
    record = _record(folder)
    if is_mounted(folder):
        read_only(place_of(record), False)
    record = write_record(folder, replace(record, made="").mine(records.OPEN))
    keep_room(folder)
    return record


def switching(folder: Path, identity: str) -> None:
    """Note, before it is done, that the edit is about to become the generation ``identity`` (see ``recover``)."""
    write_record(folder, replace(_record(folder), made=identity))


def recover(folder: Path, switched: Callable[[EditRecord], bool] = lambda _: False) -> EditRecord | None:
    """Put right what a dead process has left: called first by every command, which holds the lock.

    An edit that was being made is gone; one that was being packed is writable again, or, when ``switched`` says that
    its ``made`` is what the capsule is now, finished; one that was being closed is closed. Returns the edit that is
    there, mounted or, after a start of the machine, not (``resume``), or None. Raises CapsulekitError for one that is
    mounted in another mount namespace.
    """
    if not folder.exists():
        return None
    record = read_record(folder)
    if record is None:  # killed before its record was there, or after it went
        unmount_all(folder, lazily=True)
        remove_tree(folder)
        return None
    if record.state == records.OPEN:
        if not is_mounted(folder):
            refuse_elsewhere(record.space, source_of(folder))
        return record
    if record.made and switched(record):
        finish(folder)
        return None
    if record.state in (records.MOUNTING, records.CLOSING):
        discard(folder)
        return None
    return _thaw(folder)


def enter(folder: Path, argv: Sequence[str], *, endable: bool = False) -> int:
    """Run a command in the edit's root, as root, and return its exit status (128 and the signal's number when killed).

    It sees /proc, /sys, /dev, empty /run and /tmp, and the machine's resolv.conf; services stay off. None of that is
    mounted anywhere else, and nothing of it stays. What the command starts ends with it; ``endable``: also by a
    SIGTERM or SIGHUP to us, which are its status then. Raises CapsulekitError.
    """
    record = _record(folder)
    if not is_mounted(folder):
        raise CapsulekitError(f"{record.name} is not mounted", hint="mount it first")
    return enter_root(place_of(record), argv, endable=endable)


def bind(folder: Path) -> EditRecord:
    """Mount what programs expect (/proc, /sys, /dev, /run, resolv.conf) into the edit, for a chroot by hand."""
    at = place_of(_record(folder))

    def note(paths: tuple[str, ...]) -> None:
        write_record(folder, replace(_record(folder), bound=paths))

    bind_into(at, note)
    return _record(folder)


def unbind(folder: Path) -> EditRecord:
    """Unmount what ``bind`` has mounted. Raises CapsulekitError where it is in use."""
    record = _record(folder)
    unbind_from(place_of(record), record.bound)
    return write_record(folder, replace(record, bound=()))
