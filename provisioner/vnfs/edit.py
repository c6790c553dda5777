"""Editing a capsule: mount it for writing, umount it into a new generation (or a new file), or close it unchanged.

Every command first puts right what a killed one has left (``there``), and holds the edit's lock while it works.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsulekit.edit import record as records
from capsulekit.edit import session
from capsulekit.edit.busy import refuse_busy
from capsulekit.edit.mounts import mounts, mounts_in, remove_tree, unmount_all
from capsulekit.edit.record import EditRecord, edit_folder, read_record, write_record
from capsulekit.edit.stack import UPPER, need_root, source_of
from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.vnfs import editpack
from provisioner.vnfs.edits import left_behind, told
from provisioner.vnfs.editsave import Signer, Target, full_disk, noted, target_of
from provisioner.vnfs.editsubject import Subject, damaged_key, edit_of, file_subject, installed, looks_like_file

if TYPE_CHECKING:
    from provisioner.vnfs.store import VnfsStore

MNT = Path("/mnt")
# In an edit's folder while `shell` works in it: which kind.
SHELL, COMMAND, TERMINAL = "shell", "command", "interactive"


@dataclass(frozen=True)
class Editor:
    """Who edits, and where: the site's folders, and its store (None where only a capsule file is edited)."""

    paths: SitePaths
    store: VnfsStore | None
    who: str


@dataclass(frozen=True)
class Mounted:
    """A capsule that is mounted; ``resumed`` says in a sentence what was taken over, "" for a new edit."""

    record: EditRecord
    resumed: str = ""
    dry_run: bool = False


@dataclass(frozen=True)
class Unmounted:
    """What an umount came to (or would): ``identity`` is ``base`` when nothing had changed.

    ``changes`` is Changes.summary(), ``size`` the new layer's bytes, ``flattened`` how many layers became one,
    ``initrd`` why it was made again, or "". ``lines`` say it all for people; ``file`` is the capsule file written.
    """

    name: str
    at: str
    base: str
    identity: str
    changes: dict[str, Any]
    lines: tuple[str, ...]
    size: int = 0
    flattened: int = 0
    initrd: str = ""
    file: str = ""
    dry_run: bool = False


def mount(
    editor: Editor,
    word: str,
    *,
    at: Path | None = None,
    chroot: bool = False,
    blocking: bool = True,
    pubkeys: Sequence[Path] = (),
    dry_run: bool = False,
) -> Mounted:
    """Mount a capsule for editing; an edit that a restart of the machine or a killed shell has left is gone on with.

    Raises CapsulekitError when it is mounted already (by whom, since when, where), or can't be; TrustError for a
    capsule file that nobody trusted has signed.
    """
    subject = find(editor, word, pubkeys)
    if dry_run:
        there_now = read_record(edit_folder(editor.paths.state, subject.key))
        if there_now is not None and not left_behind(there_now):
            raise taken(there_now)
        return Mounted(_planned(editor, subject, at or default_place(word, subject), blocking), dry_run=True)
    need_root("mount a capsule")
    with records.lock(editor.paths.state, subject.key) as folder:
        record, resumed = there(editor, folder), ""
        if record is None:
            record = begin(editor, subject, at or default_place(word, subject), blocking)
        else:
            record, resumed = _gone_on(folder, record, at)
        if chroot:
            record = session.bind(folder)
        return Mounted(record, resumed)


def find(editor: Editor, word: str, pubkeys: Sequence[Path] = ()) -> Subject:
    """What a word on a command line means. Raises CapsulekitError for an unknown name."""
    if editor.store is None or looks_like_file(word):
        return file_subject(word, editor.paths, pubkeys)
    return installed(editor.store, editor.store.get(word))


def begin(editor: Editor, subject: Subject, at: Path, blocking: bool) -> EditRecord:
    """Mount it; the edit's lock is held."""
    return session.open_edit(
        editor.paths.state,
        subject.key,
        name=subject.name,
        base=subject.identity,
        at=at,
        images=subject.images,
        who=editor.who,
        hybrid=subject.hybrid,
        acls=subject.acls,
        blocking=blocking and not subject.file,
        file=subject.file,
    )


