# shellcheck shell=sh
# Words on the consoles, times, small predicates: what every other file here uses.
# needs: cat cut stat tr
# shellcheck disable=SC2034 # the other files use these names

# Paths, so that tests can point them elsewhere.
RUN=${CK_RUN:-/run/ck}
SITE=${CK_SITE:-/site}
PROC=${CK_PROC:-/proc}
SYS=${CK_SYS:-/sys}
DEV=${CK_DEV:-/dev}
LIB=${CK_LIB:-/lib/capsulekit}
RESOLV=${CK_RESOLV:-/etc/resolv.conf}
PLAN=$RUN/plan
SESSION=$RUN/session.curl

# Only the last console= of the command line is /dev/console; a node's owner may be looking at any of them.
consoles() {
    [ -z "${CK_CONSOLE:-}" ] || { printf '%s\n' "$CK_CONSOLE" && return; }
    consoles_names=$(cat /sys/class/tty/console/active 2>/dev/null) || consoles_names=console
    for consoles_name in $consoles_names; do printf '/dev/%s\n' "$consoles_name"; done
}

say() { # TEXT...: one line on every console
    for say_to in $(consoles); do
        { printf 'capsulekit: %s\r\n' "$*" >>"$say_to"; } 2>/dev/null || :
    done
}

fail() { # TEXT...: leave the reason for the step that runs, and end this (sub)shell
    printf '%s\n' "$*" >"$RUN/reason"
    exit 1
}

because() { # TEXT...: like fail, for a caller that may have another way: leaves the reason and is false
    printf '%s\n' "$*" >"$RUN/reason"
    return 1
}

detail() { # TEXT...: what the running step found out; shown and reported when it ends well
    printf '%s\n' "$*" >"$RUN/detail"
}

reboot_needed() { # TEXT...: like fail, when only a new start of the machine can help
    : >"$RUN/reboot"
    fail "$@"
}

karg() { # NAME: value of the last NAME=VALUE of the kernel command line, as with the kernel's own; empty without one
    karg_value=
    # shellcheck disable=SC2013 # words are wanted, not lines
    for karg_word in $(cat "$PROC/cmdline"); do
        case $karg_word in "$1="*) karg_value=${karg_word#*=} ;; esac
    done
    [ -z "$karg_value" ] || printf '%s\n' "$karg_value"
}

centiseconds() { # since the kernel started; /proc/uptime counts in hundredths
    read -r cs_up cs_idle <"$PROC/uptime" && : "$cs_idle"
    # "1" before the hundredths: a leading zero would make the number octal.
    printf '%s\n' "$((${cs_up%.*} * 100 + 1${cs_up#*.} - 100))"
}

as_seconds() { # CENTISECONDS -> "12.34"
    printf '%d.%02d\n' "$(($1 / 100))" "$(($1 % 100))"
}

random_number() { # 0 .. 2^32-1, without needing a program
    read -r random_uuid </proc/sys/kernel/random/uuid
    printf '%s\n' "$((0x${random_uuid%%-*}))"
}

jittered() { # BASE: a number of seconds between BASE and BASE*3/2
    printf '%s\n' "$(($1 + $(random_number) % ($1 / 2 + 1)))"
}

backoff() { # ATTEMPT(from 1): seconds to wait after it: grows from 5 to 60, jittered so that nodes spread out
    backoff_base=8
    backoff_n=1
    while [ "$backoff_n" -lt "$1" ] && [ "$backoff_base" -lt 60 ]; do
        backoff_base=$((backoff_base * 2)) backoff_n=$((backoff_n + 1))
    done
    [ "$backoff_base" -le 60 ] || backoff_base=60
    backoff_wait=$((backoff_base - $(random_number) % (backoff_base / 2 + 1)))
    [ "$backoff_wait" -ge 5 ] || backoff_wait=5
    printf '%s\n' "$backoff_wait"
}

is_hex() { # TEXT LENGTH: lower-case hex digits, exactly that many
    case $1 in *[!0-9a-f]*) return 1 ;; esac
    [ "${#1}" -eq "$2" ]
}

is_number() { # decimal, no sign, no leading zero (the shell would read octal), below 10^15
    case $1 in '' | *[!0-9]* | 0?*) return 1 ;; esac
    [ "${#1}" -le 15 ]
}

is_word() { # a name that is one harmless path component
    case $1 in '' | [-.]* | *[!A-Za-z0-9._-]*) return 1 ;; esac
}

is_member() { # a relative path with nothing surprising in it
    case $1 in '' | /* | */ | -* | *//* | *..* | *[!A-Za-z0-9._/+@-]*) return 1 ;; esac
}

is_url() { # http(s)://HOST[:PORT][/PATH], without anything that curl's settings file or a shell could misread
    case $1 in
        *[!]A-Za-z0-9._~:/@%+[-]* | *..* | */) return 1 ;;
        http://?* | https://?*) ;;
        *) return 1 ;;
    esac
}

is_mac() { # canonical form: upper case, colons
    case $1 in
        [0-9A-F][0-9A-F]:[0-9A-F][0-9A-F]:[0-9A-F][0-9A-F]:[0-9A-F][0-9A-F]:[0-9A-F][0-9A-F]:[0-9A-F][0-9A-F]) ;;
        *) return 1 ;;
    esac
}

upper() { printf '%s' "$1" | tr 'a-f' 'A-F'; }

file_size() { stat -c %s "$1"; }

printable() { # TEXT: fit for a console and a form field, at most 300 bytes
    printf '%s' "$*" | tr -c '\040-\176' ' ' | cut -c1-300
}
