"""What QUIC forbids, packet by packet, on aioquic's keys: the cases of h3spec that concern QUIC, rebuilt by hand.

aioquic_conformance.py CA HOST PORT NAME ALPN
    runs each case on a connection of its own and prints `CASE CODE`, where CODE is what the server closed with
"""

import asyncio
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.events import HandshakeCompleted
from aioquic.tls import CipherSuite, Epoch

WITHIN = 60
# How long the server has for what nobody expects.
QUIET = 2


class Client(QuicConnectionProtocol):
    """A connection that can be made to send any packet."""

    handshake = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ready = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted) and not self.ready.done():
            self.ready.set_result(None)

    def early(self, payload):
        """A packet of early data, under keys that nobody has agreed on."""
        quic = self._quic
        pair = CryptoPair()
        pair.send.setup(cipher_suite=CipherSuite.AES_128_GCM_SHA256, secret=bytes(32), version=quic._version)
        peer, own = quic._peer_cid.cid, quic.host_cid
        head = bytes([0xD3]) + quic._version.to_bytes(4, "big")
        head += bytes([len(peer)]) + peer + bytes([len(own)]) + own
        head += (0x4000 | 4 + len(payload) + 16).to_bytes(2, "big") + bytes(4)
        self._transport.sendto(pair.encrypt_packet(head, payload, 0), quic._network_paths[0].addr)

    def transmit(self):
        quic = self._quic
        crypto = quic._cryptos.get(Epoch.HANDSHAKE)
        if self.handshake is not None and crypto is not None and crypto.send.is_valid():
            # Before the client's last word of the handshake: later the server has no keys for it.
            payload, reserved = self.handshake
            type(self).handshake = self.handshake = None
            self.send(payload, reserved, Epoch.HANDSHAKE)
        super().transmit()

    def send(self, payload, reserved=0, epoch=Epoch.ONE_RTT):
        quic = self._quic
        number = quic._packet_number + 50
        quic._packet_number = number + 1
        peer = quic._peer_cid.cid
        if epoch == Epoch.ONE_RTT:
            head = bytes([0x43 | reserved << 3]) + peer
        else:
            own = quic.host_cid
            length = 4 + len(payload) + 16
            head = bytes([0xE3 | reserved << 2]) + quic._version.to_bytes(4, "big")
            head += bytes([len(peer)]) + peer + bytes([len(own)]) + own + (0x4000 | length).to_bytes(2, "big")
        packet = quic._cryptos[epoch].encrypt_packet(head + number.to_bytes(4, "big"), payload, number)
        self._transport.sendto(packet, quic._network_paths[0].addr)


def frame(kind, *numbers, tail=b""):
    return encode_uint_var(kind) + b"".join(encode_uint_var(number) for number in numbers) + tail


PAD = bytes(20)
STREAM, RESET, STOP, MAX_STREAM_DATA, STREAM_DATA_BLOCKED = 0x0E, 0x04, 0x05, 0x11, 0x15

# Sent once the handshake is done: bytes of a packet, and its reserved bits.
LATER = {
    "stream_beyond_its_window": (frame(STREAM, 0, (1 << 40), 1, tail=b"x"), 0),
    "unknown_frame": (frame(0x1F) + PAD, 0),
    "no_frames": (b"", 0),
    "reserved_bits_short": (frame(0x01) + PAD, 3),
    "reset_of_a_stream_only_the_server_writes": (frame(RESET, 3, 0, 0) + PAD, 0),
    "stop_of_a_stream_that_is_not_there": (frame(STOP, 401, 0) + PAD, 0),
    "stop_of_a_stream_only_the_client_writes": (frame(STOP, 2, 0) + PAD, 0),
    "max_stream_data_of_a_stream_that_is_not_there": (frame(MAX_STREAM_DATA, 401, 9) + PAD, 0),
    "max_stream_data_of_a_stream_only_the_client_writes": (frame(MAX_STREAM_DATA, 2, 9) + PAD, 0),
    "blocked_on_a_stream_only_the_server_writes": (frame(STREAM_DATA_BLOCKED, 3, 9) + PAD, 0),
    "data_on_a_stream_only_the_server_writes": (frame(STREAM, 3, 0, 1, tail=b"x") + PAD, 0),
    "stream_beyond_its_limit": (frame(STREAM, 4 * 100_000, 0, 1, tail=b"x") + PAD, 0),
    "one_way_stream_beyond_its_limit": (frame(STREAM, 4 * 100_000 + 2, 0, 1, tail=b"x") + PAD, 0),
    "max_streams_beyond_all": (frame(0x12, (1 << 60) + 1) + PAD, 0),
    "streams_blocked_beyond_all": (frame(0x16, (1 << 60) + 1) + PAD, 0),
    "new_id_that_retires_itself": (frame(0x18, 1, 2, tail=bytes([8]) + bytes(8) + bytes(16)) + PAD, 0),
    "new_id_of_no_bytes": (frame(0x18, 1, 0, tail=bytes([0]) + bytes(16)) + PAD, 0),
    "new_token_of_a_client": (frame(0x07, 4, tail=b"abcd") + PAD, 0),
    "handshake_done_of_a_client": (frame(0x1E) + PAD, 0),
    "key_update_of_tls": (frame(0x06, 0, 5, tail=bytes([24, 0, 0, 1, 0])) + PAD, 0),
}

