# shellcheck shell=sh
# What this machine is made of: every device with its driver for the master, network devices without one for people.
# needs: cmp find modprobe mv rm sort tr uniq

device_files() { # the modalias files of all devices on a bus; processors, all alike, are left out
    # Without a process for each, and without walking through the whole of /sys/devices: a server's is vast.
    for files_one in "$SYS"/bus/*/devices/*/modalias; do
        case $files_one in "$SYS"/bus/cpu/*) continue ;; esac
        [ ! -e "$files_one" ] || printf '%s\n' "$files_one"
    done
}

device_alias() { # FILE: into $device_modalias; false when the device has gone, or its alias can name no module
    device_modalias=
    { IFS= read -r device_modalias <"$1" || :; } 2>/dev/null
    # modules.alias is cut at blanks. Everything from '!' to '~' may be in an alias.
    case $device_modalias in
        *[!!-~]*) return 1 ;;
        [a-z]*:*) ;;
        *) return 1 ;;
    esac
}

plain_name() { # NAME: into $plain_word; a driver's may hold blanks ("Generic PHY")
    plain_word=$1
    case $1 in *[!A-Za-z0-9._-]*) plain_word=$(printf '%s' "$1" | tr -c 'A-Za-z0-9._-' _) ;; esac
}

device_driver() { # FOLDER: into $device_words: "DRIVER", "DRIVER module=NAME" when it can be unloaded, "-" for none
    device_words=-
    # cd -P instead of readlink, variables instead of $(): no process for each of a thousand devices.
    cd -P "$1/driver" 2>/dev/null || return 0
    plain_name "${PWD##*/}"
    device_words=$plain_word
    # Only modules that were loaded have this file.
    [ -e module/initstate ] || return 0
    cd -P module 2>/dev/null || return 0
    plain_name "${PWD##*/}"
    device_words="$device_words module=$plain_word"
}

boot_way() { # MAC: the folder of the device that carries this interface; empty when there is none
    way_nic=$(nic_by_mac "$1") || return 0
    (cd -P "$NET/$way_nic/device" 2>/dev/null && pwd) || :
}

list_devices() { # MAC: "MODALIAS DRIVER [module=NAME] [boot]" of every device; boot: on the way to this interface
    list_way=$(boot_way "$1")
    device_files | while IFS= read -r list_file; do
        device_alias "$list_file" || continue
        cd -P "${list_file%/*}" 2>/dev/null || continue
        list_boot=
        case $list_way/ in "$PWD"/*) list_boot=' boot' ;; esac
        device_driver "$PWD"
        printf '%s\n' "$device_modalias $device_words$list_boot"
    done
}

devices_text() { # MAC: the same with equal lines counted, in an order that does not depend on the bus
    list_devices "$1" | sort | uniq -c | while read -r text_count text_line; do
        [ "$text_count" -eq 1 ] || text_line="$text_line count=$text_count"
        printf '%s\n' "$text_line"
    done
}

devices_known() { # the master was told the same, in this session: a node that was deleted meanwhile is a new one
    [ -s "$RUN/devices" ] && [ -z "$(find "$SESSION" -newer "$RUN/devices")" ] &&
        cmp -s "$RUN/devices.new" "$RUN/devices"
}

send_devices() { # MAC: tell the master what it does not know yet. What fails here stops no boot
    devices_text "$1" >"$RUN/devices.new"
    if devices_known; then
        detail "as sent before"
        return 0
    fi
    rm -f "$RUN/devices.answer"
    if [ ! -s "$RUN/master" ]; then
        detail "not sent: no master has answered yet"
        return 0
    fi
    read -r _ devices_https <"$RUN/master"
    # An answer is one line; the limit is in blocks of 512 bytes.
    if ! devices_code=$(ulimit -f 64 && tls -K "$SESSION" --max-time 20 -o "$RUN/devices.answer" -w '%{http_code}' \
        -H 'Content-Type: text/plain' --data-binary "@$RUN/devices.new" "$devices_https/v1/devices" 2>"$RUN/curl.err"); then
        detail "not sent: the master did not take them"
    elif [ "$devices_code" != 200 ]; then
        detail "not sent: the master answered $devices_code: $(first_line "$RUN/devices.answer")"
    else
        mv "$RUN/devices.new" "$RUN/devices"
        detail "$(devices_number "$RUN/devices") devices"
    fi
}

devices_number() { # FILE: how many devices its lines stand for
    number_all=0
    while IFS= read -r number_line; do
        number_here=1
        case $number_line in *' count='*) number_here=${number_line##*=} ;; esac
        number_all=$((number_all + number_here))
    done <"$1"
    printf '%s\n' "$number_all"
}

nic_kind() { # MODALIAS: true for what can only be a network device; PCI class 02, USB Ethernet and RNDIS, virtual ones
    case $1 in
        pci:*bc02sc*) ;;
        usb:*ic02isc06ip* | usb:*ic02isc0[ACD]ip* | usb:*ic02isc02ipFF* | usb:*icE0isc01ip03* | usb:*icEFisc0[14]ip01*) ;;
        virtio:d00000001v* | vmbus:635161f83edfc546913ff2d2f965ed0e | xen:vif) ;;
        *) return 1 ;;
    esac
}

device_ids() { # MODALIAS: " [15b3:1017]" of PCI, USB and virtio, with the class of PCI: what an admin looks up
    # The letters between the numbers are small ones, hexadecimal digits are not.
    ids_class=
    case $1 in
        pci:v0000*)
            ids_vendor=${1#pci:v0000} ids_device=${1#*d0000} ids_class=${1##*bc}
            ids_vendor=${ids_vendor%%d*} ids_device=${ids_device%%sv*} ids_class=${ids_class%%i*}
            ;;
        usb:v*)
            ids_vendor=${1#usb:v} ids_device=${1#usb:v*p}
            ids_vendor=${ids_vendor%%p*} ids_device=${ids_device%%d*}
            ;;
        virtio:d0000*) ids_vendor=${1##*v0000} ids_device=${1#virtio:d0000} ids_device=${ids_device%%v*} ;;
        *) return 0 ;;
    esac
    ids_text=" [$ids_vendor:$ids_device]"
    [ -z "$ids_class" ] || ids_text="$ids_text, class ${ids_class%%sc*}${ids_class#*sc}"
    printf '%s' "$ids_text" | tr 'A-F' 'a-f'
}

undriven_nics() { # [all]: a line for each network device without a driver; "all": also USB devices that may be one
    device_files | while IFS= read -r undriven_file; do
        if [ -e "${undriven_file%/*}/driver" ] || ! device_alias "$undriven_file"; then continue; fi
        undriven_name=${undriven_file%/*}
        undriven_name="${undriven_name##*/}$(device_ids "$device_modalias")"
        if nic_kind "$device_modalias"; then
            if [ -n "$("$MODPROBE" -q -D "$device_modalias" 2>/dev/null)" ]; then
                printf 'the driver of this stage 1 does not take network device %s (firmware?)\n' "$undriven_name"
            else
                printf 'no driver in this stage 1 for network device %s\n' "$undriven_name"
            fi
        elif [ "${1:-}" = all ]; then
            case $device_modalias in
                usb:*icFF*) printf 'no driver in this stage 1 for %s, which may be a network device\n' "$undriven_name" ;;
            esac
        fi
    done
}

say_undriven_nics() { # [all]: on the consoles, each; and on one line for a reason or a detail: "; no driver …"
    undriven_nics "$@" | while IFS= read -r say_undriven; do
        say "$say_undriven"
        printf '; %s' "$say_undriven"
    done
}
