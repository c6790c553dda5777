#!/bin/sh
# Brings a recipe's own parts into an installed root and writes the finished root to stdout as a tar.
#   customize.sh WORK BEFORE.tar PYTHON
# WORK holds, each line by line unless said otherwise:
#   groups       "NAME GID|-"
#   users        "NAME UID|- GID|- SYSTEM HOME|- SHELL|- GROUPS|-"; passwords: "NAME:HASH"; keys/NAME: authorized keys
#   files        "NUMBER MODE OWNER GROUP PATH"; content/NUMBER: the bytes
#   units        "VERB UNIT" for systemctl
#   scripts/*    scripts to run inside the root, in order of their names
#   sources      the sources.list the root gets (when it has apt)
#   caches       what make_caches runs last; not there when nothing of the recipe touches what they are made of
#   closure      the first program; when there, what the root needs to boot is written to closure.json
#   break        the name of the step after which a shell is opened, instead of going on
#   changed/     gets, for each step that ran a program, the paths it changed, each ended by a zero byte
set -eu
umask 022
work=$1 before=$2 python=$3
root=$work/mem/root
# shellcheck source=capsulekit/namespace/inside.lib.sh
. "$(dirname "$0")/../namespace/inside.lib.sh"

stop() {
    echo "E: $1" >&2
    exit 1
}

# A step's changes are what has a newer ctime than its mark: a tick of the clock lies on either side of the mark.
begin() {
    sleep 0.01
    : >"$work/mark"
    sleep 0.01
}

end() {
    inside "$root" -newercc "$work/mark" -printf '%P\0' >"$work/changed/$1"
}

break_after() {
    [ "$1" = "$(cat "$work/break" 2>/dev/null)" ] || return 0
    echo "The root as it is after the step $1. The build ends when this shell does." >/dev/tty
    chroot "$root" /bin/sh -i </dev/tty >/dev/tty 2>&1 || true
    exit 90
}

# has passwd|group NAME: whether the root knows the name already.
has() {
    cut -d: -f1 "$root/etc/$1" 2>/dev/null | grep -qxF -- "$2"
}

# A group or user that is there gets what the recipe says of it.
add_groups() {
    while read -r name gid; do
        set -- "$name"
        [ "$gid" = - ] || set -- -g "$gid" "$@"
        if ! has group "$name"; then
            chroot "$root" groupadd "$@" </dev/null >&2 || stop "the group $name cannot be added: is groupadd in [packages]?"
        elif [ "$gid" != - ]; then
            chroot "$root" groupmod "$@" </dev/null >&2 || stop "the group $name cannot be changed"
        fi
    done <"$work/groups"
}

add_users() {
    while read -r name uid gid system home shell groups; do
        set --
        [ "$uid" = - ] || set -- "$@" -u "$uid"
        [ "$gid" = - ] || set -- "$@" -g "$gid"
        [ "$home" = - ] || set -- "$@" -d "$home"
        [ "$shell" = - ] || set -- "$@" -s "$shell"
        [ "$groups" = - ] || set -- "$@" -G "$groups"
        if ! has passwd "$name"; then
            [ "$system" = no ] || set -- "$@" --system
            chroot "$root" useradd --no-log-init --create-home "$@" "$name" </dev/null >&2 ||
                stop "the user $name cannot be added: is useradd in [packages]?"
        elif [ $# -gt 0 ]; then
            [ "$groups" = - ] || set -- --append "$@"
            chroot "$root" usermod "$@" "$name" </dev/null >&2 || stop "the user $name cannot be changed"
        fi
    done <"$work/users"
    [ ! -s "$work/passwords" ] || chroot "$root" chpasswd -e <"$work/passwords" >&2 || stop "a password hash was refused"
    "$python" -P -m capsulekit.rootfs.place keys "$root" "$work"
}

# With these two, systemd sees that /etc and /var are as new as /usr and does not rebuild hwdb, users and caches on
# every boot of a stateless node (systemd-update-done.service(8)).
mark_updated() {
    if [ -d "$root/usr/lib/systemd" ]; then
        touch "$root/etc/.updated" "$root/var/.updated"
    fi
}

# One call for all units of a verb; when it fails, one after the other says which it was.
set_units() {
    for verb in enable disable mask; do
        units=$(sed -n "s/^$verb //p" "$work/units")
        [ -n "$units" ] || continue
        # shellcheck disable=SC2086 # names without blanks (recipe/settings.py)
        chroot "$root" systemctl --quiet "$verb" -- $units </dev/null >&2 && continue
        for unit in $units; do
            chroot "$root" systemctl --quiet "$verb" -- "$unit" </dev/null >&2 ||
                stop "systemctl $verb $unit failed: is the unit's package in [packages]?"
        done
    done
}

run_script() {
    install -m 0700 "$1" "$root/capsulekit-script"
    chroot "$root" /capsulekit-script </dev/null >&2 || stop "the recipe's script $2 failed"
    rm -f "$root/capsulekit-script"
}

mkdir "$work/changed"
unpack_root "$before" "$root"
rm -f "$root/etc/apt/sources.list"
if [ -e "$work/sources" ] && [ -d "$root/etc/apt/sources.list.d" ] && [ -x "$root/usr/bin/apt-get" ]; then
    install -m 0644 "$work/sources" "$root/etc/apt/sources.list"
fi
mount_inside "$root"
break_after install

if [ -s "$work/groups" ] || [ -s "$work/users" ]; then
    begin
    add_groups
    add_users
    end users
fi
break_after users
"$python" -P -m capsulekit.rootfs.place files "$root" "$work"
mark_updated
break_after files
if [ -s "$work/units" ]; then
    begin
    set_units
    end services
fi
break_after services
for script in "$work"/scripts/*; do
    [ -e "$script" ] || continue
    name=${script##*/}
    name=${name#*-}
    begin
    run_script "$script" "$name"
    end "script $name"
    break_after "script $name"
done
begin
make_caches "$root" "$work/caches" begin
end caches
break_after caches

umount_inside "$root"
if [ -e "$work/closure" ]; then
    "$python" -P -m capsulekit.rootfs.closure "$root" "$work/closure.json" --init "$(cat "$work/closure")"
fi
pack_root "$root"
