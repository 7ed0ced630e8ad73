#!/usr/bin/env bash
# WireGuard, ours to ours beside wireguard-go and boringtun-cli to themselves:   benches/wireguard.sh [ROUNDS]
#
# Each program tunnels between two network namespaces joined by a veth pair. In each round they take turns with a TCP
# stream of iperf3, UDP at a fixed rate, and pings; the figures are medians, and medians of the ratios within a round, of
# the CPU seconds of both daemons per Gbit that arrived. `private` is ours on an interface of the host to ours in a
# private network, `pipe` ours in a pipeline; `flood` is a TCP stream beside 20,000 handshake initiations a second from one
# source, `slow` one over a path with 10 ms each way and 0.1 % loss (ours and private alone). Needs root, and wireguard-go, wireguard-tools, iperf3, iproute2, iputils-ping (Debian); boringtun-cli
# is left out unless BORINGTUN names it (the tests build target/peers/bin/boringtun-cli).
#   SECONDS_EACH=3   length of a run      RATE=300M   of UDP      WHAT="tcp udp ping flood slow"      THREADING=single
#   GOTATUN=path     beside it            PRIVATE=0   PIPE=1      WGO=0                    ARBITERS=1
#   PORTWAY=target/release/portway
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-10}
[ "$(id -u)" = 0 ] || { echo 'needs root' >&2; exit 1; }
for program in wireguard-go wg iperf3 ip ping; do
    command -v "$program" >/dev/null || { echo "missing: $program" >&2; exit 1; }
done
if [ -z "${PORTWAY:-}" ]; then
    cargo build --quiet --release --locked --bin portway
    PORTWAY=target/release/portway
fi

