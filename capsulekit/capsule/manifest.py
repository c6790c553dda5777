"""The manifest, ``capsule.toml``: what a capsule says about itself. Written one way only, read strictly."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Any

from capsulekit.errors import CapsulekitError, TrustError

FORMAT = 1
MEMBER = "capsule.toml"
MAX_SIZE = 1 << 20  # bytes; a longer manifest is not read at all

# Names of capsules, also of installed ones.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ARCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LAYER = re.compile(r"layers/[A-Za-z0-9][A-Za-z0-9._-]{0,80}\.squashfs")
_ACL = re.compile(r"layers/[A-Za-z0-9][A-Za-z0-9._-]{0,80}\.acl")
_PROVISION = re.compile(r"provision/[A-Za-z0-9][A-Za-z0-9_-]{0,31}/[0-9]{2}-[A-Za-z0-9][A-Za-z0-9._-]{0,80}")
_INIT = re.compile(r"(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+")
# TOML's integers are signed 64 bit; every size in here fits.
_MAX_INT = (1 << 63) - 1

# The mount list never names the hybrid layer: nodes get it over the network, from the export.
HYBRID = "layers/hybrid.squashfs"
# A layer that an edit at a site has put on top of the author's, by its number.
EDIT = re.compile(r"layers/([0-9]{2})-edit\.squashfs")


@dataclass(frozen=True)
class Layer:
    """One read-only layer: its member ``path``, its size packed and unpacked (bytes), and who may fetch it."""

    path: str
    size: int
    sha256: str
    unpacked: int
    private: bool = False
    acl: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything that ``capsule.toml`` holds. ``layers`` are in mount order, topmost first; ``epoch`` in seconds."""

    name: str
    version: str
    arch: str
    distro: str
    release: str
    epoch: int
    init: str
    cmdline: str
    recipe_digest: str
    kernel_release: str
    layers: tuple[Layer, ...]
    hybridize: tuple[str, ...] = ()
    provision: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """``NAME-VERSION.ARCH``: what the capsule is called once installed, and the stem of its file."""
        return f"{self.name}-{self.version}.{self.arch}"

    @property
    def trusted_comment(self) -> str:
        """What the signature's trusted comment must say, to the letter; it holds no time."""
        return f"capsule {self.name} {self.version} {self.arch} recipe {self.recipe_digest}"

    def dumps(self) -> bytes:
        """The one spelling of this manifest (UTF-8 TOML). Raises CapsulekitError when a value breaks the format."""
        try:
            _check(self)
        except TrustError as wrong:
            raise CapsulekitError(f"this capsule can't be described: {wrong.message}") from wrong
        lines = [
            f"format = {FORMAT}",
            *(f"{key} = {_toml(getattr(self, key))}" for key in _TOP if key not in ("hybridize", "provision")),
            f"hybridize = {_toml(self.hybridize)}",
            f"provision = {_toml(self.provision)}",
            "",
            "[kernel]",
            f"release = {_toml(self.kernel_release)}",
        ]
        for layer in self.layers:
            lines += ["", "[[layers]]"]
            lines += [f"{key} = {_toml(getattr(layer, key))}" for key in _LAYER_KEYS]
            if layer.acl is not None:
                lines.append(f"acl = {_toml(layer.acl)}")
        return ("\n".join(lines) + "\n").encode()


# Keys in the order they are written; every one is required.
_TOP: dict[str, type] = {
    "name": str,
    "version": str,
    "arch": str,
    "distro": str,
    "release": str,
    "epoch": int,
    "init": str,
    "cmdline": str,
    "recipe_digest": str,
    "hybridize": list,
    "provision": list,
}
_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a fraction",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
_LAYER_KEYS: dict[str, type] = {"path": str, "size": int, "sha256": str, "unpacked": int, "private": bool}


