"""What both stages are made of: folders, programs, busybox's applets, modules, and the shell that drives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from initramfs_builder import cpio, elf
from initramfs_builder.archive import Archive
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.modules import ModuleTree
from initramfs_builder.tree import MERGED, Found, Tree, merged

FOLDERS = ("dev", "proc", "sys", "run", "mnt", "newroot", "etc", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64")
PRIVATE_FOLDERS = ("root",)
LINKED = ("bin", "sbin", "lib", "lib64")
NEEDS = "# needs:"
# The kernel calls these by their full path in /sbin (CONFIG_MODPROBE_PATH), not through PATH.
ALSO_IN_SBIN = frozenset({"modprobe"})
AGENT = "agent/"


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
    closure = elf.find_closure(tree, binaries)
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
    # The names lie in the program one after another, each ended by NUL: busybox may be of another machine's kind and
    # cannot be asked by running it.
    data = busybox.host.read_bytes()
    return frozenset(name for name in names if b"\0" + name.encode() + b"\0" in data)


def add_modules(
    archive: Archive, kernel_tree: Path, release: str, modules: Iterable[str], *, kmod: bool = False
) -> tuple[str, ...]:
    """Modules with all they need, their firmware and modprobe's index; the names of firmware not found.

    ``kmod`` says that modprobe is kmod's, which reads binary indexes too.
    """
    kernel = ModuleTree(kernel_tree, release)
    files = kernel.closure(modules)
    for file in files:
        archive.add(cpio.regular(kernel.image_name(file), kernel.contents(file)))
    for name, text in {**kernel.index(files), **(kernel.binary_indexes(files) if kmod else {})}.items():
        archive.add(cpio.regular(f"usr/lib/modules/{release}/{name}", text))
    firmware = kernel.firmware(files)
    for found in firmware.found:
        archive.add_found(found)
    return firmware.missing


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
