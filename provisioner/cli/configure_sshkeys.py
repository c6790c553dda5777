"""``capsulekit configure sshkeys``: the key pair of the cluster, apart from root's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import confirm, tell
from provisioner.cli._write import load

if TYPE_CHECKING:
    from provisioner.clusterkey import ClusterKey


@click.command()
@click.option("--new", is_flag=True, help="Make a new pair in the place of the one that is there.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and do nothing.")
@click.pass_obj
def cli(options: Options, new: bool, dry_run: bool) -> None:
    """Make the cluster's SSH key pair, once; its public half is given to the nodes by the module sshkeys.

    A pair that is there is kept. Root's own keys and configuration are not touched.
    """
    from provisioner import clusterkey

    load(options)
    state = clusterkey.look(options.paths)
    if state.exists and not new:
        _tell(options, state, f"The cluster's key is {state.path} ({state.fingerprint}): kept")
        return
    if state.exists:
        click.echo(
            f"WARNING: nodes that run now know only the old key ({state.fingerprint}): with the new one this master "
            "can log in to a node only after it was booted again",
            err=True,
        )
    if dry_run:
        _tell(options, state, f"A key pair would be made: {state.path}")
        return
    if state.exists and not confirm(options, "Make a new key pair?"):
        raise click.Abort
    made = clusterkey.make(options.paths)
    kept = f"; the old one is {made.kept}" if made.kept else ""
    login = f"To log in: ssh -i {made.path} root@NODE"
    _tell(options, made, f"The cluster's key is {made.path} ({made.fingerprint}){kept}", login)


def _tell(options: Options, key: ClusterKey, *lines: str) -> None:
    kept = str(key.kept) if key.kept else None
    tell(options, lines, {"path": str(key.path), "fingerprint": key.fingerprint, "kept": kept})
