#!/bin/sh
# Starts the Makefile of this folder, wherever it is called from; on Debian it installs make first if that is missing.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# Leave out of PATH where this very file would be found (`.`, say): from here on, make is the system's.
path=''
old_ifs=$IFS
IFS=:
for dir in $PATH; do
    [ "${dir:-.}/make" -ef "$here/make" ] || path="$path${path:+:}$dir"
done
IFS=$old_ifs
PATH=$path
export PATH

command -v make >/dev/null 2>&1 || "$here/scripts/setup" make
exec make --no-print-directory -C "$here" "$@"
