"""The shipped modules: readable, and their scripts do to a root what they say, again and again."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog import SHIPPED, Catalog, load_module
from provisioner.hostkeys import cluster_key, ensure_cluster_key, files_for, node_dir

MAC = "52:54:00:12:34:56"
SCRIPTS = sorted(SHIPPED.glob("*/*/[0-9][0-9]-*"))


def run_script(root: Path, script: str, data: Path, nodename: str = "n0001.rack") -> None:
    """Run one with busybox's shell and tools only, as stage 1 does."""
    tools = root.parent / "bin"
    if not tools.exists():
        tools.mkdir()
        subprocess.run(["busybox", "--install", "-s", str(tools)], check=True)
    env = {"PATH": str(tools), "NEWROOT": str(root), "NODENAME": nodename, "MODULE_DATA": str(data), "NODEID": MAC}
    subprocess.run(["busybox", "sh", str(SHIPPED / script)], env=env, check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return SitePaths(tmp_path / "config", tmp_path / "state")


@pytest.fixture
def keys(paths: SitePaths, tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    for name, content in files_for(paths, MAC).items():
        (data / name).write_bytes(content)
    return data


def test_the_shipped_modules_are_found_with_their_scripts() -> None:
    modules = {module.name: module for module in Catalog().modules()}
    assert {"hostname", "sshkeys"} <= set(modules)
    for module in modules.values():
        assert module.roles
        for state in module.states:
            assert module.scripts_for(state), f"{module.name} names the state {state} and has no script for it"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(SHIPPED)))
