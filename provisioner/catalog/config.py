"""The admin's settings of a module: config/modules/NAME, made at activation with defaults, never overwritten.

``settings.toml`` (a module with settings) or ``all`` (one with text) count for every node; the files ``vnfs/V``,
``group/G`` and ``node/N`` for those nodes only, written in the same way. The nearest wins: node > group > all > vnfs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.sitepaths import SitePaths
from provisioner.catalog.model import Module, Value
from provisioner.catalog.read import NAME
from provisioner.registry.model import Node

SETTINGS = "settings.toml"
SCOPES = ("vnfs", "group", "node")
MAX_TEXT = 4 << 20  # bytes of one file
# Settings and masked files may hold secrets: only root reads them.
MODE = 0o600


@dataclass(frozen=True)
class Part:
    """One of the admin's files that counts for a node; ``rank`` grows towards the node, ``scope`` is all, vnfs, …"""

    rank: int
    scope: str
    path: Path
    content: bytes


def module_config(paths: SitePaths, name: str) -> Path:
    """The folder of one module's settings."""
    return paths.config / "modules" / name


def make_config(paths: SitePaths, module: Module) -> list[Path]:
    """Make what is missing of a module's folder; returns what was made, outermost first. Nothing is overwritten.

    Raises CapsulekitError when it can't be made; what was made until then is gone again.
    """
    made: list[Path] = []
    folder = module_config(paths, module.name)
    if not (module.settings or module.text):
        return made
    try:
        for place in (folder.parent, folder, *(folder / scope for scope in SCOPES)):
            if not place.is_dir():
                place.mkdir(mode=0o755, parents=True)
                made.append(place)
        first = folder / (SETTINGS if module.settings else "all")
        if not first.exists():
            made.append(first)
            atomic_write(first, _defaults(module).encode(), MODE)
    except OSError as wrong:
        unmake(made)
        raise CapsulekitError(f"can't make the settings {wrong.filename or folder}: {wrong.strerror}") from wrong
    return made


def unmake(made: list[Path]) -> None:
    """Take away what ``make_config`` made, the innermost first."""
    for path in reversed(made):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def parts(paths: SitePaths, module: Module, node: Node) -> list[Part]:
    """The admin's files of a module that count for a node, in the manual's order: all, vnfs, group, node.

    Raises CapsulekitError when one can't be read.
    """
    folder = module_config(paths, module.name)
    first = "all" if module.text else SETTINGS
    places = [(1, "all", folder / first)]
    targets = ((0, "vnfs", node.vnfs), (2, "group", node.groupname), (3, "node", node.hostname), (4, "node", node.name))
    places += [(rank, scope, folder / scope / target) for rank, scope, target in targets if NAME.fullmatch(target)]
    found = [Part(rank, scope, path, _read(path)) for rank, scope, path in dict.fromkeys(places) if _is_there(path)]
    return found if node.cluster else [part for part in found if part.rank != 4]


def settings(paths: SitePaths, module: Module, node: Node) -> dict[str, Value]:
    """A node's settings of a module, the nearest file's word for each key. Raises CapsulekitError."""
    chosen: dict[str, Value] = {one.key: one.default for one in module.settings}
    if module.settings:
        for part in sorted(parts(paths, module, node), key=lambda part: part.rank):
            chosen.update(read_settings(module, part.path, part.content))
    return chosen


def read_settings(module: Module, path: Path, content: bytes) -> dict[str, Value]:
    """The keys in one settings file. Raises CapsulekitError naming file and key."""
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as wrong:
        raise CapsulekitError(f"{path}: {wrong}") from wrong
    known = {one.key: one.default for one in module.settings}
    secret = {one.key for one in module.settings if one.secret}
    for key, value in table.items():
        if key not in known:
            raise CapsulekitError(f"{path}: unknown key {key!r}", hint="known: " + ", ".join(sorted(known)))
        if type(value) is not type(known[key]):
            # What is told here goes to the log, and to the node's history.
            told = "that" if key in secret else repr(value)
            raise CapsulekitError(f"{path}: {key} must be a {type(known[key]).__name__}, not {told}")
        if isinstance(value, str) and not value.isprintable():
            raise CapsulekitError(f"{path}: {key} must be one line without control characters")
    return table


def joined(module: Module, found: list[Part]) -> bytes:
    """The text of a node, as the module joins it; comment lines are left out, every other byte is kept."""
    lines = [(part.rank, line) for part in found for line in _lines(part.content)]
    if module.text and module.text.join == "names":
        lines = _by_name(lines)
    return b"".join(line + b"\n" for _, line in lines)


def has_lines(content: bytes) -> bool:
    """Whether there is more in a file than comments and blank lines."""
    return any(True for _ in _lines(content))


def check_config(paths: SitePaths, module: Module) -> None:
    """Read every settings file of a module, whoever it is for. Raises CapsulekitError naming file and key."""
    folder = module_config(paths, module.name)
    if module.settings:
        for path in (folder / SETTINGS, *(p for scope in SCOPES for p in sorted((folder / scope).glob("*")))):
            if _is_there(path) and not path.name.endswith("~") and not path.name.startswith("."):
                read_settings(module, path, _read(path))


def _by_name(lines: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """One line a name (up to the first colon), where it stood first: the nearest one's, the last of equally near."""
    chosen: dict[bytes, tuple[int, bytes]] = {}
    for rank, line in lines:
        name = line.partition(b":")[0]
        if name not in chosen or rank >= chosen[name][0]:
            chosen[name] = (rank, line)
    return list(chosen.values())


def _lines(content: bytes) -> Iterator[bytes]:
    for line in content.split(b"\n"):
        if line.strip() and not line.lstrip().startswith(b"#"):
            yield line


def _defaults(module: Module) -> str:
    if module.text:
        return module.text.default
    parts = [
        f"# Settings of module {module.name}: {module.summary}.\n# Each key has the value shown until it is set.\n"
    ]
    for one in module.settings:
        value = str(one.default).lower() if isinstance(one.default, bool) else one.default
        text = _quoted(value) if isinstance(one.default, str) else str(value)
        parts.append(f"\n# {one.summary}\n# {one.key} = {text}\n")
    return "".join(parts)


def _quoted(text: object) -> str:
    """A basic string of TOML; settings are printable, so only these two need a backslash."""
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
    except OSError as wrong:
        raise CapsulekitError(f"can't read {path}: {wrong.strerror}") from wrong
    if len(data) > MAX_TEXT:
        raise CapsulekitError(f"{path} is larger than {MAX_TEXT} bytes")
    return data
