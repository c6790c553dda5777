"""What a livesync leaves alone: the site's list for the capsule, the site's own, the capsule's, or Perceus's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from capsulekit.errors import CapsulekitError
from capsulekit.files import read_bounded
from capsulekit.rootfs.globs import anchored, regex
from provisioner.registry.model import InstalledCapsule
from provisioner.trees.entry import unescape
from provisioner.vnfs.store import VnfsStore

FILE = "livesync.skip"  # also the capsule's member
MAX_LIST = 1 << 20  # bytes
# Perceus's own list (lib/vnfs/livesync.skip of its stateless capsules), and what nodes of ours have of their own.
DEFAULT = """\
/etc/passwd
/etc/group
/etc/shadow
/etc/gshadow
/etc/hosts
/etc/hostname
/etc/machine-id
/etc/mtab
/etc/resolv.conf
/etc/ssh/ssh_host_*
/srv
/home
/opt
/usr/local
/usr/cports
/var/lib/dhcp
/var/lib/nfs
/var/lib/perceus
/var/log
/var/run
/var/lock
/var/tmp
/data/*
/scratch/*
"""
# Never touched, whatever a list says: what is not the root's own, and the agent.
NEVER = ("/dev", "/proc", "/sys", "/run", "/tmp", "/usr/lib/capsulekit", "/etc/capsulekit")  # noqa: S108
# The running kernel's: a reboot changes them, nothing else may.
KERNEL = ("/boot", "/lib/modules", "/usr/lib/modules")


@dataclass(frozen=True)
class SkipList:
    """Globs from the root, in their order, and where they come from."""

    globs: tuple[str, ...]
    where: str

    def matcher(self) -> re.Pattern[str]:
        """What fits the paths that are left alone, and all below them."""
        return pattern((*NEVER, *self.globs))


def pattern(globs: Iterable[str]) -> re.Pattern[str]:
    """What fits these globs' paths, relative to the root, and all below them."""
    return re.compile("(?:" + "|".join(regex(anchored(glob)) for glob in globs) + ")(?:/.*)?", re.DOTALL)


def fits(matcher: re.Pattern[str], path: str) -> bool:
    """Whether a path (escaped) is one of them."""
    return matcher.fullmatch(unescape(path).decode("utf-8", "surrogateescape")) is not None


def skip_list(store: VnfsStore, row: InstalledCapsule) -> SkipList:
    """The list that counts for a capsule; the first of the four that is there. Raises CapsulekitError naming a line."""
    short = row.name.removesuffix(f"-{row.version}.{row.arch}")
    for folder in (*(store.paths.config / "vnfs" / name for name in dict.fromkeys((row.name, short))),
                   store.paths.config):  # fmt: skip
        file = folder / FILE
        if file.exists() or file.is_symlink():
            return parse_skip(read_bounded(file, MAX_LIST), str(file))
    member = store.small(row.name, FILE, row.identity)
    if member is not None:
        return parse_skip(member, f"{row.name}: {FILE}")
    return parse_skip(DEFAULT.encode(), "the defaults")


def parse_skip(data: bytes, where: str) -> SkipList:
    """One path or glob a line, from the root, with or without its slash; "#" begins a comment.

    Raises CapsulekitError naming the line that is none.
    """
    if len(data) > MAX_LIST:
        raise CapsulekitError(f"{where} is longer than {MAX_LIST} bytes")
    globs = []
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").splitlines(), 1):
        text = line.partition("#")[0].strip() if line.lstrip().startswith("#") else line.strip()
        if not text:
            continue
        try:
            globs.append("/" + anchored(text if text.startswith("/") else f"/{text}"))
        except CapsulekitError as wrong:
            raise CapsulekitError(f"{where}, line {number}: {wrong.message}", hint=wrong.hint) from wrong
    return SkipList(tuple(globs), where)
