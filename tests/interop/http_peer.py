"""HTTP peers from PyPI, driven by tests/it/http_peers.rs: what the `h2` package sends, and worse; `websockets`.

    http_peer.py CASE PORT

Prints one line that says how it ended: `ended` when the server closed the connection, `open` when it did not.
"""

import asyncio
import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

HEAD = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/hello")]
MOST = 30_000


class Client:
    """A connection whose answers are read while it sends."""

    def __init__(self, port, settings=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        config = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config=config)
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        self.socket.sendall(self.h2.data_to_send())
        self.goaway = None
        self.events = []
        self.knows = True

    def read(self, wait=0.0):
        """Takes what has come; false at the end."""
        self.socket.settimeout(max(wait, 0.000_001))
        try:
            data = self.socket.recv(65_536)
        except (TimeoutError, BlockingIOError):
            return True
        except OSError:
            return False
        finally:
            self.socket.settimeout(10)
        if not data:
            return False
        try:
            events = self.h2.receive_data(data) if self.knows else []
        except h2.exceptions.H2Error:
            # It knows nothing of the streams that were opened behind its back.
            self.knows, events = False, []
        for event in events:
            self.events.append(event)
            if isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event.error_code
        try:
            self.socket.sendall(self.h2.data_to_send())
        except OSError:
            return False
        return True

    def flood(self, make):
        """Sends as long as the server lets it, and reads meanwhile."""
        for n in range(MOST):
            try:
                self.socket.sendall(make(n))
            except OSError:
                return n
            if n % 50 == 0 and not self.read():
                return n
        return None

    def ends(self, wait=10.0):
        while self.read(wait):
            if self.socket.fileno() < 0:
                return True
            wait -= 0.1
            if wait <= 0:
                return False
        return True


def say(sent, client):
    ended = sent is not None or client.ends()
    print(f"{'ended' if ended else 'open'} sent={sent} goaway={client.goaway}")


def head(client, stream, flags=("END_HEADERS", "END_STREAM"), fields=HEAD):
    frame = HeadersFrame(stream, client.h2.encoder.encode(fields))
    for flag in flags:
        frame.flags.add(flag)
    return frame.serialize()


def rapid_reset(client):
    def make(n):
        return head(client, 2 * n + 1) + RstStreamFrame(2 * n + 1, error_code=8).serialize()

    return client.flood(make)


def continuation_flood(client):
    client.socket.sendall(head(client, 1, flags=("END_STREAM",)))
    return client.flood(lambda n: ContinuationFrame(1, b"\x00\x03x-%c\x01y" % (97 + n % 26)).serialize())


def empty_continuations(client):
    client.socket.sendall(head(client, 1, flags=("END_STREAM",)))
    return client.flood(lambda n: ContinuationFrame(1, b"").serialize())


def hpack_bomb(client):
    big = HEAD + [("x", "y" * 3_900)]
    client.socket.sendall(head(client, 1, fields=big))
    # Now in the table: each byte stands for 3,900.
    block = client.h2.encoder.encode(HEAD) + b"\xbe" * 12_000
    frame = HeadersFrame(3, block)
    frame.flags.add("END_HEADERS")
    frame.flags.add("END_STREAM")
    client.socket.sendall(frame.serialize())
    return None


def settings_flood(client):
    frame = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_535}).serialize()
    return client.flood(lambda n: frame)


def empty_frames(client):
    client.socket.sendall(head(client, 1, flags=("END_HEADERS",), fields=[(":method", "POST")] + HEAD[1:]))
    return client.flood(lambda n: DataFrame(1, b"").serialize())


def ping_flood(client):
    return client.flood(lambda n: PingFrame(0, b"12345678").serialize())


def priority_flood(client):
    return client.flood(lambda n: PriorityFrame(2 * n + 1, depends_on=0, stream_weight=1).serialize())


def window_updates(client):
    return client.flood(lambda n: WindowUpdateFrame(0, window_increment=1).serialize())


def window_overflow(client):
    for _ in range(2):
        client.socket.sendall(WindowUpdateFrame(0, window_increment=2**31 - 1).serialize())
    return None


def window_zero(client):
    update = WindowUpdateFrame(0, window_increment=0).serialize()
    client.socket.sendall(head(client, 1) + update)
    return None


def closed_window(client):
    """Asks for much and takes nothing of it."""
    fields = HEAD[:3] + [(":path", "/big")]
    client.socket.sendall(head(client, 1, fields=fields))
    return None


