#!/bin/sh
# Each file gets what one perturbation would change, if it reached the inside of the root.
set -eu
mkdir /etc/seen /etc/names
cd /etc/seen
date +%F >day
for number in 1 2 3 4 5 6 7 8 9 10 11 12; do
    : >"/etc/names/$number"
done
ls -U /etc/names >order
nproc >cores
hostname >its-host
date +%Z%z >its-zone
echo "${LC_ALL:-} ${LANG:-} ${LANGUAGE:-}" >its-locale
umask >its-umask
id >its-user
# What moves the clock can be seen here and nowhere else.
env -u DATEFUDGE | sort >its-environment
