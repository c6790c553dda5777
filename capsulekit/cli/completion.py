"""``capsulekit completion``: the script that makes a shell complete our words."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.argument("program", type=click.Choice(["capsulekit", "perceus"]), default="capsulekit")
def cli(shell: str, program: str) -> None:
    """Print a script that completes commands, nodes, groups, capsules, modules and roles.

    For bash: capsulekit completion bash > /etc/bash_completion.d/capsulekit
    """
    from capsulekit.cli._completion import CLASSES
    from capsulekit.cli.main import root

    click.echo(CLASSES[shell](root, {}, program, f"_{program.upper()}_COMPLETE").source())
