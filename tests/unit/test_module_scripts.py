"""The shipped modules do to a root what they say: Debian- and RHEL-like roots, under busybox ash and dash, twice."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from module_root import Root, root

from provisioner.catalog import SHIPPED, Catalog

__all__ = ["root"]  # the fixture


# --- hostname, hostfile


def test_hostname_names_a_system_without_systemd_too(root: Root) -> None:
    root.rhel(systemd=False).ok("hostname/init/20-hostname")
    assert root.text("etc/hostname") == "n0001\n"
    assert root.text("etc/sysconfig/network") == "NETWORKING=yes\nHOSTNAME=n0001\n"


def test_hostname_renames_a_running_node(root: Root) -> None:
    kernel = root.write("proc/sys/kernel/hostname", "old\n")
    assert root.ok("hostname/ready/20-hostname") == "renamed from old to n0001\n"
    assert (kernel.read_text(), root.text("etc/hostname")) == ("n0001\n", "n0001\n")


@pytest.mark.parametrize("state", ["init", "ready"])
def test_hostfile_replaces_hosts_whole_and_never_follows_a_link(root: Root, state: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("untouched")
    (root.path / "etc/hosts").symlink_to(tmp_path / "outside")
    root.give(hosts="127.0.0.1\tlocalhost\n10.0.0.1\tmaster\n")
    root.ok(f"hostfile/{state}/25-hostfile")
    assert root.text("etc/hosts") == "127.0.0.1\tlocalhost\n10.0.0.1\tmaster\n"
    assert root.mode("etc/hosts") == 0o644
    assert (tmp_path / "outside").read_text() == "untouched"


# --- accounts

ODD = b'root:x:0:0:root:/root:/bin/sh\na$b:$6$sal\\t$h/.:5:5:\xff\xe9 $HOME `id` "q":/h:/bin/sh\n'


@pytest.mark.parametrize("state", ["init", "ready"])
@pytest.mark.parametrize("name", ["passwd", "group"])
def test_the_assembled_file_arrives_byte_for_byte(root: Root, name: str, state: str) -> None:
    root.write(f"etc/{name}", "daemon:x:1:1::/:/bin/false\n")
    root.give(**{name: ODD})
    root.ok(f"{name}file/{state}/40-{name}file")
    assert (root.path / "etc" / name).read_bytes() == ODD
    assert root.mode(f"etc/{name}") == 0o644


@pytest.mark.parametrize("name", ["passwd", "group"])
def test_a_file_without_root_is_refused_and_none_is_nothing_to_do(root: Root, name: str) -> None:
    root.write(f"etc/{name}", "root:x:0:0::/:/bin/sh\n")
    root.ok(f"{name}file/init/40-{name}file")
    root.give(**{name: "kim:x:1000:1000::/home/kim:/bin/sh\n"})
    assert root.fails(f"{name}file/init/40-{name}file") == f"/etc/{name} would have no root: nothing was written"


def test_masterauth_adds_people_and_keeps_the_capsules_own(root: Root) -> None:
    root.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nkim:x:9:9::/old:/bin/sh\nsshd:x:105:65534::/run/sshd:/x\n")
    root.write("etc/group", "root:x:0:\n")
    root.write("etc/shadow", "root:*:1:::::\nkim:$6$old:1:::::\n").chmod(0o600)
    root.give(
        passwd="kim:x:1000:1000:K$M:/home/kim:/bin/sh\nlee:x:1001:1001::/home/lee:/bin/sh\n", group="kim:x:1000:\n"
    )
    root.ok("masterauth/init/45-masterauth")
    assert root.text("etc/passwd").splitlines() == [
        "root:x:0:0::/root:/bin/sh", "sshd:x:105:65534::/run/sshd:/x", "kim:x:1000:1000:K$M:/home/kim:/bin/sh",
        "lee:x:1001:1001::/home/lee:/bin/sh",
    ]  # fmt: skip
    assert root.text("etc/group") == "root:x:0:\nkim:x:1000:\n"
    assert "lee:*:" in root.text("etc/shadow") and "kim:$6$old:" in root.text("etc/shadow")
    assert (root.mode("etc/passwd"), root.mode("etc/shadow")) == (0o644, 0o600)


def test_masterauth_brings_password_hashes_only_when_they_are_sent(root: Root) -> None:
    root.write("etc/shadow", "root:*:1:::::\n")
    root.give(passwd="kim:x:1000:1000::/home/kim:/bin/sh\n", shadow="kim:$6$new$x:1:::::\n")
    root.ok("masterauth/ready/45-masterauth")
    assert root.text("etc/shadow") == "root:*:1:::::\nkim:$6$new$x:1:::::\n"
    assert root.mode("etc/shadow") & 0o007 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files")
@pytest.mark.parametrize("state", ["init", "ready"])
@pytest.mark.parametrize("sent", ["", "kim:$6$new$x:1:::::\n"])
def test_masterauth_leaves_shadow_to_the_group_that_reads_it(root: Root, state: str, sent: str) -> None:
    """Debian's unix_chkpwd is setgid shadow: no screen unlocks without."""
    shadow = root.write("etc/shadow", "root:*:1:::::\n")
    shadow.chmod(0o640)
    os.chown(shadow, 0, 42)
    root.give(passwd="kim:x:1000:1000::/home/kim:/bin/sh\n", **({"shadow": sent} if sent else {}))
    root.ok(f"masterauth/{state}/45-masterauth")
    assert "kim:" in shadow.read_text()
    assert (root.mode("etc/shadow"), shadow.stat().st_gid) == (0o640, 42)


