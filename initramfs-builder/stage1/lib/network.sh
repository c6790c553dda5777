# shellcheck shell=sh
# The one interface that booted: found by its address, up, carrier, DHCP lease that is kept alive.
# needs: chmod ip rm sleep udhcpc

nic_by_mac() { # MAC: name of the interface with that address
    for nic_dir in "${CK_NET:-/sys/class/net}"/*; do
        [ -r "$nic_dir/address" ] || continue
        read -r nic_address <"$nic_dir/address" || continue
        [ "$(upper "$nic_address")" != "$1" ] || { printf '%s\n' "${nic_dir##*/}" && return; }
    done
    return 1
}

until_true() { # SECONDS COMMAND [ARG...]: false when it did not come true in that time
    until_end=$(($(centiseconds) + $1 * 100))
    shift
    while ! "$@"; do
        [ "$(centiseconds)" -lt "$until_end" ] || return 1
        sleep 1
    done
}

has_carrier() { # NIC; reading the file fails while the link is down
    { read -r carrier <"${CK_NET:-/sys/class/net}/$1/carrier"; } 2>/dev/null && [ "$carrier" = 1 ]
}

network_up() { # MAC
    [ ! -s "$RUN/lease" ] || return 0
    until_true 30 nic_by_mac "$1" >/dev/null ||
        fail "no network interface has the address $1 this node booted from (driver missing in stage 1?)"
    nic=$(nic_by_mac "$1")
    ip link set lo up
    ip link set "$nic" up
    until_true 60 has_carrier "$nic" || fail "no carrier on $nic ($1) after 60 s"
    dhcp_start "$nic" || fail "no DHCP answer on $nic ($1)"
    read -r lease <"$RUN/lease" || fail "the DHCP lease on $nic carried no address"
    detail "$lease on $nic"
}

dhcp_start() { # NIC: udhcpc stays behind and renews (a node may wait for days); no client id: one lease per MAC
    dhcp_stop
    chmod 755 "$LIB/dhcp.sh"
    for dhcp_try in 1 2 3 4; do
        : "$dhcp_try"
        ! udhcpc -C -n -t 4 -T 3 -i "$1" -p "$RUN/udhcpc.pid" -s "$LIB/dhcp.sh" </dev/null >/dev/null || return 0
        sleep "$(jittered 2)"
    done
    return 1
}

dhcp_stop() { # keep the lease (no release): the next system asks for the same address
    [ -s "$RUN/udhcpc.pid" ] || return 0
    read -r dhcp_pid <"$RUN/udhcpc.pid"
    kill "$dhcp_pid" 2>/dev/null || :
    rm -f "$RUN/udhcpc.pid" "$RUN/lease"
}
