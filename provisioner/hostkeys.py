"""SSH keys of the site: one cluster key pair, and host keys of each node's own, made once and kept.

A node's host keys outlive its capsule: whoever knows the node goes on knowing it after any number of reboots.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write, exclusive_lock
from capsulekit.sitepaths import SitePaths

Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
# No RSA: making one takes most of a second, and every client of the last ten years speaks one of these.
HOST_KEYS: dict[str, Callable[[], Private]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
}


def cluster_key(paths: SitePaths) -> Path:
    """The private key that opens every node's root account; its public half has ``.pub`` behind it."""
    return paths.config / "ssh" / "cluster_ed25519"


def node_dir(paths: SitePaths, nodeid: str) -> Path:
    """Folder of one node's host keys."""
    return paths.state / "nodes" / nodeid.replace(":", "-") / "ssh"


def ensure_cluster_key(paths: SitePaths) -> str:
    """The cluster's public key, one line; the pair is made unless it is there. Raises CapsulekitError if damaged."""
    return _pair(cluster_key(paths), ed25519.Ed25519PrivateKey.generate, "capsulekit-cluster")[1].decode()


def files_for(paths: SitePaths, nodeid: str) -> dict[str, bytes]:
    """What module ``sshkeys`` gives one node: file name → content. Keys are made at the first call and kept."""
    folder = node_dir(paths, nodeid)
    files = {"authorized_keys": ensure_cluster_key(paths).encode()}
    for kind, generate in HOST_KEYS.items():
        name = f"ssh_host_{kind}_key"
        files[name], files[name + ".pub"] = _pair(folder / name, generate, nodeid)
    return files


def _pair(path: Path, generate: Callable[[], Private], comment: str) -> tuple[bytes, bytes]:
    """The key pair at ``path``, made if missing: (OpenSSH private key, public key line).

    The public file is only a copy: what is returned is computed from the private key, so the two never disagree.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    public_file = path.with_name(path.name + ".pub")
    with exclusive_lock(path.parent / ".lock"):
        if not path.exists():
            made = generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            atomic_write(path, made, 0o600)
        private = path.read_bytes()
        try:
            public = load_ssh_private_key(private, None).public_key()
        except (ValueError, TypeError) as bad:
            raise CapsulekitError(
                f"the SSH key {path} is damaged: {bad}", hint="remove it to have a new one made"
            ) from bad
        line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + f" {comment}\n".encode()
        if not public_file.exists() or public_file.read_bytes() != line:
            atomic_write(public_file, line)
    return private, line
