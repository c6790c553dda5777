"""Setting up a site: what it needs, what it makes, and that running it again keeps what is there."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from small_site import stage1_folder

from capsulekit.cli.main import main
from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot.stage1 import installed
from provisioner.registry.defaults import load_defaults
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.registry import open_registry
from provisioner.siteconf import NotInitialised, load_site

FLAGS = {"--interface": "ck0", "--address": "10.0.0.1/16", "--range": "10.0.1.1-10.0.1.250"}
FULL = tuple(word for pair in FLAGS.items() for word in pair)
Init = Callable[..., tuple[int, str]]


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return SitePaths(tmp_path / "etc", tmp_path / "var")


@pytest.fixture
def init(paths: SitePaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Init:
    """Run ``init`` where there is no terminal; gives (exit status, stderr)."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        status = main(["init", *words, "--config-dir", str(paths.config), "--state-dir", str(paths.state)])
        return status, capsys.readouterr().err

    return call


@pytest.mark.parametrize("missing", FLAGS)
def test_without_a_terminal_a_missing_flag_is_named(init: Init, paths: SitePaths, missing: str) -> None:
    status, err = init(*(word for flag, value in FLAGS.items() if flag != missing for word in (flag, value)))
    assert status == 2
    assert f"needs {missing}\n" in err
    assert not paths.config.exists()
    assert not paths.state.exists()


def test_a_first_run_makes_the_site(init: Init, paths: SitePaths) -> None:
    assert init(*FULL, "--policy", "accept", "--default-vnfs", "deb", "--domain", "lab.example") == (0, "")
    site = load_site(paths)
    assert (site.interface, site.ip, str(site.network)) == ("ck0", "10.0.0.1", "10.0.0.0/16")
    assert (site.range_start, site.range_end) == ("10.0.1.1", "10.0.1.250")
    assert (site.policy, site.console, site.domain) == ("accept", "locked", "lab.example")
    assert load_defaults(paths).vnfs == "deb"
    assert open_registry(paths).nodes() == []
    for folder in (paths.config, paths.state, paths.trust, paths.config / "modules"):
        assert folder.stat().st_mode & 0o777 == 0o700
    text = (paths.config / "site.toml").read_text()
    assert text.count("\n# ") >= 14


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_running_it_again_changes_nothing(init: Init, paths: SitePaths) -> None:
    init(*FULL)
    before = tree(paths.config)
    assert any("pki" in name for name in before)
    assert init() == (0, "")
    assert init(*FULL) == (0, "")
    assert tree(paths.config) == before


def test_a_later_run_changes_only_what_its_flags_say(init: Init, paths: SitePaths) -> None:
    init(*FULL)
    conf = paths.config / "site.toml"
    conf.write_text(conf.read_text().replace('name = "cluster"', 'name = "mine"  # kept') + "# at the end\n")
    (paths.config / "defaults.toml").write_text('# my own\ngroup = "blue"\n')
    main(["node", "add", "52:54:00:00:00:01", "-q", "--config-dir", str(paths.config), "--state-dir", str(paths.state)])
    before = conf.read_text()
    done = init("--kargs", 'quiet x="1"', "--default-vnfs", "deb")
    assert done == (0, "WARNING: no capsule 'deb' is installed yet\n")
    site = load_site(paths)
    assert (site.name, site.kargs, site.interface) == ("mine", 'quiet x="1"', "ck0")
    assert [line for line in conf.read_text().splitlines() if not line.startswith("kargs")] == [
        line for line in before.splitlines() if not line.startswith("kargs")
    ]
    assert (paths.config / "defaults.toml").read_text().startswith('# my own\ngroup = "blue"\n')
    assert load_defaults(paths).vnfs == "deb"
    assert len(open_registry(paths).nodes()) == 1


