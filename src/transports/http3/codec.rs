//! The words of HTTP/3 on the wire (RFC 9114, sections 6 to 8): numbers of variable length, headers of frames, types of
//! streams, settings, error codes.
//!
//! Bytes in, plain values out and back. Nothing here knows in which order they may come: `state_*` does.

use std::fmt;

use bytes::{BufMut, BytesMut};

/// Why a connection or a stream is ended (RFC 9114, section 8.1; RFC 9204, section 6; RFC 9297, section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// Nothing is wrong.
    NoError,
    /// A rule was broken that has no code of its own.
    GeneralProtocolError,
    /// A mistake of this end.
    InternalError,
    /// A stream that the receiver does not want.
    StreamCreationError,
    /// A control or QPACK stream was closed.
    ClosedCriticalStream,
    /// A frame where it must not be.
    FrameUnexpected,
    /// A frame that is not laid out as it must be, or cut off.
    FrameError,
    /// Behaviour that costs this end too much.
    ExcessiveLoad,
    /// A stream or push id that is used wrongly.
    IdError,
    /// A setting with a value that it must not have.
    SettingsError,
    /// A control stream that does not begin with settings.
    MissingSettings,
    /// A request that was not looked at.
    RequestRejected,
    /// A request, or its answer, that is not wanted any more.
    RequestCancelled,
    /// A request that ended too early.
    RequestIncomplete,
    /// A message that is malformed.
    MessageError,
    /// The other end of a tunnel failed.
    ConnectError,
    /// Fields that cannot be decoded.
    QpackDecompressionFailed,
    /// An instruction of the peer's encoder that must not be.
    QpackEncoderStreamError,
    /// An instruction of the peer's decoder that must not be.
    QpackDecoderStreamError,
    /// A datagram, or a capsule, that is malformed.
    DatagramError,
    /// A stream or datagram of a session that is not there (WebTransport over HTTP/3, section 8).
    WebTransportBufferedStreamRejected,
    /// Its session has ended.
    WebTransportSessionGone,
}

impl Code {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::NoError => 0x100,
            Self::GeneralProtocolError => 0x101,
            Self::InternalError => 0x102,
            Self::StreamCreationError => 0x103,
            Self::ClosedCriticalStream => 0x104,
            Self::FrameUnexpected => 0x105,
            Self::FrameError => 0x106,
            Self::ExcessiveLoad => 0x107,
            Self::IdError => 0x108,
            Self::SettingsError => 0x109,
            Self::MissingSettings => 0x10a,
            Self::RequestRejected => 0x10b,
            Self::RequestCancelled => 0x10c,
            Self::RequestIncomplete => 0x10d,
            Self::MessageError => 0x10e,
            Self::ConnectError => 0x10f,
            Self::QpackDecompressionFailed => 0x200,
            Self::QpackEncoderStreamError => 0x201,
            Self::QpackDecoderStreamError => 0x202,
            Self::DatagramError => 0x33,
            Self::WebTransportBufferedStreamRejected => 0x3994_bd84,
            Self::WebTransportSessionGone => 0x170d_7b68,
        }
    }

    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoError => "no_error",
            Self::GeneralProtocolError => "general_protocol_error",
            Self::InternalError => "internal_error",
            Self::StreamCreationError => "stream_creation_error",
            Self::ClosedCriticalStream => "closed_critical_stream",
            Self::FrameUnexpected => "frame_unexpected",
            Self::FrameError => "frame_error",
            Self::ExcessiveLoad => "excessive_load",
            Self::IdError => "id_error",
            Self::SettingsError => "settings_error",
            Self::MissingSettings => "missing_settings",
            Self::RequestRejected => "request_rejected",
            Self::RequestCancelled => "request_cancelled",
            Self::RequestIncomplete => "request_incomplete",
            Self::MessageError => "message_error",
            Self::ConnectError => "connect_error",
            Self::QpackDecompressionFailed => "qpack_decompression_failed",
            Self::QpackEncoderStreamError => "qpack_encoder_stream_error",
            Self::QpackDecoderStreamError => "qpack_decoder_stream_error",
            Self::DatagramError => "datagram_error",
            Self::WebTransportBufferedStreamRejected => "wt_buffered_stream_rejected",
            Self::WebTransportSessionGone => "wt_session_gone",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// Types of frames (RFC 9114, section 7.2; RFC 9218, section 7.2; WebTransport over HTTP/3, section 4.3).
