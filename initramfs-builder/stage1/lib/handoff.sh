# shellcheck shell=sh
# The jump into the capsule's kernel, and the two stops before it that debug levels ask for.
# needs: cat cttyhack kexec rm setsid sh sleep sync

load_kernel() {
    # rootfstype=ramfs: the initramfs must not be limited to half of the memory. No ticket, no key: anyone can read it.
    kexec_line="$(plan_value kargs) rootfstype=ramfs ck.init=$(plan_value init)"
    if ! kexec -s -l "$CAPSULE/boot/vmlinuz" --initrd="$INITRD" --command-line="$kexec_line"; then
        # i386 kernels, and 64-bit to 32-bit, know only the older call.
        kexec -c -l "$CAPSULE/boot/vmlinuz" --initrd="$INITRD" --command-line="$kexec_line" ||
            fail "kexec could not load the capsule's kernel"
    fi
}

debug_shell() { # only where the site says so; nothing secret is left when it starts
    [ "$(cat "$SITE/console")" = open ] || { detail "refused: the site's console is locked" && return; }
    rm -f "$SESSION" "$RUN/progress.curl"
    rm -rf "$DATA"
    say "debug: a shell; the new root is in $NEWROOT. exit goes on, without the agent: the session key is gone"
    setsid cttyhack sh </dev/console >/dev/console 2>&1 || :
}

debug_pause() {
    [ "$DEBUG" -ge 2 ] || return 0
    say "debug: the jump follows in 10 s"
    sleep 10
}

hand_off() { # does not return when all goes well
    if [ -s "$SESSION" ]; then
        send_queue || :
        tell_state handoff
    fi
    debug_pause
    say "handing over to $(plan_value vnfs)"
    dhcp_stop
    sync
    kexec -e
    fail "kexec came back"
}
