"""A small RPM distribution made on the spot: Debian's programs in packages of Rocky's names, signed by a key made here.

No other distribution's packages can be had where the tests run; the tools that make, sign and index these are the real
ones (rpmbuild, rpmsign, createrepo_c, gpg), and so is dnf, which installs them.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from initramfs_builder.modules import ModuleTree

from capsulekit.cache import Cache, default_cache_dir
from capsulekit.distro.base import Distro, distro
from capsulekit.files import sha256_file
from capsulekit.kernel import KernelTree, unpack_kernel
from capsulekit.lock.model import Lock, Request

EPOCH = 1_700_000_000
KERNEL = "linux-image-cloud-amd64"
# What the test capsule's kernel and its stage 2 need.
MODULES = ("af_packet", "loop", "nfsv4", "overlay", "squashfs", "virtio_blk", "virtio_net", "virtio_pci", "virtio_rng")
# RPM name -> the Debian packages whose programs it brings. Libraries go into system-libs, the C library into glibc.
PROGRAMS = {
    "acl": ("acl",),
    "bash": ("bash",),
    "busybox": ("busybox-static",),
    "coreutils": ("coreutils",),
    "findutils": ("findutils",),
    "grep": ("grep",),
    "kmod": ("kmod",),
    "sed": ("sed",),
    "shadow-utils": ("passwd",),
    "util-linux": ("util-linux", "mount"),
}
DROPPED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/info",
    "usr/lib/systemd",
)
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FOLDERS = (
    "boot", "dev", "etc/pam.d", "home", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64",
    "usr/sbin", "var/lib", "var/log", "var/tmp",
)  # fmt: skip


def sh(*argv: str | Path, **how: object) -> str:
    """Run a program to its end; its output."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return str(done.stdout)


@dataclass(frozen=True)
class Signer:
    """A throw-away OpenPGP key: its keyring's folder, its user id, its public half as a file."""

    home: Path
    name: str
    public: Path
    time: str = ""

    @property
    def _clock(self) -> list[str]:
        return [f"--faked-system-time={self.time}"] if self.time else []

    def _gpg(self, *words: str | Path) -> str:
        return sh("gpg", "--homedir", self.home, "--batch", "--quiet", "--yes", *self._clock, *words)

    def sign_packages(self, *packages: Path) -> None:
        """Add this key's signature to package files, with rpm's own program."""
        extra = " ".join(["--homedir", str(self.home), *self._clock])
        macros = {
            "__gpg": str(shutil.which("gpg")), "_gpg_name": self.name, "_gpg_digest_algo": "sha256",
            "_gpg_sign_cmd_extra_args": extra,
        }  # fmt: skip
        words = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
        sh("rpmsign", *words, "--addsign", *packages)

    def sign_index(self, repo: Path) -> None:
        """Write repodata/repomd.xml.asc."""
        index = repo / "repodata/repomd.xml"
        self._gpg("--armor", "--detach-sign", "--output", f"{index}.asc", index)


@contextmanager
def signer(name: str, *, expired: bool = False) -> Iterator[Signer]:
    """A new key; ``expired``: made and used years ago, valid for a day."""
    # gpg-agent's socket lies in this folder; its path may not be long.
    home = Path(tempfile.mkdtemp(prefix="ck-gpg-"))
    try:
        made = Signer(
            home, f"{name} <{name}@test.example>", home / f"RPM-GPG-KEY-{name}", "20200101T000000" if expired else ""
        )
        life = "2020-01-02" if expired else "0"
        made._gpg("--passphrase", "", "--quick-generate-key", made.name, "rsa2048", "sign", life)
        made.public.write_text(made._gpg("--armor", "--export", made.name))
        yield made
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Rpm:
    """One package to make: header lines, scriptlets and lines of %files, as a spec file has them."""

    name: str
    version: str = "1.0"
    release: str = "1.el9"
    header: tuple[str, ...] = ()
    scriptlets: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    arch: str = "x86_64"

    @property
    def file_name(self) -> str:
        """The name rpmbuild gives the package's file."""
        return f"{self.name}-{self.version}-{self.release}.{self.arch}.rpm"

    def spec(self) -> str:
        """This package as a part of a spec file."""
        noarch = ["BuildArch: noarch"] if self.arch == "noarch" else []
        head = [f"Version: {self.version}", f"Release: {self.release}", "Summary: Made for a test", "AutoReqProv: no"]
        scriptlets = [line.replace("@", f"-n {self.name}", 1) for line in self.scriptlets]
        package = [f"%package -n {self.name}", *head, *noarch, *self.header]
        text = [f"%description -n {self.name}", "A test package.", *scriptlets]
        return "\n".join([*package, *text, f"%files -n {self.name}", "%defattr(-,root,root,-)", *self.files, ""])


