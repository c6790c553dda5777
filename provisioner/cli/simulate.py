"""``capsulekit simulate``: a boot storm to order."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from capsulekit.errors import UsageError
from provisioner.cli._complete import capsule_names, group_names
from provisioner.cli._site import confirm, count, open_site, tell

if TYPE_CHECKING:
    from provisioner.registry.registry import Registry
    from provisioner.simulate.tally import Tally

MOST_NODES = 1 << 16


class Seconds(click.FloatRange):
    """Up to a week. click lets "nan" through, which is in no range."""

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, checked."""
        number = float(super().convert(value, param, ctx))  # type: ignore[arg-type] # click's stubs say: a number
        if number != number:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


SECONDS = Seconds(0, 86400.0 * 7)


@click.command()
@click.option("--nodes", type=click.IntRange(1, MOST_NODES), help="How many pretend nodes.")
@click.option(
    "--at-once",
    type=click.IntRange(1, MOST_NODES),
    help="How many of them live at the same time; all, and at most 512, unless it is said.",
)
@click.option(
    "--polls", type=click.IntRange(0, 10**6), default=3, show_default=True, help="How often each polls once ready."
)
@click.option("--duration", type=SECONDS, help="Instead of --polls: for how many seconds each polls once ready.")
@click.option(
    "--interval", type=SECONDS, default=1.0, show_default=True, help="Seconds between two polls; an agent's own is 60."
)
@click.option("--fetch", is_flag=True, help="Also fetch and check stage 1 and every member of the capsule.")
@click.option("--keep-alive", is_flag=True, help="One connection for all requests of a node; a real one makes many.")
@click.option(
    "--vnfs", default="", metavar="NAME", shell_complete=capsule_names, help="The capsule, else a new node's."
)
@click.option("--group", default="", metavar="GROUP", shell_complete=group_names, help="The group, else a new node's.")
@click.option(
    "--master", "url", default="", metavar="URL", help="http://ADDRESS[:PORT] of another master of this site."
)
@click.option("--clean", is_flag=True, help="Only take away pretend nodes that a killed run has left.")
@click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")
@click.pass_obj
def cli(
    options: Options, nodes: int | None, at_once: int | None, polls: int, duration: float | None, interval: float,
    fetch: bool, keep_alive: bool, vnfs: str, group: str, url: str, clean: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Boot pretend nodes against the running master, through the whole protocol, and say how it did.

    Run it on the master, as root. The pretend nodes are registered while it runs and gone afterwards, also after
    Ctrl-C; after a kill -9 --clean removes them, and so does the next run. It ends with 4 when some of them failed.
    """
    if clean == (nodes is not None):
        raise UsageError("say --nodes N, or --clean")
    registry = open_site(options)
    if clean:
        _clean(options, registry, dry_run)
        return
    from provisioner.simulate.storm import Storm, how_long, is_here, simulate, verdict
    from provisioner.simulate.tally import lines
    from provisioner.siteconf import load_site

    assert nodes is not None
    storm = Storm(
        nodes, at_once or min(nodes, 512), polls, interval, duration, fetch, keep_alive, vnfs, group, url
    )  # fmt: skip
    if not options.quiet and not is_here(storm, load_site(options.paths)):
        told = "All pretend nodes come from this machine's one address, whose boots the master limits"
        click.echo(f"{told}: this takes at least {how_long(storm):.0f} s", err=True)
    if dry_run:
        _rehearse(options, registry, storm.nodes, vnfs, group)
        return
    show = sys.stderr.isatty() and not options.quiet
    record = simulate(options.paths, registry, storm, _show if show else lambda _: None)
    if show:
        click.echo("\r\033[K", nl=False, err=True)
    registry.close()
    tell(options, lines(record), record)
    sys.stdout.flush()
    verdict(record)


def _show(tally: Tally) -> None:
    text = (
        f"\r{tally.begun} begun, {tally.ready} ready, {tally.failures.total()} failed, {tally.requests.count} requests"
    )
    click.echo(text, nl=False, err=True)


def _rehearse(options: Options, registry: Registry, nodes: int, vnfs: str, group: str) -> None:
    from provisioner.simulate import pretend

    capsule = pretend.capsule_for(options.paths, registry, vnfs)
    with registry.db.rehearsal():
        pretend.add(options.paths, registry, nodes, capsule, group)
    line = f"{count(nodes, 'pretend node')} would boot {capsule}, {pretend.mac_of(0)} to {pretend.mac_of(nodes - 1)}"
    tell(options, [line], {"dry_run": True, "nodes": nodes, "vnfs": capsule})


def _clean(options: Options, registry: Registry, dry_run: bool) -> None:
    from provisioner.simulate import pretend

    left = sum(1 for _ in pretend.found(registry))
    if dry_run or not left:
        line = f"{count(left, 'pretend node')} would be removed" if left else "No pretend nodes are registered"
        tell(options, [line], {"dry_run": dry_run, "removed": left})
        return
    with pretend.alone(options.paths):
        if not confirm(options, f"Remove {count(left, 'pretend node')}?"):
            raise click.Abort
        gone = pretend.remove(options.paths, registry)
    tell(options, [f"{count(gone, 'pretend node')} removed"], {"dry_run": False, "removed": gone})
