# shellcheck shell=sh
# Fetching: each file is hashed against its signed line before anything uses it. Cuts are resumed by range, also at
# another source. Wrong bytes from a mirror end its use; from a master they are fetched once more, then it is a failure.
# needs: curl cut dd grep mkdir mv rm sed sha256sum sleep sort truncate

FETCH_ROUNDS=5 # rounds over all sources without one new byte, until it is a failure

get() { # public|private|script URL CURL-OPTION...: bytes to stdout
    get_kind=$1 get_url=$2
    shift 2
    # A redirect is an error (the limit works only with -L): its page would be taken for the file's first bytes.
    set -- -q -sS -f -L --max-redirs 0 --noproxy '*' --connect-timeout 10 --speed-limit 1000 --speed-time 20 "$@"
    case $get_kind:$get_url in
        # A mirror's certificate proves nothing to us: its bytes are public, and count only by their digest.
        public:https://*) curl "$@" --proto =https --insecure "$get_url" </dev/null ;;
        public:*) curl "$@" --proto =http "$get_url" </dev/null ;;
        # By the kind, not by the URL: what a mirror's looks like must not decide who is sent the session key.
        *) curl "$@" --proto =https --tlsv1.2 --cacert "$SITE/ca.pem" -K "$SESSION" "$get_url" </dev/null ;;
    esac
}

append_once() { # FILE SIZE URL START KIND: grow what FILE has behind START towards SIZE bytes; may be cut at any place
    append_have=$(($(file_size "$1") - $4))
    # A file size limit, in blocks of 512: a server that sends without end must not fill the memory.
    append_limit=$((($4 + $2 + 511) / 512))
    : >"$RUN/curl.err"
    if [ "$append_have" -eq 0 ]; then
        (ulimit -f "$append_limit" && get "$5" "$3" >>"$1" 2>"$RUN/curl.err") || :
        return
    fi
    : >"$RUN/headers"
    (ulimit -f "$append_limit" && get "$5" "$3" --range "$append_have-" -D "$RUN/headers" >>"$1" 2>"$RUN/curl.err") || :
    # Another answer than "here is that part": none of its bytes belongs here. None at all: keep what is there.
    if grep -q '^HTTP/' "$RUN/headers" && ! grep -q '^HTTP/[0-9.]* 206' "$RUN/headers"; then
        truncate -s "$(($4 + append_have))" "$1"
        # A server that does not know ranges must get the chance to send the whole.
        ! grep -q '^HTTP/[0-9.]* 200' "$RUN/headers" || truncate -s "$4" "$1"
    fi
}

fill() { # FILE NAME DIGEST SIZE KIND START: ask the sources until SIZE bytes lie behind START; false with the reason
    fill_idle=0
    fill_most=$(file_size "$1")
    while :; do
        [ $(($(file_size "$1") - $6)) -lt "$4" ] || return 0
        sources "$5" "$3" >"$RUN/sources"
        fill_gone=yes
        while read -r fill_what fill_base fill_url <&4; do
            fill_old=$(file_size "$1")
            append_once "$1" "$4" "$fill_url" "$6" "$5"
            [ "$(file_size "$1")" -eq "$fill_old" ] || printf '%s %s\n' "$fill_what" "$fill_base" >>"$RUN/involved"
            fill_have=$(($(file_size "$1") - $6))
            [ "$fill_have" -ne "$4" ] || return 0
            fill_blame "$@"
        done 4<"$RUN/sources"
        [ "$fill_gone" = no ] || because "$2: no longer on the master (404): the capsule was replaced or removed" || return 1
        fill_idle=$((fill_idle + 1))
        # More than ever before: a server that begins again each time, and is cut each time, must come to an end.
        [ "$(file_size "$1")" -le "$fill_most" ] || fill_idle=1 fill_most=$(file_size "$1")
        [ "$fill_idle" -lt "$FETCH_ROUNDS" ] || because "$2: $fill_why" || return 1
        sleep "$(jittered $((2 * fill_idle)))"
    done
}

