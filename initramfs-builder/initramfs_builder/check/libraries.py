"""What programs load: every ELF file's interpreter and libraries, found in the image as its own loader finds them.

The loader of an image has no ld.so.cache, so it searches what files say themselves (DT_RPATH, DT_RUNPATH) and the
folders it was built with, which are read from the loader in the image. A name that is loaded already is not searched
again (ld.so(8)). What the C library opens by name while running is wanted too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from initramfs_builder.check.problem import Problem
from initramfs_builder.elf import Elf
from initramfs_builder.image import Fact, Image

# Where the C library names a file that it opens when it is needed: file name → when.
OPENED = {"libgcc_s.so.1": "a thread ends"}
MUSL = "/lib:/usr/local/lib:/usr/lib"
USUAL = ("lib", "usr/lib", "lib64", "usr/lib64")
LIB_NAMES = ("lib", "lib64", "lib/x86_64-linux-gnu", "lib/i386-linux-gnu")  # what $LIB may mean


@dataclass
class Loaded:
    """What one program has in memory: names under which libraries are known, and the files they are."""

    program: str
    folders: tuple[str, ...]
    names: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """The files."""
        return set(self.names.values())


@dataclass(frozen=True)
class _Object:
    path: str
    elf: Elf
    chain: tuple[str, ...]
    rpath: tuple[str, ...]  # of everything above, but of what has a RUNPATH
    at: str  # the name it was opened by: $ORIGIN is the folder of that, not of what a link there leads to


def check_libraries(image: Image) -> Iterator[Problem]:
    """Every library or interpreter that some ELF file lacks, once for each that names it."""
    said: set[tuple[str, ...]] = set()
    reached: set[str] = set()
    elves = [(path, fact.elf) for path, fact in sorted(image.facts.items()) if fact.elf is not None]
    # Programs first: a library that one of them loads is judged with what the program has told the loader.
    for path, elf in sorted(elves, key=lambda one: one[1].interpreter is None):
        if path in reached:
            continue
        loaded, problems = load(image, path, elf)
        reached |= loaded.files
        for problem in problems:
            if problem.chain[-2:] not in said:
                said.add(problem.chain[-2:])
                yield problem


def load(image: Image, path: str, elf: Elf) -> tuple[Loaded, list[Problem]]:
    """Load a program (or a library by itself) as the image's loader would, breadth first; and what is missing."""
    problems: list[Problem] = []
    loader, folders = None, _usual_folders(image)
    if elf.interpreter is not None:
        loader = image.resolve(elf.interpreter)
        fact = image.file(elf.interpreter)
        if loader is None or fact is None or fact.elf is None:
            problems.append(Problem("interpreter", (path, elf.interpreter)))
        else:
            folders = loader_folders(image, loader, fact)
            if what := _unfit(fact, fact.elf, elf):
                problems.append(Problem("interpreter", (path, elf.interpreter), what))
    loaded = Loaded(path, folders)
    for name in (path.rpartition("/")[2], elf.soname):
        if name:
            loaded.names[name] = path
    if loader is not None:
        loaded.names[loader.rpartition("/")[2]] = loaded.names[elf.interpreter or ""] = loader
    todo = [_Object(path, elf, (path,), (), path)]
    while todo:
        one = todo.pop(0)
        for wanted in _wants(image, one, loaded):
            at = _search(image, one, wanted, loaded)
            found = None if at is None else image.resolve(at)
            if at is None or found is None:
                problems.append(
                    Problem("library", (*one.chain, wanted[0] if len(wanted) == 1 else " or ".join(wanted)))
                )
            elif found not in loaded.files:
                fact = image.facts[found]
                assert fact.elf is not None
                todo.append(_Object(found, fact.elf, (*one.chain, wanted[0]), _passed_on(one), at))
                for name in (*wanted, fact.elf.soname):
                    loaded.names.setdefault(name or found, found)
    return loaded, problems


def _unfit(loader: Fact, own: Elf, program: Elf) -> str | None:
    """Why the kernel would not start a program with this loader, if it would not."""
    if own.kind != program.kind:
        return "is of another class or machine"
    return None if loader.can_run else "cannot be executed"


def loader_folders(image: Image, loader: str, fact: Fact) -> tuple[str, ...]:
    """The folders a loader searches by itself."""
    name = loader.rpartition("/")[2]
    if "musl" not in name:
        return tuple(word for word in sorted(fact.words) if ":" not in word) or _usual_folders(image)
    conf = image.file(f"etc/{name.removesuffix('.so.1')}.path")
    words = conf.text if conf is not None else next((word for word in fact.words if ":" in word), MUSL)
    return tuple(folder for folder in words.replace("\n", ":").split(":") if folder)


def _usual_folders(image: Image) -> tuple[str, ...]:
    """For a library that no program of the image loads: what the image's loaders search, or what most do."""
    known = {
        word.strip("/")
        for path, fact in image.facts.items()
        if fact.elf is not None and path.rpartition("/")[2].startswith("ld-")
        for word in fact.words
        if ":" not in word
    }
    return tuple(sorted({*known, *USUAL}))


def _wants(image: Image, one: _Object, loaded: Loaded) -> Iterator[tuple[str, ...]]:
    """What a file needs, alternatives together, without what is loaded already."""
    needs: list[tuple[str, ...]] = [(name,) for name in one.elf.needed]
    needs += [note.sonames for note in one.elf.dlopen if note.required]
    if one.elf.soname and one.elf.soname.startswith("libc.so."):
        needs += [(name,) for name in OPENED if name in image.facts[one.path].words]
    yield from (need for need in needs if not any(name in loaded.names for name in need))


def _search(image: Image, one: _Object, names: tuple[str, ...], loaded: Loaded) -> str | None:
    """The name by which the loader opens a need of ``one``: of its class and machine, the first there is."""
    own = _expanded(one.elf.runpath, one.at) or (*_expanded(one.elf.rpath, one.at), *one.rpath)
    for name in names:
        places = [name] if "/" in name else [f"{folder}/{name}" for folder in (*own, *loaded.folders)]
        for place in places:
            fact = image.file(place)
            if fact is not None and fact.elf is not None and fact.elf.kind == one.elf.kind:
                return place.lstrip("/")
    return None


def _passed_on(one: _Object) -> tuple[str, ...]:
    own = () if one.elf.runpath else _expanded(one.elf.rpath, one.at)
    return (*own, *one.rpath)


def _expanded(folders: tuple[str, ...], path: str) -> tuple[str, ...]:
    """Folders with $ORIGIN (where the file lies) and $LIB in their place."""
    origin = "/" + path.rpartition("/")[0]
    result = []
    for folder in folders:
        for word in ("$ORIGIN", "${ORIGIN}"):
            folder = folder.replace(word, origin)
        plain = folder.replace("${LIB}", "$LIB")
        result += [plain.replace("$LIB", name) for name in LIB_NAMES] if "$LIB" in plain else [plain]
    return tuple(result)
