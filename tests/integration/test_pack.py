"""`capsulekit pack`: a tree made elsewhere becomes a capsule; everything in it is on the node's mounted stack again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import built
import pytest
from hostile_tree import ISLANDS, SPARSE, ZEROS, Seen, make_hostile, read_tree
from own_programs import RELEASE
from packed_tree import mounted, packable

from capsulekit.lock.model import loads
from capsulekit.recipe.load import loads_recipe

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files and to mount"),
    pytest.mark.skipif(not (shutil.which("setfacl") and shutil.which("setcap")), reason="needs setfacl and setcap"),
]
PROGRAM = Path(sys.executable).with_name("capsulekit")
EPOCH = 1_700_000_000


def words(tree: Path, out: Path, *more: str | Path) -> list[str]:
    cache = out.parent / "cache"
    return [
        str(w) for w in (PROGRAM, "pack", tree, "-o", out, "--key", built.author_key(), "--cache-dir", cache, *more)
    ]


def packed(tree: Path, out: Path, *more: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words(tree, out, *more), capture_output=True, text=True, timeout=300, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def identity(tree: Path, out: Path, *more: str | Path, **env: str) -> str:
    return str(json.loads(packed(tree, out, "--json", *more, **env).stdout)["identity"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packable(tmp_path_factory.mktemp("made") / "tree")


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", made, tmp_path / "tree"], check=True)
    return tmp_path / "tree"


def kept(path: bytes) -> bool:
    """What is on the stack as it is in the tree: all but the kernel's image and its papers."""
    return not path.startswith(b"boot/")


@pytest.mark.long
def test_everything_a_file_system_can_hold_is_on_the_mounted_stack(tree: Path, tmp_path: Path) -> None:
    make_hostile(tree)
    (tree / "usr").chmod(0o711)  # a folder that the modules' layer has too
    subprocess.run(["setfacl", "-m", "u:77:rx", tree / "usr/lib/modules"], check=True)
    expected = {path: seen for path, seen in read_tree(tree).items() if kept(path)}
    out = tmp_path / "hostile.vnfs"
    packed(tree, out, SOURCE_DATE_EPOCH=str(EPOCH))
    with mounted(out, tmp_path / "mount") as root:
        found = read_tree(root)
        # Once through the mount, holes and all: the sums above take a hole for what it is.
        size, told = read_through(root / "srv/hostile/sparse")
    assert set(found) == set(expected)
    alone = {b"srv/hostile/acls/linked", b"srv/hostile/acls/linked again"}
    for path, want in expected.items():
        have = found[path]
        for aspect in Seen.__dataclass_fields__.keys() - {"mtime"}:
            # overlayfs copies a file with an ACL up under the one name it is called by.
            if aspect != "group" or path not in alone:
                assert getattr(have, aspect) == getattr(want, aspect), (path, aspect)
        assert have.mtime == EPOCH, path
    assert (size, told) == (SPARSE, sum(map(len, ISLANDS.values())))


def read_through(path: Path) -> tuple[int, int]:
    """Bytes of a file, and those of them that are not zero."""
    size = told = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(1 << 20):
            size += len(data)
            told += len(data) - data.count(0) if data != ZEROS else 0
    return size, told


def test_the_hostile_tree_holds_all_it_promises(tmp_path: Path) -> None:
    make_hostile(tmp_path)
    seen = read_tree(tmp_path)
    kinds = {stat.S_IFMT(one.mode) for one in seen.values()}
    assert kinds == {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK}
    attributes = {name for one in seen.values() for name, _ in one.attributes}
    assert {"security.capability", "user.bytes", "system.posix_acl_access", "system.posix_acl_default"} <= attributes
    assert max(one.uid for one in seen.values()) > 1 << 31
    assert max(map(len, seen)) > 3700
    assert max(len(path.rpartition(b"/")[2]) for path in seen) == 255
    assert any(path.decode("utf-8", "ignore").encode() != path for path in seen)
    assert any(len(one.group) == 4 for one in seen.values())
    times = {one.mtime for one in seen.values()}
    assert min(times) < 0
    assert max(times) > 1 << 33
    bits = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
    assert any(one.mode & bits == bits for one in seen.values())
    assert (tmp_path / "srv/hostile/sparse").stat().st_blocks * 512 < 1 << 20