# Sent in the midst of the handshake.
EARLY = {
    "reserved_bits_handshake": (frame(0x01) + PAD, 3),
    "path_challenge_in_the_handshake": (frame(0x1A, tail=bytes(8)) + PAD, 0),
    "key_update_in_the_handshake": (frame(0x06, 0, 5, tail=bytes([24, 0, 0, 1, 0])) + PAD, 0),
    "end_of_early_data": (frame(0x06, 0, 4, tail=bytes([5, 0, 0, 0])) + PAD, 0),
}


# What the server does not mind, or answers under keys that the client has not got yet. Of early data it has no keys.
BORNE = {"crypto_in_early_data", "reserved_bits_handshake", "reserved_bits_short", "blocked_on_a_stream_only_the_server_writes"}


def parameter(number, value):
    return encode_uint_var(number) + encode_uint_var(len(value)) + value


# Added to the transport parameters, or taken away from them.
PARAMETERS = {
    "original_destination_id_of_a_client": (parameter(0x00, bytes(8)), None),
    "stateless_reset_token_of_a_client": (parameter(0x02, bytes(16)), None),
    "preferred_address_of_a_client": (parameter(0x0D, bytes(4 + 2 + 16 + 2) + bytes([8]) + bytes(8 + 16)), None),
    "retry_source_id_of_a_client": (parameter(0x10, bytes(8)), None),
    "no_initial_source_id": (b"", 0x0F),
    "payload_too_small": (parameter(0x03, encode_uint_var(1199)), 0x03),
    "delay_exponent_too_large": (parameter(0x0A, encode_uint_var(21)), 0x0A),
    "delay_too_large": (parameter(0x0B, encode_uint_var(1 << 14)), 0x0B),
}

BORNE |= PARAMETERS.keys()


def changed(raw, add, take):
    """Transport parameters without one of them, and with others."""
    buffer, kept = Buffer(data=raw), b""
    while not buffer.eof():
        number = buffer.pull_uint_var()
        value = buffer.pull_bytes(buffer.pull_uint_var())
        if number != take:
            kept += parameter(number, value)
    return kept + add


async def case(name, arguments):
    ca, host, port, server_name, alpn = arguments
    config = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name=server_name, idle_timeout=4 * WITHIN)
    config.load_verify_locations(ca)
    if name == "no_common_protocol":
        config.alpn_protocols = ["nobody-speaks-this"]

    class Here(Client):
        handshake = EARLY.get(name)

        def __init__(self, quic, *args, **kwargs):
            if name in PARAMETERS:
                serialize = quic._serialize_transport_parameters
                quic._serialize_transport_parameters = lambda: changed(serialize(), *PARAMETERS[name])
            if name == "no_transport_parameters":
                initialize = quic._initialize

                def without(peer_cid):
                    initialize(peer_cid)
                    quic.tls.handshake_extensions = []

                quic._initialize = without
            super().__init__(quic, *args, **kwargs)

    ended = None
    try:
        async with connect(
            host, int(port), configuration=config, create_protocol=Here, wait_connected=False
        ) as client:
            # Without waiting, aioquic leaves the first packet to whoever sends next.
            client.transmit()
            if name == "crypto_in_early_data":
                client.early(frame(0x06, 0, 4, tail=bytes([5, 0, 0, 0])) + PAD)
                await asyncio.wait_for(client.ready, WITHIN)
                await client.ping()
            if name in LATER:
                await asyncio.wait_for(client.ready, WITHIN)
                # Until the server has done the same.
                await client.ping()
                client.send(*LATER[name])
            until = asyncio.get_running_loop().time() + (QUIET if name in BORNE else WITHIN)
            while asyncio.get_running_loop().time() < until:
                # What the server said, without the pause that aioquic makes before it tells.
                if client._quic._close_event is not None:
                    ended = client._quic._close_event.error_code
                    break
                await asyncio.sleep(0.01)
    except ConnectionError:
        pass
    print(name, "nothing" if ended is None else hex(ended), flush=True)


async def main():
    for name in [*PARAMETERS, "no_transport_parameters", "no_common_protocol", "crypto_in_early_data", *EARLY, *LATER]:
        await asyncio.wait_for(case(name, sys.argv[1:]), 4 * WITHIN)


asyncio.run(main())
