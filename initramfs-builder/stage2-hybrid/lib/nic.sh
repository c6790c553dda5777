# shellcheck shell=sh
# The network card of the network layer: found by its address, named as it will be called, up, and then left alone.
# shellcheck disable=SC2034 # init says what it was DOING
# needs: cat chroot ip mkdir sleep tr

SYS=${CK_SYS:-/sys}
RUNTIME=${CK_RUNTIME:-/run}
# Network cards, and the buses they may sit behind; pci:…bc02 is PCI's class of network controllers.
NIC_ALIASES='pci:*bc02* pci:v00001AF4* virtio:* vmbus:* xen:* usb:* auxiliary:* platform:* of:*'

nic_up() { # from ck.nic=MAC and ck.ip=ADDRESS/PREFIX[,GATEWAY][,dhcp], which stage 1 hands over
    DOING='reading ck.nic and ck.ip'
    nic_mac=$(karg ck.nic | tr 'A-F' 'a-f')
    case $nic_mac in ??:??:??:??:??:??) ;; *) fail "ck.nic=$nic_mac is not the address of a network card" ;; esac
    nic_parse_ip "$(karg ck.ip)"
    DOING="waiting for the network card $nic_mac"
    nic_find
    nic_rename
    DOING="bringing up $nic"
    try ip link set dev lo up
    try ip link set dev "$nic" up
    # "replace": a router's announcement may have been faster, and given the same IPv6 address.
    try ip addr replace "$nic_address" dev "$nic"
    [ -z "$nic_gateway" ] || try ip route replace default via "$nic_gateway" dev "$nic"
    nic_keep
    say "$nic ($nic_mac) is up with $nic_address"
}

nic_parse_ip() { # VALUE: sets nic_address (with its prefix), nic_gateway and nic_how (static or dhcp)
    nic_how=static
    nic_rest=$1
    case $nic_rest in *,dhcp) nic_how=dhcp nic_rest=${nic_rest%,dhcp} ;; esac
    nic_address=${nic_rest%%,*} nic_gateway=
    [ "$nic_rest" = "$nic_address" ] || nic_gateway=${nic_rest#*,}
    case $nic_address in
        *[!0-9A-Fa-f.:/]* | */*/* | */ | /*) nic_address= ;;
        */*) ;;
        *) nic_address= ;;
    esac
    case $nic_gateway in *[!0-9A-Fa-f.:]*) nic_address= ;; esac
    [ -n "$nic_address" ] || fail "ck.ip=$1 is not ADDRESS/PREFIX[,GATEWAY][,dhcp]"
}

nic_find() { # sets nic; drivers for network cards first, then all there are, then patience
    load_for_bus
    nic_tries=0
    until nic=$(nic_by_mac); do
        nic_tries=$((nic_tries + 1))
        [ "$nic_tries" -le 30 ] || fail "no card has this address after 30 s$(nic_list)"
        [ "$nic_tries" -ne 2 ] || NIC_ALIASES='*'
        sleep 1
        load_for_bus
    done
}

nic_by_mac() { # a bond or VLAN has the address of its card, but is no device
    for nic_dir in "$SYS"/class/net/*; do
        if [ ! -e "$nic_dir/device" ] || [ ! -r "$nic_dir/address" ]; then continue; fi
        read -r nic_has <"$nic_dir/address" || continue
        [ "$nic_has" != "$nic_mac" ] || { printf '%s\n' "${nic_dir##*/}" && return; }
    done
    return 1
}

nic_list() { # what there is instead, for the last words
    nic_list_text=
    for nic_dir in "$SYS"/class/net/*; do
        if [ ! -e "$nic_dir/device" ] || [ ! -r "$nic_dir/address" ]; then continue; fi
        read -r nic_has <"$nic_dir/address" || continue
        nic_list_text="$nic_list_text, ${nic_dir##*/} has $nic_has"
    done
    printf '%s\n' "${nic_list_text:-, and there is no other card: is its driver in the capsule?}"
}

