#!/usr/bin/env python3
"""What benches/wireguard.sh does to the path between two daemons.

wireguard_path.py slow MS LOSS: forwards datagrams between 10.99.0.1:51820 (by port 6000) and 10.99.0.2:51820 (by port
6001), each delayed by MS milliseconds and lost with the probability LOSS, from a fixed seed. Enough for what TCP makes
of such a path, not for more than some 10,000 datagrams a second.

wireguard_path.py flood RATE PUBLIC-KEY: sends RATE handshake initiations a second to 10.99.0.1:51820, random but for
their type and a first MAC that is right for the key, and says at the end how many that were.
"""
import base64
import hashlib
import heapq
import os
import random
import selectors
import signal
import socket
import sys
import time


def slow(delay, loss):
    chance, queue, count = random.Random(1), [], 0
    inner, outer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for end, port in ((inner, 6000), (outer, 6001)):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        end.bind(("10.99.0.1", port))
        end.setblocking(False)
    there = {inner: (outer, ("10.99.0.2", 51820)), outer: (inner, ("10.99.0.1", 51820))}
    ready = selectors.DefaultSelector()
    for end in there:
        ready.register(end, selectors.EVENT_READ)
    while True:
        wait = max(0, queue[0][0] - time.monotonic()) if queue else None
        for key, _ in ready.select(wait):
            for _ in range(64):
                try:
                    datagram = key.fileobj.recv(65535)
                except BlockingIOError:
                    break
                if chance.random() >= loss:
                    count += 1
                    heapq.heappush(queue, (time.monotonic() + delay, count, key.fileobj, datagram))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, end, datagram = heapq.heappop(queue)
            by, to = there[end]
            by.sendto(datagram, to)


def flood(rate, public):
    # Whitepaper, 5.4.4: the key of the first MAC is a hash of the receiver's public key.
    key = hashlib.blake2s(b"mac1----" + base64.b64decode(public)).digest()
    datagrams = []
    for _ in range(4096):
        body = bytes((1, 0, 0, 0)) + os.urandom(112)
        datagrams.append(body + hashlib.blake2s(body, digest_size=16, key=key).digest() + bytes(16))
    to, end = ("10.99.0.1", 51820), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sent, began = 0, time.monotonic()

    def told(*_):
        print(f"{sent / (time.monotonic() - began):.0f} initiations/s", flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, told)
    while True:
        for _ in range(20):
            end.sendto(datagrams[sent % 4096], to)
            sent += 1
        ahead = sent / rate - (time.monotonic() - began)
        if ahead > 0:
            time.sleep(ahead)


if sys.argv[1] == "slow":
    slow(float(sys.argv[2]) / 1000, float(sys.argv[3]))
else:
    flood(float(sys.argv[2]), sys.argv[3])
