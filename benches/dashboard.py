"""What the dashboard costs with 20,000 sessions: CPU time of the gateway, and of each update of the page in Chromium.

    ~/.cache/portway/peers/bin/python benches/dashboard.py [PAIRS] [SECONDS] [ACTIVE]

Sessions are flows of a UDP echo, each begun by a socket of its own that is closed again, so that no limit on descriptors
counts. ACTIVE of them move a datagram each second. In turn nobody reads the stream, and one reader does; then Chromium
opens the page for twenty seconds. Needs target/release/portway (or PORTWAY=FILE) and what `scripts/setup test` installs.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SESSIONS = 20_000
PAIRS, SECONDS, ACTIVE = [int(n) for n in (sys.argv[1:] + ["10", "5", "0"][len(sys.argv) - 1 :])]


def free(kind):
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def cpu(pid):
    """Seconds that its threads have run, to the nanosecond."""
    threads = os.listdir(f"/proc/{pid}/task")
    return sum(int(open(f"/proc/{pid}/task/{thread}/schedstat").read().split()[0]) for thread in threads) / 1e9


def main():
    admin, udp = free(socket.SOCK_STREAM), free(socket.SOCK_DGRAM)
    folder = tempfile.mkdtemp()
    with open(folder + "/config.toml", "w") as file:
        file.write(
            f'version = 1\n[runtime]\ndrain = "0s"\n[admin]\nlisten = "127.0.0.1:{admin}"\n[[listener]]\nname = "echo"\n'
            f'listen = "127.0.0.1:{udp}"\nprotocol = "udp"\nservice = "echo"\n[listener.limits]\nconnections = 50000\n'
            'per_source = 50000\nhalf_open = 50000\n[listener.udp]\nidle_answered = "1h"\nidle = "1h"\n'
        )
    gateway = subprocess.Popen(
        [os.environ.get("PORTWAY", ROOT + "/target/release/portway"), "run", "-c", folder + "/config.toml"], stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(1)
        kept = []
        for n in range(SESSIONS):
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.connect(("127.0.0.1", udp))
            one.settimeout(5)
            one.send(b"x")
            one.recv(10)
            if n < ACTIVE:
                kept.append(one)
            else:
                # Its port must not come again: the kernel gives them at random, and a flow counts once.
                one.close()
        stop = threading.Event()

        def move():
            while not stop.wait(1):
                for one in kept:
                    one.send(b"x" * 1_000)
                for one in kept:
                    one.recv(2_000)

        mover = threading.Thread(target=move)
        mover.start()
        import urllib.request

        def sessions():
            status = json.load(urllib.request.urlopen(f"http://127.0.0.1:{admin}/api/status"))
            return status["listeners"][0]["connections"]

        # Ports that came twice.
        while (missing := SESSIONS - sessions()) > 0:
            for _ in range(missing):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    one.connect(("127.0.0.1", udp))
                    one.settimeout(5)
                    one.send(b"x")
                    one.recv(10)
        shares = {False: [], True: []}
        for _ in range(PAIRS):
            for read in (False, True):
                reader = None
                if read:
                    reader = subprocess.Popen(
                        ["curl", "-sN", "-o", "/dev/null", f"http://127.0.0.1:{admin}/api/events"]
                    )
                    # The first event is all of it.
                    time.sleep(1.5)
                before, began = cpu(gateway.pid), time.monotonic()
                time.sleep(SECONDS)
                shares[read].append(100 * (cpu(gateway.pid) - before) / (time.monotonic() - began))
                if reader:
                    reader.kill()
                    reader.wait()
        page = subprocess.run(
            [sys.executable, ROOT + "/tests/interop/dashboard.py", f"http://127.0.0.1:{admin}/", "-", folder, "live"],
            stdout=subprocess.PIPE,
            check=True,
        )
        stop.set()
        mover.join()
        more = [with_one - without for without, with_one in zip(shares[False], shares[True])]
        print(f"load average {os.getloadavg()[0]:.1f}")
        print(f"sessions {sessions()}, of them active {ACTIVE}; {PAIRS} pairs of {SECONDS} s")
        for read in (False, True):
            name = "one reader" if read else "no reader "
            print(f"  {name}: median {statistics.median(shares[read]):.2f} % of a core, {min(shares[read]):.2f} to {max(shares[read]):.2f}")
        print(f"  the reader costs: median {statistics.median(more):.2f} % of a core, {min(more):.2f} to {max(more):.2f}")
        print(f"  Chromium, each second: {json.loads(page.stdout)}")
    finally:
        gateway.kill()
        gateway.wait()


main()
