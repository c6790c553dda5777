"""The site's settings: config/site.toml, written by ``init``, edited by the admin."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.flattoml import read_flat

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

BUILT_IN_STATES = ("init", "ready")


class NotInitialised(CapsulekitError):
    """The site has no settings or no registry yet."""

    def __init__(self, paths: SitePaths) -> None:
        super().__init__(f"this site was never initialised ({paths.config})", hint="run: capsulekit init")


@dataclass(frozen=True)
class SiteConfig:
    """One site. Addresses are text: ``address`` is an interface's like ``10.0.0.1/16`` or ``fd00:1::1/64``."""

    name: str = "cluster"
    policy: str = "auto"  # what an unknown MAC gets: auto (added), accept (added, waits)
    console: str = "locked"  # open: debug level 3 may give a shell on the node's console
    interface: str = ""
    address: str = ""
    range_start: str = ""
    range_end: str = ""
    domain: str = "cluster.internal"
    http_port: int = 8009
    tls_port: int = 8010
    stage1_kargs: str = "console=tty0"
    kargs: str = ""
    states: str = ""  # the site's own provisionary states, separated by spaces
    nfs: str = "ganesha"  # who exports to nodes by NFS: ganesha (supervised here), kernel (this machine's), off
    transfer: str = "http"  # how nodes fetch public files: http, or nfs (and http where that fails)
    transfer_master: str = ""  # address of another server of those files; "" is this master
    transfer_prefix: str = ""  # path of the state folder there; "" is as here
    mirrors: str = ""  # base URLs of servers that hold copies of public blobs, separated by spaces
    order: str = "shuffled"  # how nodes try several servers: shuffled (each node its own way) or listed
    check_mac: bool = True  # whether who asks to boot under a MAC must have it, as far as can be seen
    dhcp: str = "own"  # own, proxy (another server gives the addresses), off
    hosts_file: str = "/etc/hosts"  # more names, and fixed addresses of nodes; "" is none
    dns_upstream: str = "/etc/resolv.conf"  # who knows other names: a resolv.conf, addresses, or "" for nobody
    local_resolver: bool = False  # whether the master asks its own name server too, on 127.0.0.1
    attributes: str = ""  # names of the site's own node attributes, separated by spaces
    history_days: int = 365  # how long events and changes are kept
    support_mail: str = ""  # where `contact support --mail` goes
    mail_server: str = "localhost:25"  # HOST[:PORT] that takes that mail
    register_file: str = ""  # what `contact register` writes
    registry: str = ""  # path or postgresql:// address of the registry; "" is registry.db in the state folder

    @property
    def ip(self) -> str:
        """The master's address without its prefix length."""
        return self.address.partition("/")[0]

    @property
    def six(self) -> bool:
        """Whether this is a site of IPv6 and nothing else."""
        return ":" in self.address

    @property
    def host(self) -> str:
        """The master's address as URLs spell it (RFC 3986, 3.2.2)."""
        return f"[{self.ip}]" if self.six else self.ip

    @property
    def plain_url(self) -> str:
        """http://ADDRESS:PORT of the half that serves what anybody may have."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def tls_url(self) -> str:
        """https://ADDRESS:PORT of the half that serves everything about one node."""
        return f"https://{self.host}:{self.tls_port}"

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """The network the master serves."""
        from ipaddress import ip_interface

        return ip_interface(self.address).network

    @property
    def mirror_urls(self) -> tuple[str, ...]:
        """The mirrors' base URLs."""
        return tuple(self.mirrors.split())

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The site's own node attributes."""
        return tuple(dict.fromkeys(self.attributes.split()))

    @property
    def all_states(self) -> tuple[str, ...]:
        """The built-in provisionary states and the site's own."""
        return (*BUILT_IN_STATES, *(s for s in self.states.split() if s not in BUILT_IN_STATES))


