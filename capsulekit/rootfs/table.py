"""The normaliser's table, as data: which paths vary between two installs of the same packages, and what is done.

The list was measured by building the same packages twice (docs/reference/normaliser.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from capsulekit.rootfs import fixes
from capsulekit.rootfs.globs import regex

# The types of package URLs; a tree of neither is ANY.
FAMILIES = ("deb", "rpm")
ANY = "any"


@dataclass(frozen=True)
class Row:
    """One rule.

    ``glob`` is anchored at the root (see globs); ``action`` is remove, empty, fix or regenerate; ``family`` is whose
    package manager leaves the path. ``due`` is a path of the root that makes the row due: when it is there and the row
    matches nothing, the row is reported; "" is for what any program may leave. ``files_only`` spares links and folders.
    ``fresh`` tells a regenerated cache by its first bytes from one that holds times. ``command`` is (the program it
    needs, a line for the root's own shell) and makes the caches again. ``alike`` says that the row is there only to
    make two builds alike: an edit (capsulekit.edit.clean) keeps what it finds there.
    """

    glob: str
    action: str
    why: str
    family: str = ANY
    due: str = ""
    files_only: bool = False
    fix: Callable[[bytes, int], bytes] | None = None
    fresh: Callable[[bytes, int], bool] | None = None
    command: tuple[str, str] | None = None
    alike: bool = False


# Byte code is made where the packages' own scripts had made it, under the hash seed that keeps sets in one order.
BYTE_CODE = (
    "folders=$(find / -xdev -type d -name __pycache__ | sort); "
    "find / -xdev -path '*/__pycache__/*' -name '*.pyc' -delete; "
    '[ -z "$folders" ] || '
    'printf "%s\\n" "$folders" | sed "s,/__pycache__\\$,," | PYTHONHASHSEED=0 '
    "/usr/bin/python3 -m compileall -qq -f -l -i - --invalidation-mode unchecked-hash || :"
)
SYSTEMD, SHADOW, APT = "usr/lib/systemd/systemd", "usr/bin/passwd", "usr/bin/apt-get"
POSTINST = "var/lib/dpkg/info/{}.postinst"
MMDEBSTRAP = "a setting of the build, not of the node"
PRIVATE = "a secret of the build would be known to everyone who has the capsule"
DATED = "each certificate has the time at which it was added"
INITIATOR = "nodes of one name overwrite each other's disks; made at the first start"
BACKUP, LEFT, LOCK = "a backup of shadow's tools", "left by installers", "a lock file"
HISTORY = "when the build installed what, with times"
INDEX = "the index of the build's own repository"
MEMORY = "shared memory of a database that is closed"
WAL = "empty when the database is closed; changes in it would be lost"

TABLE: tuple[Row, ...] = (
    Row("etc/machine-id", "empty", "made per node from the registry; empty, because a missing one means first boot",
        due=SYSTEMD),
    Row("var/lib/dbus/machine-id", "remove", "dbus reads /etc/machine-id"),
    Row("etc/hostname", "remove", "copied from the builder; the hostname module writes it", files_only=True),
    Row("etc/resolv.conf", "remove", "copied from the builder", files_only=True),
    Row("etc/adjtime", "remove", "how far the builder's clock drifts", files_only=True),
    Row("etc/ssh/ssh_host_*", "remove", "a key shared by nodes is no key; the sshkeys module brings each node its own",
        due=POSTINST.format("openssh-server")),
    Row("etc/munge/munge.key", "remove", PRIVATE, due=POSTINST.format("munge")),
    Row("etc/ssl/private/ssl-cert-snakeoil.key", "remove", PRIVATE, "deb", due=POSTINST.format("ssl-cert")),
    Row("etc/ssl/certs/ssl-cert-snakeoil.pem", "remove", "made at install", "deb", due=POSTINST.format("ssl-cert")),
    Row("etc/ssl/certs/java/cacerts", "fix", DATED, "deb", fix=fixes.key_store,
        due=POSTINST.format("ca-certificates-java"), alike=True),
    Row("etc/pki/ca-trust/extracted/java/cacerts", "fix", DATED, "rpm", fix=fixes.key_store,
        due="usr/bin/update-ca-trust", alike=True),
    Row("etc/mdadm/mdadm.conf", "fix", "the date it was made on, and the builder's own arrays", "deb",
        fix=fixes.mdadm, due=POSTINST.format("mdadm")),
    Row("etc/iscsi/initiatorname.iscsi", "fix", INITIATOR, "deb", fix=fixes.initiator_name,
        due=POSTINST.format("open-iscsi")),
    Row("etc/iscsi/initiatorname.iscsi", "remove", INITIATOR, "rpm"),
    Row("etc/udev/rules.d/*-persistent-net.rules", "remove", "the builder's network cards"),
    Row("etc/udev/rules.d/*-persistent-cd.rules", "remove", "the builder's drives"),
    Row("etc/shadow", "fix", "the day of the last change is the day of the build", fix=fixes.last_change, due=SHADOW,
        alike=True),
    Row("etc/passwd-", "remove", BACKUP),
    Row("etc/shadow-", "remove", BACKUP),
    Row("etc/group-", "remove", BACKUP),
    Row("etc/gshadow-", "remove", BACKUP),
    Row("etc/subuid-", "remove", BACKUP),
    Row("etc/subgid-", "remove", BACKUP),
    Row("etc/.pwd.lock", "empty", LOCK),
    Row("etc/dpkg/dpkg.cfg.d/99mmdebstrap", "remove", MMDEBSTRAP, "deb"),
    Row("etc/apt/apt.conf.d/99mmdebstrap", "remove", MMDEBSTRAP, "deb"),
    Row("etc/apt/apt.conf.d/01autoremove-kernels", "remove", "the kernels that the builder ran and installed", "deb"),
    Row("var/cache/ldconfig/aux-cache", "remove", "holds inode numbers and times"),
    Row("var/cache/fontconfig/*.cache-*", "regenerate", "holds the times of the folders of fonts",
        due="usr/bin/fc-cache", fresh=fixes.font_cache, command=("/usr/bin/fc-cache", "/usr/bin/fc-cache -r -s"),
        alike=True),
    Row("**/__pycache__/*.pyc", "regenerate", "byte code with times in it; made again with the hash of its source",
        due="usr/bin/python3", fresh=fixes.unchecked_byte_code, command=("/usr/bin/python3", BYTE_CODE), alike=True),
    Row("var/cache/man/**", "remove", "an index with times in it; man-db makes it again"),
    Row("var/cache/debconf/*-old", "remove", "backups", "deb", due=APT),
    Row("var/lib/dpkg/*-old", "remove", "backups", "deb", due=APT),
    Row("var/lib/dpkg/lock*", "remove", LOCK, "deb"),
    Row("var/lib/apt/lists/**", "remove", INDEX, "deb", due=APT),
    Row("var/lib/apt/extended_states", "remove", "which packages the build named is not which the admin chose", "deb",
        alike=True),
    Row("var/cache/apt/*.bin", "remove", "caches of the index", "deb"),
    Row("var/cache/apt/archives/**", "remove", "packages, and a folder owned by the builder's _apt; apt makes it again",
        "deb"),
    Row("var/lib/rpm/__db*", "remove", MEMORY, "rpm"),
    Row("var/lib/rpm/.*.lock", "remove", LOCK, "rpm"),
    Row("var/lib/rpm/rpmdb.sqlite-shm", "remove", MEMORY, "rpm"),
    Row("var/lib/rpm/rpmdb.sqlite-wal", "fix", WAL, "rpm", fix=fixes.closed_wal, alike=True),
    Row("usr/lib/sysimage/rpm/__db*", "remove", MEMORY, "rpm"),
    Row("usr/lib/sysimage/rpm/.*.lock", "remove", LOCK, "rpm"),
    Row("usr/lib/sysimage/rpm/rpmdb.sqlite-shm", "remove", MEMORY, "rpm"),
    Row("usr/lib/sysimage/rpm/rpmdb.sqlite-wal", "fix", WAL, "rpm", fix=fixes.closed_wal, alike=True),
    Row("usr/lib/sysimage/libdnf5/transaction_history.sqlite*", "remove", HISTORY, "rpm", alike=True),
    Row("var/lib/dnf/history.sqlite*", "remove", HISTORY, "rpm", alike=True),
    Row("var/lib/dnf/repos/**", "remove", "counters of the build's own repositories", "rpm"),
    Row("var/lib/yum/**", "remove", HISTORY, "rpm"),
    Row("var/cache/dnf/**", "remove", INDEX, "rpm"),
    Row("var/cache/libdnf5/**", "remove", INDEX, "rpm"),
    Row("var/cache/yum/**", "remove", INDEX, "rpm"),
    Row("var/log/**", "empty", "written at install, with times", files_only=True, due=SHADOW),
    Row("var/lib/systemd/random-seed", "remove", "a seed shared by nodes is no seed"),
    Row("var/lib/systemd/credential.secret", "remove", PRIVATE),
    Row("var/lib/systemd/catalog/database", "remove", "compiled at install; journalctl --update-catalog makes it again",
        due="usr/bin/journalctl"),
    Row("var/lib/NetworkManager/secret_key", "remove", PRIVATE),
    Row("boot/**", "remove", "the kernel lives in the capsule's own boot/", files_only=True),
    Row("run/**", "remove", "left by installers; a tmpfs covers it"),
    Row("tmp/**", "remove", LEFT),
    Row("var/tmp/**", "remove", LEFT),
    Row("dev/**", "remove", "devtmpfs covers it"),
)  # fmt: skip


class Rules:
    """The table's rows for one family; those of all families for ANY. Raises ValueError for an unknown family."""

    def __init__(self, family: str) -> None:
        if family not in (*FAMILIES, ANY):
            raise ValueError(f"no family {family}")
        self.rows = [row for row in TABLE if ANY in (family, row.family) or row.family == family]
        self._patterns = [(re.compile(regex(row.glob), re.DOTALL), row) for row in self.rows]
        self._any = re.compile("|".join(f"(?:{regex(row.glob)})" for row in self.rows), re.DOTALL)

    def matching(self, path: str) -> list[Row]:
        """The rows whose glob matches a path (without the leading slash), in the table's order."""
        if not self._any.fullmatch(path):
            return []
        return [row for pattern, row in self._patterns if pattern.fullmatch(path)]


def regenerate_commands() -> list[tuple[str, str]]:
    """(program, command line): what makes caches again, in order.

    To be run last, by the root's own shell, when every path has the epoch as its time and the program is in the root.
    """
    return [row.command for row in TABLE if row.command]


def reference() -> str:
    """docs/reference/normaliser.md: the table as Markdown."""
    rows = [f"| `/{row.glob}` | {row.action} | {row.family} | {row.why} |" for row in TABLE]
    return INTRODUCTION + "| path | what | packages | why |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


INTRODUCTION = """<!-- Made by capsulekit.rootfs.table.reference(); a test keeps it current. -->
# The normaliser

Two installs of the same packages differ in a few files. While the root's tar streams by, the build sets every mtime to
the build epoch, drops the names of owners, the `trusted.*` attributes and the times of access, lists POSIX ACLs beside
the layer (squashfs cannot hold them), and applies this table. The first row that matches counts. `*` matches within one
name, `**` across folders. A row is for roots of `deb` or `rpm` packages, or for any.

- remove: the path is not in the layer
- empty: the file is there, with nothing in it
- fix: the part that varies is set from the build epoch, or taken out
- regenerate: when everything else of the root is done and has its time, the root's own program makes the file again; a
  file that was not made again is not in the layer

When a row matches nothing although the program that leaves such files is in the root, the build says so.

"""
