"""Where the shell that runs on nodes lies: beside this package in the source tree, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from initramfs_builder.errors import CapsulekitError


def shell_dir(stage: str) -> Path:
    """The folder of a stage's shell files ("stage1", "stage2", "stage2-hybrid").

    Raises CapsulekitError when it was not installed.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / stage, package.parent / stage):
        if folder.is_dir():
            return folder
    raise CapsulekitError(f"the shell files of {stage} are missing beside {package}", hint="install capsulekit again")
