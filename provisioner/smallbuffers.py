"""How much asyncio reads at once from a TLS connection."""

from __future__ import annotations

from asyncio import sslproto

READ_BYTES = 16 * 1024  # one TLS record


def small_tls_buffers() -> None:
    """Give each TLS connection of this process a small buffer: asyncio's 256 KiB are 2.5 GB for 10 000 nodes that wait.

    asyncio has no setting for it; a class attribute is what there is.
    """
    sslproto.SSLProtocol.max_size = READ_BYTES
