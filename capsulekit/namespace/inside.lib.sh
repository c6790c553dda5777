# shellcheck shell=sh
# For scripts that work on a root file system in namespaces of their own: unpack it, enter it, pack it.

# unpack_root TAR ROOT: device nodes stay out; nobody but the machine's own root could make them.
unpack_root() {
    mkdir -m 0755 "$2"
    tar -C "$2" -xpf "$1" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' --warning=no-timestamp
}

# pack_root ROOT: to stdout, as mmdebstrap does it: names sorted, attributes kept. Times of the build, and those that no
# layer keeps, would each cost their file an extended header.
pack_root() {
    tar -C "$1" -cf - --format=pax --sort=name --numeric-owner --xattrs --xattrs-include='*' \
        --xattrs-exclude='security.selinux' --pax-option='delete=atime,delete=ctime' \
        --mtime="@$SOURCE_DATE_EPOCH" --clamp-mtime \
        --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' .
}

# mount_inside ROOT: what programs of the root expect to find.
mount_inside() {
    mkdir -p "$1/proc" "$1/sys" "$1/dev" "$1/run" "$1/tmp"
    if [ "${CAPSULEKIT_NO_MOUNTS:-no}" = yes ]; then
        cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$1/dev/"
        return 0
    fi
    mount -t proc proc "$1/proc"
    mount -t sysfs -o ro sysfs "$1/sys" 2>/dev/null || mount --rbind /sys "$1/sys"
    mount -t tmpfs -o mode=0755,nosuid dev "$1/dev"
    for node in null zero full random urandom tty; do
        : >"$1/dev/$node"
        mount --bind "/dev/$node" "$1/dev/$node"
    done
    mkdir "$1/dev/shm" "$1/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$1/dev/pts"
    ln -s pts/ptmx "$1/dev/ptmx"
    ln -s /proc/self/fd "$1/dev/fd"
    ln -s /proc/self/fd/0 "$1/dev/stdin"
    ln -s /proc/self/fd/1 "$1/dev/stdout"
    ln -s /proc/self/fd/2 "$1/dev/stderr"
    mount -t tmpfs -o mode=0755 run "$1/run"
    mount -t tmpfs -o mode=1777 tmp "$1/tmp"
    move_clock "$1"
}

umount_inside() {
    [ "${CAPSULEKIT_NO_MOUNTS:-no}" = no ] || return 0
    restore_clock "$1"
    for place in tmp run dev sys proc; do
        umount -R -l "$1/$place"
    done
}

# move_clock ROOT: where `capsulekit prove` has moved our clock (perturb.sh), programs of the root see that one too, until
# restore_clock ROOT. It is noted whether they do: those of another architecture, and static ones, see the real one.
move_clock() {
    [ -e /etc/capsulekit-prove/clock.so ] || return 0
    # A root that is still empty gets the folders from its packages, soon.
    [ -e "$1/etc" ] || [ -e "$1/usr" ] || mkdir -p "$1/etc" "$1/usr/lib"
    if [ ! -d "$1/etc" ] || [ ! -d "$1/usr/lib" ] || [ -e "$1/etc/ld.so.preload" ]; then
        : >/etc/capsulekit-prove/seen/real
        return 0
    fi
    # Below /usr, because Debian's usrmerge moves what /bin/cp loads from anywhere else.
    cp /etc/capsulekit-prove/clock.so "$1/usr/lib/capsulekit-clock.so"
    echo /usr/lib/capsulekit-clock.so >"$1/etc/ld.so.preload"
    # Such a root can tell only when its packages are there.
    if [ -e "$1/bin/date" ] || [ -e "$1/usr/bin/date" ]; then
        sees_our_clock "$1" || restore_clock "$1"
    fi
}

restore_clock() {
    [ -e "$1/usr/lib/capsulekit-clock.so" ] || return 0
    if sees_our_clock "$1"; then seen=moved; else seen=real; fi
    : >"/etc/capsulekit-prove/seen/$seen"
    rm "$1/usr/lib/capsulekit-clock.so" "$1/etc/ld.so.preload"
}

sees_our_clock() {
    [ "$(chroot "$1" date +%F 2>&1)" = "$(date +%F)" ]
}

# inside ROOT FIND-ACTION...: over every path of the root but what is mounted in it.
inside() {
    top=$1
    shift
    find "$top" -xdev -mindepth 1 \( -path "$top/proc" -o -path "$top/sys" -o -path "$top/dev" -o -path "$top/run" \
        -o -path "$top/tmp" \) -prune -o "$@"
}

# make_caches ROOT COMMANDS [AFTER]: COMMANDS has lines "PROGRAM COMMAND LINE", run inside when PROGRAM is in the root.
# They make caches that hold times, so every path gets the build's time before (then the function AFTER is called).
make_caches() {
    [ -e "$2" ] || return 0
    made=
    while read -r program command; do
        [ -x "$1$program" ] || continue
        if [ -z "$made" ]; then
            inside "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
            ${3:+"$3"}
            made=yes
        fi
        chroot "$1" /bin/sh -c "$command" </dev/null >&2 || {
            echo "E: $program failed in the root" >&2
            return 1
        }
    done <"$2"
}
