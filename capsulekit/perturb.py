"""Other surroundings to make a capsule in: another day, user, folder, time zone, … and what really differed there.

perturb.sh sets them up in namespaces of their own, as far as it may; the program inside (capsulekit.witness) notes what
it sees. Only what it saw, and what differs from here, counts as a perturbation.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.run import failed, run_apart
from capsulekit.witness import FAILED, Seen, look

SCRIPT = Path(__file__).with_name("perturb.sh")
PURPOSE = "make the capsule in other surroundings"
DAY = 86400  # seconds
# datefudge's library moves the clock for every program that the dynamic linker starts (datefudge(1)). libfaketime would
# end programs that give up root, because its semaphores belong to the program before them (0.9.10).
LIBRARIES = "/usr/lib/*-linux-gnu/datefudge/datefudge.so"
# One of these folders is covered, in the namespace only, by the other surroundings' own folder.
STAGES = ("/mnt", "/media", "/srv", "/opt")

# bytes; the file system with another order is a file with holes, as large as the disk has room, but at most this.
MOST = 256 << 30


@dataclass(frozen=True)
class Surroundings:
    """What shall differ. ``days`` are added to the clock; ``zone`` is POSIX's TZ, which needs no list of zones.

    ``locales`` are tried in their order; ``contained`` runs everything as root of the user's own namespace, as in a
    container; ``first_core`` takes that one alone, else all others are taken; ``order`` seeds the order in which
    folders list their names.
    """

    name: str
    days: int
    hostname: str
    zone: str
    locales: tuple[str, ...]
    umask: int
    uid: int
    contained: bool
    folder: str
    first_core: bool
    order: str
    hash_seed: int


BOTH = (
    Surroundings(
        name="A",
        days=400,
        hostname="somewhere-else",
        zone="<+1345>-13:45",
        locales=("tr_TR.UTF-8", "de_DE.UTF-8", "en_US.UTF-8", "C.UTF-8", "C"),
        umask=0o077,
        uid=4242,
        contained=False,
        folder="a folder with blanks/" + "and-a-very-long-name-" * 5 + "/end",
        first_core=True,
        order="9d5b1f2e-3c64-4a0f-8a57-0c1d2e3f4a5b",
        hash_seed=1,
    ),
    Surroundings(
        name="B",
        days=1000,
        hostname="b.far-away.example",
        zone="<-1130>11:30",
        locales=("ja_JP.UTF-8", "fr_FR.UTF-8", "en_GB.UTF-8", "C", "C.UTF-8"),
        umask=0o002,
        uid=5151,
        contained=True,
        folder="b",
        first_core=False,
        order="4f1e2d3c-7b6a-4958-b0c1-d2e3f4a5b6c7",
        hash_seed=2,
    ),
)


@dataclass(frozen=True)
class Perturbation:
    """One thing that shall differ: its ``value`` where it did, else the ``reason`` why it did not."""

    what: str
    value: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Elsewhere:
    """What came out in other surroundings: hex sha256 of every listed member, and the files of those that differ."""

    perturbations: tuple[Perturbation, ...]
    sums: dict[str, str]
    files: dict[str, Path]


def go(there: Surroundings, work: Path) -> Elsewhere:
    """Make the capsule described in ``work`` (see capsulekit.witness) in other surroundings.

    Raises CapsulekitError with the builder's own words when it cannot be made there.
    """
    here, before = look(work), time.time()
    _write_settings(there, work, here)
    status = _start(work)
    noted = work / "out" / "noted.json"
    if status == FAILED:
        said = json.loads(noted.read_text())
        raise CapsulekitError(f"in surroundings {there.name} it cannot be made: {said['message']}", hint=said["hint"])
    if status != 0:
        raise failed(["sh", SCRIPT], PURPOSE, status, (work / "log").read_bytes())
    told = json.loads(noted.read_text())
    seen = Seen(**told["seen"])
    moved = seen.time - before
    refused = {p.name: p.read_text().strip() for p in (work / "refused").iterdir()}
    perturbations = tuple(judge(here, seen, moved, time.time() - before, refused))
    return Elsewhere(perturbations, told["sums"], {name: work / "out" / file for name, file in told["files"].items()})


def judge(here: Seen, there: Seen, moved: float, taken: float, refused: Mapping[str, str]) -> Iterator[Perturbation]:
    """What differed, dimension by dimension; where nothing did, ``refused`` (by dimension) says why.

    ``moved`` is how far the clocks are apart, ``taken`` the time that has passed meanwhile (seconds).
    """
    days = round((moved - taken / 2) / DAY)
    values = {
        "clock": f"{days:+} days" if days else "",
        "clock inside the root": f"{days:+} days" if days and there.inside else "",
        "hostname": there.hostname,
        "time zone": f"{there.zone / 3600:+g} h",
        "locale": there.locale,
        "umask": f"{there.umask:04o}",
        "user": _user(there),
        # The scratch folder's own name is another at each run.
        "path": there.path.replace(here.path, "…"),
        "cores": str(there.cores),
        "readdir": "another order" if sorted(there.order) == sorted(here.order) else "",
    }
    same = {
        "hostname": here.hostname == there.hostname,
        "time zone": here.zone == there.zone,
        "locale": here.locale == there.locale,
        "umask": here.umask == there.umask,
        "user": (here.uid, here.contained) == (there.uid, there.contained),
        "path": here.path == there.path,
        "cores": here.cores == there.cores,
        "readdir": here.order == there.order,
    }
    for what, value in values.items():
        if value and not same.get(what, False):
            yield Perturbation(what, value)
        else:
            yield Perturbation(what, reason=refused.get(what, _WHY.get(what, "it is the same as outside")))


_WHY = {"clock inside the root": "no program was run in the root, or those that were do not take the moved clock"}


def _user(seen: Seen) -> str:
    if seen.contained:
        return "root of a user namespace" if seen.uid == 0 else f"uid {seen.uid} in a user namespace"
    return "root" if seen.uid == 0 else f"uid {seen.uid}"


def _start(work: Path) -> int:
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
    with (work / "log").open("wb") as log:
        return run_apart(["sh", SCRIPT, work], purpose=PURPOSE, env=environment, cwd=work, stdout=log, stderr=log)


def _write_settings(there: Surroundings, work: Path, here: Seen) -> None:
    """Shell assignments for perturb.sh, and two lists: folders that must be seen, and those that would hide them."""
    needed = _needed()
    stage = next(s for s in STAGES if Path(s).is_dir() and not any(path.is_relative_to(s) for path in needed))
    cores = sorted(os.sched_getaffinity(0))
    free = shutil.disk_usage(work).free
    libraries = sorted(map(str, Path("/").glob(LIBRARIES.lstrip("/"))))
    settings: dict[str, Any] = {
        "python": sys.executable,
        "stage": stage,
        "library": libraries[0] if libraries else "",
        "fudge": -there.days * DAY,
        "host": there.hostname,
        "zone": there.zone,
        "locales": " ".join(name for name in there.locales if name != here.locale),
        "mask": f"{there.umask:04o}",
        "uid": there.uid if os.geteuid() == 0 else 0,
        "contained": "yes" if there.contained else "",
        "folder": there.folder,
        "cores": ",".join(map(str, cores[:1] if there.first_core else cores[1:])),
        "seed": there.order,
        "megabytes": min(free, MOST) >> 20,
        "hashes": there.hash_seed,
        "repos": os.environ.get("CAPSULEKIT_REPOS_DIR", ""),
        "search": os.environ.get("PATH", ""),
    }
    text = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items())
    (work / "settings").write_text(text)
    _lines(work / "needed", [str(path) for path in needed])
    _lines(work / "hiding", _hiding(needed))
    for name in ("refused", "out"):
        (work / name).mkdir()


def _lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def _needed() -> list[Path]:
    """The folders that this program is made of, each once, none inside another."""
    from initramfs_builder import __file__ as lower

    places = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), str(Path(lower).parents[1])}
    if repos := os.environ.get("CAPSULEKIT_REPOS_DIR"):
        places.add(repos)
    paths = sorted({Path(place).resolve() for place in places})
    return [p for p in paths if not any(p != other and p.is_relative_to(other) for other in paths)]


def _hiding(needed: Sequence[Path]) -> list[str]:
    """Folders above those that an ordinary user may not pass, such as /root."""
    found: set[str] = set()
    for path in needed:
        above = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001]
        found.update(str(folder) for folder in above[:1])
    return sorted(found)


def as_json(perturbations: Sequence[Perturbation]) -> list[dict[str, str]]:
    """For the verdict: value or reason, whichever there is."""
    return [{key: value for key, value in asdict(one).items() if value} for one in perturbations]
