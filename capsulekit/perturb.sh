#!/bin/sh
# shellcheck disable=SC1091,SC2154 # the settings are shell assignments, made by perturb.py
# Starts capsulekit.witness in other surroundings, as far as they can be had; it looks by itself what it got.
#   perturb.sh WORK
# The first program of namespaces of its own (capsulekit.run.run_apart), so nothing here reaches the machine.
# WORK/settings (written by capsulekit/perturb.py) says what shall differ; WORK/refused/NAME gets why something cannot.
set -eu
work=$1
. "$work/settings"

refuse() {
    echo "$2" >"$stage/work/refused/$1"
}

# The folders that must be seen, also below those that another user may not pass, which are covered by empty ones.
uncover() {
    while read -r hiding; do
        number=0
        while read -r folder; do
            number=$((number + 1))
            case $folder in "$hiding"/*) mkdir "$stage/kept$number" && mount --rbind "$folder" "$stage/kept$number" ;; esac
        done <"$stage/work/needed"
        mount -t tmpfs -o mode=0755 covered "$hiding"
        number=0
        while read -r folder; do
            number=$((number + 1))
            case $folder in "$hiding"/*) mkdir -p "$folder" && mount --rbind "$stage/kept$number" "$folder" ;; esac
        done <"$stage/work/needed"
    done <"$stage/work/hiding"
}

# A copy of /etc with another user, their subordinate ids (subuid(5)), and the moved clock for all programs (ld.so(8)).
# (An overlay would not do: a container's /etc may hold mounts that a namespace of a user cannot part from.)
own_etc() {
    etc=$stage/etc
    mkdir "$etc"
    cp -a /etc/. "$etc/" 2>/dev/null || : # what an ordinary user may not read is not needed
    mkdir -p "$etc/capsulekit-prove/seen"
    chmod 1777 "$etc/capsulekit-prove/seen"
    echo "somebody:x:$uid:$uid::$stage:/bin/false" >>"$etc/passwd"
    echo "somebody:x:$uid:" >>"$etc/group"
    echo "somebody:1048576:65536" >"$etc/subuid"
    cp "$etc/subuid" "$etc/subgid"
    if [ -n "$library" ]; then
        cp "$library" "$etc/capsulekit-prove/clock.so"
        echo /etc/capsulekit-prove/clock.so >"$etc/ld.so.preload"
    else
        refuse clock "datefudge is not installed"
    fi
    mount --bind "$etc" /etc
}

# A file system whose folders list their names in another order: ext4 does it by a hash that its seed changes.
own_order() {
    mkdir -p "$place"
    image=$stage/work/order.img
    if command -v mkfs.ext4 >/dev/null && truncate -s "${megabytes}M" "$image" &&
        mkfs.ext4 -q -F -O ^has_journal -E "hash_seed=$seed,lazy_itable_init=1,nodiscard" -m 0 "$image" &&
        mount -o loop,noatime,nobarrier "$image" "$place"; then
        mkdir "$place/home" "$place/build"
    else
        refuse readdir "no ext4 file system of its own can be made or mounted here"
        mkdir "$stage/work/place"
        mount --bind "$stage/work/place" "$place"
        mkdir "$place/home" "$place/build"
    fi
}

# Whether that user may have a user namespace, and read this program.
can_be_another() {
    as_user unshare --user --map-root-user --map-auto true && as_user "$python" -P -c "import capsulekit.witness"
}

as_user() {
    setpriv --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
}

locale_here() {
    for name in $locales; do
        plain=$(echo "$name" | tr -d - | tr '[:upper:]' '[:lower:]')
        if locale -a | tr -d - | tr '[:upper:]' '[:lower:]' | grep -qxF "$plain"; then
            echo "$name"
            return 0
        fi
    done
    echo C
}

if [ "${CAPSULEKIT_NO_MOUNTS:-no}" = yes ]; then
    stage=$work/stage
    mkdir "$stage"
    ln -s "$work" "$stage/work"
    for name in clock hostname user readdir; do
        refuse "$name" "nothing can be mounted here"
    done
    uid=0
    place=$stage/$folder
    mkdir -p "$place/home" "$place/build"
else
    mount -t proc proc /proc # newuidmap looks up its caller by the number it has here
    mount -t tmpfs -o mode=0755 stage "$stage"
    mkdir "$stage/work"
    mount --bind "$work" "$stage/work"
    chmod 755 "$stage/work"
    place=$stage/$folder
    uncover
    [ "$uid" != 0 ] || refuse user "only root can become another user"
    own_etc
    own_order
    hostname "$host" || refuse hostname "the host name cannot be set here"
    if [ "$uid" != 0 ] && ! can_be_another; then
        refuse user "another user can have no user namespace here, or cannot read this program"
        uid=0
    fi
    chown -R "$uid:$uid" "$place/home" "$place/build" "$stage/work/out"
fi

set -- env -i PATH="$search" HOME="$place/home" TZ="$zone" LC_ALL="$(locale_here)" LANGUAGE=tr USER=somebody \
    LOGNAME=somebody SHELL=/bin/false PYTHONHASHSEED="$hashes" DATEFUDGE="$fudge" CAPSULEKIT_SCRATCH=disk ${repos:+CAPSULEKIT_REPOS_DIR="$repos"} \
    "$python" -P -m capsulekit.witness "$stage/work" "$place/build"
[ "$uid" = 0 ] || [ -z "$contained" ] || set -- unshare --user --map-root-user --map-auto -- "$@"
[ "$uid" = 0 ] || set -- setpriv --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
[ -z "$cores" ] || set -- taskset --cpu-list "$cores" "$@"
cd "$place/build"
umask "$mask"
[ "$uid" != 0 ] || exec "$@"
# We stay: whoever changes their user loses the signal that the kernel sends when the parent dies (prctl(2),
# PR_SET_PDEATHSIG), so a killed proof would be made to its end. With us, the first of the namespace, all of it ends.
status=0
"$@" || status=$?
exit "$status"
