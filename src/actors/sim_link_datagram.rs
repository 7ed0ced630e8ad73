//! Datagram links: two ends that lose, delay, double, damage and reorder what they carry, as a path of UDP does.
//!
//! What is sent goes into the set of datagrams under way with the instant of its arrival; it moves to the receive
//! buffer when somebody next looks at the link. Only a look can take something out, so that is as exact as moving it
//! at its very instant. Sending never waits: what finds no room is dropped and counted.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, io};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::ReadBuf;

use super::clock;
use super::sim_link::{Alarm, Faults, park, wake};
use super::sim_link_datagram_way::{OneWay, Stats};
use super::sim_random::Random;

/// The longest payload of UDP over IPv4.
const LONGEST: usize = 65_507;
/// A link of two ends, each direction with its own faults; the same seed gives the same fates.
#[must_use]
pub fn datagram_link(seed: u64, a_to_b: Faults, b_to_a: Faults) -> (DatagramPlug, DatagramPlug) {
    let mut random = Random::new(seed);
    let forth = Arc::new(Mutex::new(OneWay::new(a_to_b, random.fork())));
    let back = Arc::new(Mutex::new(OneWay::new(b_to_a, random.fork())));
    let a = Ways { out: forth.clone(), inward: back.clone() };
    let b = Ways { out: back, inward: forth };
    (DatagramPlug { end: End(a) }, DatagramPlug { end: End(b) })
}

/// One end of a datagram link, not in use yet: it may go to another thread.
///
/// Dropping it is dropping the end: what is sent to it from then on is lost.
#[derive(Debug)]
pub struct DatagramPlug {
    end: End,
}

impl DatagramPlug {
    /// Bounds the receive buffer of this end: `messages` datagrams and `bytes` of payload (unless told: 4096 and
    /// 212,992). What arrives and does not fit is dropped and counted.
    #[must_use]
    pub fn receive_buffer(self, messages: usize, bytes: usize) -> Self {
        {
            let mut inward = self.end.0.inward.lock();
            (inward.most_messages, inward.most_bytes) = (messages, bytes);
        }
        self
    }

    /// Takes the end into use, on the thread that will read it.
    #[must_use]
    pub fn open(self) -> DatagramSocket {
        DatagramSocket { end: self.end, alarm: Alarm::default() }
    }

    /// A handle on the link that stays with the test.
    #[must_use]
    pub fn control(&self) -> DatagramControl {
        DatagramControl { ways: self.end.0.clone() }
    }
}

/// One end of a datagram link, in use on this thread.
///
/// Like a connected UDP socket: it hears nothing when the other end is dropped, and waits.
#[derive(Debug)]
pub struct DatagramSocket {
    end: End,
    alarm: Alarm,
}

impl DatagramSocket {
    /// Sends one datagram. It is always ready: a datagram that finds no room, or is too long for the path, is dropped
    /// and counted.
    ///
    /// # Errors
    /// `InvalidInput` if it has more than 65,507 bytes.
    pub fn poll_send(&self, _cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        Poll::Ready(self.try_send(datagram))
    }

    /// Receives one datagram and says how long it is; what does not fit into `buf` is cut off.
    ///
    /// Only the task that polled last is woken.
    ///
    /// # Errors
    /// None at present.
    pub fn poll_recv(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        self.poll_take(cx).map(|datagram| {
            let fits = datagram.len().min(buf.remaining());
            buf.put_slice(datagram.get(..fits).unwrap_or_default());
            Ok(fits)
        })
    }

    /// Sends one datagram, without waiting.
    ///
    /// # Errors
    /// See [`Self::poll_send`].
    pub fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        if datagram.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a datagram has at most 65,507 bytes"));
        }
        let reader = self.end.0.out.lock().send(clock::now(), datagram);
        wake([reader]);
        Ok(())
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// See [`Self::poll_send`].
    pub async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        poll_fn(|cx| self.poll_send(cx, datagram)).await
    }

    /// Waits for one datagram; see [`Self::poll_recv`].
    ///
    /// # Errors
    /// None at present.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        poll_fn(|cx| self.poll_recv(cx, &mut buf)).await
    }

    /// What became of the datagrams that this end sent.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.end.0.out.lock().stats
    }

    /// A handle on the link that stays with the test.
    #[must_use]
    pub fn control(&self) -> DatagramControl {
        DatagramControl { ways: self.end.0.clone() }
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            let (datagram, next, _replaced) = {
                let mut inward = self.end.0.inward.lock();
                inward.settle(clock::now());
                match inward.take() {
                    Some(datagram) => (Some(datagram), None, None),
                    None => (None, inward.next_arrival(), park(&mut inward.reader, cx)),
                }
            };
            if let Some(datagram) = datagram {
                self.alarm.clear();
                return Poll::Ready(datagram);
            }
            if self.alarm.poll(next, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// Watches and changes a datagram link while others use its ends. It does not keep them open.
#[derive(Clone)]
pub struct DatagramControl {
    ways: Ways,
}

impl DatagramControl {
    /// What became of the datagrams that the end sent from which this handle is.
    #[must_use]
    pub fn sent(&self) -> Stats {
        self.ways.out.lock().stats
    }

    /// What became of the datagrams that were sent to it.
    #[must_use]
    pub fn received(&self) -> Stats {
        self.ways.inward.lock().stats
    }

    /// Changes the faults of both directions, for what is sent from now on: `outward` from the end from which this
    /// handle is, `inward` to it. Loss of 1.0 both ways is a network that is split.
    pub fn set_faults(&self, outward: Faults, inward: Faults) {
        self.ways.out.lock().faults = outward;
        self.ways.inward.lock().faults = inward;
    }
}

impl fmt::Debug for DatagramControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramControl").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Ways {
    out: Arc<Mutex<OneWay>>,
    inward: Arc<Mutex<OneWay>>,
}

/// What ends the reading of one direction when dropped.
struct End(Ways);

impl Drop for End {
    fn drop(&mut self) {
        let reader = self.0.inward.lock().hang_up();
        drop(reader);
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("End");
        if let Some(inward) = self.0.inward.try_lock() {
            out.field("under_way", &inward.flight.len()).field("unread", &inward.inbox.len());
        }
        out.finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "sim_link_datagram_tests.rs"]
mod tests;
