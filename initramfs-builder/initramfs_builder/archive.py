"""The list of entries an initramfs is made of; there is no staging folder."""

from __future__ import annotations

import stat
from collections.abc import Callable

from initramfs_builder import cpio
from initramfs_builder.cpio import Entry
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.tree import Found, Tree


class Archive:
    """Entries by path. Adding the same thing twice is fine, adding something else under a taken path is an error."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def add(self, entry: Entry) -> None:
        """Add an entry; its path is taken by its merged-/usr name. Raises CapsulekitError when two things collide."""
        known = self._entries.setdefault(entry.path, entry)
        if known != entry:
            raise CapsulekitError(f"the archive would hold two different things at {entry.path}")

    def add_found(self, found: Found) -> None:
        """Add a file or folder of a tree and the links that led to it.

        Permissions are 0755 or 0644, so that the umask of whoever extracted the packages leaves no trace.
        """
        for link, target in found.links.items():
            self.add(cpio.symlink(link, target))
        if not found.path:
            return  # a link to the root, which every archive has
        mode = found.host.stat().st_mode
        if stat.S_ISDIR(mode):
            self.add(cpio.directory(found.path))
        elif stat.S_ISREG(mode):
            self.add(cpio.regular(found.path, found.host, 0o755 if mode & 0o111 else 0o644))
        else:
            raise CapsulekitError(f"{found.host} is neither a file nor a folder")

    def add_path(self, tree: Tree, path: str, leaves_out: Callable[[str], bool] = lambda _: False) -> None:
        """Add a path of a tree, a folder with all it holds but what is left out.

        What a link leads to comes with it, but for the root. Raises CapsulekitError when it is not there.
        """
        todo, entered = [path], {""}
        while todo:
            path = todo.pop()
            found = tree.resolve(path)
            if found is None:
                hint = "is the package that holds it in the recipe?"
                raise CapsulekitError(f"{path} is not in {tree.root}", hint=hint)
            self.add_found(found)
            if found.path not in entered and found.host.is_dir():
                entered.add(found.path)  # a link may lead to a folder above it
                names = (f"{found.path}/{name}" for name in tree.listing(found.path))
                todo += [name for name in names if not leaves_out(name)]

    def command(self, name: str) -> bool:
        """Whether a command of this name is in the archive's PATH (/usr/sbin and /usr/bin)."""
        return any(f"{folder}/{name}" in self._entries for folder in ("usr/bin", "usr/sbin"))

    def entries(self) -> list[Entry]:
        """All entries, parents first."""
        return cpio.with_parents(self._entries.values())