def loads(data: bytes) -> Manifest:
    """Read a manifest from hostile bytes. Raises TrustError naming the key that is missing, unknown or wrong."""
    if len(data) > MAX_SIZE:
        raise _bad(f"it is larger than {MAX_SIZE} bytes")
    try:
        raw = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as wrong:
        raise _bad(f"it is not TOML: {str(wrong).splitlines()[0]}") from wrong
    if raw.get("format") != FORMAT or type(raw["format"]) is not int:
        said = repr(raw.get("format", "none"))[:40]
        raise TrustError(
            f"unknown capsule format {said}; this program reads format {FORMAT}",
            hint="a newer capsulekit may be able to read it",
        )
    del raw["format"]
    kernel = _pop(raw, "kernel", dict, "")
    layers = _pop(raw, "layers", list, "")
    values = _take(raw, _TOP, {}, "")
    for key in ("hybridize", "provision"):
        values[key] = _strings(values[key], key)
    release = _take(kernel, {"release": str}, {}, "kernel.")["release"]
    manifest = Manifest(**values, kernel_release=release, layers=tuple(_layer(one, i) for i, one in enumerate(layers)))
    _check(manifest)
    return manifest


def _layer(raw: Any, index: int) -> Layer:
    where = f"layers[{index}]."
    if not isinstance(raw, dict):
        raise _bad(f"{where[:-1]} is not a table")
    return Layer(**_take(raw, _LAYER_KEYS, {"acl": str}, where))


def _take(raw: dict[str, Any], required: dict[str, type], optional: dict[str, type], where: str) -> dict[str, Any]:
    """Every required key and those optional ones that are there, types checked; any other key is refused."""
    unknown = sorted(set(raw) - set(required) - set(optional))
    if unknown:
        raise _bad(f"unknown key {where}{unknown[0][:80]!r}")
    kinds = required | {key: kind for key, kind in optional.items() if key in raw}
    return {key: _pop(raw, key, kind, where) for key, kind in kinds.items()}


def _pop(raw: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in raw:
        raise _bad(f"{where}{key} is missing")
    value = raw.pop(key)
    # Exact types: bool is an int to Python, and a number that is true is not a size.
    if type(value) is not kind:
        raise _bad(f"{where}{key} is {_KINDS.get(type(value), 'something else')}, not {_KINDS[kind]}")
    return value


def _strings(values: list[Any], key: str) -> tuple[str, ...]:
    if not all(isinstance(v, str) for v in values):
        raise _bad(f"{key} holds something that is not a string")
    return tuple(values)


def _check(m: Manifest) -> None:
    """Every rule about values, for reading and for writing alike."""
    for key, pattern in (("name", NAME), ("version", NAME), ("arch", _ARCH), ("distro", NAME), ("release", NAME)):
        _match(pattern, getattr(m, key), key)
    _match(NAME, m.kernel_release.replace("+", "_"), "kernel.release")
    _match(_SHA256, m.recipe_digest, "recipe_digest")
    _match(_INIT, m.init, "init")
    _size(m.epoch, "epoch")
    # These end up in line-based texts (boot plans, lists): a line break in one would forge the next line.
    for key, text in (("cmdline", m.cmdline), *(("hybridize", glob) for glob in m.hybridize)):
        if any(not c.isprintable() for c in text):
            raise _bad(f"{key} holds a control character: {text[:80]!r}")
    if len(m.cmdline.encode()) > 2048:
        raise _bad("cmdline is longer than a kernel takes (2048 bytes)")
    if not m.layers:
        raise _bad("it has no layers")
    for layer in m.layers:
        _check_layer(layer)
    for path in m.provision:
        _match(_PROVISION, path, "provision")
    acls = [layer.acl for layer in m.layers if layer.acl is not None]
    for paths, what in (([la.path for la in m.layers], "layer"), (acls, "acl"), (m.provision, "provision script")):
        if len(set(paths)) != len(paths):
            raise _bad(f"a {what} is listed twice")


def _check_layer(layer: Layer) -> None:
    _match(_LAYER, layer.path, "layer path")
    if layer.path == HYBRID:
        raise _bad(f"{HYBRID} is in the mount list; it is only exported, never mounted from the capsule")
    _size(layer.size, f"{layer.path}: size")
    _size(layer.unpacked, f"{layer.path}: unpacked")
    _match(_SHA256, layer.sha256, f"{layer.path}: sha256")
    if layer.acl is not None:
        _match(_ACL, layer.acl, f"{layer.path}: acl")


def _match(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise _bad(f"{what} can't be {value[:80]!r}")


def _size(value: int, what: str) -> None:
    if not 0 <= value <= _MAX_INT:
        raise _bad(f"{what} can't be {value}")


def _bad(why: str) -> TrustError:
    return TrustError(f"malformed manifest ({MEMBER}): {why}")


def _toml(value: Any) -> str:
    """One TOML value; strings as basic strings with every special escaped, so that there is one spelling."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