def there(editor: Editor, folder: Path) -> EditRecord | None:
    """The edit in a folder, after what a killed command has left there was put right; None when there is none.

    The edit's lock is held. What was placed in the store for a generation that was never made is taken away.
    """
    before = None
    with suppress(CapsulekitError):  # a damaged record: recover says so
        before = read_record(folder)
    out = noted(folder)
    record = session.recover(folder, lambda one: target_of(editor.paths, editor.store, one, out).came_to_be(one.made))
    if before is not None and before.state != records.OPEN:
        editpack.clear(folder)
        target_of(editor.paths, editor.store, before, out).sweep()
    return record


def sweep_folders(editor: Editor) -> None:
    """Take away folders of edits that were killed before their record was there, or after it went."""
    for folder in sorted((editor.paths.state / records.EDITS).glob("*/")):
        if not (folder / records.FILE).exists():
            with suppress(CapsulekitError), records.lock(editor.paths.state, folder.name):
                session.recover(folder)  # whoever is making it holds the lock


def umount(
    editor: Editor,
    word: str,
    asked: editpack.Asked,
    *,
    message: str = "",
    out: Path | None = None,
    signer: Signer | None = None,
    dry_run: bool = False,
) -> Unmounted:
    """Pack what was changed, let it be what nodes boot from now on (or write the file), and unmount.

    Without a change nothing is made. Raises CapsulekitError when it is not mounted, is in use, was changed by another
    command meanwhile, or can't be packed: it is still mounted then, and what nodes boot is what it was.
    """
    sweep_folders(editor)
    record = edit_of(word, editor.paths, editor.store)
    with records.lock(editor.paths.state, record.key) as folder:
        found = there(editor, folder)
        if found is None:
            return _came_through(editor, record)
        if not session.is_mounted(folder):
            raise _restarted(found)
        if left_by(folder) == COMMAND:
            raise _half_done(found)
        target = target_of(editor.paths, editor.store, found, out, signer)
        return finish(folder, found, target, asked, message, dry_run=dry_run)


def finish(
    folder: Path, record: EditRecord, target: Target, asked: editpack.Asked, message: str, *, dry_run: bool
) -> Unmounted:
    """Pack, save, unmount; the edit's lock is held. Raises as umount does."""
    base = target.base()
    settled = editpack.settled(folder, record, base, asked, dry_run=dry_run)
    if dry_run:
        return _unmounted(record, editpack.planned(folder, record, base, settled, asked), record.base, dry_run=True)
    with full_disk(folder), session.frozen(folder) as record, editpack.work_folder(folder) as work:
        packed = editpack.pack(folder, record, base, settled, asked, work)
        identity = record.base
        if packed.parts or packed.drop:
            identity = target.save(folder, record, packed, message)
        session.finish(folder)
    return _unmounted(record, packed, identity, file=target.file if identity != record.base else "")


def close(editor: Editor, word: str, *, dry_run: bool = False) -> tuple[EditRecord, tuple[str, ...], bool]:
    """Unmount and discard what was changed: (the edit, what is lost, whether it is gone now).

    Raises CapsulekitError when it is not mounted or in use; it is as it was then.
    """
    sweep_folders(editor)
    if damaged := _damaged(editor, word):
        return _close_damaged(editor, damaged, dry_run=dry_run)
    record = edit_of(word, editor.paths, editor.store)
    with records.lock(editor.paths.state, record.key) as folder:
        found = there(editor, folder)
        lost = lost_in(folder, found) if found is not None else ()
        if found is None or dry_run:
            return record, lost, found is None
        session.discard(folder)
    return record, lost, True


def _damaged(editor: Editor, word: str) -> str:
    """The key of the edit that a word means, when its record is damaged; else ""."""
    name = word
    if editor.store is not None and "/" not in word:
        with suppress(CapsulekitError):
            name = editor.store.get(word).name
    return damaged_key(name, editor.paths)


def _close_damaged(editor: Editor, key: str, *, dry_run: bool) -> tuple[EditRecord, tuple[str, ...], bool]:
    """Close an edit of which only the folder is known: its overlay bears the folder's name."""
    record = EditRecord(key, key, "", "", editor.who, 0)
    lost = ("all that was changed; the record of the edit is damaged, so it can't be told",)
    if not dry_run:
        with records.lock(editor.paths.state, key) as folder:
            for found in [m for m in mounts() if m.kind == "overlay" and m.source == source_of(folder)]:
                refuse_busy(found.at, frozenset(m.at for m in mounts_in(found.at)))
                unmount_all(found.at)
            unmount_all(folder)
            remove_tree(folder)
    return record, lost, not dry_run


