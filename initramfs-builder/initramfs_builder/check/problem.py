"""One thing that is missing, and the chain of those who want it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from initramfs_builder.errors import printable


@dataclass(frozen=True, order=True)
class Problem:
    """``chain`` starts with whoever is there and ends with what is not as it must be; ``what`` says what is wrong.

    ``kind``: library, interpreter, command, script, module, firmware, config, folder, device, link, entry or record.
    """

    kind: str
    chain: tuple[str, ...]
    what: str = "not in the image"

    @property
    def text(self) -> str:
        """One line: "usr/bin/curl needs libcurl.so.4, which needs libnghttp2.so.14: not in the image"."""
        first, *rest = self.chain
        return printable(first + ", which".join(f" needs {one}" for one in rest) + f": {self.what}")

    @property
    def record(self) -> dict[str, Any]:
        """The same for programs."""
        chain = [printable(one) for one in self.chain]
        return {"kind": self.kind, "chain": chain, "what": printable(self.what), "text": self.text}
