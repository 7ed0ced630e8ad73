#!/usr/bin/env bash
# TCP relay, our gateway beside HAProxy, nginx stream and a bare copy in tokio:   benches/relay.sh [ROUNDS]
#
# Each relay has one CPU and one thread, the load and the echo behind the relay share another CPU. In each round the
# four take turns; the figure is the median over the rounds of the ratios within a round. Needs haproxy, nginx and
# nginx's stream module (Debian: haproxy nginx libnginx-mod-stream).
#   SECONDS_EACH=2   length of a run        CASES="exchange connect bulk"        more: benches/around.sh
set -euo pipefail
. "$(dirname "$0")/around.sh"

rounds=${1:-10}
seconds=${SECONDS_EACH:-2}
command -v haproxy >/dev/null && command -v nginx >/dev/null || { echo 'missing: haproxy, nginx' >&2; exit 1; }
echo_port=17100 haproxy_port=17101 nginx_port=17102 ours_port=17103 copy_port=17104

cat > "$dir/haproxy.cfg" <<X
global
  maxconn 9000
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen echo
  bind 127.0.0.1:$haproxy_port
  server s 127.0.0.1:$echo_port
X
cat > "$dir/nginx.conf" <<X
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; master_process off; pid $dir/nginx.pid; error_log $dir/nginx.err;
events { worker_connections 16000; }
stream { server { listen 127.0.0.1:$nginx_port backlog=4096; proxy_pass 127.0.0.1:$echo_port; tcp_nodelay on; } }
X
# No access log, as the others have none here.
configure <<TOML
[[upstream]]
name = "echo"
servers = ["127.0.0.1:$echo_port"]
[[listener]]
name = "relay"
listen = "127.0.0.1:$ours_port"
protocol = "relay"
upstream = "echo"
TOML
$on_load "$bin/tcpecho" --listen 127.0.0.1:$echo_port > "$dir/echo.log" 2>&1 & started+=($!)
$on_server haproxy -db -q -f "$dir/haproxy.cfg" > "$dir/haproxy.log" 2>&1 & haproxy=$!; started+=($haproxy)
$on_server nginx -c "$dir/nginx.conf" -p "$dir" > "$dir/nginx.log" 2>&1 & nginx=$!; started+=($nginx)
$on_server "$bin/tcpcopy" --listen 127.0.0.1:$copy_port --target 127.0.0.1:$echo_port > "$dir/copy.log" 2>&1 & copy=$!; started+=($copy)
$on_server "$gateway" run -c "$dir/portway.toml" > "$dir/portway.log" 2>&1 & ours=$!; started+=($ours)
sleep 1
echo "load average: $(cut -d' ' -f1 /proc/loadavg)"

one() { # relay pid port case
    case $4 in
    exchange) set -- "$@" --conns 100 --size 100 ;;
    bulk) set -- "$@" --conns 4 --size 1000000 ;;
    connect) set -- "$@" --mode connect --conns 16 --size 100 ;;
    esac
    name="$1 $4"; pid=$2; port=$3; shift 4
    $on_load "$bin/tcpload" --target "127.0.0.1:$port" --pid "$pid" --seconds "$seconds" --name "$name" "$@"
}
for case in ${CASES:-exchange connect bulk}; do
    for _ in $(seq "$rounds"); do
        one haproxy "$haproxy" $haproxy_port $case
        one nginx "$nginx" $nginx_port $case
        one copy "$copy" $copy_port $case
        one ours "$ours" $ours_port $case
    done
done | tee "$dir/lines"

python3 - "$dir/lines" <<'PY'
import re, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    relay, case = line.split()[:2]
    runs.setdefault(case, {}).setdefault(relay, []).append(float(re.search(r"srv_us_per_msg=([0-9.]+)", line)[1]))
unit = {"exchange": "µs per 100-byte exchange", "connect": "ms per 1,000 connections", "bulk": "s per GB (1 MB there and back: 2 MB)"}
scale = {"exchange": 1, "connect": 1, "bulk": 1 / 2000}
print("\n| CPU | HAProxy | nginx stream | bare copy | ours | ours ÷ HAProxy | ours ÷ nginx | ours ÷ copy |\n|---|---:|---:|---:|---:|---:|---:|---:|")
for case, by in runs.items():
    m = {relay: statistics.median(v) * scale[case] for relay, v in by.items()}
    r = {p: [o / q for o, q in zip(by["ours"], by[p])] for p in ("haproxy", "nginx", "copy")}
    ratios = (f"{statistics.median(v):.2f} ({min(v):.2f}–{max(v):.2f})" for v in r.values())
    print(f"| {unit[case]} | {m['haproxy']:.3g} | {m['nginx']:.3g} | {m['copy']:.3g} | {m['ours']:.3g} | {' | '.join(ratios)} |")
PY