pub mod frame {
    /// Content.
    pub const DATA: u64 = 0x0;
    /// Fields.
    pub const HEADERS: u64 = 0x1;
    /// A push is not wanted.
    pub const CANCEL_PUSH: u64 = 0x3;
    /// Settings.
    pub const SETTINGS: u64 = 0x4;
    /// A push is announced.
    pub const PUSH_PROMISE: u64 = 0x5;
    /// No more requests.
    pub const GOAWAY: u64 = 0x7;
    /// How many pushes are allowed.
    pub const MAX_PUSH_ID: u64 = 0xd;
    /// Another priority for a request.
    pub const PRIORITY_UPDATE: u64 = 0xf_0700;
    /// Another priority for a push.
    pub const PRIORITY_UPDATE_PUSH: u64 = 0xf_0701;
    /// Not a frame: the rest of the stream belongs to the session that is named next.
    pub const WEBTRANSPORT: u64 = 0x41;

    /// Whether HTTP/2 has a frame of this number for which HTTP/3 has no use (RFC 9114, section 7.2.8).
    #[must_use]
    pub const fn is_of_http2(kind: u64) -> bool {
        matches!(kind, 0x2 | 0x6 | 0x8 | 0x9)
    }
}

/// Types of unidirectional streams (RFC 9114, section 6.2; RFC 9204, section 4.2; WebTransport, section 4.2).
pub mod stream {
    /// Settings and what else concerns a connection.
    pub const CONTROL: u64 = 0x0;
    /// A push; only servers have them.
    pub const PUSH: u64 = 0x1;
    /// Instructions of an encoder.
    pub const ENCODER: u64 = 0x2;
    /// Instructions of a decoder.
    pub const DECODER: u64 = 0x3;
    /// The rest belongs to the session that is named next.
    pub const WEBTRANSPORT: u64 = 0x54;
}

/// Names of settings.
mod setting {
    pub(super) const QPACK_TABLE: u64 = 0x1;
    pub(super) const FIELD_SECTION: u64 = 0x6;
    pub(super) const QPACK_BLOCKED: u64 = 0x7;
    pub(super) const CONNECT: u64 = 0x8;
    pub(super) const DATAGRAM: u64 = 0x33;
    /// Of drafts 13 and later; what the session limit is called since.
    pub(super) const WT_MAX_SESSIONS_13: u64 = 0x14e9_cd29;
    /// Of drafts 7 to 12.
    pub(super) const WT_MAX_SESSIONS: u64 = 0xc671_706a;
    /// Of draft 2, which browsers still look for.
    pub(super) const WT_ENABLE: u64 = 0x2b60_3742;
    pub(super) const WT_ENABLE_15: u64 = 0x2c7c_f000;

    /// Those of HTTP/2 that must not come (RFC 9114, section 7.2.4.1).
    pub(super) const fn is_of_http2(id: u64) -> bool {
        matches!(id, 0x0 | 0x2 | 0x3 | 0x4 | 0x5)
    }
}

/// The longest settings that are read.
pub const MAX_SETTINGS: usize = 4 << 10;

/// What one end tells the other when a connection begins. What it does not know it leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Bytes of fields that are taken, as RFC 9114, section 4.2.2 counts them.
    pub field_section: Option<u64>,
    /// Bytes of QPACK's dynamic table.
    pub qpack_table: u64,
    /// Streams that may wait for it.
    pub qpack_blocked: u64,
    /// Extended CONNECT (RFC 9220).
    pub connect: bool,
    /// Datagrams (RFC 9297).
    pub datagrams: bool,
    /// Sessions of WebTransport at once.
    pub sessions: u64,
}

