#!/usr/bin/env bash
# UDP relay, our gateway beside nginx stream:   benches/udp.sh [ROUNDS]
#
# Each relay has one CPU and one thread, the load and the echo behind the relay share another CPU. In each round the
# two take turns; the figure is the median over the rounds of the ratios within a round. Needs nginx and its stream
# module (Debian: nginx libnginx-mod-stream).
#   SECONDS_EACH=2   length of a run
#   CASES="exchange-100 exchange-1200 stream-100 stream-1200"    50 flows with one datagram under way each, 4 with 32
#   more: benches/around.sh
set -euo pipefail
. "$(dirname "$0")/around.sh"

rounds=${1:-10}
seconds=${SECONDS_EACH:-2}
command -v nginx >/dev/null || { echo 'missing: nginx' >&2; exit 1; }
echo_port=17110 nginx_port=17111 ours_port=17112

cat > "$dir/nginx.conf" <<X
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; master_process off; pid $dir/nginx.pid; error_log $dir/nginx.err;
events { worker_connections 16000; }
stream { server { listen 127.0.0.1:$nginx_port udp; proxy_pass 127.0.0.1:$echo_port; proxy_timeout 60s; } }
X
# No access log, as the other has none here.
configure <<TOML
[[upstream]]
name = "echo"
servers = ["udp://127.0.0.1:$echo_port"]
[[listener]]
name = "relay"
listen = "127.0.0.1:$ours_port"
protocol = "udp"
upstream = "echo"
TOML
$on_load "$bin/udpload" --serve 127.0.0.1:$echo_port > "$dir/echo.log" 2>&1 & started+=($!)
$on_server nginx -c "$dir/nginx.conf" -p "$dir" > "$dir/nginx.log" 2>&1 & nginx=$!; started+=($nginx)
$on_server "$gateway" run -c "$dir/portway.toml" > "$dir/portway.log" 2>&1 & ours=$!; started+=($ours)
sleep 1
echo "load average: $(cut -d' ' -f1 /proc/loadavg)"

one() { # relay pid port case
    flows=50 window=1
    case $4 in stream-*) flows=4 window=32 ;; esac
    $on_load "$bin/udpload" --target "127.0.0.1:$3" --pid "$2" --flows "$flows" --window "$window" --size "${4#*-}" \
        --seconds "$seconds" --name "$1 $4"
}
for case in ${CASES:-exchange-100 exchange-1200 stream-100 stream-1200}; do
    for _ in $(seq "$rounds"); do
        one nginx "$nginx" $nginx_port "$case"
        one ours "$ours" $ours_port "$case"
    done
done | tee "$dir/lines"

python3 - "$dir/lines" <<'PY'
import re, statistics, sys
runs, rates, lost = {}, {}, {}
for line in open(sys.argv[1]):
    relay, case = line.split()[:2]
    value = lambda key: float(re.search(key + r"=([0-9.]+)", line)[1])
    runs.setdefault(case, {}).setdefault(relay, []).append(value("srv_s_per_million"))
    rates.setdefault(case, {}).setdefault(relay, []).append(value("datagrams_per_s"))
    lost.setdefault(case, {}).setdefault(relay, []).append(value("lost"))
print("\n| CPU s per million datagrams | nginx stream | ours | ours ÷ nginx | datagrams/s: nginx, ours | lost: nginx, ours |")
print("|---|---:|---:|---:|---:|---:|")
for case, by in runs.items():
    n, o = (statistics.median(by[relay]) for relay in ("nginx", "ours"))
    r = [b / a for a, b in zip(by["nginx"], by["ours"])]
    rate = ", ".join(f"{statistics.median(rates[case][relay]):.0f}" for relay in ("nginx", "ours"))
    gone = ", ".join(f"{sum(lost[case][relay]):.0f}" for relay in ("nginx", "ours"))
    print(f"| {case} | {n:.3g} | {o:.3g} | {statistics.median(r):.2f} ({min(r):.2f}–{max(r):.2f}) | {rate} | {gone} |")
PY
