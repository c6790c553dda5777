"""What a node needs to boot, to reach the network file system and to be reached itself when that is gone: as data.

Paths are spelled as in a merged /usr. What programs load is not listed: it is found in the files (closure.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Paths of one purpose. ``globs`` are anchored at the root (see globs).

    ``runs``: what matches is a program or a library, so all it loads is needed too. ``follow``: what a link leads to is
    needed too, even outside of the globs.
    """

    why: str
    globs: tuple[str, ...]
    runs: bool = False
    follow: bool = False


def _in(folder: str, names: str) -> tuple[str, ...]:
    return tuple(f"usr/{folder}/{name}" for name in names.split())


def _programs(names: str) -> tuple[str, ...]:
    return _in("bin", names) + _in("sbin", names)


# Tools that scripts of the boot and of the network call, and the node's agent.
TOOLS = (
    "[[] awk gawk mawk basename cat chmod chown cp cut date dirname echo env expr false flock grep egrep fgrep head "
    "hostname id install kill ln logger ls mkdir mkfifo mknod mktemp mv nice nproc ps pwd readlink realpath rm rmdir "
    "run-parts sed seq setsid sleep sort stat stty sync tail tee test timeout touch tr true tty uname uniq wc xargs"
)
# Before .note.dlopen (see initramfs_builder.elf) systemd said nowhere what it loads.
LOADED = "apparmor audit bpf cryptsetup idn2 ip4tc kmod lzma lz4 pcre2-8 seccomp selinux zstd"

NEEDED: tuple[Need, ...] = (
    Need("scripts of the boot run in it", _programs("sh bash dash ash busybox"), runs=True),
    Need("systemd", (*_in("lib/systemd", "* system*/** network/**"),
                     *_programs("systemctl systemd-* journalctl networkctl resolvectl udevadm init telinit")),
         runs=True),
    Need("udev finds the drivers and names the network cards",
         (*_in("lib/udev", "* rules.d/**"), *_programs("udevd udevadm")), runs=True),
    Need("another init", (*_programs("openrc* runlevel start-stop-daemon halt reboot poweroff shutdown switch_root "
                                     "runit* runsv* sv s6-*"), "usr/lib*/rc/**", "usr/lib/runit/**", "usr/lib/s6/**"),
         runs=True),
    Need("mounting", _programs("mount mount.* umount umount.* mountpoint findmnt losetup blkid fsck* e2fsck swapon "
                               "swapoff"), runs=True),
    Need("loading drivers", (*_programs("kmod modprobe insmod rmmod lsmod modinfo depmod"),
                             *_in("lib", "modprobe.d/** modules-load.d/** depmod.d/**")), runs=True),
    Need("drivers and their firmware", _in("lib", "modules/** firmware/**")),
    Need("the network comes up", (
        *_programs("ip bridge ethtool ifup ifdown ifquery dhclient* dhcpcd udhcpc NetworkManager nmcli nm-online "
                   "netplan wpa_supplicant wpa_cli resolvconf"),
        *_in("lib", "NetworkManager/** ifupdown/** netplan/** dhcpcd/**"), *_in("libexec", "nm-* netplan/**"),
        "usr/lib*/**/NetworkManager/**"), runs=True),
    Need("the network file system is mounted", (
        *_programs("mount.nfs* umount.nfs* rpc.* rpcbind rpcinfo nfsidmap gssproxy nfsconf"),
        "usr/lib*/**/libnfsidmap/**"), runs=True),
    Need("users and host names are looked up", ("usr/lib*/**/libnss_*.so*",), runs=True),
    Need("someone logs in", (
        "usr/lib*/**/security/pam_*.so", *_programs("agetty getty mingetty login sulogin nologin unix_chkpwd"),
        *_in("lib", "pam.d/**")), runs=True),
    Need("the way in when the network file system is gone", (
        *_programs("sshd dropbear"), *_in("lib/openssh", "*"), *_in("libexec/openssh", "*"),
        "usr/lib*/**/ossl-modules/*"), runs=True),
    Need("programs of the boot talk over it", (
        *_programs("dbus-daemon dbus-broker*"), *_in("lib/dbus-1.0", "*"), *_in("libexec/dbus-1", "*"),
        *_in("share/dbus-1", "**")), runs=True),
    Need("tools that scripts of the boot call", _programs(TOOLS), runs=True),
    Need("programs of the boot load it by name", tuple(f"usr/lib*/**/lib{name}.so*" for name in LOADED.split()),
         runs=True),
    Need("variants of libraries for newer processors", ("usr/lib*/**/glibc-hwcaps/**",), runs=True),
    Need("settings", ("etc/**", *_in("lib", "tmpfiles.d/** sysusers.d/** sysctl.d/** binfmt.d/** environment.d/**"),
                      "usr/lib/os-release")),
    Need("settings that are links", (
        "etc/localtime", "etc/systemd/**", "etc/network/if-*.d/*", "etc/crypto-policies/back-ends/*",
        "etc/ssl/openssl.cnf", "etc/pki/tls/openssl.cnf"), follow=True),
    Need("links to the folders of programs", ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "init", "linuxrc")),
)  # fmt: skip
