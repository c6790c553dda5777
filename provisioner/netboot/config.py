"""dnsmasq's two main files as texts: made of the site's settings and its networks, of nothing a node said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capsulekit.files import sha256_bytes
from provisioner.netboot.networks import Network
from provisioner.netboot.templates import render
from provisioner.siteconf import SiteConfig

MOST_LEASES = 100_000  # dnsmasq's own limit is 1000
# How lines begin that are about addresses and boot files (dnsmasq(8)), and nothing to the process for names.
NOT_NAMES = ("dhcp-", "pxe-", "tftp-", "bootp-", "ra-", "enable-tftp", "enable-ra", "log-dhcp", "no-ping", "bridge-")


def config_text(config: SiteConfig, networks: Sequence[Network], folder: Path, more: Path) -> str:
    """The text of dnsmasq.conf, for addresses and boot files, whose other files lie in ``folder`` (state/netboot).

    ``more`` is the site's own folder of additions (config/dnsmasq.d/NAME.conf), which need not be there.
    Raises CapsulekitError when a value could start a line of its own.
    """
    # A proxy's answer names no server unless the boot file does.
    server = f",,{config.ip}" if config.dhcp == "proxy" else ""
    room = sum(net.network.num_addresses for net in networks)
    return render(
        "dnsmasq.conf.j2",
        interfaces=[net.interface for net in networks if net.interface],
        domain=config.domain,
        dhcp=config.dhcp,
        networks=networks,
        six=int(config.six),
        ip=config.ip,
        host=config.host,
        server=server,
        most=min(room, MOST_LEASES),
        folder=str(folder),
        more=str(more) if more.is_dir() else "",
        digest=_digest(more),
        base=config.plain_url,
    )


def names_text(config: SiteConfig, networks: Sequence[Network], folder: Path, more: Path) -> str:
    """The text of dns.conf, for names; the arguments and what it raises are those of config_text."""
    files = [path for path in sorted(more.glob("*.conf")) if path.is_file()]
    lines = [line.strip() for path in files for line in path.read_text("utf-8", "replace").splitlines()]
    return render(
        "dns.conf.j2",
        interfaces=[net.interface for net in networks if net.interface],
        local=int(config.local_resolver),
        domain=config.domain,
        folder=str(folder),
        more=[line for line in lines if line and not line.startswith(("#", *NOT_NAMES))],
    )


def _digest(more: Path) -> str:
    """What the additions are now: with it in the main file, a changed addition is a changed main file."""
    texts = [path.name.encode() + b"\0" + path.read_bytes() for path in sorted(more.glob("*.conf")) if path.is_file()]
    return sha256_bytes(b"\0".join(texts))
