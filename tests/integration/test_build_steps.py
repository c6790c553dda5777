"""Steps: what a change makes again and what not, and looking inside; each time the bytes of a build from nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import built
import pexpect
import pytest
from building import PROGRAM, build_words, cold_cache, nothing_left, ok, refused, sh, unpacked

from capsulekit.recipe.load import loads_recipe

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to look into layers"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
]
PARENT = """[capsule]
name = "steps"
version = "1"
init = "/bin/sh"
[distro]
name = "debian"
release = "12"
[variables]
greeting = "hello"
[packages]
include = ["busybox-static", "dash"]
[rootfs]
base = "extract"
[kernel]
package = "linux-image-cloud-amd64"
modules = ["loop", "squashfs", "overlay"]
[files."/etc/greeting"]
content = "@{greeting}\\n"
[image]
release_level = 9
[scripts]
rootfs = ["odd.sh"]
"""
CHILD = 'extends = ["parent.toml"]\n'
ODD = "#!/bin/sh\nset -eu\necho odd >/etc/odd\n"
# Has what is not in a root that is only unpacked: accounts, and units to switch on.
SYSTEM = PARENT.replace("busybox-static", "passwd").replace("dash", "systemd").replace('base = "extract"', "") + (
    '[users.admin]\nuid = 1500\n[services]\nenable = ["systemd-networkd.service"]\n'
)


@dataclass(frozen=True)
class Report:
    """What `build --json` said, and the capsule."""

    capsule: Path
    told: dict[str, object]

    @property
    def made(self) -> set[str]:
        """The steps that were made, of those that can be reused; "install N packages" is there only when made."""
        always = {"choose packages", "fetch packages", "pack and sign"}
        steps: list[dict[str, object]] = self.told["steps"]  # type: ignore[assignment]
        return {str(s["name"]) for s in steps if not s["reused"]} - always


@dataclass(frozen=True)
class Desk:
    """A folder with a recipe in it, and the cache that several of them share."""

    folder: Path
    cache: Path

    def words(self, *more: str | Path, cache: Path | None = None, out: str = "x.vnfs") -> list[str]:
        return build_words(self.folder / "r.toml", self.folder / out, cache or self.cache, *more)

    def build(self, *more: str | Path, cache: Path | None = None, out: str = "x.vnfs", **env: str) -> Report:
        words = self.words(*(more or ("--locked", "--offline")), "--json", cache=cache, out=out)
        return Report(self.folder / out, json.loads(ok(*words, env={**os.environ, **env})))

    def from_nothing(self) -> Report:
        """The same, with an empty step cache."""
        cache = cold_cache(self.folder / "cold", indexes=True, of=self.cache)
        report = self.build(cache=cache, out="cold.vnfs")
        assert {"root file system", "kernel and modules", "stage 2"} < report.made
        shutil.rmtree(cache)
        return report

    def edit(self, old: str, new: str, name: str = "parent.toml") -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def copy(self, folder: Path) -> Desk:
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.vnfs"))
        return Desk(folder, self.cache)


def read(capsule: Path, path: str) -> str | None:
    """A file of the capsule's root, or None."""
    with_parts = capsule.with_suffix(".parts")
    if not with_parts.exists():
        unpacked(capsule, with_parts)
    done = sh("unsquashfs", "-cat", with_parts / "layers/rootfs.squashfs", path, errors="replace")
    return done.stdout if done.returncode == 0 else None


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Report]:
    """The small recipe, built once with its lock kept beside it."""
    top = tmp_path_factory.mktemp("steps")
    built.capsule(built.BUSYBOX)  # its kernel is ours: the machine's cache has it
    desk = Desk(top / "desk", cold_cache(top / "cache", indexes=True))
    desk.folder.mkdir()
    (desk.folder / "parent.toml").write_text(PARENT)
    (desk.folder / "r.toml").write_text(CHILD)
    (desk.folder / "odd.sh").write_text(ODD)
    return desk, desk.build("--write-lock")


@pytest.fixture
def desk(first: tuple[Desk, Report], tmp_path: Path) -> Desk:
    return first[0].copy(tmp_path / "desk")


@pytest.fixture(scope="module")
def system(first: tuple[Desk, Report], tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Report]:
    """A recipe with accounts and units, built once."""
    desk = first[0].copy(tmp_path_factory.mktemp("system") / "desk")
    (desk.folder / "parent.toml").write_text(SYSTEM)
    return desk, desk.build("--write-lock")


