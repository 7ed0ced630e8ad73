"""HTTP/3 and WebTransport by aioquic, for portway's interop tests.

aioquic_http3.py CA HOST PORT NAME CASE
    does what CASE says, prints `ok` and facts as key=value, fails with a sentence otherwise
"""

import asyncio
import re
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3_ALPN, FrameType, H3Connection
from aioquic.h3.events import DataReceived, DatagramReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamReset

WITHIN = 240


class Client(QuicConnectionProtocol):
    """Requests and one session."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.answers = {}
        self.streams = {}
        self.datagrams = asyncio.Queue()
        self.incoming = asyncio.Queue()
        self.ended = None

    def answer(self, stream):
        if stream not in self.answers:
            self.answers[stream] = ([], bytearray(), asyncio.get_running_loop().create_future())
        return self.answers[stream]

    def piece(self, stream):
        if stream not in self.streams:
            self.streams[stream] = (bytearray(), asyncio.get_running_loop().create_future())
            self.incoming.put_nowait(stream)
        return self.streams[stream]

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.ended = event
        if isinstance(event, StreamReset):
            for _, future in [self.streams.get(event.stream_id, (None, None))]:
                if future and not future.done():
                    future.set_exception(ConnectionResetError(event.error_code))
        if isinstance(event, StopSendingReceived):
            return
        for http in self.http.handle_event(event):
            if isinstance(http, HeadersReceived):
                heads, _, done = self.answer(http.stream_id)
                heads.append(dict(http.headers))
                if http.stream_ended and not done.done():
                    done.set_result(None)
            elif isinstance(http, DataReceived):
                _, body, done = self.answer(http.stream_id)
                body += http.data
                if http.stream_ended and not done.done():
                    done.set_result(None)
            elif isinstance(http, WebTransportStreamDataReceived):
                data, done = self.piece(http.stream_id)
                data += http.data
                if http.stream_ended and not done.done():
                    done.set_result(bytes(data))
            elif isinstance(http, DatagramReceived):
                self.datagrams.put_nowait(http.data)

    async def request(self, method, path, body=None, more=()):
        stream = self._quic.get_next_available_stream_id()
        heads, data, done = self.answer(stream)
        self.http.send_headers(
            stream,
            [
                (b":method", method.encode()),
                (b":scheme", b"https"),
                (b":authority", b"localhost"),
                (b":path", path.encode()),
                *more,
            ],
            end_stream=body is None,
        )
        if body is not None:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        await done
        return int(heads[-1][b":status"] if b":status" in heads[-1] else heads[0][b":status"]), heads, bytes(data)

    async def session(self, path):
        stream = self._quic.get_next_available_stream_id()
        heads, _, _ = self.answer(stream)
        self.http.send_headers(
            stream,
            [
                (b":method", b"CONNECT"),
                (b":scheme", b"https"),
                (b":authority", b"localhost"),
                (b":path", path.encode()),
                (b":protocol", b"webtransport"),
            ],
        )
        self.transmit()
        while not heads:
            await asyncio.sleep(0.005)
        assert heads[0][b":status"] == b"200", heads
        return stream


async def requests(client, facts):
    status, heads, body = await client.request("GET", "/hello")
    assert (status, body) == (200, b"hello"), (status, body)
    assert b"alt-svc" not in heads[0]
    big = bytes(n % 251 for n in range(300_000))
    status, _, body = await client.request("POST", "/echo", big)
    assert status == 200 and body == big, (status, len(body))
    _, heads, body = await client.request("GET", "/chunks")
    assert body == b"hello world" and heads[-1].get(b"x-end") == b"yes", heads
    every = await asyncio.gather(*(client.request("GET", f"/hello?{n}") for n in range(300)))
    assert all(status == 200 and body == b"hello" for status, _, body in every)
    status, _, body = await client.request("GET", "/big")
    assert (status, len(body)) == (200, 64 << 20), (status, len(body))
    facts["settings"] = len(client.http.received_settings)


async def webtransport(client, facts):
    session = await client.session("/wt")
    quic = client._quic

    async def stream(data, one_way=False):
        stream = client.http.create_webtransport_stream(session, one_way)
        if not one_way:
            # aioquic does not note this by itself, and would look for frames in what comes back.
            with client.http._get_or_create_stream(stream) as known:
                known.frame_type, known.session_id = FrameType.WEBTRANSPORT_STREAM, session
            _, done = client.piece(stream)
            await client.incoming.get()
        quic.send_stream_data(stream, data, True)
        client.transmit()
        if one_way:
            back = await client.incoming.get()
            assert back % 4 == 3, back
            _, done = client.piece(back)
        return await done

    assert await stream(b"hello") == b"hello"
    big = bytes(n % 251 for n in range(300_000))
    assert await stream(big) == big
    assert await stream(b"one way", True) == b"one way"
    for n in range(50):
        data = bytes([n]) * (n + 1)
        client.http.send_datagram(session, data)
        client.transmit()
        assert await client.datagrams.get() == data
    status, _, body = await client.request("GET", "/hello")
    assert (status, body) == (200, b"hello")
    # Closed by the end of its stream.
    client.http.send_data(session, b"", end_stream=True)
    client.transmit()
    again = await client.session("/wt")
    assert again > session
    facts["sessions"] = 2


async def main():
    ca, host, port, name, case = sys.argv[1:]
    config = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name, idle_timeout=WITHIN)
    config.load_verify_locations(ca)
    config.max_datagram_frame_size = 65536
    config.max_data = 1 << 24
    config.max_stream_data = 1 << 23
    facts = {}
    if case == "alternative":
        # What Alt-Svc names, read over TCP.
        found = re.search(r'h3=":(\d+)"', sys.stdin.read())
        assert found, "no Alt-Svc"
        port, case = found[1], "requests"
    async with connect(host, int(port), configuration=config, create_protocol=Client) as client:
        await {"requests": requests, "webtransport": webtransport}[case](client, facts)
    print("ok", *(f"{key}={value}" for key, value in facts.items()))


asyncio.run(asyncio.wait_for(main(), WITHIN))
