# shellcheck shell=sh
# The capsule's signed list of digests: who signed it, whether it is the one the plan means, and the small files it names.
# needs: base64 cut grep minisign mkdir od rm sha256sum tr

CAPSULE=${CK_CAPSULE:-/run/capsule}

key_id() { # PUBLIC-KEY: as minisign prints it (its 8 bytes are little-endian)
    key_hex=$(printf '%s' "$1" | base64 -d 2>/dev/null | od -An -v -tx1 | tr -d ' \n' | tr a-f A-F)
    key_hex=$(printf '%s' "$key_hex" | cut -c5-20)
    key_out=
    while [ -n "$key_hex" ]; do
        key_out=${key_hex%"${key_hex#??}"}$key_out
        key_hex=${key_hex#??}
    done
    printf '%s\n' "$key_out"
}

key_trusted() { # PUBLIC-KEY: is it one of the site's?
    for key_file in "$SITE"/keys/*.pub; do
        [ ! -f "$key_file" ] || ! grep -q -x -F "$1" "$key_file" || return 0
    done
    return 1
}

get_sums() { # the signed list, before anything else is believed
    sums_identity=$(plan_value identity)
    sums_key=$(plan_value key)
    key_trusted "$sums_key" || fail "unknown signing key $(key_id "$sums_key")"
    mkdir -p "$CAPSULE"
    masters >"$RUN/sums.masters"
    while read -r sums_base _ <&4; do
        # In a shell of its own: where one master has something else, the next one may have the right list.
        if sums_from "$sums_base/capsules/$sums_identity" &&
            (verify_sums "$CAPSULE/SHA256SUMS" "$sums_identity" "$sums_key" "$(plan_value comment)"); then
            detail "signed by $(key_id "$sums_key")"
            return 0
        fi
    done 4<"$RUN/sums.masters"
    exit 1
}

sums_from() { # URL: list and signature; false with the reason
    for sums_name in SHA256SUMS SHA256SUMS.minisig; do
        rm -f "$CAPSULE/$sums_name"
        (ulimit -f 8192 && get public "$1/$sums_name" --retry 2 >"$CAPSULE/$sums_name" 2>"$RUN/curl.err") ||
            because "$sums_name: $(curl_why)" || return 1
    done
}

verify_sums() { # FILE IDENTITY KEY COMMENT
    verify_got=$(sha256sum "$1" | cut -d' ' -f1)
    [ "$verify_got" = "$2" ] || fail "SHA256SUMS: digest mismatch: expected $2 got $verify_got (not the capsule of the plan)"
    verify_comment=$(minisign -V -Q -P "$3" -m "$1" -x "$1.minisig") ||
        fail "SHA256SUMS: signature does not hold for key $(key_id "$3")"
    [ "$verify_comment" = "$4" ] ||
        fail "SHA256SUMS: trusted comment disagrees with the plan: $(printable "$verify_comment")"
    plan_agrees "$1"
}

plan_agrees() { # SUMS: every file of the plan is in the signed list, with the same digest
    while read -r agrees_kind agrees_path agrees_digest _; do
        [ "$agrees_kind" = file ] || continue
        grep -q -x -F "$agrees_digest  $agrees_path" "$1" || fail "$agrees_path: the plan's digest is not the signed one"
    done <"$PLAN"
}

get_members() { # the small files; layers and the initrd go straight into the file that is booted
    small_members >"$RUN/members"
    while read -r members_path members_digest members_size members_where; do
        [ "$members_where" != private ] || printf '%s %s %s\n' "$CAPSULE/$members_path" "$members_digest" "$members_size"
    done <"$RUN/members" | prefetch private
    while read -r members_path members_digest members_size members_where <&3; do
        take_file "$CAPSULE/$members_path" "$members_path" "$members_digest" "$members_size" "$members_where"
    done 3<"$RUN/members"
}

small_members() { # lines: PATH DIGEST SIZE WHERE
    while read -r small_kind small_path small_rest; do
        [ "$small_kind" = file ] || continue
        case $small_path in
            layers/*.acl) ;;
            boot/initrd.img | layers/*) continue ;;
        esac
        printf '%s %s\n' "$small_path" "$small_rest"
    done <"$PLAN"
}