def test_masterauth_locks_people_where_shadow_is_empty(root: Root) -> None:
    root.write("etc/shadow", "")
    root.give(passwd="kim:x:1000:1000::/home/kim:/bin/sh\n")
    root.ok("masterauth/init/45-masterauth")
    assert root.text("etc/shadow").startswith("kim:*:")


# --- the network

FORMS = {"netplan": "np\n", "ifupdown": "iu\n", "link": "li\n", "nm-eth0": "nm\n", "networkd-eth0": "nd\n"}


@pytest.mark.parametrize(
    ("has", "written"),
    [
        (["usr/sbin/netplan", "usr/sbin/NetworkManager"], {"etc/netplan/90-capsulekit.yaml": ("np\n", 0o600)}),
        (
            ["usr/sbin/NetworkManager", "usr/lib/systemd/systemd-networkd"],
            {"etc/NetworkManager/system-connections/capsulekit-eth0.nmconnection": ("nm\n", 0o600)},
        ),
        (
            ["usr/sbin/ifup", "etc/network/x", "usr/lib/systemd/systemd-networkd"],
            {
                "etc/network/interfaces.d/capsulekit": ("iu\n", 0o644),
                "etc/systemd/network/10-capsulekit-boot.link": ("li\n", 0o644),
            },
        ),
        (["lib/systemd/systemd-networkd"], {"etc/systemd/network/10-capsulekit-eth0.network": ("nd\n", 0o644)}),
    ],
    ids=["netplan", "NetworkManager", "ifupdown", "networkd"],
)
def test_ipaddr_writes_for_the_network_system_that_the_capsule_has(
    root: Root, has: list[str], written: dict[str, tuple[str, int]]
) -> None:
    for name in has:
        root.write(name, "")
    root.give(**FORMS)
    root.ok("ipaddr/init/32-ipaddr")
    mine = {
        str(path.relative_to(root.path)): (path.read_text(), stat.S_IMODE(path.stat().st_mode))
        for path in root.path.rglob("*capsulekit*")
        if path.is_file()
    }
    assert mine == written


