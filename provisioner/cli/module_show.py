"""``capsulekit module show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from capsulekit.cli.main import Options
from capsulekit.errors import UsageError
from provisioner.cli._complete import module_names, node_names
from provisioner.cli._site import chosen_for_reading, complain, matching, open_site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.catalog import Module
    from provisioner.registry.model import Node
    from provisioner.registry.registry import Registry
    from provisioner.server.preview import Preview


@click.command()
@click.argument("names", nargs=-1, metavar="[MODULE]...", shell_complete=module_names)
@click.option(
    "--for",
    "node",
    metavar="NODE",
    shell_complete=node_names,
    help="Print what would run on this node, and the files it would write.",
)
@click.pass_obj
def cli(options: Options, names: tuple[str, ...], node: str | None) -> None:
    """Print modules as NAME:Key=value lines; with --for exactly what would run on a node, and what it would write.

    Secrets are not printed.
    """
    from provisioner.catalog import site_catalog

    registry = open_site(options)
    catalog = site_catalog(options.paths)
    chosen, unknown = matching(names, {*(m.name for m in catalog.modules()), *(catalog.broken() if names else ())})
    modules = [catalog.require(name) for name in chosen]
    if node is None:
        _show(options, modules, registry)
        complain(unknown, "module")
        return
    complain(unknown, "module")
    if names and len(chosen) > 1:
        raise UsageError("--for takes one module at most, or none for all")
    nodes, unmatched = chosen_for_reading(registry, options, [node])
    found = _previews(options, registry, nodes, chosen[0] if names else "")
    if options.json:
        from capsulekit.output import emit_json

        emit_json([_record(one) for one in found])
    else:
        for one in found:
            _print(one)
    complain(unmatched)


def _previews(options: Options, registry: Registry, nodes: Sequence[Node], only: str) -> list[Preview]:
    from provisioner.catalog import site_catalog
    from provisioner.server.desk import Desk
    from provisioner.server.preview import preview
    from provisioner.siteconf import load_site
    from provisioner.vnfs.store import VnfsStore

    paths = options.paths
    desk = Desk(paths, load_site(paths), registry, site_catalog(paths), VnfsStore(paths, registry))
    return [preview(desk, one, only) for one in nodes]


def _print(one: Preview) -> None:
    name = one.node.hostname
    if one.waits:
        click.echo(f"{name}: waits now ({one.waits}); once it may go on:")
    if not one.states:
        click.echo(f"{name}: nothing runs")
    for state in one.states:
        click.echo(f"{name}: state {state.state}")
        for script in state.scripts:
            need = "required" if script.required else "optional"
            role = state.roles[script.module]
            click.echo(f"  {script.order:02d} {script.name:<20} {script.module:<12} {role:<20} {need} {script.sha256}")
        for file in state.files:
            note = f" ({file.note})" if file.note else ""
            verb = "is given" if file.path.startswith("$") else "writes"
            click.echo(f"{name}: state {state.state}: module {file.module} {verb} {file.path}{note}")
            for line in file.content.decode("utf-8", "backslashreplace").splitlines():
                click.echo("  | " + "".join(c if c.isprintable() or c == "\t" else "?" for c in line))


def _record(one: Preview) -> dict[str, Any]:
    return {
        "node": one.node.name,
        "waits": one.waits,
        "states": [
            {
                "state": state.state,
                "scripts": [
                    {
                        "order": s.order, "name": s.name, "module": s.module, "role": state.roles[s.module],
                        "required": s.required, "sha256": s.sha256,
                    }
                    for s in state.scripts
                ],
                "files": [
                    {
                        "module": f.module, "path": f.path, "note": f.note, "secret": f.secret,
                        "content": f.content.decode("utf-8", "backslashreplace"),
                    }
                    for f in state.files
                ],
            }
            for state in one.states
        ],
    }  # fmt: skip


def _show(options: Options, modules: list[Module], registry: Registry) -> None:
    from provisioner.catalog.admin import settings_folder

    active = registry.roles()
    records = []
    for m in modules:
        folder = settings_folder(options.paths, m)
        records.append({
            "name": m.name, "version": m.version, "summary": m.summary, "signed": m.key_id or "shipped",
            "digest": m.digest, "defaultroles": " ".join(m.roles), "roles": " ".join(active.get(m.name, [])),
            "states": " ".join(m.states), "scripts": " ".join(f"{s.state}/{s.name}" for s in m.scripts),
            "optional": " ".join(f"{s.state}/{s.name}" for s in m.scripts if not s.required),
            "writes": " ".join(dict.fromkeys(w.path for w in m.writes)), "settings": str(folder or ""),
        })  # fmt: skip
    if options.json:
        from capsulekit.output import emit_json

        emit_json(records)
        return
    for record in records:
        for key, value in record.items():
            if key != "name":
                click.echo(f"{record['name']}:{key.capitalize()}={value}")
