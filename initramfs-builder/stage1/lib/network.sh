# shellcheck shell=sh
# The one interface that is used: the one that booted, found by its address; or, when nobody says which, the first
# wired one with a link that leads to a master. A link, then an address; the lease is kept alive.
# needs: cat chmod grep head ip rm sed sleep udhcpc

NET=${CK_NET:-/sys/class/net}

nic_by_mac() { # MAC: name of the interface with that address
    for nic_dir in "$NET"/*; do
        [ -r "$nic_dir/address" ] || continue
        read -r nic_address <"$nic_dir/address" || continue
        [ "$(upper "$nic_address")" != "$1" ] || { printf '%s\n' "${nic_dir##*/}" && return; }
    done
    return 1
}

wired_nics() { # names of real Ethernet interfaces; wireless ones need keys that nobody gave us
    for nics_dir in "$NET"/*; do
        if [ ! -e "$nics_dir/device" ] || [ -e "$nics_dir/wireless" ] || [ -e "$nics_dir/phy80211" ]; then continue; fi
        read -r nics_type <"$nics_dir/type" || continue
        # ARPHRD_ETHER of <linux/if_arp.h>
        [ "$nics_type" != 1 ] || printf '%s\n' "${nics_dir##*/}"
    done
}

nic_there() { [ -e "$NET/$1" ]; }

any_wired() { [ -n "$(wired_nics)" ]; }

until_true() { # SECONDS COMMAND [ARG...]: false when it did not come true in that time
    until_end=$(($(centiseconds) + $1 * 100))
    shift
    while ! "$@"; do
        [ "$(centiseconds)" -lt "$until_end" ] || return 1
        sleep 1
    done
}

has_carrier() { # NIC; reading the file fails while the link is down
    { read -r carrier <"$NET/$1/carrier"; } 2>/dev/null && [ "$carrier" = 1 ]
}

network_up() { # MAC or nothing: leaves an address in $RUN/lease and the MAC of the interface in $RUN/node
    [ ! -s "$RUN/lease" ] || return 0
    link_wait
    ip_parse "$(karg ip)"
    ip link set lo up
    nic_wanted "$1"
    if [ -n "$NIC" ]; then
        nic_up "$NIC" "$LINKWAIT" || exit 1
    else
        nic_any
    fi
    read -r nic_mac <"$NET/$NIC/address"
    upper "$nic_mac" >"$RUN/node"
    detail "$(cat "$RUN/lease") on $NIC"
}

link_wait() { # sets LINKWAIT: seconds for the link, and again for the address
    LINKWAIT=$(karg ck.linkwait)
    # A switch without "edge ports" blocks for 30 s (RSTP) to 50 s (STP) after the link came up.
    : "${LINKWAIT:=90}"
    if ! is_number "$LINKWAIT" || [ "$LINKWAIT" -lt 1 ] || [ "$LINKWAIT" -gt 3600 ]; then
        fail "ck.linkwait=$(printable "$LINKWAIT"): must be a number of seconds from 1 to 3600"
    fi
}

nic_wanted() { # MAC: sets NIC, or leaves it empty when neither the boot script nor ip= names an interface
    NIC=
    if is_mac "$IP_DEVICE"; then
        [ "${1:-$IP_DEVICE}" = "$IP_DEVICE" ] || fail "ip= names the interface $IP_DEVICE, but this node booted from $1"
        set -- "$IP_DEVICE"
    elif [ -n "$IP_DEVICE" ]; then
        until_true 30 nic_there "$IP_DEVICE" || fail "ip=: no network interface is called $IP_DEVICE; there are: $(nic_list)"
        NIC=$IP_DEVICE
    fi
    [ -n "$1" ] || return 0
    is_mac "$1" || fail "ck.mac=$(printable "$1") is no MAC"
    until_true 30 nic_by_mac "$1" >/dev/null || no_nic "no network interface has the address $1 this node booted from"
    [ "${NIC:-$(nic_by_mac "$1")}" = "$(nic_by_mac "$1")" ] || fail "ip= names $NIC, but this node booted from $(nic_by_mac "$1")"
    NIC=$(nic_by_mac "$1")
}

nic_list() { # every interface there is, on one line
    list_names=
    for list_dir in "$NET"/*; do
        [ ! -e "$list_dir" ] || list_names="$list_names ${list_dir##*/}"
    done
    list_names=${list_names# }
    printf '%s\n' "${list_names:-none}"
}

no_nic() { # TEXT: fail, after the devices were shown that no driver took
    fail "$1$(say_undriven_nics all); there are: $(nic_list)"
}

nic_any() { # each wired interface with a link in its turn, until one leads to a master
    until_true 30 any_wired || no_nic "no wired network interface was found"
    for any_nic in $(wired_nics); do ip link set "$any_nic" up || :; done
    any_end=$(($(centiseconds) + LINKWAIT * 100))
    rm -f "$RUN/reason"
    while :; do
        for any_nic in $(wired_nics); do
            has_carrier "$any_nic" || continue
            if nic_up "$any_nic" 15 && nic_leads_to_master "$any_nic"; then
                NIC=$any_nic
                return 0
            fi
            say "$(cat "$RUN/reason")"
            nic_release "$any_nic"
        done
        [ "$(centiseconds)" -lt "$any_end" ] || break
        sleep "$(jittered 2)"
    done
    [ ! -s "$RUN/reason" ] || fail "no wired interface leads to a master; the last one tried: $(cat "$RUN/reason")"
    fail "no wired interface has a link; there are: $(nic_list)"
}

