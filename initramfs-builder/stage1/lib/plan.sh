# shellcheck shell=sh
# The plan: what the master wants this node to boot. One item a line, every line checked before any is used.
# needs: cut grep head sed sort tail tr uniq wc

PLAN_ONCE='plan end nodeid hostname cluster group vnfs machine-id time identity key comment debug init kargs'

plan_value() { # KEY: the rest of its line
    sed -n "s/^$1 //p" "$PLAN"
}

plan_check() { # FILE MAC: fails with the reason unless the plan is whole, well formed and for this node
    plan_is_text "$1"
    [ "$(tail -n 1 "$1")" = end ] || fail "plan: cut short: its last line is not 'end'"
    [ "$(head -n 1 "$1")" = 'plan 1' ] || fail "plan: not a plan of format 1: $(printable "$(head -n 1 "$1")")"
    plan_lines_known "$1" "$2"
    for plan_key in $PLAN_ONCE; do
        [ "$(grep -c -E "^$plan_key( |\$)" "$1")" -eq 1 ] || fail "plan: needs exactly one line '$plan_key'"
    done
    plan_no_duplicates "$1"
    plan_files_named "$1"
}

plan_is_text() { # FILE: printable ASCII, the last line ended (a cut line would otherwise be dropped in silence)
    [ -s "$1" ] || fail "plan: empty"
    [ "$(tr -d '\040-\176\n' <"$1" | wc -c)" -eq 0 ] || fail "plan: holds bytes that are not plain text"
    [ -z "$(tail -c 1 "$1")" ] || fail "plan: cut short: its last line has no end"
}

plan_lines_known() { # FILE MAC
    plan_number=0
    while IFS= read -r plan_line; do
        plan_number=$((plan_number + 1))
        # No space is skipped: what reads a line later must find the words that are checked here.
        plan_rest=${plan_line#"${plan_line%% *}"}
        plan_line_known "$2" "${plan_line%% *}" "${plan_rest# }" ||
            fail "plan: line $plan_number is not understood: $(printable "$plan_kind $plan_rest")"
    done <"$1"
}

plan_line_known() { # MAC KIND REST
    plan_mac=$1 plan_kind=$2 plan_rest=$3
    case $plan_kind in
        plan | end) [ "$plan_kind $plan_rest" = 'plan 1' ] || [ "$plan_kind $plan_rest" = 'end ' ] ;;
        nodeid) [ "$plan_rest" = "$plan_mac" ] ;;
        hostname | vnfs) is_word "$plan_rest" ;;
        cluster | group) [ "$plan_rest" = - ] || is_word "$plan_rest" ;;
        machine-id) is_hex "$plan_rest" 32 ;;
        time) is_number "$plan_rest" ;;
        identity) is_hex "$plan_rest" 64 ;;
        key) is_public_key "$plan_rest" ;;
        comment) [ -n "$plan_rest" ] ;;
        debug) case $plan_rest in [0-3]) ;; *) return 1 ;; esac ;;
        init) case $plan_rest in /*) is_member "${plan_rest#/}" ;; *) return 1 ;; esac ;;
        kargs) ;;
        mirror) is_url "$plan_rest" ;;
        nfs) is_export "$plan_rest" ;;
        file | layer | script | provision | data) plan_item_known "$plan_kind" "$plan_rest" ;;
        *) return 1 ;;
    esac
}

is_public_key() { # minisign's base64 line: 42 bytes
    case $1 in RW*) [ "${#1}" -eq 56 ] ;; *) return 1 ;; esac || return 1
    case $1 in *[!A-Za-z0-9+/]*) return 1 ;; esac
}

plan_item_known() { # KIND REST
    item_kind=$1 item_rest=$2
    set -f
    # shellcheck disable=SC2086 # split into words; no globbing while -f is set
    set -- $2
    set +f
    [ "$*" = "$item_rest" ] || return 1
    case $item_kind:$# in
        file:4) is_member "$1" && is_hex "$2" 64 && is_number "$3" && is_one_of "$4" public private ;;
        layer:2) is_layer "$1" && is_number "$2" ;;
        script:7)
            is_word "$1" && is_order "$2" && is_word "$3" && is_word "$4" && is_hex "$5" 64 && is_number "$6" &&
                is_one_of "$7" required optional
            ;;
        provision:1) is_provision "$1" ;;
        data:4) is_word "$1" && is_word "$2" && is_hex "$3" 64 && is_number "$4" ;;
        *) return 1 ;;
    esac
}

is_export() { # ADDRESS:/PATH, IPv6 in brackets: one word of mount(8) with nothing surprising in it
    case $1 in
        *..* | *//* | */ | *[!]A-Za-z0-9._/:@+[-]*) return 1 ;;
        \[*]:/*) export_path=${1#*]:/} export_host=${1%%]:/*} && is_ipv6 "${export_host#\[}" || return 1 ;;
        *:/*) export_path=${1#*:/} && is_ipv4 "${1%%:/*}" || return 1 ;;
        *) return 1 ;;
    esac
    case $export_path in '' | *[!A-Za-z0-9._/@+-]*) return 1 ;; esac
}

is_one_of() { [ "$1" = "$2" ] || [ "$1" = "$3" ]; }

is_order() { case $1 in [0-9] | [0-9][0-9] | [0-9][0-9][0-9]) ;; *) return 1 ;; esac }

is_provision() { # provision/STATE/NUMBER-NAME
    provision_state=${1#provision/}
    provision_state=${provision_state%%/*}
    provision_file=${1##*/}
    case $provision_file in *-*) ;; *) return 1 ;; esac
    [ "$1" = "provision/$provision_state/$provision_file" ] && is_word "$provision_state" &&
        is_order "${provision_file%%-*}" && is_word "${provision_file#*-}"
}

is_layer() { # layers/NAME: one level, so that its name can stand in a list and as a file of the initrd
    case $1 in
        layers/order | layers/console | layers/node.squashfs) return 1 ;; # stage 1's own
        layers/*) is_word "${1#layers/}" ;;
        *) return 1 ;;
    esac
}

plan_no_duplicates() { # FILE
    [ "$(grep -c '^nfs ' "$1")" -le 1 ] || fail "plan: nfs is named twice"
    for plan_kind in file layer; do
        plan_twice=$(grep "^$plan_kind " "$1" | cut -d' ' -f2 | sort | uniq -d | head -n 1)
        [ -z "$plan_twice" ] || fail "plan: $plan_kind $plan_twice is named twice"
    done
}

plan_files_named() { # FILE: every path that will be used has its digest and size
    grep -q '^layer ' "$1" || fail "plan: names no layer"
    {
        printf '%s\n' capsule.toml boot/vmlinuz boot/initrd.img
        sed -n -e 's/^layer \([^ ]*\) .*/\1/p' -e 's/^provision //p' "$1"
    } | while read -r plan_path; do
        grep -q -F "file $plan_path " "$1" || fail "plan: $plan_path has no 'file' line"
    done
}
