"""``shell``: mount, run a command in the capsule, and umount when it ended well; discard when it did not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.edit import record as records
from capsulekit.edit import session
from capsulekit.edit.record import EditRecord
from capsulekit.edit.stack import need_root
from capsulekit.errors import CapsulekitError, UsageError
from provisioner.vnfs.edit import (
    COMMAND,
    SHELL,
    TERMINAL,
    Editor,
    Unmounted,
    begin,
    default_place,
    find,
    finish,
    left_by,
    lost_in,
    taken,
    there,
)
from provisioner.vnfs.editpack import Asked
from provisioner.vnfs.editsave import Signer, target_of
from provisioner.vnfs.editsubject import Subject

# What an interactive shell may be, the first that the capsule has.
SHELLS = (("/bin/bash", "-l"), ("/bin/sh", "-l"), ("/bin/busybox", "sh", "-l"))


@dataclass(frozen=True)
class Work:
    """What ``shell`` was told: the command (empty: a shell at the terminal), and how its changes are kept."""

    argv: Sequence[str] = ()
    message: str = ""
    asked: Asked = field(default_factory=Asked)
    blocking: bool = True
    at: Path | None = None
    out: Path | None = None
    signer: Signer | None = None
    pubkeys: Sequence[Path] = ()
    dry_run: bool = False


def run_in(
    editor: Editor,
    word: str,
    work: Work,
    say: Callable[[str], None],
    discard: Callable[[str], bool],
    *,
    terminal: bool,
) -> tuple[int, Unmounted | None, tuple[str, ...]]:
    """(the command's exit status, what umount came to when that was 0, lines for people about the rest).

    ``say`` tells something at once; ``discard`` asks whether an interactive shell that failed shall be for nothing.
    Raises CapsulekitError when it can't be mounted, or what was changed can't be packed: it is still mounted then.
    """
    if not work.argv and not terminal:
        raise UsageError("a shell needs a terminal", hint="name a command: capsulekit shell NAME -- CMD")
    if "" in work.argv[:1]:
        raise UsageError("the command's name is empty")
    subject = find(editor, word, work.pubkeys)
    need_root("mount a capsule")
    with records.lock(editor.paths.state, subject.key) as folder:
        record = _mounted(editor, folder, subject, word, work, say)
        target = target_of(editor.paths, editor.store, record, work.out, work.signer)
        (folder / SHELL).write_text(COMMAND if work.argv else TERMINAL)
        try:
            target.base()
            if not work.argv:
                say(f"A shell in {record.name}: what it changes is kept when it ends (exit), and discarded by: exit 1")
            status = session.enter(folder, work.argv or shell_in(Path(record.at)), endable=bool(work.argv))
            _take_terminal()
        except BaseException:
            if work.argv:
                session.discard(folder)
            raise
        finally:
            (folder / SHELL).unlink(missing_ok=True)
        if status == 0:
            done = finish(folder, record, target, work.asked, work.message, dry_run=work.dry_run)
            if work.dry_run:
                session.discard(folder)
            return 0, done, ()
        return status, None, _failed(folder, record, status, interactive=not work.argv, discard=discard)


def shell_in(root: Path) -> Sequence[str]:
    """The command line of the shell that a root has. Raises CapsulekitError when it has none."""
    from initramfs_builder.tree import Tree

    tree = Tree(root)
    for words in SHELLS:
        found = tree.resolve(words[0])
        if found is not None and found.host.is_file():
            return words
    raise CapsulekitError("this capsule has no shell", hint="name a command: capsulekit shell NAME -- CMD")


def _take_terminal() -> None:
    """Be the terminal's foreground again.

    A shell in a process namespace of its own can't see who was that before it, so it can't give it back (tcsetpgrp(3)).
    """
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):  # no terminal
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, before)


def _failed(
    folder: Path, record: EditRecord, status: int, *, interactive: bool, discard: Callable[[str], bool]
) -> tuple[str, ...]:
    """Discard what a failed command has changed; of a person's shell only when they say so."""
    said = f"the shell ended with status {status}" if interactive else f"the command ended with status {status}"
    lost = lost_in(folder, record)
    if interactive and lost and not discard(f"{said[0].upper()}{said[1:]}. Discard what was changed?"):
        return (
            f"{said}; {record.name} is still mounted at {record.at}: "
            f"capsulekit umount {record.at}, or capsulekit close {record.at}",
        )
    session.discard(folder)
    return (f"{said}: what it changed in {record.name} is discarded" if lost else f"{said}; nothing was changed",)


def _mounted(
    editor: Editor, folder: Path, subject: Subject, word: str, work: Work, say: Callable[[str], None]
) -> EditRecord:
    """A new edit, or one that a killed shell left: a command's half-done work is discarded, a person's gone on with.

    Raises CapsulekitError for any other edit that is there.
    """
    record = there(editor, folder)
    if record is not None:
        left = left_by(folder)
        if left == COMMAND:
            say(f"a command in {record.name} was killed; what it had changed is discarded")
            session.discard(folder)
            record = None
        elif left == TERMINAL and not work.argv:
            say(f"gone on with the edit of a shell of {record.who} that was killed: what it changed is there")
            return session.resume(folder)
        else:
            raise taken(record)
    return begin(editor, subject, work.at or default_place(word, subject), work.blocking)
