# shellcheck shell=sh
# The initrd being composed: the capsule's own initrd, then a newc archive written behind prewritten headers, so
# that a layer is fetched straight to the place the kernel will unpack it from. Format: the kernel's
# Documentation/driver-api/early-userspace/buffer-format.rst.
# needs: cat head
# shellcheck disable=SC2034 # the other files use INITRD

INITRD=${CK_INITRD:-/run/initrd}

zeros() { [ "$1" -eq 0 ] || head -c "$1" /dev/zero; } # COUNT

cpio_pad() { # FILE ALIGN: zeros up to a multiple of ALIGN bytes
    pad_size=$(file_size "$1")
    zeros "$((($2 - pad_size % $2) % $2))" >>"$1"
}

cpio_header() { # NAME MODE(number) SIZE: to stdout; the caller stands at a multiple of 4
    [ "$3" -le 4294967295 ] || fail "$1: $3 bytes do not fit a cpio archive (4 GiB)"
    # magic ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\000' \
        0 "$2" 0 0 1 0 "$3" 0 0 0 0 "$((${#1} + 1))" 0 "$1"
    zeros "$(((4 - (111 + ${#1}) % 4) % 4))"
}

cpio_head_size() { printf '%s\n' "$(((111 + ${#1} + 3) / 4 * 4))"; } # NAME: bytes of its header, name and padding

cpio_dir() { cpio_header "$2" "$((0040755))" 0 >>"$1"; } # FILE NAME

cpio_open_file() { # FILE NAME SIZE: after it FILE ends where the data belongs, at a multiple of 4096 (loop, direct reads)
    cpio_pad_name=${2%/*}/.pad
    open_at=$(($(file_size "$1") + $(cpio_head_size "$cpio_pad_name") + $(cpio_head_size "$2")))
    open_gap=$(((4096 - open_at % 4096) % 4096))
    {
        cpio_header "$cpio_pad_name" "$((0100600))" "$open_gap"
        zeros "$open_gap"
        cpio_header "$2" "$((0100600))" "$3"
    } >>"$1"
}

cpio_close_file() { cpio_pad "$1" 4; } # FILE

cpio_small() { # FILE NAME SOURCE: a whole file, unaligned
    cpio_header "$2" "$((0100600))" "$(file_size "$3")" >>"$1"
    cat "$3" >>"$1"
    cpio_pad "$1" 4
}

cpio_trailer() { # FILE
    cpio_header 'TRAILER!!!' 0 0 >>"$1"
    cpio_pad "$1" 512
}