def lost_in(folder: Path, record: EditRecord) -> tuple[str, ...]:
    """What closing an edit discards, a line each; nothing when nothing was changed."""
    if session.is_mounted(folder):
        return editpack.changed_lines(folder, record)
    # Nothing is mounted, so what was written can't be compared with what is below.
    written = sum(1 for _ in (folder / UPPER).rglob("*")) if (folder / UPPER).is_dir() else 0
    return (f"{written} files and folders that were written before {_how_gone(record)}",) if written else ()


def _gone_on(folder: Path, record: EditRecord, at: Path | None) -> tuple[EditRecord, str]:
    """Take over an edit that nobody works on any more. Raises CapsulekitError for one that somebody has open."""
    shell = folder / SHELL
    if not session.is_mounted(folder):
        before = record
        if at is not None and str(at.absolute()) != record.at:
            record = write_record(folder, replace(record, at=str(at.absolute()), own_at=False))
        resumed = f"{_how_gone(record)}: gone on with the edit of {record.who}, what was changed is there"
        try:
            record = session.resume(folder)
        except BaseException:
            write_record(folder, before)
            raise
    elif shell.exists():
        resumed = f"gone on with the edit of a shell of {record.who} that was killed: what it changed is there"
    else:
        raise taken(record)
    shell.unlink(missing_ok=True)
    return record, resumed


def taken(record: EditRecord) -> CapsulekitError:
    """Somebody else edits it: who, since when, where, and the ways out."""
    return CapsulekitError(
        f"{told(record)}, at {record.at}",
        hint=f"keep what was changed: capsulekit umount {record.at}; or discard it: capsulekit close {record.at}",
    )


def _how_gone(record: EditRecord) -> str:
    """How an edit lost its mounts."""
    return "the machine was restarted" if left_behind(record) else "it was unmounted by hand"


def _restarted(record: EditRecord) -> CapsulekitError:
    name = record.file or record.name
    return CapsulekitError(
        f"{record.name} is not mounted any more: {_how_gone(record)}; what was changed is still there",
        hint=f"go on with it: capsulekit mount {name}; or discard it: capsulekit close {name}",
    )


def _half_done(record: EditRecord) -> CapsulekitError:
    name = record.file or record.name
    return CapsulekitError(
        f"a command of capsulekit shell was killed in {record.name}: what it has changed may be half done",
        hint=f"go on with it: capsulekit mount {name}; or discard it: capsulekit close {name}",
    )


def left_by(folder: Path) -> str:
    """The kind of the shell that was killed in an edit, or ""."""
    try:
        return (folder / SHELL).read_text()
    except FileNotFoundError:
        return ""


def _came_through(editor: Editor, record: EditRecord) -> Unmounted:
    """An umount or close that was killed had done its work already; only its traces were there."""
    target = target_of(editor.paths, editor.store, record)
    line = f"{record.name} was unmounted already, by a command that was killed; its traces are gone now"
    return Unmounted(record.name, record.at, record.base, target.now(), {}, (line,), file=record.file)


def _unmounted(
    record: EditRecord, packed: editpack.Packed, identity: str, *, file: str = "", dry_run: bool = False
) -> Unmounted:
    end = f"{record.name} has been unmounted from {record.at}"
    if dry_run:
        end = f"{record.name} would be unmounted from {record.at}"
    if identity != record.base:
        end += f"; it is generation {identity[:16]}… now" if not file else f"; {file} is what was edited"
    elif not dry_run:
        end += ": nothing was changed, so there is no new generation"
    return Unmounted(
        record.name, record.at, record.base, identity, packed.summary, (*packed.lines, end),
        packed.size, packed.flattened, packed.initrd, file, dry_run,
    )  # fmt: skip


def _planned(editor: Editor, subject: Subject, at: Path, blocking: bool) -> EditRecord:
    name, base = subject.name, subject.identity
    return EditRecord(subject.key, name, base, str(at.absolute()), editor.who, 0, blocking=blocking, file=subject.file)


def default_place(word: str, subject: Subject) -> Path:
    """Where it is mounted: by the capsule's name as it was typed, a file's as its manifest has it."""
    return MNT / (subject.name if subject.file else word)
