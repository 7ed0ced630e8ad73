//! Datagram links: two ends that lose, delay, double, damage and reorder what they carry, as a path of UDP does.
//!
//! What is sent goes into the set of datagrams under way with the instant of its arrival; it moves to the receive
//! buffer when somebody next looks at the link. Only a look can take something out, so that is as exact as moving it
//! at its very instant. Sending never waits: what finds no room is dropped and counted.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use std::{fmt, io};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::ReadBuf;

use super::clock;
use super::sim_link::{Alarm, Faults, Pacer, park, wake};
use super::sim_random::Random;

/// The longest payload of UDP over IPv4.
const LONGEST: usize = 65_507;
/// Datagrams under way in one direction; a limit against a sender that never lets time pass.
const UNDER_WAY: usize = 65_536;
/// The receive buffer, unless the plug says otherwise; Linux gives a socket as many bytes.
const RECEIVE_MESSAGES: usize = 4_096;
const RECEIVE_BYTES: usize = 212_992;

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

/// What became of the datagrams of one direction.
///
/// `sent + duplicated = delivered + lost + dropped_full + dropped_mtu`, plus what is under way or waits to be read.
/// What happens on arrival is counted when the link is next sent on or read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Datagrams given to the link.
    pub sent: u64,
    /// Datagrams read at the other end.
    pub delivered: u64,
    /// Payload bytes read at the other end, or cut off there by a buffer that was too short.
    pub bytes: u64,
    /// Datagrams that vanished, by chance or because the other end was gone.
    pub lost: u64,
    /// Second copies made.
    pub duplicated: u64,
    /// Datagrams and copies with a flipped bit.
    pub corrupted: u64,
    /// Datagrams and copies that arrived after one that was sent later.
    pub reordered: u64,
    /// Dropped for want of room: at the rate limit, under way, or in the receive buffer.
    pub dropped_full: u64,
    /// Dropped for being longer than the path takes.
    pub dropped_mtu: u64,
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

struct OneWay {
    faults: Faults,
    random: Random,
    pacer: Pacer,
    /// By arrival; the number tells apart what arrives at the same instant, in the order of sending.
    flight: BTreeMap<(Instant, u64), Parcel>,
    entered: u64,
    /// The latest sent of those that arrived.
    latest: u64,
    inbox: VecDeque<Bytes>,
    inbox_bytes: usize,
    most_messages: usize,
    most_bytes: usize,
    stats: Stats,
    reader: Option<Waker>,
    hung_up: bool,
}

struct Parcel {
    number: u64,
    bytes: Bytes,
}

impl OneWay {
    fn new(faults: Faults, random: Random) -> Self {
        Self {
            faults,
            random,
            pacer: Pacer::default(),
            flight: BTreeMap::new(),
            entered: 0,
            latest: 0,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            most_messages: RECEIVE_MESSAGES,
            most_bytes: RECEIVE_BYTES,
            stats: Stats::default(),
            reader: None,
            hung_up: false,
        }
    }

    /// Sends on its way what survives; gives back the reader if it has to look earlier than it thought.
    fn send(&mut self, now: Instant, datagram: &[u8]) -> Option<Waker> {
        self.settle(now);
        self.stats.sent += 1;
        // All draws are made before anything is decided, so that one fault does not shift another's.
        let mut dice = self.random.fork();
        let (lost, doubled) = (dice.chance(self.faults.loss), dice.chance(self.faults.duplicate));
        let (mut first, mut second) = (dice.fork(), dice.fork());

        if self.faults.mtu.is_some_and(|most| datagram.len() > most) {
            self.stats.dropped_mtu += 1;
            return None;
        }
        let mut left = now;
        if let Some(rate) = self.faults.rate {
            let waiting = self.pacer.backlog(rate, now);
            if waiting > 0 && waiting.saturating_add(datagram.len()) > self.faults.queue {
                self.stats.dropped_full += 1;
                return None;
            }
            left = self.pacer.pass(rate, now, datagram.len());
        }
        if lost || self.hung_up {
            self.stats.lost += 1;
            return None;
        }
        let before = self.next_arrival();
        let bytes = Bytes::copy_from_slice(datagram);
        if doubled {
            self.stats.duplicated += 1;
            self.launch(left, bytes.clone(), &mut first);
            self.launch(left, bytes, &mut second);
        } else {
            self.launch(left, bytes, &mut first);
        }
        let after = self.next_arrival();
        if after != before { self.reader.take() } else { None }
    }

    /// Puts one copy under way.
    fn launch(&mut self, left: Instant, mut bytes: Bytes, dice: &mut Random) {
        if self.flight.len() >= UNDER_WAY {
            self.stats.dropped_full += 1;
            return;
        }
        let (damaged, held_back) = (dice.chance(self.faults.corrupt), dice.chance(self.faults.reorder));
        let (mut jitter_dice, mut bit_dice) = (dice.fork(), dice.fork());
        if damaged && !bytes.is_empty() {
            bytes = flip_one_bit(&bytes, &mut bit_dice);
            self.stats.corrupted += 1;
        }
        let mut arrival = clock::later(left, self.faults.delay);
        arrival = clock::later(arrival, self.faults.draw_jitter(&mut jitter_dice));
        if held_back {
            arrival = clock::later(arrival, self.faults.reorder_by);
        }
        self.entered += 1;
        let parcel = Parcel { number: self.stats.sent, bytes };
        self.flight.insert((arrival, self.entered), parcel);
    }

    /// Moves what has arrived by `now` to the receive buffer.
    fn settle(&mut self, now: Instant) {
        while let Some(entry) = self.flight.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let Parcel { number, bytes } = entry.remove();
            if number < self.latest {
                self.stats.reordered += 1;
            }
            self.latest = self.latest.max(number);
            let too_many = self.inbox.len() >= self.most_messages;
            if too_many || self.inbox_bytes.saturating_add(bytes.len()) > self.most_bytes {
                self.stats.dropped_full += 1;
            } else {
                self.inbox_bytes += bytes.len();
                self.inbox.push_back(bytes);
            }
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let bytes = self.inbox.pop_front()?;
        self.inbox_bytes -= bytes.len();
        self.stats.delivered += 1;
        self.stats.bytes += bytes.len() as u64;
        Some(bytes)
    }

    fn next_arrival(&self) -> Option<Instant> {
        self.flight.first_key_value().map(|(key, _)| key.0)
    }

    /// The reading end is gone: all that is not read is lost.
    fn hang_up(&mut self) -> Option<Waker> {
        self.hung_up = true;
        self.stats.lost += (self.flight.len() + self.inbox.len()) as u64;
        self.flight.clear();
        self.inbox.clear();
        self.inbox_bytes = 0;
        self.reader.take()
    }
}

fn flip_one_bit(bytes: &[u8], dice: &mut Random) -> Bytes {
    let bit = dice.below(bytes.len() as u64 * 8) as usize;
    let mut bytes = BytesMut::from(bytes);
    if let Some(byte) = bytes.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
    bytes.freeze()
}