def make_rpms(packages: Sequence[Rpm], tree: Path, out: Path) -> list[Path]:
    """Build unsigned packages whose files lie in ``tree``; the package files, in ``out``."""
    with tempfile.TemporaryDirectory(prefix="ck-rpmbuild-") as top:
        spec = Path(top, "all.spec")
        head = "Name: all\nVersion: 1\nRelease: 1\nSummary: All\nLicense: MIT AND Zlib\n%description\nAll\n"
        install = f"%install\ncp -al {tree}/. %{{buildroot}}/\n"
        spec.write_text(head + "\n".join(p.spec() for p in packages) + install)
        macros = {
            "_topdir": top, "_rpmdir": str(out), "_rpmfilename": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
            "_buildhost": "localhost", "_build_id_links": "none", "debug_package": "%{nil}",
            "__os_install_post": "%{nil}", "__check_files": "%{nil}", "_binary_payload": "w1.gzdio",
            "use_source_date_epoch_as_buildtime": "1",
            "clamp_mtime_to_source_date_epoch": "1", "_dbpath": f"{top}/db",
        }  # fmt: skip
        words = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"}
        sh("rpmbuild", "-bb", "--quiet", "--nodeps", "--target", "x86_64-linux", *words, spec, env=env)
    return [out / p.file_name for p in packages]


def index(repo: Path, by: Signer | None) -> None:
    """Make a folder of packages a repository; its index is signed when there is a signer."""
    shutil.rmtree(repo / "repodata", ignore_errors=True)
    sh(
        "createrepo_c",
        "--quiet",
        "--no-database",
        "--revision",
        str(EPOCH),
        "--set-timestamp-to-revision",
        "--simple-md-filenames",
        repo,
    )
    if by:
        by.sign_index(repo)


def describe_repos(folder: Path, repos: dict[str, str], key: Path, **more: str) -> Path:
    """Write ``folder``/rocky-9 with a .repo file (``repos``: id -> base URL) and the key; ``folder``."""
    own = folder / "rocky-9"
    own.mkdir(parents=True, exist_ok=True)
    shutil.copy(key, own / key.name)
    options = {"enabled": "1", "gpgcheck": "1", "repo_gpgcheck": "1", "gpgkey": f"file:///etc/pki/rpm-gpg/{key.name}"}
    lines = []
    for name, url in repos.items():
        lines += [f"[{name}]", f"name=Rocky Linux $releasever - {name}", f"baseurl={url}"]
        lines += [f"{option}={value}" for option, value in {**options, **more}.items()] + [""]
    (own / "rocky.repo").write_text("\n".join(lines))
    return folder


# --- the distribution


