#!/usr/bin/env bash
# HTTP/3, our gateway beside Caddy and beside h3 on quinn:   benches/http3.sh [ROUNDS] [CASE…]
#
# Each side has one CPU and one thread; the load (h3 on quinn, the same for all) has another, and the server behind the
# proxies (an nginx) a third. In each round the sides take turns; a figure is the median over the rounds of the ratios
# within a round. Cases: one (HTTP/3 to HTTP/1.1, 1 KiB, one connection of 32 streams), many (32 connections of one stream
# each), down (a file of 256 MiB through the proxy), half (99th percentile at half of what Caddy can do, open loop), alone
# (no server behind: a fixed answer of 1 KiB against a server of h3 on quinn, one connection of 32 streams).
# Needs caddy and nginx; `cargo build --release` in benches/http-peers.
#   SECONDS_EACH=2   SERVER_CPU=0   LOAD_CPU=1   UPSTREAM_CPU=2
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-10}
shift || true
cases=${*:-one many down half alone}
seconds=${SECONDS_EACH:-2}
on_server="taskset -c ${SERVER_CPU:-0}"
on_load="taskset -c ${LOAD_CPU:-1}"
on_upstream="taskset -c ${UPSTREAM_CPU:-2}"
ulimit -n "$(ulimit -Hn)"
for tool in caddy nginx python3; do
    command -v $tool >/dev/null || { echo "missing: $tool" >&2; exit 1; }
done
bin=benches/http-peers/target/release
if [ -z "${NO_BUILD:-}" ]; then
    cargo build --quiet --release --locked
    cargo build --quiet --release --locked --manifest-path benches/http-peers/Cargo.toml
fi

dir=$(mktemp -d)
started=()
cleanup() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
"$bin/h3load" certificate "$dir"
upstream=17400 caddy=17401 ours=17402 quinn=17403
large=$((256 << 20))
mkdir "$dir/files"
head -c 1024 /dev/zero > "$dir/files/1024"
head -c $large /dev/zero > "$dir/files/$large"

cat > "$dir/upstream.conf" <<X
daemon off; master_process off; pid $dir/upstream.pid; error_log $dir/upstream.err;
events { worker_connections 4096; }
http { access_log off; sendfile on; keepalive_requests 1000000000; open_file_cache max=10;
  server { listen 127.0.0.1:$upstream backlog=4096; root $dir/files; } }
X
cat > "$dir/Caddyfile" <<X
{
  admin off
  auto_https off
  log {
    level ERROR
  }
}
https://localhost:$caddy {
  bind 127.0.0.1
  tls $dir/cert.pem $dir/key.pem
  reverse_proxy 127.0.0.1:$upstream {
    transport http {
      keepalive_idle_conns_per_host 256
    }
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
[[certificate]]
name = "local"
cert = "$dir/cert.pem"
key = "$dir/key.pem"
[[upstream]]
name = "up"
servers = ["127.0.0.1:$upstream"]
[[listener]]
name = "web"
listen = "127.0.0.1:$ours"
protocol = "http"
certificate = "local"
[[listener.route]]
path = "/"
upstream = "up"
[[listener.route]]
path_exact = "/fixed"
service = "respond"
body = "$(printf 'x%.0s' $(seq 1024))"
X
$on_upstream nginx -e "$dir/upstream.err" -c "$dir/upstream.conf" -p "$dir" > "$dir/upstream.log" 2>&1 & started+=($!)
GOMAXPROCS=1 HOME=$dir $on_server caddy run --config "$dir/Caddyfile" --adapter caddyfile > "$dir/caddy.log" 2>&1 & caddy_pid=$!; started+=($caddy_pid)
$on_server target/release/portway run -c "$dir/portway.toml" > "$dir/portway.log" 2>&1 & ours_pid=$!; started+=($ours_pid)
$on_server "$bin/serve-h3-quinn" --listen 127.0.0.1:$quinn --certificate "$dir/cert.pem" --key "$dir/key.pem" > "$dir/quinn.log" 2>&1 & quinn_pid=$!; started+=($quinn_pid)
sleep 2

run() { # side pid port case arguments…
    local side=$1 pid=$2 port=$3 case=$4
    shift 4
    # Not to wait for one side for ever.
    timeout 60 $on_load "$bin/h3load" --name "$side $case" --target 127.0.0.1:"$port" --pid "$pid" --seconds "$seconds" "$@" ||
        { echo "$side $case failed" >&2; tail -5 "$dir"/*.log >&2; exit 1; }
}
both() { # case arguments…
    run caddy "$caddy_pid" $caddy "$@"
    run ours "$ours_pid" $ours "$@"
}

for case in $cases; do
    case $case in
    half)
        most=$(run caddy "$caddy_pid" $caddy rate --path /1024 --conns 4 --streams 8 | sed 's/.*rate=\([0-9]*\).*/\1/')
        echo "# half of Caddy's $most requests a second" >&2
        ;;
    esac
    for _ in $(seq "$rounds"); do
        case $case in
        one) both one --path /1024 --expect 1024 --conns 1 --streams 32 ;;
        many) both many --path /1024 --expect 1024 --conns 32 --streams 1 ;;
        down) both down --path /$large --expect $large --conns 1 --streams 1 --requests 1 ;;
        half) both half --path /1024 --expect 1024 --conns 4 --rate $((most / 2)) ;;
        alone)
            run quinn "$quinn_pid" $quinn alone --path /1024 --expect 1024 --conns 1 --streams 32
            run ours "$ours_pid" $ours alone --path /fixed --expect 1024 --conns 1 --streams 32
            ;;
        esac
    done
done | tee "$dir/lines"

python3 - "$dir/lines" <<'PY'
import statistics, sys
what = {"one": ("CPU ms per 1,000, HTTP/3 → 1.1, 1 × 32", "cpu_ms_per_1000"), "many": ("the same, 32 connections", "cpu_ms_per_1000"),
        "down": ("CPU s per GB, 256 MiB", "cpu_s_per_gb"), "half": ("µs at p99, half load", "p99_us"),
        "alone": ("CPU ms per 1,000, HTTP/3 alone, 1 × 32", "cpu_ms_per_1000")}
runs = {}
for line in open(sys.argv[1]):
    side, case, *values = line.split()
    values = dict(value.split("=") for value in values)
    runs.setdefault(case, {}).setdefault(side, []).append(float(values[what[case][1]]))
print("\n| | Caddy or h3-quinn | ours | ours ÷ peer | rounds |\n|---|---:|---:|---:|---:|")
for case, by in runs.items():
    peer = next(side for side in by if side != "ours")
    ratio = statistics.median(o / p for o, p in zip(by["ours"], by[peer]))
    print(f"| {what[case][0]} | {statistics.median(by[peer]):.4g} | {statistics.median(by['ours']):.4g} | {ratio:.2f} | {len(by['ours'])} |")
PY
