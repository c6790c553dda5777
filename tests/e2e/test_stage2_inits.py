"""Stage 2 started by itself, with a shell on the way and an init that is no systemd: busybox's, told to be single."""

from __future__ import annotations

import subprocess
from pathlib import Path

import built
import pytest
from e2e_bench import Bench, shell

from capsulekit.capsule.manifest import loads
from capsulekit.capsule.read import open_capsule

pytestmark = pytest.mark.timeout(600)
MAC = "52:54:00:E2:E0:0B"


def parts(capsule: Path, folder: Path) -> tuple[Path, Path]:
    """A capsule's kernel, and its initrd with its layers behind it and one more on top, as stage 1 leaves it."""
    layers = folder / "layers"
    layers.mkdir()
    with open_capsule(capsule) as opened:
        mounted = [layer.path for layer in loads(opened.read_member("capsule.toml")).layers]
        for name in ("boot/vmlinuz", "boot/initrd.img", *mounted):
            with (folder / name.removeprefix("boot/")).open("wb") as out:
                opened.copy_member(name, out)
    top = folder / "top"
    (top / "bin").mkdir(parents=True)
    (top / "bin/sh").symlink_to("busybox")
    (top / "linuxrc").symlink_to("bin/busybox")  # busybox's other name for init
    argv = ["mksquashfs", top, layers / "node.squashfs", "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, capture_output=True)
    order = ["node.squashfs", *(path.removeprefix("layers/") for path in mounted)]
    (layers / "order").write_text("".join(f"{name}\n" for name in order))
    (layers / "console").write_text("open\n")
    names = "".join(f"{path.relative_to(folder)}\n" for path in (layers, *sorted(layers.iterdir())))
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), cwd=folder, capture_output=True, check=True
    ).stdout
    with (folder / "initrd.img").open("ab") as out:
        out.write(archive)
    return folder / "vmlinuz", folder / "initrd.img"


def test_busybox_init_is_started_with_the_words_of_the_command_line(bench: Bench, tmp_path: Path) -> None:
    kernel, initrd = parts(built.capsule(built.BUSYBOX), tmp_path)
    line = "console=ttyS0,115200 rootfstype=ramfs rd.break=pre-mount ck.overlay-size=9m ck.init=/sbin/init"
    machine = bench.lab.node(MAC, memory=256, kernel=(kernel, initrd, f"{line} init=/linuxrc single"))
    machine.start()
    try:
        machine.console.expect(r"rd\.break=pre-mount: a shell", 120)
        assert shell(machine, "ls /sysroot | wc -l") == "0", "nothing is mounted yet"
        machine.console.sendline("exit")
        machine.console.expect(r"layers mounted, starting /linuxrc single", 60)
        machine.console.expect(r"# ", 60)
        assert shell(machine, "busybox tr '\\0' ' ' </proc/1/cmdline") == "init", "as it calls itself"
        # Without "single" it would ask first, and start what /etc/inittab or /etc/init.d/rcS say.
        assert "Please press Enter" not in machine.console.text
        mounts = [line.split() for line in shell(machine, "busybox cat /proc/mounts").splitlines()]
        assert {"/", "/proc", "/sys", "/dev", "/run"} <= {words[1] for words in mounts}
        (root,) = (words[3] for words in mounts if words[1] == "/" and words[2] == "overlay")
        assert len(root.partition("lowerdir=")[2].partition(",")[0].split(":")) == 3
        full = shell(machine, "busybox dd if=/dev/zero of=/fill bs=1M count=64 2>&1; busybox rm /fill")
        assert "No space left on device" in full, "the writable part has its own end"
    finally:
        machine.stop()
