"""``capsulekit info``: what this site and this machine are."""

from __future__ import annotations

import click

from capsulekit.cli.main import ABOUT, Group, Options
from provisioner.cli._complete import setting_names
from provisioner.cli._site import open_site


@click.group(cls=Group, name="info")
def cli() -> None:
    """Print facts about the program, the settings and the system."""


@cli.command()
@click.pass_obj
def about(options: Options) -> None:
    """Print what is printed when no command is given, and the version."""
    from importlib.metadata import version

    from capsulekit.output import emit_json

    if options.json:
        emit_json({"name": "capsulekit", "version": version("capsulekit")})
    else:
        click.echo(f"{ABOUT}\n\nVersion {version('capsulekit')}")


@cli.command()
@click.argument("key", nargs=-1, required=True, shell_complete=setting_names)
@click.pass_obj
def config(options: Options, key: tuple[str, ...]) -> None:
    """Print one setting: of site.toml, of defaults.toml, or a place.

    KEY is a name in those files, statedir, prefix, sysconfdir or libdir, or what the Perceus manual calls it, like
    "vnfs transfer master".
    """
    from capsulekit.output import emit_json
    from provisioner.siteinfo import config_value

    open_site(options).close()
    value = config_value(options.paths, " ".join(key))
    if options.json:
        emit_json({" ".join(key): value})
    else:
        click.echo(value)


@cli.command()
@click.pass_obj
def system(options: Options) -> None:
    """Print versions, settings, interfaces, and what is registered: where to begin when something is wrong."""
    from capsulekit.output import emit_json
    from provisioner import siteinfo

    facts = dict(siteinfo.system(options.paths, open_site(options)))
    if options.json:
        emit_json(facts)
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in facts.items()))