def test_ipaddr_makes_ifupdown_read_its_folder_once(root: Root) -> None:
    root.write("usr/sbin/ifup", "")
    root.write("etc/network/interfaces", "auto lo\niface lo inet loopback\n")
    root.give(**FORMS)
    root.ok("ipaddr/init/32-ipaddr")
    root.ok("ipaddr/init/32-ipaddr")
    assert root.text("etc/network/interfaces").count("source /etc/network/interfaces.d/capsulekit\n") == 1
    # What older systems of the Debian family have does not read ours.
    root.write("etc/network/interfaces", "source /etc/network/interfaces.d/*.cfg\n")
    root.ok("ipaddr/init/32-ipaddr")
    assert root.text("etc/network/interfaces").endswith("\nsource /etc/network/interfaces.d/capsulekit\n")
    root.write("etc/network/interfaces", "source /etc/network/interfaces.d/*\n")
    root.ok("ipaddr/init/32-ipaddr")
    assert root.text("etc/network/interfaces") == "source /etc/network/interfaces.d/*\n"
    root.write("etc/network/interfaces", "source-directory interfaces.d\n")
    root.ok("ipaddr/init/32-ipaddr")
    assert root.text("etc/network/interfaces") == "source-directory interfaces.d\n"


def test_ipaddr_enables_networkd_and_forgets_interfaces_that_went(root: Root) -> None:
    root.write("usr/lib/systemd/systemd-networkd", "")
    root.write("usr/lib/systemd/system/systemd-networkd.service", "")
    root.write("etc/systemd/network/10-capsulekit-eth7.network", "old")
    root.give(**FORMS)
    root.ok("ipaddr/init/32-ipaddr")
    wants = root.path / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    assert str(wants.readlink()) == "/usr/lib/systemd/system/systemd-networkd.service"
    assert not (root.path / "etc/systemd/network/10-capsulekit-eth7.network").exists()


def test_ipaddr_says_so_when_nothing_would_set_an_address(root: Root) -> None:
    root.ok("ipaddr/init/32-ipaddr")  # no line is about this node
    root.give(**FORMS)
    assert root.fails("ipaddr/init/32-ipaddr").startswith("the capsule has none of netplan, NetworkManager")


# --- timezone, sysctl, modprobe


@pytest.mark.parametrize("state", ["init", "ready"])
def test_timezone_links_the_zone_or_says_what_is_missing(root: Root, state: str) -> None:
    script = f"timezone/{state}/50-timezone"
    root.give(settings="zone=Europe/Berlin\n")
    assert "tzdata" in root.fails(script)
    root.write("usr/share/zoneinfo/Europe/Berlin", "TZif")
    root.ok(script)
    assert str((root.path / "etc/localtime").readlink()) == "../usr/share/zoneinfo/Europe/Berlin"
    assert root.text("etc/timezone") == "Europe/Berlin\n"


@pytest.mark.parametrize("zone", ["", "../../etc/shadow", "/etc/passwd", "a b", "$(id)"])
def test_what_is_no_time_zone_is_refused(root: Root, zone: str) -> None:
    root.give(settings=f"zone={zone}\n")
    assert root.fails("timezone/init/50-timezone").startswith("zone is no name of a time zone")


def test_sysctl_is_written_and_given_to_the_running_kernel(root: Root) -> None:
    for name in ("vm/swappiness", "net/ipv4/ip_local_port_range", "kernel/x"):
        root.write(f"proc/sys/{name}", "0\n")
    text = "vm.swappiness = 10\nnet/ipv4/ip_local_port_range=1024 65000 \n; no\n-not.there = 1\n"
    root.give(sysctl__conf=text)
    root.ok("sysctl/init/55-sysctl")
    assert root.text("etc/sysctl.d/90-capsulekit.conf") == text
    assert root.text("proc/sys/vm/swappiness") == "0\n"
    root.ok("sysctl/ready/55-sysctl")
    assert root.text("proc/sys/vm/swappiness") == "10\n"
    assert root.text("proc/sys/net/ipv4/ip_local_port_range") == "1024 65000\n"
    root.give(sysctl__conf="no.such = 1\n../../etc/passwd = x\nkernel.x = 5\n")
    done = root.run("sysctl/ready/55-sysctl")
    assert (done.returncode, done.stdout) == (1, "the kernel does not take: no.such ../../etc/passwd\n")
    assert root.text("proc/sys/kernel/x") == "5\n"