def test_scripts_are_strict_posix_shell(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in script.read_text()
    assert os.access(script, os.X_OK)
    subprocess.run(["shellcheck", "-s", "sh", str(script)], check=True)


def test_hostname_writes_the_first_part_and_makes_the_name_resolve(root: Path, tmp_path: Path) -> None:
    (root / "etc" / "hosts").write_text("127.0.0.1\tlocalhost\n127.0.1.1\tbuilder\n10.0.0.9\tother")
    for _ in range(2):
        run_script(root, "hostname/init/20-hostname", tmp_path)
    assert (root / "etc" / "hostname").read_text() == "n0001\n"
    assert (root / "etc" / "hosts").read_text() == (
        "127.0.0.1\tlocalhost\n10.0.0.9\tother\n127.0.1.1\tn0001.rack n0001\n"
    )
    assert mode(root / "etc" / "hosts") == 0o644


def test_hostname_works_on_a_root_without_hosts_and_a_node_without_cluster(root: Path, tmp_path: Path) -> None:
    run_script(root, "hostname/init/20-hostname", tmp_path, nodename="solo")
    assert (root / "etc" / "hosts").read_text().endswith("127.0.1.1\tsolo\n")
    assert "localhost" in (root / "etc" / "hosts").read_text()


def test_hostname_follows_no_link_out_of_the_root(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (root / "etc" / "hostname").symlink_to(outside)
    run_script(root, "hostname/init/20-hostname", tmp_path)
    assert outside.read_text() == "untouched"
    assert (root / "etc" / "hostname").read_text() == "n0001\n"


def test_sshkeys_replaces_every_host_key_with_the_nodes_own(root: Path, keys: Path) -> None:
    ssh = root / "etc" / "ssh"
    ssh.mkdir()
    (ssh / "ssh_host_rsa_key").write_text("of the image")
    (ssh / "sshd_config").write_text("kept")
    for _ in range(2):
        run_script(root, "sshkeys/init/30-sshkeys", keys)
    assert {p.name: mode(p) for p in ssh.iterdir() if p.name != "sshd_config"} == {
        "ssh_host_ecdsa_key": 0o600,
        "ssh_host_ecdsa_key.pub": 0o644,
        "ssh_host_ed25519_key": 0o600,
        "ssh_host_ed25519_key.pub": 0o644,
    }
    for private in ssh.glob("ssh_host_*_key"):
        assert private.read_bytes() == (keys / private.name).read_bytes()


def test_sshkeys_adds_the_cluster_key_once_and_keeps_the_capsules_own(root: Path, keys: Path) -> None:
    (root / "root").mkdir(mode=0o755)
    (root / "root" / ".ssh").mkdir(mode=0o755)
    authorized = root / "root" / ".ssh" / "authorized_keys"
    authorized.write_text("ssh-ed25519 AAAAadmin admin")
    for _ in range(2):
        run_script(root, "sshkeys/init/30-sshkeys", keys)
    cluster = (keys / "authorized_keys").read_text()
    assert authorized.read_text() == "ssh-ed25519 AAAAadmin admin\n" + cluster
    assert (mode(authorized), mode(authorized.parent)) == (0o600, 0o700)


def test_sshkeys_survives_a_root_without_sshd(tmp_path: Path, keys: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    run_script(bare, "sshkeys/init/30-sshkeys", keys)
    run_script(bare, "sshkeys/init/30-sshkeys", keys)
    assert mode(bare / "etc" / "ssh") == 0o755
    assert mode(bare / "root" / ".ssh" / "authorized_keys") == 0o600


def test_a_nodes_host_keys_are_made_once_and_are_its_own(paths: SitePaths) -> None:
    first = files_for(paths, MAC)
    assert files_for(paths, MAC) == first
    other = files_for(paths, "52:54:00:12:34:57")
    assert first["ssh_host_ed25519_key"] != other["ssh_host_ed25519_key"]
    assert first["authorized_keys"] == other["authorized_keys"]
    assert node_dir(paths, MAC).name == "ssh"
    assert node_dir(paths, MAC).parent.name == "52-54-00-12-34-56"
    assert mode(node_dir(paths, MAC) / "ssh_host_ed25519_key") == 0o600


def test_public_keys_belong_to_their_private_keys(paths: SitePaths) -> None:
    files = files_for(paths, MAC)
    for name in ("ssh_host_ed25519_key", "ssh_host_ecdsa_key"):
        assert load_ssh_public_key(files[name + ".pub"]) == load_ssh_private_key(files[name], None).public_key()


def test_openssh_reads_the_cluster_key(paths: SitePaths) -> None:
    public = ensure_cluster_key(paths)
    if not Path("/usr/bin/ssh-keygen").exists():
        pytest.skip("ssh-keygen is not installed")
    done = subprocess.run(["ssh-keygen", "-y", "-f", cluster_key(paths)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == public.split()[:2]


def test_a_damaged_key_is_named(paths: SitePaths) -> None:
    ensure_cluster_key(paths)
    cluster_key(paths).write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    with pytest.raises(CapsulekitError, match="cluster_ed25519 is damaged"):
        ensure_cluster_key(paths)


GOOD = 'name = "mine"\nversion = "1"\nsummary = "s"\nroles = ["init/all"]\nstates = ["init"]\n'


def module_at(folder: Path, text: str, script: str = "10-x") -> Path:
    (folder / "mine" / "init").mkdir(parents=True)
    (folder / "mine" / "module.toml").write_text(text)
    (folder / "mine" / "init" / script).write_text("#!/bin/sh\n")
    return folder / "mine"


def test_a_script_can_be_optional(tmp_path: Path) -> None:
    module = load_module(module_at(tmp_path, GOOD + 'optional = ["init/10-x"]\n'))
    assert [script.required for script in module.scripts] == [False]
    assert Catalog(tmp_path).module("mine") == module


@pytest.mark.parametrize(
    ("text", "script", "said"),
    [
        ("name = ", "10-x", "is not TOML"),
        (GOOD + 'colour = "red"\n', "10-x", "unknown key colour"),
        (GOOD.replace('"mine"', '"other"'), "10-x", "name must be that of the folder"),
        (GOOD.replace('["init"]', '"init"'), "10-x", "states must be a list"),
        (GOOD.replace('summary = "s"\n', ""), "10-x", "summary must be one line"),
        (GOOD, "x.sh", "two digits"),
        (GOOD + 'optional = ["init/20-y"]\n', "10-x", "not there: init/20-y"),
        (GOOD + 'data = "hostkeys"\n', "10-x", "only shipped modules"),
    ],
)
def test_a_wrong_module_is_named_with_what_is_wrong(tmp_path: Path, text: str, script: str, said: str) -> None:
    with pytest.raises(CapsulekitError, match=said):
        load_module(module_at(tmp_path, text, script))
