"""What mount, umount, close and shell share: the site where there is one, and how their results are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.vnfs.edit import Editor, Unmounted
    from provisioner.vnfs.editsave import Signer

NO_BLOCK = click.option(
    "--no-block", is_flag=True, help="Nodes that boot meanwhile take the last generation, instead of waiting."
)
PUBKEY = click.option(
    "--pubkey", "pubkeys", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Of a capsule file: its author's key, instead of those that this site trusts.",
)  # fmt: skip
AT = click.option(
    "--at", metavar="DIR", type=click.Path(path_type=Path), help="Where to mount it (default: /mnt/NAME)."
)
OUT = click.option(
    "-o", "--output", "out", metavar="FILE", type=click.Path(path_type=Path),
    help="Of a capsule file: write the new capsule here instead of over the old one.",
)  # fmt: skip
KEY = click.option(
    "--key", metavar="PATH", type=click.Path(path_type=Path),
    help="Of a capsule file: the author's key that signs it (default: this site's own).",
)  # fmt: skip
_PACKING = (
    click.option("--flatten", is_flag=True, help="Make one layer of all edits that follow one another."),
    click.option("--adopt-kernel", is_flag=True, help="A kernel that was installed in it becomes the capsule's own."),
    click.option("--move-modules", is_flag=True, help="Move modules of other kernels to this kernel's folder."),
)


def packing(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how an edit is packed."""
    for option in reversed(_PACKING):
        command = option(command)
    return command


@contextmanager
def editing(options: Options, word: str) -> Iterator[Editor]:
    """What edits are made with. A capsule file needs no site."""
    from provisioner.cli._site import open_site, who
    from provisioner.vnfs.edit import Editor
    from provisioner.vnfs.editsubject import means_file
    from provisioner.vnfs.store import VnfsStore

    if means_file(word, options.paths):
        yield Editor(options.paths, None, who())
        return
    registry = open_site(options)
    try:
        yield Editor(options.paths, VnfsStore(options.paths, registry), who())
    finally:
        registry.close()


def signer(key: Path | None) -> Signer | None:
    """Opens the author's key that was named; asks for its password where it has one."""
    if key is None:
        return None
    from capsulekit.cli._terminal import key_password
    from capsulekit.trust.minisign import load_secret

    return lambda: load_secret(key, key_password(key))


def told(done: Unmounted) -> tuple[list[str], dict[str, Any]]:
    """(lines for people, record for programs) of an umount, or of what it would do."""
    return list(done.lines), {
        "name": done.name,
        "at": done.at,
        "changed": done.identity != done.base or (done.dry_run and any(done.changes["paths"].values())),
        "identity": done.identity,
        "file": done.file,
        "changes": done.changes,
        "layer_bytes": done.size,
        "flattened": done.flattened,
        "initrd": done.initrd,
        "dry_run": done.dry_run,
    }
