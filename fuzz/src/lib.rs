//! What is done with arbitrary bytes: one function for each parser, with what must hold whatever they are.
//!
//! Run by libFuzzer (`scripts/fuzz`), and by `make test` on the seeds of `fuzz/seeds/NAME`. A function panics when
//! something does not hold.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portway::gateway::check;
use portway::transports::framed::{ByteOrder, Format, LengthBytes};
use portway::transports::http::codec_file;
use portway::transports::http::codec_head::{Guard, HeadLimits, Stage};
use portway::transports::moq::codec::Mistake;
use portway::transports::moq::codec_datagram::{Datagram, read_datagram};
use portway::transports::moq::codec_fetch::FetchDecoder;
use portway::transports::moq::codec_message::{MessageDecoder, put_message};
use portway::transports::moq::codec_stream::{StreamDecoder, StreamStart};
use portway::transports::moq::codec_subgroup::{ObjectDecoder, Piece};
use portway::transports::moq::model::{Draft, GroupOrder};
use portway::transports::quic::codec::{CID_LEN, Cid, arbiter_of, handshake_packets, peek};
use portway::transports::quic::codec_token::{RESET_RANDOM, Secrets, reset, reset_token_of};
use portway::transports::relay::{Header, MAX_V1, MAX_V2, ProxyVersion};
use portway::transports::wireguard::codec_inner::{Inner, clamp_mss, destination, hop};
use portway::transports::wireguard::codec_message::{Message, sender};
use portway::transports::wireguard::{codec_conf, codec_uapi};

/// A parser and what holds for it.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, by the name of their seeds.
pub const TARGETS: &[Target] = &[
    ("config", config),
    ("framed", framed),
    ("http_file", http_file),
    ("http_head", http_head),
    ("moq_datagram", moq_datagram),
    ("moq_message", moq_message),
    ("moq_stream", moq_stream),
    ("proxy", proxy),
    ("quic_packet", quic_packet),
    ("quic_token", quic_token),
    ("wireguard_conf", wireguard_conf),
    ("wireguard_inner", wireguard_inner),
    ("wireguard_message", wireguard_message),
    ("wireguard_uapi", wireguard_uapi),
];

/// A configuration file: accepted, or refused with a report that can be shown.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(report) = check::parse("fuzz.toml", text, &check::Known::default()) {
        assert!(!report.render(false).is_empty());
    }
}

/// Length fields of all shapes: what is read is what would have been written.
pub fn framed(data: &[u8]) {
    let Some((shape, bytes)) = data.split_first() else { return };
    let width = [LengthBytes::One, LengthBytes::Two, LengthBytes::Four, LengthBytes::Eight][usize::from(shape & 3)];
    let order = if shape & 4 == 0 { ByteOrder::Big } else { ByteOrder::Little };
    let max = [0, 1, 200, 65_000, 1 << 30][usize::from(shape >> 4) % 5];
    let Ok(format) = Format::new(width, order, shape & 8 != 0, max) else { return };
    if let Ok(Some(frame)) = format.decode(bytes) {
        assert!(frame.body <= format.max_message() && frame.header == format.header_len());
        let header = format.encode(frame.body).expect("what was read can be written");
        assert_eq!(header.as_bytes(), &bytes[..frame.header]);
    }
}

/// Paths and ranges of requests for files: none leads out of its folder or beyond its file.
pub fn http_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(path) = codec_file::decode(text) {
        assert!(!path.split('/').any(|part| part == ".."), "{path}");
        assert!(!path.contains('\0'));
    }
    for size in [0, 1, 1_000, u64::MAX] {
        if let codec_file::RangeAnswer::Part { first, last } = codec_file::range(text, size) {
            assert!(first <= last && last < size, "{first} to {last} of {size}");
        }
    }
}

/// The guard before HTTP/1: whether it lets bytes pass does not depend on how they are cut.
pub fn http_head(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let limits = HeadLimits { bytes: 1_024, fields: 16 };
    let (mut whole, mut pieces) = (Guard::new(limits), Guard::new(limits));
    let one = whole.look(bytes).is_ok();
    let mut two = true;
    for piece in bytes.chunks(usize::from(*cut).max(1)) {
        two = pieces.look(piece).is_ok();
        if !two {
            break;
        }
    }
    assert_eq!(one, two);
    assert_eq!(whole.heads(), pieces.heads());
    if one {
        assert_eq!(whole.stage(), pieces.stage());
        assert!(whole.stage() != Stage::Open, "nobody has switched protocols");
    }
}

