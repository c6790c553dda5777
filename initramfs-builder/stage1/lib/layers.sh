# shellcheck shell=sh
# The stack: each layer loop-mounted where it lies in the file, an overlay over them with a writable upper.
# needs: grep losetup mkdir mount rm sed tac umount

NEWROOT=${CK_NEWROOT:-/run/root}
STACK=${CK_STACK:-/run/s} # short: mount options end at one page

overlay_options() { # LOWERDIRS UPPER WORK
    printf 'lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off,index=off,xino=off\n' "$1" "$2" "$3"
}

mount_layers() {
    mkdir -p "$STACK" "$NEWROOT"
    rm -rf "${STACK:?}/u" "$STACK/w"
    mkdir -m 755 "$STACK/u"
    mkdir "$STACK/w"
    layers_n=0 layers_lower=
    while read -r layers_kind layers_path _ <&3; do
        [ "$layers_kind" = layer ] || continue
        mount_layer "$layers_path" "$STACK/$layers_n"
        layers_lower=${layers_lower:+$layers_lower:}$STACK/$layers_n
        layers_n=$((layers_n + 1))
    done 3<"$PLAN"
    mount -t overlay -o "$(overlay_options "$layers_lower" "$STACK/u" "$STACK/w")" overlay "$NEWROOT" ||
        fail "overlay: could not be mounted over $layers_n layers"
    mount_api_dirs
    detail "$layers_n layers"
}

mount_layer() { # PATH TARGET: its bytes were checked when they were fetched
    layer_at=$(sed -n "s|^$1 [0-9a-f]* \([0-9]*\) .*|\1|p" "$COMPOSED")
    layer_loop=$(losetup -f) || fail "$1: no free loop device"
    losetup -r -o "$layer_at" "$layer_loop" "$INITRD" || fail "$1: loop device $layer_loop could not be set up"
    printf '%s\n' "$layer_loop" >>"$RUN/loops"
    mkdir -p "$2"
    mount -t squashfs -o ro "$layer_loop" "$2" || fail "$1: could not be mounted (is it a squashfs?)"
}

mount_api_dirs() { # scripts that chroot expect them
    [ ! -d "$NEWROOT/proc" ] || mount -t proc proc "$NEWROOT/proc"
    [ ! -d "$NEWROOT/sys" ] || mount -t sysfs sysfs "$NEWROOT/sys"
    [ ! -d "$NEWROOT/dev" ] || mount -o bind /dev "$NEWROOT/dev"
}

unmount_layers() { # safe at any time; a process that a script left behind must not keep the boot from going on
    grep -o -E " ($NEWROOT|$STACK)(/[^ ]*)? " "$PROC/mounts" | tac | while read -r unmount_path; do
        umount "$unmount_path" 2>/dev/null || umount -l "$unmount_path" || :
    done
    [ -s "$RUN/loops" ] || return 0
    while read -r unmount_loop; do losetup -d "$unmount_loop" 2>/dev/null || :; done <"$RUN/loops"
    rm -f "$RUN/loops"
}
