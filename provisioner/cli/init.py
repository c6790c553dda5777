"""``capsulekit init``: set up this machine as the master of a site."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import say, tell

if TYPE_CHECKING:
    from provisioner.firstrun import Answers
    from provisioner.initsite import InitRequest, InitResult


@click.command()
@click.option("--interface", metavar="NAME", help="Network interface the nodes are on.")
@click.option("--address", metavar="IP/PREFIX", help="This master's address on it.")
@click.option("--range", "range_", metavar="START-END", help="Addresses given to nodes.")
@click.option("--domain", help="Domain of the nodes' names.")
@click.option("--policy", type=click.Choice(["auto", "accept"]), help="Boot unknown machines at once, or ask first.")
@click.option(
    "--dhcp", type=click.Choice(["own", "proxy", "off"]), help="Give addresses, or leave that to another server."
)
@click.option(
    "--stage1",
    type=click.Path(path_type=Path, file_okay=False),
    multiple=True,
    help="Folder that `stage1 build` wrote; once for each architecture.",
)
@click.option("--stage1-kargs", metavar="ARGS", help="Kernel arguments of stage 1.")
@click.option("--kargs", metavar="ARGS", help="Kernel arguments of every node's capsule.")
@click.option("--default-vnfs", metavar="NAME", help="Capsule of new nodes.")
@click.option("--allow-foreign-dhcp", is_flag=True, help="Serve although another DHCP server may answer there.")
@click.option("--nfs", is_flag=True, help="Also run `configure nfs`.")
@click.option("--http", is_flag=True, help="Also run `configure http`.")
@click.option("--systemd", is_flag=True, help="Also run `configure systemd`.")
@click.option("--from", "file", type=click.Path(path_type=Path, dir_okay=False), help="Answers in a TOML file.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done; write nothing.")
@click.pass_obj
def cli(
    options: Options,
    /,
    stage1: tuple[Path, ...],
    allow_foreign_dhcp: bool,
    nfs: bool,
    http: bool,
    systemd: bool,
    file: Path | None,
    dry_run: bool,
    **texts: Any,
) -> None:
    """Set up this machine as the master of a site; run again, it changes only what is said.

    The first run needs --interface, --address and --range, from flags or from a file whose keys are called as the
    flags are; at a terminal it asks for what is missing, and proposes. Keys, nodes and comments in the settings are
    kept.
    """
    from provisioner.firstrun import Answers, merged, read_answers
    from provisioner.initsite import InitRequest

    said = read_answers(file) if file else Answers()
    chosen = tuple(name for name, wanted in (("nfs", nfs), ("http", http), ("systemd", systemd)) if wanted)
    answers = Answers(
        merged(InitRequest(stage1=stage1, **texts), said.request),
        tuple(dict.fromkeys((*said.services, *chosen))),
        said.allow_foreign_dhcp or allow_foreign_dhcp,
    )
    _run(options, answers, dry_run=dry_run)


def init_asking(options: Options, request: InitRequest) -> None:
    """Run init; at a terminal, ask for what is missing first."""
    from provisioner.firstrun import Answers

    _run(options, Answers(request))


def _run(options: Options, answers: Answers, *, dry_run: bool = False) -> None:
    from provisioner.initsite import init_site, missing_flags

    if sys.stdin.isatty() and not options.yes and (missing := missing_flags(options.paths, answers.request)):
        answers = _ask(options, answers, missing)
    request = replace(answers.request, look_for_dhcp=not answers.allow_foreign_dhcp)
    result = init_site(options.paths, request, dry_run=dry_run)
    if not options.json:
        _report(options, result, dry_run)
    for service in answers.services:
        if not (dry_run and result.new):
            _configure(options, service, dry_run)
        elif not options.json:
            say(options, f"Then `configure {service}` would run")
    from provisioner.firstrun import next_commands

    first = result.new and not dry_run
    commands = next_commands(options.paths, answers.request.default_vnfs or "") if first else []
    head = ["The first node boots with these three, and then its power button:"] if commands else []
    record = asdict(result) | {"next": commands, "dry_run": dry_run}
    tell(options, [*head, *(f"  {command}" for command in commands)], record)


def _ask(options: Options, answers: Answers, missing: list[str]) -> Answers:
    """The answers with what a person at the terminal says; nothing has been made until all of them are there."""
    from provisioner.firstrun import SERVICES, first_address, likely
    from provisioner.netboot.cards import cards, propose_range

    request, found = answers.request, cards()
    if "--interface" in missing:
        click.echo("This machine's network interfaces:", err=True)
        for card in found:
            click.echo(f"  {card.line}", err=True)
        best = likely(found)
        name = _prompt("Network interface the nodes are on", best.name if best else None)
        request = replace(request, interface=name)
    if "--address" in missing:
        own = next((card for card in found if card.name == request.interface), None)
        text = "This master's address there, like 10.0.0.1/16"
        request = replace(request, address=_prompt(text, first_address(own)))
    if "--range" in missing:
        try:
            proposed = propose_range(request.address or "")
        except ValueError:
            proposed = None  # init says what is wrong with the address
        default = "-".join(proposed) if proposed else None
        request = replace(request, range_=_prompt("Addresses for new nodes, START-END", default))
    if request.domain is None:
        request = replace(request, domain=_prompt("Domain of the nodes' names", "cluster.internal"))
    asked = {"nfs": "Export files to the nodes by NFS", "http": "Have a web server here send capsules too"}
    services = [name for name in SERVICES if name in answers.services]
    for name, question in asked.items():
        if name not in services and not options.no and click.confirm(f"{question}?", default=False, err=True):
            services.append(name)
    return replace(answers, request=request, services=tuple(services))


def _prompt(question: str, default: str | None) -> str:
    answer: str = click.prompt(question, default=default, err=True)
    return answer


def _report(options: Options, result: InitResult, dry_run: bool) -> None:
    site = result.site
    state = ("would be made" if dry_run else "is ready") if result.new else "is up to date"
    if result.changed and not result.new:
        state = f"{'would change' if dry_run else 'has changed'} ({', '.join(result.changed)})"
    say(options, f"Site {site.name!r} {state}: {options.paths.config}")
    if site.dhcp == "own":
        say(options, f"Nodes on {site.interface} get {site.range_start}-{site.range_end} from {site.address}")
    for warning in result.warnings:
        click.echo(f"WARNING: {warning}", err=True)


def _configure(options: Options, service: str, dry_run: bool) -> None:
    """Run `configure SERVICE` as if it had been typed; what was asked for is not asked again."""
    root = click.get_current_context().find_root()
    # With --json there is one document: init's own.
    agreed = replace(options, yes=True, json=False, quiet=options.quiet or options.json)
    words = ["configure", service, *(["--dry-run"] if dry_run else [])]
    with root.command.make_context(root.info_name, words, obj=agreed) as one:
        root.command.invoke(one)
