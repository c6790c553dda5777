#!/bin/sh
# Installs more packages into a root that is there, from a local repository and nothing else; the new root to stdout.
#   add.sh WORK BEFORE.tar ADDRESS VARIANT ARCH NAME...
# ADDRESS is the folder WORK/repo as a list of sources spells it: blanks and the like percent-encoded.
set -eu
umask 022
work=$1 before=$2 address=$3 variant=$4 arch=$5
shift 5
here=$(dirname "$0")
root=$work/mem/root
# shellcheck source=capsulekit/namespace/inside.lib.sh
. "$here/../namespace/inside.lib.sh"

unpack_root "$before" "$root"
if [ "$variant" = extract ]; then
    for package in "$work"/repo/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    pack_root "$root"
    exit 0
fi

mkdir -p "$work/lists/partial" "$root/var/cache/apt/archives/partial"
printf 'deb [trusted=yes] copy:%s ./\n' "$address" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir "$root";
Dir::State::Lists "$work/lists";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Log "$work";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
DPkg::Chroot-Directory "$root";
DPkg::Options:: "--force-unsafe-io";
CONF
export APT_CONFIG="$work/apt.conf"

mount_inside "$root"
# Nothing is started while packages are installed (invoke-rc.d(8), start-stop-daemon(8)).
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
daemon=$root/sbin/start-stop-daemon
mv "$daemon" "$daemon.REAL"
printf '#!/bin/sh\nexit 0\n' >"$daemon"
chmod 755 "$daemon"

apt-get -qq update >&2
apt-get -qq --yes --no-remove install -- "$@" </dev/null >&2

mv "$daemon.REAL" "$daemon"
rm -f "$root/usr/sbin/policy-rc.d" "$root"/var/cache/apt/archives/*.deb
make_caches "$root" "$work/caches"
umount_inside "$root"
pack_root "$root"
