#!/bin/sh
# Called by udhcpc with the event as argument and the lease in the environment (it documents these names).
# needs: ip mv rm
set -eu

RUN=${CK_RUN:-/run/ck}
RESOLV=${CK_RESOLV:-/etc/resolv.conf}
# udhcpc's names; given defaults because an answer may lack any of them.
: "${interface:=}" "${ip:=}" "${mask:=24}" "${router:=}" "${dns:=}" "${domain:=}"

first() { printf '%s\n' "${1:-}"; }

bound() {
    # shellcheck disable=SC2086 # several routers may be named
    gateway=$(first $router)
    ip addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface"
    [ -z "$gateway" ] || ip route replace default via "$gateway" dev "$interface" || :
    {
        [ -z "$domain" ] || printf 'search %s\n' "$domain"
        for server in $dns; do printf 'nameserver %s\n' "$server"; done
    } >"$RESOLV"
    printf '%s\n' "$ip/$mask${gateway:+,$gateway},dhcp" >"$RUN/address"
    printf '%s\n' "$ip" >"$RUN/lease.new"
    mv "$RUN/lease.new" "$RUN/lease"
}

case ${1:-} in
    bound) bound ;;
    renew) # the same address again: touching it would cut the connections that use it
        lease=
        [ ! -s "$RUN/lease" ] || read -r lease <"$RUN/lease"
        [ "$lease" = "$ip" ] || bound
        ;;
    deconfig) # at the start, and when a lease ran out: the next attempt must not take the address for its own
        ip addr flush dev "$interface"
        rm -f "$RUN/lease"
        ;;
esac
