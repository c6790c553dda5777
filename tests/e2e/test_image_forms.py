"""A real kernel unpacks every form of image: microcode first, stored parts, and frames of each compression."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import built
import pytest
from e2e_bench import Bench
from images import archives, streams
from initramfs_builder import cpio
from initramfs_builder.archive import Archive
from initramfs_builder.compress import COMPRESSIONS
from initramfs_builder.pack import Packing, pack

pytestmark = pytest.mark.timeout(300)
MTIME = 1_700_000_000
INIT = """#!/busybox sh
/busybox mount -t devtmpfs dev /dev 2>/dev/null
exec >/dev/ttyS0 2>&1
cd / && /busybox sha256sum -c /sums && echo "FORMS: all $(/busybox wc -l </sums) files are whole"
/busybox stat -c 'FORMS: %n %a %Y' /usr/share/zstd/0 /dev/console /init
/busybox poweroff -f
"""


def image(sums: dict[str, str]) -> bytes:
    """Three images in a row, each of another compression, as stage 1 and site.img are two in a row."""
    noise, whole = random.Random(7), b""
    for compression in COMPRESSIONS:
        archive = Archive()
        for number in range(5):
            data = noise.randbytes(600_000) + bytes(1_500_000 + number) + b"the same words, " * 30_000
            archive.add(cpio.regular(f"usr/share/{compression.name}/{number}", data))
            sums[f"usr/share/{compression.name}/{number}"] = hashlib.sha256(data).hexdigest()
        for name in ("a.ko.zst", "b.bin.xz"):
            data = noise.randbytes(3001)
            archive.add(cpio.regular(f"usr/lib/{compression.name}/{name}", data))
            sums[f"usr/lib/{compression.name}/{name}"] = hashlib.sha256(data).hexdigest()
        if compression is COMPRESSIONS[-1]:
            text = "".join(f"{digest}  {path}\n" for path, digest in sums.items())
            archive.add(cpio.regular("sums", text.encode()))
            archive.add(cpio.regular("busybox", Path("/bin/busybox"), 0o755))
            archive.add(cpio.regular("init", INIT.encode(), 0o755))
            archive.add(cpio.directory("dev"))
            archive.add(cpio.char_device("dev/console", 5, 1, 0o600))
        early = (cpio.regular("kernel/x86/microcode/AuthenticAMD.bin", b"DMA\0"),) if not whole else ()
        out = io.BytesIO()
        pack(out, archive, Packing(MTIME, 3, compression, early=early))
        assert len(streams(out.getvalue()[sum(map(len, archives(out.getvalue())[:-1])) :])) >= 2, "several frames"
        whole += out.getvalue()
    return whole


def test_every_file_of_every_form_arrives_whole(bench: Bench, tmp_path: Path) -> None:
    sums: dict[str, str] = {}
    (tmp_path / "initrd").write_bytes(image(sums))
    kernel = (built.stage1() / "vmlinuz", tmp_path / "initrd", "console=ttyS0,115200 quiet")
    machine = bench.lab.node("52:54:00:E2:E0:F0", memory=512, kernel=kernel)
    machine.start()
    try:
        machine.console.expect(rf"FORMS: all {len(sums)} files are whole\r", 120)
        machine.console.expect(rf"FORMS: /usr/share/zstd/0 644 {MTIME}\r", 20)
        machine.console.expect(rf"FORMS: /init 755 {MTIME}\r", 20)
    finally:
        machine.stop()
