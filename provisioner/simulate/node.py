"""One pretend node: what firmware, stage 1 and the agent ask and say, in their order (docs/reference/stage1.md)."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from provisioner.simulate.tally import Tally
from provisioner.simulate.wire import Address, Answer, Failed, Wire
from provisioner.vnfs.edits import MOUNTED

# What a small virtual machine says of itself.
DEVICES = b"virtio:d00000001v00001AF4 virtio_net module=virtio_net boot\nvirtio:d00000002v00001AF4 virtio_blk\n"
MEMORY_KB = "412345"
# The steps of stage 1 that ask nothing of the master: it is told of them all the same.
QUIET_STEPS = ("memory", "disk", "layers", "mount", "provision", "nodelayer", "kexec")
HELD_SECONDS = 90.0  # a waiting node's request is kept by the master, as stage 1 allows
WAIT_SECONDS = 600.0  # for how long a mounted capsule is waited for
HURRY_SECONDS = 10.0  # who was told to wait sooner than this does not ask again at once
LIMIT_SECONDS = 5.0  # unless the master says otherwise


class Stopped(Exception):
    """The run was ended before this node was through."""


@dataclass(frozen=True)
class Master:
    """Where the two halves are, and what of them all pretend nodes do alike."""

    plain: Address
    tls: Address
    fetch: bool = False  # also the bytes: stage 1 and every member of the capsule
    keep: bool = False  # one connection for each half instead of one a request
    arch: str = "amd64"  # whose stage 1
    stopped: Callable[[], bool] = lambda: False


class PretendNode:
    """One machine with a MAC and, if ``source`` is given, an address of its own. Holds no more than its session."""

    def __init__(self, master: Master, mac: str, source: str, tally: Tally) -> None:
        self.master, self.mac, self.tally = master, mac, tally
        self.plain = Wire(master.plain, source, tally, master.keep)
        self.tls = Wire(master.tls, source, tally, master.keep)
        self._began = time.monotonic()

    async def boot(self) -> None:
        """From the boot script to ``ready``. Raises Failed, or Stopped."""
        self._began = time.monotonic()
        ticket = await self._ticket()
        if self.master.fetch:
            for name in (f"{self.master.arch}/vmlinuz", f"{self.master.arch}/stage1.img", "site.img"):
                good(await self.plain.get("stage 1", f"/boot/{name}", lambda _: None), "stage 1")
        answer = good(await self.tls.post("session", "/v1/session", {"ticket": ticket, "mac": self.mac}), "session")
        self.tls.key = _word(answer, "session", r"[0-9a-f]{64}")
        await self._step("session")
        good(await self.tls.post("devices", "/v1/devices", DEVICES), "devices")
        await self._step("devices")
        plan = await self._plan()
        await self._step("plan")
        await self._sums(plan)
        await self._step("sums")
        if self.master.fetch:
            await self._members(plan)
        await self._step("members")
        await self._scripts(plan)
        await self._step("scripts")
        for step in QUIET_STEPS:
            await self._step(step)
        await self._state("handoff", "handoff")
        await self._step("handoff")
        await self._ready()
        self.tally.ready += 1
        self.tally.to_ready.add(time.monotonic() - self._began)

    async def poll(self) -> None:
        """What the agent of a running node does again and again. Raises Failed, or Stopped."""
        await self._state("poll", "ready")

    def close(self) -> None:
        """Hang up."""
        self.plain.close()
        self.tls.close()

    async def _ticket(self) -> str:
        path = f"/v1/boot.ipxe?mac={self.mac}"
        script = await self._unlimited("boot script", lambda: self.plain.get("boot script", path))
        if found := re.search(rb" ck\.ticket=([0-9a-f]{32})( |$)", script.body, re.M):
            return found[1].decode()
        if b"\nboot\n" not in script.body:  # it says why in the line after "does not boot MAC from ADDRESS:"
            said = re.search(rb"^echo (.*)\.\necho Asking again", script.body, re.M)
            raise Failed(f"boot script: {said[1].decode('ascii', 'replace') if said else 'it does not boot'}")
        ask = {"mac": self.mac}  # a site of IPv6 gives tickets over TLS only
        answer = await self._unlimited("ticket", lambda: self.tls.post("ticket", "/v1/ticket", ask))
        return _word(answer, "ticket", r"[0-9a-f]{32}")

    async def _unlimited(self, kind: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer, asked for again as late as the limit for one address says."""
        while (answer := await ask()).status == 429:
            self.tally.limited += 1
            text = answer.headers.get("retry-after", "")
            seconds = min(float(text), 60.0) if text.isdigit() else LIMIT_SECONDS
            # Not all at once again.
            await asyncio.sleep(seconds * random.uniform(1.0, 1.5))  # noqa: S311 - no secret
            self._go_on()
        return good(answer, kind)

    async def _plan(self) -> list[list[str]]:
        answer = await self._waited()
        plan = [line.split() for line in answer.body.decode("ascii", "replace").splitlines()]
        if not plan or plan[0][:1] != ["plan"] or plan[-1] != ["end"]:
            raise Failed("plan: not a whole plan")
        return plan

    async def _waited(self) -> Answer:
        """The plan's answer. While its capsule is mounted for editing a node waits, and goes on by itself."""
        end = time.monotonic() + WAIT_SECONDS
        while True:
            asked = time.monotonic()
            answer = await self.tls.post("plan", "/v1/state/init", {"uptime": self._uptime()}, HELD_SECONDS)
            if answer.status != 202:
                return good(answer, "plan")
            reason = answer.line.removeprefix("wait ")
            if not reason.startswith(MOUNTED) or time.monotonic() > end:
                raise Failed(f"plan: told to wait: {reason}")
            self.tally.waited += 1
            if time.monotonic() - asked < HURRY_SECONDS:
                await asyncio.sleep(4 * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            self._go_on()

    async def _sums(self, plan: list[list[str]]) -> None:
        identity = next((line[1] for line in plan if line[0] == "identity" and len(line) == 2), "")
        sums = good(await self.plain.get("sums", f"/capsules/{identity}/SHA256SUMS"), "sums")
        if hashlib.sha256(sums.body).hexdigest() != identity:
            raise Failed("sums: another digest than the plan's")
        good(await self.plain.get("sums", f"/capsules/{identity}/SHA256SUMS.minisig"), "sums")

    async def _members(self, plan: list[list[str]]) -> None:
        for line in plan:
            if line[0] == "file":
                _, _, digest, size, privacy = line
                wire, path = (self.tls, "/v1/blobs/") if privacy == "private" else (self.plain, "/blobs/")
                await self._fetch("members", wire, path + digest, digest, int(size))

    async def _scripts(self, plan: Iterable[list[str]]) -> None:
        for line in plan:
            if line[0] in ("script", "data"):
                # script STATE NN NAME MODULE SHA256 SIZE NEED, data MODULE NAME SHA256 SIZE
                digest, size = line[5:7] if line[0] == "script" else line[3:5]
                await self._fetch("scripts", self.tls, f"/v1/scripts/{digest}", digest, int(size))

    async def _fetch(self, kind: str, wire: Wire, path: str, digest: str, size: int) -> None:
        self._go_on()
        summed, seen = hashlib.sha256(), 0

        def take(piece: bytes) -> None:
            nonlocal seen
            summed.update(piece)
            seen += len(piece)

        good(await wire.get(kind, path, take), kind)
        if (seen, summed.hexdigest()) != (size, digest):
            raise Failed(f"{kind}: other bytes than the plan's")

    async def _step(self, name: str) -> None:
        """Both reports of a step in one connection, as stage 1 sends what has gathered."""
        self._go_on()
        wire = self.tls if self.master.keep else Wire(self.tls.to, self.tls.source, self.tally, True, self.tls.key)
        try:
            for status, seconds in (("start", ""), ("ok", "0.01")):
                form = {"step": name, "status": status, "seconds": seconds, "mem_used_kb": MEMORY_KB}
                good(await wire.post("progress", "/v1/progress", form), "progress")
        finally:
            if wire is not self.tls:
                wire.close()

    async def _state(self, kind: str, state: str) -> Answer:
        self._go_on()
        form = {"uptime": self._uptime(), "mem_used_kb": MEMORY_KB}
        return good(await self.tls.post(kind, f"/v1/state/{state}", form), kind)

    async def _ready(self) -> None:
        """What the agent does first; scripts are fetched, told of as run, and the state is said anew."""
        answer = await self._state("ready", "ready")
        plan = [line.split() for line in answer.body.decode("ascii", "replace").splitlines()]
        scripts = [line for line in plan if line[:1] == ["script"]]
        await self._scripts(plan)
        for _, state, order, _, module, *_ in scripts:
            form = {"step": f"{state}/{module}/{order}"[:64], "status": "ok", "seconds": "0", "detail": "pretended"}
            good(await self.tls.post("progress", "/v1/progress", form), "progress")
        if scripts:
            await self._state("ready", "ready")

    def _uptime(self) -> str:
        return f"{time.monotonic() - self._began:.2f}"

    def _go_on(self) -> None:
        if self.master.stopped():
            raise Stopped


def good(answer: Answer, kind: str) -> Answer:
    """The answer if it is one of status 200; otherwise Failed with what it says."""
    if answer.status != 200:
        raise Failed(f"{kind}: {answer.status} {answer.line}".rstrip())
    return answer


def _word(answer: Answer, kind: str, pattern: str) -> str:
    found = re.fullmatch(rf"{kind} ({pattern})\n", answer.body.decode("ascii", "replace"))
    if not found:
        raise Failed(f"{kind}: an answer that is not understood")
    return found[1]