/// A datagram of MoQT: what is read is written as something that reads the same.
pub fn moq_datagram(data: &[u8]) {
    if let Ok(Datagram::Object(object)) = read_datagram(&Bytes::copy_from_slice(data)) {
        let mut written = BytesMut::new();
        object.put(&mut written).expect("what was read can be written");
        assert_eq!(read_datagram(&written.freeze()), Ok(Datagram::Object(object)));
    }
}

/// Control messages of MoQT: the same however they are cut, and what is read is written as something that reads the same.
pub fn moq_message(data: &[u8]) {
    let Some((draft, bytes)) = data.split_first() else { return };
    let draft = Draft::ALL[usize::from(*draft) % Draft::ALL.len()];
    let bytes = Bytes::copy_from_slice(bytes);
    let read = |pieces: &[Bytes]| {
        let (mut decoder, mut found) = (MessageDecoder::new(draft), Vec::new());
        for piece in pieces {
            let mut piece = piece.clone();
            loop {
                match decoder.decode(&mut piece) {
                    Ok(Some(message)) => found.push(message),
                    Ok(None) => break,
                    Err(refused) => return (found, Some(refused)),
                }
            }
        }
        (found, None)
    };
    let whole = read(std::slice::from_ref(&bytes));
    let singly: Vec<_> = (0..bytes.len()).map(|at| bytes.slice(at..at + 1)).collect();
    assert_eq!(read(&singly), whole);
    for message in whole.0 {
        let mut written = BytesMut::new();
        // What peers are allowed beyond the text is not written.
        if put_message(&message, draft, &mut written).is_ok() {
            assert_eq!(MessageDecoder::new(draft).decode(&mut written.freeze()), Ok(Some(message)));
        }
    }
}

/// A unidirectional stream of MoQT: the same however it is cut.
pub fn moq_stream(data: &[u8]) {
    let Some((shape, bytes)) = data.split_first() else { return };
    let draft = Draft::ALL[usize::from(shape >> 1) % Draft::ALL.len()];
    let order = if shape & 1 == 0 { GroupOrder::Ascending } else { GroupOrder::Descending };
    let bytes = Bytes::copy_from_slice(bytes);
    let whole = moq_pieces(std::slice::from_ref(&bytes), draft, order);
    let singly: Vec<_> = (0..bytes.len()).map(|at| bytes.slice(at..at + 1)).collect();
    assert_eq!(moq_pieces(&singly, draft, order), whole);
}

/// Heads as text, payload as one, and the mistake at which it ended.
fn moq_pieces(pieces: &[Bytes], draft: Draft, order: GroupOrder) -> (Vec<String>, Vec<u8>, Option<Mistake>) {
    let (mut heads, mut payload) = (Vec::new(), Vec::new());
    let (mut stream, mut objects, mut fetch) = (StreamDecoder::new(draft), None, None);
    let mut begun = false;
    for piece in pieces {
        let mut piece = piece.clone();
        if !begun {
            match stream.decode(&mut piece) {
                Ok(None) => continue,
                Ok(Some(StreamStart::Subgroup(header))) => {
                    heads.push(format!("{header:?}"));
                    objects = Some(ObjectDecoder::new(&header));
                }
                Ok(Some(StreamStart::Fetch { .. })) => fetch = Some(FetchDecoder::new(order, draft)),
                // The rest is messages, or nothing.
                Ok(Some(StreamStart::Control(_) | StreamStart::Padding)) => {}
                Err(mistake) => return (heads, payload, Some(mistake)),
            }
            begun = true;
        }
        loop {
            let next = match (&mut objects, &mut fetch) {
                (Some(decoder), _) => decoder.decode(&mut piece).map(|found| {
                    found.map(|piece| match piece {
                        Piece::Head(head) => Piece::Head(format!("{head:?}")),
                        Piece::Payload { bytes, last } => Piece::Payload { bytes, last },
                    })
                }),
                (None, Some(decoder)) => decoder.decode(&mut piece).map(|found| {
                    found.map(|piece| match piece {
                        Piece::Head(item) => Piece::Head(format!("{item:?}")),
                        Piece::Payload { bytes, last } => Piece::Payload { bytes, last },
                    })
                }),
                (None, None) => Ok(None),
            };
            match next {
                Ok(Some(Piece::Head(head))) => heads.push(head),
                Ok(Some(Piece::Payload { bytes, .. })) => {
                    assert!(!bytes.is_empty());
                    payload.extend_from_slice(&bytes);
                }
                Ok(None) => break,
                Err(mistake) => return (heads, payload, Some(mistake)),
            }
        }
    }
    (heads, payload, None)
}

