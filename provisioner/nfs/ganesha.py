"""nfs-ganesha, an NFS server that is an ordinary process: its settings, and a process of it. NFS 4 and nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.run import tied, tool
from provisioner.netboot.supervised import Supervised

PURPOSE = "give nodes the network part of hybrid capsules"
PROGRAM = "ganesha.nfsd"
PACKAGES = "nfs-ganesha nfs-ganesha-vfs"
PORT = 2049
# How long (seconds) a node's word holds, and how long a server that was started anew lets nobody new in: the layers are
# read-only, so there is little to protect, and what reads waits for as long.
LEASE, GRACE = 20, 25
# Levels of its log that are worth a line of ours, and what it complains about although all is well: it runs without
# D-Bus, without rpcbind (NFS 4 needs none) and without Kerberos.
TELLING = (":WARN :", ":MAJ :", ":CRIT :", ":FATAL :")
USUAL = (":DBUS :", ":NFS CB :", "Cannot register NFS V4 on", "Missing RADOS URLs", "gssd_refresh_krb5")


@dataclass(frozen=True)
class Export:
    """A folder that nodes may read: its id (1 to 65535), its path here, and the one that nodes name."""

    number: int
    folder: Path
    pseudo: str


def missing() -> str:
    """What to install for it, or "" when it is there."""
    search = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return "" if shutil.which(PROGRAM, path=search) else f"apt-get install {PACKAGES}"


def config_text(folder: Path, address: str, clients: Sequence[str], exports: Sequence[Export]) -> str:
    """Its settings. ``clients`` are networks like 10.0.0.0/16; ``folder`` takes its recovery files.

    Raises CapsulekitError for a path that its syntax can't hold.
    """
    blocks = [
        # NLM, rquota and UDP belong to NFS 2 and 3. Nothing is registered with rpcbind for NFS 4.
        f"NFS_CORE_PARAM {{\n  Protocols = 4;\n  Bind_addr = {address};\n  NFS_Port = {PORT};\n"
        "  Enable_NLM = false;\n  Enable_RQUOTA = false;\n  Enable_UDP = false;\n}",
        # Owners as numbers: a node has no table of this master's names.
        f"NFSV4 {{\n  Lease_Lifetime = {LEASE};\n  Grace_Period = {GRACE};\n  Only_Numeric_Owners = true;\n"
        f"  Minor_Versions = 1, 2;\n  RecoveryBackend = fs;\n  RecoveryRoot = {_quoted(folder / 'recovery')};\n}}",
        "NFS_KRB5 {\n  Active_krb5 = false;\n}",
    ]
    who = f"  CLIENT {{ Protocols = 4; Clients = {', '.join(clients)}; Access_Type = RO; }}"
    for one in exports:
        blocks.append(
            f"EXPORT {{\n  Export_Id = {one.number};\n  Filesystem_Id = {one.number}.1;\n"
            f"  Path = {_quoted(one.folder)};\n  Pseudo = {_quoted(one.pseudo)};\n"
            "  Protocols = 4;\n  Transports = TCP;\n  SecType = sys;\n  Access_Type = None;\n"
            # Everybody is nobody: whatever handle is made up, only what everybody may read can be read.
            "  Squash = All_Squash;\n  Anonymous_Uid = 65534;\n  Anonymous_Gid = 65534;\n"
            f"{who}\n  FSAL {{ Name = VFS; }}\n}}"
        )
    return "# Made by capsulekit; changes are overwritten.\n" + "\n".join(blocks) + "\n"


def _quoted(value: Path | str) -> str:
    text = str(value)
    if not text.isprintable() or '"' in text or "\\" in text:
        raise CapsulekitError(f"nfs-ganesha can't be told the path {text!r}", hint="move the state folder elsewhere")
    return f'"{text}"'


class Ganesha(Supervised):
    """nfs-ganesha as a supervised process, with its settings in ``folder``/ganesha.conf."""

    def __init__(self, folder: Path, address: str, log: Callable[..., None]) -> None:
        super().__init__(log, "nfs-ganesha", "NFS", start_seconds=30.0)
        self.folder, self.address = folder, address

    @property
    def conf(self) -> Path:
        """Its settings, which it also reads at a HUP: exports come and go without the others noticing."""
        return self.folder / "ganesha.conf"

    def argv(self) -> Sequence[str | Path]:
        if package := missing():
            raise CapsulekitError(f"{PROGRAM} is not installed; it is needed to {PURPOSE}", hint=package)
        words: list[str | Path] = [*tied("TERM", PURPOSE), tool(PROGRAM, PURPOSE), "-F", "-f", self.conf]
        return [*words, "-L", "STDERR", "-N", "NIV_EVENT", "-p", self.folder / "pid"]

    async def serves(self) -> bool:
        return self.pid is not None and await asyncio.to_thread(answers, self.address)

    def hear(self, text: str) -> None:
        if any(level in text for level in TELLING) and not any(usual in text for usual in USUAL):
            super().hear(text)
            self.log("nfs-ganesha", says=text)

    def hint(self, why: str) -> str | None:  # noqa: ARG002
        return (
            f'does another NFS server use port {PORT}? Stop it, or export with it: nfs = "kernel" in site.toml; '
            f"or its part for local disks is missing: apt-get install {PACKAGES}"
        )


def answers(address: str, port: int = PORT, timeout: float = 1.0) -> bool:
    """Whether an NFS 4 server answers there, to a call of its NULL procedure (RFC 5531, 9; RFC 8881, 16.1)."""
    number = os.urandom(4)
    call = number + struct.pack(">IIIII", 0, 2, 100003, 4, 0) + bytes(16)
    try:
        with socket.create_connection((address, port), timeout) as s:
            s.settimeout(timeout)
            s.sendall(struct.pack(">I", 0x80000000 | len(call)) + call)
            reply = s.recv(64)
    except OSError:
        return False
    return reply[4:8] == number and reply[8:16] == struct.pack(">II", 1, 0)
