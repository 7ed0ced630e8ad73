#!/usr/bin/env bash
# HTTP proxy, our gateway beside HAProxy and nginx:   benches/http.sh [ROUNDS] [CASE…]
#
# Each proxy has one CPU and one thread; the load has another CPU, and the server behind the proxies (an nginx that
# answers 1 KiB) a third. In each round the three take turns; a figure is the median over the rounds of the ratios within
# a round. Cases: one (HTTP/1.1 to HTTP/1.1, 64 connections), two (HTTP/2 to HTTP/1.1, 4 connections of 32 streams; both
# keep-alive and without TLS), half (p99 at half of what HAProxy can do, at a fixed rate, less that of the server asked
# directly), idle (memory of 10,000 idle connections). Needs haproxy, nginx, h2load (Debian: nghttp2-client), python3.
#   REQUESTS=60000   of a run        SERVER_CPU=0   LOAD_CPU=1   UPSTREAM_CPU=2
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-10}
shift || true
cases=${*:-one two half idle}
requests=${REQUESTS:-60000}
on_server="taskset -c ${SERVER_CPU:-0}"
on_load="taskset -c ${LOAD_CPU:-1}"
on_upstream="taskset -c ${UPSTREAM_CPU:-2}"
ulimit -n "$(ulimit -Hn)"
for tool in haproxy nginx h2load python3; do
    command -v $tool >/dev/null || { echo "missing: $tool" >&2; exit 1; }
done

dir=$(mktemp -d)
started=()
cleanup() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    [ -n "${KEEP:-}" ] || rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

[ -n "${NO_BUILD:-}" ] || cargo build --quiet --release --locked
upstream=17200 haproxy_one=17201 haproxy_two=17202 nginx_one=17203 nginx_two=17204 ours_one=17205 ours_two=17205
body=$(printf 'x%.0s' $(seq 1024))

cat > "$dir/upstream.conf" <<X
daemon off; master_process off; pid $dir/upstream.pid; error_log $dir/upstream.err;
events { worker_connections 10500; }
http { access_log off; keepalive_requests 1000000000; server { listen 127.0.0.1:$upstream backlog=4096; location / { return 200 "$body"; } } }
X
cat > "$dir/haproxy.cfg" <<X
global
  maxconn 9900
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 60s
  timeout http-keep-alive 300s
  http-reuse always
frontend one
  bind 127.0.0.1:$haproxy_one
  bind 127.0.0.1:$haproxy_two proto h2
  option forwardfor
  default_backend up
backend up
  server s 127.0.0.1:$upstream
X
cat > "$dir/nginx.conf" <<X
daemon off; master_process off; pid $dir/nginx.pid; error_log $dir/nginx.err;
events { worker_connections 10500; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s;
  upstream up { server 127.0.0.1:$upstream; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:$nginx_one backlog=4096; listen 127.0.0.1:$nginx_two http2 backlog=4096;
    location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Forwarded-For \$remote_addr; }
  }
}
X
cat > "$dir/portway.toml" <<X
version = 1
[runtime]
arbiters = 1
drain = "0s"
[log]
level = "warn"
[[upstream]]
name = "up"
servers = ["127.0.0.1:$upstream"]
[[listener]]
name = "web"
listen = "127.0.0.1:$ours_one"
protocol = "http"
[listener.limits]
connections = 20000
idle = "300s"
[[listener.route]]
path = "/"
upstream = "up"
X
cat > "$dir/hold.py" <<'PY'
"""Opens so many connections, asks once on each, and says what they cost in memory each."""
import socket, sys, time
port, pid, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def resident():
    return next(int(line.split()[1]) for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS")) * 1024
before, held = resident(), []
for n in range(count):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    got = b""
    while len(got) < 1024 or b"\r\n\r\n" not in got or len(got) < got.index(b"\r\n\r\n") + 4 + 1024:
        got += s.recv(4096)
    held.append(s)
time.sleep(1)
print(f"bytes={(resident() - before) / len(held):.0f}")
PY
$on_upstream nginx -e "$dir/upstream.err" -c "$dir/upstream.conf" -p "$dir" > "$dir/upstream.log" 2>&1 & started+=($!)
$on_server haproxy -db -q -f "$dir/haproxy.cfg" > "$dir/haproxy.log" 2>&1 & haproxy=$!; started+=($haproxy)
$on_server nginx -e "$dir/nginx.err" -c "$dir/nginx.conf" -p "$dir" > "$dir/nginx.log" 2>&1 & nginx=$!; started+=($nginx)
$on_server target/release/portway run -c "$dir/portway.toml" > "$dir/portway.log" 2>&1 & ours=$!; started+=($ours)
sleep 1

ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }
hz=$(getconf CLK_TCK)

