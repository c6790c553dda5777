"""What a node needs to boot, to reach the network file system and to be reached itself when that is gone: as data.

Paths are spelled as in a merged /usr. What programs load is not listed: it is found in the files (closure.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from initramfs_builder.tree import MERGED


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
    return _in("*bin", names)


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
        *_in("share/dbus-1", "system.conf system.d/** system-services/**")), runs=True),
    Need("tools that scripts of the boot call", _programs(TOOLS), runs=True),
    Need("programs of the boot load it by name", tuple(f"usr/lib*/**/lib{name}.so*" for name in LOADED.split()),
         runs=True),
    Need("variants of libraries for newer processors", ("usr/lib*/**/glibc-hwcaps/**",), runs=True),
    Need("settings", ("etc/**", *_in("lib", "tmpfiles.d/** sysusers.d/** sysctl.d/** binfmt.d/** environment.d/**"),
                      "usr/lib/os-release")),
    Need("settings that are links", (
        "etc/localtime", "etc/systemd/**", "etc/network/if-*.d/*", "etc/crypto-policies/back-ends/*",
        "etc/ssl/openssl.cnf", "etc/pki/tls/openssl.cnf"), follow=True),
    # /lib, which is a link to usr/lib, goes by that name here.
    Need("links to the folders of programs", tuple(f"usr/{name}" for name in sorted(MERGED))),
)  # fmt: skip


def reference() -> str:
    """docs/reference/hybridize.md: the rules, and the table as Markdown."""
    rows = []
    for need in NEEDED:
        globs = " ".join(f"`/{glob}`" for glob in need.globs)
        rows.append(f"| {need.why} | {globs} | {'yes' if need.runs else ''} |")
    return INTRODUCTION + "| why | paths | and what they load |\n|---|---|---|\n" + "\n".join(rows) + "\n"


INTRODUCTION = """<!-- Made by capsulekit.rootfs.needed.reference(); a test keeps it current. -->
# Hybridize

`[hybridize] paths` in a recipe lists what lives on the network instead of in each node's memory. The build moves it to
the capsule's hybrid layer, which the master exports and every node mounts as the lowest layer of its root: each path
stays where it is, and the build says what each glob saves.

A glob is a full path. `*` and `?` match within one name, hidden names too; `**` matches across folders, and `/**/` also
no folder at all; `[ab]`, `[a-z]` and `[!ab]` match one character; `[*]` is a star itself. A glob that names a folder
means everything below it, as in Perceus: `/usr/share/doc`, `/usr/share/doc/` and `/usr/share/doc/**` are the same.
`/lib` and `/usr/lib` are taken for the same folder. The first glob that matches a path counts. The build says which of
them move nothing.

Of what a glob matches this stays on the node, because the network could not carry it as it is, and the build names it:

- folders themselves, devices and fifos
- files that are setuid or setgid, or that have capabilities, ACLs or other extended attributes
- files that not everyone may read, or in a folder that not everyone may enter
- every name of a file of which one name stays

What the table below has stays on the node too, where a glob names a folder above it, such as `/usr/share`, and is named
with the reason: without it a node could not boot, not reach the network, or not be reached when the network file system
is gone. A glob that means just such a path, or takes nothing else, fails the build with the chain that needs it.

## A site's own list

`vnfs/NAME/hybridize` beside `site.toml`, NAME being a capsule's installed name or its short one, goes over the
capsule's own list: one path or glob a line, `#` begins a comment. Nobody but you makes that file. When it says
something else than what holds, `vnfs umount` and `vnfs rebuild` divide the capsule anew, as a new generation;
`vnfs rebuild NAME` is enough after a change of the list. An empty file brings everything back to the nodes, and without
the file the author's list holds again. What the network carries is exported by the master itself: [NFS](nfs.md).

The same rules hold as at build, for the root as nodes see it, edits included. What lies in an edit's layer or the
site's stays in it, and is named; a path that an edit deleted or replaced stays so
([why the new layers are public](../decisions/resplit-layers-stay-public.md)). Refused as well, with the reason:

- paths in the site's state folder
- paths in folders that `nfsmounts` mounts on nodes of this capsule
- any list for a capsule whose kernel has no NFS 4, or whose root layer is private

## What has to stay

"""
