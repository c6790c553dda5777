# shellcheck shell=sh
# The jump into the capsule's kernel, the quiet before it, and the two stops that debug levels ask for.
# needs: cat cttyhack grep ip kexec rm setsid sh sleep sync tail uname

MOST_ARGUMENTS=2047 # bytes; x86's COMMAND_LINE_SIZE without its closing zero

console_open() { # whether the site lets a console have a shell
    console_word=
    [ ! -s "$SITE/console" ] || read -r console_word <"$SITE/console"
    [ "$console_word" = open ]
}

lock_consoles() { # no key of a console does more than reading: sysrq could end or dump everything
    console_open || kernel_zero sysrq
    # 0: Ctrl-Alt-Del is a signal to this script, which the kernel withholds from a PID 1 that does not want it.
    kernel_zero ctrl-alt-del
}

kernel_zero() { # NAME of a file in /proc/sys/kernel; a kernel without the feature has no such file
    [ ! -e "$PROC/sys/kernel/$1" ] || printf '0\n' >"$PROC/sys/kernel/$1"
}

kernel_arguments() { # no ticket, no key: anybody can read them
    # rootfstype=ramfs: the initramfs must not be limited to half of the memory.
    arguments_line="$(plan_value kargs) rootfstype=ramfs ck.init=$(plan_value init)"
    case " $arguments_line " in
        *' ck.hybrid='*) # stage 2 mounts a part of the root over the network: which card, which address
            arguments_line="$arguments_line ck.nic=$(cat "$RUN/node") ck.ip=$(cat "$RUN/address")"
            ;;
    esac
    [ "${#arguments_line}" -le "$MOST_ARGUMENTS" ] ||
        fail "the kernel arguments are ${#arguments_line} bytes long; the kernel takes $MOST_ARGUMENTS"
    printf '%s\n' "$arguments_line"
}

load_kernel() {
    kexec_line=$(kernel_arguments)
    # kexec_file_load keeps Secure Boot's chain. i386 kernels don't have it, and none takes a 32-bit kernel with it.
    case $(uname -m) in
        i?86) ;;
        *)
            ! kexec_load_with -s || return 0
            kexec_unknown || fail "kexec_file_load refuses the capsule's kernel: $(kexec_why)"
            say "kexec_file_load does not know this kernel ($(kexec_why)); using kexec_load"
            ;;
    esac
    kexec_load_with -c || fail "kexec_load refuses the capsule's kernel: $(kexec_why)"
}

kexec_load_with() { # -s|-c
    kexec_status=0
    kexec "$1" -l "$CAPSULE/boot/vmlinuz" --initrd="$INITRD" --command-line="$kexec_line" >"$RUN/kexec.err" 2>&1 ||
        kexec_status=$?
    [ "$kexec_status" -ne 137 ] || printf 'killed: out of memory\n' >>"$RUN/kexec.err"
    return "$kexec_status"
}

kexec_unknown() { # ENOSYS, ENOEXEC, EOPNOTSUPP: the older call may do it. Any other refusal is meant.
    grep -q -e 'Function not implemented' -e 'Exec format error' -e 'not supported' -e 'not available' "$RUN/kexec.err"
}

kexec_why() { printable "$(tail -n 1 "$RUN/kexec.err")"; }

debug_shell() { # only where the site says so; nothing secret is left when it starts
    console_open || { detail "refused: the site's console is locked" && return 0; }
    rm -f "$SESSION" "$RUN/progress.curl" "$RUN/prefetch.curl" "$RUN/ticket" "$RUN"/*.answer
    rm -rf "$DATA" "$SCRIPTS"
    say "debug: a shell; the new root is in $NEWROOT. exit goes on, without the agent: the session key is gone"
    # shellcheck disable=SC2094 # a console, not a file
    setsid cttyhack sh <"$DEV/console" >>"$DEV/console" 2>&1 || :
}

debug_pause() {
    [ "$DEBUG" -ge 2 ] || return 0
    say "debug: the jump follows in 10 s"
    sleep 10
}

hand_off() { # does not return when all goes well
    if [ -s "$SESSION" ]; then
        send_queue || :
        tell_handoff
    fi
    debug_pause
    say "handing over to $(plan_value vnfs)"
    quiesce
    kexec -e >"$RUN/kexec.err" 2>&1 || :
    jump_failed
}

tell_handoff() { # everything is here: a master that is away now must not stop this node
    # In a shell of its own: fail would end the step.
    (tell_state handoff) || say "$(cat "$RUN/reason"); going on"
    rm -f "$RUN/reason"
    # Without a session the running system could never report: better to start over now.
    [ -s "$SESSION" ] || fail "the master no longer knows this session"
}

quiesce() { # no device may write into memory that belongs to the next kernel, and no disk may be left dirty
    nfs_close # while there is a network
    dhcp_stop
    disk_close
    sync
    for quiet_dir in "$NET"/*; do ip link set "${quiet_dir##*/}" down || :; done
}

jump_failed() { # with the network taken down: up again, so that the master learns of it too; then a clean start
    jump_why=$(kexec_why)
    say "kexec came back: $jump_why"
    rm -f "$RUN/lease"
    (network_up "$(cat "$RUN/node")") || say "$(cat "$RUN/reason")"
    reboot_needed "kexec did not start the capsule's kernel: ${jump_why:-it says nothing}"
}
