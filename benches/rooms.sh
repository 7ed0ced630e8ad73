#!/usr/bin/env bash
# Rooms: what one broadcast costs for each member that gets it, our gateway beside the least that can be done
# (benches/peers/src/bin/tcprooms.rs: a bare loop of writes):   benches/rooms.sh [ROUNDS]
#
# Each server has one thread, both share one CPU and take turns; all clients are on another. One client says something,
# everybody else in the room gets it, then the next is said. In each round the sizes take turns, and at each size the
# two servers. The figures are medians over the rounds, ratios and differences taken within a round. Needs python3 and,
# for 10,000 members, as many open files.
#   MEMBERS="10 100 1000 10000"   BYTES=100   SIDES="floor ours"   more: benches/around.sh
set -euo pipefail
. "$(dirname "$0")/around.sh"

configure <<'TOML'
[[listener]]
name = "rooms"
listen = "127.0.0.1:17200"
protocol = "framed"
service = "rooms"
[listener.limits]
connections = 20000
half_open = 20000
first_message = "1m"
TOML
$on_server "$gateway" run -c "$dir/portway.toml" > "$dir/log" 2>&1 & ours=$!; started+=($ours)
$on_server "$bin/tcprooms" --listen 127.0.0.1:17201 > "$dir/floor.log" 2>&1 & floor=$!; started+=($floor)
sleep 1
echo "load average: $(cut -d' ' -f1 /proc/loadavg)"
$on_load python3 - "ours=$ours:17200" "floor=$floor:17201" "${SIDES:-floor ours}" "${1:-10}" "${BYTES:-100}" \
    ${MEMBERS:-10 100 1000 10000} <<'PY'
import glob, select, socket, statistics, struct, sys
servers = {name: tuple(map(int, at.split(":"))) for name, at in (arg.split("=") for arg in sys.argv[1:3])}
sides, rounds, size, sizes = sys.argv[3].split(), int(sys.argv[4]), int(sys.argv[5]), [int(n) for n in sys.argv[6:]]

def cpu(pid):  # ns of all threads of a server
    return sum(int(open(path).read().split()[0]) for path in glob.glob(f"/proc/{pid}/task/*/schedstat"))

def frame(body):
    return struct.pack(">I", len(body)) + body

def client(port):
    s = socket.create_connection(("127.0.0.1", port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(frame(b"Jroom"))
    assert s.recv(9, socket.MSG_WAITALL) == frame(b"Jroom")
    return s

def one(pid, port, members):
    said = frame(b"M" + b"x" * size)
    sender, others = client(port), [client(port) for _ in range(members)]
    poll = select.epoll()
    for s in others:
        s.setblocking(False)
        poll.register(s.fileno(), select.EPOLLIN)
    by_fd = {s.fileno(): s for s in others}
    def broadcast():
        sender.sendall(said)
        left = len(said) * members
        while left:
            ready = poll.poll(5)
            assert ready, f"{left} bytes did not come"
            for fd, _ in ready:
                left -= len(by_fd[fd].recv(65536))
    times = max(10, 20000 // members)
    for _ in range(3):
        broadcast()
    before = cpu(pid)
    for _ in range(times):
        broadcast()
    spent = (cpu(pid) - before) / times
    poll.close()
    for s in others + [sender]:
        s.close()
    return spent / members

figures = {n: {side: [] for side in sides} for n in sizes}
for round in range(rounds):
    for n in sizes:
        for side in sides if round % 2 == 0 else sides[::-1]:
            figures[n][side].append(one(*servers[side], n))
            print(f"{side} members={n} ns={figures[n][side][-1]:.0f}", flush=True)

def middle(values):
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"
print("\n| members | " + " | ".join(f"{side}, CPU ns per member" for side in sides) + " | ratio | difference, ns |")
print("|---:|" + "---:|" * (len(sides) + 2))
for n in sizes:
    by = figures[n]
    a, b = by[sides[0]], by[sides[-1]]
    ratios = [y / x for x, y in zip(a, b)]
    print(f"| {n:,} | " + " | ".join(middle(by[side]) for side in sides)
          + f" | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
          + f" | {middle([y - x for x, y in zip(a, b)])} |")
PY
echo "load average: $(cut -d' ' -f1 /proc/loadavg)"
