#!/usr/bin/env bash
# QUIC servers beside each other, ours among them:   benches/quic.sh [ROUNDS] [MODE ...]
#
# MODE: bulk bulk100 handshakes flood requests requests-conns idle neighbours-down neighbours-up steering; without one,
# all but steering. What each does stands in benches/quic-peers/src/bin/quicload/main.rs.
#
# Each server has one CPU and one thread, the load other CPUs. A run has a fresh server. In a round every side runs once,
# and the next round begins with another side; a ratio is taken within a round, the figure is the median of them.
#   SIDES="quinn s2n tokio-quiche ours"   BYTES=1000000000   SECONDS_EACH=2   SERVER_CPU=0   CONNS=500   COUNT=20000
#   OURS="--…"  QUINN="--…"  S2N="--…"  TOKIO_QUICHE="--…"   more arguments for a server, to compare settings
# `steering` compares ours with itself: two arbiters on two CPUs, with and without the kernel's help.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-10}
shift || true
modes=${*:-bulk bulk100 handshakes flood requests requests-conns idle neighbours-down neighbours-up}
read -ra sides <<< "${SIDES:-quinn s2n tokio-quiche ours}"
seconds=${SECONDS_EACH:-2}
port=${PORT:-17443}
bin=benches/quic-peers/target/release
export RUST_BACKTRACE=0
ulimit -n "$(ulimit -Hn)"

dir=$(mktemp -d)
server=
stop() {
    [ -n "$server" ] || return 0
    kill "$server" 2> /dev/null || true
    for _ in $(seq 20); do kill -0 "$server" 2> /dev/null || break; sleep 0.05; done
    kill -9 "$server" 2> /dev/null || true
    wait "$server" 2> /dev/null || true
    server=
}
trap 'stop; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM

[ -n "${BUILT:-}" ] || cargo build --quiet --release --locked --manifest-path benches/quic-peers/Cargo.toml
"$bin/quicload" certificate "$dir"

start() { # side, CPUs, arguments...
    local side=$1 cpus=$2 more=
    shift 2
    case $side in
    ours) more=${OURS:-} ;;
    quinn) more=${QUINN:-} ;;
    s2n) more=${S2N:-} ;;
    tokio-quiche) more=${TOKIO_QUICHE:-} ;;
    esac
    # shellcheck disable=SC2086 # several words
    taskset -c "$cpus" "$bin/serve-$side" --listen "127.0.0.1:$port" --certificate "$dir/cert.pem" --key "$dir/key.pem" \
        "$@" $more > "$dir/log" 2>&1 &
    server=$!
    for _ in $(seq 100); do
        if grep -q ready "$dir/log"; then return; fi
        kill -0 "$server" 2> /dev/null || break
        sleep 0.02
    done
    echo "the server $side does not answer:" >&2
    cat "$dir/log" >&2
    exit 1
}

load() { # side, mode, quicload's arguments...
    local name="$1 $2" line
    shift 2
    if line=$(timeout 60 "$bin/quicload" --target "127.0.0.1:$port" --pid "$server" --name "$name" "$@" 2> "$dir/fault"); then
        echo "$line" | tee -a "$dir/lines"
    else
        echo "$name failed: $(head -n 3 "$dir/fault" | tr '\n' ' ')" | tee -a "$dir/failed"
        # What cannot be measured must not hold the machine.
        [ "$(wc -l < "$dir/failed")" -lt 3 ] || { echo "three runs failed" >&2; exit 1; }
    fi
}

arguments() { # mode
    case $1 in
    bulk) echo --mode bulk --bytes "${BYTES:-1000000000}" ;;
    bulk100) echo --mode bulk --bytes "${BYTES:-1000000000}" --streams 100 ;;
    handshakes) echo --mode handshakes --seconds "$seconds" --cpus 1,2 ;;
    handshakes-confirmed) echo --mode handshakes --seconds "$seconds" --cpus 1,2 --confirm ;;
    flood) echo --mode flood --count "${COUNT:-20000}" --cpus 1,2 ;;
    requests) echo --mode requests --streams 32 --seconds "$seconds" ;;
    requests-conns) echo --mode requests --conns 32 --seconds "$seconds" --cpus 1,2 ;;
    idle) echo --mode idle --conns "${IDLE:-2000}" --cpus 1,2 ;;
    neighbours-down) echo --mode neighbours --conns "${CONNS:-500}" --seconds "$seconds" --cpus 1,2,3 --hog down ;;
    neighbours-up) echo --mode neighbours --conns "${CONNS:-500}" --seconds "$seconds" --cpus 1,2,3 --hog up ;;
    *) echo "no such mode: $1" >&2; return 1 ;;
    esac
}

