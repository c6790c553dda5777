#!/bin/sh
# mmdebstrap's customize hook: bring the recipe's files, scripts and services into the new root.
#   $CAPSULEKIT_WORK/files       lines "NUMBER MODE PATH": the recipe's files
#   $CAPSULEKIT_WORK/content/*   their content, by number
#   $CAPSULEKIT_WORK/scripts/*   scripts to run inside the root, in order of their names
#   $CAPSULEKIT_WORK/units       lines "VERB UNIT" for systemctl
#   $CAPSULEKIT_WORK/sources     the sources.list the finished root gets (when it has apt)
set -eu
umask 022
root=$1
work=$CAPSULEKIT_WORK

rm -f "$root/etc/apt/sources.list"
if [ -d "$root/etc/apt/sources.list.d" ] && [ -x "$root/usr/bin/apt-get" ]; then
    install -m 0644 "$work/sources" "$root/etc/apt/sources.list"
fi

# Links on the way to a file are followed inside the new root: /sbin may be a link to usr/sbin, /var/run one to /run.
# The name itself is replaced, link or not.
while read -r number mode path; do
    folder=${path%/*}
    folder=$root$(dpkg-realpath --root "$root" "${folder:-/}")
    mkdir -p "$folder"
    install -T -m "$mode" "$work/content/$number" "$folder/${path##*/}"
done <"$work/files"

# Every file of a layer has the build's time. With these two, systemd sees that /etc and /var are as new as /usr and
# does not rebuild hwdb, users and caches on every boot of a stateless node (systemd-update-done.service(8)).
if [ -d "$root/usr/lib/systemd" ]; then
    touch "$root/etc/.updated" "$root/var/.updated"
fi

for script in "$work"/scripts/*; do
    [ -e "$script" ] || continue
    install -m 0700 "$script" "$root/capsulekit-script"
    if ! chroot "$root" /capsulekit-script </dev/null >&2; then
        name=${script##*/}
        echo "E: the recipe's script ${name#*-} failed" >&2
        exit 1
    fi
    rm -f "$root/capsulekit-script"
done

while read -r verb unit; do
    if ! chroot "$root" systemctl --quiet "$verb" -- "$unit" </dev/null >&2; then
        echo "E: systemctl $verb $unit failed: is the unit's package in [packages]?" >&2
        exit 1
    fi
done <"$work/units"
