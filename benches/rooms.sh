#!/usr/bin/env bash
# Rooms: what one broadcast costs the gateway for each member that gets it:   benches/rooms.sh [ROUNDS]
#
# One arbiter on one CPU, all clients on another. One client says something, everybody else in the room gets it, then
# the next is said. In each round the sizes take turns; the figure is the median over the rounds. Needs python3 and, for
# 10,000 members, as many open files.
#   MEMBERS="10 100 1000 10000"   BYTES=100   SERVER_CPU=0   LOAD_CPU=1
set -euo pipefail
cd "$(dirname "$0")/.."
ulimit -n "$(ulimit -Hn)"
[ -n "${PORTWAY:-}" ] || cargo build --quiet --release --locked
dir=$(mktemp -d)
started=
trap 'kill $started 2>/dev/null || true; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
cat > "$dir/portway.toml" <<X
version = 1
[runtime]
arbiters = 1
drain = "0s"
[log]
level = "warn"
[[listener]]
name = "rooms"
listen = "127.0.0.1:17200"
protocol = "framed"
service = "rooms"
[listener.limits]
connections = 20000
half_open = 20000
first_message = "1m"
X
taskset -c "${SERVER_CPU:-0}" "${PORTWAY:-target/release/portway}" run -c "$dir/portway.toml" > "$dir/log" 2>&1 & started=$!
sleep 1
taskset -c "${LOAD_CPU:-1}" python3 - "$started" "${1:-10}" "${BYTES:-100}" ${MEMBERS:-10 100 1000 10000} <<'PY'
import glob, select, socket, statistics, struct, sys
pid, rounds, size = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def cpu():  # ns of all threads of the gateway
    return sum(int(open(path).read().split()[0]) for path in glob.glob(f"/proc/{pid}/task/*/schedstat"))

def frame(body):
    return struct.pack(">I", len(body)) + body

def client():
    s = socket.create_connection(("127.0.0.1", 17200))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(frame(b"Jroom"))
    assert s.recv(9, socket.MSG_WAITALL) == frame(b"Jroom")
    return s

def one(members):
    said = frame(b"M" + b"x" * size)
    sender, others = client(), [client() for _ in range(members)]
    poll = select.epoll()
    for s in others:
        s.setblocking(False)
        poll.register(s.fileno(), select.EPOLLIN)
    by_fd = {s.fileno(): s for s in others}
    def broadcast():
        sender.sendall(said)
        left = len(said) * members
        while left:
            for fd, _ in poll.poll(5):
                left -= len(by_fd[fd].recv(65536))
    times = max(10, 20000 // members)
    for _ in range(3):
        broadcast()
    before = cpu()
    for _ in range(times):
        broadcast()
    spent = (cpu() - before) / times
    for s in others + [sender]:
        s.close()
    return spent / members

sizes = [int(n) for n in sys.argv[4:]]
figures = {n: [] for n in sizes}
for _ in range(rounds):
    for n in sizes:
        figures[n].append(one(n))
print("| members | CPU ns per member and broadcast | lowest-highest |\n|---:|---:|---:|")
for n in sizes:
    f = figures[n]
    print(f"| {n} | {statistics.median(f):.0f} | {min(f):.0f}-{max(f):.0f} |")
PY
