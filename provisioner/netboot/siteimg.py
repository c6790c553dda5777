"""site.img: the few KB by which a node knows this site. iPXE loads it beside stage1.img, the kernel joins the two."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from initramfs_builder.cpio import regular, with_parents, write_cpio

from capsulekit.files import atomic_file
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from provisioner.pki import ca_path
from provisioner.siteconf import SiteConfig


def site_files(paths: SitePaths, config: SiteConfig) -> dict[str, bytes]:
    """Path in the image → content, all but the stamp: masters, CA, trusted author keys, console policy."""
    masters = f"http://{config.ip}:{config.http_port} https://{config.ip}:{config.tls_port}\n"
    files = {
        "site/masters": masters.encode(),
        "site/ca.pem": ca_path(paths).read_bytes(),
        "site/console": f"{config.console}\n".encode(),
    }
    trusted = Keyring(paths.trust).keys()
    for key in trusted:
        files[f"site/keys/{key.id}.pub"] = key.file_text.encode()
    return files


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
                now = int(time.time())
                stamped = {**files, "site/stamp": f"{now}\n".encode()}
                entries = with_parents(regular(path, stamped[path]) for path in sorted(stamped))
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(self.path) as out:
                    write_cpio(out, entries, now)
                self._made_of = files
        return self.path
