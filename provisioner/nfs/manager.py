"""The NFS manager: keeps what is exported in step with what nodes need, like the network manager its lists.

A server is started when there is something to export, and never stopped for a change: exports come and go one by one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.sitepaths import SitePaths
from provisioner.netboot.networks import load_networks
from provisioner.nfs import blobs, ganesha, places
from provisioner.nfs.ganesha import Export, Ganesha
from provisioner.nfs.mounts import LayerMounts, Mountable
from provisioner.nfs.needed import BLOBS_ID, Needed, export_ids
from provisioner.registry.registry import Registry
from provisioner.services import nfs as kernel
from provisioner.siteconf import SiteConfig
from provisioner.vnfs.store import VnfsStore

LOOK_SECONDS = 0.5
# What nodes were handed is asked for less often: a generation that one of them may need was current until then.
NEEDED_SECONDS = 20.0
AGAIN_SECONDS = 5.0  # after a failure
LET_GO_SECONDS = 10.0  # until a layer that is in use still is a problem


@dataclass
class NfsManager:
    """One master's exports. ``log`` is called with an event's name and its fields."""

    paths: SitePaths
    config: SiteConfig
    registry: Registry
    store: VnfsStore
    log: Callable[..., None]
    problems: tuple[str, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)  # hex sha256 of what is exported -> a capsule that has it
    offered: int = 0  # public files
    _seen: object = None
    _made: float = float("-inf")  # when what is needed was last worked out, monotonic
    _retry: float = float("-inf")  # not before, monotonic
    _numbers: Mapping[str, int] = field(default_factory=dict)  # of each layer's export
    _lock: threading.Lock = field(default_factory=threading.Lock)  # held while mounts change
    _stopped: bool = False
    _written: object = None  # what the server was last told

    def __post_init__(self) -> None:
        self.folder = places.server_folder(self.paths, self.config)
        self.ganesha = Ganesha(self.folder, self.config.ip, self.log)
        self._mounts = LayerMounts(places.layers_folder(self.paths, self.config), self.folder / "mounted.json")
        self._needed = Needed(self.store, self.registry)

    async def run(self) -> None:
        """Follow what changes until cancelled; what goes wrong is logged, kept in ``problems``, and tried again."""
        while True:
            try:
                await self.look()
            except (CapsulekitError, OSError) as error:
                self._fail(str(error), getattr(error, "hint", None))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Bring everything in step once. Raises CapsulekitError or OSError when something of it can't be."""
        now = time.monotonic()
        if now < self._retry:
            return
        state = await asyncio.to_thread(self._state)
        if state == self._seen and now - self._made < NEEDED_SECONDS and not self._died():
            return
        wanted = await asyncio.to_thread(self._work_out)
        problems = await asyncio.to_thread(self._hold, wanted, self.layers)
        await self._serve(wanted)
        # Only now: nothing that is still exported can be unmounted.
        problems += await self._let_go(wanted)
        self.layers, self._seen, self._made = wanted, state, now
        self._retry = now + AGAIN_SECONDS if problems else now
        self._name(tuple(dict.fromkeys(problems)))

    async def _let_go(self, wanted: Mapping[str, str]) -> list[str]:
        """Unmount what is exported no longer: the server takes a moment to close what it has open there."""
        end = time.monotonic() + LET_GO_SECONDS
        while problems := await asyncio.to_thread(self._hold, wanted, {}):
            if time.monotonic() > end:
                break
            await asyncio.sleep(LOOK_SECONDS)
        return problems

    async def stop(self) -> None:
        """End the server, and take away what was mounted for it."""
        await self.ganesha.stop()
        if self.config.nfs == "kernel":
            with suppress(CapsulekitError, OSError):
                await asyncio.to_thread(kernel.export_layers, self.config.ip, [])
        for problem in await asyncio.to_thread(self._clear):
            self.log("warning", message=problem)

    def _clear(self) -> list[str]:
        # A look that was cancelled goes on in its thread, and must mount nothing any more.
        with self._lock:
            self._stopped = True
            return self._mounts.clear()

    def settle(self, config: SiteConfig) -> None:
        """Go on with these settings; what follows from them is done at the next look."""
        self.config = config
        self._seen, self._retry = None, float("-inf")

    def status(self) -> dict[str, Any]:
        """What ``serve status`` prints of it."""
        return {
            "server": self.config.nfs,
            "exports": {sha256[: places.DIGITS]: name for sha256, name in self.layers.items()},
            "offered": self.offered,
            "transfer": places.blobs_export(self.paths, self.config),
            "problems": list(self.problems),
            "ganesha": self.ganesha.status() if self.ganesha.started else None,
        }

    # --- what there is to do

    def _state(self) -> object:
        """Another value as soon as a capsule's generation or a setting was changed."""
        rows = tuple((one.name, one.identity) for one in self.registry.capsules())
        return rows, self.config.nfs, self.config.transfer, self.config.transfer_master

    def _died(self) -> bool:
        return self.config.nfs == "ganesha" and self.ganesha.started and self.ganesha.pid is None

    def _work_out(self) -> dict[str, str]:
        """The layers to export now; the public files are offered on the way."""
        folder = places.blobs_folder(self.paths)
        if self.config.transfer == "nfs":
            self.offered = blobs.offer(self.paths.state / "blobs", folder)
        else:
            blobs.withdraw(folder)
            self.offered = 0
        if self.config.nfs == "off":
            return {}
        return self._needed.layers(self._needed.generations())

    def _hold(self, wanted: Mapping[str, str], exported: Mapping[str, str]) -> list[str]:
        """Mount what is wanted, and leave what is exported still; everything else is unmounted."""
        with self._lock:
            return [] if self._stopped else self._held(wanted, exported)

    def _held(self, wanted: Mapping[str, str], exported: Mapping[str, str]) -> list[str]:
        if not (wanted or exported):
            return self._mounts.clear()
        self._numbers = export_ids(self.folder / "ids.json", {*wanted, *exported})
        return self._mounts.hold(
            {
                sha256[: places.DIGITS]: Mountable(self.store.blob(sha256), self._numbers[sha256])
                for sha256 in {**exported, **wanted}
            }
        )

    async def _serve(self, wanted: Mapping[str, str]) -> None:
        exports = self._exports(wanted)
        if self.config.nfs != "ganesha" and self.ganesha.started:
            await self.ganesha.stop()
            self._written = None
        if self.config.nfs == "kernel":
            await asyncio.to_thread(self._tell_kernel, exports)
        elif self.config.nfs == "ganesha" and (exports or self.ganesha.started):
            await self._tell_ganesha(exports)

    def _exports(self, wanted: Mapping[str, str]) -> list[Export]:
        if self.config.nfs == "off":
            return []
        found = [
            Export(self._numbers[sha256], places.layer_folder(self.paths, self.config, sha256), f"/layers/{name}")
            for sha256, name in ((sha256, sha256[: places.DIGITS]) for sha256 in wanted)
        ]
        if self.config.transfer == "nfs" and self.config.transfer_master in ("", self.config.ip):
            found.append(Export(BLOBS_ID, places.blobs_folder(self.paths), "/blobs"))
        return found

    async def _tell_ganesha(self, exports: Sequence[Export]) -> None:
        """Its settings as they should be; started where it does not run, else told by a HUP."""
        text = ganesha.config_text(self.folder, self.config.ip, self._clients(), exports)
        if text != self._written:
            await asyncio.to_thread(self._write, text)
        if not self.ganesha.started:
            await self.ganesha.start()
            self.log("nfs-started", pid=self.ganesha.pid, exports=len(exports))
        elif text != self._written:
            self.ganesha.reload()
            self.log("nfs-exports", exports=len(exports))
        self._written = text

    def _write(self, text: str) -> None:
        (self.folder / "recovery").mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(self.ganesha.conf, text.encode(), 0o600)

    def _tell_kernel(self, exports: Sequence[Export]) -> None:
        names = {BLOBS_ID: "blobs"}
        lines = [
            kernel.layer_line(one.folder, self._clients(), names.get(one.number) or one.folder.name) for one in exports
        ]
        if lines != self._written:
            kernel.export_layers(self.config.ip, lines)
            self._written = lines
            self.log("nfs-exports", exports=len(lines), server="kernel")

    def _clients(self) -> list[str]:
        """The networks that nodes are in."""
        return [str(net.network) for net in load_networks(self.paths, self.config)]

    def _fail(self, message: str, hint: str | None) -> None:
        self._seen, self._retry = None, time.monotonic() + AGAIN_SECONDS
        self._name((f"nodes get no files by NFS: {message}" + (f" ({hint})" if hint else ""),))

    def _name(self, problems: tuple[str, ...]) -> None:
        """Keep what is wrong, and log what was not wrong before."""
        for problem in problems:
            if problem not in self.problems:
                self.log("warning", message=problem)
        self.problems = problems
