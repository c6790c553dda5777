# shellcheck shell=sh
# The network layer of a hybrid capsule: NFS 4, the lowest of the stack, so that its files show at their own paths.
# No driver for it is in the initrd: they are in the capsule's own layers, which are mounted by now, and so are the
# distribution's modprobe and udev. All of that is borrowed from a read-only view of those layers.
# shellcheck disable=SC2034,SC2154 # init says what it was DOING; stack.sh sets stack_lower
# needs: chroot mkdir modprobe mount sleep umount

# 4.1: every server has it. The layer's files never change, so asking now and then is enough: nocto, actimeo (nfs(5)).
HYBRID_OPTIONS=vers=4.1,sec=sys,hard,nocto,actimeo=600

mount_hybrid() { # nfs4:SERVER:/PATH TARGET
    hybrid_parse "$1"
    mkdir "$2"
    borrow_root
    nic_up
    DOING="mounting the network layer $1"
    borrowed_modprobe -q -a nfs nfsv4 || : # may be built in
    has_nfs4 || fail "this kernel has no NFS 4, built in or among the capsule's modules"
    hybrid_until_mounted "$2"
    return_root
}

hybrid_parse() { # VALUE: sets hybrid_export and hybrid_server
    case $1 in nfs4:?*:/*) ;; *) fail "ck.hybrid is not nfs4:SERVER:/PATH" ;; esac
    hybrid_export=${1#nfs4:}
    case $hybrid_export in
        \[*\]:/*) hybrid_server=${hybrid_export#\[} hybrid_server=${hybrid_server%%\]*} ;;
        *) hybrid_server=${hybrid_export%%:*} ;;
    esac
    case $hybrid_server in
        '' | *[!0-9A-Fa-f.:]*) fail "the server $hybrid_server is not an address: no names are looked up this early" ;;
    esac
}

has_nfs4() { # a line of /proc/filesystems is "nodev<TAB>NAME" or "<TAB>NAME"
    while read -r fs_first fs_second; do
        [ "${fs_second:-$fs_first}" != nfs4 ] || return 0
    done <"$PROC/filesystems"
    return 1
}

hybrid_until_mounted() { # TARGET: the server may come up after its nodes, however late
    hybrid_more=$(karg ck.hybrid-options)
    hybrid_options=$HYBRID_OPTIONS${hybrid_more:+,$hybrid_more},addr=$hybrid_server,ro
    hybrid_pause=2
    while ! try mount -t nfs4 -o "$hybrid_options" "$hybrid_export" "$1" 2>/dev/null; do # it is said below
        hybrid_why=$(complaint)
        hybrid_wait=$(jittered "$hybrid_pause")
        # "… failed: REASON", whosever mount it is.
        say "waiting for the network layer $hybrid_export: ${hybrid_why##*failed: }$(nic_link); trying again in $hybrid_wait s"
        sleep "$hybrid_wait"
        hybrid_pause=$((hybrid_pause * 2))
        [ "$hybrid_pause" -le 60 ] || hybrid_pause=60
    done
    say "the network layer $hybrid_export is mounted"
}

borrow() { # TYPE-OR-bind SOURCE TARGET [OPTIONS]: mount it until return_root
    if [ "$1" = bind ]; then
        try mount -o bind "$2" "$3"
    else
        try mount -t "$1" -o "${4:-mode=755}" "$2" "$3"
    fi
    borrowed_mounts="$3 $borrowed_mounts"
}

borrow_root() { # the local layers as one tree at $BORROWED, with what their programs expect to be mounted
    DOING='joining the local layers to take drivers from them'
    BORROWED=$STACK/b borrowed_mounts=
    mkdir "$BORROWED"
    case $stack_lower in
        *:*) borrow overlay overlay "$BORROWED" "lowerdir=$stack_lower,redirect_dir=off,metacopy=off,index=off,xino=off" ;;
        *) borrow bind "$stack_lower" "$BORROWED" ;; # overlay wants two
    esac
    for borrow_name in dev proc sys; do
        [ ! -d "$BORROWED/$borrow_name" ] || borrow bind "/$borrow_name" "$BORROWED/$borrow_name"
    done
    [ ! -d "$BORROWED/run" ] || borrow tmpfs tmpfs "$BORROWED/run"
    for borrow_name in modules firmware; do # the kernel looks in /lib by itself
        for borrow_from in "$BORROWED/usr/lib/$borrow_name" "$BORROWED/lib/$borrow_name"; do
            [ -d "$borrow_from" ] || continue
            mkdir -p "/lib/$borrow_name"
            borrow bind "$borrow_from" "/lib/$borrow_name"
            break
        done
    done
}

return_root() {
    for borrow_name in $borrowed_mounts; do
        umount -l "$borrow_name" # -l: a helper that the kernel called may still be ending
    done
}

borrowed_modprobe() { # ARG...: the distribution's own knows how its modules are compressed and what is blacklisted
    modprobe_status=0
    chroot "$BORROWED" /sbin/modprobe "$@" 2>/dev/null || modprobe_status=$?
    case $modprobe_status in
        126 | 127) modprobe "$@" ;; # there is none
        *) return "$modprobe_status" ;;
    esac
}
