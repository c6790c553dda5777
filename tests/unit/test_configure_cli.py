"""``capsulekit configure``: nfs, web servers, systemd, SSH keys and the registry's place."""

from __future__ import annotations

import configparser
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from capsulekit_cli import Done, cli
from databases import PgServer

from capsulekit.sitepaths import SitePaths
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.registry import open_registry
from provisioner.services import web
from provisioner.siteconf import load_site


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = SitePaths(tmp_path / "etc site", tmp_path / "var")
    init_site(made, InitRequest("ck0", "10.0.0.1/16", "10.0.252.1-10.0.255.254"))
    return made


def run(paths: SitePaths, *words: str | Path) -> Done:
    return cli("configure", *words, "--config-dir", paths.config, "--state-dir", paths.state)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


WRITERS = [["nfs"], ["nfs", "--export", "/home:rw"], ["nginx"], ["apache"], ["systemd"]]


@pytest.mark.parametrize("words", WRITERS)
def test_it_shows_the_diff_asks_and_is_idempotent(
    paths: SitePaths, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    dry = run(paths, *words, "--file", target, "--dry-run")
    assert dry.status == 0 and f"+++ {target}" in dry.out and not target.exists()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    asked = run(paths, *words, "--file", target)
    assert asked.status == 1 and "Write this file? [yes/no]>" in asked.err and not target.exists()
    assert run(paths, *words, "--file", target, "-n").status == 1 and not target.exists()
    assert run(paths, *words, "--file", target, "-y").status == 0
    before = files(tmp_path)
    again = run(paths, *words, "--file", target)
    assert again.status == 0 and "Everything is as it should be" in again.out
    assert files(tmp_path) == before


@pytest.mark.parametrize("words", WRITERS)
def test_what_was_there_is_kept(paths: SitePaths, tmp_path: Path, words: list[str]) -> None:
    target = tmp_path / "target"
    target.write_text("# of somebody else\n")
    assert run(paths, *words, "--file", target, "-y").status == 0
    kept = list(tmp_path.glob("target.*.bak"))
    assert [f.read_text() for f in kept] == ["# of somebody else\n"]
    assert ("of somebody else" in target.read_text()) is (words[0] == "nfs")


def test_nfs_exports_what_was_asked_for_to_the_nodes_alone(paths: SitePaths, tmp_path: Path) -> None:
    target = tmp_path / "exports"
    run(paths, "nfs", "--file", target, "--export", "/home:rw", "--export", "/opt", "-y")
    assert target.read_text().splitlines()[1:-1] == [
        f"{paths.state}/nfs 10.0.0.0/16(ro,no_root_squash,no_subtree_check,async)",
        "/home 10.0.0.0/16(rw,no_root_squash,no_subtree_check,sync)",
        "/opt 10.0.0.0/16(ro,no_root_squash,no_subtree_check,async)",
    ]
    assert (paths.state / "nfs").is_dir()
    run(paths, "nfs", "--file", target, "-y")
    assert "/home" not in target.read_text()


@pytest.mark.parametrize(
    ("export", "status"),
    [("home", 2), ("/home:rx", 2), ("/home:", 2), ("/a b", 2), ("/a#b", 2), ('/a"', 2), ("/a\nb", 2), ("/srv", 1)],
)
def test_a_folder_that_cannot_be_exported_is_refused(
    paths: SitePaths, tmp_path: Path, export: str, status: int
) -> None:
    target = tmp_path / "exports"
    target.write_text("/srv *(ro)\n")
    done = run(paths, "nfs", "--file", target, "--export", export, "-y")
    assert done.status == status and done.err.startswith("ERROR: ")
    assert target.read_text() == "/srv *(ro)\n"


@pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin"), reason="needs nginx")
def test_nginx_takes_its_file(paths: SitePaths, tmp_path: Path) -> None:
    target = tmp_path / "ck.conf"
    server = web.Server("nginx", {tmp_path: tmp_path / "cache"}, "nginx", "")
    change = web.changes(load_site(paths), server, 8080, target)[0]
    assert change is not None
    target.write_bytes(change.new.replace(b"10.0.0.1:8080", b"127.0.0.1:18080"))
    main = tmp_path / "nginx.conf"
    main.write_text(f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{ include {target}; }}\n")
    done = subprocess.run(["nginx", "-t", "-c", main], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_port_of_our_own_is_not_given_to_a_web_server(paths: SitePaths, tmp_path: Path) -> None:
    done = run(paths, "nginx", "--port", "8009", "--file", tmp_path / "x", "-y")
    assert done.status == 2 and "capsulekit serve itself" in done.err


def test_http_is_whichever_server_is_there(tmp_path: Path) -> None:
    from capsulekit.errors import CapsulekitError

    nginx, apache = (next(iter(web.SERVERS[name].places)) for name in ("nginx", "apache"))
    assert web.installed(lambda path: path == nginx).name == "nginx"
    assert web.installed(lambda path: path == apache).name == "apache"
    for there, why in ((set[Path](), "no web server"), ({nginx, apache}, "both nginx and Apache")):
        with pytest.raises(CapsulekitError, match=why):
            web.installed(lambda path, there=there: path in there)


def test_the_unit_starts_this_very_program_and_gives_it_few_rights(paths: SitePaths, tmp_path: Path) -> None:
    target = tmp_path / "capsulekit.service"
    assert run(paths, "systemd", "--file", target, "-y").status == 0
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(target)
    service = unit["Service"]
    assert service["Type"] == "notify"
    # The folder has a blank in its name: systemd splits what is not quoted.
    assert service["ExecStart"].endswith(f'/capsulekit --config-dir "{paths.config}" --state-dir {paths.state} serve')
    assert Path(service["ExecStart"].split()[0]).is_file()
    assert service["ReadWritePaths"] == f'"{paths.config}" {paths.state}'
    assert service["ProtectSystem"] == "strict" and service["NoNewPrivileges"] == "yes"
    assert "CAP_SYS_ADMIN" not in service["CapabilityBoundingSet"]


def test_the_cluster_s_ssh_keys_are_made_once_and_anew_only_when_told(
    paths: SitePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = paths.config / "ssh" / "cluster_ed25519"
    assert run(paths, "sshkeys", "--dry-run").status == 0 and not key.exists()
    assert run(paths, "sshkeys").status == 0
    first = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert "kept" in run(paths, "sshkeys").out
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    refused = run(paths, "sshkeys", "--new")
    assert refused.status == 1 and "WARNING: nodes that run now know only the old key (SHA256:" in refused.err
    assert key.read_bytes() == first
    done = run(paths, "sshkeys", "--new", "-y")
    assert done.status == 0 and key.read_bytes() != first
    assert [f.read_bytes() for f in key.parent.glob("*.bak")] == [first]
    assert key.with_name(key.name + ".pub").read_text().startswith("ssh-ed25519 ")


def test_ssh_keygen_agrees_with_the_fingerprint(paths: SitePaths) -> None:
    out = run(paths, "sshkeys").out
    pub = paths.config / "ssh" / "cluster_ed25519.pub"
    said = subprocess.run(["ssh-keygen", "-lf", pub], capture_output=True, text=True, check=True, timeout=30).stdout
    assert f"({said.split()[1]})" in out


def test_json_is_one_document_whatever_else_there_would_be_to_say(paths: SitePaths, tmp_path: Path) -> None:
    for words in (["hosts", "--file", tmp_path / "hosts"], ["database", tmp_path / "nodes.db"]):
        json.loads(run(paths, *words, "-y", "--json").out)


def names(paths: SitePaths) -> list[str]:
    registry = open_registry(paths)
    try:
        return [node.hostname for node in registry.nodes()]
    finally:
        registry.close()


def test_the_registry_moves_with_all_that_is_in_it(paths: SitePaths, tmp_path: Path) -> None:
    registry = open_registry(paths)
    from provisioner.registry.defaults import Defaults

    registry.add_nodes([(f"52:54:00:00:00:{n:02x}", None) for n in range(5)], defaults=Defaults())
    registry.close()
    place = tmp_path / "elsewhere" / "nodes.db"
    place.parent.mkdir()
    dry = run(paths, "database", str(place), "--dry-run")
    assert dry.status == 0 and "5 nodes" in dry.out and load_site(paths).registry == ""
    assert run(paths, "database", str(place), "-n").status == 1
    assert not place.exists(), "made before anybody agreed"
    assert json.loads(run(paths, "database", str(place), "--dry-run", "--json").out)["rows"]["nodes"] == 5
    nowhere = run(paths, "database", str(tmp_path / "none" / "nodes.db"), "-y")
    assert nowhere.status == 1 and "there is no folder" in nowhere.err and not (tmp_path / "none").exists()
    done = run(paths, "database", str(place), "-y")
    assert done.status == 0, done.err
    assert load_site(paths).registry == str(place)
    assert names(paths) == [f"n{n:04}" for n in range(5)]
    assert (paths.state / "registry.db").exists() and len(list(paths.state.glob("registry.*.backup"))) == 1
    assert "nothing to do" in run(paths, "database", str(place)).out
    # Back over the old one: only when told.
    cli("node", "add", "52:54:00:00:00:77", "-q", "--config-dir", paths.config, "--state-dir", paths.state)
    back = str(paths.state / "registry.db")
    refused = run(paths, "database", back, "-y")
    assert refused.status == 1 and "--replace" in refused.err and len(names(paths)) == 6
    assert run(paths, "database", back, "-y", "--replace").status == 0
    assert len(names(paths)) == 6 and load_site(paths).registry == back


@pytest.mark.parametrize("place", ["nodes.db", "mysql://a/b", "postgresql://u:secret@h/d", "postgresql://", ""])
def test_a_place_that_cannot_be_is_refused(paths: SitePaths, place: str) -> None:
    before = files(paths.config)
    done = run(paths, "database", place, "-y")
    assert done.status in (1, 2) and "secret" not in done.err and "bug" not in done.err
    assert files(paths.config) == before


def test_without_a_site_nothing_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for words in (*WRITERS, ["sshkeys"], ["database", "/tmp/x"]):
        done = run(SitePaths(tmp_path / "a", tmp_path / "b"), *words, "-y")
        assert done.status == 1 and "never initialised" in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_registry_moves_to_postgresql_and_back(paths: SitePaths, postgres: PgServer, tmp_path: Path) -> None:
    cli("node", "add", "52:54:00:00:00:01", "-q", "--config-dir", paths.config, "--state-dir", paths.state)
    with postgres.database() as address:
        done = run(paths, "database", address, "-y")
        assert done.status == 0, done.err
        assert load_site(paths).registry == address
        assert names(paths) == ["n0000"]
        cli("node", "add", "52:54:00:00:00:02", "-q", "--config-dir", paths.config, "--state-dir", paths.state)
        back = run(paths, "database", str(tmp_path / "back.db"), "-y")
        assert back.status == 0, back.err
    assert names(paths) == ["n0000", "n0001"]
