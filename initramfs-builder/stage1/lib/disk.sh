# shellcheck shell=sh
# A local disk that keeps layers between boots: the file system labelled CAPSULEKIT, where the node has one; nothing is
# looked for, or written, anywhere else. Public files only, by digest, and each is hashed again when it is used.
# Whatever goes wrong here costs time, never the boot.
# needs: cat dd df findfs grep mkdir modprobe mount mv rm sed sync truncate umount

DISK=${CK_DISK:-/run/disk}
DISK_LABEL=CAPSULEKIT
BLOBS=$DISK/capsulekit/blobs

disk_open() { # mount it if it is there
    for disk_driver in ext4 xfs; do "$MODPROBE" -q "$disk_driver" || :; done
    disk_device=$(findfs "LABEL=$DISK_LABEL" 2>/dev/null) || { detail "no disk is labelled $DISK_LABEL" && return 0; }
    ! disk_mounted || return 0
    mkdir -p "$DISK"
    if ! mount -o nosuid,nodev,noexec,noatime "$disk_device" "$DISK" 2>"$RUN/disk.err" ||
        ! disk_folder 2>"$RUN/disk.err"; then
        umount "$DISK" 2>/dev/null || :
        detail "$disk_device is not used: $(printable "$(sed -n '$p' "$RUN/disk.err")")"
        return 0
    fi
    rm -f "$BLOBS"/*.new # a node that was switched off in the middle left them
    detail "$disk_device, $(($(disk_free) / 1048576)) MB free"
}

disk_folder() { # a link could lead to where nothing may be written or removed
    for disk_path in "$DISK/capsulekit" "$BLOBS"; do
        [ ! -L "$disk_path" ] || { printf '%s\n' "${disk_path#"$DISK/"} is a link" >&2 && return 1; }
    done
    mkdir -p "$BLOBS"
}

disk_mounted() { grep -q -F " $DISK " "$PROC/mounts"; }

disk_free() { # bytes
    disk_kb=$(df -P -k "$DISK" | sed -n '2s/^[^ ]* *[0-9]* *[0-9]* *\([0-9]*\) .*/\1/p')
    printf '%s\n' "$((${disk_kb:-0} * 1024))"
}

disk_take() { # FILE NAME DIGEST SIZE KIND START: append it from the disk; false when the disk has not got it, whole
    disk_mounted || return 1
    if [ ! -f "$BLOBS/$3" ] || [ "$(file_size "$BLOBS/$3")" -ne "$4" ]; then return 1; fi
    truncate -s "$6" "$1"
    if cat "$BLOBS/$3" >>"$1" && [ "$(digest_at "$1" "$6" "$4")" = "$3" ]; then return 0; fi
    truncate -s "$6" "$1"
    say "$2: the copy on the local disk is damaged; it is removed and fetched again"
    rm -f "$BLOBS/$3" || :
    return 1
}

disk_keep() { # FILE NAME DIGEST SIZE KIND START: a copy for the next boot
    disk_mounted || return 0
    # A twentieth stays free for whoever else uses the disk.
    disk_need=$(($4 + $4 / 20 + 1048576))
    [ "$(disk_free)" -ge "$disk_need" ] || disk_evict
    if [ "$(disk_free)" -lt "$disk_need" ]; then
        say "$2: no room for it on the local disk ($(megabytes "$disk_need") MB)"
        return 0
    fi
    if dd if="$1" of="$BLOBS/$3.new" bs=1M iflag=skip_bytes,count_bytes skip="$6" count="$4" 2>"$RUN/disk.err" &&
        sync "$BLOBS/$3.new" 2>"$RUN/disk.err" && mv "$BLOBS/$3.new" "$BLOBS/$3"; then
        return 0
    fi
    say "$2: not kept on the local disk: $(printable "$(sed -n '$p' "$RUN/disk.err")")"
    rm -f "$BLOBS/$3.new" || :
}

disk_evict() { # what the plan does not name
    for disk_blob in "$BLOBS"/*; do
        if [ -f "$disk_blob" ] && ! grep -q -F " ${disk_blob##*/} " "$PLAN"; then rm -f "$disk_blob" || :; fi
    done
}

disk_close() {
    if disk_mounted; then umount "$DISK" || umount -l "$DISK" || :; fi
}