def test_the_capsule_verifies_and_its_recipe_and_lock_say_what_it_is(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.vnfs"
    packed(tree, out, "--cmdline", "console=ttyS0", "--version", "3")
    public = built.author_key().with_name(built.author_key().name + ".pub")
    subprocess.run([PROGRAM, "verify", out, "--pubkey", public], check=True, capture_output=True)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xf", out, "-C", unpacked], check=True)
    text = (unpacked / "recipe.toml").read_text()
    recipe = loads_recipe(text, "recipe.toml")
    assert recipe.text == text
    assert (recipe.full_name, recipe.base, recipe.cmdline) == ("testos-7.2-3.amd64", "packed", "console=ttyS0")
    lock = loads((unpacked / "capsule.lock").read_text(), "capsule.lock")
    assert (lock.distro, lock.release, lock.sets) == ("testos", "7.2", {"rootfs": (), "kernel": (), "initrd": ()})
    newest = max(p.lstat().st_mtime_ns for p in tree.rglob("*") if p.parent != tree / "boot" and p.name not in
                 ("boot", "dev", "run", "tmp"))  # fmt: skip
    assert lock.epoch == newest // 10**9
    assert (unpacked / "boot/vmlinuz").read_bytes() == (tree / f"boot/vmlinuz-{RELEASE}").read_bytes()
    manifest = tomllib.loads((unpacked / "capsule.toml").read_text())
    assert manifest["kernel"]["release"] == RELEASE
    assert [layer["path"] for layer in manifest["layers"]] == ["layers/modules.squashfs", "layers/rootfs.squashfs"]


def test_the_tree_is_not_changed(tree: Path, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[int, ...]]:
        all_ = ((p, p.lstat()) for p in (tree, *tree.rglob("*")))
        return {p: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in all_}

    before = state()
    packed(tree, tmp_path / "x.vnfs")
    assert state() == before


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that ordinary users reach; tmp_path is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="capsulekit another place, with blanks "))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_the_same_tree_gives_the_same_capsule_whoever_packs_it_wherever_it_lies(
    tree: Path, tmp_path: Path, everybodys: Path
) -> None:
    first = identity(tree, tmp_path / "one.vnfs")
    subprocess.run(["cp", "-a", tree, everybodys / "root"], check=True)
    shutil.copy(built.author_key(), everybodys / "key")
    (everybodys / "key").chmod(0o644)
    # An ordinary user who owns nothing of the tree; the privilege is for a program that lies where only root gets.
    user = ["setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups"]
    user += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    env = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(everybodys), "PYTHONHASHSEED": "7"}
    asked = words(everybodys / "root", everybodys / "two.vnfs", "--json", "--key", everybodys / "key")
    line = ["sh", "-c", 'umask 077; exec taskset 1 "$@"', "sh", *user, *asked]
    done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identity"] == first


def test_with_source_date_epoch_times_in_the_tree_do_not_matter(tree: Path, tmp_path: Path) -> None:
    first = identity(tree, tmp_path / "one.vnfs", SOURCE_DATE_EPOCH="1600000000")
    for path in tree.rglob("*"):
        os.utime(path, (5, 5), follow_symlinks=False)
    assert identity(tree, tmp_path / "two.vnfs", SOURCE_DATE_EPOCH="1600000000") == first
    (tree / "etc/motd").write_text("hello\n")
    assert identity(tree, tmp_path / "three.vnfs", SOURCE_DATE_EPOCH="1600000000") != first