dir=$(mktemp -d)
spaces=() started=()
cleanup() {
    # What the shell says of those it kills is of no interest.
    exec 2>/dev/null
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for space in "${spaces[@]}"; do
        ip netns pids "$space" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "$space" 2>/dev/null || true
    done
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
umask 077

for side in a b; do
    wg genkey >"$dir/$side.key"
    wg pubkey <"$dir/$side.key" >"$dir/$side.pub"
done
wg genpsk >"$dir/psk"

# space NAME-a, NAME-b: 10.99.0.1 and .2 outside, 10.98.0.1 and .2 inside.
cable() {
    for side in a b; do
        ip netns add "$1-$side"
        spaces+=("$1-$side")
        ip -n "$1-$side" link set lo up
    done
    ip link add cable netns "$1-a" type veth peer name cable netns "$1-b"
    for side in a b; do
        host=$([ $side = a ] && echo 1 || echo 2)
        ip -n "$1-$side" addr add "10.99.0.$host/24" dev cable
        ip -n "$1-$side" link set cable up
    done
}

# daemon NAME SIDE COMMAND...: its process number goes to $dir/NAME.SIDE
daemon() {
    local name=$1 side=$2
    shift 2
    ip netns exec "$name-$side" "$@" >"$dir/$name.$side.log" 2>&1 &
    started+=($!)
    echo $! >"$dir/$name.$side"
}

# stock NAME COMMAND...: a program with an interface that wg configures.
stock() {
    local name=$1
    shift
    cable "$name"
    for side in a b; do daemon "$name" $side "$@" "$name-$side"; done
    for side in a b; do
        other=$([ $side = a ] && echo b || echo a)
        host=$([ $side = a ] && echo 1 || echo 2) there=$([ $side = a ] && echo 2 || echo 1)
        for _ in $(seq 100); do [ -S "/var/run/wireguard/$name-$side.sock" ] && break; sleep 0.05; done
        ip netns exec "$name-$side" wg set "$name-$side" private-key "$dir/$side.key" listen-port 51820 \
            peer "$(cat "$dir/$other.pub")" preshared-key "$dir/psk" allowed-ips "10.98.0.$there/32" endpoint "10.99.0.$there:51820"
        ip -n "$name-$side" addr add "10.98.0.$host/24" dev "$name-$side"
        ip -n "$name-$side" link set "$name-$side" mtu 1420 up
    done
}

# ours NAME MODE-A MODE-B [PORT-OF-A]: the last is where a finds b, if not directly.
ours() {
    local name=$1 threading=${THREADING:-single} arbiters=${ARBITERS:-1}
    if [ "$name" = pipe ]; then threading=pipeline; fi
    cable "$name"
    for side in a b; do
        other=$([ $side = a ] && echo b || echo a)
        host=$([ $side = a ] && echo 1 || echo 2) there=$([ $side = a ] && echo 2 || echo 1)
        cat >"$dir/$name.$side.toml" <<X
version = 1
[runtime]
arbiters = $arbiters
drain = "0s"
[log]
level = "warn"
[[listener]]
name = "$name-$side"
listen = "0.0.0.0:51820"
protocol = "wireguard"
[listener.wireguard]
private_key_file = "$dir/$side.key"
addresses = ["10.98.0.$host/24"]
mode = "$([ $side = a ] && echo "$2" || echo "$3")"
threading = "$threading"
[[listener.wireguard.peer]]
public_key = "$(cat "$dir/$other.pub")"
preshared_key_file = "$dir/psk"
allowed_ips = ["10.98.0.$there/32"]
$(if [ -z "${4:-}" ]; then echo "endpoint = \"10.99.0.$there:51820\""; elif [ $side = a ]; then echo "endpoint = \"10.99.0.1:$4\""; fi)
X
        daemon "$name" $side "$PORTWAY" run -c "$dir/$name.$side.toml"
    done
}

programs=(ours)
ours ours tun tun
if [ "${WGO:-1}" = 1 ]; then
    programs+=(wgo)
    stock wgo wireguard-go -f
fi
if [ "${PIPE:-0}" = 1 ]; then
    programs+=(pipe)
    ours pipe tun tun
fi
if [ -n "${GOTATUN:-}" ]; then
    programs+=(gt)
    stock gt "$GOTATUN" -f --disable-drop-privileges
fi
if [ -n "${BORINGTUN:-}" ]; then
    programs+=(bt)
    stock bt "$BORINGTUN" -f --disable-drop-privileges
fi
if [ "${PRIVATE:-1}" = 1 ]; then
    programs+=(private)
    ours private tun private
fi
case ${WHAT:-} in *slow*)
    for name in slow-tun slow-private; do
        programs+=("$name")
        ours "$name" tun "${name#slow-}" 6000
        cp "$dir/$name.a" "$dir/$name.daemon"
        daemon "$name" a python3 benches/wireguard_path.py slow 10 0.001
        cp "$dir/$name.daemon" "$dir/$name.a"
    done
    ;;
esac

# inside NAME SIDE COMMAND...: where the tunnel's addresses are.
inside() {
    local name=$1 side=$2
    shift 2
    if [ "$name-$side" = private-b ] || [ "$name-$side" = slow-private-b ]; then
        helper=$(pgrep -P "$(cat "$dir/$name.b")")
        nsenter -t "$helper" -U -n --preserve-credentials "$@"
    else
        ip netns exec "$name-$side" "$@"
    fi
}

for name in "${programs[@]}"; do
    up=0
    for _ in $(seq 100); do
        if inside "$name" a ping -q -c 1 -W 1 10.98.0.2 >/dev/null 2>&1; then up=1; break; fi
        sleep 0.05
    done
    [ $up = 1 ] || { echo "$name: no tunnel" >&2; cat "$dir/$name".*.log >&2; exit 1; }
    inside "$name" b iperf3 -s -B 10.98.0.2 -D -I "$dir/iperf3.$name"
done
sleep 0.5
for name in "${programs[@]}"; do started+=("$(tr -d '\0' <"$dir/iperf3.$name")"); done

# The CPU time of a program's two daemons, in ticks.
ticks() { cat "/proc/$(cat "$dir/$1.a")/stat" "/proc/$(cat "$dir/$1.b")/stat" | awk '{ sum += $14 + $15 } END { print sum }'; }