MODULES = "ib_ipoib\nnvidia NVreg_A=1 NVreg_B=0x2\n"


def test_modprobe_writes_for_systemd_and_for_both_families_without_it(root: Root) -> None:
    root.debian()
    root.give(modules=MODULES)
    root.ok("modprobe/init/55-modprobe")
    assert root.text("etc/modules-load.d/capsulekit.conf") == "ib_ipoib\nnvidia\n"
    assert root.text("etc/modprobe.d/capsulekit.conf") == "options nvidia NVreg_A=1 NVreg_B=0x2\n"
    assert not (root.path / "etc/modules").exists()


def test_modprobe_without_systemd(root: Root) -> None:
    root.debian(systemd=False)
    root.write("etc/modules", "loop\n")
    root.give(modules=MODULES)
    root.ok("modprobe/init/55-modprobe")
    assert root.text("etc/modules") == "loop\n# capsulekit {\nib_ipoib\nnvidia\n# capsulekit }\n"
    root.rhel(systemd=False).ok("modprobe/init/55-modprobe")
    assert root.text("etc/sysconfig/modules/capsulekit.modules") == "#!/bin/sh\nmodprobe ib_ipoib\nmodprobe nvidia\n"
    assert root.mode("etc/sysconfig/modules/capsulekit.modules") == 0o755


def test_modprobe_loads_what_it_can_and_names_what_it_cannot(root: Root) -> None:
    root.stub("modprobe", '[ "$1" != nvidia ]')
    root.give(modules=MODULES + "x;reboot *\nloop\n")
    done = root.run("modprobe/ready/55-modprobe")
    assert (done.returncode, done.stdout) == (1, "not loaded: nvidia x;reboot\n")
    assert root.called() == ["modprobe ib_ipoib", "modprobe nvidia NVreg_A=1 NVreg_B=0x2", "modprobe loop"]
    root.give(modules="-r\n")
    assert "not the name" in root.fails("modprobe/init/55-modprobe")


# --- nfsmounts


def test_nfsmounts_adds_lines_of_its_own_and_mounts_what_is_not_mounted(root: Root) -> None:
    root.write("etc/fstab", "proc /proc proc defaults 0 0\n")
    root.write("proc/mounts", "m:/home /home nfs rw 0 0\n")
    root.give(mounts="m:/home /home\nm:/opt /opt ro,soft\n")
    root.stub("mount")
    root.ok("nfsmounts/init/60-nfsmounts")
    assert root.text("etc/fstab") == (
        "proc /proc proc defaults 0 0\n# capsulekit nfsmounts {\n"
        "m:/home /home nfs defaults,_netdev,nofail,nosuid,nodev 0 0\nm:/opt /opt nfs ro,soft 0 0\n"
        "# capsulekit nfsmounts }\n"
    )
    assert (root.path / "opt").is_dir() and root.called() == []
    root.run("nfsmounts/ready/60-nfsmounts")
    assert root.called() == ["mount /opt"]
    # The kernel's list has no slash at the end.
    root.give(mounts="m:/home /home/\n")
    root.run("nfsmounts/ready/60-nfsmounts")
    assert root.called() == ["mount /opt"]


@pytest.mark.parametrize(
    "line", ["home /home", "m:/x relative", "m:/x /", "m:/x /a/../b", "m:/x /y a b", "m:/x /a;b", "m:/x /a//b"]
)
def test_a_mount_that_cannot_be_is_refused_before_anything_is_written(root: Root, line: str) -> None:
    root.give(mounts=f"m:/ok /ok\n{line}\n")
    assert root.fails("nfsmounts/init/60-nfsmounts")


# --- slurm, runscript, syncnodes


