#!/bin/sh
# Starts the Makefile of this folder, wherever it is called from; on Debian it installs make first if that is missing.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# The make of the system, never this file, even if `.` stands in PATH.
find_make() {
    old_ifs=$IFS
    IFS=:
    for dir in $PATH; do
        if [ -x "$dir/make" ] && [ ! -d "$dir/make" ] && [ ! "$dir/make" -ef "$here/make" ]; then
            printf '%s\n' "$dir/make"
            break
        fi
    done
    IFS=$old_ifs
}

real=$(find_make)
if [ -z "$real" ]; then
    "$here/scripts/setup" make
    real=$(find_make)
fi
exec "$real" --no-print-directory -C "$here" "$@"
