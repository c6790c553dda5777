"""/etc/hosts of the nodes: the admin's lines, the master's own, and the nodes with fixed addresses."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner.catalog.model import Given
from provisioner.catalog.providers import Asked
from provisioner.catalog.providers.hosts import fixed_addresses, host_lines

FIRST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def files_for(asked: Asked) -> Iterator[Given]:
    """One file; ``@master`` and ``@nodes`` in the admin's lines stand for those."""
    node = asked.node
    own = " ".join(dict.fromkeys((node.name, node.hostname)))
    lines = [FIRST.encode(), f"127.0.1.1\t{own}\n".encode()]
    for line in asked.text.splitlines():
        if line.strip() == b"@master":
            lines += [_line(*one) for one in host_lines(asked.root / "etc/hosts")]
        elif line.strip() == b"@nodes":
            lines += [_line(*one) for one in fixed_addresses(asked.nodes(), asked.config.domain)]
        else:
            lines.append(line + b"\n")
    yield Given("hosts", b"".join(dict.fromkeys(lines)), "/etc/hosts")


def _line(address: str, names: tuple[str, ...]) -> bytes:
    return f"{address}\t{' '.join(names)}\n".encode()
