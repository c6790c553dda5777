#!/bin/sh
# The first program of a build's own namespaces: the same host name on every machine (but in a container that
# gives it no names of its own), then the program itself.
set -eu
[ "${CAPSULEKIT_NO_MOUNTS:-no}" = yes ] || hostname localhost
exec "$@"