def test_the_kernel_is_in_boot_and_its_modules_in_their_layer_only(tree: Path, tmp_path: Path) -> None:
    shutil.copy(tree / f"boot/vmlinuz-{RELEASE}", tree / f"usr/lib/modules/{RELEASE}/vmlinuz")
    other = tree / "usr/lib/modules/5.10/kernel"
    other.mkdir(parents=True)
    out = tmp_path / "x.vnfs"
    packed(tree, out)
    with mounted(out, tmp_path / "mount") as root:
        assert list((root / "boot").iterdir()) == []
        assert (root / f"usr/lib/modules/{RELEASE}/modules.dep").is_file()
        assert not (root / f"usr/lib/modules/{RELEASE}/vmlinuz").exists()
        assert (root / "usr/lib/modules/5.10/kernel").is_dir()
        below = tmp_path / "mount/s/1/usr/lib/modules"
        assert [p.name for p in below.iterdir()] == ["5.10"], "the root's own layer has the modules again"


def test_in_a_root_without_merged_usr_modules_stay_below_lib(tree: Path, tmp_path: Path) -> None:
    (tree / "lib").unlink()
    (tree / "lib").mkdir()
    (tree / "usr/lib/modules").rename(tree / "lib/modules")
    (tree / "lib/of-the-root").write_text("x")
    out = tmp_path / "x.vnfs"
    packed(tree, out)
    with mounted(out, tmp_path / "mount") as root:
        assert (root / f"lib/modules/{RELEASE}/modules.dep").is_file()
        assert (root / "lib/of-the-root").is_file()
        assert not (root / "usr/lib/modules").exists()


def test_what_is_mounted_in_the_tree_is_left_out_and_said(tree: Path, tmp_path: Path) -> None:
    (tree / "srv").mkdir()
    (tree / "etc/hosts").write_text("of the tree, and covered\n")
    places = [["-t", "tmpfs", "none", tree / "srv"], ["-t", "proc", "proc", tree / "proc"]]
    places.append(["--bind", "/etc/passwd", tree / "etc/hosts"])
    try:
        for place in places:
            subprocess.run(["mount", *place], check=True)
        (tree / "srv/mounted").write_text("no part of the tree")
        done = packed(tree, tmp_path / "x.vnfs")
    finally:
        for place in places:
            subprocess.run(["umount", "-q", place[-1]], check=False)
    assert "WARNING: not packed, because it is mounted there and no part of the tree: /etc/hosts, /proc, /srv" in (
        done.stderr
    )
    with mounted(tmp_path / "x.vnfs", tmp_path / "mount") as root:
        assert list((root / "srv").iterdir()) == list((root / "proc").iterdir()) == []
        assert not (root / "etc/hosts").exists()


def test_links_out_of_the_tree_are_links_and_nothing_of_the_host_is_packed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("only of the host")
    (tree / "etc/to-file").symlink_to(outside / "secret")
    (tree / "etc/to-folder").symlink_to(outside)
    (tree / "usr/share").symlink_to(outside)
    (tree / "etc/os-release").unlink()
    (tree / "etc/os-release").symlink_to(outside / "secret")
    out = tmp_path / "x.vnfs"
    packed(tree, out, "--name", "n")
    assert b"only of the host" not in out.read_bytes()  # too short for zstd to take apart
    with mounted(out, tmp_path / "mount") as root:
        assert (root / "etc/to-folder").readlink() == outside
        assert not any("secret" in p.name for p in root.rglob("*"))


def test_dry_run_says_what_would_be_packed_and_writes_nothing(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.vnfs"
    told = packed(tree, out, "--dry-run", "--name", "given").stdout
    assert f"kernel: {RELEASE}" in told
    assert "name: given-1.0.amd64" in told
    assert not out.exists()
    assert not (tmp_path / "cache").exists()
    assert json.loads(packed(tree, out, "--dry-run", "--json").stdout)["distro"] == "testos 7.2"


# --- refusals


def a_socket(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tree / "etc/there"))


def no_setfacl(tree: Path) -> None:
    (tree / "usr/bin/setfacl").unlink()


def no_index(tree: Path) -> None:
    (tree / f"usr/lib/modules/{RELEASE}/modules.dep").unlink()