# --- what a change makes again


def test_nothing_changed_and_nothing_is_made(first: tuple[Desk, Report], desk: Desk) -> None:
    again = desk.build()
    assert again.made == set()
    assert again.capsule.read_bytes() == first[1].capsule.read_bytes()


CHANGES: dict[str, tuple[tuple[str, str, str], set[str], tuple[str, str]]] = {
    "a file": (("parent.toml", "@{greeting}", "bye"), {"root file system"}, ("etc/greeting", "bye\n")),
    "a script": (("odd.sh", "odd >", "even >"), {"root file system"}, ("etc/odd", "even\n")),
    "modules": (("parent.toml", '["loop", ', '["loop", "nbd", '), {"kernel and modules"}, ("etc/odd", "odd\n")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_made_again_and_nothing_else(what: str, first: tuple[Desk, Report], desk: Desk) -> None:
    (name, old, new), made, (path, content) = CHANGES[what]
    desk.edit(old, new, name)
    report = desk.build()
    assert report.made == made and read(report.capsule, path) == content
    assert report.capsule.read_bytes() != first[1].capsule.read_bytes()
    assert report.capsule.read_bytes() == desk.from_nothing().capsule.read_bytes()


def test_a_package_that_a_child_adds_is_installed_on_what_its_parents_name(desk: Desk) -> None:
    (desk.folder / "r.toml").write_text(CHILD + '[packages]\ninclude = ["hostname"]\n')
    report = desk.build("--write-lock")
    assert report.made == {"install 1 packages", "root file system"}
    assert (read(report.capsule, "bin/hostname") or "").startswith("\x7fELF")
    assert report.capsule.read_bytes() == desk.from_nothing().capsule.read_bytes()


@pytest.mark.long
def test_a_changed_account_or_unit_is_brought_into_the_installed_root(
    system: tuple[Desk, Report], tmp_path: Path
) -> None:
    desk = system[0].copy(tmp_path / "desk")
    desk.edit("uid = 1500", 'uid = 1501\nshell = "/bin/dash"')
    report = desk.build()
    assert report.made == {"root file system"}
    assert "admin:x:1501:1501::/home/admin:/bin/dash\n" in (read(report.capsule, "etc/passwd") or "")
    desk.edit("systemd-networkd", "systemd-pstore")
    report = desk.build(out="y.vnfs")
    assert report.made == {"root file system"}
    assert read(report.capsule, "etc/systemd/system/dbus-org.freedesktop.network1.service") is None
    listed = ok("unsquashfs", "-l", report.capsule.with_suffix(".parts") / "layers/rootfs.squashfs")
    assert "wants/systemd-pstore.service" in listed and "wants/systemd-networkd" not in listed
    assert report.capsule.read_bytes() == desk.from_nothing().capsule.read_bytes()


def test_a_root_unpacked_on_the_disk_has_the_bytes_of_one_in_memory(first: tuple[Desk, Report], desk: Desk) -> None:
    """From nothing, and nothing of it in memory."""
    cache = cold_cache(desk.folder / "cold", indexes=True, of=desk.cache)
    done = sh(*desk.words("--locked", "--offline", "-v", cache=cache), env={**os.environ, "CAPSULEKIT_SCRATCH": "disk"})
    assert done.returncode == 0 and set(re.findall(r"CAPSULEKIT_MEMORY=(\d+)", done.stderr)) == {"0"}, done.stderr
    assert (desk.folder / "x.vnfs").read_bytes() == first[1].capsule.read_bytes()
    (desk.folder / "x.vnfs").unlink()
    nothing_left(desk.folder, cache)


# --- looking inside


PLACES = {"file": "/etc/greeting", "script": "/etc/odd", "user": "/home/admin",
          "unit": "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"}  # fmt: skip


def at_a_terminal(words: list[str], ask: str = "") -> tuple[str, str, int]:
    """Run a build at a terminal: what it printed, what the shell in the root answered to ``ask``, the exit status."""
    child = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=120, dimensions=(50, 200), echo=False)
    answer = before = ""
    if ask:
        child.expect("as it is after the step")
        before = child.before
        child.expect(r"[#$] $")
        child.sendline(f"{ask}; echo that-is-$((40 + 2))")
        child.expect("that-is-42")
        answer = child.before
        child.sendline("exit")
    child.expect(pexpect.EOF)
    printed = before + child.before
    child.close()
    return printed, answer.replace("\r", ""), child.exitstatus


def seen_at(desk: Desk, step: str) -> set[str]:
    """Which of PLACES are in the root where --break stops; all that a stopped build leaves is checked too."""
    ask = "; ".join(f'[ ! -h {p} ] && [ ! -e {p} ] || echo "has {name}"' for name, p in PLACES.items())
    words = desk.words("--locked", "--offline", "--break", step)
    printed, answer, status = at_a_terminal(words, ask + "; echo in-$(id -u 2>/dev/null || /bin/busybox id -u)")
    assert status == 1 and "the build was stopped where --break said" in printed, printed
    assert "Traceback" not in printed and "in-0" in answer.split(), answer
    nothing_left(desk.folder, desk.cache)
    return set(re.findall(r"^has (\w+)$", answer, re.M))


@pytest.mark.parametrize(
    ("step", "there"),
    [
        ("install", set()),
        ("users", set()),  # also where a recipe has none
        ("files", {"file"}),
        ("services", {"file"}),
        ("script odd.sh", {"file", "script"}),
        ("caches", {"file", "script"}),
    ],
)
def test_break_opens_a_shell_in_the_root_as_it_is_after_that_step(
    step: str, there: set[str], first: tuple[Desk, Report], desk: Desk
) -> None:
    assert seen_at(desk, step) == there
    again = desk.build()
    assert again.made == set() and again.capsule.read_bytes() == first[1].capsule.read_bytes()


def test_break_shows_accounts_and_units_after_their_steps(system: tuple[Desk, Report], tmp_path: Path) -> None:
    desk = system[0].copy(tmp_path / "desk")
    assert seen_at(desk, "users") == {"user"}
    assert seen_at(desk, "services") == {"user", "file", "unit"}
    assert desk.build().capsule.read_bytes() == system[1].capsule.read_bytes()


def test_what_is_done_in_the_shell_of_break_is_in_no_later_build(first: tuple[Desk, Report], desk: Desk) -> None:
    desk.edit("odd >", "odder >", "odd.sh")  # a root that is in no cache yet
    _, answer, status = at_a_terminal(desk.words("--locked", "--break", "caches"), "echo mine >/etc/odd; echo done")
    assert "done" in answer and status == 1
    report = desk.build()
    assert report.made == {"root file system"} and read(report.capsule, "etc/odd") == "odder\n"


def test_an_unknown_step_to_break_at_is_wrong_usage_and_the_known_ones_are_listed(desk: Desk) -> None:
    printed, _, status = at_a_terminal(desk.words("--locked", "--break", "script even.sh"))
    assert status == 2 and "there is no step 'script even.sh' to stop after" in printed
    assert "known: install, users, files, services, script odd.sh, caches" in printed
    nothing_left(desk.folder, desk.cache)


def test_break_without_a_terminal_is_wrong_usage(desk: Desk) -> None:
    done = sh(*desk.words("--break", "files"), stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "--break opens a shell and needs a terminal" in done.stderr


def test_verbose_prints_every_command_and_a_pasted_one_works(first: tuple[Desk, Report], desk: Desk) -> None:
    desk.edit("@{greeting}", "verbose")
    desk.edit('["loop", ', '["loop", "dummy", ')
    done = sh(*desk.words("--locked", "--offline", "-v"))
    lines = [line.removeprefix("+ ") for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert done.returncode == 0 and len(lines) == len(done.stderr.splitlines()), done.stderr
    for program in ("shellcheck", "dpkg-deb -x", "depmod -b", "mksquashfs - ", "customize.sh"):
        assert any(program in line for line in lines), program
    # A command that works in a root brings its namespaces, its folder and its environment with it.
    (root,) = (line for line in lines if "customize.sh" in line)
    assert "unshare --mount" in root and "SOURCE_DATE_EPOCH=" in root and "--chdir=" in root
    unpacking = [line for line in lines if line.startswith("dpkg-deb -x")]
    pasted = {Path(line.split()[-1]) for line in unpacking}
    assert len(unpacking) == 2 and len(pasted) == 1 and not any(p.exists() for p in pasted), "the kernel's packages"
    for line in unpacking:
        ok("sh", "-c", line)
    (folder,) = pasted
    assert list((folder / "boot").glob("vmlinuz-*"))
    shutil.rmtree(folder)


# --- what a build may be asked


def test_set_gives_a_variable_another_value_and_the_capsule_holds_it(desk: Desk) -> None:
    report = desk.build("--locked", "--offline", "--set", "greeting=good day")
    assert report.made == {"root file system"} and read(report.capsule, "etc/greeting") == "good day\n"
    held = loads_recipe((report.capsule.with_suffix(".parts") / "recipe.toml").read_text(), "recipe.toml")
    assert [f.data for f in held.files] == [b"good day\n"]
    refused(sh(*desk.words("--locked", "--set", "greetings=x")), 2, "greetings", "greeting")


def test_release_packs_tighter_and_such_a_capsule_is_made_again_like_any_other(
    first: tuple[Desk, Report], desk: Desk
) -> None:
    report = desk.build("--locked", "--offline", "--release")
    assert report.made == {"root file system", "kernel and modules"}
    assert report.capsule.stat().st_size < first[1].capsule.stat().st_size
    public = built.author_key().with_suffix(".pub")
    cache = cold_cache(desk.folder / "cold", "install", "initrd", of=desk.cache, indexes=True)
    words = ["rebuild", report.capsule, "-o", desk.folder / "y.vnfs", "--offline", "--pubkey", public]
    ok(PROGRAM, *words, "--cache-dir", cache)
    assert (desk.folder / "y.vnfs").read_bytes() == report.capsule.read_bytes()


def test_a_lock_that_was_written_beside_the_recipe_is_what_locked_takes(first: tuple[Desk, Report], desk: Desk) -> None:
    with (desk.folder / "r.lock").open() as lock:
        assert lock.read() == (unpacked(first[1].capsule, desk.folder / "parts") / "capsule.lock").read_text()
    done = sh(*desk.words("--locked", "--write-lock"))
    assert done.returncode == 2 and "--write-lock makes a new lock; it cannot go with --lock or --locked" in done.stderr
    (desk.folder / "r.lock").unlink()
    refused(sh(*desk.words("--locked")), 1, "r.lock: the lock cannot be read: No such file or directory")
    nothing_left(desk.folder, desk.cache)


# --- what a recipe may not


@pytest.fixture
def listening() -> Iterator[tuple[int, list[str]]]:
    """A web server on every address of this machine: its port, and who came."""
    came: list[str] = []
    with socket.create_server(("0.0.0.0", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    guest, address = server.accept()
                except OSError:
                    return
                came.append(address[0])
                guest.recv(10_000)
                guest.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\n")
                guest.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_script_has_no_network(desk: Desk, listening: tuple[int, list[str]]) -> None:
    port, came = listening
    mine = {"127.0.0.1", *ok("hostname", "-I").split()}
    addresses = " ".join(sorted(a for a in mine if ":" not in a))
    script = (
        "#!/bin/sh\n/bin/busybox ip -o link | /bin/busybox cut -d: -f2 >/etc/links\n"
        f"for address in {addresses}; do\n"
        f'    /bin/busybox wget -T 5 -q -O - "http://$address:{port}/" >>/etc/got || echo none >>/etc/got\ndone\n'
    )
    (desk.folder / "odd.sh").write_text(script)
    ok("busybox", "wget", "-q", "-O", "-", f"http://127.0.0.1:{port}/")  # it does answer
    assert came == ["127.0.0.1"]
    report = desk.build()
    assert set((read(report.capsule, "etc/got") or "").split()) == {"none"}
    assert (read(report.capsule, "etc/links") or "").split() == ["lo"] and came == ["127.0.0.1"]


def test_a_script_that_downloads_something_fails_and_is_named(desk: Desk) -> None:
    (desk.folder / "odd.sh").write_text("#!/bin/sh\nset -eu\n/bin/busybox wget -O /etc/x http://127.0.0.1/x\n")
    refused(sh(*desk.words("--locked", "--offline")), 1, "the recipe's script odd.sh failed")
    nothing_left(desk.folder, desk.cache)


def test_a_file_that_every_boot_would_lose_is_refused(desk: Desk) -> None:
    desk.edit('"/etc/greeting"', '"/run/motd"')
    done = sh(*desk.words("--locked", "--offline"))
    refused(done, 1, "the file /run/motd would be lost: /run is empty in every capsule")
    nothing_left(desk.folder, desk.cache)


def test_a_socket_that_a_script_leaves_is_refused_by_name(system: tuple[Desk, Report], tmp_path: Path) -> None:
    desk = system[0].copy(tmp_path / "desk")
    make = 'IO::Socket::UNIX->new(Type => SOCK_STREAM, Local => "/var/lib/left", Listen => 1) or die'
    (desk.folder / "odd.sh").write_text(f"#!/bin/sh\nexec perl -MSocket -MIO::Socket::UNIX -e '{make}'\n")
    done = sh(*desk.words("--locked", "--offline"))
    refused(done, 1, "a capsule cannot hold a socket: ./var/lib/left", "remove it in a [scripts] script")
    nothing_left(desk.folder, desk.cache)


def test_what_shellcheck_warns_of_is_shown_and_its_errors_stop_all_before_anything_is_fetched(desk: Desk) -> None:
    (desk.folder / "odd.sh").write_text("#!/bin/sh\necho $word >/etc/odd\n")
    done = sh(*desk.words("--locked", "--offline"))
    assert done.returncode == 0
    assert "WARNING: odd.sh:2: word is referenced but not assigned. (SC2154)" in done.stderr
    (desk.folder / "odd.sh").write_text("#!/bin/sh\nif true; then\n")
    (desk.folder / "x.vnfs").unlink()
    refused(sh(*desk.words("--locked", cache=desk.folder / "empty")), 1, "the script odd.sh:2: ")
    assert not (desk.folder / "empty").exists()


def test_a_root_too_large_for_its_nodes_is_refused_with_the_ten_largest(
    system: tuple[Desk, Report], tmp_path: Path
) -> None:
    desk = system[0].copy(tmp_path / "desk")
    desk.edit("release_level = 9", 'release_level = 9\nram_max = "80M"')
    said = refused(sh(*desk.words("--locked", "--offline")), 1, "[image] ram_max allows 83.9 MB", "rootfs.squashfs")
    named = re.findall(r"(\S+) ([0-9.]+) MB(?:,|$)", said.splitlines()[1].partition("unpacked: ")[2])
    sizes = [float(size) for _, size in named]
    assert len(named) == 10 and sizes == sorted(sizes, reverse=True)
    assert {"perl-base", "systemd", "libc6"} < {name for name, _ in named}
    nothing_left(desk.folder, desk.cache)
    desk.edit("80M", "800M")
    assert desk.build().made == set()


# --- hybridized


def test_what_a_hybridize_list_moves_out_is_counted_and_is_a_layer_of_its_own(desk: Desk) -> None:
    with (desk.folder / "r.toml").open("a") as recipe:
        recipe.write('[hybridize]\npaths = ["/usr/share/doc/**", "/usr/share/dpkg/**", "/usr/share/none/**"]\n')
    report = desk.build()
    # The modules and the initrd are others, too: they can mount it.
    assert report.made == {"root file system", "kernel and modules", "stage 2"}
    lines: list[str] = report.told["hybrid"]  # type: ignore[assignment]
    said = dict(line.split(": ", 1) for line in lines)
    saved = r"[1-9]\d* paths stay out of RAM, which saves [0-9.]+ [kM]?B \([0-9.]+ [kM]?B unpacked\)"
    assert re.fullmatch(saved, said["/usr/share/doc/**"]) and re.fullmatch(saved, said["/usr/share/dpkg/**"])
    assert said["/usr/share/none/**"] == "nothing leaves the node"
    layers = unpacked(report.capsule, desk.folder / "parts") / "layers"
    listed = {name: ok("unsquashfs", "-l", layers / f"{name}.squashfs") for name in ("rootfs", "hybrid")}
    assert "Filesystem is exportable via NFS" in ok("unsquashfs", "-s", layers / "hybrid.squashfs")
    assert "/usr/share/doc/dash/copyright" in listed["hybrid"]
    assert "/usr/share/doc/dash/copyright" not in listed["rootfs"] and "/bin/dash" in listed["rootfs"]
    public = built.author_key().with_suffix(".pub")
    shown = ok(PROGRAM, "inspect", report.capsule, "--pubkey", public)
    assert "layers/hybrid.squashfs" in shown and "NOT VERIFIED" not in shown
    assert ok(PROGRAM, "verify", report.capsule, "--pubkey", public).startswith("OK ")
