"""A capsule's layers mounted one over the other, as a node stacks them: for writing (an edit), or just to look at.

What is in an edit's folder: ``0`` ``1`` … the layers, topmost first, ``h`` the hybrid layer, the lowest; ``u`` what is
written, ``w`` overlay's own; ``a`` copies of the files below that have an ACL, which squashfs can't hold; ``p`` places
to mount at that the capsule lacks; ``b`` a view of what is below ``u``. Nothing of ``a`` and ``p`` is ever packed.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from capsulekit.edit import acls as acl_lists
from capsulekit.edit import syscalls
from capsulekit.edit.furnish import POLICY, POLICY_FILE, RESOLV
from capsulekit.edit.mounts import mount_layer, mount_overlay, mounted_at, remove_tree, unmount_all
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes

UPPER, WORK, HYBRID, ACLS, PLACES, BELOW = "u", "w", "h", "a", "p", "b"
SOURCE = "capsulekit"  # what our overlays bear as their source, with the folder's name
# Empty folders and files to mount at: every capsule has the folders, few have the files.
MOUNT_FOLDERS = (b"dev", b"proc", b"run", b"sys", b"tmp")
MOUNT_FILES = (RESOLV.encode(), POLICY_FILE.encode())


@dataclass(frozen=True)
class Image:
    """A squashfs in a file: ``offset`` and ``size`` in bytes (size 0: to the file's end)."""

    path: Path
    offset: int = 0
    size: int = 0


def need_root(what: str) -> None:
    """Raise CapsulekitError unless we are root."""
    if os.geteuid() != 0:
        raise CapsulekitError(f"only root can {what}: layers have to be mounted", hint="run the same command as root")


def mount_stack(
    folder: Path, images: Sequence[Image], *, hybrid: Image | None = None, at: Path, acls: Sequence[bytes] = ()
) -> None:
    """Mount ``images``, topmost first, below an upper folder to write to, at ``at``; ``hybrid`` is the lowest.

    ``folder`` is ours alone and on a file system that overlay can write to (``check_upper``). ``acls`` are the layers'
    ACL lists, topmost first; files that have one show it. What was written before in ``folder`` is still there.
    Raises CapsulekitError; what was mounted until then is for ``unmount_stack``.
    """
    lower = _mount_layers(folder, images, hybrid)
    for name in (UPPER, WORK):
        _make_folder(folder / name)
    lower = [*_acl_copies(folder, lower, acls), *lower]
    lower = [*_mount_places(folder, lower), *lower]
    mount_overlay(folder, lower, at, source_of(folder), upper=UPPER, work=WORK)


def unmount_stack(folder: Path, at: Path) -> None:
    """Unmount all that ``mount_stack`` has mounted, whatever is there of it; the folder and what was written stay.

    Raises OSError (EBUSY) when something is used.
    """
    while (found := mounted_at(at)) and found.kind == "overlay" and found.source == source_of(folder):
        syscalls.unmount(found.at)
    unmount_all(folder)


def source_of(folder: Path) -> str:
    """The source that an edit's overlay bears: it is found by it, and another site's is not taken for it."""
    return f"{SOURCE}:{folder.name}:{sha256_bytes(os.fsencode(folder.resolve()))[:8]}"


@contextmanager
def below(folder: Path) -> Iterator[Path]:
    """What is below the upper folder of a mounted stack, ACLs and all, to read."""
    view = folder / BELOW
    if not (folder / "0").is_mount():
        raise CapsulekitError("the layers are not mounted", hint="mount the capsule again")
    unmount_all(view)  # left by one that was killed
    view.mkdir(mode=0o700, exist_ok=True)
    mount_overlay(folder, [ACLS, *_layer_names(folder)], view, f"{source_of(folder)}.below")
    try:
        yield view
    finally:
        unmount_all(view, lazily=True)


@contextmanager
def merged(
    images: Sequence[Image], folder: Path, *, hybrid: Image | None = None, acls: Sequence[bytes] = ()
) -> Iterator[Path]:
    """A capsule's root to read, topmost image first, mounted in ``folder``: private, made if missing, removed again.

    Other than an edit's it needs no file system that overlay can write to, unless there are ``acls`` to show. What a
    killed process left in the same folder is cleared first; ``sweep`` clears all of them. Raises CapsulekitError.
    """
    need_root("look into a capsule's layers")
    with held_view(folder):
        clear_view(folder)
        try:
            lower = _mount_layers(folder, images, hybrid)
            lower = [*_acl_copies(folder, lower, acls), *lower]
            view = folder / BELOW
            view.mkdir(mode=0o700, exist_ok=True)
            mount_overlay(folder, lower, view, f"{source_of(folder)}.view")
            yield view
        finally:
            clear_view(folder)


def sweep(parent: Path) -> None:
    """Clear the views (folders of ``merged``) in ``parent`` whose process is gone; those in use are left alone."""
    for lock in sorted(parent.glob("*/.lock")):
        with suppress(CapsulekitError, OSError), held_view(lock.parent):
            clear_view(lock.parent)


def clear_view(folder: Path) -> None:
    """Unmount and remove what ``merged`` has made in its folder, but its lock."""
    unmount_all(folder, lazily=True)
    remove_tree(*(path for path in folder.iterdir() if path.name != ".lock"))


def check_upper(folder: Path) -> None:
    """Raise CapsulekitError unless overlay can write to this folder's file system; nothing is left of the trial."""
    trial = folder / "trial"
    if trial.exists():
        unmount_all(trial, lazily=True)
        remove_tree(trial)
    trial.mkdir(mode=0o700)
    try:
        for name in ("below", "below/gone", "over", UPPER, WORK):
            (trial / name).mkdir()
        why = _try_overlay(trial)
    finally:
        unmount_all(trial, lazily=True)
        remove_tree(trial)
    if why:
        raise CapsulekitError(
            f"the file system of {folder} can't hold an edit: {why}",
            hint="set a folder on a local disk (ext4, xfs, btrfs) for edits, or mount one there",
        )


def _try_overlay(trial: Path) -> str:
    """Why overlay can't write there, or ""."""
    try:
        os.setxattr(trial / UPPER, "trusted.overlay.trial", b"y")
        mount_overlay(trial, ["below"], trial / "over", f"{SOURCE}:trial", upper=UPPER, work=WORK)
        (trial / "over/gone").rmdir()
        status = (trial / UPPER / "gone").lstat()
        (trial / "over/gone").mkdir()
        opaque = os.getxattr(trial / UPPER / "gone", "trusted.overlay.opaque")
    except OSError as wrong:
        return str(wrong.strerror)
    except CapsulekitError as wrong:
        return wrong.message
    good = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 and opaque == b"y"
    return "" if good else "deletions can't be kept on it"


def _mount_layers(folder: Path, images: Sequence[Image], hybrid: Image | None) -> list[str]:
    """Mount what is not mounted yet; the names below ``folder``, topmost first."""
    named = [(str(number), image) for number, image in enumerate(images)]
    named += [(HYBRID, hybrid)] if hybrid else []
    for name, image in named:
        at = folder / name
        at.mkdir(mode=0o700, exist_ok=True)
        mount_layer(image.path.absolute(), at, image.offset, image.size)
    return [name for name, _ in named]


def _layer_names(folder: Path) -> list[str]:
    """The layers that are mounted in an edit's folder, topmost first."""
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    return [*map(str, numbers), *([HYBRID] if (folder / HYBRID).exists() else [])]


def _acl_copies(folder: Path, lower: list[str], lists: Sequence[bytes]) -> list[str]:
    """Make ``a`` anew: what the lists name, with its ACL."""
    held = acl_lists.effective(lists)
    if held:
        with _over(folder, lower, ACLS) as view:
            acl_lists.apply(view, held)
    else:
        _make_anew(folder / ACLS)
    return [ACLS]


def _mount_places(folder: Path, lower: list[str]) -> list[str]:
    """Make ``p`` anew: what the capsule lacks of what we, and whoever works in it, mount at or need there."""
    with _over(folder, lower, PLACES) as view, syscalls.folder_fd(view) as root:
        for path in MOUNT_FOLDERS:
            if not _there(root, path):
                os.mkdir(os.fsdecode(path), 0o755, dir_fd=root)
        for path in MOUNT_FILES:
            with suppress(OSError):  # no such folder, or one that is a link: there is nothing to mount at, then
                _make_file(root, path)
    return [PLACES]


def _make_file(root: int, path: bytes) -> None:
    above, _, name = path.rpartition(b"/")
    if _there(root, path):
        return
    with syscalls.opened_inside(root, above, os.O_RDONLY | os.O_DIRECTORY) as folder:
        was = os.fstat(folder)
        policy = name == b"policy-rc.d"
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        with os.fdopen(file, "wb") as out:
            os.fchmod(file, 0o755 if policy else 0o644)
            out.write(POLICY if policy else b"")
        os.utime(folder, ns=(was.st_atime_ns, was.st_mtime_ns))


def _there(root: int, path: bytes) -> bool:
    """Whether the name is there, be it a link that leads nowhere."""
    above, _, name = path.rpartition(b"/")
    with syscalls.opened_inside(root, above or b".", os.O_RDONLY | os.O_DIRECTORY) as folder:
        try:
            os.stat(os.fsdecode(name), dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
    return True


@contextmanager
def _over(folder: Path, lower: list[str], name: str) -> Iterator[Path]:
    """What is written to the path that is given comes to lie in ``folder``/``name``, made anew, as a layer's."""
    view, own, work = folder / BELOW, folder / name, folder / f"{name}w"
    unmount_all(view)
    for path in (own, work):
        _make_anew(path)
    view.mkdir(mode=0o700, exist_ok=True)
    mount_overlay(folder, lower, view, f"{source_of(folder)}.{name}", upper=name, work=work.name)
    try:
        yield view
    finally:
        unmount_all(view, lazily=True)
        remove_tree(work)


def _make_folder(path: Path) -> None:
    """The root folder that is seen: whatever the umask, and what a state folder gives to those made in it."""
    path.mkdir(exist_ok=True)
    os.chown(path, 0, 0)
    path.chmod(0o755)
    for key in acl_lists.ATTRIBUTES.values():
        with suppress(OSError):  # it has none
            os.removexattr(path, key)


def _make_anew(path: Path) -> None:
    if path.exists():
        remove_tree(path)
    _make_folder(path)


@contextmanager
def held_view(folder: Path) -> Iterator[None]:
    """Hold a view's folder for this process; when it is empty at the end it goes.

    Raises CapsulekitError when another process holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CapsulekitError(f"{folder} is used by another process") from None
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / ".lock").unlink()
                folder.rmdir()