def two_kernels(tree: Path) -> None:
    (tree / "boot/vmlinuz-5.10").write_bytes(b"kernel")
    (tree / "usr/lib/modules/5.10").mkdir()


def odd_release(tree: Path) -> None:
    (tree / "etc/os-release").write_text('ID=testos\nVERSION_ID="a b"\n')


def nothing(tree: Path) -> None:
    shutil.rmtree(tree)
    tree.mkdir()


def a_file(tree: Path) -> None:
    shutil.rmtree(tree)
    tree.write_text("")


@pytest.mark.parametrize(
    ("damage", "more", "status", "said"),
    [
        (a_file, [], 1, "is not a folder"),
        (nothing, [], 1, "has no /sbin/init to start"),
        (two_kernels, [], 1, "has 2 kernels: 5.10, " + RELEASE),
        (a_socket, [], 1, "/etc/there in "),
        (no_setfacl, [], 1, "stage 2 needs the command setfacl"),
        (no_index, [], 1, "has no modules.dep"),
        (None, ["--init", "/bin/none"], 1, "has no /bin/none to start"),
        (None, ["--kernel", "4"], 1, "has no kernel 4"),
        (None, ["--name", "a b"], 2, "--name can't be 'a b'"),
        (None, ["--version", "../1"], 2, "--version can't be '../1'"),
        (None, ["--cmdline", "a\nb"], 2, "--cmdline must be one line"),
        (None, ["--cmdline", "x" * 3000], 1, "cmdline is longer than a kernel takes"),
        (None, ["--init", "sbin/init"], 1, "init can't be 'sbin/init'"),
        (odd_release, ["--name", "n"], 1, "release can't be 'a b'"),
        (None, ["-o", "TREE/x.vnfs"], 1, "lies in the tree that is packed"),
        (None, ["-o", "/none/x.vnfs"], 1, "there is no folder /none"),
        (None, ["-o", "TREE"], 1, "is a folder"),
        (None, ["--cache-dir", "TREE/var/cache"], 1, "lies in the tree that is packed"),
        (None, ["--key", "/none"], 1, "/none"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_line_and_nothing_is_left(
    tree: Path, tmp_path: Path, damage: Callable[[Path], None] | None, more: list[str], status: int, said: str
) -> None:
    if damage:
        damage(tree)
    out = tmp_path / "x.vnfs"
    more = [word.replace("TREE", str(tree)) for word in more]
    done = subprocess.run(words(tree, out, *more), capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert len(done.stderr.splitlines()) <= 2, done.stderr  # the error and the way out
    assert not out.exists()
    assert not [p for p in (tmp_path / "cache/tmp").glob("*") if p.is_dir()]


def test_the_running_system_is_packed_only_with_yes(tmp_path: Path) -> None:
    done = subprocess.run(words(Path("/"), tmp_path / "x.vnfs"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "/ is the running system" in done.stderr


def test_what_cannot_be_read_is_refused_by_name(tree: Path, tmp_path: Path) -> None:
    (tree / "etc/secret").write_text("x")
    (tree / "etc/secret").chmod(0o600)
    os.chown(tree / "etc/secret", 5, 5)
    # Without its privileges even root reads only what it owns or everybody may read.
    bare = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    line = [*bare, *words(tree, tmp_path / "x.vnfs")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"ERROR: /etc/secret in {tree} can't be read" in done.stderr
    (tree / "etc/secret").chmod(0o644)
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_memory_does_not_grow_with_the_tree(tree: Path, tmp_path: Path) -> None:
    def peak(out: Path) -> int:
        """The largest process's peak, in KiB."""
        child = subprocess.Popen(words(tree, out), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        assert status == 0
        return usage.ru_maxrss

    small = peak(tmp_path / "small.vnfs")
    # Packed more slowly than it is read, so that whatever queues up does: 600 MB of hex digits.
    (tree / "srv").mkdir()
    for number in range(300):
        (tree / f"srv/{number}").write_bytes(os.urandom(1 << 20).hex().encode())
    assert peak(tmp_path / "large.vnfs") < small + (150 << 10)
