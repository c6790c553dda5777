#!/bin/sh
# Unpacks package files below a folder and runs nothing of them; everything belongs to whoever unpacks.
#   unpack.sh FOLDER "NAME=TARGET ..." PACKAGE.rpm...
# Packages say /lib/modules or /usr/lib/modules, and mean the same: the links of a merged /usr are made first.
set -eu
umask 022
folder=$1 links=$2
shift 2

mkdir -p "$folder"
for link in $links; do
    name=${link%%=*} target=${link#*=}
    parent=$folder/$(dirname "$name")
    mkdir -p "$parent/$target"
    [ -e "$folder/$name" ] || ln -s "$target" "$folder/$name"
done

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
for package; do
    rpm2archive -n - <"$package" >"$archive"
    tar -C "$folder" -xpf "$archive" --no-same-owner --keep-directory-symlink --warning=no-timestamp
done
