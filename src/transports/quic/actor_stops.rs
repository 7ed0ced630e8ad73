//! Streams that one end wants no more of: stops of the peer found and told, stops of this end carried out, and such
//! streams brought to an end in QUIC, which keeps some of them for ever if nobody asks for them again. As long as it
//! keeps one of the peer's, the peer may open one less.

use super::actor_engine::Engine;
use super::session::{Event, StreamError, StreamId, StreamKind};
use bytes::Bytes;

use super::actor_streams::Receive;

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// Stops of the peer that were looked for.
    stops: u64,
    /// Resets of the peer that were counted.
    resets: u64,
    /// Bidirectional streams that this end reads no more, and whose end has not come.
    unread: Vec<StreamId>,
}

impl Engine {
    /// quiche says nothing of a stop for a stream that it has reported as writable and that was not written since. So
    /// the streams are looked through whenever it has counted one.
    pub(super) fn look_for_stopped(&mut self) {
        // Only a packet can bring one, and to ask costs a walk over the streams.
        if !std::mem::replace(&mut self.heard, false) {
            return;
        }
        self.forget_unread();
        let stats = self.quic.stats();
        let resets = stats.reset_stream_count_remote;
        self.reset |= std::mem::replace(&mut self.stops.resets, resets) != resets;
        let stops = stats.stopped_stream_count_remote;
        if std::mem::replace(&mut self.stops.stops, stops) == stops {
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "sorted below")]
        let mut open: Vec<StreamId> =
            self.streams.iter().filter(|(_, s)| s.send.is_some()).map(|(id, _)| *id).collect();
        open.sort_unstable();
        for stream in open {
            match self.quic.stream_capacity(stream.0) {
                Err(quiche::Error::StreamStopped(code)) => self.stopped(stream, code),
                // Forgotten before it was ended here: it was stopped, and all of it acknowledged by the same packet.
                // The code is lost with it.
                Err(quiche::Error::InvalidStreamState(_)) => self.stopped(stream, 0),
                Ok(_) | Err(_) => {}
            }
        }
        // One that was ended here before it was stopped is kept by quiche until it has been asked for.
        self.look_for_leaving();
    }

    /// The peer wants no more of a stream.
    pub(super) fn stopped(&mut self, stream: StreamId, code: u64) {
        if !self.is_writable(stream) {
            return;
        }
        let cancelled = self.sending.cancel(stream.0);
        self.fail(stream, cancelled, StreamError::Stopped(code));
        self.events.push_back(Event::Stopped(stream, code));
    }

    /// Reads no more of a stream, and tells the peer, unless all of it is here.
    pub(super) fn stop_reading(&mut self, stream: StreamId, code: u64) {
        // What has come is dropped here: quiche would keep a stream for ever whose end is among it.
        loop {
            match self.quic.stream_discard(stream.0, usize::MAX) {
                Ok((_, false)) => {}
                Err(quiche::Error::Done) => break,
                Ok((_, true)) | Err(_) => return,
            }
        }
        let _known = self.quic.stream_shutdown(stream.0, quiche::Shutdown::Read, code);
        self.forget_ended(stream);
    }

    /// quiche is to forget a stream that will not be read to its end there.
    pub(super) fn forget_ended(&mut self, stream: StreamId) {
        if stream.kind() == StreamKind::Bidirectional {
            self.stops.unread.push(stream);
        }
    }

    /// A stream that nobody reads is forgotten by quiche with an acknowledgement of this end's bytes, or never if the
    /// last of those came before the peer's end. Then the end is said once more.
    fn forget_unread(&mut self) {
        let mut unread = std::mem::take(&mut self.stops.unread);
        unread.retain(|stream| {
            let ended = self.quic.stream_finished(stream.0);
            if ended && !self.is_writable(*stream) && self.quic.stream_capacity(stream.0).is_ok() {
                // Refused by a stream that was reset, whose acknowledgement is under way.
                let _repeated = self.quic.stream_send_zc(stream.0, Bytes::new(), true);
            }
            !ended
        });
        self.stops.unread = unread;
    }

    /// Of a stream of the peer that nobody reads yet: whether the peer has given it up. Then this end gives it up too,
    /// since nobody will.
    pub(super) fn is_given_up_unread(&mut self, stream: StreamId) -> bool {
        // Readable without a byte: a reset, or an end alone.
        if self.quic.stream_readable_len(stream.0, 1) > 0 || !self.quic.stream_readable(stream.0) {
            return false;
        }
        match self.quic.stream_recv(stream.0, &mut [0]) {
            Err(quiche::Error::StreamReset(code)) => {
                self.events.push_back(Event::Reset(stream, code));
                if self.is_writable(stream) {
                    self.give_up_stream(stream, code, StreamError::Finished);
                }
                self.end_receive(stream);
                true
            }
            Ok((_, fin)) => {
                if fin && let Some(s) = self.streams.get_mut(&stream) {
                    s.receive = Receive::AtEnd;
                }
                false
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
#[path = "stops_tests.rs"]
mod tests;
