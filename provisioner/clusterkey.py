"""The cluster's SSH key pair: looking at it, and making a new one in the place of an old one that is kept."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from capsulekit.files import exclusive_lock, fsync_dir
from capsulekit.sitepaths import SitePaths
from provisioner.hostkeys import cluster_key, ensure_cluster_key


@dataclass(frozen=True)
class ClusterKey:
    """The pair at ``path`` and ``path``.pub; ``fingerprint`` as ssh-keygen -l prints it, ``kept`` the pair before."""

    path: Path
    exists: bool
    fingerprint: str = ""
    kept: Path | None = None


def look(paths: SitePaths) -> ClusterKey:
    """The pair as it is; nothing is made. Raises CapsulekitError when the private key is damaged."""
    path = cluster_key(paths)
    if not path.exists():
        return ClusterKey(path, False)
    return ClusterKey(path, True, _fingerprint(ensure_cluster_key(paths)))


def make(paths: SitePaths) -> ClusterKey:
    """A new pair; one that was there stays beside it under NAME.TIME.bak."""
    path = cluster_key(paths)
    kept = None
    if path.exists():
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
        kept = path.with_name(f"{path.name}.{stamp}-{os.getpid()}.bak")
        with exclusive_lock(path.parent / ".lock"):
            path.rename(kept)
            fsync_dir(path.parent)
    return ClusterKey(path, True, _fingerprint(ensure_cluster_key(paths)), kept)


def _fingerprint(line: str) -> str:
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
