#!/usr/bin/env bash
# Relays of Media over QUIC beside each other, ours among them:   benches/moq.sh [ROUNDS] [CASE…]
#
# CASE: ten (one publisher, 100 subscribers, 10,000 bytes 30 times a second, each a group), small (the same, 1,200 bytes
# 60 times a second: 6,000 objects a second leave, which each side delivers with one CPU), memory (for each of 500 idle
# subscribers), stalled (ten, with and without one more subscriber that reads no more). The load (benches/moq-peers: draft
# 18 on quinn, one for all) has two CPUs, the relay one.
#
# A run has a fresh relay. In a round every side runs once, and the next round begins with another side; a ratio is taken
# within a round, the figure is the median of them. A run in which less than 99 % was sent or delivered says BEHIND: its
# round counts for no ratio with that side, and how many there were stands below the table.
# Needs moq-relay-ietf and moq-relay of the crate registry (`cargo install`), in PATH or in PEERS; a side that is not
# there is left out, by name.
#   SIDES="ietf dev ours"   SECONDS_EACH=5   SERVER_CPU=0   LOAD_CPUS=1,2   SUBSCRIBERS=100   SMALL_RATE=60   IDLE=500
#   PEERS=…   PORTWAY=target/release/portway   BUILT=1 (builds nothing)   LINES_FILE=… (keeps the lines of all runs)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-10}
shift || true
cases=${*:-ten small memory stalled}
read -ra wanted <<< "${SIDES:-ietf dev ours}"
seconds=${SECONDS_EACH:-5}
subscribers=${SUBSCRIBERS:-100}
port=${PORT:-17543}
load=benches/moq-peers/target/release/moqload
PATH=$PATH:${PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/portway/moq-peers-rust/bin}
ulimit -n "$(ulimit -Hn)"

declare -A program=([ietf]=moq-relay-ietf [dev]=moq-relay [ours]=bash)
sides=()
for side in "${wanted[@]}"; do
    if command -v "${program[$side]}" > /dev/null; then sides+=("$side"); else echo "left out: ${program[$side]} is not there"; fi
done

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

if [ -z "${BUILT:-}" ]; then
    cargo build --quiet --release --locked
    cargo build --quiet --release --locked --manifest-path benches/moq-peers/Cargo.toml
fi
"$load" certificate "$dir"
cat > "$dir/portway.toml" <<X
version = 1
[runtime]
arbiters = 1
drain = "0s"
[log]
level = "warn"
[[certificate]]
name = "local"
cert = "$dir/cert.pem"
key = "$dir/key.pem"
[[listener]]
name = "moq"
listen = "127.0.0.1:$port"
protocol = "moq"
certificate = "local"
X

start() { # side
    local cpu="taskset -c ${SERVER_CPU:-0}"
    case $1 in
    ietf)
        RUST_LOG=warn $cpu moq-relay-ietf --bind "127.0.0.1:$port" --tls-cert "$dir/cert.pem" --tls-key "$dir/key.pem" \
            --coordinator-file "$dir/names.json" > "$dir/log" 2>&1 & ;;
    dev)
        RUST_LOG=warn $cpu moq-relay --listen "127.0.0.1:$port" --listen-tls-cert "$dir/cert.pem" \
            --listen-tls-key "$dir/key.pem" --auth-public '**' --listen-version moq-transport-18 > "$dir/log" 2>&1 & ;;
    ours) $cpu "${PORTWAY:-target/release/portway}" run -c "$dir/portway.toml" > "$dir/log" 2>&1 & ;;
    esac
    server=$!
}

arguments() { # case, round
    case $1 in
    ten) echo --rate 30 --size 10000 --subs "$subscribers" ;;
    small) echo --rate "${SMALL_RATE:-60}" --size 1200 --subs "$subscribers" ;;
    memory) echo --mode memory --rate 4 --size 1200 --subs "${IDLE:-500}" ;;
    stalled)
        echo --mode stalled --rate 30 --size 10000 --subs "$subscribers"
        # Which comes first changes, so that a drift of the machine weighs on neither.
        [ $(($2 % 2)) = 0 ] || echo --stalled-first
        ;;
    *) echo "no such case: $1" >&2; return 1 ;;
    esac
}

