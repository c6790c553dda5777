#!/bin/sh
# Installs package files into a root with dnf, which sees no repository and no network; the new root to stdout.
#   install.sh WORK BEFORE.tar|- PACKAGES install|extract DBPATH LINKS PYTHON RELEASE ARCH
# WORK holds dnf.conf and, as the home folder, .rpmmacros; PACKAGES is the folder with the *.rpm files of this stage.
set -eu
umask 022
work=$1 before=$2 packages=$3 how=$4 dbpath=$5 links=$6 python=$7 release=$8 arch=$9
here=$(dirname "$0")
root=$work/mem/root
# shellcheck source=capsulekit/namespace/inside.lib.sh
. "$here/../namespace/inside.lib.sh"

if [ "$before" = - ]; then
    # The folders that are covered by a mount while packages are installed cannot get their modes from them.
    mkdir -m 0755 "$root" "$root/dev" "$root/run"
    mkdir -m 0555 "$root/proc" "$root/sys"
    mkdir -m 1777 "$root/tmp"
else
    unpack_root "$before" "$root"
fi

set -- "$packages"/*.rpm
# A stage may bring nothing new.
if [ ! -e "$1" ]; then
    pack_root "$root"
    exit 0
fi

if [ "$how" = extract ]; then
    sh "$here/unpack.sh" "$root" "$links" "$@"
    pack_root "$root"
    exit 0
fi

export PYTHONDONTWRITEBYTECODE=1
"$python" -m capsulekit.rpm.sysusers "$root" "$packages" "$SOURCE_DATE_EPOCH" >&2
mount_inside "$root"
dnf --config="$work/dnf.conf" --installroot="$root" --releasever="$release" --forcearch="$arch" \
    --disablerepo='*' --noplugins install "$@" </dev/null >&2
make_caches "$root" "$work/caches"
umount_inside "$root"
rm -rf "$root/.capsulekit"
for file in passwd group shadow gshadow; do
    rm -f "$root/etc/$file.rpmnew"
done
"$python" -m capsulekit.rpm.rpmdb "$root" "$dbpath" "$SOURCE_DATE_EPOCH" "$packages" >&2
pack_root "$root"
