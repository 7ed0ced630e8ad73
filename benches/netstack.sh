#!/bin/sh
# What the netstack costs: benches/netstack.sh [ROUNDS] [MIB]
#
# Two interfaces in one process over loopback, each on one arbiter; the server's CPU seconds per Gbit and the rate, each
# way, as the median of all rounds. The client is the same netstack, so the rate is that of the slower of two.
set -eu
rounds=${1:-10}
mib=${2:-512}
cd "$(dirname "$0")/.."
cargo build --quiet --release --locked --example wireguard_pair
program=${CARGO_TARGET_DIR:-target}/release/examples/wireguard_pair
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for _ in $(seq "$rounds"); do
    "$program" "$mib" >> "$out"
done
for way in up down; do
    for column in 2 5; do
        grep "^$way:" "$out" | awk -v c="$column" '{ print $c }' | sort -n | awk -v way="$way" -v c="$column" '
            { v[NR] = $1 }
            END {
                m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
                printf "%s %s: median %.3f, lowest %.3f, highest %.3f\n", way, c == 2 ? "Gbit/s" : "CPU s/Gbit", m, v[1], v[NR]
            }'
    done
done
