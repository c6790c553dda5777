"""``capsulekit contact``: a bundle for whoever helps, and the site's identity. Nothing is ever sent unasked."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from capsulekit.cli.main import Group, Options
from provisioner.cli._site import confirm, open_site, tell

DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done; write and send nothing.")
QUESTIONS = {"name": "Your name", "mail": "Where the answer goes (mail address)", "problem": "What is wrong"}


@click.group(cls=Group, name="contact")
def cli() -> None:
    """Gather what someone who helps needs to know, and say who this site is."""


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write (tar.gz).")
@click.option("--name", default="", help="Your name.")
@click.option("--from", "mail", default="", metavar="ADDRESS", help="Mail address for the answer.")
@click.option("--problem", default="", metavar="TEXT", help="What is wrong.")
@click.option("--mail", "send", is_flag=True, help="Also mail it to support_mail of site.toml, after asking.")
@DRY_RUN
@click.pass_obj
def support(
    options: Options, output: Path | None, name: str, mail: str, problem: str, send: bool, dry_run: bool
) -> None:
    """Write a bundle with versions, settings, nodes and last events, without secrets, to a file.

    At a terminal it asks who you are and what is wrong. Look into the file before you give it away.
    """
    import time

    from provisioner.support import Question, bundle, mail_target, send_bundle, write_bundle

    registry = open_site(options)
    config = mail_target(options.paths) if send else None
    said = {"name": name, "mail": mail, "problem": problem}
    if sys.stdin.isatty() and not (options.yes or options.no):
        said |= {key: click.prompt(text, default="", show_default=False, err=True)
                 for key, text in QUESTIONS.items() if not said[key]}  # fmt: skip
    question = Question(**said)
    target = output or Path(time.strftime("capsulekit-support-%Y%m%d-%H%M%S.tar.gz"))
    content = bundle(options.paths, registry, question)
    if not dry_run:
        write_bundle(target, content)
    lines = [f"{'Would write' if dry_run else 'Wrote'} {target} ({len(content) / 1000:.0f} kB)"]
    sent = ""
    if config and not dry_run and confirm(options, f"Mail {target} to {config.support_mail}?"):
        send_bundle(config, target.name, content, question)
        sent = config.support_mail
        lines.append(f"Mailed to {sent}")
    tell(options, lines, {"file": str(target), "bytes": len(content), "mailed_to": sent, "dry_run": dry_run})


@cli.command()
@DRY_RUN
@click.pass_obj
def register(options: Options, dry_run: bool) -> None:
    """Write this site's identity to the file that register_file of site.toml names; nothing leaves this machine."""
    from provisioner.support import register as write

    open_site(options).close()
    target, what = write(options.paths, dry_run=dry_run)
    lines = [f"{'Would write' if dry_run else 'Wrote'} the identity of site {what['site']!r} to {target}"]
    tell(options, lines, {"file": str(target), "identity": what, "dry_run": dry_run})
