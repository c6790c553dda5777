"""``capsulekit vnfs import``: a capsule from a file or a web server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsulekit.errors import UsageError
from provisioner.cli._vnfs import ANSWERS, asking, opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.vnfs.download import Progress
    from provisioner.vnfs.perceus.convert import Decide, Found
    from provisioner.vnfs.store import Ask, Imported, VnfsStore


@click.command()
@click.argument("file", metavar="FILE|https://ADDRESS")
@click.option("--as", "as_name", metavar="NAME", help="Install it under this name.")
@ANSWERS
@click.option(
    "--with-scripts/--without-scripts",
    "scripts",
    default=None,
    help="Whether the node scripts of a Perceus capsule go along (default: ask).",
)
@click.option("--kernel", metavar="RELEASE", help="Which kernel of a Perceus capsule, when its root has several.")
@click.option("--max-size", metavar="MB", type=click.IntRange(1), default=65536, show_default=True,
              help="Refuse to download more, or to unpack more of a Perceus capsule.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Verify it and say what would be done.")
@click.pass_obj
def cli(
    options: Options,
    file: str,
    as_name: str | None,
    answers: Path | None,
    scripts: bool | None,
    kernel: str | None,
    max_size: int,
    dry_run: bool,
) -> None:
    """Verify a capsule and install it; what it asks is asked now. No node boots anything else because of it.

    A Perceus capsule, which nobody signed, is converted into one that this site signs, after asking.
    """
    from provisioner.vnfs.download import is_address, local_copy

    wish = _Wish(as_name, asking(options, answers), scripts, kernel, max_size * 1_000_000, dry_run)
    with opened_store(options) as store:
        if is_address(file):
            with local_copy(store.paths, file, wish.limit, _progress(options)) as path:
                done = _import(options, store, path, wish)
        else:
            done = _import(options, store, Path(file), wish)
    _report(options, done, dry_run)


@dataclass(frozen=True)
class _Wish:
    """What the command line says of an import; ``limit`` in bytes."""

    as_name: str | None
    ask: Ask
    scripts: bool | None
    kernel: str | None
    limit: int
    dry_run: bool


def _import(options: Options, store: VnfsStore, path: Path, wish: _Wish) -> Imported | None:
    """Install a capsule of either kind; None after a dry run of a conversion."""
    from provisioner.vnfs.install import check_name
    from provisioner.vnfs.perceus.archive import is_perceus

    check_name(wish.as_name)
    if not is_perceus(path):
        if wish.scripts is not None or wish.kernel is not None:
            raise UsageError("--with-scripts, --without-scripts and --kernel are for capsules of Perceus: this is none")
        return store.install(path, wish.as_name, ask=wish.ask, dry_run=wish.dry_run)
    from provisioner.vnfs.perceus.convert import converted, look

    if wish.dry_run:
        click.echo("\n".join([*look(path, wish.limit).lines(), "It would be converted."]), err=True)
        return None
    decide = _deciding(options, wish.scripts)
    with converted(store.paths, path, wish.limit, decide, wish.kernel) as (made, remarks):
        for remark in remarks:
            click.echo(f"WARNING: {remark}", err=True)
        return store.install(made, wish.as_name, ask=wish.ask)


def _deciding(options: Options, scripts: bool | None) -> Decide:
    """Shows the admin what a Perceus capsule holds and asks; -y converts, and takes no scripts unless told."""

    def decide(found: Found) -> bool:
        from provisioner.cli._site import confirm

        if not (options.yes and options.quiet):
            click.echo("\n".join([f"{found.path}:", *(f"  {line}" for line in found.lines())]), err=True)
        if not confirm(options, "Convert it into a capsule signed by this site?"):
            raise click.Abort
        if scripts is not None or not found.contents.scripts:
            return bool(scripts)
        # Nobody vouches for them and they run as root: -y alone does not take them.
        return not options.yes and confirm(options, "Shall its scripts run on nodes, as root?")

    return decide


def _report(options: Options, done: Imported | None, dry_run: bool) -> None:
    if done is None:
        if options.json:
            from capsulekit.output import emit_json

            emit_json({"capsule": None, "new": True, "hybrid": 0, "dry_run": True, "perceus": True})
        return
    capsule = done.capsule
    if options.json:
        from dataclasses import asdict

        from capsulekit.output import emit_json

        emit_json({"capsule": asdict(capsule), "new": done.new, "hybrid": done.hybrid, "dry_run": dry_run})
    elif not options.quiet:
        what = "would be imported" if dry_run else "imported"
        said = what if done.new else "is installed already: nothing to do"
        click.echo(f"{capsule.name} {said} (identity={capsule.identity} key={capsule.key_id})")
    if done.hybrid:
        from provisioner.nfs.places import lacking

        said = f"{done.hybrid / 1e6:.1f} MB of {capsule.name} are in its hybrid layer, which nodes mount by NFS"
        if way_out := lacking(options.paths):
            click.echo(f"WARNING: {said}, and this master can't export it yet: {way_out}", err=True)
        elif not options.json and not options.quiet:
            click.echo(said)


def _progress(options: Options) -> Progress | None:
    """How far a download is, on one line of a terminal."""
    import sys

    if options.quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        of = f" of {total / 1e6:.0f}" if total else ""
        click.echo(f"\r{done / 1e6:.0f}{of} MB", nl=done == total, err=True)

    return show