load() { # case port: what h2load says
    case $1 in
    one) set -- --h1 -c 64 -t 1 -n "$requests" "http://127.0.0.1:$2/" ;;
    two) set -- -c 4 -m 32 -t 1 -n "$requests" "http://127.0.0.1:$2/" ;;
    esac
    $on_load h2load "$@"
}
one() { # proxy pid port case
    local before after
    before=$(ticks "$2")
    load "$4" "$3" > "$dir/said"
    after=$(ticks "$2")
    grep -q " $requests succeeded" "$dir/said" || { echo "$1 $4 failed:" >&2; cat "$dir/said" >&2; exit 1; }
    rate=$(grep -o '[0-9.]* req/s' "$dir/said" | head -1 | cut -d' ' -f1)
    awk -v n="$1 $4" -v t=$((after - before)) -v hz="$hz" -v r="$requests" -v rate="$rate" \
        'BEGIN { printf "%s cpu_ms_per_1000=%.2f rate=%.0f\n", n, t / hz * 1e6 / r, rate }'
}
paced() { # proxy port rate: the 99th percentile, of requests begun at their time, in µs
    rm -f "$dir/times"
    local clients=20
    $on_load h2load --h1 -c $clients -t 1 -D 3 --rps $(($3 / clients)) --log-file "$dir/times" "http://127.0.0.1:$2/" > "$dir/said" 2>&1
    python3 - "$dir/times" "$1" <<'PY'
import sys
times = sorted(int(line.split()[2]) for line in open(sys.argv[1]))
assert len(times) > 1_000, len(times)
print(f"{sys.argv[2]} half p99_us={times[len(times) * 99 // 100]} n={len(times)}")
PY
}

for case in $cases; do
    case $case in
    one | two)
        for _ in $(seq "$rounds"); do
            eval "one haproxy $haproxy \$haproxy_$case $case"
            eval "one nginx $nginx \$nginx_$case $case"
            eval "one ours $ours \$ours_$case $case"
        done
        ;;
    half)
        most=$(for _ in 1 2 3; do one haproxy "$haproxy" $haproxy_one one; done | sed 's/.*rate=//' | sort -n | sed -n 2p)
        echo "# half of HAProxy's $most requests a second" >&2
        for _ in $(seq "$rounds"); do
            paced direct $upstream $((most / 2))
            paced haproxy $haproxy_one $((most / 2))
            paced nginx $nginx_one $((most / 2))
            paced ours $ours_one $((most / 2))
        done
        ;;
    idle)
        echo "haproxy idle $(python3 "$dir/hold.py" $haproxy_one "$haproxy" 9800)"
        echo "nginx idle $(python3 "$dir/hold.py" $nginx_one "$nginx" 10000)"
        echo "ours idle $(python3 "$dir/hold.py" $ours_one "$ours" 10000)"
        ;;
    esac
done | tee "$dir/lines"

python3 - "$dir/lines" <<'PY'
import re, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    proxy, case, first = line.split()[:3]
    runs.setdefault(case, {}).setdefault(proxy, []).append(float(first.split("=")[1]))
what = {"one": "CPU ms per 1,000, HTTP/1.1 → 1.1", "two": "CPU ms per 1,000, HTTP/2 → 1.1",
        "half": "µs added at p99, half load", "idle": "bytes per idle connection"}
print("\n| | HAProxy | nginx | ours | ours ÷ HAProxy | ours ÷ nginx |\n|---|---:|---:|---:|---:|---:|")
for case, by in runs.items():
    if case == "half":
        by = {p: [a - d for a, d in zip(v, by["direct"])] for p, v in by.items() if p != "direct"}
    m = {p: statistics.median(v) for p, v in by.items()}
    r = {p: statistics.median(o / q if q else float("nan") for o, q in zip(by["ours"], by[p])) for p in ("haproxy", "nginx")}
    print(f"| {what[case]} | {m['haproxy']:.4g} | {m['nginx']:.4g} | {m['ours']:.4g} | {r['haproxy']:.2f} | {r['nginx']:.2f} |")
PY
