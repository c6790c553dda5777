"""What a layer holds, for tests: its paths and their kinds."""

from __future__ import annotations

from pathlib import Path

from capsulekit.image import listing


def listed(image: Path) -> dict[str, object]:
    """Path -> kind (folder, file, link) of everything in a squashfs but its root."""
    return {path: entry.kind for path, entry in listing.list_layer(listing.Layer(image)).items() if path}
