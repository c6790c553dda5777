"""The manual's transcripts of `perceus node`, typed as they stand there; columns and all."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from perceus_shell import Shell, shell_of

from provisioner.registry.defaults import Defaults

MACS = ("00:13:72:FB:5B:07", "00:13:72:FB:5F:B4", "00:13:72:FB:5E:C3")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return shell_of(tmp_path)


@pytest.fixture
def manual(shell: Shell) -> Shell:
    """The three nodes of the manual's transcripts, and one more."""
    shell.capsules("caos-3.0-stateless.26.x86_64", "centos-4.4-stateless.31.x86_64", "centos-5.0-stateless.10.x86_64")
    machines = [(mac, None) for mac in (*MACS, "00:13:72:FB:5E:C4")]
    shell.registry.add_nodes(machines, defaults=Defaults(group="esd01"))
    for number, vnfs in enumerate(["caos-3.0-stateless.26", "centos-4.4-stateless.31", "centos-5.0-stateless.10"]):
        shell.set("vnfs", f"{vnfs}.x86_64", f"n000{number}")
    return shell


def test_nodes_are_added_from_a_list_in_its_order(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mac-addresses.txt").write_text("\n".join(MACS) + "\n")
    shell(f"cd {tmp_path}; cat mac-addresses.txt | while read i; do perceus node add $i; done")
    assert shell("perceus node list") == "n0000\nn0001\nn0002\n"
    assert shell("perceus -i node list") == "".join(f"{mac}\n" for mac in MACS)


def test_a_node_may_be_added_under_a_name(shell: Shell) -> None:
    shell("perceus node add 00:13:72:FB:5B:07 login.front")
    assert shell("perceus node list") == "login\n"


def test_a_new_name_fills_the_gaps_and_then_goes_over(shell: Shell) -> None:
    shell.add(*(f"n{number:04}" for number in (*range(9), 11)))
    for mac in ("02:00:00:00:00:64", "02:00:00:00:00:65", "02:00:00:00:00:66"):
        shell(f"perceus node add {mac}")
    assert shell("perceus node list").split()[-4:] == ["n0009", "n0010", "n0011", "n0012"]
    shown = shell("perceus -i node show 02:00:00:00:00:6[4-6] | grep HostName")
    assert shown == "n0009:HostName=n0009\nn0010:HostName=n0010\nn0012:HostName=n0012\n"
    assert "n0009:Cluster=new" in shell("perceus node show n0009").splitlines()


def test_show_prints_the_manuals_three_lines(manual: Shell) -> None:
    assert manual("perceus node show | grep -i nodeid | head -n 3") == (
        "n0000:NodeID=00:13:72:FB:5B:07\nn0001:NodeID=00:13:72:FB:5F:B4\nn0002:NodeID=00:13:72:FB:5E:C3\n"
    )


def test_summary_prints_the_manuals_table(manual: Shell) -> None:
    assert manual("perceus node summary | head -n 4") == (
        "HostName             GroupName    Enabled   Vnfs\n"
        "n0000                esd01            yes   caos-3.0-stateless.26.x86_64\n"
        "n0001                esd01            yes   centos-4.4-stateless.31.x86_64\n"
        "n0002                esd01            yes   centos-5.0-stateless.10.x86_64\n"
    )


def test_status_prints_the_manuals_table_and_one_column_more(manual: Shell) -> None:
    for number, (mac, ago) in enumerate(zip(MACS, (159, 136, 135), strict=True)):
        manual.registry.record_state(mac, "ready", f"10.0.3.{number}", now=time.time() - ago)
    printed = manual("perceus node status | head -n 4").splitlines()
    wanted = [
        r"HostName             Status         IpAddr                    Last Contact  ( Boot)?",
        r"n0000                ready          10\.0\.3\.0                  00:02:(39|4\d|5\d)",
        r"n0001                ready          10\.0\.3\.1                  00:02:[1-5]\d",
        r"n0002                ready          10\.0\.3\.2                  00:02:[1-5]\d",
    ]
    for line, pattern in zip(printed, wanted, strict=True):
        assert re.match(pattern, line), line


def test_delete_takes_names_ranges_and_patterns(shell: Shell) -> None:
    names = [f"n{number:04}" for number in range(0, 30)] + ["n0100", "n0200", "c00x0", "other"]
    shell.add(*names)
    asked = shell.run("perceus node delete n0001 n00[05-20] n0*00 *00*0", stdin="yes\n")
    assert asked.returncode == 0 and "[yes/no]" in asked.stderr
    gone = {"n0001", *(f"n{number:04}" for number in range(5, 21)), "n0000", "n0100", "n0200", "c00x0"}
    # Of the manual's patterns *00*0 fits n0010, n0020 too.
    assert set(shell("perceus node list").split()) == set(names) - gone


def test_a_literal_star_names_every_node(manual: Shell, tmp_path: Path) -> None:
    (tmp_path / "n0hello_world00").touch()
    assert manual(f"cd {tmp_path}; set +f; perceus node list \\*") == "n0000\nn0001\nn0002\nn0003\n"


def test_a_node_takes_the_place_of_another(manual: Shell) -> None:
    assert manual("perceus node set desc 'the first' n0000") == "desc has been set to 'the first' on 1 node\n"
    assert "n0000" in manual("perceus -y node replace n0000 n0003")
    assert manual("perceus node list") == "n0000\nn0001\nn0002\n"
    shown = manual("perceus node show n0000").splitlines()
    assert {"n0000:NodeID=00:13:72:FB:5E:C4", "n0000:Desc=the first"} <= set(shown)
    assert "n0000:Vnfs=caos-3.0-stateless.26.x86_64" in shown


@pytest.mark.parametrize("words", ["nope n0003", "n0000 nope", "n0000 n0000", "n000[0-1] n0003", "n0000 n00*"])
def test_replace_with_a_wrong_name_changes_nothing(manual: Shell, words: str) -> None:
    before = manual("perceus node show")
    done = manual.run(f"perceus -y node replace {words}")
    assert done.returncode in (1, 2) and done.stdout == "" and len(done.stderr.splitlines()) <= 2
    assert manual("perceus node show") == before


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("hostname", "first.sub", "first:HostName=first"),
        ("groupname", "blue", "n0001:GroupName=blue"),
        ("group", "blue", "n0001:GroupName=blue"),
        ("vnfs", "caos-3.0-stateless.26.x86_64", "n0001:Vnfs=caos-3.0-stateless.26.x86_64"),
        ("enabled", "0", "n0001:Enabled=0"),
        ("debug", "1", "n0001:Debug=1"),
        ("desc", "in the corner", "n0001:Desc=in the corner"),
        ("boot", "local", "n0001:Boot=local"),
        ("kargs", "quiet", "n0001:Kargs=quiet"),
        ("address", "10.0.3.1", "n0001:Address=10.0.3.1"),
    ],
)
def test_each_parameter_of_the_manual_can_be_set(manual: Shell, key: str, value: str, shown: str) -> None:
    manual(f"perceus node set {key} '{value}' n0001")
    assert shown in manual("perceus node show").splitlines()


def test_the_sites_own_attributes_are_set_and_shown(manual: Shell) -> None:
    conf = manual.paths.config / "site.toml"
    conf.write_text(conf.read_text().replace('attributes = ""', 'attributes = "rack bmc"'))
    manual("perceus node set rack 7 n000[0-1]")
    assert manual("perceus node show | grep rack") == "n0000:rack=7\nn0001:rack=7\n"
    assert manual.run("perceus node set slot 7 n0000").returncode == 1


def test_enabled_0_is_the_manuals_first_example(manual: Shell) -> None:
    manual("perceus node set enabled 0 n0001")
    assert manual("perceus node summary n0001").splitlines()[1] == (
        "n0001                esd01             no   centos-4.4-stateless.31.x86_64"
    )
