# shellcheck shell=sh
# Memory is the node's scarcest good: what a boot needs, what there is, and the peak that was reached.
# needs: sleep

mem_kb() { # FIELD: a figure of /proc/meminfo, in kB
    while read -r mem_name mem_value mem_unit; do
        [ "$mem_name" != "$1:" ] || { : "$mem_unit" && printf '%s\n' "$mem_value" && return; }
    done <"$PROC/meminfo"
    return 1
}

mem_used_kb() { printf '%s\n' "$(($(mem_kb MemTotal) - $(mem_kb MemAvailable)))"; }

mem_sample() { # keep the highest figure in $RUN/peak.boot and, for the step that runs, $RUN/peak.step
    sample_now=$(mem_used_kb)
    for sample_name in boot step; do
        sample_high=0
        [ ! -s "$RUN/peak.$sample_name" ] || read -r sample_high <"$RUN/peak.$sample_name" || :
        [ "$sample_now" -le "${sample_high:-0}" ] || printf '%s\n' "$sample_now" >"$RUN/peak.$sample_name"
    done
}

mem_sampler() { # endless; started in the background once
    while :; do
        mem_sample
        sleep 1
    done
}

mem_peak() { # boot|step
    mem_peak_value=
    [ ! -s "$RUN/peak.$1" ] || read -r mem_peak_value <"$RUN/peak.$1" || :
    printf '%s\n' "${mem_peak_value:-$(mem_used_kb)}"
}

megabytes() { printf '%s\n' "$((($1 + 1048575) / 1048576))"; } # BYTES, rounded up

# Bytes that no plan names, measured with Debian 12: the node's own layer is 9 MB (the agent's curl and its libraries); a
# kernel takes 17 to 67 MB where it unpacks itself (init_size of the kernel's Documentation/arch/x86/boot.rst), and some
# MB are never given out (min_free_kbytes).
MEM_NODE=$((10 * 1048576))
MEM_KERNEL=$((72 * 1048576))

mem_needed() { # BYTES-OF-BOOT-FILES BYTES-OF-LAYERS: bytes at the worst moment of the boot, loading for kexec
    # Files, the call's buffers, and the initrd's segments; of the kernel kexec(8) has the third copy.
    printf '%s\n' "$((3 * ($1 + $2 + MEM_NODE) + MEM_KERNEL))"
}

plan_bytes() { # PATTERN: sum of the sizes of the plan's files whose path matches the shell pattern
    bytes=0
    while read -r bytes_kind bytes_path _ bytes_size _; do
        [ "$bytes_kind" = file ] || continue
        # shellcheck disable=SC2254 # the pattern is meant to be one
        case $bytes_path in $1) bytes=$((bytes + bytes_size)) ;; esac
    done <"$PLAN"
    printf '%s\n' "$bytes"
}

mem_check() { # BYTES-HELD-ALREADY: fail unless the plan fits, with the numbers
    mem_boot=$(plan_bytes 'boot/*')
    mem_layers=$(plan_bytes 'layers/*')
    mem_need=$(mem_needed "$mem_boot" "$mem_layers")
    mem_have=$(($(mem_kb MemAvailable) * 1024 + $1))
    mem_total=$(($(mem_kb MemTotal) * 1024))
    mem_text="needs $(megabytes "$mem_need") MB (boot files $(megabytes "$mem_boot") MB and layers"
    mem_text="$mem_text $(megabytes "$mem_layers") MB, held three times around kexec, and the new kernel),"
    mem_text="$mem_text has $((mem_have / 1048576)) MB available of $((mem_total / 1048576)) MB"
    [ "$mem_have" -ge "$mem_need" ] || fail "not enough memory: $mem_text"
    detail "$mem_text"
}
