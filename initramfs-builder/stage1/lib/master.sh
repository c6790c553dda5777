# shellcheck shell=sh
# Talking to the masters: the session, the plan, the states. Secrets travel in files, never in arguments.
# needs: curl grep mv rm sleep tail

tls() { # curl that believes the site's own certificate authority and no other
    curl -q -sS --noproxy '*' --proto =https --tlsv1.2 --cacert "$SITE/ca.pem" --connect-timeout 10 "$@" </dev/null
}

api() { # PATH OUT CURL-OPTION...: answer into OUT (at most 4 MiB), status code on stdout; asks each master in turn
    # Called as X=$(api …) || exit 1: set -e alone does not end a caller that is itself being tested, and busybox's
    # shell forgets it inside nested $( ).
    api_path=$1 api_out=$2
    shift 2
    masters >"$RUN/masters"
    rm -f "$api_out" # an empty answer must not leave an older one
    : >"$RUN/curl.err"
    while read -r api_http api_https; do
        if api_code=$(ulimit -f 8192 && tls -o "$api_out" -w '%{http_code}' "$@" "$api_https$api_path" 2>"$RUN/curl.err"); then
            printf '%s %s\n' "$api_http" "$api_https" >"$RUN/master"
            printf '%s\n' "$api_code"
            return 0
        fi
    done <"$RUN/masters"
    # The node's own address may have become stale: the next attempt asks for a new one.
    rm -f "$RUN/master" "$RUN/lease"
    fail "no master answers: $(curl_why)"
}

curl_why() { # what curl complained about last
    # Below its message about a certificate curl prints a page of advice.
    why_line=$(grep '^curl: (' "$RUN/curl.err" | tail -n 1) || :
    printable "${why_line:-$(tail -n 1 "$RUN/curl.err")}"
}

master_answers() { # any of them, over TLS
    masters >"$RUN/masters"
    : >"$RUN/curl.err"
    while read -r _ answers_https; do
        ! tls -o /dev/null --max-time 10 "$answers_https/healthz" 2>"$RUN/curl.err" || return 0
    done <"$RUN/masters"
    return 1
}

first_line() { # FILE
    first_text=
    [ ! -s "$1" ] || IFS= read -r first_text <"$1" || :
    printable "$first_text"
}

get_ticket() { # MAC: one that no boot script brought (a stick, a ticket that was spent); to stdout
    ticket_code=$(api /v1/ticket "$RUN/ticket.answer" --max-time 30 --data-urlencode "mac=$1") || exit 1
    case $ticket_code in
        200) ;;
        429) fail "the master has no ticket for this node yet: $(first_line "$RUN/ticket.answer")" ;;
        403 | 404) reboot_needed "the master gives no ticket ($ticket_code): $(first_line "$RUN/ticket.answer")" ;;
        *) fail "the master answered $ticket_code when asked for a ticket: $(first_line "$RUN/ticket.answer")" ;;
    esac
    ticket_key=
    read -r ticket_word ticket_key <"$RUN/ticket.answer" || :
    rm -f "$RUN/ticket.answer"
    if [ "$ticket_word" != ticket ] || ! is_hex "$ticket_key" 32; then
        fail "the master's ticket is not understood"
    fi
    printf '%s\n' "$ticket_key"
}

open_session() { # TICKET-OR-NOTHING MAC: trade the ticket for a key, once
    [ ! -s "$SESSION" ] || return 0
    umask 077
    session_ticket=$1
    # A boot script's ticket works once and lives for minutes; later ones are asked for over TLS, bound as tightly.
    if [ -z "$1" ] || [ -e "$RUN/ticket.spent" ]; then session_ticket=$(get_ticket "$2") || exit 1; fi
    printf 'ticket=%s&mac=%s' "$session_ticket" "$2" >"$RUN/ticket"
    session_code=$(api /v1/session "$RUN/session.answer" --max-time 30 --data "@$RUN/ticket") || exit 1
    case $session_code in
        200) ;;
        401 | 403)
            : >"$RUN/ticket.spent"
            fail "the master refused the ticket: $(first_line "$RUN/session.answer")"
            ;;
        *) fail "the master answered $session_code to the ticket: $(first_line "$RUN/session.answer")" ;;
    esac
    : >"$RUN/ticket.spent"
    session_key=
    read -r session_word session_key <"$RUN/session.answer" || :
    rm -f "$RUN/session.answer" "$RUN/ticket"
    if [ "$session_word" != session ] || ! is_hex "$session_key" 64; then
        fail "the master's answer to the ticket is not understood"
    fi
    printf 'header = "Authorization: Bearer %s"\n' "$session_key" >"$SESSION"
}

session_lost() { # TEXT...: the next attempt opens another one
    rm -f "$SESSION"
    fail "$@"
}

get_plan() { # MAC: state init; waits as long as the master says so
    wait_shown=
    while :; do
        wait_began=$(centiseconds)
        plan_code=$(api /v1/state/init "$RUN/plan.new" -K "$SESSION" --max-time 90 --data "uptime=$(as_seconds "$wait_began")") || exit 1
        case $plan_code in
            200) break ;;
            202) wait_told "$(first_line "$RUN/plan.new")" ;;
            401 | 403) session_lost "the master no longer knows this session ($plan_code)" ;;
            *) fail "the master answered $plan_code to init: $(first_line "$RUN/plan.new")" ;;
        esac
    done
    plan_check "$RUN/plan.new" "$1"
    mv "$RUN/plan.new" "$PLAN"
    clock_from_master "$(plan_value time)"
    mirrors_from_plan
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
        'capsule-mounted '*) printf '%s; it goes on by itself after umount or close\n' "${1#capsule-mounted }" ;;
        capsule-missing) printf "this node's capsule is not on the master\n" ;;
        *) printf 'the master says: %s\n' "$1" ;;
    esac
}

tell_state() { # STATE
    state_code=$(api "/v1/state/$1" "$RUN/state.answer" -K "$SESSION" --max-time 30 \
        --data "uptime=$(as_seconds "$(centiseconds)")" --data "mem_used_kb=$(mem_peak boot)") || exit 1
    case $state_code in
        200) ;;
        401 | 403) session_lost "the master no longer knows this session ($state_code), told of $1" ;;
        *) fail "the master answered $state_code to $1: $(first_line "$RUN/state.answer")" ;;
    esac
}
