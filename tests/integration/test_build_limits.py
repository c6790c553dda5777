"""What a build may be asked, what a recipe may not do, and what a hybridize list moves out."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import built
import pytest
from building import PROGRAM, cold_cache, nothing_left, ok, refused, sh, unpacked
from step_desk import Desk, Report, read

from capsulekit.recipe.load import loads_recipe

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to look into layers"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
]

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
    said = dict(line.split(": ", 1) for line in report.told["hybrid"])
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
