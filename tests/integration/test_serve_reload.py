"""``serve reload``, ``serve status`` and ``configure``, on a server that runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from netns import Wire
from serving import command, resolve, serving, set_site, until
from small_site import MAC, make_site

from capsulekit.sitepaths import SitePaths
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry

ADDRESS = "10.77.0.1"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = make_site(tmp_path, interface="eth0", address=f"{ADDRESS}/24")
    (tmp_path / "hosts").write_text("10.77.0.7 login\n")
    set_site(made, hosts_file=str(tmp_path / "hosts"), dns_upstream="")
    return made


def told(net: Wire, name: str) -> set[str]:
    return resolve(net, f"{name}.site.test", ADDRESS)


def test_a_reload_restarts_dnsmasq_only_where_its_main_file_needs_it(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    with serving(net, paths, tmp_path) as server:
        [first] = server.dnsmasq()
        files = [path for path in (paths.state / "netboot").iterdir() if path.is_file()]
        times, said = [path.stat().st_mtime_ns for path in files], server.log.read_text().count("says=")
        done = command(net, paths, "serve", "reload")
        assert times == [path.stat().st_mtime_ns for path in files], "what does not differ is not written"
        assert said == server.log.read_text().count("says="), "nor is dnsmasq disturbed"
        assert (done.returncode, done.stdout) == (0, "The network manager is up to date: dnsmasq unchanged\n"), (
            done.stderr
        )
        assert server.dnsmasq() == [first]

        set_site(paths, range_start="10.77.0.200", range_end="10.77.0.210", kargs="quiet")
        done = command(net, paths, "serve", "reload", "--json")
        assert done.returncode == 0, done.stderr
        [second] = server.dnsmasq()
        assert second != first
        assert net.udhcpc(tmp_path)["ip"].startswith("10.77.0.2")
        (paths.config / "dnsmasq.d").mkdir()
        (paths.config / "dnsmasq.d" / "ntp.conf").write_text("dhcp-option=option:ntp-server,10.77.0.9\n")
        assert "dnsmasq restarted" in command(net, paths, "serve", "reload").stdout
        log = server.log.read_text()
        assert log.count(" reloaded dnsmasq=restarted") == 2
        assert "dnsmasq-died" not in log


def test_a_reload_that_can_not_work_says_why_and_everything_goes_on(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    with serving(net, paths, tmp_path) as server:
        [pid] = server.dnsmasq()
        more = paths.config / "dnsmasq.d"
        more.mkdir()
        (more / "bad.conf").write_text("dhcp-baat=x\n")
        done = command(net, paths, "serve", "reload")
        assert done.returncode == 1
        assert done.stderr.startswith("ERROR: the server goes on as before: dnsmasq refuses its configuration: ")
        assert "bad.conf" in done.stderr
        (more / "bad.conf").unlink()
        (paths.config / "networks.toml").write_text('[[network]]\ninterface = "eth9"\naddress = "10.78.0.1/24"\n')
        done = command(net, paths, "serve", "reload")
        assert "as before: there is no network interface eth9" in done.stderr
        (paths.config / "networks.toml").unlink()
        set_site(paths, http_port=8011)
        done = command(net, paths, "serve", "reload")
        assert "http_port was changed in site.toml, which a running server can't take on" in done.stderr
        assert "Reload: refused: http_port" in command(net, paths, "serve", "status").stdout
        set_site(paths, http_port=8009, policy="nonsense")
        assert command(net, paths, "serve", "reload").returncode == 1
        assert server.dnsmasq() == [pid]
        assert net.udhcpc(tmp_path)["ip"]


def test_a_dnsmasq_that_starts_but_does_not_answer_gives_way_to_the_old_one(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    with serving(net, paths, tmp_path) as server:
        more = paths.config / "dnsmasq.d"
        more.mkdir()
        # Its own test has nothing against it: only a start finds out that this address is not ours.
        (more / "bad.conf").write_text("listen-address=192.0.2.1\n")
        done = command(net, paths, "serve", "reload")
        assert done.returncode == 1, done.stdout
        assert "dnsmasq does not start: failed to create listening socket for 192.0.2.1" in done.stderr
        assert len(server.dnsmasq()) == 1
        (more / "bad.conf").unlink()
        assert command(net, paths, "serve", "reload").returncode == 0
        assert net.udhcpc(tmp_path)["ip"]


def test_status_tells_of_a_crash_and_of_its_end(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    assert command(net, paths, "serve", "status").returncode == 1
    assert "no server runs for this site" in command(net, paths, "serve", "reload").stderr
    with serving(net, paths, tmp_path) as server:

        def status() -> dict[str, dict[str, int]]:
            return json.loads(command(net, paths, "serve", "status", "--json").stdout or "{}")  # type: ignore[no-any-return]

        until(lambda: status())
        text = command(net, paths, "serve", "status").stdout
        assert text.startswith(f"Server: running, process {server.process.pid}, since ")
        assert f"Dnsmasq: running, process {server.dnsmasq()[0]}\n" in text
        assert f"Dnsmasq for names: running, process {server.resolver()[0]}\nDHCP: own, 0 leases\n" in text
        assert "Network: site 10.77.0.0/24 on eth0, 10.77.0.100-10.77.0.110 for new machines\n" in text
        os.kill(server.dnsmasq()[0], signal.SIGKILL)
        os.kill(server.resolver()[0], signal.SIGKILL)
        until(lambda: status()["dnsmasq"]["restarts"] == status()["resolver"]["restarts"] == 1)
        until(lambda: told(net, "login") == {"10.77.0.7"})
        assert "; 1 restart, last died " in command(net, paths, "serve", "status").stdout
        server.process.kill()
        server.process.wait()
        assert command(net, paths, "serve", "status").returncode == 1, "a record without its process counts for nothing"


def test_configure_shows_its_diff_keeps_a_copy_and_has_it_taken_on(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    registry = open_registry(paths)
    registry.add_node(MAC, "n0000", defaults=Defaults())
    registry.close()
    before = (paths.config / "site.toml").read_text()
    with serving(net, paths, tmp_path):
        words = ["configure", "dhcpd", "--range", "10.77.0.50-10.77.0.60"]
        dry = command(net, paths, *words, "--dry-run")
        assert dry.returncode == 0 and '+range_start = "10.77.0.50"' in dry.stdout, dry.stderr
        assert (paths.config / "site.toml").read_text() == before
        assert command(net, paths, *words).returncode == 1, "nobody said yes"
        assert (paths.config / "site.toml").read_text() == before
        done = command(net, paths, *words, "--reload", "-y")
        assert done.returncode == 0, done.stderr
        assert "dnsmasq restarted" in done.stdout
        assert [path.read_text() for path in paths.config.glob("site.toml.*.bak")] == [before]
        assert "nothing to write" in command(net, paths, *words, "-y").stdout
        assert net.udhcpc(tmp_path)["ip"].startswith("10.77.0.5")
        done = command(net, paths, "configure", "hosts", "--first", "10.77.0.7", "-y", "--reload")
        assert done.returncode == 0, done.stderr
        # .7 is login's.
        assert "\n10.77.0.8 n0000" in (tmp_path / "hosts").read_text()
        until(lambda: net.udhcpc(tmp_path).get("ip") == "10.77.0.8")
        assert "nothing to write" in command(net, paths, "configure", "hosts", "-y").stdout
        resolv = tmp_path / "resolv.conf"
        resolv.write_text("search x\nnameserver 10.9.0.1\n")
        words = [
            "configure",
            "dns",
            "--local",
            "--upstream",
            "10.9.0.1",
            "--resolv-conf",
            str(resolv),
            "-y",
            "--reload",
        ]
        done = command(net, paths, *words)
        assert done.returncode == 0, done.stderr
        assert resolv.read_text() == "search x\nnameserver 127.0.0.1\nnameserver 10.9.0.1\n"
        assert resolve(net, "n0000.site.test", "127.0.0.1") == {"10.77.0.8"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["dhcp", "--interface", "eth9"], "there is no network interface eth9"),
        (["dhcp", "--interface", "lo"], "interface lo does not have the address"),
        (["dhcp", "--interface", "eth0\ninterface=lo"], "is not the name of a network interface"),
        (["dhcp", "--range", "10.77.0.5"], "is not START-END"),
        (["dhcp", "--range", "10.77.0.9-10.77.0.5"], "runs backwards"),
        (["dhcp", "--address", "10.77.0.2/24"], "does not have the address 10.77.0.2"),
        (["dns", "--upstream", "ns.example"], "which is no IP address"),
        (["dns", "--domain", "-x-"], "is not a domain name"),
        (["hosts", "--first", "192.0.2.1"], "--first: 192.0.2.1 is no machine's address"),
        (["hosts", "--first", "me"], "--first: 'me' is not an IP address"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    net: Wire, paths: SitePaths, tmp_path: Path, words: list[str], why: str
) -> None:
    registry = open_registry(paths)
    registry.add_node(MAC, "n0000", defaults=Defaults())
    registry.close()
    before = (paths.config / "site.toml").read_text()
    done = command(net, paths, "configure", *words, "-y")
    assert done.returncode in (1, 2) and why in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert (paths.config / "site.toml").read_text() == before
    assert (tmp_path / "hosts").read_text() == "10.77.0.7 login\n"