/// PROXY headers: bounded, and what was read can be written and read again.
pub fn proxy(data: &[u8]) {
    let decoded = Header::decode(data);
    for length in 0..data.len().min(MAX_V2 + 1) {
        // A beginning of it never says something else.
        match Header::decode(&data[..length]) {
            Ok(None) => {}
            Ok(Some(early)) => assert_eq!(Ok(Some(early)), decoded),
            Err(_) => assert!(decoded.is_err()),
        }
    }
    match decoded {
        Ok(Some((header, length))) => {
            assert!(length <= data.len() && length <= MAX_V2);
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                let written = header.encode(version);
                assert_eq!(Header::decode(&written), Ok(Some((header, written.len()))));
            }
        }
        Ok(None) => assert!(data.len() < MAX_V1.max(MAX_V2)),
        Err(_) => {}
    }
}

/// The parts of QUIC packets that are read before quiche: ids stay inside the datagram and name an arbiter there is.
pub fn quic_packet(data: &[u8]) {
    assert!(handshake_packets(data) <= data.len());
    if let Ok(peeked) = peek(data) {
        let id = peeked.dcid();
        assert!(id.len() <= data.len());
        for arbiters in [1, 2, 3, 128] {
            assert!(arbiter_of(id, arbiters) < arbiters);
        }
        if let Some(id) = Cid::of(id) {
            assert_eq!(id.bytes().len(), CID_LEN);
        }
    }
    if let Some(token) = reset_token_of(data) {
        assert!(data.ends_with(&token.to_be_bytes()));
    }
    if let Some(answer) = reset(data.len(), 7, [0xff; RESET_RANDOM]) {
        assert!(answer.len() < data.len());
        assert_eq!(reset_token_of(&answer), Some(7));
    }
}

/// Retry tokens: none that we did not make is taken, and ours is whatever the ids.
pub fn quic_token(data: &[u8]) {
    let secrets = Secrets::new(b"the secret of the fuzzer").expect("a hash");
    let peer = SocketAddr::from(([192, 0, 2, 1], 4_433));
    let now = Duration::from_secs(1_000_000);
    let (original, retry) = data.split_at(data.len().min(20) / 2);
    let retry = &retry[..retry.len().min(20)];
    assert!(secrets.verify(data, peer, retry, now).is_err(), "forged");
    let token = secrets.token(peer, original, retry, now).expect("a hash");
    assert_eq!(secrets.verify(&token, peer, retry, now), Ok(original));
    for place in 0..token.len() {
        let mut forged = token.clone();
        forged[place] ^= 1;
        assert!(secrets.verify(&forged, peer, retry, now).is_err(), "byte {place}");
    }
}

/// Files of wg-quick.
pub fn wireguard_conf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _judged = codec_conf::read(text);
}

/// Headers of packets inside a tunnel: nothing is read or written beyond the packet.
pub fn wireguard_inner(data: &[u8]) {
    let _to = destination(data);
    if let Ok(inner) = Inner::parse(data) {
        assert!(inner.payload <= data.len());
        assert_eq!(destination(data), Some(inner.destination));
        let _ports = (inner.ports(data), inner.is_syn(data), inner.tcp_flags(data));
    }
    for mtu in [0, 576, 1_280, 1_420, 65_535] {
        let mut packet = data.to_vec();
        let _clamped = clamp_mss(&mut packet, mtu);
        assert_eq!(packet.len(), data.len());
    }
    let mut packet = data.to_vec();
    if hop(&mut packet).is_ok() {
        // What was right before is right after.
        assert_eq!(Inner::parse(&packet).is_ok(), Inner::parse(data).is_ok());
    }
}

/// The outer form of WireGuard's messages.
pub fn wireguard_message(data: &[u8]) {
    if Message::parse(data).is_some() {
        assert!(data.len() >= 32);
    }
    let _index = sender(data);
}

/// The protocol of wg(8).
pub fn wireguard_uapi(data: &[u8]) {
    if let Some(length) = codec_uapi::request_length(data) {
        assert!(length <= data.len());
        let _judged = codec_uapi::read(&data[..length]);
    }
    let _judged = codec_uapi::read(data);
}