load_for_bus() { # a driver may bring a new bus (virtio below PCI): look again until nothing new appears
    bus_before=
    for bus_round in 1 2 3 4; do
        bus_now=$(bus_aliases)
        [ "$bus_now" != "$bus_before" ] || break
        bus_before=$bus_now
        set -f
        # shellcheck disable=SC2086 # one word a modalias; -b: what the distribution blacklists stays out
        borrowed_modprobe -a -b -q $bus_now || : # most match no module
        set +f
    done
    : "$bus_round"
}

bus_aliases() { # the modaliases that match one of NIC_ALIASES
    cat "$SYS"/bus/*/devices/*/modalias 2>/dev/null | while read -r bus_alias; do
        set -f
        for bus_pattern in $NIC_ALIASES; do
            # shellcheck disable=SC2254 # it is meant to be a pattern
            case $bus_alias in $bus_pattern) printf '%s\n' "$bus_alias" && break ;; esac
        done
    done
}

nic_rename() { # now, because no card that is up can be renamed (Linux before 6.2): to what udev would call it
    DOING="naming the network card $nic"
    nic_wanted=$(nic_udev_name) || nic_wanted=
    nic=$(nic_by_mac) || fail 'it is gone' # udev may have named it already
    [ -n "$nic_wanted" ] && [ "$nic_wanted" != "$nic" ] || return 0
    if ip link set dev "$nic" name "$nic_wanted"; then
        nic=$nic_wanted
    else
        say "$nic could not be named $nic_wanted and keeps its name"
    fi
}

nic_udev_name() { # by the distribution's own rules and .link files; nothing where there is no udev
    chroot "$BORROWED" udevadm test --action=add "/sys/class/net/$nic" 2>/dev/null |
        while IFS='= ' read -r udev_key udev_value; do
            [ "$udev_key" != ID_NET_NAME ] || printf '%s\n' "$udev_value"
        done
}

nic_link() { # said with a failure: no link is the usual reason
    if ! { read -r nic_carrier <"$SYS/class/net/$nic/carrier"; } 2>/dev/null || [ "$nic_carrier" != 1 ]; then
        printf ' (no link on %s)\n' "$nic"
    fi
}

nic_keep() { # whoever manages the network of the running system must not take this address away
    mkdir -p "$RUNTIME/udev/rules.d" "$RUNTIME/systemd/network" "$RUNTIME/NetworkManager/conf.d"
    nic_keep_udev >"$RUNTIME/udev/rules.d/10-capsulekit.rules"
    nic_keep_networkd >"$RUNTIME/systemd/network/00-capsulekit.network"
    printf '[device-capsulekit]\nmatch-device=interface-name:%s\nmanaged=0\n' "$nic" \
        >"$RUNTIME/NetworkManager/conf.d/10-capsulekit.conf"
    if [ -d "$BORROWED/etc/network" ]; then # ifupdown: it is up already, as ifup would note it
        mkdir -p "$RUNTIME/network"
        printf '%s=%s\n' lo lo "$nic" "$nic" >"$RUNTIME/network/ifstate"
    fi
}

nic_keep_udev() { # its name is final, and NetworkManager's udev property says the same as its file
    printf 'SUBSYSTEM=="net", ACTION=="add", KERNEL=="%s", NAME:="%s"\n' "$nic" "$nic"
    printf 'SUBSYSTEM=="net", ACTION!="remove", KERNEL=="%s", ENV{NM_UNMANAGED}="1"\n' "$nic"
}

nic_keep_networkd() { # systemd.network(5): what it finds it keeps; a lease is renewed, and never given up
    printf '[Match]\nName=%s\n\n[Network]\nKeepConfiguration=yes\nIgnoreCarrierLoss=yes\n' "$nic"
    if [ "$nic_how" = dhcp ]; then
        printf 'DHCP=ipv4\nLinkLocalAddressing=no\n\n'
        printf '[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\nSendRelease=no\n'
    else
        printf 'Address=%s\n' "$nic_address"
        [ -z "$nic_gateway" ] || printf 'Gateway=%s\n' "$nic_gateway"
    fi
}