echo "load average: $(cut -d' ' -f1 /proc/loadavg)"
touch "$dir/lines" "$dir/failed"
for case in $cases; do
    for round in $(seq "$rounds"); do
        with=$(arguments "$case" "$round")
        for n in "${!sides[@]}"; do
            side=${sides[$(((n + round) % ${#sides[@]}))]}
            start "$side"
            # shellcheck disable=SC2086 # several words
            if line=$(timeout 180 "$load" --target "127.0.0.1:$port" --pid "$server" --name "$side $case" \
                --cpus "${LOAD_CPUS:-1,2}" --seconds "$seconds" $with 2> "$dir/fault"); then
                case $line in *" behind=1"*) echo "BEHIND $line" ;; *) echo "$line" ;; esac
                echo "$round $line" >> "$dir/lines"
            else
                echo "$side $case failed: $(head -n 3 "$dir/fault" | tr '\n' ' ')" | tee -a "$dir/failed"
                tail -n 3 "$dir/log" >&2
                # What cannot be measured must not hold the machine.
                [ "$(wc -l < "$dir/failed")" -lt 5 ] || { echo "five runs failed" >&2; exit 1; }
            fi
            stop
        done
    done
done
echo "load average: $(cut -d' ' -f1 /proc/loadavg)"
[ -z "${LINES_FILE:-}" ] || cp "$dir/lines" "$LINES_FILE"

python3 - "$dir/lines" "$dir/failed" "${sides[@]}" <<'PY'
import statistics, sys
order = sys.argv[3:]
runs, behind = {}, {}
for line in open(sys.argv[1]):
    round, side, case, *pairs = line.split()
    figures = {key: float(value) for key, value in (pair.split("=") for pair in pairs)}
    if figures["behind"]:
        behind[side, case] = behind.get((side, case), 0) + 1
    else:
        runs.setdefault(case, {}).setdefault(side, {})[round] = figures
shown = {
    "ten": ["cpu_s_per_gb", "p50_us", "p99_us"],
    "small": ["cpu_s_per_gb", "p50_us", "p99_us"],
    "memory": ["kib_per_subscriber"],
    "stalled": ["closed", "p99_ratio", "p99_alone_us", "p99_beside_us", "ack_ratio", "ack_alone_us", "ack_beside_us"],
}
peers = [side for side in order if side != "ours"]
head = [f"ours ÷ {peer} (lowest–highest)" for peer in peers] + ["ours ÷ the better"]
print("\n| case | figure | " + " | ".join(f"{side}, of rounds" for side in order) + " | " + " | ".join(head) + " |")
print("|---|---|" + "---:|" * (len(order) + len(head)))
for case, by in runs.items():
    for key in shown[case]:
        cells = []
        for side in order:
            values = [figures[key] for figures in by.get(side, {}).values()]
            cells.append(f"{statistics.median(values):.4g}, {len(values)}" if values else "–")
        best = []
        for peer in peers:
            both = sorted(by.get("ours", {}).keys() & by.get(peer, {}).keys())
            ratios = [by["ours"][round][key] / by[peer][round][key] for round in both if by[peer][round][key]]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–")
            best += [statistics.median(ratios)] if ratios else []
        # The better peer is the one whose ratio to ours is the greater.
        cells.append(f"{max(best):.2f}" if best else "–")
        print(f"| {case} | {key} | " + " | ".join(cells) + " |")
if behind:
    print("\nBehind, and not counted: " + ", ".join(f"{side} {case} {count} times" for (side, case), count in sorted(behind.items())))
failed = open(sys.argv[2]).read()
if failed:
    print("\nFailed runs:\n" + failed)
PY
