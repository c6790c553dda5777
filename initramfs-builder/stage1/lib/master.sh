# shellcheck shell=sh
# Talking to the masters: the session, the plan, the states. Secrets travel in files, never in arguments.
# needs: cat curl grep mv rm sleep

masters() { # "http://A:P https://A:P" lines, the one that answered last first
    [ ! -s "$RUN/master" ] || cat "$RUN/master"
    if [ -s "$RUN/master" ]; then
        grep -v -x -F -f "$RUN/master" "$SITE/masters" || :
    else
        cat "$SITE/masters"
    fi
}

tls() { # curl that believes the site's own certificate authority and no other
    curl -q -sS --noproxy '*' --proto =https --tlsv1.2 --cacert "$SITE/ca.pem" --connect-timeout 10 "$@" </dev/null
}

api() { # PATH OUT CURL-OPTION...: answer into OUT (at most 4 MiB), status code on stdout; asks each master in turn
    api_path=$1 api_out=$2
    shift 2
    masters >"$RUN/masters"
    rm -f "$api_out" # an empty answer must not leave an older one
    while read -r api_http api_https; do
        if api_code=$(ulimit -f 8192 && tls -o "$api_out" -w '%{http_code}' "$@" "$api_https$api_path" 2>"$RUN/curl.err"); then
            printf '%s %s\n' "$api_http" "$api_https" >"$RUN/master"
            printf '%s\n' "$api_code"
            return 0
        fi
    done <"$RUN/masters"
    # The node's own address may have become stale: the next attempt asks for a new one.
    rm -f "$RUN/master" "$RUN/lease"
    fail "no master answers: $(printable "$(cat "$RUN/curl.err")")"
}

first_line() { # FILE
    first_text=
    [ ! -s "$1" ] || IFS= read -r first_text <"$1" || :
    printable "$first_text"
}

open_session() { # TICKET MAC: trade the ticket for a key, once
    [ ! -s "$SESSION" ] || return 0
    umask 077
    printf 'ticket=%s&mac=%s' "$1" "$2" >"$RUN/ticket"
    session_code=$(api /v1/session "$RUN/session.answer" --max-time 30 --data "@$RUN/ticket")
    case $session_code in
        200) ;;
        401 | 403) reboot_needed "the master refused the ticket: $(first_line "$RUN/session.answer")" ;;
        *) fail "the master answered $session_code to the ticket: $(first_line "$RUN/session.answer")" ;;
    esac
    read -r session_word session_key <"$RUN/session.answer" || :
    rm -f "$RUN/session.answer" "$RUN/ticket"
    if [ "$session_word" != session ] || ! is_hex "$session_key" 64; then
        fail "the master's answer to the ticket is not understood"
    fi
    printf 'header = "Authorization: Bearer %s"\n' "$session_key" >"$SESSION"
}

get_plan() { # MAC: state init; waits as long as the master says so
    wait_shown=
    while :; do
        wait_began=$(centiseconds)
        plan_code=$(api /v1/state/init "$RUN/plan.new" -K "$SESSION" --max-time 90 --data "uptime=$(as_seconds "$wait_began")")
        case $plan_code in
            200) break ;;
            202) wait_told "$(first_line "$RUN/plan.new")" ;;
            401 | 403) reboot_needed "the master no longer knows this session ($plan_code)" ;;
            *) fail "the master answered $plan_code: $(first_line "$RUN/plan.new")" ;;
        esac
    done
    plan_check "$RUN/plan.new" "$1"
    mv "$RUN/plan.new" "$PLAN"
    clock_at_least "$(plan_value time)"
    detail "$(plan_value hostname) boots $(plan_value vnfs)"
}

wait_told() { # ANSWER: one line on the consoles per reason; never asks again in a hurry
    [ "$1" = "$wait_shown" ] || say "waiting: $(wait_reason "${1#wait }")"
    wait_shown=$1
    [ $(($(centiseconds) - wait_began)) -ge 1000 ] || sleep "$(jittered 4)"
}

wait_reason() { # WORD
    case $1 in
        disabled) printf 'this node is disabled on the master; it goes on by itself once enabled\n' ;;
        not-accepted) printf 'this node is not accepted yet (capsulekit node accept); it goes on by itself then\n' ;;
        no-capsule) printf 'no capsule is set for this node on the master\n' ;;
        capsule-missing) printf "this node's capsule is not on the master\n" ;;
        *) printf 'the master says: %s\n' "$1" ;;
    esac
}

tell_state() { # STATE
    state_code=$(api "/v1/state/$1" "$RUN/state.answer" -K "$SESSION" --max-time 30 \
        --data "uptime=$(as_seconds "$(centiseconds)")" --data "mem_used_kb=$(mem_peak boot)")
    [ "$state_code" = 200 ] || fail "the master answered $state_code to $1: $(first_line "$RUN/state.answer")"
}
