"""What commands that write files of the master share: the diff, the question, the copy that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import confirm, open_site, say, tell

if TYPE_CHECKING:
    from pathlib import Path

    from provisioner.siteconf import SiteConfig
    from provisioner.sitefiles import Change

DRY_RUN = click.option("--dry-run", is_flag=True, help="Show the diff and write nothing.")
NOTHING = "Everything is as it should be: nothing to write"
RELOAD = click.option("--reload", is_flag=True, help="Also have the service read its files again, if it runs.")


def load(options: Options) -> SiteConfig:
    """The site's settings; where the site was never initialised a person at a terminal is offered ``init``."""
    from provisioner.siteconf import load_site

    open_site(options).close()
    return load_site(options.paths)


def write_files(
    options: Options, changes: Sequence[Change | None], *, dry_run: bool, after: Sequence[str] = (), unit: str = ""
) -> bool:
    """Show the diff of every change, ask once, write; False when ``dry_run`` kept it from that.

    With nothing to change nothing is asked. Refusing the question aborts with exit status 1. A ``unit`` reads its files
    again then; ``after`` says what is left to do, its first line how to have them read where no unit was named.
    """
    from provisioner.sitefiles import write

    wanted = [change for change in changes if change is not None]
    if wanted and not options.json and not (options.yes and options.quiet):
        click.echo("".join(change.diff for change in wanted), nl=False)
    if wanted and not dry_run:
        count = "this file" if len(wanted) == 1 else f"these {len(wanted)} files"
        if not confirm(options, f"Write {count}?"):
            raise click.Abort
    kept = [None if dry_run else write(change) for change in wanted]
    if unit and not dry_run:
        from provisioner.services.reload import reload_service

        reload_service(unit)
    tell(options, _said(wanted, kept, dry_run, after[1:] if unit else after), _record(wanted, kept, dry_run))
    return not dry_run


def _said(wanted: Sequence[Change], kept: Sequence[Path | None], dry_run: bool, after: Sequence[str]) -> list[str]:
    if dry_run:
        return ["Nothing was written (--dry-run)" if wanted else NOTHING]
    lines = [f"{change.path} written" + (f"; the old one is {old}" if old else "")
             for change, old in zip(wanted, kept, strict=True)]  # fmt: skip
    return [*(lines or [NOTHING]), *after]


def _record(wanted: Sequence[Change], kept: Sequence[Path | None], dry_run: bool) -> dict[str, Any]:
    pairs = zip(wanted, kept, strict=True)
    files = [{"path": str(one.path), "diff": one.diff, "kept": str(old) if old else None} for one, old in pairs]
    return {"files": files, "dry_run": dry_run}


def take_on(options: Options, *, reload: bool) -> None:
    """Have our own server take on what was written where that was asked for, if it runs; else say how."""
    from provisioner.server.record import reload_server, running_server

    if reload and running_server(options.paths):
        say(options, f"The server has taken it on: dnsmasq {reload_server(options.paths)['reload_done']}")
    elif not reload:
        say(options, "Have the running server take it on: capsulekit serve reload")
