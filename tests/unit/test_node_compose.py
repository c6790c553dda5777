"""The file that becomes the initrd: what a later attempt keeps of it, and that a layer's bytes are held once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from node_shell import DIGEST, Node, a_plan, check, node

__all__ = ["node"]  # the fixture
RECORD = f"boot/initrd.img {DIGEST['b']} 0 2000 2116\nlayers/rootfs.squashfs {DIGEST['d']} 4096 4096 8400\n"

# In place of the network; with "cut" the layer ends early and then nobody answers any more.
GET = """
sources() { printf 'master here %s\\n' "$2"; }
get() {
    [ ! -e "$RUN/down" ] || { echo 'curl: (7) refused' >&2; return 7; }
    shift
    get_from=0
    [ "${2:-}" != --range ] || get_from=${3%-}
    printf '%s %s\\n' "$1" "$get_from" >>"$RUN/got"
    [ "${2:-}" != --range ] || printf 'HTTP/1.1 206 Part\\r\\n' >"$RUN/headers"
    if [ -e "$RUN/cut" ] && [ "$1" = LAYER ]; then
        head -c 1000 "HERE/$1" && : >"$RUN/down"
    else
        tail -c +$((get_from + 1)) "HERE/$1"
    fi
}
sleep() { :; }
"""


def composed(node: Node, record: str, size: int = 9000) -> None:
    assert check(node, a_plan()) == ""
    (node.run.parent / "initrd").write_bytes(b"x" * size)
    (node.run / "composed").write_text(record)
    (node.run / "composed.acls").write_text("")


def test_a_second_attempt_keeps_what_still_fits_the_plan(node: Node, tmp_path: Path) -> None:
    composed(node, RECORD)
    assert node.out("keep_what_fits") == "8400\n"
    assert (tmp_path / "initrd").stat().st_size == 8400
    composed(node, RECORD.replace(DIGEST["d"], DIGEST["a"]))
    assert node.out("keep_what_fits") == "2116\n"
    # ACLs lie between the capsule's initrd and the layers.
    composed(node, RECORD)
    (node.run / "composed.acls").write_text("file layers/x.acl changed\n")
    assert node.out("keep_what_fits") == "0\n"
    assert (tmp_path / "initrd").stat().st_size == 0


def test_the_part_of_a_layer_that_came_before_a_cut_is_kept_too(node: Node) -> None:
    first = RECORD.splitlines(keepends=True)[0]
    composed(node, first, 6000)
    partial = node.run / "composed.partial"
    partial.write_text(f"layers/rootfs.squashfs {DIGEST['d']} 4096\n")
    good = partial.read_text()
    assert node.out("keep_what_fits") == "6000\n"
    assert partial.exists()
    # Of another layer, or shorter than its header: nothing of it.
    for text, size in ((f"layers/rootfs.squashfs {DIGEST['a']} 4096\n", 6000), (good, 3000)):
        composed(node, first, size)
        partial.write_text(text)
        assert node.out("keep_what_fits") == "2116\n"
        assert not partial.exists()


def test_a_cut_layer_is_gone_on_with_and_held_once(node: Node, tmp_path: Path) -> None:
    layer, initrd = os.urandom(4096), os.urandom(2000)
    digests = [hashlib.sha256(data).hexdigest() for data in (initrd, layer)]
    plan = a_plan(
        initrd=f"file boot/initrd.img {digests[0]} 2000 public",
        rootfs=f"file layers/rootfs.squashfs {digests[1]} 4096 public",
    )
    assert check(node, plan) == ""
    for name, data in zip(digests, (initrd, layer), strict=True):
        (tmp_path / name).write_bytes(data)
    (node.site / "masters").write_text("http://a https://a\n")
    get = GET.replace("HERE", str(tmp_path)).replace("LAYER", digests[1])
    (node.run / "cut").touch()
    assert "truncated: 1000 of 4096 bytes" in node.reason(f"{get}keep_what_fits; compose")
    for name in ("cut", "down"):
        (node.run / name).unlink()
    assert int(node.out("keep_what_fits")) % 4096 == 1000
    node.out(f"{get}keep_what_fits; compose")
    assert (node.run / "got").read_text().splitlines()[-1] == f"{digests[1]} 1000"
    at = int((node.run / "composed").read_text().splitlines()[1].split()[2])
    archive = (tmp_path / "initrd").read_bytes()
    assert archive[:2000] == initrd
    assert at % 4096 == 0
    assert archive[at : at + 4096] == layer
    held = [p.name for p in tmp_path.rglob("*") if p.is_file() and layer[:512] in p.read_bytes()]
    assert sorted(held) == sorted(["initrd", digests[1]])


def test_the_last_entries_are_the_order_and_the_word_about_consoles(node: Node, tmp_path: Path) -> None:
    composed(node, RECORD.replace("8400", "8448"), 8448)
    (tmp_path / "node.squashfs").write_bytes(b"own")
    for word, said in (("open", b"open\n"), ("locked", b"locked\n"), ("", b"locked\n")):
        (node.site / "console").write_text(word)
        node.out('compose_end "$1"', str(tmp_path / "node.squashfs"))
        end = (tmp_path / "initrd").read_bytes()[8448:]
        assert b"layers/order\0" in end and b"node.squashfs\nrootfs.squashfs\n" in end
        assert end.partition(b"layers/console\0")[2].lstrip(b"\0").startswith(said)
        assert b"TRAILER!!!" in end
