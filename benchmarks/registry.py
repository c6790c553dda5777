"""How quick the registry's commands are: node list at 1 000 nodes, and what touches 10 000 at once."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from benchmarks.measure import CAPSULEKIT, measure
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry

TURNS = 15
PLAIN_PYTHON = (sys.executable, "-c", "import click, sqlite3")
LIST_AIM = 2.5  # times the plain Python's start
SET_AIM = 1.0  # seconds
SITE = 'interface = "ck0"\naddress = "10.0.0.1/16"\nrange_start = "10.0.1.1"\nrange_end = "10.0.200.250"\n'


def bench_registry(folder: Path) -> None:
    """Commands on two sites, each with its own registry in SQLite."""
    # As with an installed package: Python keeps its bytecode.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    print("The registry's commands: whole processes, medians, in turn with their measure.")
    small = _Site(folder / "small", 1_000)
    plain, listed = _in_turn(PLAIN_PYTHON, small.command("node", "list"))
    met = "met" if listed <= LIST_AIM * plain else "MISSED"
    print(f"  {'python -c import click, sqlite3':<50} {plain * 1000:6.0f} ms")
    print(
        f"  {'node list, 1 000 nodes':<50} {listed * 1000:6.0f} ms  {listed / plain:4.2f} x; aim <= {LIST_AIM} x: {met}"
    )
    large = _Site(folder / "large", 10_000)
    for number, words in enumerate(
        (("list",), ("summary",), ("list", "n0[0-9]*5,@cluster!n00000"), ("set", "desc", "", "n*"))
    ):
        seconds = statistics.median(_timed(large, words, turn) for turn in range(5))
        aim = f"  aim <= {SET_AIM:.0f} s: {'met' if seconds <= SET_AIM else 'MISSED'}" if number == 3 else ""
        print(f"  {'node ' + words[0] + ', 10 000 nodes' + (', a selector' if number == 2 else ''):<50}"
              f" {seconds * 1000:6.0f} ms{aim}")  # fmt: skip


class _Site:
    """A site with so many nodes, without a master's certificates: the commands here need none."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        (folder / "etc").mkdir(parents=True)
        (folder / "var").mkdir()
        (folder / "etc/site.toml").write_text(SITE)
        registry = Registry(folder / "var/registry.db")
        macs = [f"52:54:00:00:{number >> 8:02X}:{number & 255:02X}" for number in range(nodes)]
        registry.add_nodes([(mac, None) for mac in macs], defaults=Defaults(node_name="n#####"))
        registry.close()

    def command(self, *words: str) -> tuple[str | Path, ...]:
        """A command line on this site."""
        return (CAPSULEKIT, "--config-dir", self.folder / "etc", "--state-dir", self.folder / "var", *words)


def _timed(site: _Site, words: tuple[str, ...], turn: int) -> float:
    """Seconds of one command; a value that is set is another each turn, as only then history is written."""
    line = [word or f"turn {turn}" for word in words]
    return measure(site.command("node", *line)).seconds


def _in_turn(one: tuple[str | Path, ...], two: tuple[str | Path, ...]) -> tuple[float, float]:
    """Median seconds of two command lines, run one after the other in turn."""
    measure(one), measure(two)  # the first time compiles
    pairs = [(measure(one).seconds, measure(two).seconds) for _ in range(TURNS)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
