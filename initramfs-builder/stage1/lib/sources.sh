# shellcheck shell=sh
# Who is asked, and in which order: mirrors for public bytes, then the masters; those that failed come last or not.
# needs: cat cut grep mv sed sort

shuffle() { # lines of stdin, in an order of this node's own: a thousand nodes must not begin with the same server
    while IFS= read -r shuffle_line; do
        printf '%s %s\n' "$(random_number)" "$shuffle_line"
    done | sort -n | cut -d' ' -f2-
}

ordered() { # lines of stdin, as the site wants its servers to be tried
    read -r ordered_how <"$SITE/order" || ordered_how=
    case $ordered_how in
        listed) cat ;;
        shuffled) shuffle ;;
        *) fail "site/order: is neither listed nor shuffled: $(printable "$ordered_how")" ;;
    esac
}

masters() { # "http://A:P https://A:P" lines, the one that answered last first; one order for the whole boot
    if [ ! -s "$RUN/masters.all" ]; then
        ordered <"$SITE/masters" >"$RUN/masters.new"
        mv "$RUN/masters.new" "$RUN/masters.all"
    fi
    if [ -s "$RUN/master" ]; then
        cat "$RUN/master"
        grep -v -x -F -f "$RUN/master" "$RUN/masters.all" || :
    else
        cat "$RUN/masters.all"
    fi
}

mirrors_from_plan() { # each attempt begins with all of them: what was down may be up again
    sed -n 's/^mirror //p' "$PLAN" | ordered >"$RUN/mirrors"
}

drop_mirror() { # URL: not asked again in this attempt
    grep -v -x -F "$1" "$RUN/mirrors" >"$RUN/mirrors.new" || :
    mv "$RUN/mirrors.new" "$RUN/mirrors"
}

sources() { # public|private|script DIGEST: "mirror|master BASE URL" lines, the first to be asked first
    if [ "$1" = public ] && [ -s "$RUN/mirrors" ]; then
        while read -r sources_mirror; do
            printf 'mirror %s %s/blobs/%s\n' "$sources_mirror" "$sources_mirror" "$2"
        done <"$RUN/mirrors"
    fi
    masters | while read -r sources_http sources_https; do
        case $1 in
            public) printf 'master %s %s/blobs/%s\n' "$sources_http" "$sources_http" "$2" ;;
            private) printf 'master %s %s/v1/blobs/%s\n' "$sources_https" "$sources_https" "$2" ;;
            script) printf 'master %s %s/v1/scripts/%s\n' "$sources_https" "$sources_https" "$2" ;;
        esac
    done
}
