"""The kernel's NFS server: what of this master the nodes may mount (exports(5))."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.sitepaths import SitePaths
from provisioner.siteconf import SiteConfig
from provisioner.sitefiles import Change, block, outside_block

EXPORTS = Path("/etc/exports")
UNIT = "nfs-server"
AFTER = "To make it hold: exportfs -ra (or the same command with --reload)"


@dataclass(frozen=True)
class Export:
    """A folder of this master; ``writable`` is for home folders and the like."""

    folder: Path
    writable: bool = False

    @property
    def options(self) -> str:
        """Its options. Owners are kept as they are: nodes are the site's own machines."""
        return (
            f"{'rw' if self.writable else 'ro'},no_root_squash,no_subtree_check,{'sync' if self.writable else 'async'}"
        )


def parse_export(text: str) -> Export:
    """FOLDER or FOLDER:rw. Raises UsageError for a folder that is not absolute, or can't stand in exports(5)."""
    folder, colon, mode = text.partition(":")
    if not folder.startswith("/") or mode not in ("", "ro", "rw") or (colon and not mode):
        raise UsageError(f"--export {text!r} is not FOLDER, FOLDER:ro or FOLDER:rw", hint="like /home:rw")
    if not folder.isprintable() or re.search(r'[\s#"\\]', folder):
        raise UsageError(f"the folder {folder!r} has characters that /etc/exports gives a meaning to")
    return Export(Path(folder), mode == "rw")


def public_folder(paths: SitePaths) -> Path:
    """What nodes mount of the site itself: network layers of hybrid capsules, which are public."""
    return paths.state / "nfs"


def changes(
    paths: SitePaths, site: SiteConfig, more: Sequence[Export] = (), target: Path = EXPORTS
) -> list[Change | None]:
    """Our block of ``target``: the site's public folder and ``more``, for the nodes' network only.

    Raises CapsulekitError when a line of somebody else's exports one of the folders already.
    """
    exports = [Export(public_folder(paths)), *more]
    names = [str(one.folder) for one in exports]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} would be exported twice")
    for number, line in outside_block(target):
        word = line.split("#")[0].split()[:1]
        if word and word[0].strip('"') in names:
            raise CapsulekitError(
                f"{target}:{number} exports {word[0]} already, and that line is not ours",
                hint="remove that line, or leave the folder out of --export",
            )
    lines = [f"{one.folder} {site.network}({one.options})" for one in exports]
    return [block(target, lines)]


def make_folder(paths: SitePaths) -> None:
    """Make the folder that is exported; exportfs refuses one that is not there."""
    public_folder(paths).mkdir(mode=0o755, parents=True, exist_ok=True)
