"""site.img: the few KB by which a node knows this site. iPXE loads it beside stage1.img, the kernel joins the two."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from initramfs_builder.cpio import regular, with_parents, write_cpio

from capsulekit.files import atomic_file
from capsulekit.sitepaths import SitePaths
from provisioner.pki import ca_path
from provisioner.siteconf import SiteConfig, site_file
from provisioner.sitekey import site_key_path, trusted_here


def site_files(paths: SitePaths, config: SiteConfig) -> dict[str, bytes]:
    """Path in the image → content, all but the stamp: masters and their order, CA, trusted author keys, consoles."""
    masters = f"{config.plain_url} {config.tls_url}\n"
    files = {
        "site/masters": masters.encode(),
        "site/ca.pem": ca_path(paths).read_bytes(),
        "site/console": f"{config.console}\n".encode(),
        "site/order": f"{config.order}\n".encode(),
    }
    # The site's own key too: it signs what is configured or converted here.
    for key in trusted_here(paths)[0]:
        files[f"site/keys/{key.id}.pub"] = key.file_text.encode()
    return files


def write_site_image(path: Path, paths: SitePaths, config: SiteConfig, stamp: int) -> Path:
    """Write the image with ``stamp`` (epoch seconds), to which nodes lift their clocks; returns ``path``."""
    return _write(path, site_files(paths, config), stamp)


def newest_input(paths: SitePaths, more: Iterable[Path] = ()) -> int:
    """When the youngest file that a site's image is made of, or one of ``more``, was written: epoch seconds."""
    own = [path for path in (site_key_path(paths),) if path.exists()]
    inputs = [site_file(paths), ca_path(paths), *paths.trust.glob("*.pub"), *own, *more]
    return max(int(path.stat().st_mtime) for path in inputs)


def _write(path: Path, files: Mapping[str, bytes], stamp: int) -> Path:
    stamped = {**files, "site/stamp": f"{stamp}\n".encode()}
    entries = with_parents(regular(name, stamped[name]) for name in sorted(stamped))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as out:
        write_cpio(out, entries, stamp)
    return path


@dataclass
class SiteImage:
    """The image on disk, made again when what goes into it changed; safe to ask from several threads."""

    paths: SitePaths
    config: SiteConfig
    _made_of: dict[str, bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        """Where the image is."""
        return self.paths.state / "netboot" / "site.img"

    def current(self) -> Path:
        """The image's path, after making it if needed. Raises CapsulekitError when a trusted key is unreadable."""
        files = site_files(self.paths, self.config)
        with self._lock:
            if files != self._made_of or not self.path.exists():
                _write(self.path, files, int(time.time()))
                self._made_of = files
        return self.path
