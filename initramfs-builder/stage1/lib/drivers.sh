# shellcheck shell=sh
# Drivers for what is on the bus, and the few that a capsule always needs.
# needs: cat modprobe sort tr xargs

# By its path: busybox's shell runs its own applet for the plain word, also where kmod's program is in PATH, and the
# applet can't load what kmod can.
MODPROBE=${CK_MODPROBE:-}
for modprobe_path in /usr/sbin/modprobe /sbin/modprobe; do
    [ -n "$MODPROBE" ] || [ ! -x "$modprobe_path" ] || MODPROBE=$modprobe_path
done
: "${MODPROBE:=modprobe}"

aliases() { # modalias of every device on a bus, each once
    cat "$SYS"/bus/*/devices/*/modalias 2>/dev/null | sort -u
}

load_for_bus() { # drivers bring new buses (virtio below PCI), so look again until nothing new appears
    bus_before=
    for bus_round in 1 2 3 4 5 6; do
        bus_now=$(aliases)
        [ "$bus_now" != "$bus_before" ] || break
        bus_before=$bus_now
        # Most aliases match no module of this image: modprobe says so with its status.
        # Zeros between them: xargs gives up at a lone quote, which firmware may have put into a name.
        printf '%s\n' "$bus_now" | tr '\n' '\000' | xargs -0 -r "$MODPROBE" -a -q 2>/dev/null || :
    done
    : "$bus_round"
}

load_drivers() {
    load_for_bus
    # One that is not the node's own is no reason to stop; network_up says them again if it was.
    drivers_lack=$(say_undriven_nics)
    [ -z "$drivers_lack" ] || detail "${drivers_lack#; }"
    for driver in af_packet loop squashfs overlay; do "$MODPROBE" -q "$driver" || :; done
    for driver in squashfs overlay; do
        has_filesystem "$driver" || fail "this kernel has no $driver, built in or as a module in stage 1"
    done
    [ -e "$DEV/loop-control" ] || fail "this kernel has no loop devices, built in or as a module in stage 1"
}

has_filesystem() { # NAME
    while read -r fs_first fs_second; do
        [ "${fs_second:-$fs_first}" != "$1" ] || return 0
    done <"$PROC/filesystems"
    return 1
}
