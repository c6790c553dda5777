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
from io import TextIOWrapper
from pathlib import Path

import click

from capsulekit.errors import CapsulekitError, printable
from capsulekit.sitepaths import SitePaths, site_paths

PACKAGES = ("capsulekit.cli", "provisioner.cli")
# Of an error on the terminal: what a slip quotes may be as long as it likes.
LONGEST_LINE = 2000
# The groups of the manual: what `perceus` shows.
PERCEUS = ("node", "group", "vnfs", "module", "info", "configure", "init", "contact", "import", "serve", "reload")
# What "no command at all" prints.
ABOUT = """capsulekit: one signed file per cluster image, booted over the network.

  capsulekit build RECIPE -o FILE.vnfs --key KEY   make a capsule
  capsulekit init                                  set up this machine as the master
  capsulekit vnfs import FILE.vnfs                 install a capsule
  capsulekit serve                                 boot nodes
  capsulekit --help                                every command"""


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
            folder = value if eq else words.pop(0)
            if not folder:
                raise click.UsageError(f"{name} needs a folder, not an empty word")
            setattr(got.options, VALUED[name], Path(folder))
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


def main(argv: Sequence[str], only: tuple[str, ...] | None = None) -> int:
    """Run one command line and return its exit status; no traceback reaches the user unless --debug was said."""
    debug = False
    try:
        hoisted = hoist(argv)
        debug = hoisted.options.debug
        assert isinstance(root, Tree)
        root.only = only
        name = "perceus" if only else "capsulekit"
        if f"_{name.upper()}_COMPLETE" in os.environ:
            from capsulekit.cli import _completion  # noqa: F401 - makes itself known to click
        result = root.main(args=hoisted.rest, prog_name=name, obj=hoisted.options, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort as stop:
        ctrl_c = isinstance(stop.__cause__, KeyboardInterrupt)
        click.echo("Interrupted." if ctrl_c else "Aborted: nothing was changed.", err=True)
        return 1
    except click.exceptions.NoArgsIsHelpError as nothing:
        nothing.show()
        return 2
    except click.ClickException as wrong:
        command = wrong.ctx.command_path if isinstance(wrong, click.UsageError) and wrong.ctx else ""
        _complain(wrong.format_message(), f"see: {command} -h" if command else None)
        return 2
    except CapsulekitError as error:
        if debug:
            raise
        _complain(error.message, error.hint, error.details)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, grep -q) has seen enough: not an error, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        as_root = isinstance(error, PermissionError) and os.geteuid() != 0
        where = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename or ""
        _complain(f"{error.strerror or error}: {where}".rstrip(": "), "try it as root" if as_root else None)
        return 1
    except Exception as bug:
        if debug:
            raise
        said = f"this is a bug: {type(bug).__name__}: {' '.join(str(bug).split())}"
        _complain(said, "please report it with what the same command prints with --debug")
        return 1


def _complain(message: str, hint: str | None, details: Sequence[str] = ()) -> None:
    """An error on stderr: one line, the details' lines, the way out; never a control character, never a flood."""
    for text in (f"ERROR: {message}", *(f"  {line}" for line in details), *([f"       {hint}"] if hint else [])):
        line = printable(text)
        click.echo(line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…", err=True)


def _streams() -> None:
    """Have all three streams: cron and old daemons close some, and a terminal may not know every letter."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def entry() -> None:
    """The ``capsulekit`` program."""
    _streams()
    sys.exit(main(sys.argv[1:]))


def perceus_entry() -> None:
    """The ``perceus`` program: the provisioner's groups under the old name."""
    _streams()
    sys.exit(main(sys.argv[1:], only=PERCEUS))