COMMENTS = {
    "name": "Name of this site; it appears in the site's certificate.",
    "policy": "What a machine with an unknown MAC gets: auto (added with the defaults and booted)\n"
    '# or accept (added, and waits for "capsulekit node accept").',
    "console": "locked, or open: a node with debug level 3 gives a root shell on its console.",
    "interface": "Network interface the nodes are on. DHCP is answered there and nowhere else.",
    "address": "This master's address on that interface, with the prefix length.",
    "range_start": "First address given to nodes.",
    "range_end": "Last address given to nodes.",
    "domain": "Domain of the nodes' names.",
    "http_port": "Port for plain HTTP: boot files and public layers.",
    "tls_port": "Port for TLS: plans, private layers, everything about one node.",
    "stage1_kargs": "Kernel arguments while a node fetches its capsule.",
    "kargs": "Kernel arguments of the booted capsule, for every node.",
    "states": 'Provisionary states of this site\'s own beside init and ready, e.g. "boot".',
    "nfs": "Who gives nodes files by NFS (the network part of hybrid capsules, and see transfer):\n"
    "# ganesha: nfs-ganesha, started and kept running by serve. kernel: this machine's own NFS server.\n"
    "# off: nobody, or a server of yours that ck.hybrid in kargs names.",
    "transfer": "How nodes fetch the public files of capsules: http or nfs. What NFS lacks comes by http all the same.",
    "transfer_master": "Address of another server of those files by NFS; empty: this master.",
    "transfer_prefix": "Path of the state folder on that server; empty: the same as here.",
    "mirrors": "Servers with copies of the public blobs: base URLs separated by spaces, with blobs/SHA256 below.\n"
    "# Nodes ask them before this master and believe none of them: every byte is checked.",
    "order": "How nodes try mirrors and masters: shuffled (each node its own way) or listed.",
    "attributes": 'Node attributes of this site\'s own, for "node set", e.g. "rack bmc".',
    "history_days": "How many days what nodes reported and who changed what is kept.",
    "support_mail": 'Mail address for "capsulekit contact support --mail"; empty: there is none.',
    "mail_server": "HOST[:PORT] of the mail server that takes it.",
    "register_file": 'Path of the file that "capsulekit contact register" writes this site\'s identity to.',
    "dhcp": "own: addresses are given here. proxy: another DHCP server gives them, boot files come from here.\n"
    "# off: no DHCP from here at all, only names and boot files.",
    "check_mac": "Whether a machine that asks to boot under a MAC must have it, by the neighbour table and the leases.",
    "hosts_file": "Names for the nodes to resolve; a node's own name there fixes its address. Empty: none.",
    "dns_upstream": "Who is asked for all other names: a resolv.conf, whose non-loopback servers are taken, or\n"
    "# addresses separated by spaces. Empty: nobody.",
    "local_resolver": "Whether names are also answered on 127.0.0.1, for this master itself.",
    "registry": "The node registry: a path on a local disk (empty: registry.db in the state folder), or\n"
    "# postgresql://USER@HOST/DATABASE?passfile=FILE when several masters share it.",
}


def site_file(paths: SitePaths) -> Path:
    """Where the settings are."""
    return paths.config / "site.toml"


def load_site(paths: SitePaths) -> SiteConfig:
    """Read and check site.toml. Raises NotInitialised, or CapsulekitError naming the wrong key."""
    config = read_site(paths)
    check_site(config, str(site_file(paths)))
    return config


def read_site(paths: SitePaths) -> SiteConfig:
    """Read site.toml with its types checked only: enough, and quick, for finding the registry."""
    try:
        return SiteConfig(**read_flat(site_file(paths), SiteConfig()))
    except FileNotFoundError:
        raise NotInitialised(paths) from None


def registry_place(paths: SitePaths, config: SiteConfig) -> Path | str:
    """Where the registry is: the path of its file, or the address of a PostgreSQL database."""
    if "://" in config.registry:
        return config.registry
    return Path(config.registry) if config.registry else paths.state / "registry.db"


def check_site(config: SiteConfig, where: str) -> None:
    """Refuse values that cannot work; raises CapsulekitError "WHERE: KEY …"."""

    def refuse(key: str, why: str) -> CapsulekitError:
        return CapsulekitError(f"{where}: {key} {getattr(config, key)!r} {why}")

    if config.policy not in ("auto", "accept"):
        raise refuse("policy", "is neither auto nor accept")
    if config.console not in ("locked", "open"):
        raise refuse("console", "is neither locked nor open")
    if config.order not in ("shuffled", "listed"):
        raise refuse("order", "is neither shuffled nor listed")
    if config.dhcp not in ("own", "proxy", "off"):
        raise refuse("dhcp", "is none of own, proxy and off")
    if config.dhcp == "proxy" and config.six:
        raise refuse("dhcp", "needs IPv4: DHCPv6 has no proxies")
    _check_nfs(config, where)
    for url in config.mirror_urls:
        if not is_mirror(url):
            raise refuse("mirrors", f"names {url!r}: not http(s)://HOST[:PORT][/PATH] in plain letters, no slash last")
    # IFNAMSIZ of <linux/if.h>: 16 with the closing zero.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,14}", config.interface):
        raise refuse("interface", "is not the name of a network interface")
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    if len(config.domain) > 190 or not re.fullmatch(rf"{label}(\.{label})*", config.domain):
        raise refuse("domain", "is not a domain name")
    for key in ("http_port", "tls_port"):
        if not 0 < getattr(config, key) < 65536:
            raise refuse(key, "is not a port number")
    if config.http_port == config.tls_port:
        raise refuse("tls_port", "is http_port too; they must differ")
    for key in ("name", "stage1_kargs", "kargs", "registry", "hosts_file", "dns_upstream"):
        if not getattr(config, key).isprintable():
            raise refuse(key, "holds control characters")
    if not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", state) for state in config.states.split()):
        raise refuse("states", "are not names separated by spaces")
    if "://" in config.registry:
        from provisioner.registry.address import check_address

        check_address(config.registry)
    if config.support_mail and not re.fullmatch(r"[^@\s<>,;]+@[^@\s<>,;]+", config.support_mail):
        raise refuse("support_mail", "is not a mail address")
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?", config.mail_server):
        raise refuse("mail_server", "is not HOST or HOST:PORT")
    if config.register_file and not (config.register_file.startswith("/") and config.register_file.isprintable()):
        raise refuse("register_file", "is not an absolute path")
    if config.history_days < 1:
        raise refuse("history_days", "is not a number of days")
    check_attributes(config, where)
    _check_range(config, where)


