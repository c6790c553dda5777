# shellcheck shell=sh
# The layers: each by its loop device, then the overlay, then the ACLs that squashfs can't hold.
# shellcheck disable=SC2034 # init says what it was DOING
# needs: chmod losetup mkdir modprobe mount setfacl stat

TAB=$(printf '\t')
MOST_OPTIONS=4095 # bytes: the kernel copies one page of mount options and cuts the rest off

load_drivers() {
    DOING='loading loop, squashfs and overlay'
    for driver in loop squashfs overlay; do modprobe -q "$driver" || :; done # may be built in
}

upper_size() { # ck.overlay-size=SIZE, as tmpfs takes it: how much of the memory may be written
    upper_text=$(karg ck.overlay-size)
    : "${upper_text:=50%}"
    upper_number=${upper_text%[kKmMgG%]}
    case $upper_number in
        '' | 0* | *[!0-9]*) fail "ck.overlay-size=$upper_text is no size: a number with k, m, g or %, such as 2g or 40%" ;;
    esac
    printf '%s\n' "$upper_text"
}

mount_layer() { # NAME TARGET
    DOING="mounting layer $1"
    [ -s "$LAYERS/$1" ] || fail "it is missing or empty"
    layer_loop=$(losetup -f)
    try losetup -r "$layer_loop" "$LAYERS/$1"
    mkdir -p "$2"
    try mount -t squashfs -o ro "$layer_loop" "$2"
}

mount_layers() { # topmost first, as layers/order lists them; sets stack_n and stack_lower
    DOING='reading the order of the layers'
    [ -s "$LAYERS/order" ] || fail "$LAYERS/order is missing or empty"
    stack_n=0 stack_lower=
    while read -r stack_name <&3; do
        mount_layer "$stack_name" "$STACK/$stack_n"
        stack_lower=${stack_lower:+$stack_lower:}$STACK/$stack_n
        stack_n=$((stack_n + 1))
    done 3<"$LAYERS/order"
}

mount_stack() {
    DOING='mounting the memory that the root is written to'
    stack_size=$(upper_size)
    # Its name is what df and the messages of a full one show.
    try mount -t tmpfs -o "mode=755,size=$stack_size" ck-upper "$STACK"
    mkdir -m 755 "$STACK/u"
    mkdir "$STACK/w"
    mount_layers
    add_network_layer
    mount_overlay
}

show_stack() { # for root on the running system: what was written, what is the node's own, and what lies below them
    # Nothing of it is needed for a start, so nothing of it stops one.
    mkdir -m 700 "$SHOWN" && mkdir "$SHOWN/u" "$SHOWN/n" "$SHOWN/c" "$SHOWN/b" "$SHOWN/m" &&
        show_view "$STACK/u" u && show_view "${stack_lower%%:*}" n && show_view "${stack_lower#*:}" c &&
        show_view "$stack_lower" b && show_view "$ROOT" m && return
    say "the layers can't be shown to the running system, so there is no telling what changed on it: $(complaint)"
}

show_view() { # LOWERS NAME: one folder as it is, or several as one tree
    case $1 in
        *:*) try mount -t overlay -o "ro,lowerdir=$1,redirect_dir=off,metacopy=off,index=off,xino=off" overlay "$SHOWN/$2" ;;
        *) try mount -o bind "$1" "$SHOWN/$2" && try mount -o remount,bind,ro "$1" "$SHOWN/$2" ;;
    esac
}

add_network_layer() { # the lowest of a hybrid capsule
    hybrid_from=$(karg ck.hybrid)
    [ -n "$hybrid_from" ] || return 0
    DOING="mounting the network layer $hybrid_from"
    [ -e "$LIB/hybrid.sh" ] || fail "this capsule was built without one: hybridize in its recipe, or take ck.hybrid away"
    mount_hybrid "$hybrid_from" "$STACK/h"
    stack_lower=$stack_lower:$STACK/h
    stack_n=$((stack_n + 1))
}

mount_overlay() {
    DOING="mounting the overlay of $stack_n layers"
    stack_options="lowerdir=$stack_lower,upperdir=$STACK/u,workdir=$STACK/w"
    stack_options=$stack_options,redirect_dir=off,metacopy=off,index=off,xino=off
    [ "${#stack_options}" -le "$MOST_OPTIONS" ] ||
        fail "so many do not fit the page of options a mount may have: join some of the capsule's layers"
    try mount -t overlay -o "$stack_options" overlay "$ROOT"
}

set_acls() { # the lowest layer's list first: a list says what an upper layer has, and has no more
    acl_order=
    while read -r acl_layer <&3; do acl_order="${acl_layer%.squashfs} $acl_order"; done 3<"$LAYERS/order"
    for acl_layer in $acl_order; do
        [ ! -f "$LAYERS/$acl_layer.acl" ] || apply_acls "$LAYERS/$acl_layer.acl"
    done
}

leads_through_link() { # PATH below the root
    link_at=$ROOT link_rest=$1
    while :; do
        [ ! -L "$link_at/${link_rest%%/*}" ] || return 0
        link_at=$link_at/${link_rest%%/*}
        case $link_rest in */*) link_rest=${link_rest#*/} ;; *) return 1 ;; esac
    done
}

unescape() { # TEXT: percent escapes to bytes; one more "." at the end keeps a final newline through $( )
    unescape_rest=$1
    while :; do
        case $unescape_rest in *%??*) ;; *) break ;; esac
        printf '%s' "${unescape_rest%%"%"*}"
        unescape_rest=${unescape_rest#*"%"}
        # shellcheck disable=SC2059 # the format is the byte, in octal
        printf "\\$(printf '%03o' "0x${unescape_rest%"${unescape_rest#??}"}")"
        unescape_rest=${unescape_rest#??}
    done
    printf '%s.' "$unescape_rest"
}

set_default_acl() { # ACL-OR-NOTHING FOLDER
    if [ -n "$1" ]; then try setfacl -d --set "$1" -- "$2"; else try setfacl -k -- "$2"; fi
}

# What a higher layer took away, or put a link in the place of, is skipped. No ACL at all: there is none any more.
apply_acls() { # FILE: PATH<TAB>access|default<TAB>ACL lines
    while IFS="$TAB" read -r acl_path acl_kind acl_text <&3; do
        acl_target=$(unescape "$acl_path")
        acl_target=${acl_target%.}
        if [ ! -e "$ROOT/$acl_target" ] || leads_through_link "$acl_target"; then continue; fi
        acl_target=$ROOT/$acl_target
        if [ "$acl_kind" = default ] && [ ! -d "$acl_target" ]; then continue; fi
        DOING="setting the ACL of /$acl_path"
        # Copied up first: overlay refuses an ACL while the file below is squashfs's, which knows none.
        try chmod "$(stat -c %a "$acl_target")" "$acl_target"
        case $acl_kind in
            access) try setfacl --set "$acl_text" -- "$acl_target" ;;
            default) set_default_acl "$acl_text" "$acl_target" ;;
        esac
    done 3<"$1"
}
