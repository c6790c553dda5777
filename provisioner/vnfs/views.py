"""Read-only views of layers that commands look into: in a place of their own, cleared when a command was killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from capsulekit.edit.stack import Image, merged, sweep
from capsulekit.sitepaths import SitePaths


@contextmanager
def view(paths: SitePaths, name: str, images: Sequence[Image]) -> Iterator[Path]:
    """The root that these layers are together, topmost first, for the time of the block; ``name`` is the view's own.

    Needs root. Raises CapsulekitError when a layer can't be mounted.
    """
    views = paths.state / "views"
    views.mkdir(mode=0o700, exist_ok=True)
    sweep(views)
    with merged(images, views / name) as root:
        yield root
