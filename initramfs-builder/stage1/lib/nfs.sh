# shellcheck shell=sh
# Transfer method nfs: a server's folder with the public files by digest, mounted read-only for as long as the boot
# fetches. It is one more place to look: what is missing or wrong there comes by http, and every byte is hashed as always.
# Whatever goes wrong here costs time, never the boot.
# needs: dd grep mkdir modprobe mount sed truncate umount

OFFERED=${CK_OFFERED:-/run/nfs}
# soft: a server that goes away gives an error after some 20 s, and http has its turn.
NFS_OPTIONS=vers=4.1,sec=sys,ro,soft,timeo=50,retrans=2,nosuid,nodev,noexec

nfs_open() { # mount what the plan names; without a word of it there is nothing to do
    : >"$RUN/nfs.taken"
    nfs_export=$(plan_value nfs)
    [ -n "$nfs_export" ] || { detail 'the files come by http' && return 0; }
    nfs_close
    mkdir -p "$OFFERED"
    for nfs_driver in nfs nfsv4; do "$MODPROBE" -q "$nfs_driver" || :; done
    nfs_server=${nfs_export%:/*}
    nfs_server=${nfs_server#\[}
    if mount -t nfs4 -o "$NFS_OPTIONS,addr=${nfs_server%\]}" "$nfs_export" "$OFFERED" 2>"$RUN/nfs.err"; then
        detail "$nfs_export"
    else
        nfs_why=$(sed -n '$p' "$RUN/nfs.err")
        nfs_why=$(printable "${nfs_why##*failed: }")
        say "nfs: $nfs_export: $nfs_why; the files come by http"
        detail "$nfs_export: $nfs_why; the files come by http"
    fi
}

nfs_mounted() { grep -q -F " $OFFERED " "$PROC/mounts"; }

nfs_take() { # FILE NAME DIGEST SIZE KIND START: append it from there; false when it is not there, whole and right
    nfs_mounted || return 1
    # A look may fail too: the server can go at any time.
    if ! nfs_size=$(file_size "$OFFERED/$3" 2>/dev/null); then
        say "$2: is not on the NFS server; it comes by http"
        return 1
    fi
    [ "$nfs_size" = "$4" ] || nfs_wrong "$2" "has $nfs_size bytes there, not $4" || return 1
    # With what an earlier attempt had got by http: a whole copy from here is simpler than its rest.
    truncate -s "$6" "$1"
    # Not to its end: it may have grown since, and this goes into memory.
    if ! dd if="$OFFERED/$3" bs=1M count=$(($4 / 1048576 + 1)) 2>"$RUN/nfs.err" >>"$1"; then
        truncate -s "$6" "$1"
        nfs_wrong "$2" "cannot be read there: $(printable "$(sed -n '1s/.*: //p' "$RUN/nfs.err")")" || return 1
    fi
    if [ "$(file_size "$1")" -ne $(($6 + $4)) ] || [ "$(digest_at "$1" "$6" "$4")" != "$3" ]; then
        truncate -s "$6" "$1"
        nfs_wrong "$2" 'has other bytes there than its digest says' || return 1
    fi
    printf '%s\n' "$2" >>"$RUN/nfs.taken"
}

nfs_wrong() { # NAME WHY
    say "$1: $2 (NFS); it comes by http"
    return 1
}

nfs_count() { # ", N by nfs", for a step's report; nothing where none of the files came so
    [ -s "$RUN/nfs.taken" ] || return 0
    printf ', %s by nfs\n' "$(grep -c . "$RUN/nfs.taken")"
}

nfs_close() {
    if nfs_mounted; then umount "$OFFERED" 2>/dev/null || umount -l "$OFFERED" || :; fi
}
