"""What both stages are made of: folders, programs, busybox's applets, modules, and the shell that drives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from initramfs_builder import cpio, elf
from initramfs_builder.applets import applet_names
from initramfs_builder.archive import Archive
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.firmware import Firmware
from initramfs_builder.indexes import indexes
from initramfs_builder.loaded import loaded_in
from initramfs_builder.modules import BUSYBOX, Modprobe, ModuleTree
from initramfs_builder.patterns import Patterns, is_glob
from initramfs_builder.store import Store
from initramfs_builder.tree import MERGED, Found, Tree, merged

FOLDERS = ("dev", "proc", "sys", "run", "mnt", "newroot", "etc", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64")
PRIVATE_FOLDERS = ("root",)
LINKED = ("bin", "sbin", "lib", "lib64")
NEEDS = "# needs:"
# The kernel calls these by their full path in /sbin (CONFIG_MODPROBE_PATH), not through PATH.
ALSO_IN_SBIN = frozenset({"modprobe"})
AGENT = "agent/"
# What kmod's modprobe is linked with, or loads, tells which modules it unpacks.
UNPACKERS = (("libzstd.so", ".zst"), ("liblzma.so", ".xz"), ("libz.so", ".gz"))


@dataclass(frozen=True)
class Modules:
    """What an image wants of a kernel: module names (see ModuleTree.closure) and firmware beside what modules name.

    Firmware is looked up in the kernel's tree, then in those ``beside`` it.
    """

    names: tuple[str, ...]
    firmware: tuple[str, ...] = ()
    beside: tuple[Tree, ...] = ()


def add_skeleton(archive: Archive) -> None:
    """Folders, the merged-/usr links, and the two devices that must exist before /dev is mounted."""
    for path in FOLDERS:
        archive.add(cpio.directory(path))
    for path in PRIVATE_FOLDERS:
        archive.add(cpio.directory(path, 0o700))
    archive.add(cpio.directory("tmp", 0o1777))
    for name in LINKED:
        assert name in MERGED
        archive.add(cpio.symlink(name, f"usr/{name}"))
    archive.add(cpio.char_device("dev/console", 5, 1, 0o600))
    archive.add(cpio.char_device("dev/null", 1, 3, 0o666))


def add_programs(archive: Archive, tree: Tree, binaries: Iterable[str]) -> None:
    """Programs with all they load; raises CapsulekitError naming who wanted what is missing."""
    closure = elf.find_closure(tree, binaries, loaded=loaded_in(tree))
    for path in sorted(closure.files):
        archive.add_found(closure.files[path])
    for path, target in sorted(closure.links.items()):
        archive.add(cpio.symlink(path, target))


def add_applets(archive: Archive, tree: Tree, binaries: Iterable[str], applets: Iterable[str]) -> None:
    """Links from applet names to busybox, which must be one of the binaries and know them.

    A real program of the same name wins over the applet.
    """
    names = {path.rpartition("/")[2]: merged(path) for path in binaries}
    wanted = [applet for applet in applets if applet not in names]
    if not wanted:
        return
    found = tree.resolve(names["busybox"]) if "busybox" in names else None
    if found is None:
        raise CapsulekitError("applets are asked for, but busybox is not among the binaries")
    known = known_applets(found, wanted)
    for applet in wanted:
        if applet not in known:
            raise CapsulekitError(f"{found.host} has no applet {applet}")
        archive.add(cpio.symlink(f"usr/bin/{applet}", _from("usr/bin", found.path)))
        if applet in ALSO_IN_SBIN:
            archive.add(cpio.symlink(f"usr/sbin/{applet}", _from("usr/sbin", found.path)))


def known_applets(busybox: Found, names: Iterable[str]) -> frozenset[str]:
    """Which of the names a busybox has as applets."""
    return applet_names(busybox.host.read_bytes()) & frozenset(names)


def add_paths(archive: Archive, tree: Tree, patterns: Patterns) -> None:
    """Files and folders (with all they hold) of a tree as they are, by name or glob, exceptions left out.

    Raises CapsulekitError when a name or glob finds nothing.
    """
    for wanted in patterns.wanted:
        hits = list(tree.glob(wanted)) if is_glob(wanted) else [wanted]
        kept = [hit for hit in hits if not (is_glob(wanted) and patterns.leaves_out(hit))]
        if not hits:
            raise CapsulekitError(f"{wanted} finds nothing in {tree.root}", hint="is the package in the recipe?")
        for path in kept:
            archive.add_path(tree, path, patterns.leaves_out)


def modprobe_of(tree: Tree, binaries: Iterable[str]) -> Modprobe:
    """The modprobe that these programs of a tree give an image; without one it is busybox's."""
    path = next((path for path in binaries if path.rpartition("/")[2] == "modprobe"), None)
    found = tree.resolve(path) if path is not None else None
    if path is None or found is None or found.path.rpartition("/")[2].startswith("busybox"):
        return BUSYBOX
    names = [file.rpartition("/")[2] for file in elf.find_closure(tree, [path]).files]
    return Modprobe(True, frozenset(end for library, end in UNPACKERS if any(n.startswith(library) for n in names)))


