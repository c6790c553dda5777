#!/bin/sh
# The first program of a build's own namespaces: the same host name on every machine (but in a container that gives it no
# names of its own), a folder `mem` to unpack a root in, then the program itself.
#   CAPSULEKIT_MEMORY   bytes that the folder may take of memory; 0: it lies on the disk; not set: there is none
set -eu
memory=${CAPSULEKIT_MEMORY:-}
unset CAPSULEKIT_MEMORY
[ -z "$memory" ] || mkdir mem
if [ "${CAPSULEKIT_NO_MOUNTS:-no}" = no ]; then
    hostname localhost
    [ "${memory:-0}" = 0 ] || mount -t tmpfs -o "mode=0755,size=$memory" memory mem
fi
exec "$@"
