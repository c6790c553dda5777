"""A node's interfaces as systemd-networkd, NetworkManager, ifupdown and netplan want them.

Formats: systemd.network(5), nm-settings-keyfile(5), interfaces(5), netplan(5). No value needs quoting: the names,
addresses and options were read strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from provisioner.catalog.providers.ipaddr import Device

HEAD = "# Written by capsulekit's module ipaddr.\n"
BOOT_NAME = "boot0"  # what ifupdown, which knows no MAC, finds the boot interface by


def networkd(device: Device) -> bytes:
    """One .network file."""
    lines = ["[Match]", f"MACAddress={device.mac}" if device.mac else f"Name={device.name}", "", "[Network]"]
    lines += ["DHCP=yes"] if device.dhcp else []
    lines += [f"Address={address}" for address in device.addresses]
    metric = device.options.get("METRIC", "")
    lines += [] if metric else [f"Gateway={gateway}" for gateway in device.gateways]
    lines += [f"DNS={server}" for server in _list(device, "DNS")]
    lines += [f"Domains={' '.join(_list(device, 'DOMAIN'))}"] if "DOMAIN" in device.options else []
    # What stage 2 set up for a root over the network must outlive networkd's start.
    lines += ["KeepConfiguration=yes"] if device.mac else []
    lines += ["", "[Link]", f"MTUBytes={device.options['MTU']}"] if "MTU" in device.options else []
    for gateway in device.gateways if metric else ():
        lines += ["", "[Route]", f"Gateway={gateway}", f"Metric={metric}"]
    if metric and device.dhcp:
        lines += ["", "[DHCPv4]", f"RouteMetric={metric}"]
    return (HEAD + "\n".join(lines) + "\n").encode()


def networkmanager(device: Device) -> bytes:
    """One keyfile; NetworkManager reads it only when nobody but root can."""
    kind = "infiniband" if device.name.startswith("ib") else "ethernet"
    lines = ["[connection]", f"id=capsulekit-{device.name}", f"type={kind}", "autoconnect=true"]
    lines += [] if device.mac else [f"interface-name={device.name}"]
    # nm-settings(5) knows no default of the transport mode.
    hardware = ["transport-mode=datagram"] if kind == "infiniband" else []
    hardware += [f"mac-address={device.mac}"] if device.mac else []
    hardware += [f"mtu={device.options['MTU']}"] if "MTU" in device.options else []
    lines += ["", f"[{kind}]", *hardware] if hardware else []
    for version in (4, 6):
        lines += ["", f"[ipv{version}]", *_nm_family(device, version)]
    return (HEAD + "\n".join(lines) + "\n").encode()


def _nm_family(device: Device, version: int) -> list[str]:
    own = [address for address in device.addresses if address.version == version]
    if not own:
        usual = ("auto" if device.dhcp else "disabled") if version == 4 else ("auto" if device.dhcp else "link-local")
        return [f"method={usual}", *_nm_names(device, version)]
    gateway = _gateway(device, version)
    # "auto" takes the addresses that are written here besides those that DHCP gives.
    lines = ["method=auto" if device.dhcp else "method=manual"]
    for number, address in enumerate(own, 1):
        lines.append(f"address{number}={address}" + (f",{gateway}" if gateway and number == 1 else ""))
    return lines + _nm_names(device, version)


def _nm_names(device: Device, version: int) -> list[str]:
    servers = [server for server in _list(device, "DNS") if (":" in server) == (version == 6)]
    lines = [f"dns={';'.join(servers)};"] if servers else []
    lines += [f"dns-search={';'.join(_list(device, 'DOMAIN'))};"] if version == 4 and "DOMAIN" in device.options else []
    return lines + ([f"route-metric={device.options['METRIC']}"] if "METRIC" in device.options else [])


def ifupdown(devices: Sequence[Device]) -> bytes:
    """One file of stanzas."""
    blocks = []
    for device in devices:
        name = BOOT_NAME if device.mac else device.name
        lines = [f"auto {name}"]
        if device.dhcp:
            lines += [f"iface {name} inet dhcp", *_if_options(device)]
        routed = set[int]()
        for number, address in enumerate(device.addresses):
            # busybox wants the netmask by itself, and IPv4's in full.
            mask, family = (address.netmask, "") if address.version == 4 else (address.network.prefixlen, "6")
            lines += [f"iface {name} inet{family} static", f"    address {address.ip}", f"    netmask {mask}"]
            gateway = _gateway(device, address.version)
            if gateway and address.version not in routed:
                lines.append(f"    gateway {gateway}")
                routed.add(address.version)
            lines += _if_options(device) if number == 0 and not device.dhcp else []
        if not device.dhcp and not device.addresses:
            lines += [f"iface {name} inet manual", *_if_options(device)]
        blocks.append("\n".join(lines) + "\n")
    return (HEAD + "\n".join(blocks)).encode()


def _gateway(device: Device, version: int) -> str:
    """The gateway of IPv4 or IPv6, or ""."""
    return next((gateway for gateway in device.gateways if (":" in gateway) == (version == 6)), "")


def _if_options(device: Device) -> list[str]:
    names = {"MTU": "mtu", "METRIC": "metric", "DNS": "dns-nameservers", "DOMAIN": "dns-search"}
    return [f"    {names[key]} {value.replace(',', ' ')}" for key, value in device.options.items()]


def links(devices: Sequence[Device]) -> bytes:
    """A .link file (systemd.link(5), read by udev) that gives the boot interface a name; empty without one."""
    for device in devices:
        if device.mac:
            return f"{HEAD}[Match]\nMACAddress={device.mac}\n\n[Link]\nName={BOOT_NAME}\n".encode()
    return b""


def netplan(devices: Sequence[Device]) -> bytes:
    """One YAML file."""
    lines = ["network:", "  version: 2", "  ethernets:"]
    for device in devices:
        lines.append(f"    {device.name}:")
        if device.mac:
            lines += ["      match:", f'        macaddress: "{device.mac.lower()}"']
        lines.append(f"      dhcp4: {'true' if device.dhcp else 'false'}")
        if device.addresses:
            lines += ["      addresses:", *(f'        - "{address}"' for address in device.addresses)]
        metric = device.options.get("METRIC", "")
        if metric and device.dhcp:
            lines += ["      dhcp4-overrides:", f"        route-metric: {metric}"]
        lines += ["      routes:"] if device.gateways else []
        for gateway in device.gateways:
            lines += ["        - to: default", f'          via: "{gateway}"']
            lines += [f"          metric: {metric}"] if metric else []
        if "MTU" in device.options:
            lines.append(f"      mtu: {device.options['MTU']}")
        if "DNS" in device.options or "DOMAIN" in device.options:
            lines.append("      nameservers:")
            for key, option in (("addresses", "DNS"), ("search", "DOMAIN")):
                if option in device.options:
                    lines.append(f"        {key}: [{', '.join(_quoted(device, option))}]")
    return (HEAD + "\n".join(lines) + "\n").encode()


def _quoted(device: Device, option: str) -> list[str]:
    return [f'"{value}"' for value in _list(device, option)]


def _list(device: Device, option: str) -> list[str]:
    return list(filter(None, device.options.get(option, "").split(",")))