def add_modules(
    archive: Archive, kernel: ModuleTree, wanted: Modules, modprobe: Modprobe, store: Store, level: int
) -> tuple[Firmware, tuple[str, ...]]:
    """Modules with all they need, their firmware and modprobe's indexes; what of the firmware is missing, and remarks.

    ``level`` is zstd's, for modules that the image's modprobe can unpack.
    """
    files = kernel.closure(wanted.names)
    for path, content in kernel.all_contents(files, modprobe, store, level):
        archive.add(cpio.regular(path, content))
    for name, text in indexes(kernel, files, modprobe).items():
        archive.add(cpio.regular(f"usr/lib/modules/{kernel.release}/{name}", text))
    firmware = kernel.firmware(files, kernel.builtin(wanted.names), Patterns(wanted.firmware), wanted.beside)
    for found in firmware.found:
        archive.add_found(found)
    idle = kernel.idle_exceptions(wanted.names)
    return firmware, tuple(f'"{one}" matches no module of kernel {kernel.release}' for one in idle)


def add_shell(archive: Archive, folder: Path) -> None:
    """A stage's shell: init → /init, lib/ → /lib/capsulekit/, agent/ → /lib/capsulekit/agent/, others where they lie.

    A file that starts with "#!" can be run, whatever its mode on disk.
    """
    for source, name in _shell_files(folder):
        data = source.read_bytes()
        archive.add(cpio.regular(_shell_target(name), data, 0o755 if data.startswith(b"#!") else 0o644))
    if "init" not in archive:
        raise CapsulekitError(f"{folder} has no init")


def check_commands(archive: Archive, folder: Path) -> None:
    """Compare the shell's lines "# needs: command command …" with what is in the archive's PATH.

    The agent's files are left out: they run on the node's own root. Raises CapsulekitError naming file and command.
    """
    for name, command in needed_commands(folder):
        if not archive.command(command):
            raise CapsulekitError(
                f"{folder.name}/{name} needs the command {command}, which is not in the image",
                hint="add its program to the binaries, or its name to the applets",
            )


def needed_commands(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, command) for every word of the shell's lines "# needs: …", the agent's left out."""
    for source, name in _shell_files(folder):
        if name.startswith(AGENT):
            continue
        for line in source.read_text("utf-8").splitlines():
            if line.startswith(NEEDS):
                yield from ((name, command) for command in line.removeprefix(NEEDS).split())


def _shell_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for source in sorted(folder.rglob("*")):
        name = source.relative_to(folder).as_posix()
        if source.is_file() and not any(part.startswith(".") for part in name.split("/")):
            yield source, name


def _shell_target(name: str) -> str:
    if name.startswith("lib/"):
        return "usr/lib/capsulekit/" + name.removeprefix("lib/")
    if name.startswith(AGENT):
        return "usr/lib/capsulekit/" + name
    return merged(name)


def _from(folder: str, path: str) -> str:
    """How a link in ``folder`` says ``path``."""
    where, _, name = path.rpartition("/")
    return name if where == folder else f"/{path}"
