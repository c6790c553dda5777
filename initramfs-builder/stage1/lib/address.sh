# shellcheck shell=sh
# A static address, or how to get one, from the kernel argument ip=. Format: the kernel's
# Documentation/admin-guide/nfs/nfsroot.rst:
#   ip=CLIENT:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF:DNS0:DNS1:NTP0    or one word: ip=dhcp
# Beyond it, as in other initramfs: an IPv6 address in [], the netmask as a prefix length, DEVICE also by its MAC.
# needs: sed tr

ip_fields() { # TEXT: its fields, one a line; the colons inside [] separate nothing
    fields_rest=$1
    while :; do
        case $fields_rest in
            \[*)
                case $fields_rest in *']') ;; *']:'*) ;; *) return 1 ;; esac
                fields_one=${fields_rest#\[}
                fields_one=${fields_one%%\]*}
                fields_rest=${fields_rest#*\]}
                ;;
            *)
                fields_one=${fields_rest%%:*}
                fields_rest=${fields_rest#"$fields_one"}
                ;;
        esac
        printf '%s\n' "$fields_one"
        case $fields_rest in
            '') return 0 ;;
            :*) fields_rest=${fields_rest#:} ;;
            *) return 1 ;;
        esac
    done
}

ip_field() { # NUMBER
    sed -n "${1}p" "$RUN/ip.fields"
}

ip_parse() { # VALUE: sets IP_HOW (static, dhcp, auto6), and IP_ADDRESS IP_PREFIX IP_GATEWAY IP_DEVICE IP_DNS
    IP_HOW='' IP_ADDRESS='' IP_PREFIX='' IP_GATEWAY='' IP_DEVICE='' IP_DNS=''
    case $1 in
        *:*) ;;
        *) ip_how "$1" "$1" && return ;;
    esac
    ip_fields "$1" >"$RUN/ip.fields" || fail "ip=$1: the brackets do not match"
    [ -z "$(sed -n 11p "$RUN/ip.fields")" ] || fail "ip=$1: more than 10 fields"
    IP_ADDRESS=$(ip_field 1) IP_GATEWAY=$(ip_field 3) IP_PREFIX=$(ip_field 4) IP_DEVICE=$(ip_field 6)
    ip_how "$(ip_field 7)" "$1"
    ip_check_device "$1"
    ip_dns "$1"
    [ "$IP_HOW" = static ] || return 0
    ip_check_address "$1"
}

ip_how() { # WORD VALUE: the field "autoconf"; without a word an address is static, and none is asked for by DHCP
    case $1 in
        dhcp | on | any | both) IP_HOW=dhcp ;;
        auto6) IP_HOW=auto6 ;;
        off | none | static | '')
            if [ -n "$IP_ADDRESS" ]; then IP_HOW=static; else IP_HOW=dhcp; fi
            [ -z "$1" ] || [ "$IP_HOW" = static ] || fail "ip=$2: $1 needs an address to use instead"
            ;;
        bootp | rarp | ibft | dhcp6) fail "ip=$2: $1 is not supported: use dhcp, auto6, or off with an address" ;;
        *) fail "ip=$2: $(printable "$1") is no way to get an address: dhcp, auto6, off, none or static" ;;
    esac
}

ip_check_device() { # VALUE: DEVICE is an interface's name, or a MAC with dashes or in []
    case $IP_DEVICE in
        '') return 0 ;;
        ??[:-]??[:-]??[:-]??[:-]??[:-]??) ip_device_mac "$1" ;;
        .* | *[!A-Za-z0-9._-]*) fail "ip=$1: $(printable "$IP_DEVICE") is not the name of a network interface" ;;
    esac
    # IFNAMSIZ of <linux/if.h> counts the closing zero too; a MAC is longer.
    [ "${#IP_DEVICE}" -le 15 ] || is_mac "$IP_DEVICE" || fail "ip=$1: $IP_DEVICE is too long for an interface's name"
}

ip_device_mac() { # VALUE
    IP_DEVICE=$(upper "$IP_DEVICE" | tr - :)
    is_mac "$IP_DEVICE" || fail "ip=$1: $(printable "$IP_DEVICE") is no MAC"
}

ip_dns() { # VALUE: fields 8 and 9; field 10, a time server, is the running system's business
    for ip_server in $(ip_field 8) $(ip_field 9); do
        is_ipv4 "$ip_server" || is_ipv6 "$ip_server" || fail "ip=$1: $(printable "$ip_server") is no address of a name server"
        IP_DNS="$IP_DNS $ip_server"
    done
}

ip_check_address() { # VALUE: address, prefix and gateway are of one family
    if is_ipv4 "$IP_ADDRESS"; then
        IP_PREFIX=$(ip_prefix4 "$IP_ADDRESS" "$IP_PREFIX") || fail "ip=$1: the netmask is none"
        [ -z "$IP_GATEWAY" ] || is_ipv4 "$IP_GATEWAY" || fail "ip=$1: $(printable "$IP_GATEWAY") is no IPv4 gateway"
    elif is_ipv6 "$IP_ADDRESS"; then
        : "${IP_PREFIX:=64}"
        is_length "$IP_PREFIX" 128 || fail "ip=$1: the prefix length is none: $(printable "$IP_PREFIX")"
        [ -z "$IP_GATEWAY" ] || is_ipv6 "$IP_GATEWAY" || fail "ip=$1: $(printable "$IP_GATEWAY") is no IPv6 gateway"
    else
        fail "ip=$1: $(printable "$IP_ADDRESS") is no address"
    fi
}

ip_prefix4() { # ADDRESS NETMASK: its length; without a netmask the one of the address's class, as the kernel does it
    case $2 in
        '')
            case $1 in
                19[2-9].* | 2[0-9][0-9].*) printf '24\n' ;;
                12[89].* | 1[3-9][0-9].*) printf '16\n' ;;
                *) printf '8\n' ;;
            esac
            ;;
        *.*) netmask_length "$2" ;;
        *) is_length "$2" 32 && printf '%s\n' "$2" ;;
    esac
}

is_length() { is_number "$1" && [ "$1" -le "$2" ]; } # TEXT MOST: a prefix length

netmask_length() { # 255.255.240.0 -> 20; false when it is no mask
    is_ipv4 "$1" || return 1
    mask_rest=$1. mask_length=0 mask_open=1
    while [ -n "$mask_rest" ]; do
        mask_byte=${mask_rest%%.*}
        mask_rest=${mask_rest#*.}
        for mask_bit in 128 64 32 16 8 4 2 1; do
            if [ $((mask_byte & mask_bit)) -ne 0 ]; then
                [ "$mask_open" -eq 1 ] || return 1
                mask_length=$((mask_length + 1))
            else
                mask_open=0
            fi
        done
    done
    printf '%s\n' "$mask_length"
}

is_ipv4() {
    ipv4_rest=$1. ipv4_n=0
    while [ -n "$ipv4_rest" ]; do
        ipv4_part=${ipv4_rest%%.*}
        ipv4_rest=${ipv4_rest#*.}
        is_length "$ipv4_part" 255 || return 1
        ipv4_n=$((ipv4_n + 1))
    done
    [ "$ipv4_n" -eq 4 ]
}

is_ipv6() { # the shape; whether each group fits is the kernel's to say
    case $1 in
        *[!0-9A-Fa-f:]* | *:::* | *::*::* | *[0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f]*) return 1 ;;
        *::* | *:*:*:*:*:*:*:*) ;;
        *) return 1 ;;
    esac
}