def _check_nfs(config: SiteConfig, where: str) -> None:
    """Refuse what nodes could not mount. The prefix ends up in an export's name and in exports(5)."""
    from ipaddress import ip_address

    if config.nfs not in ("ganesha", "kernel", "off"):
        raise CapsulekitError(f"{where}: nfs {config.nfs!r} is none of ganesha, kernel and off")
    if config.transfer not in ("http", "nfs"):
        raise CapsulekitError(f"{where}: transfer {config.transfer!r} is neither http nor nfs")
    master, prefix = config.transfer_master, config.transfer_prefix
    try:
        if master and ("%" in master or str(ip_address(master)) != master.lower()):
            raise ValueError("with an interface, or not in its usual form")
    except ValueError as error:
        raise CapsulekitError(
            f"{where}: transfer_master {master!r} is not an address", hint="nodes look up no names while they boot"
        ) from error
    if config.transfer == "nfs" and config.nfs == "off" and master in ("", config.ip):
        raise CapsulekitError(
            f'{where}: transfer "nfs" needs a server: nfs is "off", and transfer_master names no other one'
        )
    if prefix and not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9._+@-]+)+", prefix):
        raise CapsulekitError(
            f"{where}: transfer_prefix {prefix!r} is not an absolute path of plain letters", hint="like /vol/capsulekit"
        )


def check_attributes(config: SiteConfig, where: str) -> None:
    """Refuse names that no attribute of the site's own can have; raises CapsulekitError."""
    if not config.attributes:
        return
    from provisioner.registry.nodes import COLUMNS
    from provisioner.registry.settings import ALIASES

    for name in config.attribute_names:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name) or name in (*COLUMNS, *ALIASES, "name"):
            raise CapsulekitError(
                f"{where}: attributes {config.attributes!r} names {name!r}",
                hint="small letters, digits, _ and -, and no name of what every node has",
            )


def is_mirror(url: str) -> bool:
    """Whether stage 1 takes this base URL: what it checks itself (is_url in say.sh), and a host that can be one."""
    if len(url) > 200 or ".." in url:
        return False
    host = r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
    found = re.fullmatch(rf"https?://{host}(:(?P<port>[0-9]{{1,5}}))?(/[A-Za-z0-9._~@%+-]+)*", url)
    return found is not None and 0 < int(found["port"] or 80) < 65536


def _check_range(config: SiteConfig, where: str) -> None:
    from ipaddress import ip_interface

    try:
        if "/" not in config.address or "%" in config.address:
            raise ValueError("the prefix length is missing, or it names an interface")
        master = ip_interface(config.address)
    except ValueError as error:
        raise CapsulekitError(
            f"{where}: address {config.address!r} is not an address with a prefix length",
            hint="like 10.0.0.1/16, or fd00:1::1/64",
        ) from error
    network = master.network
    # A node makes its own address of the announced prefix, and that needs 64 bits (RFC 4862, 5.5.3).
    if config.six and network.prefixlen != 64:
        raise CapsulekitError(f"{where}: address {config.address}: the prefix length must be 64")
    if master.is_link_local:
        raise CapsulekitError(
            f"{where}: address {config.address} is a link-local one, which means nothing without an interface",
            hint="take a unique local one: fd00:1::1/64",
        )
    if network.num_addresses < 4:
        raise CapsulekitError(f"{where}: address {config.address} leaves no room for nodes")
    if master.ip in (network.network_address, network.broadcast_address):
        raise CapsulekitError(f"{where}: address {config.address} is not a host's address")
    if config.dhcp != "own" and not config.range_start and not config.range_end:
        return
    first, last = (_node_address(config, key, where) for key in ("range_start", "range_end"))
    if int(first) > int(last):
        raise CapsulekitError(f"{where}: the range {first}-{last} runs backwards")
    if int(first) <= int(master.ip) <= int(last):
        raise CapsulekitError(f"{where}: the range {first}-{last} holds the master's own address {master.ip}")


def _node_address(config: SiteConfig, key: str, where: str) -> IPv4Address | IPv6Address:
    from ipaddress import ip_address

    network = config.network
    try:
        address = ip_address(getattr(config, key))
        if address.version != network.version or "%" in str(address):
            raise ValueError("of the other family, or with an interface's name")
    except ValueError as error:
        raise CapsulekitError(
            f"{where}: {key} {getattr(config, key)!r} is not an IPv{network.version} address"
        ) from error
    if address not in network or address in (network.network_address, network.broadcast_address):
        raise CapsulekitError(f"{where}: {key} {address} is not a host's address in {network}")
    return address
