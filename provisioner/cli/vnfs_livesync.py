"""``capsulekit vnfs livesync``: running nodes get what their capsule holds now, without a reboot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from provisioner.cli._complete import capsule_names, node_names

if TYPE_CHECKING:
    from provisioner.livesync.sync import Request, Result
    from provisioner.registry.model import InstalledCapsule, Node
    from provisioner.registry.registry import Registry


@click.command()
@click.argument("name", shell_complete=capsule_names)
@click.argument("nodes", nargs=-1, shell_complete=node_names)
@click.option("--delete", is_flag=True, help="Remove what the generation they booted had and the current one has not.")
@click.option("--limit", type=click.IntRange(1, 256), default=16, show_default=True, help="Nodes at a time.")
@click.option(
    "--timeout", type=click.FloatRange(1, 86400), default=600.0, show_default=True,
    help="Seconds that one step of one node may take.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Ask the nodes, and say what would be sent to each; change nothing.")
@click.pass_obj
def cli(
    options: Options, name: str, nodes: tuple[str, ...], delete: bool, limit: int, timeout: float, dry_run: bool
) -> None:
    """Bring running nodes to the current generation of the capsule NAME, by content, over ssh.

    Without NODES all of its nodes that are up. What the skip list names, what modules made at boot, and what lies on
    the network is left alone; a new kernel needs a reboot. Status 4 when some nodes failed, 1 when all did.
    """
    from provisioner.livesync.sync import Request, livesync
    from provisioner.vnfs.store import VnfsStore

    registry, chosen, row = _chosen(options, name, nodes)
    request = Request(delete, dry_run, limit, timeout)
    if not dry_run:
        _agreed(options, row, chosen)
    _told(options, livesync(VnfsStore(options.paths, registry), registry, row, chosen, request), request)


def _chosen(options: Options, name: str, words: Sequence[str]) -> tuple[Registry, tuple[Node, ...], InstalledCapsule]:
    from capsulekit.errors import CapsulekitError
    from provisioner.cli._site import chosen_for_change, open_site
    from provisioner.livesync.sync import is_up

    registry = open_site(options)
    row = registry.find_capsule(name)
    if words:
        return registry, chosen_for_change(registry, options, words), row
    booted = registry.handed_out()
    names = {host for (capsule, _), hosts in booted.items() if capsule == row.name for host in hosts}
    found = tuple(node for node in registry.nodes() if node.hostname in names and is_up(node))
    if not found:
        raise CapsulekitError(f"no node that runs {row.name} is up", hint="see: capsulekit node status")
    return registry, found, row


def _agreed(options: Options, row: InstalledCapsule, nodes: Sequence[Node]) -> None:
    """Say which nodes change, and ask. Raises click.Abort when the answer is no."""
    from capsulekit.edit.record import edit_folder, read_record
    from provisioner.cli._site import confirm, count
    from provisioner.folding import fold

    record = read_record(edit_folder(options.paths.state, row.name))
    if record is not None and not options.quiet:
        click.echo(f"{row.name} is mounted at {record.at}: what nodes get is its last generation", err=True)
    if not (options.yes and options.quiet):
        click.echo(f"To be changed while running: {fold(node.hostname for node in nodes)}", err=True)
    if not confirm(options, f"Bring {count(len(nodes))} to {row.name} {row.identity[:16]}…?"):
        raise click.Abort


def _told(options: Options, results: Iterator[Result], request: Request) -> None:
    """Print each node's result as it comes; raises CapsulekitError or PartialError for those that failed."""
    from capsulekit.errors import CapsulekitError, PartialError
    from capsulekit.output import emit_json
    from provisioner.cli._site import count

    records, failed, good = [], [], 0
    for one in results:
        if one.status == "failed" or one.status == "skipped":
            failed.append(one)
        else:
            good += 1
        if options.json:
            records.append(one.record())
        elif not options.quiet and one.status in ("done", "same"):
            lines = one.paths() if request.dry_run or options.verbose else []
            click.echo("\n".join([one.line(request.dry_run), *lines]))
    if options.json:
        emit_json(records)
    if failed:
        kind = PartialError if good else CapsulekitError
        first, *more = [one.line() for one in failed]
        raise kind(f"{count(len(failed))} of {good + len(failed)} not in step: {first}", details=tuple(more))
