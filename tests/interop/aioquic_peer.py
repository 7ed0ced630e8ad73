"""An independent QUIC peer, on aioquic, for portway's interop tests.

aioquic_peer.py server CERT KEY HOST PORT ALPN [retry] [rekey]
    prints `listening PORT`, echoes streams and datagrams until its standard input ends
aioquic_peer.py client CA HOST PORT NAME ALPN CASE [BYTES] [STREAMS]
    does what CASE says, prints `ok` and facts as key=value, fails with a sentence otherwise
"""

import asyncio
import ssl
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.tls import CipherSuite

WITHIN = 100


class EchoServer(QuicConnectionProtocol):
    """Echoes each stream as it comes, and each datagram."""

    rekey = False

    def quic_event_received(self, event):
        quic = self._quic
        if isinstance(event, StreamDataReceived):
            if self.rekey and event.end_stream:
                quic.request_key_update()
            quic.send_stream_data(event.stream_id, event.data, event.end_stream)
        elif isinstance(event, DatagramFrameReceived):
            quic.send_datagram_frame(event.data)
        elif isinstance(event, StreamReset):
            quic.reset_stream(event.stream_id, 7)
        self.transmit()


class Client(QuicConnectionProtocol):
    """Collects what comes on each stream."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.streams = {}
        self.datagrams = asyncio.Queue()
        self.resumed = False
        self.ended = None

    def stream(self, stream_id):
        if stream_id not in self.streams:
            loop = asyncio.get_running_loop()
            self.streams[stream_id] = (bytearray(), loop.create_future(), asyncio.Event())
        return self.streams[stream_id]

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.resumed = event.session_resumed
        elif isinstance(event, StreamDataReceived):
            data, done, some = self.stream(event.stream_id)
            data += event.data
            some.set()
            if event.end_stream and not done.done():
                done.set_result(bytes(data))
        elif isinstance(event, StreamReset):
            _, done, _ = self.stream(event.stream_id)
            if not done.done():
                done.set_exception(ConnectionResetError(event.error_code))
        elif isinstance(event, StopSendingReceived):
            pass
        elif isinstance(event, DatagramFrameReceived):
            self.datagrams.put_nowait(event.data)
        elif isinstance(event, ConnectionTerminated):
            self.ended = event
            for _, done, _ in self.streams.values():
                if not done.done():
                    done.set_exception(ConnectionError(event.reason_phrase or hex(event.error_code)))

    async def transfer(self, size, between=None):
        """Sends a stream and checks its echo; calls `between` half-way."""
        data = bytes(n % 251 for n in range(min(size, 251 * 64)))
        data = (data * (size // max(len(data), 1) + 1))[:size]
        stream_id = self._quic.get_next_available_stream_id()
        _, done, some = self.stream(stream_id)
        if between is None:
            self._quic.send_stream_data(stream_id, data, True)
            self.transmit()
        else:
            self._quic.send_stream_data(stream_id, data[: size // 2], False)
            self.transmit()
            await some.wait()
            between()
            self._quic.send_stream_data(stream_id, data[size // 2 :], True)
            self.transmit()
        back = await done
        assert back == data, f"{len(back)} of {size} bytes came back, or others"
        del self.streams[stream_id]


def configuration(arguments, case):
    ca, _, _, name, alpn = arguments[:5]
    config = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name=name, idle_timeout=60)
    config.load_verify_locations(ca)
    config.max_datagram_frame_size = 65536
    if case == "insecure":
        config.verify_mode = ssl.CERT_NONE
    if case == "chacha20":
        config.cipher_suites = [CipherSuite.CHACHA20_POLY1305_SHA256]
    return config


async def client(arguments):
    _, host, port = arguments[:3]
    case = arguments[5]
    size = int(arguments[6]) if len(arguments) > 6 else 1 << 20
    streams = int(arguments[7]) if len(arguments) > 7 else 1
    config = configuration(arguments, case)
    tickets = []
    facts = {}

    def dial():
        return connect(
            host, int(port), configuration=config, create_protocol=Client, session_ticket_handler=tickets.append
        )

    async with dial() as peer:
        quic = peer._quic
        facts["cipher"] = quic.tls.key_schedule.cipher_suite.name
        facts["retried"] = quic._retry_source_connection_id is not None
        facts["alpn"] = quic.tls.alpn_negotiated
        if case == "handshake":
            pass
        elif case in ("transfer", "chacha20", "retry"):
            await peer.transfer(size)
        elif case == "multiplexing":
            await asyncio.gather(*(peer.transfer(size + n % 7) for n in range(streams)))
        elif case == "keyupdate":
            for _ in range(5):
                await peer.transfer(size // 5, between=quic.request_key_update)
        elif case == "migration":
            for _ in range(3):
                await peer.transfer(size // 3, between=peer.change_connection_id)
                loop = asyncio.get_running_loop()
                old = peer._transport
                # The same connection over another socket, so from another port.
                address = ("::", 0, 0, 0)
                import socket

                sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(address)
                await loop.create_datagram_endpoint(lambda: peer, sock=sock)
                old.close()
                await peer.transfer(1000)
        elif case == "handshakes":
            await peer.transfer(size)
        elif case == "resumption":
            await peer.transfer(size)
        elif case == "datagrams":
            for n in range(streams):
                data = bytes([n % 256]) * (100 + n % 900)
                quic.send_datagram_frame(data)
                peer.transmit()
                assert await peer.datagrams.get() == data, "the echoed datagram differs"
        elif case == "reset":
            stream_id = quic.get_next_available_stream_id()
            _, done, some = peer.stream(stream_id)
            quic.send_stream_data(stream_id, b"half", False)
            peer.transmit()
            await some.wait()
            quic.reset_stream(stream_id, 9)
            peer.transmit()
            try:
                await done
            except ConnectionResetError as error:
                facts["reset"] = error.args[0]
            await peer.transfer(1000)
        else:
            raise SystemExit(f"no case {case}")
    if case == "handshakes":
        for _ in range(streams - 1):
            async with dial() as peer:
                await peer.transfer(size)
    if case == "resumption":
        assert tickets, "no ticket came"
        config.session_ticket = tickets[-1]
        async with dial() as peer:
            await peer.transfer(size)
            facts["resumed"] = peer.resumed
    print("ok", *(f"{key}={value}" for key, value in facts.items()))


async def server(arguments):
    cert, key, host, port, alpn = arguments[:5]
    options = arguments[5:]
    config = QuicConfiguration(is_client=False, alpn_protocols=[alpn], idle_timeout=60)
    config.load_cert_chain(cert, key)
    config.max_datagram_frame_size = 65536
    EchoServer.rekey = "rekey" in options
    tickets = {}
    running = await serve(
        host,
        int(port),
        configuration=config,
        create_protocol=EchoServer,
        retry="retry" in options,
        session_ticket_fetcher=lambda label: tickets.pop(label, None),
        session_ticket_handler=lambda ticket: tickets.__setitem__(ticket.ticket, ticket),
    )
    address = running._transport.get_extra_info("sockname")
    print("listening", address[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    running.close()


async def main():
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "server":
        await server(arguments)
    else:
        await asyncio.wait_for(client(arguments), WITHIN)


asyncio.run(main())