def requests(client):
    """One after the other until it is told that no more are taken; by hand, since h2 hears nothing behind a GOAWAY."""
    answered, said, data = 0, set(), b""

    def ask():
        frame = HeadersFrame(
            2 * answered + 1, client.h2.encoder.encode(HEAD), flags=["END_HEADERS", "END_STREAM"]
        )
        client.socket.sendall(frame.serialize())

    ask()
    while piece := client.socket.recv(65_536):
        data += piece
        while len(data) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            if len(data) < 9 + length:
                break
            frame.parse_body(memoryview(data[9 : 9 + length]))
            data = data[9 + length :]
            if isinstance(frame, GoAwayFrame):
                said.add(frame.error_code)
            elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
                client.socket.sendall(PingFrame(0, frame.opaque_data, flags=["ACK"]).serialize())
            elif "END_STREAM" in frame.flags:
                answered += 1
                if not said:
                    ask()
    print(f"{answered} answered, {sorted(said)} said")
    sys.exit(0)


def concurrent(client):
    """100 at once, each answered."""
    for n in range(100):
        client.h2.send_headers(2 * n + 1, HEAD, end_stream=True)
    client.socket.sendall(client.h2.data_to_send())
    while sum(isinstance(event, h2.events.StreamEnded) for event in client.events) < 100:
        assert client.read(10), "the server ended it"
    bodies = b"".join(event.data for event in client.events if isinstance(event, h2.events.DataReceived))
    assert bodies == b"hello" * 100, bodies
    print("fine")
    sys.exit(0)


def websocket_over_http2(client):
    """RFC 8441: text frames by hand, masked as clients do."""
    while not any(isinstance(event, h2.events.RemoteSettingsChanged) for event in client.events):
        assert client.read(10)
    assert client.h2.remote_settings.enable_connect_protocol == 1, "not offered"
    fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/chat"),
        ("sec-websocket-version", "13"),
    ]
    client.h2.send_headers(1, fields)
    client.socket.sendall(client.h2.data_to_send())
    while not any(isinstance(event, h2.events.ResponseReceived) for event in client.events):
        assert client.read(10)
    answer = next(event for event in client.events if isinstance(event, h2.events.ResponseReceived))
    status = dict(answer.headers)[b":status"]
    assert status == b"200", answer.headers
    for n in range(20):
        text = b"message %d" % n
        client.h2.send_data(1, bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
        client.socket.sendall(client.h2.data_to_send())
        wanted = bytes([0x81, len(text)]) + text
        client.events.clear()
        got = b""
        while len(got) < len(wanted):
            assert client.read(10)
            got = b"".join(event.data for event in client.events if isinstance(event, h2.events.DataReceived))
        assert got == wanted, (got, wanted)
    print("fine")
    sys.exit(0)


def connect_over_http2(client):
    """RFC 9113, section 8.5: refused where no route takes it; else a tunnel, through which HTTP/1.1 is spoken here."""
    statuses = []
    for stream, authority in [(1, "other.test:80"), (3, "inner.test:80")]:
        client.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority)])
        client.socket.sendall(client.h2.data_to_send())
        answered = lambda: [e for e in client.events if isinstance(e, h2.events.ResponseReceived) and e.stream_id == stream]
        while not answered():
            assert client.read(10)
        statuses.append(dict(answered()[0].headers)[b":status"])
    assert statuses == [b"405", b"200"], statuses
    client.h2.send_data(3, b"GET /hello HTTP/1.1\r\nx: as it is\r\n\r\n")
    client.socket.sendall(client.h2.data_to_send())
    got = b""
    while not got.endswith(b"hello"):
        assert client.read(10)
        got = b"".join(e.data for e in client.events if isinstance(e, h2.events.DataReceived) and e.stream_id == 3)
    assert got.startswith(b"HTTP/1.1 200 "), got
    # The connection goes on beside it, and the end of this side is told.
    client.h2.send_data(3, b"", end_stream=True)
    client.socket.sendall(client.h2.data_to_send())
    while not any(isinstance(e, h2.events.StreamEnded) and e.stream_id == 3 for e in client.events):
        assert client.read(10)
    print("fine")
    sys.exit(0)


async def websockets_client(port):
    import websockets

    async with websockets.connect(f"ws://127.0.0.1:{port}/chat", max_size=None) as socket_:
        for text in ["hello", "x" * 200_000, "ü"]:
            await socket_.send(text)
            assert await socket_.recv() == text
        await socket_.send(b"\0\1\2")
        assert await socket_.recv() == b"\0\1\2"
        await (await socket_.ping())
    print("fine")


async def websockets_server():
    import websockets

    async def echo(socket_):
        async for message in socket_:
            await socket_.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


def main():
    case = sys.argv[1]
    if case == "websockets_server":
        asyncio.run(websockets_server())
        return
    port = int(sys.argv[2])
    if case == "websockets_client":
        asyncio.run(websockets_client(port))
        return
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0} if case == "closed_window" else None
    client = Client(port, settings)
    say(globals()[case](client), client)


main()