def test_slurm_puts_files_and_the_key_and_tells_slurmd_only_of_changes(root: Root) -> None:
    root.stub("pidof", "echo 4242")
    root.write("etc/passwd", f"munge:x:{os.getuid()}:{os.getgid()}::/:/x\n")
    root.write("etc/group", f"munge:x:{os.getgid()}:\n")
    root.give(target="/etc/slurm\n", slurm__conf="ClusterName=x\n", munge__key=b"\0\xffkey")
    root.ok("slurm/init/65-slurm")
    assert root.text("etc/slurm/slurm.conf") == "ClusterName=x\n"
    assert (root.path / "etc/munge/munge.key").read_bytes() == b"\0\xffkey"
    assert (root.mode("etc/munge/munge.key"), root.mode("etc/munge")) == (0o400, 0o700)
    root.stub("kill")
    root.run("slurm/ready/65-slurm")
    assert root.called() == []
    root.give(slurm__conf="ClusterName=y\n")
    root.run("slurm/ready/65-slurm")
    assert root.called() == ["pidof slurmd", "kill -HUP 4242"]


@pytest.mark.parametrize("state", ["init", "ready"])
def test_runscript_runs_each_script_by_itself_and_names_the_one_that_fails(root: Root, state: str) -> None:
    root.give(
        **{
            "0-all": 'leak=1; exec >>"$NEWROOT/log"; echo all $NODENAME\n',
            "1-group": 'echo "g${leak:-}" >>"$NEWROOT/log"\n',
        }
    )
    done = root.run(f"runscript/{state}/90-runscript")
    assert done.returncode == 0, done.stderr
    assert root.text("log") == "all n0001.rack\ng\n"
    root.give(**{"0-all": "exit 7\n"})
    done = root.run(f"runscript/{state}/90-runscript")
    assert (done.returncode, done.stdout) == (7, "the script for all: status 7\n")


def process(root: Root, pid: int, uid: int) -> None:
    root.write(f"proc/{pid}/status", f"Name:\tx\nUmask:\t0022\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")


def test_syncnodes_reboots_only_after_a_change_and_only_when_idle(root: Root) -> None:
    root.stub("reboot")
    root.stub("wall")
    process(root, 1, 0)
    rules = "first_id=1000\nlast_id=60000\ntell=soon\n"
    root.give(identity="a" * 64 + "\n")
    root.ok("syncnodes/init/95-syncnodes")
    assert root.text("etc/capsulekit/agent/capsule") == "a" * 64 + "\n"
    root.give(settings=rules)
    root.ok("syncnodes/ready/95-syncnodes")
    assert root.called() == []
    root.give(identity="b" * 64 + "\n")
    process(root, 77, 1000)
    assert root.ok("syncnodes/ready/95-syncnodes").startswith("the capsule changed; in use")
    assert root.called() == ["wall soon", "wall soon"]
    process(root, 77, 65534)
    done = root.run("syncnodes/ready/95-syncnodes")
    assert (done.returncode, root.called()[-1].strip()) == (0, "reboot")


# --- all of them


def test_every_module_of_the_plan_of_commands_is_shipped() -> None:
    wanted = {
        "hostname", "hostfile", "ipaddr", "passwdfile", "groupfile", "masterauth", "modprobe", "syncnodes", "slurm",
        "sshkeys", "nfsmounts", "sysctl", "timezone", "runscript",
    }  # fmt: skip
    assert {module.name for module in Catalog().modules()} >= wanted


@pytest.mark.parametrize("script", sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.glob("*/*/[0-9]*")))
def test_a_script_without_its_data_breaks_nothing(root: Root, script: str) -> None:
    for name in ("reboot", "mount", "modprobe", "wall"):
        root.stub(name)
    root.run(script)
    names = {str(path.relative_to(root.path)) for path in root.path.rglob("*") if path.is_file()}
    assert names <= {"etc/hostname", "etc/hosts"}
    assert root.called() == []