nic_leads_to_master() { # NIC
    master_answers || because "$1: $(cat "$RUN/lease"), but no master answers: $(curl_why)"
}

nic_release() { # NIC: its address must not be in the way of the next one's
    dhcp_stop
    rm -f "$RUN/lease" "$RUN/address"
    nic_six "$1" 1
    ip addr flush dev "$1"
}

nic_six() { # NIC 0|1: whether it is without IPv6; on again, it asks routers at once (else they may say nothing for minutes)
    [ ! -e "$PROC/sys/net/ipv6/conf/$1/disable_ipv6" ] || printf '%s\n' "$2" >"$PROC/sys/net/ipv6/conf/$1/disable_ipv6"
}

nic_up() { # NIC SECONDS: link and address; false with the reason. Called where set -e is off: each step is tested.
    nic_six "$1" 0
    ip link set "$1" up || because "$1: could not be brought up" || return 1
    until_true "$2" has_carrier "$1" || because "$1: no carrier after $2 s" || return 1
    rm -f "$RUN/lease" "$RUN/address"
    case $IP_HOW in
        static) static_up "$1" "$2" ;;
        auto6) slaac_up "$1" "$2" ;;
        *) if masters_are_six; then slaac_up "$1" "$2"; else dhcp_up "$1" "$2"; fi ;;
    esac
}

masters_are_six() { # every master's address is an IPv6 one
    ! grep -q -v -F '://[' "$SITE/masters"
}

static_up() { # NIC SECONDS
    # "nodad": nothing can be sent from an IPv6 address while it is being checked for a double.
    static_flags=
    case $IP_ADDRESS in *:*) static_flags=nodad ;; esac
    ip addr flush dev "$1"
    # shellcheck disable=SC2086 # no word when it is empty
    ip addr add "$IP_ADDRESS/$IP_PREFIX" dev "$1" $static_flags ||
        because "$1: the kernel refuses the address $IP_ADDRESS/$IP_PREFIX" || return 1
    if [ -n "$IP_GATEWAY" ]; then
        ip route replace default via "$IP_GATEWAY" dev "$1" ||
            because "$1: the kernel refuses the gateway $IP_GATEWAY (not in $IP_ADDRESS/$IP_PREFIX?)" || return 1
    fi
    for static_server in $IP_DNS; do printf 'nameserver %s\n' "$static_server"; done >"$RESOLV"
    # No answer to wait for, as DHCP has it: a port that still blocks shows only here.
    until_true "$2" master_answers ||
        because "$1: no master answers to $IP_ADDRESS within $2 s: $(curl_why)" || return 1
    net_lease "$IP_ADDRESS" "$IP_PREFIX" "$IP_GATEWAY"
}

net_lease() { # ADDRESS PREFIX GATEWAY
    printf '%s\n' "$1/$2${3:+,$3}" >"$RUN/address"
    printf '%s\n' "$1" >"$RUN/lease"
}

global_six() { # NIC: "ADDRESS PREFIX" of its first IPv6 address that may be used
    ip -6 -o addr show dev "$1" scope global | grep -v -e tentative -e dadfailed |
        sed -n 's|^.* inet6 \([0-9a-f:]*\)/\([0-9]*\) .*|\1 \2|p' | head -n 1
}

has_global_six() { [ -n "$(global_six "$1")" ]; }

slaac_up() { # NIC SECONDS: the kernel makes the address when a router announces the network
    until_true "$2" has_global_six "$1" ||
        because "$1: no IPv6 address within $2 s (does a router announce the network?)" || return 1
    # shellcheck disable=SC2046 # two words
    net_lease $(global_six "$1")
}

dhcp_up() { # NIC SECONDS: asked again and again; udhcpc stays behind and renews (a node may wait for days)
    dhcp_stop
    chmod 755 "$LIB/dhcp.sh"
    dhcp_end=$(($(centiseconds) + $2 * 100))
    # -C: no client id, so that firmware, iPXE and stage 1 get one lease.
    until udhcpc -C -n -t 4 -T 3 -i "$1" -p "$RUN/udhcpc.pid" -s "$LIB/dhcp.sh" </dev/null >/dev/null; do
        [ "$(centiseconds)" -lt "$dhcp_end" ] || because "$1: no DHCP answer within $2 s" || return 1
        sleep "$(jittered 2)"
    done
    [ -s "$RUN/lease" ] || because "$1: the DHCP lease carried no address"
}

dhcp_stop() { # keep the lease (no release): the next system asks for the same address
    [ -s "$RUN/udhcpc.pid" ] || return 0
    read -r dhcp_pid <"$RUN/udhcpc.pid" || return 0
    kill "$dhcp_pid" 2>/dev/null || :
    # Its end takes the file away too, and busybox's rm -f fails when that comes between its look and its removal.
    rm -f "$RUN/udhcpc.pid" 2>/dev/null || [ ! -e "$RUN/udhcpc.pid" ]
    rm -f "$RUN/lease"
}