def test_a_later_run_says_what_it_changed(init: Init, paths: SitePaths, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        folders = ("--config-dir", str(paths.config), "--state-dir", str(paths.state))
        assert main(["init", *words, *folders]) == 0
        return capsys.readouterr().out.splitlines()[0].split(": ")[0]

    assert said(*FULL) == "Site 'cluster' is ready"
    assert said(*FULL) == "Site 'cluster' is up to date"
    assert said("--policy", "accept", "--default-vnfs", "deb") == "Site 'cluster' has changed (policy, default vnfs)"
    assert said("--policy", "accept", "--default-vnfs", "deb") == "Site 'cluster' is up to date"


def test_the_default_capsule_may_be_named_in_short(init: Init, paths: SitePaths) -> None:
    init(*FULL)
    registry = open_registry(paths)
    registry.add_capsule(InstalledCapsule("deb-1.0.amd64", "ab" * 32, "00", "RWQ", "1.0", "amd64", 1.0))
    assert init("--default-vnfs", "deb") == (0, "")
    assert load_defaults(paths).vnfs == "deb-1.0.amd64"
    registry.add_capsule(InstalledCapsule("deb-2.0.amd64", "cd" * 32, "00", "RWQ", "2.0", "amd64", 1.0))
    status, err = init("--default-vnfs", "deb")
    assert status == 1 and "deb-1.0.amd64 or deb-2.0.amd64" in err
    assert load_defaults(paths).vnfs == "deb-1.0.amd64"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--interface", "eth0/1"),
        ("--interface", "a-name-too-long-for-linux"),
        ("--address", "10.0.0.1"),
        ("--address", "10.0.0.0/16"),
        ("--address", "10.0.0.1/32"),
        ("--address", "fe80::1/64"),
        ("--range", "10.0.1.9-10.0.1.1"),
        ("--range", "10.0.0.0-10.0.1.1"),
        ("--range", "10.0.0.1-10.0.1.1"),
        ("--range", "10.1.0.1-10.1.0.9"),
        ("--range", "10.0.1.1-x"),
        ("--domain", "-bad"),
        ("--kargs", "a\nb"),
    ],
)
def test_values_that_cannot_work_make_nothing(init: Init, paths: SitePaths, flag: str, value: str) -> None:
    assert init(*FULL, flag, value)[0] == 1
    assert not paths.config.exists()


SIX = ("--interface", "ck0", "--address", "fd00:77::1/64", "--range", "fd00:77::100-fd00:77::1ff")


def test_a_site_may_be_one_of_ipv6(init: Init, paths: SitePaths) -> None:
    assert init(*SIX) == (0, "")
    site = load_site(paths)
    assert (site.six, site.ip, site.host, str(site.network)) == (True, "fd00:77::1", "[fd00:77::1]", "fd00:77::/64")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--address", "fd00:77::1"),
        ("--address", "fd00:77::1%ck0/64"),
        ("--range", "fd00:77::100%ck0-fd00:77::1ff"),
        ("--address", "fd00:77::1/48"),
        ("--address", "fe80::1/64"),
        ("--address", "fd00:77::/64"),
        ("--address", "fd00:77::110/64"),
        ("--address", "10.0.0.1/16"),
        ("--range", "10.0.1.1-10.0.1.9"),
        ("--range", "fd00:77::9-fd00:77::2"),
        ("--range", "fd00:78::2-fd00:78::9"),
    ],
)
def test_ipv6_values_that_cannot_work_make_nothing(init: Init, paths: SitePaths, flag: str, value: str) -> None:
    assert init(*SIX, flag, value)[0] == 1
    assert not paths.config.exists()


def test_usage_errors_exit_2(init: Init, paths: SitePaths) -> None:
    assert init(*FULL, "--range", "10.0.1.1")[0] == 2
    assert init(*FULL, "--policy", "maybe")[0] == 2
    assert not paths.config.exists()


def test_stage_1_is_copied_and_replaced_whole(init: Init, paths: SitePaths, tmp_path: Path) -> None:
    source = stage1_folder(tmp_path / "built")
    assert init(*FULL, "--stage1", str(source))[0] == 0
    (source / "vmlinuz").write_bytes(b"newer")
    assert init("--stage1", str(source))[0] == 0
    copied = {f.name: f.read_bytes() for f in (paths.state / "stage1" / "amd64").iterdir()}
    assert copied == {f.name: f.read_bytes() for f in source.iterdir()}
    # The older one has gone: the link and the folder that it names are all there is.
    assert len(list((paths.state / "stage1").iterdir())) == 2


def test_each_architecture_has_a_stage_1_of_its_own(init: Init, paths: SitePaths, tmp_path: Path) -> None:
    new, old = (stage1_folder(tmp_path / arch, arch, arch) for arch in ("amd64", "i386"))
    assert init(*FULL, "--stage1", str(new), "--stage1", str(old))[0] == 0
    assert installed(paths) == ("amd64", "i386")
    for arch in ("amd64", "i386"):
        assert (paths.state / "stage1" / arch / "vmlinuz").read_text() == f"kernel of {arch}"
    # One alone leaves the other as it is.
    (old / "vmlinuz").write_text("newer")
    assert init("--stage1", str(old))[0] == 0
    assert (paths.state / "stage1" / "amd64" / "vmlinuz").read_text() == "kernel of amd64"
    assert (paths.state / "stage1" / "i386" / "vmlinuz").read_text() == "newer"


def test_two_for_one_architecture_are_refused(init: Init, paths: SitePaths, tmp_path: Path) -> None:
    one, two = (stage1_folder(tmp_path / name) for name in ("one", "two"))
    status, err = init(*FULL, "--stage1", str(one), "--stage1", str(two))
    assert status == 1
    assert f"{one} and {two} are both a stage 1 for amd64" in err
    assert not paths.config.exists()


