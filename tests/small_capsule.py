"""A real, small capsule, and the tools to forge bad ones from it. The layers are bytes: nothing mounts them here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capsulekit.capsule import layout, tar
from capsulekit.capsule.manifest import MEMBER, Layer, Manifest
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.files import sha256_bytes
from capsulekit.trust import minisign
from capsulekit.trust.minisign import SecretKey

EPOCH = 1700000000
AUTHOR = SecretKey(b"author--", bytes(range(32)))
STRANGER = SecretKey(b"stranger", bytes(range(32, 64)))

CONTENT: dict[str, bytes] = {
    "recipe.toml": b'name = "tiny"\n',
    "capsule.lock": b"lock = 1\n",
    "provision/init/10-hello": b"#!/bin/sh\necho hello\n",
    "boot/vmlinuz": b"kernel" * 300,
    "boot/initrd.img": b"initrd" * 100,
    "layers/modules.squashfs": b"modules" * 64,
    "layers/rootfs.squashfs": b"rootfs" * 1000,
    "layers/rootfs.acl": b"",
}


def layer(path: str, content: dict[str, bytes] = CONTENT, **more: object) -> Layer:
    made = Layer(path, len(content[path]), sha256_bytes(content[path]), 4096)
    return replace(made, **more)  # type: ignore[arg-type]


def manifest(content: dict[str, bytes] = CONTENT, **changes: object) -> Manifest:
    whole = Manifest(
        name="tiny",
        version="1.0",
        arch="amd64",
        distro="debian",
        release="12",
        epoch=EPOCH,
        init="/sbin/init",
        cmdline="console=ttyS0 quiet",
        recipe_digest="ab" * 32,
        kernel_release="6.1.0-18-amd64",
        layers=(
            layer("layers/modules.squashfs", content),
            layer("layers/rootfs.squashfs", content, acl="layers/rootfs.acl"),
        ),
        hybridize=("/usr/share/doc/**",),
        provision=("provision/init/10-hello",),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def small_capsule(out: Path, content: dict[str, bytes] = CONTENT, signer: SecretKey = AUTHOR, **changes: object) -> str:
    """Write one with the real writer; returns its identity."""
    members = [Member(name, data) for name, data in content.items()]
    return write_capsule(out, manifest(content, **changes), members, signer)


def pieces(content: dict[str, bytes] = CONTENT, told: bytes | None = None) -> list[tuple[str, bytes]]:
    """All listed members in the order of the format."""
    whole = {**content, MEMBER: manifest(content).dumps() if told is None else told}
    return [(name, whole[name]) for name in sorted(whole, key=layout.rank)]


def sums_of(members: list[tuple[str, bytes]]) -> bytes:
    return layout.dump_sums({name: sha256_bytes(data) for name, data in members})


def sealed(
    members: list[tuple[str, bytes]],
    *,
    sums: bytes | None = None,
    comment: str | None = None,
    signer: SecretKey = AUTHOR,
) -> list[tuple[str, bytes]]:
    """Members with sums and signature before them: what the author signed is what is there, however odd."""
    sums = sums_of(members) if sums is None else sums
    signature = minisign.sign(sums, signer, manifest().trusted_comment if comment is None else comment)
    return [(layout.SUMS, sums), (layout.SIGNATURE, signature.encode()), *members]


def packed(members: list[tuple[str, bytes]], mtime: int = EPOCH) -> bytes:
    """The tar of members, unchecked."""
    data = b"".join(tar.header(name, len(body), mtime) + tar.padded(body) for name, body in members)
    return data + tar.ending(len(data))


def reheader(data: bytes, at: int, /, **fields: tuple[int, bytes]) -> bytes:
    """Put bytes into the header that starts at ``at`` and mend its checksum. Fields are (offset, bytes)."""
    block = bytearray(data[at : at + 512])
    for offset, value in fields.values():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + 512 :]
