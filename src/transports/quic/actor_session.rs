//! A connection's engine as the [`Session`] that applications see.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::actor_engine::{Engine, Phase};
use super::actor_streams::Receive;
use super::handle::Connection;
use super::handle_io::Duplex;
use super::session::{Door, Event, Info, OpenError, Read, Role, Session, StreamError, StreamId, StreamKind};
use super::state_datagrams::{Datagram, NotQueued};
use super::state_streams::Priority;

impl Engine {
    /// A stream has something to be read, or nothing any more.
    pub(super) fn note_unread(&mut self, stream: StreamId, unread: bool) {
        let Some(s) = self.streams.get_mut(&stream) else { return };
        match (std::mem::replace(&mut s.unread, unread), unread) {
            (false, true) => self.unread.begin(),
            (true, false) => self.unread.over(),
            (true, true) | (false, false) => {}
        }
    }

    /// Bytes that were received and not read, at most. Once in each turn.
    pub(super) fn settle_unread(&mut self) -> usize {
        if self.unread.is_due() {
            #[expect(clippy::disallowed_methods, reason = "a sum")]
            let unread = self.streams.iter().filter(|(_, s)| s.unread);
            self.unread.measure(unread.map(|(id, _)| self.quic.stream_readable_len(id.0, usize::MAX)).sum());
        }
        self.unread.settle()
    }

    /// Packets have come.
    pub(super) fn note_datagrams(&mut self) {
        self.received.full |= self.quic.is_dgram_recv_queue_full();
    }

    /// Datagrams that QUIC has dropped unread since this was last asked.
    pub(super) fn dropped_unread(&mut self) -> usize {
        if !std::mem::take(&mut self.received.full) {
            return 0;
        }
        let there = self.received.read + self.quic.dgram_recv_queue_len();
        let dropped = self.quic.stats().dgram_recv.saturating_sub(there);
        dropped - std::mem::replace(&mut self.received.dropped, dropped).min(dropped)
    }

    /// Writes bytes, all or none, and the end behind them if they are the `last`.
    fn write_bytes(&mut self, stream: StreamId, bytes: Bytes, last: bool) -> Result<(), StreamError> {
        let credit = self.credit.free();
        let send = self.writable(stream)?;
        if send.finished {
            return Err(StreamError::Finished);
        }
        let length = bytes.len();
        if length == 0 && !last {
            return Ok(());
        }
        if length > send.free().min(credit) {
            self.wanting.insert(stream);
            return Err(StreamError::Full(self.room(stream)));
        }
        let Err(bytes) = self.pass(stream, bytes, last) else { return Ok(()) };
        if length > 0 {
            // Handles on other threads take credit of the same connection.
            if !self.credit.take(length) {
                self.wanting.insert(stream);
                return Err(StreamError::Full(self.room(stream)));
            }
            if !self.writable(stream)?.take(length) {
                self.credit.give(length);
                self.wanting.insert(stream);
                return Err(StreamError::Full(self.room(stream)));
            }
            self.queue(stream, bytes, None);
        }
        if last {
            self.queue_end(stream)?;
        }
        Ok(())
    }
}

