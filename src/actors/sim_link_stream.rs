//! Stream links: two ends joined by reliable, ordered bytes that come late, in pieces, at a rate, or not at all.
//!
//! Modelled on a TCP connection of the kernel: each direction holds at most so many bytes that are written and not
//! read, and a writer waits at that bound; a direction ends on its own (half-close); a reset takes what is unread with
//! it. Simpler than TCP: room made by a reader is known to the writer at once, not one delay later. Loss, duplication,
//! corruption and reordering of [`Faults`] do not apply.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::clock;
use super::sim_link::{Alarm, Faults, park, wake};
use super::sim_link_stream_way::{Link, OneWay, Side, Step, reset_error};
use super::sim_random::Random;

/// A stream of two ends, each direction with its own faults; the same seed gives the same delays and cuts.
///
/// Each direction holds at most `buffer_bytes` that are written and not read (at least one byte); a writer that finds
/// no room waits.
#[must_use]
pub fn stream_link(seed: u64, a_to_b: Faults, b_to_a: Faults, buffer_bytes: usize) -> (StreamPlug, StreamPlug) {
    let mut random = Random::new(seed);
    let link = Link {
        forth: OneWay::new(a_to_b, &mut random, buffer_bytes.max(1)),
        back: OneWay::new(b_to_a, &mut random, buffer_bytes.max(1)),
    };
    let link = Arc::new(Mutex::new(link));
    let (a, b) = (Handle { link: link.clone(), side: Side::A }, Handle { link, side: Side::B });
    (StreamPlug { end: End(a) }, StreamPlug { end: End(b) })
}

/// One end of a stream, not in use yet: it may go to another thread.
///
/// Dropping it is the same as dropping the [`Stream`].
#[derive(Debug)]
pub struct StreamPlug {
    end: End,
}

impl StreamPlug {
    /// Takes the end into use, on the thread that will read and write it.
    #[must_use]
    pub fn open(self) -> Stream {
        Stream { end: self.end, read_alarm: Alarm::default(), write_alarm: Alarm::default() }
    }

    /// A handle on this end that stays with the test.
    #[must_use]
    pub fn control(&self) -> StreamControl {
        StreamControl { end: self.end.0.clone() }
    }
}

/// One end of a stream, in use on this thread; read and written through tokio's traits.
///
/// Dropping it while bytes that arrived are unread resets the stream; otherwise the other end reads what is under way
/// and then the end of the stream, and a reset follows if it goes on writing.
///
/// Reading fails with `ConnectionReset` after a reset. So does writing, and writing after a shutdown fails with
/// `BrokenPipe`. Only the task that polled last is woken, one for reading and one for writing.
#[derive(Debug)]
pub struct Stream {
    end: End,
    read_alarm: Alarm,
    write_alarm: Alarm,
}

impl Stream {
    /// Breaks the stream: here at once, at the other end after the delay of that direction, ahead of what is under
    /// way. What is unread by then is lost.
    pub fn reset(&self) {
        self.end.0.reset();
    }

    /// With `true` this end takes no more bytes: reads wait, and so does the writer at the other end once it has
    /// filled the buffer. A reset still gets through.
    pub fn stall(&self, stalled: bool) {
        self.end.0.stall(stalled);
    }

    /// A handle on this end that stays with the test.
    #[must_use]
    pub fn control(&self) -> StreamControl {
        StreamControl { end: self.end.0.clone() }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.end.0.read(cx, buf) {
                Step::Done(answer) => {
                    self.read_alarm.clear();
                    return Poll::Ready(answer);
                }
                Step::Wait(until) if self.read_alarm.poll(until, cx).is_pending() => return Poll::Pending,
                Step::Wait(_) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.end.0.write(cx, bufs) {
                Step::Done(answer) => {
                    self.write_alarm.clear();
                    return Poll::Ready(answer);
                }
                Step::Wait(until) if self.write_alarm.poll(until, cx).is_pending() => return Poll::Pending,
                Step::Wait(_) => {}
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Always ready: what is written is under way.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this direction, behind all that is written; the other one goes on.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end.0.shutdown())
    }
}

/// Watches and disturbs one end of a stream while others use it. It does not keep the end open.
///
/// Use it where the clock of the ends rules: [`reset`](Self::reset) reads the time.
#[derive(Debug, Clone)]
pub struct StreamControl {
    end: Handle,
}

impl StreamControl {
    /// See [`Stream::reset`].
    pub fn reset(&self) {
        self.end.reset();
    }

    /// See [`Stream::stall`].
    pub fn stall(&self, stalled: bool) {
        self.end.stall(stalled);
    }

