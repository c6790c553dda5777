#!/bin/sh
# Installs what the named part lacks, and nothing else: system packages by name, Python packages from requirements.lock.
#   ./setup.sh base|demo|test|bench
set -eu
cd "$(dirname "$0")"

BASE="arch-test debian-archive-keyring dnf dnsmasq-base gpg grub-common grub-efi-amd64-bin grub-pc-bin hostname iproute2 ipxe"
BASE="$BASE kmod mmdebstrap mtools openssh-client rpm rsync shellcheck squashfs-tools uidmap xorriso"
DEMO="$BASE ipxe-qemu qemu-system-x86"
TEST="$DEMO acl apache2-bin busybox-static cpio createrepo-c curl dash datefudge e2fsprogs gcc git gpg-agent libc6-dev libcap2-bin minisign nfs-ganesha-vfs nginx-light openssh-server openssl ovmf postgresql"
BENCH="$DEMO cpio dracut-core initramfs-tools-core mkosi zstd"

case ${1:-} in
    base) wanted=$BASE ;;
    demo) wanted=$DEMO ;;
    test) wanted=$TEST ;;
    bench) wanted=$BENCH ;;
    *)
        echo "usage: ./setup.sh base|demo|test|bench" >&2
        exit 2
        ;;
esac

python=python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "ERROR: capsulekit needs Python 3.11 or newer, python3 is $("$python" -V 2>&1)" >&2
    exit 1
}
"$python" -c 'import ensurepip' 2>/dev/null || wanted="$wanted python3-venv"

missing=
for package in $wanted; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done

if [ -n "$missing" ]; then
    echo "Installing:$missing"
    if [ "$(id -u)" != 0 ]; then
        echo "ERROR: only root can install packages; run: apt-get install --no-install-recommends$missing" >&2
        exit 1
    fi
    # A package must not start a service on a machine that only wants to try something: policy-rc.d says no meanwhile.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        trap 'exit 130' INT TERM
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of names
    apt-get -qq install --no-install-recommends -y $missing >/dev/null 2>&1 || {
        apt-get -qq update
        apt-get -qq install --no-install-recommends -y $missing >/dev/null
    }
fi

stamp=$(cat requirements.lock pyproject.toml setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.stamp 2>/dev/null)" != "$stamp" ]; then
    echo "Making .venv"
    "$python" -m venv --clear .venv
    .venv/bin/pip install -qq --disable-pip-version-check --no-input --require-hashes -r requirements.lock
    .venv/bin/pip install -qq --disable-pip-version-check --no-input --no-deps --no-build-isolation --editable .
    echo "$stamp" >.venv/.stamp
fi

# Every command would compile the program anew where Python is told to write no bytecode.
.venv/bin/python -m compileall -q capsulekit provisioner initramfs-builder
