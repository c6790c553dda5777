"""Where the site's files are: /etc/capsulekit and /var/lib/capsulekit, moved by flag or environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SitePaths:
    """The two folders of a site; everything else hangs under them."""

    config: Path
    state: Path

    @property
    def trust(self) -> Path:
        """Folder of trusted author keys (minisign .pub files)."""
        return self.config / "trust.d"


def site_paths(config: Path | None = None, state: Path | None = None) -> SitePaths:
    """Flags win over CAPSULEKIT_CONFIG_DIR and CAPSULEKIT_STATE_DIR, which win over the system folders."""
    return SitePaths(
        # Absolute, because children such as dnsmasq run in another folder; the state's without links, because the
        # kernel tells mounts in it by such paths.
        (config or Path(os.environ.get("CAPSULEKIT_CONFIG_DIR", "/etc/capsulekit"))).absolute(),
        (state or Path(os.environ.get("CAPSULEKIT_STATE_DIR", "/var/lib/capsulekit"))).resolve(),
    )