@dataclass
class _Tree:
    """The one build root, and which of its paths belong to which package."""

    root: Path
    owned: dict[str, list[str]] = field(default_factory=dict)

    def take(self, name: str, unpacked: Path) -> None:
        """Move a Debian package's files in, at the paths of a merged /usr."""
        for short, long in LINKS.items():
            if (unpacked / short).is_dir():
                sh("cp", "-al", f"{unpacked / short}/.", _made(unpacked / long))
                shutil.rmtree(unpacked / short)
        for gone in DROPPED:
            shutil.rmtree(unpacked / gone, ignore_errors=True)
        for path in sorted(unpacked.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            target = _made((self.root / path.relative_to(unpacked)).parent) / path.name
            if not os.path.lexists(target):
                path.rename(target)
                self.owned.setdefault(name, []).append(_quoted(path.relative_to(unpacked)))

    def write(self, name: str, path: str, data: str, mode: int = 0o644) -> None:
        """A file of our own; listed unless ``name`` is empty."""
        target = self.root / path.lstrip("/")
        _made(target.parent)
        target.write_text(data)
        target.chmod(mode)
        if name:
            self.owned.setdefault(name, []).append(_quoted(Path(path.lstrip("/"))))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quoted(path: Path) -> str:
    """A path as %files takes it: a bracket would be a glob."""
    return '"/' + str(path).replace("[", "[[]") + '"'


def _debian(scratch: Path, tree: _Tree, maker: Distro, lock: Lock) -> str:
    """Take the programs and the kernel out of Debian's packages; the kernel's release."""
    of = {debian: rpm for rpm, group in PROGRAMS.items() for debian in group}
    for number, package in enumerate(lock.sets["initrd"]):
        rpm = of.get(package.name) or {"libc6": "glibc"}.get(package.name, "system-libs")
        if rpm == "system-libs" and not package.name.startswith(("lib", "zlib")):
            continue
        maker.unpack(package, _made(scratch / str(number)))
        tree.take(rpm, scratch / str(number))
    return _kernel(unpack_kernel(lock.sets["kernel"], maker, _made(scratch / "kernel")), tree)


def _kernel(unpacked: KernelTree, tree: _Tree) -> str:
    """Lay the kernel out as Fedora does, the image among its modules, in three packages: only MODULES, to be quick."""
    wanted = set(ModuleTree(unpacked.root, unpacked.release).closure(MODULES))
    own = _made(tree.root / "usr/lib/modules" / unpacked.release)
    for path in sorted(p for p in unpacked.modules.rglob("*") if p.is_file()):
        inside = path.relative_to(unpacked.modules)
        if path.suffix == ".ko" and str(inside) not in wanted:
            continue
        owner = "kernel-core"
        if inside.parts[0] == "kernel":
            owner = "kernel-modules-core" if inside.parts[1] in ("fs", "drivers") else "kernel-modules"
        path.rename(_made((own / inside).parent) / path.name)
        # As in Enterprise Linux 9, the packages say /lib/modules, through the link.
        tree.owned.setdefault(owner, []).append(_quoted(Path("lib/modules", unpacked.release, inside)))
    unpacked.image.rename(own / "vmlinuz")
    (own / "System.map").write_text("made for a test\n")
    tree.owned["kernel-core"] += [_quoted(Path("lib/modules", unpacked.release, n)) for n in ("vmlinuz", "System.map")]
    return unpacked.release


def _unsigned(cache: Cache) -> list[Path]:
    """The distribution's packages without a signature; made once per machine, as a step of the build cache."""
    maker = distro("debian", "12", "amd64", cache)
    names = tuple(sorted(name for group in PROGRAMS.values() for name in group))
    lock = maker.resolve(Request("extract", ((),), (KERNEL,), names))

    def make(out: Path) -> None:
        maker.fetch(lock, [*lock.sets["kernel"], *lock.sets["initrd"]], False, lambda _: None)
        with cache.scratch() as scratch:
            tree = _Tree(_made(scratch / "tree"))
            release = _debian(scratch, tree, maker, lock)
            _own_files(tree)
            make_rpms(_packages(tree.owned, release), tree.root, out)

    step = cache.step("rpm-test-distribution", {"lock": lock.digest, "made by": sha256_file(Path(__file__))}, make)
    return sorted(step.folder.glob("*.rpm"))


def distribution(repo: Path, by: Signer) -> Path:
    """Make the whole distribution in the folder ``repo``: packages signed, index signed."""
    _made(repo)
    by.sign_packages(*(Path(shutil.copy(path, repo)) for path in _unsigned(Cache(default_cache_dir()))))
    index(repo, by)
    return repo


TIMED = (
    "License: GPL-2.0-only", "Requires: bash", "Requires(pre): shadow-utils grep coreutils", "Recommends: unwanted",
)  # fmt: skip
TIMED_SCRIPTS = (
    "%pre @\ngroupadd -r timed && useradd -r -g timed -d /var/lib/timed -s /sbin/nologin timed",
    '%post @\necho "post of timed, $1 installed, as $(id -u)" >/var/lib/timed/post',
)
TIMED_FILES = ("%config(noreplace) /etc/timed.conf", "%attr(0750,timed,timed) %dir /var/lib/timed")
KERNEL_CORE = ("Requires: kernel-modules-core", "Requires(post): coreutils")
BROKERD = base64.b64encode(b'u brokerd - "A broker" /var/lib/brokerd -\0').decode().rstrip("=")
BROKERD_FILES = ("%attr(0700,brokerd,brokerd) %dir /var/lib/brokerd",)
OS_RELEASE = """NAME="Rocky Linux"
ID="rocky"
ID_LIKE="rhel centos fedora"
VERSION_ID="9.4"
PLATFORM_ID="platform:el9"
PRETTY_NAME="Rocky Linux 9.4 (made for a test)"
"""


def _own_files(tree: _Tree) -> None:
    for folder in FOLDERS:
        _made(tree.root / folder)
    for link, target in LINKS.items():
        (tree.root / link).symlink_to(target)
        tree.owned.setdefault("filesystem", []).append(_quoted(Path(link)))
    modes = {"proc": "0555", "sys": "0555", "root": "0550", "tmp": "1777", "var/tmp": "1777"}
    tree.owned["filesystem"] += [f"%attr({modes.get(f, '0755')},root,root) %dir /{f}" for f in FOLDERS]
    (tree.root / "usr/bin/sh").symlink_to("bash")
    tree.owned["bash"].append("/usr/bin/sh")
    tree.write("", "etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
    tree.write("", "etc/group", "root:x:0:\n")
    tree.write("", "etc/shadow", "root:*::0:99999:7:::\n", 0o600)
    tree.write("", "etc/gshadow", "root:::\n", 0o600)
    tree.write("rocky-release", "etc/os-release", OS_RELEASE)
    tree.write("rpm", "usr/lib/rpm/macros", "%_dbpath /var/lib/rpm\n%_db_backend sqlite\n")
    tree.write("timed", "usr/sbin/timed", "#!/bin/sh\nexec sleep 86400\n", 0o755)
    tree.write("", "etc/timed.conf", "server = master\n")
    _made(tree.root / "var/lib/timed")
    _made(tree.root / "var/lib/brokerd")
    tree.write("", "usr/bin/ping", "#!/bin/sh\nexit 0\n", 0o755)
    tree.write("unwanted", "usr/share/unwanted", "A weak dependency, which nobody asked for.\n")


def _packages(owned: dict[str, list[str]], kernel: str) -> list[Rpm]:
    version, _, rest = kernel.partition("-")
    krelease = rest.replace("-", ".")

    def files(name: str) -> tuple[str, ...]:
        return tuple(owned.get(name, ()))

    libs = ("Requires: system-libs", "Requires: glibc >= 2.30")
    setup = ("passwd", "group", "shadow", "gshadow")
    made = [
        Rpm("filesystem", "3.16", header=("Requires: setup",), files=files("filesystem")),
        Rpm("setup", "2.13", files=tuple(f"%config(noreplace) /etc/{f}" for f in setup), arch="noarch"),
        Rpm("basesystem", "11", header=("Requires: filesystem",), arch="noarch"),
        Rpm("rocky-release", "9.4", header=("Provides: system-release",), files=files("rocky-release"), arch="noarch"),
        Rpm("glibc", "2.36", header=("Epoch: 2", "Requires: filesystem"), files=files("glibc")),
        Rpm("glibc-minimal-langpack", "2.36", header=("Requires: glibc",)),
        Rpm("system-libs", header=("Requires: glibc",), files=files("system-libs")),
        Rpm("rpm", "4.16", header=("Requires: bash",), files=files("rpm")),
        Rpm("iputils", header=("Requires: bash",), files=("%caps(cap_net_raw=p) /usr/bin/ping",)),
        # As rpm 4.19 and newer writes it: sysusers.d(5)'s line as the version of user(NAME).
        Rpm("brokerd", header=(f"Provides: user(brokerd) = {BROKERD}",), files=BROKERD_FILES),
        Rpm("unwanted", files=files("unwanted"), arch="noarch"),
        Rpm("timed", "4.2", header=TIMED, scriptlets=TIMED_SCRIPTS, files=(*files("timed"), *TIMED_FILES)),
        Rpm("kernel-core", version, krelease, KERNEL_CORE, files=files("kernel-core")),
        Rpm("kernel-modules-core", version, krelease, files=files("kernel-modules-core")),
        Rpm("kernel-modules", version, krelease, ("Requires: kernel-core",), files=files("kernel-modules")),
        Rpm("kernel", version, krelease, ("Requires: kernel-core", "Requires: kernel-modules")),
    ]  # fmt: skip
    for name in PROGRAMS:
        extra = ("Provides: /bin/sh",) if name == "bash" else ()
        made.append(Rpm(name, header=(*(libs if name != "busybox" else ()), *extra), files=files(name)))
    return made
