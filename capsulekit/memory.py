"""Whether a root file system may be unpacked in memory while it is worked on, and how much it may take there.

Files are made many times faster on a tmpfs than on a disk, and a killed build leaves none behind. The image itself is
never in memory: it streams. A root that is larger than a fixed share is unpacked on the disk, so memory is bounded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# bytes; a larger root is unpacked on the disk
MOST = 2 << 30
SHARE = 3
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def room_for(needed: int) -> int:
    """Bytes a tmpfs may hold, or 0 when ``needed`` bytes (a guess) should better lie on the disk.

    CAPSULEKIT_SCRATCH=disk always says disk.
    """
    if os.environ.get("CAPSULEKIT_SCRATCH") == "disk":
        return 0
    most = min(MOST, available() // SHARE)
    return most if needed * 3 // 2 <= most else 0


def available() -> int:
    """Bytes of memory that can be had without hurting anybody: the machine's, or what our container may take."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    for path in CGROUP_LIMITS:
        try:
            free = min(free, int(Path(path).read_text()))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return free
