"""The exception tree, re-exported for the upper packages; documented in initramfs_builder.errors."""

from initramfs_builder.errors import CapsulekitError, PartialError, TrustError, UsageError, printable

__all__ = ["CapsulekitError", "PartialError", "TrustError", "UsageError", "printable"]