# one NAME WHAT ROUND IPERF-ARGUMENTS...
one() {
    local name=$1 what=$2 round=$3
    shift 3
    before=$(ticks "$name")
    if inside "$name" a iperf3 -c 10.98.0.2 -t "${SECONDS_EACH:-3}" -J "$@" >"$dir/out.json" 2>/dev/null; then
        echo "$what $name $round $(($(ticks "$name") - before)) $dir/out.json.$what.$name.$round" >>"$dir/runs"
        mv "$dir/out.json" "$dir/out.json.$what.$name.$round"
    else
        echo "$what $name $round: iperf3 failed" >&2
    fi
}

for round in $(seq "$rounds"); do
    for what in ${WHAT:-tcp udp ping}; do
        for name in "${programs[@]}"; do
            # Each on its path: a slow one is for one figure alone.
            case $name in slow-*) [ "$what" = slow ] ;; *) [ "$what" != slow ] ;; esac || continue
            case $what in
                slow) one "$name" slow "$round" ;;
                flood)
                    [ "$name" = ours ] || continue
                    ip netns exec ours-b python3 benches/wireguard_path.py flood 20000 "$(cat "$dir/a.pub")" >>"$dir/flood" &
                    flood=$!
                    sleep 0.2
                    one ours flood "$round"
                    kill "$flood" && wait "$flood" || true
                    ;;
                tcp) one "$name" tcp "$round" ;;
                udp) one "$name" udp "$round" -u -b "${RATE:-300M}" -l 1350 ;;
                ping)
                    inside "$name" a ping -c 50 -i 0.005 10.98.0.2 |
                        sed -n 's/.*time=\([0-9.]*\) ms/\1/p' | sort -n | awk -v n="$name" -v r="$round" \
                        '{ a[NR] = $1 } END { print "ping", n, r, a[int((NR + 1) / 2)], "-" }' >>"$dir/runs"
                    ;;
            esac
        done
    done
done

python3 - "$dir/runs" "$(getconf CLK_TCK)" <<'P'
import json, statistics as st, sys
runs, tick = {}, float(sys.argv[2])
for line in open(sys.argv[1]):
    what, name, round_, used, path = line.split()
    if what == "ping":
        runs.setdefault((what, name), {})[round_] = (float(used) * 1000, 0, "")
        continue
    end = json.load(open(path))["end"]
    if what != "udp":
        gbit, seconds = end["sum_received"]["bytes"] * 8 / 1e9, end["sum_received"]["seconds"]
        note = end["sum_sent"]["retransmits"]
    else:
        got = end["sum"]
        share = 1 - got["lost_percent"] / 100
        gbit, seconds, note = got["bytes"] * share * 8 / 1e9, got["seconds"], got["lost_percent"]
    runs.setdefault((what, name), {})[round_] = (float(used) / tick / gbit, gbit / seconds, note)
for what, unit in (("tcp", "CPU s/Gbit, both daemons"), ("flood", "CPU s/Gbit, both daemons"), ("slow", "CPU s/Gbit, both daemons"), ("udp", "CPU s/Gbit, both daemons"), ("ping", "median µs")):
    names = [name for (w, name) in runs if w == what]
    if not names:
        continue
    print(f"\n{what}: {unit}")
    for name in names:
        mine = runs[(what, name)]
        ours = runs.get((what, "ours"), {})
        both = [r for r in mine if r in ours]
        ratios = sorted(ours[r][0] / mine[r][0] for r in both) or [float("nan")]
        value = st.median(v[0] for v in mine.values())
        line = f"  {name:8} {value:8.3f}   ours ÷ it {st.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}, {len(both)} rounds)"
        if what != "ping":
            line += f"   {st.median(v[1] for v in mine.values()):.2f} Gbit/s"
            notes = [v[2] for v in mine.values()]
            line += f"   {'lost %' if what == 'udp' else 'retransmits'}: median {st.median(notes):.4g}, most {max(notes):.4g}"
            beside = runs.get(("slow", "slow-tun") if what == "slow" else ("tcp", "ours"), {})
            rates = sorted(v[1] / beside[r][1] for r, v in mine.items() if r in beside)
            if what != "udp" and rates:
                line += f"   rate ÷ {'slow-tun' if what == 'slow' else 'ours'} {st.median(rates):.2f}"
        print(line)
P
[ ! -s "$dir/flood" ] || { echo; sort -n "$dir/flood" | sed -n '1s/^/least flood: /p'; }