echo "load average: $(cut -d' ' -f1 /proc/loadavg)"
touch "$dir/lines" "$dir/failed"
for mode in $modes; do
    if [ "$mode" = steering ]; then
        for round in $(seq "$rounds"); do
            order=(steered forwarded)
            [ $((round % 2)) = 1 ] || order=(forwarded steered)
            for how in "${order[@]}"; do
                more=()
                [ "$how" = steered ] || more=(--no-steering)
                start ours 0,3 --arbiters 2 "${more[@]}"
                load "$how" steering --mode bulk --bytes "${BYTES:-1000000000}" --conns 16 --cpus 1,2
                stop
            done
        done
        continue
    fi
    read -ra with <<< "$(arguments "$mode")"
    for round in $(seq "$rounds"); do
        for n in "${!sides[@]}"; do
            side=${sides[$(((n + round) % ${#sides[@]}))]}
            more=()
            [ "$side" != ours ] || [ "$mode" != flood ] || more=(--watch)
            start "$side" "${SERVER_CPU:-0}" "${more[@]}"
            load "$side" "$mode" "${with[@]}"
            [ "${#more[@]}" = 0 ] || echo "ours $mode actors_left=$(sed -n 's/^live //p' "$dir/log" | tail -n 1)" >> "$dir/lines"
            stop
        done
    done
done
echo "load average: $(cut -d' ' -f1 /proc/loadavg)"

python3 - "$dir/lines" "$dir/failed" "${sides[@]}" <<'PY'
import statistics, sys
runs, order = {}, sys.argv[3:]
for line in open(sys.argv[1]):
    side, mode, *pairs = line.split()
    figures = dict(pair.split("=") for pair in pairs)
    for key, value in figures.items():
        runs.setdefault(mode, {}).setdefault(key, {}).setdefault(side, []).append(float(value))
shown = {
    "bulk": ["srv_s_per_gb", "gbit_s", "bytes_per_datagram"],
    "bulk100": ["srv_s_per_gb", "gbit_s"],
    "handshakes": ["srv_ms_per_hs", "hs_s"],
    "handshakes-confirmed": ["srv_ms_per_hs", "hs_s"],
    "flood": ["grown_mib", "actors_left", "rss_later_mib", "srv_ms_per_hs"],
    "requests": ["srv_ms_per_kreq", "req_s", "p50_us", "p99_us"],
    "requests-conns": ["srv_ms_per_kreq", "req_s", "p50_us", "p99_us"],
    "idle": ["kib_per_conn"],
    "neighbours-down": ["p99_ratio", "p99_alone_us", "p99_beside_us", "req_s", "greedy_gbit_s"],
    "neighbours-up": ["p99_ratio", "p99_alone_us", "p99_beside_us", "req_s", "greedy_gbit_s"],
    "steering": ["srv_s_per_gb", "gbit_s"],
}
def table(modes, sides, last):
    peers = [side for side in sides if side != last] if last in sides else []
    head = [f"{last} ÷ {peer} (lowest–highest)" for peer in peers]
    print("\n| mode | rounds | figure | " + " | ".join(sides + head) + " |")
    print("|---|---:|---|" + "---:|" * (len(sides) + len(head)))
    for mode in modes:
        for key in shown[mode]:
            by = runs[mode].get(key, {})
            # A ratio pairs the runs of a round: where one failed the rounds no longer match, and there is none.
            whole = len({len(by.get(side, [])) for side in sides}) == 1
            cells = [f"{statistics.median(by[side]):.4g}" if by.get(side) else "–" for side in sides]
            for peer in peers:
                if whole and all(by[peer]):
                    ratios = [mine / theirs for mine, theirs in zip(by[last], by[peer])]
                    cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
                else:
                    cells.append("–")
            count = max((len(values) for values in by.values()), default=0)
            print(f"| {mode} | {count} | {key} | " + " | ".join(cells) + " |")
plain = [mode for mode in runs if mode != "steering"]
if plain:
    table(plain, order, "ours")
if "steering" in runs:
    table(["steering"], ["steered", "forwarded"], "forwarded")
failed = open(sys.argv[2]).read()
if failed:
    print("\nFailed runs:\n" + failed)
PY
