# shellcheck shell=sh
# The clock: certificates and logs need it roughly right, and a dead battery may leave it anywhere.
# needs: date

CLOCK_YEARS=20 # a clock that far ahead of site.img's stamp is broken, not just set up later

clock_now() { date +%s; }

clock_set() { # EPOCH WHY
    clock_old=$(clock_now)
    date -s "@$1" >/dev/null || { say "the clock could not be set ($2)" && return; }
    say "the clock was set $(clock_apart "$clock_old" "$1") $2"
}

clock_apart() { # OLD NEW (epoch seconds): "forward by 3 days"
    clock_days=$((($2 - $1) / 86400))
    if [ "$2" -ge "$1" ]; then printf 'forward'; else printf 'back' && clock_days=$((-clock_days)); fi
    if [ "$clock_days" -gt 0 ]; then printf ' by %s days\n' "$clock_days"; else printf ' by less than a day\n'; fi
}

clock_from_stamp() { # EPOCH: before anybody can be asked: not before site.img was made, nor decades after it
    is_number "$1" || fail "site/stamp: is no number: $(printable "$1")"
    if [ "$(clock_now)" -lt "$1" ]; then
        clock_set "$1" "to the time the site's image was made"
    elif [ "$(clock_now)" -gt $(($1 + CLOCK_YEARS * 31557600)) ]; then
        clock_set "$1" "to the time the site's image was made: it was decades ahead"
    fi
}

clock_from_master() { # EPOCH, from a plan that came over TLS: its word counts, both ways
    clock_off=$(($1 - $(clock_now)))
    # Less than a minute is the road's own delay, or none of our business.
    if [ "$clock_off" -gt 60 ] || [ "$clock_off" -lt -60 ]; then clock_set "$1" "to the master's"; fi
}
