# shellcheck shell=sh
# What is the node's own: its machine-id, the agent, and then the upper as one more squashfs.
# needs: cat chmod cp ln mkdir mksquashfs rm stat tar

AGENT_HOME=usr/lib/capsulekit # inside the new root
AGENT_CONF=etc/capsulekit/agent
# What the agent and the shipped modules run on the node and a minimal root may lack.
AGENT_PROGRAMS='awk cat chmod chown cmp cp cut dd find grep ln mkdir mkfifo mv pidof readlink rm rmdir sed sha256sum
    sleep sort stat tail timeout tr xargs'

write_identity() { # a stable machine-id, from the registry
    mkdir -p "$NEWROOT/etc"
    rm -f "$NEWROOT/etc/machine-id"
    plan_value machine-id >"$NEWROOT/etc/machine-id"
    chmod 444 "$NEWROOT/etc/machine-id"
}

install_agent() { # with a curl of its own: a minimal root has none, and busybox wget checks no certificate
    umask 022
    mkdir -p "$NEWROOT/$AGENT_HOME/lib" "$NEWROOT/$AGENT_CONF"
    copy_curl "$NEWROOT/$AGENT_HOME"
    copy_programs "$NEWROOT/$AGENT_HOME"
    # Each by its full name, which the check of the image looks for.
    cp "$LIB/agent/capsule-agent" "$NEWROOT/$AGENT_HOME/capsule-agent"
    cp "$LIB/agent/capsule-tree" "$NEWROOT/$AGENT_HOME/capsule-tree"
    chmod 755 "$NEWROOT/$AGENT_HOME/capsule-agent" "$NEWROOT/$AGENT_HOME/capsule-tree"
    cp "$SITE/ca.pem" "$NEWROOT/$AGENT_CONF/ca.pem"
    cp "$SITE/masters" "$NEWROOT/$AGENT_CONF/masters"
    chmod 644 "$NEWROOT/$AGENT_CONF/ca.pem" "$NEWROOT/$AGENT_CONF/masters"
    rm -f "$NEWROOT/$AGENT_CONF/session"
    agent_session
    printf '#!/bin/sh\nexec /%s/capsule-agent\n' "$AGENT_HOME" >"$NEWROOT/$AGENT_CONF/start"
    chmod 755 "$NEWROOT/$AGENT_CONF/start"
    enable_agent
}

agent_session() { # the key; but not where rd.break gives somebody a shell beside it
    case " $(plan_value kargs) " in
        *' rd.break'*)
            ! console_open || { say 'rd.break: the agent gets no session key, so this boot will not be ready' && return; }
            ;;
    esac
    [ ! -s "$SESSION" ] || (umask 077 && cat "$SESSION" >"$NEWROOT/$AGENT_CONF/session")
}

dynamic_loader() { # the program that starts curl
    for loader in /lib64/ld-linux-*.so.* /lib/ld-linux*.so.* /lib/ld-musl-*.so.*; do
        [ ! -e "$loader" ] || { printf '%s\n' "$loader" && return; }
    done
    return 1
}

curl_path() { command -v curl; }

curl_closure() { # every library of curl, one path a line: from the builder's list, or asked from the loader
    if [ -s "$LIB/curl.closure" ]; then
        cat "$LIB/curl.closure"
    else
        "$(dynamic_loader)" --list "$(curl_path)" | while read -r closure_name closure_arrow closure_path _; do
            [ "$closure_arrow" != '=>' ] || printf '%s\n' "$closure_path"
            : "$closure_name"
        done
    fi
}

copy_curl() { # TARGET
    cp -L "$(curl_path)" "$1/curl"
    cp -L "$(dynamic_loader)" "$1/ld.so"
    chmod 755 "$1/curl" "$1/ld.so"
    curl_closure >"$RUN/curl.closure"
    while read -r copy_path; do
        cp -L "$copy_path" "$1/lib/${copy_path##*/}"
        chmod 644 "$1/lib/${copy_path##*/}"
    done <"$RUN/curl.closure"
}