fill_blame() { # FILE NAME DIGEST SIZE KIND START: this source did not bring it to the end: why, and what follows
    if [ "$fill_have" -gt "$4" ]; then
        truncate -s "$6" "$1"
        fill_why="longer than $4 bytes"
    elif not_found; then
        fill_why="not there (404)"
    else
        fill_why="truncated: $fill_have of $4 bytes ($(curl_why))"
    fi
    if [ "$fill_what" = mirror ]; then
        say "$2: mirror $fill_base: $fill_why; asking the next source"
        # One that lacks this file may have the others.
        not_found || drop_mirror "$fill_base"
    else
        not_found || fill_gone=no
        [ "$fill_idle" -gt 0 ] || say "$2: $fill_base: $fill_why; trying again"
    fi
}

not_found() { grep -q -E ' error: 404( |$)' "$RUN/curl.err"; } # as curl -f says it

digest_at() { # FILE OFFSET SIZE: sha256 of exactly these bytes
    dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$2" count="$3" 2>/dev/null | sha256sum | cut -d' ' -f1
}

take() { # FILE NAME DIGEST SIZE public|private|script START: the verified bytes behind START of FILE, or fail
    # What an earlier attempt left there is gone on with; only wrong bytes are cut off.
    [ "$(file_size "$1")" -gt "$6" ] || : >"$RUN/involved"
    : >>"$RUN/involved"
    if [ "$5" = public ] && disk_take "$@"; then return 0; fi
    if [ "$5" = public ] && nfs_take "$@"; then
        : >"$RUN/involved"
        disk_keep "$@"
        return 0
    fi
    take_wrong=0
    while :; do
        fill "$@" || exit 1
        take_got=$(digest_at "$1" "$6" "$4")
        [ "$take_got" != "$3" ] || break
        truncate -s "$6" "$1"
        take_reason="digest mismatch: expected $3 got $take_got"
        take_blame "$2"
    done
    : >"$RUN/involved"
    [ "$5" != public ] || disk_keep "$@"
}

take_blame() { # NAME: all who sent a part of the wrong bytes
    if grep -q '^mirror ' "$RUN/involved"; then
        sed -n 's/^mirror //p' "$RUN/involved" | sort -u | while read -r blame_mirror; do
            say "$1: $take_reason; mirror $blame_mirror is not asked again"
            drop_mirror "$blame_mirror"
        done
    else
        take_wrong=$((take_wrong + 1))
        [ "$take_wrong" -lt 2 ] || fail "$1: $take_reason"
        say "$1: $take_reason; fetching it once more"
        rm -f "$RUN/master" # "elsewhere" where there is one: the next in the order
        rotate_masters
    fi
    : >"$RUN/involved"
}

rotate_masters() { # the first one becomes the last
    masters >"$RUN/masters.old"
    { sed 1d "$RUN/masters.old" && sed -n 1p "$RUN/masters.old"; } >"$RUN/masters.all"
}

take_file() { # TARGET NAME DIGEST SIZE KIND: the same into a file of its own; kept when it is there and right
    if [ -f "$1" ] && [ "$(file_size "$1")" = "$4" ] && [ "$(digest_at "$1" 0 "$4")" = "$3" ]; then return 0; fi
    mkdir -p "${1%/*}"
    : >>"$1.part"
    [ "$(file_size "$1.part")" -le "$4" ] || : >"$1.part"
    take "$1.part" "$2" "$3" "$4" "$5" 0
    mv "$1.part" "$1"
}

prefetch() { # private|script, and lines "TARGET DIGEST SIZE" on stdin: over one connection, unverified, into .part
    # A TLS handshake costs more than a small file. What does not come, or is wrong, is take_file's to get.
    prefetch_most=0
    (umask 077 && : >"$RUN/prefetch.curl")
    while read -r prefetch_target prefetch_digest prefetch_size; do
        if [ -e "$prefetch_target" ] || [ -e "$prefetch_target.part" ]; then continue; fi
        mkdir -p "${prefetch_target%/*}"
        [ "$prefetch_size" -le "$prefetch_most" ] || prefetch_most=$prefetch_size
        sources "$1" "$prefetch_digest" | sed -n '1s/^[^ ]* [^ ]* \(.*\)/url = "\1"/p'
        printf 'output = "%s.part"\n' "$prefetch_target"
    done >>"$RUN/prefetch.curl"
    [ -s "$RUN/prefetch.curl" ] || return 0
    (ulimit -f $(((prefetch_most + 511) / 512)) && tls -f --fail-early --speed-limit 1000 --speed-time 20 \
        -K "$SESSION" -K "$RUN/prefetch.curl" >/dev/null 2>&1) || :
}
