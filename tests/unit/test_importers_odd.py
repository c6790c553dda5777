"""Importers and what real files hold besides the plain case: aliases, logs, hidden folders, links, names twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from capsulekit_cli import Done, cli

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.importers import importer, kinds
from provisioner.importers._found import Found
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.defaults import load_defaults
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.registry import open_registry

MAC = "00:16:3e:00:00:0{}"


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = SitePaths(tmp_path / "etc", tmp_path / "var")
    init_site(made, InitRequest("ck0", "10.0.0.1/16", "10.0.252.1-10.0.255.254", "cluster.example"))
    return made


def run(paths: SitePaths, *words: str | Path) -> Done:
    return cli(*words, "--config-dir", paths.config, "--state-dir", paths.state)


def names(paths: SitePaths) -> list[str]:
    registry = open_registry(paths)
    try:
        return [node.hostname for node in registry.nodes()]
    finally:
        registry.close()


def read(tmp_path: Path, kind: str, text: str, name: str = "source") -> Found:
    source = tmp_path / name
    source.write_bytes(text.encode())
    return importer(kind).read(source)


def said(found: Found) -> dict[str, dict[str, str]]:
    """Name → settings."""
    return {machine.name: dict(machine.settings) for machine in found.machines}


def refusal(tmp_path: Path, kind: str, text: str) -> str:
    with pytest.raises(CapsulekitError) as refused:
        read(tmp_path, kind, text)
    return "\n".join((refused.value.message, *refused.value.details, refused.value.hint or ""))


# --- any text file


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ethers", "# list\n\n00-16-3E-00-00-01\tn1 # first\n"),
        ("csv", "MAC,Name\n# list\n\n00-16-3E-00-00-01,n1\n"),
        ("isc-dhcpd", "group { # } {\nhost n1 { hardware\nethernet 00-16-3E-00-00-01 # x\n; } }\n"),
        ("warewulf", "nodes: # all\n  n1:\n    network devices: {default: {hwaddr: 00-16-3E-00-00-01}}\n"),
        ("warewulf", "# list\n[n1] # first\nhwaddr = 00-16-3E-00-00-01\n"),
        ("dnsmasq-leases", "0 00:16:3E:00:00:01 10.0.1.1 n1 *\n"),
    ],
)
def test_line_ends_byte_order_marks_comments_and_dashes_are_all_the_same(
    tmp_path: Path, kind: str, text: str, end: str, mark: str
) -> None:
    (machine,) = read(tmp_path, kind, mark + text.replace("\n", end)).machines
    assert (machine.mac, machine.name) == ("00:16:3E:00:00:01", "n1")


@pytest.mark.parametrize("kind", kinds())
def test_a_link_that_leads_nowhere_is_said_to_be_one(tmp_path: Path, kind: str) -> None:
    loop = tmp_path / ("ethers" if kind == "perceus" else "loop")
    loop.symlink_to(loop)
    with pytest.raises(CapsulekitError, match=r"is a link that leads nowhere"):
        importer(kind).read(loop)


def test_what_may_not_be_read_is_refused_with_the_way_out(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "ethers"
    source.write_text(f"{MAC.format(1)} n1\n")
    # Root may read everything: what os.access and open say to others is put in their place.
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    done = run(paths, "import", "ethers", source)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"ERROR: Permission denied: {source}\n       try it as root\n"


# --- ISC dhcpd


def test_a_lease_file_is_a_log_in_which_the_last_word_counts(tmp_path: Path) -> None:
    """dhcpd.leases(5): hosts made while the server ran stand there again for each change, deleted ones as such."""
    found = read(
        tmp_path,
        "isc-dhcpd",
        'lease 10.0.0.9 { hardware ethernet 00:16:3e:00:00:09; uid "\\001\\"RT"; client-hostname "x;y{"; }\n'
        f"host h1 {{ dynamic; hardware ethernet {MAC.format(1)}; }}\n"
        f"host h2 {{ dynamic; hardware ethernet {MAC.format(2)}; }}\n"
        f"host h2 {{ dynamic; hardware ethernet {MAC.format(3)}; fixed-address 10.0.1.2; }}\n"
        "host h1 { dynamic; deleted; }\n",
    )
    assert [(one.name, one.mac[-1], one.settings) for one in found.machines] == [
        ("h2", "3", (("address", "10.0.1.2"),))
    ]


def test_a_name_declared_twice_in_a_configuration_stays_a_conflict(paths: SitePaths, tmp_path: Path) -> None:
    source = tmp_path / "dhcpd.conf"
    source.write_text("".join(f"host n1 {{ hardware ethernet {MAC.format(i)}; }}\n" for i in (1, 2)))
    done = run(paths, "import", "isc-dhcpd", source)
    assert done.status == 1 and f"{source}:2: the name n1 of" in done.err
    assert names(paths) == []


# --- hosts


def test_names_in_a_hosts_file_that_no_node_can_have_are_left_out(paths: SitePaths, tmp_path: Path) -> None:
    run(paths, "node", "add", MAC.format(1), "n1")
    source = tmp_path / "hosts"
    source.write_text("10.0.1.9 my_printer printer.\n255.255.255.255 broadcasthost\n10.0.1.1 n1\n")
    done = run(paths, "import", "hosts", source)
    assert done.status == 0 and "set n1 address 10.0.1.1" in done.out
    assert f"WARNING: {source}:1: 'my_printer' can be no node's name: left out\n" in done.err


def test_two_addresses_for_one_node_are_a_conflict_with_file_and_line(paths: SitePaths, tmp_path: Path) -> None:
    run(paths, "node", "add", MAC.format(1), "n1")
    source = tmp_path / "hosts"
    source.write_text("10.0.1.1 n1\n10.0.1.2 n1\n")
    done = run(paths, "import", "hosts", source)
    assert (done.status, done.out) == (1, "")
    assert f"  {source}:2: n1 would have address '10.0.1.2' and '10.0.1.1'\n" in done.err
    assert "Address=10" not in run(paths, "node", "show").out


# --- Warewulf 4


def card(number: int) -> str:
    return f"{{default: {{hwaddr: '{MAC.format(number)}'}}}}"


def test_what_an_alias_or_a_merge_brings_is_taken(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "warewulf",
        "x: &kernel {args: [quiet, nosmt]}\n"
        "nodeprofiles:\n  gpu: {kernel: {<<: *kernel, version: '5'}}\n"
        "nodes:\n"
        f"  n1: &n1\n    cluster name: c1\n    profiles: [gpu]\n    network devices: {card(1)}\n"
        f"  n2:\n    <<: *n1\n    comment: second\n    network devices: {card(2)}\n"
        f"  n3:\n    <<: [*n1]\n    profiles: ~\n    network devices: {card(3)}\n"
        "  n4: ~\n  n5: null\n  n6:\n",
    )
    assert said(found) == {
        "n1.c1": {"groupname": "gpu", "kargs": "quiet nosmt"},
        "n2.c1": {"groupname": "gpu", "kargs": "quiet nosmt", "desc": "second"},
        "n3.c1": {},
    }
    assert len(found.notes) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nodes:\n  a: {}\n  b: {}\n  a: {}\n", ":4: 'a' stands there twice"),
        ("nodes:\n  a: &x\n    k: *x\n", ":2: an alias stands within what it names"),
        ("nodes: &x\n  a: *x\n", ":1: an alias stands within what it names"),
        ("nodes:\n  a: {<<: text}\n", ":2: a table is expected there"),
        ('nodes:\n  a: "x\n', "/source, line 2, column 6"),
        (f"nodes:\n  a: {{comment: [x], network devices: {card(1)}}}\n", "node a: comment is not a text"),
    ],
)
def test_a_nodes_conf_that_would_be_read_wrongly_is_refused_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    assert why in refusal(tmp_path, "warewulf", text)


def test_a_text_that_is_a_bomb_of_aliases_is_refused_in_no_time(tmp_path: Path) -> None:
    lines = ["x0: &x0 [lol]", *(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12))]
    for place in ("comment: *x11", "kernel: {args: *x11}", "image name: *x11", "primary network: *x11"):
        text = "\n".join([*lines, "nodes:", f"  n0: {{{place}, network devices: {card(1)}}}", ""])
        assert "is not a text" in refusal(tmp_path, "warewulf", text)


def test_profiles_that_name_each_other_many_times_are_read_in_no_time(tmp_path: Path) -> None:
    profiles = [f"  p{n}: {{profiles: [{', '.join([f'p{n + 1}'] * 50)}]}}" for n in range(12)]
    node = f"  n0: {{profiles: [p0], network devices: {card(1)}}}"
    text = "\n".join(["nodeprofiles:", *profiles, "  p12: {}", "nodes:", node, ""])
    assert said(read(tmp_path, "warewulf", text)) == {"n0": {"groupname": "p0"}}


# --- Warewulf 2


def test_hidden_files_and_folders_of_a_version_control_are_no_nodes(tmp_path: Path) -> None:
    folder = tmp_path / "nodes" / "compute"
    folder.mkdir(parents=True)
    (folder / "n1").write_text(f"hwaddr = {MAC.format(1)}\n")
    (folder / ".svn").mkdir()
    (folder / ".svn" / "entries").write_text("12\n")
    (folder / "up").symlink_to(tmp_path)
    assert said(importer("warewulf").read(tmp_path)) == {"n1": {"groupname": "compute"}}


# --- Perceus


def test_defaults_that_cannot_be_written_leave_no_node_behind(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "perceus"
    source.mkdir()
    (source / "ethers").write_text(f"{MAC.format(1)} n1\n")
    (source / "defaults.conf").write_text("Node Name = c####\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "defaults.toml")

    # A full disk cannot be made here without mounting one.
    monkeypatch.setattr("provisioner.flattoml.update_flat", full)
    assert run(paths, "import", "perceus", source).status == 1
    assert names(paths) == []
    monkeypatch.undo()
    assert run(paths, "import", "perceus", source).status == 0
    assert names(paths) == ["n1"]


def test_defaults_that_cannot_be_are_said_to_be_the_sources(paths: SitePaths, tmp_path: Path) -> None:
    source = tmp_path / "defaults.conf"
    source.write_text("Node Name = node\n")
    done = run(paths, "import", "perceus", source)
    assert (done.status, len(done.err.splitlines())) == (1, 1)
    assert done.err.startswith("ERROR: the source's defaults: node name template 'node' needs one run of #")


def test_a_default_capsule_that_is_not_here_is_said_and_taken_by_a_later_run(paths: SitePaths, tmp_path: Path) -> None:
    source = tmp_path / "defaults.conf"
    source.write_text("Vnfs Name = centos-5\nGroup Name = blue\n")
    first = run(paths, "import", "perceus", source)
    assert first.status == 0 and "capsule 'centos-5' is not installed: left out" in first.err
    assert (load_defaults(paths).vnfs, load_defaults(paths).group) == ("", "blue")
    registry = open_registry(paths)
    registry.add_capsule(InstalledCapsule("centos-5-1.0.amd64", "ab" * 32, "00", "RWQ", "1.0", "amd64", 1.0))
    registry.close()
    assert run(paths, "import", "perceus", source).status == 0
    assert load_defaults(paths).vnfs == "centos-5-1.0.amd64"
    assert run(paths, "import", "perceus", source).out == "0 added, 0 changed, 0 as they were\n"
