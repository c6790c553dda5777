#!/bin/sh
# Unpacks two layers and lets capsulekit.image.compare say which paths have other extended attributes in them.
#   xattrs.sh WORK PYTHON OUT IMAGE OFFSET IMAGE OFFSET
set -eu
work=$1 python=$2 out=$3
unsquashfs -no-progress -quiet -offset "$5" -dest "$work/one" "$4" >/dev/null
unsquashfs -no-progress -quiet -offset "$7" -dest "$work/two" "$6" >/dev/null
exec "$python" -P -m capsulekit.image.compare "$work/one" "$work/two" "$out"
