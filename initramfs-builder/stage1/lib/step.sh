# shellcheck shell=sh
# One step of the boot: run in a process of its own, timed, and reported with its outcome and its reason.
# needs: cat curl mkdir rm tail tr

step() { # NAME COMMAND [ARG...]: ends the calling (sub)shell with 1 when the command fails
    STEP=$1
    shift
    rm -f "$RUN/reason" "$RUN/detail" "$RUN/peak.step"
    step_began=$(centiseconds)
    mem_sample
    progress "$STEP" start '' ''
    # No "if": in a tested context the shell would ignore set -e inside the step.
    set +e
    (
        set -e
        [ "$DEBUG" -gt 0 ] || exec 2>"$RUN/stderr"
        [ "$DEBUG" -eq 0 ] || set -x
        "$@"
    )
    step_status=$?
    set -e
    mem_sample
    step_took=$(as_seconds $(($(centiseconds) - step_began)))
    [ "$step_status" -eq 0 ] || step_failed
    step_text=
    [ ! -s "$RUN/detail" ] || step_text=$(cat "$RUN/detail")
    say "$STEP: ok, $step_took s${step_text:+ ($step_text)}"
    queue "$STEP" ok "$step_took" "$step_text"
}

step_failed() {
    step_text=$(step_reason)
    say "FAILED $STEP: $step_text"
    [ "$DEBUG" -gt 0 ] || show_end_of "$RUN/stderr"
    set -- "$RUN"/queue/*
    [ $# -le 100 ] || rm -f "$@" # a master that is away for days must not cost memory
    progress "$STEP" failed "$step_took" "$step_text"
    : >"$RUN/failed"
    exit 1
}

step_reason() { # what the step said, or the last thing it complained about
    if [ -s "$RUN/reason" ]; then
        cat "$RUN/reason"
    elif [ -s "$RUN/stderr" ]; then
        printable "status $step_status: $(tail -n 1 "$RUN/stderr")"
    elif [ "$step_status" -gt 128 ]; then
        printf 'killed by signal %s (9: out of memory)\n' "$((step_status - 128))"
    else
        printf 'status %s\n' "$step_status"
    fi
}

show_end_of() { # FILE: its last lines on the consoles
    [ -s "$1" ] || return 0
    tail -n 12 "$1" | while IFS= read -r show_line; do say "  | $(printable "$show_line")"; done
}

queue() { # STEP STATUS SECONDS DETAIL: remember a report; sent with the next one (there is no session at first)
    [ -d "$RUN/queue" ] || mkdir -p "$RUN/queue"
    QUEUED=$((QUEUED + 1))
    {
        printf 'data-urlencode = "step=%s"\n' "$1"
        printf 'data-urlencode = "status=%s"\n' "$2"
        [ -z "$3" ] || printf 'data-urlencode = "seconds=%s"\n' "$3"
        [ -z "$4" ] || printf 'data-urlencode = "detail=%s"\n' "$(printable "$4" | tr '"\134' "''")" # 134: backslash
        printf 'data-urlencode = "mem_used_kb=%s"\n' "$(mem_peak step)"
    } >"$RUN/queue/$(printf '%012d.%06d' "$(centiseconds)" "$QUEUED")"
}

progress() { # STEP STATUS SECONDS DETAIL: queue it and send all that waits; a dead master never stops a boot here
    queue "$@"
    if [ ! -s "$SESSION" ] || [ ! -s "$RUN/master" ]; then return 0; fi
    # A TLS handshake costs more than a short step: starts wait up to 3 s for company, failures never.
    if [ "$2" = start ] && [ $(($(centiseconds) - SENT)) -lt 300 ]; then return 0; fi
    send_queue || :
    SENT=$(centiseconds)
}

send_queue() { # one connection for all reports that wait
    read -r _ send_https <"$RUN/master"
    (umask 077 && : >"$RUN/progress.curl")
    for send_file in "$RUN"/queue/*; do
        [ -f "$send_file" ] || continue
        [ ! -s "$RUN/progress.curl" ] || printf 'next\n' >>"$RUN/progress.curl"
        {
            printf 'url = "%s/v1/progress"\n' "$send_https"
            printf 'silent\nfail\noutput = "/dev/null"\nmax-time = 10\nconnect-timeout = 5\n'
            printf 'noproxy = "*"\nproto = "=https"\ncacert = "%s/ca.pem"\n' "$SITE"
            cat "$SESSION" "$send_file"
        } >>"$RUN/progress.curl"
    done
    [ -s "$RUN/progress.curl" ] || return 0
    # Early: a master that is gone costs one time-out, not one for each report.
    curl -q --fail-early -K "$RUN/progress.curl" </dev/null 2>/dev/null || return 1
    rm -f "$RUN"/queue/* "$RUN/progress.curl"
}
