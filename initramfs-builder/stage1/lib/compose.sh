# shellcheck shell=sh
# The file that will be the initrd: capsule's initrd, layers/, later the node's own layer, the order, the trailer.
# A record of what is in it lets a later attempt keep every byte that still fits the plan.
# needs: cat cmp grep mv rm sed truncate

COMPOSED=$RUN/composed # lines: PATH DIGEST OFFSET-OF-DATA SIZE END

wanted() { # PATH DIGEST SIZE WHERE lines, in the order of the file
    sed -n 's/^file \(boot\/initrd\.img .*\)/\1/p' "$PLAN"
    sed -n 's/^layer \([^ ]*\) .*/\1/p' "$PLAN" | while read -r wanted_path; do
        grep -F "file $wanted_path " "$PLAN" | sed 's/^file //'
    done
}

keep_what_fits() { # cut the file back to the entries that the plan (again) starts with; prints the bytes kept
    keep_end=0
    wanted >"$RUN/wanted"
    grep '^file layers/[^ ]*\.acl ' "$PLAN" >"$RUN/wanted.acls" || : # they lie behind the capsule's initrd
    if [ ! -f "$INITRD" ] || ! cmp -s "$RUN/wanted.acls" "$COMPOSED.acls"; then
        : >"$COMPOSED"
        : >"$INITRD"
        rm -f "$COMPOSED.partial"
        mv "$RUN/wanted.acls" "$COMPOSED.acls"
    fi
    : >"$COMPOSED.new"
    while read -r keep_path keep_digest _ <&3 && read -r kept_path kept_digest kept_rest <&4; do
        [ "$keep_path $keep_digest" = "$kept_path $kept_digest" ] || break
        printf '%s %s %s\n' "$kept_path" "$kept_digest" "$kept_rest" >>"$COMPOSED.new"
        keep_end=${kept_rest##* }
    done 3<"$RUN/wanted" 4<"$COMPOSED"
    mv "$COMPOSED.new" "$COMPOSED"
    keep_partial
    truncate -s "$keep_end" "$INITRD"
    printf '%s\n' "$keep_end"
}

keep_partial() { # what a cut attempt had of the next entry is kept too: a long layer must not begin again
    [ -s "$COMPOSED.partial" ] || return 0
    read -r partial_path partial_digest partial_at <"$COMPOSED.partial"
    partial_next=$(sed -n "$(($(grep -c . "$COMPOSED") + 1))p" "$RUN/wanted")
    partial_have=$(file_size "$INITRD")
    case $partial_next in
        "$partial_path $partial_digest "*)
            if [ "$partial_at" -ge "$keep_end" ] && [ "$partial_have" -ge "$partial_at" ]; then
                keep_end=$partial_have
                return 0
            fi
            ;;
    esac
    rm -f "$COMPOSED.partial"
}

compose() { # fetch what is missing, each entry behind its header
    compose_n=0
    while read -r compose_path compose_digest compose_size compose_where <&3; do
        compose_n=$((compose_n + 1))
        [ -z "$(sed -n "${compose_n}p" "$COMPOSED")" ] || continue
        compose_open
        take "$INITRD" "$compose_path" "$compose_digest" "$compose_size" "$compose_where" "$compose_at"
        truncate -s "$((compose_at + compose_size))" "$INITRD" # an earlier attempt may have ended in compose_close
        compose_close
        printf '%s %s %s %s %s\n' "$compose_path" "$compose_digest" "$compose_at" "$compose_size" \
            "$(file_size "$INITRD")" >>"$COMPOSED"
        rm -f "$COMPOSED.partial"
    done 3<"$RUN/wanted"
    detail "$compose_n files, $(megabytes "$(file_size "$INITRD")") MB$(nfs_count)"
}

compose_open() { # sets compose_at, where the data begins: behind a new header, or where an earlier attempt began
    if [ -s "$COMPOSED.partial" ]; then
        read -r _ _ compose_at <"$COMPOSED.partial"
        return 0
    fi
    [ "$compose_path" = boot/initrd.img ] || cpio_open_file "$INITRD" "$compose_path" "$compose_size"
    compose_at=$(file_size "$INITRD")
    printf '%s %s %s\n' "$compose_path" "$compose_digest" "$compose_at" >"$COMPOSED.partial"
}

compose_close() {
    if [ "$compose_path" = boot/initrd.img ]; then
        cpio_pad "$INITRD" 4
        cpio_dir "$INITRD" layers
        compose_acls
    else
        cpio_close_file "$INITRD"
        # A loop device counts in sectors of 512: the layer's last bytes must not be the file's.
        cpio_open_file "$INITRD" layers/.end 0
    fi
}

compose_acls() { # what squashfs can't hold; small, fetched before. By the plan: an older one's files may lie there too
    while read -r _ compose_acl _; do
        cpio_small "$INITRD" "$compose_acl" "$CAPSULE/$compose_acl"
    done <"$COMPOSED.acls"
}

compose_end() { # NODE-LAYER: add the node's own layer and the order in which stage 2 mounts them, topmost first
    truncate -s "$(sed -n '$s/.* //p' "$COMPOSED")" "$INITRD"
    cpio_open_file "$INITRD" layers/node.squashfs "$(file_size "$1")"
    cat "$1" >>"$INITRD"
    cpio_close_file "$INITRD"
    {
        printf 'node.squashfs\n'
        sed -n 's/^layer layers\/\([^ ]*\) .*/\1/p' "$PLAN"
    } >"$RUN/order"
    cpio_small "$INITRD" layers/order "$RUN/order"
    # Whether stage 2 may give a shell (rd.break) is the site's to say, not the command line's.
    if console_open; then printf 'open\n'; else printf 'locked\n'; fi >"$RUN/console"
    cpio_small "$INITRD" layers/console "$RUN/console"
    cpio_trailer "$INITRD"
}