@pytest.mark.parametrize("name", ["vmlinuz", "stage1.img", "stage1.json"])
def test_a_folder_that_lacks_a_file_of_stage_1_is_refused(
    init: Init, paths: SitePaths, tmp_path: Path, name: str
) -> None:
    source = stage1_folder(tmp_path / "built")
    (source / name).unlink()
    status, err = init(*FULL, "--stage1", str(source))
    assert status == 1
    assert f"{name} is missing\n" in err
    assert f"capsulekit stage1 build -o {source}, then: capsulekit init --stage1 {source}" in err
    assert not paths.config.exists()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"arch": "amd64"}',
        b'{"format": 2, "arch": "amd64"}',
        b'{"format": 1}',
        b'{"format": 1, "arch": "../etc"}',
        b'{"format": 1, "arch": ["amd64"]}',
        b'{"format": 1, "arch": "riscv64"}',
        b" " * (5 << 20),
    ],
)
def test_a_record_that_is_none_is_refused(init: Init, paths: SitePaths, tmp_path: Path, record: bytes) -> None:
    source = stage1_folder(tmp_path / "built")
    (source / "stage1.json").write_bytes(record)
    status, err = init(*FULL, "--stage1", str(source))
    assert status == 1
    assert f"{source}/stage1.json is not the record of a stage 1: " in err
    assert "capsulekit stage1 build" in err
    assert not paths.config.exists()


def test_what_a_killed_init_left_of_a_stage_1_goes_with_the_next(init: Init, paths: SitePaths, tmp_path: Path) -> None:
    source = stage1_folder(tmp_path / "built")
    init(*FULL, "--stage1", str(source))
    half = paths.state / "stage1" / ".amd64-killed"
    half.mkdir()
    (half / "vmlinuz").write_bytes(b"ker")
    (paths.state / "stage1" / ".amd64-other.link").symlink_to(half)
    assert init("--stage1", str(source))[0] == 0
    left = {f.name for f in (paths.state / "stage1").iterdir()}
    assert len(left) == 2 and "amd64" in left and not any("killed" in name or "other" in name for name in left)


def test_a_hand_edited_mistake_is_named(init: Init, paths: SitePaths) -> None:
    init(*FULL)
    conf = paths.config / "site.toml"
    good = conf.read_text()
    for old, new, named in (
        ('policy = "auto"', 'policy = "yes"', "policy"),
        ("http_port = 8009", 'http_port = "8009"', "http_port"),
        ('domain = "', 'domian = "', "domian"),
        ("http_port = 8009", "http_port = ", "site.toml"),
    ):
        conf.write_text(good.replace(old, new))
        with pytest.raises(CapsulekitError, match=named):
            load_site(paths)


def test_a_site_without_its_registry_counts_as_not_initialised(init: Init, paths: SitePaths) -> None:
    with pytest.raises(NotInitialised):
        load_site(paths)
    init(*FULL)
    (paths.state / "registry.db").unlink()
    with pytest.raises(NotInitialised):
        open_registry(paths)


def test_the_registry_may_lie_elsewhere(init: Init, paths: SitePaths, tmp_path: Path) -> None:
    paths.config.mkdir()
    where = tmp_path / "local disk" / "nodes.db"
    (paths.config / "site.toml").write_text(f'registry = "{where}"\n')
    assert init(*FULL)[0] == 0
    open_registry(paths).close()
    assert where.exists()
    assert not (paths.state / "registry.db").exists()


def at_a_terminal(paths: SitePaths, *words: str) -> pexpect.spawn:
    """The command on a terminal of its own, to be answered."""
    folders = {"CAPSULEKIT_CONFIG_DIR": str(paths.config), "CAPSULEKIT_STATE_DIR": str(paths.state)}
    program = ["-c", "from capsulekit.cli.main import entry; entry()", *words]
    return pexpect.spawn(sys.executable, program, env=os.environ | folders, timeout=30, encoding="utf-8")


def test_at_a_terminal_it_asks_for_what_is_missing(paths: SitePaths) -> None:
    with at_a_terminal(paths, "node", "list") as child:
        child.expect(r"never initialised.*\[yes/no\]> ")
        child.sendline("yes")
        child.expect("interface")
        child.sendline("ck0")
        child.expect("address")
        child.sendline("10.0.0.1/16")
        child.expect("START-END")
        child.sendline("10.0.1.1-10.0.1.9")
        child.expect("Domain")
        child.sendline("")
        child.expect("NFS")
        child.sendline("n")
        child.expect("web server")
        child.sendline("n")
        child.expect("is ready")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    assert load_site(paths).interface == "ck0"


def test_end_of_input_at_a_question_makes_nothing(paths: SitePaths) -> None:
    with at_a_terminal(paths, "init", "--interface", "ck0") as child:
        child.expect("address")
        child.sendeof()
        child.expect("nothing was changed")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 1
    assert not paths.config.exists()
