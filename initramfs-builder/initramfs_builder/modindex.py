"""kmod's binary indexes of kernel modules: its modprobe reads no text, and an image has no depmod.

An index is a trie that is written children first; a node's place in the file carries, in its upper bits, which parts
the node has. Numbers are 32 bits, most significant byte first. Format: the comments of libkmod/libkmod-index.h of kmod.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

MAGIC = 0xB007F457
VERSION = 0x00020001
HEADER_SIZE = 12
# Far more than the names and aliases of any kernel's modules have, in bytes: one, and those of all nodes together.
KEY_MAX, KEYS_MAX = 4096, 64 << 20
HAS_PREFIX, HAS_VALUES, HAS_CHILDREN = 0x80000000, 0x40000000, 0x20000000

# Key → its values with their priority, the lowest first.
Values = Mapping[str, list[tuple[int, str]]]


def binary_index(values: Values) -> bytes:
    """One index as a file; the same values always give the same bytes."""
    nodes = bytearray()
    keys = sorted(os.fsencode(key) for key in values)
    root = _write(nodes, keys, {os.fsencode(key): sorted(found) for key, found in values.items()}, 0)
    return struct.pack(">III", MAGIC, VERSION, root) + bytes(nodes)


def read_values(data: bytes) -> dict[str, list[tuple[int, str]]]:
    """What an index holds: key → its values with their priority. Raises ValueError when it is damaged."""
    try:
        magic, version, root = struct.unpack_from(">III", data)
        if (magic, version >> 16) != (MAGIC, VERSION >> 16):
            raise ValueError("no index of kmod")
        values: dict[str, list[tuple[int, str]]] = {}
        todo, left, keys = [(b"", root)], len(data), KEYS_MAX
        while todo:
            key, place = todo.pop()
            size, children = _read(data, key, place, values)
            # No two nodes share a byte, so all of them are no longer than the file.
            left, keys = left - size, keys - sum(len(child) for child, _ in children)
            if left < 0 or keys < 0:
                raise ValueError("a loop" if left < 0 else "longer keys than modules have")
            todo += children
    except struct.error as error:
        raise ValueError(str(error)) from None
    return values


def _read(
    data: bytes, key: bytes, place: int, values: dict[str, list[tuple[int, str]]]
) -> tuple[int, list[tuple[bytes, int]]]:
    """Read the node at a place, whose key so far is ``key``; returns how many bytes it takes, and its children."""
    start, children = place & ~(HAS_PREFIX | HAS_VALUES | HAS_CHILDREN), []
    at = start
    if place & HAS_PREFIX:
        end = data.index(b"\0", at, at + KEY_MAX)
        key, at = key + data[at:end], end + 1
        if len(key) > KEY_MAX:
            raise ValueError("a key that is longer than modules have")
    if place & HAS_CHILDREN:
        first, last = struct.unpack_from("BB", data, at)
        places = struct.unpack_from(f">{last - first + 1}I", data, at + 2) if last >= first else ()
        at += 2 + 4 * len(places)
        children = [(key + bytes([first + n]), child) for n, child in enumerate(places) if child]
    if place & HAS_VALUES:
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        for _ in range(count):
            end = data.index(b"\0", at + 4)
            values.setdefault(os.fsdecode(key), []).append(
                (struct.unpack_from(">I", data, at)[0], os.fsdecode(data[at + 4 : end]))
            )
            at = end + 1
    return max(at - start, 1), children


def _write(out: bytearray, keys: list[bytes], values: dict[bytes, list[tuple[int, str]]], start: int) -> int:
    """Write the node for sorted ``keys``, which are the same up to ``start``; returns its place and its parts."""
    shared = _shared(keys[0], keys[-1]) if keys else b""  # of sorted keys, what the ends share, all share
    prefix, here, end = shared[start:], values.get(shared, []), len(shared)
    groups: dict[int, list[bytes]] = {}
    for key in keys:
        if len(key) > end:
            groups.setdefault(key[end], []).append(key)
    children = {letter: _write(out, group, values, end + 1) for letter, group in groups.items()}
    place = HEADER_SIZE + len(out)
    if prefix:
        place |= HAS_PREFIX
        out += prefix + b"\0"
    if children:
        place |= HAS_CHILDREN
        first, last = min(children), max(children)
        out += bytes([first, last])
        out += b"".join(struct.pack(">I", children.get(letter, 0)) for letter in range(first, last + 1))
    if here:
        place |= HAS_VALUES
        out += struct.pack(">I", len(here))
        for priority, value in here:
            out += struct.pack(">I", priority) + os.fsencode(value) + b"\0"
    return place


def _shared(one: bytes, other: bytes) -> bytes:
    """The start that two keys have in common."""
    for end, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return one[:end]
    return min(one, other, key=len)