impl Session for Engine {
    fn role(&self) -> Role {
        self.role
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn alpn(&self) -> &[u8] {
        self.quic.application_proto()
    }

    fn info(&self) -> Info {
        let stats = self.quic.stats();
        let path = self.quic.path_stats().find(|path| path.active).or_else(|| self.quic.path_stats().next());
        let unknown = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        Info {
            role: self.role,
            state: self.phase.as_str(),
            arbiter: self.arbiter,
            alpn: Bytes::copy_from_slice(self.alpn()),
            server_name: self.quic.server_name().map(Into::into),
            local: path.as_ref().map_or(unknown, |path| path.local_addr),
            peer: path.as_ref().map_or(unknown, |path| path.peer_addr),
            rtt: path.as_ref().map(|path| path.rtt).unwrap_or_default(),
            window: path.as_ref().map_or(0, |path| path.cwnd),
            bandwidth: path.as_ref().and_then(|path| path.max_bandwidth),
            mtu: self.quic.max_send_udp_payload_size(),
            packets: [stats.sent as u64, stats.recv as u64, stats.lost as u64],
            bytes: [stats.sent_bytes, stats.recv_bytes, stats.lost_bytes],
            streams: self.streams.len(),
            queued: self.held(),
            resumed: self.quic.is_resumed(),
            age: self.now.saturating_duration_since(self.born),
        }
    }

    fn open(&mut self, kind: StreamKind, priority: Priority) -> Result<StreamId, OpenError> {
        if self.phase != Phase::Open {
            return Err(OpenError::Closed);
        }
        let [bidirectional, unidirectional] = &mut self.next;
        let next = match kind {
            StreamKind::Bidirectional => bidirectional,
            StreamKind::Unidirectional => unidirectional,
        };
        let stream = StreamId(*next);
        // QUIC knows a stream from its first use on; to set its priority is one.
        match self.quic.stream_priority(stream.0, priority.urgency, priority.incremental) {
            Ok(()) => {}
            Err(quiche::Error::StreamLimit) => {
                if !self.unopened.contains(&kind) {
                    self.unopened.push(kind);
                }
                return Err(OpenError::Limit);
            }
            Err(_) => return Err(OpenError::Closed),
        }
        *next += 4;
        self.add(stream, priority);
        Ok(stream)
    }

    fn room(&self, stream: StreamId) -> usize {
        let send = self.streams.get(&stream).and_then(|s| s.send.as_ref());
        send.map_or(0, |send| send.free().min(self.credit.free()))
    }

    fn want_room(&mut self, stream: StreamId) {
        if self.is_writable(stream) {
            self.wanting.insert(stream);
            self.freed |= self.room(stream) > 0;
        }
    }

    fn write(&mut self, stream: StreamId, bytes: Bytes) -> Result<(), StreamError> {
        self.write_bytes(stream, bytes, false)
    }

    fn write_last(&mut self, stream: StreamId, bytes: Bytes) -> Result<(), StreamError> {
        self.write_bytes(stream, bytes, true)
    }

    fn finish(&mut self, stream: StreamId) -> Result<(), StreamError> {
        self.write_bytes(stream, Bytes::new(), true)
    }

    fn reset(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError> {
        self.writable(stream)?;
        self.give_up_stream(stream, code, StreamError::Finished);
        Ok(())
    }

    fn read(&mut self, stream: StreamId, max: usize) -> Result<Read, StreamError> {
        if self.phase == Phase::Ended {
            return Err(StreamError::Closed);
        }
        let receive = self.streams.get(&stream).map_or(Receive::Over, |s| s.receive);
        match receive {
            Receive::Open => {}
            Receive::AtEnd => {
                self.end_receive(stream);
                self.events.push_back(Event::Finished(stream));
                return Ok(Read::End);
            }
            Receive::Over => return Err(StreamError::Unknown),
        }
        let length = self.quic.stream_readable_len(stream.0, max.max(1));
        let mut bytes = BytesMut::with_capacity(length);
        let got = if length == 0 {
            // Its end alone, a reset, or nothing.
            self.quic.stream_recv(stream.0, &mut [0])
        } else {
            self.quic.stream_recv_buf(stream.0, (&mut bytes).limit(length))
        };
        self.unread.took(bytes.len());
        if length < max {
            // All of it.
            self.note_unread(stream, false);
        }
        match got {
            Ok((_, true)) if bytes.is_empty() => {
                self.end_receive(stream);
                self.events.push_back(Event::Finished(stream));
                Ok(Read::End)
            }
            Ok((_, fin)) => {
                if fin && let Some(s) = self.streams.get_mut(&stream) {
                    s.receive = Receive::AtEnd;
                }
                if bytes.is_empty() { Ok(Read::Nothing) } else { Ok(Read::Data(bytes.freeze())) }
            }
            Err(quiche::Error::StreamReset(code)) => {
                self.end_receive(stream);
                self.events.push_back(Event::Reset(stream, code));
                Err(StreamError::Reset(code))
            }
            Err(quiche::Error::Done | quiche::Error::InvalidStreamState(_)) => Ok(Read::Nothing),
            Err(_) => Err(StreamError::Unknown),
        }
    }

    fn stop(&mut self, stream: StreamId, code: u64) -> Result<(), StreamError> {
        match self.streams.get(&stream).map(|s| s.receive) {
            Some(Receive::Open) => self.stop_reading(stream, code),
            Some(Receive::AtEnd) => {}
            Some(Receive::Over) | None => return Err(StreamError::Unknown),
        }
        self.end_receive(stream);
        Ok(())
    }

    fn hand_over(&mut self, stream: StreamId) -> Option<Duplex> {
        let receives = self.streams.get(&stream).is_some_and(|s| matches!(s.receive, Receive::Open | Receive::AtEnd));
        if receives && self.is_writable(stream) { Connection::stream(self, stream) } else { None }
    }

    fn is_open(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    fn prioritise(&mut self, stream: StreamId, priority: Priority) {
        if let Some(s) = self.streams.get_mut(&stream).filter(|s| s.send.is_some()) {
            s.priority = priority;
            self.sending.prioritise(stream.0, priority);
            // An unknown stream is made by this, hence the check before; its only failure is a limit.
            let _known = self.quic.stream_priority(stream.0, priority.urgency, priority.incremental);
        }
    }

    fn expire(&mut self, stream: StreamId, at: Option<Instant>, code: u64) {
        if let Some(s) = self.streams.get_mut(&stream).filter(|s| s.send.is_some()) {
            s.expiry_code = code;
            self.sending.open(stream.0, s.priority);
            self.sending.expire(stream.0, at);
        }
    }

    fn send_datagram(&mut self, datagram: Datagram) -> Result<(), NotQueued> {
        match self.max_datagram() {
            Some(max) if self.phase != Phase::Ended => self.datagrams.push(datagram, max),
            Some(_) | None => Err(NotQueued::TooLarge { max: 0 }),
        }
    }

    fn max_datagram(&self) -> Option<usize> {
        self.quic.dgram_max_writable_len()
    }

    fn read_datagram(&mut self) -> Option<Bytes> {
        let datagram = self.quic.dgram_recv_buf().ok();
        self.announced = datagram.is_some();
        self.received.read += usize::from(datagram.is_some());
        datagram
    }

    fn is_delivering(&mut self) -> bool {
        self.is_leaving()
    }

    fn queued(&self) -> usize {
        self.held()
    }

    fn door(&self) -> Option<Door> {
        self.origin.as_ref().map(|origin| Door::new(origin.mail.clone()))
    }

    fn close(&mut self, code: u64, text: &str) {
        self.close_with(code, text, "closed");
    }
}
