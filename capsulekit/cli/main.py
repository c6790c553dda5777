"""The command tree: every public file in capsulekit/cli and provisioner/cli is one command, loaded late.

A file GROUP_NAME.py is the command NAME of the group in GROUP.py, which may lie in the other package.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths, site_paths

PACKAGES = ("capsulekit.cli", "provisioner.cli")
# The groups of the manual: what `perceus` shows.
PERCEUS = ("node", "group", "vnfs", "module", "info", "configure", "init", "contact", "import", "serve")


@dataclass
class Options:
    """What may stand anywhere on the line, before or after the subcommand."""

    nodeid: bool = False
    yes: bool = False
    no: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    json: bool = False
    config_dir: Path | None = None
    state_dir: Path | None = None

    @property
    def paths(self) -> SitePaths:
        """The site's folders as the flags and the environment say."""
        return site_paths(self.config_dir, self.state_dir)


FLAGS = {
    "-i": "nodeid", "--nodeid": "nodeid",
    "-y": "yes", "--yes": "yes",
    "-n": "no", "--no": "no",
    "-q": "quiet", "--quiet": "quiet",
    "-v": "verbose", "--verbose": "verbose",
    "-d": "debug", "--debug": "debug",
    "--json": "json",
}  # fmt: skip
VALUED = {"--config-dir": "config_dir", "--state-dir": "state_dir"}


@dataclass
class Hoisted:
    """A command line taken apart: the options that may stand anywhere, and the rest in its order."""

    options: Options = field(default_factory=Options)
    rest: list[str] = field(default_factory=list)


def hoist(argv: Sequence[str]) -> Hoisted:
    """Take the everywhere options out of ``argv``; a lone ``--`` ends the search. Raises click.UsageError."""
    got, words = Hoisted(), list(argv)
    while words:
        word = words.pop(0)
        name, eq, value = word.partition("=")
        if word == "--":
            got.rest += [word, *words]
            break
        if word in ("-e", "--embeded"):
            got.options.yes = got.options.quiet = True
        elif word in FLAGS:
            setattr(got.options, FLAGS[word], True)
        elif name in VALUED:
            if not eq and not words:
                raise click.UsageError(f"{name} needs a folder")
            setattr(got.options, VALUED[name], Path(value if eq else words.pop(0)))
        elif len(word) > 2 and word[0] == "-" and all("-" + c in FLAGS or c == "e" for c in word[1:]):
            words[:0] = ["-" + c for c in word[1:]]
        else:
            got.rest.append(word)
    return got


def _files() -> set[str]:
    """The names of all public command files, without their suffix."""
    names: set[str] = set()
    for package in PACKAGES:
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            names |= {m.name for m in pkgutil.iter_modules(spec.submodule_search_locations)}
    return {n for n in names if n != "main" and not n.startswith("_")}


class Group(click.Group):
    """A group that has, besides its own commands, those in files called after it; imports only the one called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, sorted by name."""
        start = f"{self.name}_"
        parts = (name.removeprefix(start).replace("_", "-") for name in _files() if name.startswith(start))
        return sorted({*super().list_commands(ctx), *parts})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Its own command, the one in the file called after it, or None."""
        file = f"{self.name}_{cmd_name.replace('-', '_')}"
        return super().get_command(ctx, cmd_name) or (_command(file) if file in _files() else None)


def _command(file: str) -> click.Command | None:
    for package in PACKAGES:
        if find_spec(f"{package}.{file}"):
            command = import_module(f"{package}.{file}").cli
            assert isinstance(command, click.Command)
            return command
    return None


class Tree(click.Group):
    """Finds a command by the name of its file; imports only the one that is called."""

    only: tuple[str, ...] | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Every command, sorted by name."""
        files = _files()
        own = {n for n in files if n.endswith("_") or n.partition("_")[0] not in files - {n}}
        shown = {n.rstrip("_").replace("_", "-") for n in own}
        return sorted(n for n in shown if self.only is None or n in self.only)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command in the file of that name (``import`` lives in import_.py), or None."""
        if cmd_name not in self.list_commands(ctx):
            return None
        base = cmd_name.replace("-", "_")
        return _command(base) or _command(base + "_")


@click.group(cls=Tree, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="capsulekit", prog_name="capsulekit")
@click.pass_context
def root(ctx: click.Context) -> None:
    """Build signed capsules and boot cluster nodes into them.

    Anywhere on the line: -i/--nodeid select by MAC, -y/--yes, -n/--no, -q/--quiet, -v/--verbose, -d/--debug,
    -e (= -yq), --json, --config-dir DIR, --state-dir DIR.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ABOUT)


ABOUT = """capsulekit: one signed file per cluster image, booted over the network.

  capsulekit build RECIPE -o FILE.vnfs --key KEY   make a capsule
  capsulekit init                                  set up this machine as the master
  capsulekit vnfs import FILE.vnfs                 install a capsule
  capsulekit serve                                 boot nodes
  capsulekit --help                                every command"""


def main(argv: Sequence[str], only: tuple[str, ...] | None = None) -> int:
    """Run one command line and return its exit status; no traceback reaches the user unless --debug was said."""
    debug = False
    try:
        hoisted = hoist(argv)
        debug = hoisted.options.debug
        assert isinstance(root, Tree)
        root.only = only
        name = "perceus" if only else "capsulekit"
        result = root.main(args=hoisted.rest, prog_name=name, obj=hoisted.options, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort as stop:
        ctrl_c = isinstance(stop.__cause__, KeyboardInterrupt)
        click.echo("Interrupted." if ctrl_c else "Aborted: nothing was changed.", err=True)
        return 1
    except click.ClickException as wrong:
        wrong.show()
        return 2
    except CapsulekitError as error:
        if debug:
            raise
        click.echo(f"ERROR: {error.message}", err=True)
        for line in error.details:
            click.echo(f"  {line}", err=True)
        if error.hint:
            click.echo(f"       {error.hint}", err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, grep -q) has seen enough: not an error, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        click.echo(f"ERROR: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        if isinstance(error, PermissionError) and os.geteuid() != 0:
            click.echo("       try it as root", err=True)
        return 1
    except Exception as bug:
        if debug:
            raise
        click.echo(f"ERROR: this is a bug: {type(bug).__name__}: {' '.join(str(bug).split())}", err=True)
        click.echo("       please report it with what the same command prints with --debug", err=True)
        return 1


def entry() -> None:
    """The ``capsulekit`` program."""
    sys.exit(main(sys.argv[1:]))


def perceus_entry() -> None:
    """The ``perceus`` program: the provisioner's groups under the old name."""
    sys.exit(main(sys.argv[1:], only=PERCEUS))
