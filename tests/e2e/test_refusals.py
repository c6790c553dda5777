"""What stage 1 must refuse, on real machines: spoilt layers, wrong signatures and keys, too little memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import built
import pytest
from e2e_bench import DEBIAN, SMALL, Bench

from capsulekit.capsule.manifest import loads
from capsulekit.trust import minisign
from provisioner.registry.model import Event, Node
from provisioner.vnfs.store import VnfsStore

pytestmark = pytest.mark.timeout(1200)
MAC = "52:54:00:E2:E0:02"


class Store:
    """The installed small capsule's files, to be spoilt one after the other on the master's disk."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.registry = bench.site.registry
        store = VnfsStore(bench.site.paths, self.registry)
        self.folder = store.folder(SMALL)
        self.manifest = loads((self.folder / "capsule.toml").read_bytes())
        self.rootfs = store.blob(next(la.sha256 for la in self.manifest.layers if la.path == "layers/rootfs.squashfs"))
        self._kept: dict[Path, bytes] = {}

    def spoil(self, path: Path, change: Callable[[bytes], bytes]) -> None:
        """Replace a file's content (another inode, as any honest writer would do)."""
        data = self._kept.setdefault(path, path.read_bytes())
        other = path.with_name(path.name + ".spoilt")
        other.write_bytes(change(data))
        other.chmod(path.stat().st_mode & 0o777)
        other.replace(path)

    def mend(self) -> None:
        """Put back everything that was spoilt."""
        for path, data in self._kept.items():
            self.spoil(path, lambda _now, data=data: data)  # type: ignore[misc]
        self._kept.clear()


@pytest.fixture(scope="module")
def store(bench: Bench) -> Iterator[Store]:
    """The store behind a node that was switched on with a layer already spoilt."""
    made = Store(bench)
    made.spoil(made.rootfs, flip)
    bench.faulty.start()
    yield made
    bench.faulty.stop()
    made.mend()
    made.registry.close()


def flip(data: bytes) -> bytes:
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def failed_with(store: Store, since: float, *words: str) -> Node:
    """Wait until the node has failed after ``since`` with all ``words`` in its reason; console and status agree."""

    def is_it(node: Node, events: list[Event]) -> bool:
        return any(
            e.time >= since and e.status == "failed" and all(w in e.detail for w in words) for e in events
        ) and all(w in node.error for w in words)

    node = store.bench.site.wait(MAC, is_it, 240, f"failed with {words}")
    shown = store.bench.faulty.console.expect(r"FAILED [^\r\n]*" + words[0] + r"[^\r\n]*\r", 60).group(0)
    assert all(word in shown for word in words)
    status = store.bench.site.command("node", "status", node.hostname)
    assert "failed" in status and all(word in status for word in words)
    return node


def never_handed_over(store: Store) -> None:
    """No boot of this node got as far as kexec."""
    assert not [e for e in store.registry.events(MAC) if e.state == "handoff" or e.step in ("kexec", "handoff")]


def test_one_flipped_bit_in_a_layer_stops_in_stage_1(store: Store) -> None:
    failed_with(store, 0.0, "rootfs.squashfs", "digest mismatch")
    never_handed_over(store)


def test_a_truncated_layer_stops_in_stage_1(store: Store) -> None:
    since = time.time()
    store.mend()
    store.spoil(store.rootfs, lambda data: data[: len(data) // 2])
    failed_with(store, since, "rootfs.squashfs", "truncated")
    never_handed_over(store)


def test_a_wrong_signature_stops_in_stage_1(store: Store) -> None:
    since = time.time()
    store.mend()
    signer = minisign.load_secret(built.author_key(), lambda: b"")
    forged = minisign.sign(b"other sums", signer, store.manifest.trusted_comment)
    store.spoil(store.folder / "SHA256SUMS.minisig", lambda _old: forged.encode())
    failed_with(store, since, "signature")
    never_handed_over(store)


def test_an_unknown_signing_key_stops_in_stage_1(store: Store, tmp_path: Path) -> None:
    # The key came to the site after this node had loaded its stage 1, which carries the keys it may trust.
    since = time.time()
    store.mend()
    other = tmp_path / "other"
    public = minisign.create_key_files(other, None)
    secret = minisign.load_secret(other, lambda: b"")
    sums = (store.folder / "SHA256SUMS").read_bytes()
    store.spoil(
        store.folder / "SHA256SUMS.minisig",
        lambda _old: minisign.sign(sums, secret, store.manifest.trusted_comment).encode(),
    )
    row = store.registry.capsule(SMALL)
    assert row is not None
    from dataclasses import replace

    store.registry.add_capsule(replace(row, key_id=public.id, public_key=public.text))
    try:
        failed_with(store, since, "unknown signing key", public.id)
        never_handed_over(store)
    finally:
        store.registry.add_capsule(row)


def test_the_same_node_boots_once_everything_is_mended(store: Store) -> None:
    since = time.time()
    store.mend()
    node = store.bench.site.wait_ready(MAC, 300, since)
    # It was never added by hand: policy "auto" gave it the defaults.
    assert node.hostname.startswith("n") and node.vnfs == SMALL
    assert node.error == ""


def test_too_little_memory_is_said_with_numbers_before_anything_is_fetched(bench: Bench) -> None:
    mac = bench.tight.machine.mac
    bench.site.command("node", "add", mac, "tight.new")
    bench.site.command("node", "set", "vnfs", DEBIAN, "tight")
    bench.tight.start()

    def is_it(node: Node, _events: list[Event]) -> bool:
        return node.status == "failed"

    node = bench.site.wait(mac, is_it, 240, "failed for want of memory")
    registry = bench.site.registry
    steps = [e.step for e in registry.events(mac)]
    registry.close()
    bench.tight.stop()
    assert "not enough memory" in node.error and "needs" in node.error and "MB" in node.error
    assert sum(char.isdigit() for char in node.error) >= 6
    bench.tight.console.expect(r"not enough memory: needs \d+ MB", 30)
    assert not any("layer" in step for step in steps), steps
