"""``capsulekit vnfs verify``: is what lies in the store what was signed?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsulekit.errors import CapsulekitError, TrustError
from provisioner.cli._vnfs import opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.vnfs.store import VnfsStore


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME|FILE...")
@click.pass_obj
def cli(options: Options, names: tuple[str, ...]) -> None:
    """Check installed capsules, or capsule files, against their signatures; exit 3 when anything does not hold.

    A word with a slash, or ending in .vnfs, is a file. The keys are those that the site trusts now, and its own. Of an
    installed capsule all generations are checked; what is not its author's is named.
    """
    from provisioner.cli._site import tell

    records, lines, wrong = [], [], []
    errors: list[CapsulekitError] = []
    with opened_store(options) as store:
        for name in names:
            is_file = "/" in name or name.endswith(".vnfs")
            try:
                record = _file(options, Path(name)) if is_file else _installed(store, name)
            except CapsulekitError as error:  # the others are checked all the same
                errors.append(error)
                continue
            records.append(record)
            if record["wrong"]:
                wrong += [f"{name}: {line}" for line in record["wrong"]]
            else:
                told = f"identity={record['identity']} key={record['key_id']}"
                lines.append(f"OK {record['name']} {told} ({_counted(record)}, {record['size'] / 1e6:.1f} MB)")
                lines += [f"   not its author's: {member}" for member in record.get("changed", ())]
    if records:
        tell(options, lines, {"checked": records})
        sys.stdout.flush()
    if wrong or errors:
        hint = "import it again from a good file" if wrong else errors[0].hint
        first, *more = [*wrong, *(line for error in errors for line in (error.message, *error.details))]
        kind = TrustError if wrong or any(isinstance(error, TrustError) for error in errors) else CapsulekitError
        raise kind(first, hint=hint, details=tuple(more))


def _counted(record: dict[str, Any]) -> str:
    from provisioner.cli._site import count

    members, generations = count(record["members"], "member"), record.get("generations", 1)
    return members if generations == 1 else f"{members} of {count(generations, 'generation')}"


def _installed(store: VnfsStore, name: str) -> dict[str, Any]:
    from provisioner.vnfs.check import check

    done = check(store, name)
    row = done.capsule
    return {"name": row.name, "identity": row.identity, "key_id": row.key_id, "members": done.members,
            "size": done.size, "wrong": list(done.wrong), "generations": done.generations,
            "changed": list(done.changed)}  # fmt: skip


def _file(options: Options, path: Path) -> dict[str, Any]:
    from capsulekit.capsule.read import open_capsule, verify
    from provisioner.sitekey import trusted_here

    keys, revoked = trusted_here(options.paths)
    with open_capsule(path) as capsule:
        good = verify(capsule, keys, revoked=revoked)
    sizes = [member.size for member in good.members.values()]
    return {"name": good.manifest.full_name, "identity": good.identity, "key_id": good.key.id,
            "members": len(sizes), "size": sum(sizes), "wrong": []}  # fmt: skip
