"""Where things are that nodes get by NFS, on this master's disk and as nodes name them.

    nfs/layers/ADDRESS/DIGEST/   a hybrid layer, mounted read-only by the master that has this address
    nfs/blobs/SHA256             hard links of the public members of the installed capsules
    nfs-server/ADDRESS/          settings and recovery files of that master's server; nobody is ever given them

DIGEST is the beginning of the layer's sha256: mount options and the kernel's command line are short.
"""

from __future__ import annotations

from pathlib import Path

from capsulekit.sitepaths import SitePaths
from provisioner.siteconf import SiteConfig, read_site

DIGITS = 32


def public_folder(paths: SitePaths) -> Path:
    """All that can be exported lies below it, and nothing else does."""
    return paths.state / "nfs"


def layers_folder(paths: SitePaths, config: SiteConfig) -> Path:
    """Where this master mounts hybrid layers. A master of its own each: one must not take away what another needs."""
    return public_folder(paths) / "layers" / config.ip


def layer_folder(paths: SitePaths, config: SiteConfig, sha256: str) -> Path:
    """Where one hybrid layer is mounted."""
    return layers_folder(paths, config) / sha256[:DIGITS]


def blobs_folder(paths: SitePaths) -> Path:
    """The links to public members."""
    return public_folder(paths) / "blobs"


def server_folder(paths: SitePaths, config: SiteConfig) -> Path:
    """What belongs to the server itself: its settings, its clients' names, the record of what is mounted."""
    return paths.state / "nfs-server" / config.ip


def layer_export(paths: SitePaths, config: SiteConfig, sha256: str) -> str:
    """HOST:/PATH under which nodes mount a hybrid layer, or "" where this site exports none."""
    if config.nfs == "off":
        return ""
    kernel = config.nfs == "kernel"
    path = str(layer_folder(paths, config, sha256)) if kernel else f"/layers/{sha256[:DIGITS]}"
    return f"{config.host}:{path}"


def blobs_export(paths: SitePaths, config: SiteConfig) -> str:
    """HOST:/PATH under which nodes find public members by NFS, or "" where they are to fetch all by HTTP.

    Another server than this master gives them below ``transfer_prefix``, which is the state folder there.
    """
    if config.transfer != "nfs":
        return ""
    other = bool(config.transfer_master) and config.transfer_master != config.ip
    if not other and config.nfs == "off":
        return ""
    if not other and config.nfs == "ganesha":
        return f"{config.host}:/blobs"
    master = config.transfer_master or config.ip
    host = f"[{master}]" if ":" in master else master
    return f"{host}:{config.transfer_prefix or paths.state}/nfs/blobs"


def lacking(paths: SitePaths) -> str:
    """What has to be done before hybrid layers can be exported here, "" when nothing. Raises NotInitialised."""
    from provisioner.nfs.ganesha import missing
    from provisioner.services.nfs import kernel_missing

    config = read_site(paths)
    if config.nfs == "off":
        return 'nfs is "off" in site.toml; name your own server with ck.hybrid in kargs'
    return missing() if config.nfs == "ganesha" else kernel_missing()
