"""The program that runs in other surroundings: it notes what it sees there, and makes the capsule again from scratch.

``python -m capsulekit.witness WORK PLACE``: WORK holds recipe.toml, capsule.lock, SHA256SUMS (as they are in the
capsule) and packages/SHA256; PLACE is the empty folder to work in. WORK/out gets noted.json and, numbered, the members
that came out otherwise.
"""

from __future__ import annotations

import json
import locale
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError

FAILED = 9  # exit status: noted.json holds message and hint
CLOCK = Path("/etc/capsulekit-prove")  # where the moved clock comes from, in the namespace (perturb.sh)


@dataclass(frozen=True)
class Seen:
    """What a program sees of its surroundings. ``time`` in seconds since 1970, ``zone`` in seconds east of UTC.

    ``order`` are the names of a folder as the file system lists them; ``inside`` says that programs run inside the new
    root saw the same clock.
    """

    time: float
    hostname: str
    zone: int
    locale: str
    umask: int
    uid: int
    contained: bool
    path: str
    cores: int
    order: list[str]
    inside: bool = False


def look(folder: Path) -> Seen:
    """Look around; ``folder`` is where work is done."""
    umask = os.umask(0o022)
    os.umask(umask)
    return Seen(
        time=time.time(),
        hostname=os.uname().nodename,
        zone=-time.timezone,
        locale=_locale(),
        umask=umask,
        uid=os.geteuid(),
        contained=Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"],
        path=str(folder),
        cores=len(os.sched_getaffinity(0)),
        order=_order(folder),
    )


def _locale() -> str:
    """The locale that programs started from here get; a name that this machine does not have counts as C."""
    named = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "C")
    try:
        locale.setlocale(locale.LC_TIME, named)
    except locale.Error:
        return "C"
    finally:
        locale.setlocale(locale.LC_TIME, "C")
    return "C" if named == "POSIX" else named


def _order(folder: Path) -> list[str]:
    names = folder / "names"
    names.mkdir()
    for number in range(32):
        (names / f"name-{number}").touch()
    order = [entry.name for entry in os.scandir(names)]
    shutil.rmtree(names)
    return order


def witness(work: Path, place: Path) -> None:
    """Look around, make the capsule again, note both."""
    from capsulekit.build import make_parts
    from capsulekit.cache import Cache
    from capsulekit.capsule.layout import load_sums
    from capsulekit.capsule.write import digests_of
    from capsulekit.progress import Progress
    from capsulekit.rebuild import plan

    seen = look(place)
    cache = Cache(place / "cache")
    for package in sorted((work / "packages").iterdir()):
        cache.add_package(package, package.name)
    planned = plan((work / "recipe.toml").read_text(), (work / "capsule.lock").read_text(), "the capsule", cache)
    made = make_parts(planned.recipe, planned.lock, planned.maker, cache, Progress(), True)
    sums = digests_of(made.manifest, made.members)
    wanted = load_sums((work / "SHA256SUMS").read_bytes())
    files = {}
    for number, member in enumerate(made.members):
        if sums[member.name] != wanted.get(member.name) and isinstance(member.source, Path):
            files[member.name] = str(number)
            shutil.copyfile(member.source, work / "out" / str(number))
    told = {"seen": {**asdict(seen), "inside": _inside()}, "sums": sums, "files": files}
    (work / "out" / "noted.json").write_text(json.dumps(told))


def _inside() -> bool:
    """Whether every root in which programs were run saw the clock that we see (clock.lib.sh notes it)."""
    return (CLOCK / "seen" / "moved").exists() and not (CLOCK / "seen" / "real").exists()


if __name__ == "__main__":
    try:
        witness(Path(sys.argv[1]), Path(sys.argv[2]))
    except CapsulekitError as wrong:
        said = {"message": wrong.message, "hint": wrong.hint}
        (Path(sys.argv[1]) / "out" / "noted.json").write_text(json.dumps(said))
        sys.exit(FAILED)