copy_programs() { # TARGET: stage 1's busybox, which is static, under the names of what a minimal root may lack
    for busybox_path in ${CK_BUSYBOX:-/usr/bin/busybox /bin/busybox}; do
        [ -x "$busybox_path" ] || continue
        mkdir -p "$1/bin"
        cp -L "$busybox_path" "$1/bin/busybox"
        chmod 755 "$1/bin/busybox"
        for program in $AGENT_PROGRAMS; do ln -sfn busybox "$1/bin/$program"; done
        return 0
    done
}

enable_agent() { # by whichever init the capsule has; any other calls etc/capsulekit/agent/start
    if [ -d "$NEWROOT/usr/lib/systemd/system" ] || [ -d "$NEWROOT/lib/systemd/system" ]; then
        mkdir -p "$NEWROOT/etc/systemd/system/multi-user.target.wants"
        cp "$LIB/agent/capsule-agent.service" "$NEWROOT/etc/systemd/system/capsule-agent.service"
        chmod 644 "$NEWROOT/etc/systemd/system/capsule-agent.service"
        ln -sfn ../capsule-agent.service "$NEWROOT/etc/systemd/system/multi-user.target.wants/capsule-agent.service"
    elif [ -d "$NEWROOT/etc/init.d" ] || [ -d "$NEWROOT/etc/rc.d/init.d" ]; then
        enable_sysvinit
    fi
}

enable_sysvinit() { # started last; Debian has the links in etc, the Red Hat family in etc/rc.d
    sysv_scripts=$NEWROOT/etc/init.d sysv_links=$NEWROOT/etc
    [ ! -d "$NEWROOT/etc/rc.d/init.d" ] || sysv_scripts=$NEWROOT/etc/rc.d/init.d sysv_links=$NEWROOT/etc/rc.d
    cp "$LIB/agent/capsule-agent.init" "$sysv_scripts/capsule-agent"
    chmod 755 "$sysv_scripts/capsule-agent"
    for sysv_level in 2 3 4 5; do
        mkdir -p "$sysv_links/rc$sysv_level.d"
        ln -sfn ../init.d/capsule-agent "$sysv_links/rc$sysv_level.d/S99capsule-agent"
    done
    for sysv_level in 0 1 6; do
        mkdir -p "$sysv_links/rc$sysv_level.d"
        ln -sfn ../init.d/capsule-agent "$sysv_links/rc$sysv_level.d/K01capsule-agent"
    done
}

gnu_tar() { # by path: busybox's shell prefers its own applet, which knows no xattrs
    for tar_path in ${CK_TAR:-/usr/bin/tar /bin/tar}; do
        [ ! -x "$tar_path" ] || { printf '%s\n' "$tar_path" && return; }
    done
    fail "GNU tar is missing in stage 1"
}

pack_upper() { # UPPER OUT: whiteouts and opaque marks as overlay stores them, every other overlay mark left out
    # mksquashfs -tar, not sqfstar: 4.5.1's can't be given a level, and its usual 15 costs a node half a minute.
    rm -f "$2" "$RUN/tar.failed"
    pack_tar=$(gnu_tar)
    {
        "$pack_tar" --xattrs '--xattrs-include=security.*' '--xattrs-include=user.*' \
            '--xattrs-include=trusted.overlay.opaque' --numeric-owner -C "$1" -cf - . || : >"$RUN/tar.failed"
    } | mksquashfs - "$2" -tar -comp zstd -Xcompression-level 1 -mem 64M -root-mode "$(stat -c %a "$1")" \
        -quiet -no-progress >/dev/null
    [ ! -e "$RUN/tar.failed" ] || fail "the node's layer could not be packed"
}

make_node_layer() {
    write_identity
    install_agent
    unmount_layers
    pack_upper "$STACK/u" "$RUN/node.squashfs"
    detail "$((($(file_size "$RUN/node.squashfs") + 1023) / 1024)) kB"
    compose_end "$RUN/node.squashfs"
    rm -rf "$RUN/node.squashfs" "${STACK:?}/u" "$STACK/w"
}
