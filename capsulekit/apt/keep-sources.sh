#!/bin/sh
# mmdebstrap's setup hook: keep the sources.list it made for the suite, then end it before it downloads anything.
set -eu
cp "$1/etc/apt/sources.list" "$CAPSULEKIT_OUT/sources.list"
exit 1
