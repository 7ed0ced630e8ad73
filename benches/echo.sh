#!/usr/bin/env bash
# Framed echo, our gateway beside a plain tokio server (benches/peers/src/bin/tcpecho.rs):   benches/echo.sh [PAIRS]
#
# The server under test has one CPU and one thread for connections, the load another CPU. Runs alternate (peer, ours,
# peer, ours, ...), each with a fresh server; the figure is the median of the ratios within a pair.
#   SECONDS_EACH=4   length of a run        CLIENTS="100 1000 10000"   RATE=20000   messages/s of the open loop
#   IDLE=10000       connections of the idle figures (0: none)                     more: benches/around.sh
set -euo pipefail
. "$(dirname "$0")/around.sh"

pairs=${1:-10}
seconds=${SECONDS_EACH:-4}
clients=${CLIENTS:-100 1000 10000}
rate=${RATE:-20000}
idle=${IDLE:-10000}
port=${PORT:-17001}
server=
stop() {
    [ -n "$server" ] || return 0
    kill "$server" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
}

configure <<TOML
[[listener]]
name = "echo"
listen = "127.0.0.1:$port"
protocol = "framed"
service = "echo"
[listener.limits]
connections = 20000
TOML

start() { # peer | ours
    case $1 in
    peer) $on_server "$bin/tcpecho" --listen "127.0.0.1:$port" > "$dir/log" 2>&1 & ;;
    ours) $on_server "$gateway" run -c "$dir/portway.toml" > "$dir/log" 2>&1 & ;;
    esac
    server=$!
    started=($server)
    for _ in $(seq 100); do
        if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then return; fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    echo "the $1 server does not answer:" >&2
    cat "$dir/log" >&2
    exit 1
}

run() { # peer | ours, case, tcpload arguments...
    local side=$1 case=$2 line
    shift 2
    start "$side"
    line=$($on_load "$bin/tcpload" --target "127.0.0.1:$port" --pid "$server" --name "$side $case" "$@")
    stop
    echo "$line" | tee -a "$dir/results"
}

echo "load average: $(cut -d' ' -f1 /proc/loadavg)"
for n in $clients; do
    for _ in $(seq "$pairs"); do
        for side in peer ours; do run "$side" "$n/closed" --conns "$n" --seconds "$seconds"; done
        for side in peer ours; do run "$side" "$n/open" --conns "$n" --seconds "$seconds" --rate "$rate"; done
    done
done

table() { # first figure, its name, second figure, its name
    awk -v a="$1" -v b="$3" -v an="$2" -v bn="$4" '
        function value(key,   i, kv) { for (i = 3; i <= NF; i++) { split($i, kv, "="); if (kv[1] == key) return kv[2] } return "" }
        function median(what, n,   i, j, t, v) {
            for (i = 1; i <= n; i++) v[i] = all[what, i]
            for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j - 1] > v[j]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
            low = v[1]; high = v[n]
            return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
        }
        value(a) == "" { next }
        {
            if (!($2 in runs)) order[++cases] = $2
            if ($1 == "peer") runs[$2]++
            n = runs[$2]
            all[$1 " " $2 " a", n] = value(a); all[$1 " " $2 " b", n] = value(b)
            if ($1 == "ours") {
                all["ratio " $2 " a", n] = value(a) / all["peer " $2 " a", n]
                if (all["peer " $2 " b", n] > 0) all["ratio " $2 " b", n] = value(b) / all["peer " $2 " b", n]
            }
        }
        END {
            printf "\n| clients/loop | pairs | %s, peer | ours | ours ÷ peer | lowest–highest | %s, peer | ours | ours ÷ peer |\n", an, bn
            print "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
            for (c = 1; c <= cases; c++) {
                k = order[c]; n = runs[k]
                printf "| %s | %d | %.2f | %.2f ", k, n, median("peer " k " a", n), median("ours " k " a", n)
                r = median("ratio " k " a", n)
                printf "| %.2f | %.2f–%.2f | %.2f | %.2f ", r, low, high, median("peer " k " b", n), median("ours " k " b", n)
                r = median("ratio " k " b", n)
                if (r > 0) printf "| %.2f |\n", r; else print "| – |"
            }
        }' "$dir/results"
}
table srv_us_per_msg "CPU µs/message" p99_us "p99 µs"

if [ "$idle" -gt 0 ]; then
    : > "$dir/results"
    for _ in $(seq $((pairs < 3 ? pairs : 3))); do
        for side in peer ours; do run "$side" "$idle/idle" --mode idle --conns "$idle" --seconds 10; done
    done
    table rss_bytes_per_conn "bytes/connection" srv_cpu_percent "CPU %"
fi
echo "load average: $(cut -d' ' -f1 /proc/loadavg)"