impl Settings {
    /// Writes the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut body = BytesMut::new();
        let mut put = |id: u64, value: u64| {
            put_varint(&mut body, id);
            put_varint(&mut body, value);
        };
        if let Some(bytes) = self.field_section {
            put(setting::FIELD_SECTION, bytes);
        }
        // The two of QPACK are 0 unless they are said.
        for (id, value) in [(setting::QPACK_TABLE, self.qpack_table), (setting::QPACK_BLOCKED, self.qpack_blocked)] {
            if value > 0 {
                put(id, value);
            }
        }
        for (id, on) in [(setting::CONNECT, self.connect), (setting::DATAGRAM, self.datagrams)] {
            if on {
                put(id, 1);
            }
        }
        if self.sessions > 0 {
            put(setting::WT_ENABLE, 1);
            put(setting::WT_ENABLE_15, 1);
            put(setting::WT_MAX_SESSIONS, self.sessions);
            put(setting::WT_MAX_SESSIONS_13, self.sessions);
        }
        put_frame(out, frame::SETTINGS, body.len());
        out.extend_from_slice(&body);
    }

    /// Reads what is inside the frame.
    ///
    /// # Errors
    /// [`Code::FrameError`] if it is cut off; [`Code::SettingsError`] for one that came twice, one of HTTP/2, or a value
    /// that must not be.
    pub fn decode(mut body: &[u8]) -> Result<Self, Code> {
        let mut settings = Self::default();
        let mut seen: Vec<u64> = Vec::new();
        while !body.is_empty() {
            let id = take_varint(&mut body).ok_or(Code::FrameError)?;
            let value = take_varint(&mut body).ok_or(Code::FrameError)?;
            // RFC 9114, section 7.2.4: the same identifier must not occur more than once.
            if setting::is_of_http2(id) || seen.contains(&id) {
                return Err(Code::SettingsError);
            }
            seen.push(id);
            let flag = || if value <= 1 { Ok(value == 1) } else { Err(Code::SettingsError) };
            match id {
                setting::FIELD_SECTION => settings.field_section = Some(value),
                setting::QPACK_TABLE => settings.qpack_table = value,
                setting::QPACK_BLOCKED => settings.qpack_blocked = value,
                // RFC 8441, section 3 and RFC 9297, section 2.1.1.
                setting::CONNECT => settings.connect = flag()?,
                setting::DATAGRAM => settings.datagrams = flag()?,
                setting::WT_MAX_SESSIONS | setting::WT_MAX_SESSIONS_13 => settings.sessions = value,
                setting::WT_ENABLE | setting::WT_ENABLE_15 => {
                    settings.sessions = settings.sessions.max(u64::from(value > 0));
                }
                _ => {}
            }
        }
        Ok(settings)
    }
}

/// The largest number of variable length (RFC 9000, section 16).
pub const MAX_VARINT: u64 = (1 << 62) - 1;

/// Bytes a number takes.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends a number; one that is too large is written as the largest.
pub fn put_varint(out: &mut BytesMut, value: u64) {
    let value = value.min(MAX_VARINT);
    match varint_len(value) {
        1 => out.put_uint(value, 1),
        2 => out.put_uint(value | 0x4000, 2),
        4 => out.put_uint(value | 0x8000_0000, 4),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Reads a number at the beginning and takes it off; `None` if there is not all of it.
pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let length = 1_usize << (first >> 6);
    let (number, rest) = bytes.split_at_checked(length)?;
    let value = number.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    *bytes = rest;
    // The two highest bits say how long it is.
    Some(value & (u64::MAX >> (66 - 8 * length.min(8))))
}

/// Appends the header of a frame.
pub fn put_frame(out: &mut BytesMut, kind: u64, length: usize) {
    put_varint(out, kind);
    put_varint(out, length as u64);
}

/// Bytes that a frame's header can have.
pub const FRAME_HEADER: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_of_the_specification() {
        // RFC 9000, appendix A.1.
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            let mut read = bytes;
            assert_eq!(take_varint(&mut read), Some(value));
            assert!(read.is_empty());
            let mut cut = &bytes[..bytes.len() - 1];
            assert_eq!(take_varint(&mut cut), None);
        }
    }

    #[test]
    fn settings_that_must_not_be_are_refused() {
        for (body, code) in [
            (&[0x06, 0x10, 0x06, 0x11][..], Code::SettingsError),
            (&[0x02, 0x01], Code::SettingsError),
            (&[0x04, 0x00], Code::SettingsError),
            (&[0x08, 0x02], Code::SettingsError),
            (&[0x33, 0x02], Code::SettingsError),
            (&[0x06], Code::FrameError),
            (&[0x06, 0x40], Code::FrameError),
        ] {
            assert_eq!(Settings::decode(body), Err(code), "{body:x?}");
        }
        assert_eq!(Settings::decode(&[0x21, 0x07]), Ok(Settings::default()), "greasing is passed over");
    }

    #[test]
    fn settings_come_back_as_they_went() {
        let sent = Settings {
            field_section: Some(65_536),
            connect: true,
            datagrams: true,
            sessions: 1,
            ..Settings::default()
        };
        let mut out = BytesMut::new();
        sent.encode(&mut out);
        let mut read = &out[..];
        assert_eq!(take_varint(&mut read), Some(frame::SETTINGS));
        assert_eq!(take_varint(&mut read), Some(read.len() as u64));
        assert_eq!(Settings::decode(read), Ok(sent));
    }

    proptest! {
        #[test]
        fn numbers_come_back(value in 0..=MAX_VARINT) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(take_varint(&mut &out[..]), Some(value));
        }

        #[test]
        fn any_bytes_are_settings_or_a_mistake(bytes: Vec<u8>) {
            let _read = Settings::decode(&bytes);
        }
    }
}