    /// Changes the faults of both directions, for what is written from now on: `outward` from this end, `inward` to
    /// it.
    pub fn set_faults(&self, outward: Faults, inward: Faults) {
        let mut link = self.end.link.lock();
        let (out, back) = link.ways(self.end.side);
        (out.faults, back.faults) = (outward, inward);
    }

    /// Bytes written at the other end and not read at this one, under way included.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.end.link.lock().ways(self.end.side).1.held
    }
}

#[derive(Clone)]
struct Handle {
    link: Arc<Mutex<Link>>,
    side: Side,
}

impl Handle {
    fn read(&self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Step<io::Result<()>> {
        let (step, _replaced, writer) = {
            let mut link = self.link.lock();
            let (_, way) = link.ways(self.side);
            let held = way.held;
            match way.take(clock::now(), buf) {
                Step::Done(answer) if way.held < held => (Step::Done(answer), None, way.writer.take()),
                Step::Done(answer) => (Step::Done(answer), None, None),
                Step::Wait(until) => (Step::Wait(until), park(&mut way.reader, cx), None),
            }
        };
        wake([writer]);
        step
    }

    fn write(&self, cx: &Context<'_>, bufs: &[IoSlice<'_>]) -> Step<io::Result<usize>> {
        let now = clock::now();
        let (step, _replaced, reader) = {
            let mut link = self.link.lock();
            let (out, way_in) = link.ways(self.side);
            if way_in.is_cut(now) {
                (Step::Done(Err(reset_error())), None, None)
            } else if out.end.is_some() {
                (Step::Done(Err(io::ErrorKind::BrokenPipe.into())), None, None)
            } else if bufs.iter().all(|part| part.is_empty()) {
                (Step::Done(Ok(0)), None, None)
            } else if out.room() == 0 {
                (Step::Wait(way_in.cut), park(&mut out.writer, cx), None)
            } else {
                let idle = out.flight.is_empty();
                let written = out.accept(now, bufs);
                if out.hung_up {
                    // Nobody is there: the first bytes to arrive are answered by a reset.
                    if let Some(first) = std::mem::take(&mut out.flight).front() {
                        way_in.cut_at(clock::later(first.arrival, way_in.faults.delay));
                    }
                    // This end may be waiting to read, in another task.
                    (Step::Done(Ok(written)), None, way_in.reader.take())
                } else {
                    (Step::Done(Ok(written)), None, if idle { out.reader.take() } else { None })
                }
            }
        };
        wake([reader]);
        step
    }

    fn shutdown(&self) -> io::Result<()> {
        let now = clock::now();
        let reader = {
            let mut link = self.link.lock();
            let (out, way_in) = link.ways(self.side);
            if way_in.is_cut(now) {
                return Err(reset_error());
            }
            out.finish(now);
            out.reader.take()
        };
        wake([reader]);
        Ok(())
    }

    fn reset(&self) {
        let now = clock::now();
        let waiting = {
            let mut link = self.link.lock();
            let (out, way_in) = link.ways(self.side);
            way_in.cut_at(now);
            let arrival = clock::later(now, out.faults.delay);
            out.cut_at(arrival);
            [out.reader.take(), out.writer.take(), way_in.reader.take(), way_in.writer.take()]
        };
        wake(waiting);
    }

    fn stall(&self, stalled: bool) {
        let reader = {
            let mut link = self.link.lock();
            let (_, way_in) = link.ways(self.side);
            way_in.stalled = stalled;
            way_in.reader.take()
        };
        wake([reader]);
    }

    fn hang_up(&self) {
        let now = clock::now();
        let (waiting, _unread) = {
            let mut link = self.link.lock();
            let (out, way_in) = link.ways(self.side);
            let first = way_in.flight.front().map(|segment| segment.arrival);
            way_in.hung_up = true;
            let unread = std::mem::take(&mut way_in.flight);
            out.finish(now);
            if let Some(arrival) = first {
                let answered = clock::later(arrival.max(now), out.faults.delay);
                out.cut_at(answered);
            }
            ([out.reader.take(), out.writer.take(), way_in.reader.take(), way_in.writer.take()], unread)
        };
        wake(waiting);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Handle");
        out.field("side", &self.side);
        if let Some(mut link) = self.link.try_lock() {
            let (way_out, way_in) = link.ways(self.side);
            out.field("unsent_or_unread_there", &way_out.held).field("unread_here", &way_in.held);
        }
        out.finish_non_exhaustive()
    }
}

/// What closes its side of the link when dropped.
#[derive(Debug)]
struct End(Handle);

impl Drop for End {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

#[cfg(test)]
#[path = "sim_link_stream_tests.rs"]
mod tests;
