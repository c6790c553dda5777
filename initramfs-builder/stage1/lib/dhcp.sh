#!/bin/sh
# Called by udhcpc with the event as argument and the lease in the environment (it documents these names).
# needs: ip mv
set -eu

RUN=${CK_RUN:-/run/ck}
# udhcpc's names; given defaults because an answer may lack any of them.
: "${interface:=}" "${ip:=}" "${mask:=24}" "${router:=}" "${dns:=}" "${domain:=}"

case ${1:-} in
    bound | renew)
        ip addr flush dev "$interface"
        ip addr add "$ip/$mask" dev "$interface"
        for gateway in $router; do
            ip route replace default via "$gateway" dev "$interface" || :
            break
        done
        {
            [ -z "$domain" ] || printf 'search %s\n' "$domain"
            for server in $dns; do printf 'nameserver %s\n' "$server"; done
        } >/etc/resolv.conf
        printf '%s\n' "$ip" >"$RUN/lease.new"
        mv "$RUN/lease.new" "$RUN/lease"
        ;;
    deconfig) ip addr flush dev "$interface" ;;
esac
