# shellcheck shell=sh
# Fetching: sums and signature first, then every file hashed against its signed line. Cuts are resumed by range;
# a wrong digest is fetched once more, from another master where there is one.
# needs: base64 cat curl cut dd grep head minisign mkdir mv od sed sha256sum sleep tail tr truncate

CAPSULE=${CK_CAPSULE:-/run/capsule}

source_url() { # public|private DIGEST ATTEMPT: public bytes by plain HTTP, private ones by TLS with the session
    source_n=$(masters | grep -c .)
    masters | sed -n "$((($3 - 1) % source_n + 1))p" | {
        read -r source_http source_https
        case $1 in
            public) printf '%s/blobs/%s\n' "$source_http" "$2" ;;
            private) printf '%s/v1/blobs/%s\n' "$source_https" "$2" ;;
            script) printf '%s/v1/scripts/%s\n' "$source_https" "$2" ;;
        esac
    }
}

get() { # URL CURL-OPTION...: bytes to stdout; the session goes only to https
    get_url=$1
    shift
    set -- "$@" -q -sS -f --noproxy '*' --connect-timeout 10 --speed-limit 1000 --speed-time 30
    case $get_url in
        https://*) curl "$@" --proto =https --tlsv1.2 --cacert "$SITE/ca.pem" -K "$SESSION" "$get_url" </dev/null ;;
        *) curl "$@" --proto =http "$get_url" </dev/null ;;
    esac
}

append() { # FILE SIZE URL: grow FILE by SIZE bytes; resumes after cuts; false (reason in $RUN/append) when it can't
    append_start=$(file_size "$1")
    append_try=0
    : >"$RUN/curl.err"
    while [ "$append_try" -lt 5 ]; do
        append_have=$(($(file_size "$1") - append_start))
        [ "$append_have" -lt "$2" ] || break
        [ "$append_try" -eq 0 ] || sleep "$append_try"
        append_try=$((append_try + 1))
        append_once "$1" "$2" "$3" || :
    done
    append_have=$(($(file_size "$1") - append_start))
    [ "$append_have" -ne "$2" ] || return 0
    if [ "$append_have" -gt "$2" ]; then
        printf 'longer than %s bytes\n' "$2" >"$RUN/append"
    else
        printf 'truncated: %s of %s bytes (%s)\n' "$append_have" "$2" "$(printable "$(tail -n 1 "$RUN/curl.err")")" \
            >"$RUN/append"
    fi
    return 1
}

append_once() { # FILE SIZE URL; uses append_start and append_have
    # A file size limit, in blocks of 512: a server that sends without end must not fill the memory.
    append_limit=$(((append_start + $2 + 511) / 512))
    if [ "$append_have" -eq 0 ]; then
        (ulimit -f "$append_limit" && get "$3" >>"$1" 2>"$RUN/curl.err")
        return
    fi
    (ulimit -f "$append_limit" && get "$3" --range "$append_have-" -D "$RUN/headers" >>"$1" 2>"$RUN/curl.err") || :
    # A server that ignores ranges has sent the whole again: none of it belongs here.
    grep -q '^HTTP/[0-9.]* 206' "$RUN/headers" || truncate -s "$append_start" "$1"
}

digest_at() { # FILE OFFSET SIZE: sha256 of exactly these bytes
    dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$2" count="$3" 2>/dev/null | sha256sum | cut -d' ' -f1
}

take() { # FILE NAME DIGEST SIZE public|private|script: append the verified bytes, or leave FILE as it was and fail
    take_start=$(file_size "$1")
    for take_attempt in 1 2; do
        if append "$1" "$4" "$(source_url "$5" "$3" "$take_attempt")"; then
            take_got=$(digest_at "$1" "$take_start" "$4")
            [ "$take_got" != "$3" ] || return 0
            take_reason="digest mismatch: expected $3 got $take_got"
        else
            take_reason=$(cat "$RUN/append")
        fi
        truncate -s "$take_start" "$1"
        [ "$take_attempt" -eq 2 ] || say "$2: $take_reason; fetching it once more"
    done
    fail "$2: $take_reason"
}

take_file() { # TARGET NAME DIGEST SIZE KIND: the same into a file of its own; kept when it is there and right
    if [ -f "$1" ] && [ "$(file_size "$1")" = "$4" ] && [ "$(digest_at "$1" 0 "$4")" = "$3" ]; then return 0; fi
    mkdir -p "${1%/*}"
    : >"$1.part"
    take "$1.part" "$2" "$3" "$4" "$5"
    mv "$1.part" "$1"
}

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
    for sums_name in SHA256SUMS SHA256SUMS.minisig; do
        sums_url=$(masters | head -n 1 | cut -d' ' -f1)/capsules/$sums_identity/$sums_name
        (ulimit -f 2048 && get "$sums_url" --retry 3 >"$CAPSULE/$sums_name" 2>"$RUN/curl.err") ||
            fail "$sums_name: $(printable "$(tail -n 1 "$RUN/curl.err")")"
    done
    verify_sums "$CAPSULE/SHA256SUMS" "$sums_identity" "$sums_key" "$(plan_value comment)"
    detail "signed by $(key_id "$sums_key")"
}

verify_sums() { # FILE IDENTITY KEY COMMENT
    verify_got=$(sha256sum "$1" | cut -d' ' -f1)
    [ "$verify_got" = "$2" ] || fail "SHA256SUMS: digest mismatch: expected $2 got $verify_got"
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
    while read -r members_kind members_path members_digest members_size members_where <&3; do
        [ "$members_kind" = file ] || continue
        case $members_path in
            layers/*.acl) ;;
            boot/initrd.img | layers/*) continue ;;
        esac
        take_file "$CAPSULE/$members_path" "$members_path" "$members_digest" "$members_size" "$members_where"
    done 3<"$PLAN"
}
