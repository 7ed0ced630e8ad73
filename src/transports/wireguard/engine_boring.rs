//! The engine on boringtun's `noise`, with what that lacks put around it.
//!
//! boringtun 0.7.1 polices neither message counts nor, by itself, the age of a session; it panics on small buffers,
//! queues packets without telling, takes a counter of 2⁶⁴ − 1 and begins again at 0, and wipes few of its keys. Each of
//! these is mended here or around here (docs/wireguard.md has the list, and what cannot be mended). It reads the clock of
//! the system itself, which is why its own timers cannot be simulated; every limit of ours takes `now`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use super::codec_keys::{PublicKey, SecretKey};
use super::codec_message::{COOKIE, INITIATION, Message, OVERHEAD, RESPONSE, sender};
use super::engine::{Authentic, Engine, EngineError, LEAST_ROOM, Opened, Rules, Sealed, Ticked};
use super::engine_wipe::Wiped;

/// Sessions that boringtun keeps side by side, by the low bits of our index.
const SLOTS: usize = 8;
/// How often timers are looked at, before jitter.
const TICK: Duration = Duration::from_millis(250);
/// By how much at most a tick is later: initiations that are sent again spread over this (whitepaper 6.1).
const JITTER: Duration = Duration::from_millis(333);
/// A handshake is not begun again before (whitepaper 6.1).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// What was sent this close to the end of a session would arrive after it: it waits for the next one.
const SEND_MARGIN: Duration = Duration::from_secs(2);
/// The largest packet a tunnel carries, as a datagram: room for whatever waits inside boringtun.
const MOST_WAITING: usize = u16::MAX as usize;
/// Bytes that packets may take while they wait.
const WAITING_BYTES: usize = 256 << 10;

/// What a session is made of.
#[derive(Debug, Clone)]
pub struct Material {
    /// Our private key.
    pub secret: SecretKey,
    /// Who the peer is.
    pub peer: PublicKey,
    /// The key both have beside.
    pub preshared: Option<SecretKey>,
    /// Seconds between keepalives; none if `None` or 0.
    pub keepalive: Option<u16>,
    /// The upper 24 bits of the indices under which the peer sends: what routes its datagrams here.
    pub index: u32,
    /// For the jitter of timers.
    pub seed: u64,
    /// Limits.
    pub rules: Rules,
}

/// The limiter inside each session lets everything pass: what comes here was judged before, and counting it twice would
/// halve the limit.
pub fn no_limit(secret: &SecretKey) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(&public_of(secret), u64::MAX))
}

fn public_of(secret: &SecretKey) -> x25519::PublicKey {
    x25519::PublicKey::from(&x25519::StaticSecret::from(*secret.bytes()))
}

/// The public key that belongs to a private one.
#[must_use]
pub fn public_key(secret: &SecretKey) -> PublicKey {
    PublicKey(public_of(secret).to_bytes())
}

/// A session on boringtun.
pub struct Boring {
    tunn: Wiped<Tunn>,
    rules: Rules,
    keepalive: bool,
    /// When the session in each slot was established, and whether we began it.
    slots: [Option<(Instant, bool)>; SLOTS],
    /// The slot that sends.
    current: Option<usize>,
    sent: u64,
    used: bool,
    rekey: bool,
    initiated: Option<Instant>,
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    next_tick: Instant,
    random: u64,
}

impl fmt::Debug for Boring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Boring")
            .field("established", &self.established())
            .field("queued", &self.queue.len())
            .finish_non_exhaustive()
    }
}

impl Boring {
    /// A session that has not begun.
    #[must_use]
    pub fn new(material: &Material, inside: Arc<RateLimiter>, now: Instant) -> Self {
        let secret = x25519::StaticSecret::from(*material.secret.bytes());
        let preshared = material.preshared.as_ref().map(|key| *key.bytes());
        let peer = x25519::PublicKey::from(material.peer.0);
        let keepalive = material.keepalive.filter(|seconds| *seconds > 0);
        let tunn = Tunn::new(secret, peer, preshared, keepalive, material.index & 0x00ff_ffff, Some(inside));
        let mut engine = Self {
            tunn: Wiped::new(tunn),
            rules: material.rules,
            keepalive: keepalive.is_some(),
            slots: [None; SLOTS],
            current: None,
            sent: 0,
            used: false,
            rekey: false,
            initiated: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            next_tick: now,
            random: material.seed,
        };
        engine.next_tick = now + engine.jittered();
        engine
    }

    /// The time to the next tick.
    fn jittered(&mut self) -> Duration {
        // splitmix64: spreads timers, guards nothing.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = (mixed >> 40) as u32;
        TICK + JITTER.mul_f64(f64::from(part) / f64::from(1 << 24))
    }

    fn slot(&self, at: Option<usize>) -> Option<(Instant, bool)> {
        at.and_then(|at| self.slots.get(at).copied().flatten())
    }

    /// The session that may send now.
    fn sends(&self, now: Instant) -> bool {
        let young = |at: Instant| now.saturating_duration_since(at) + SEND_MARGIN < self.rules.reject_after;
        self.sent < self.rules.reject_messages && self.slot(self.current).is_some_and(|(at, _)| young(at))
    }

    fn establish(&mut self, index: u32, ours: bool, now: Instant) -> usize {
        let at = index as usize % SLOTS;
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Some((now, ours));
        }
        at
    }

    /// From now on the session in this slot sends, if it is not older than the one that does.
    fn switch(&mut self, at: usize) {
        let since = |at: Option<(Instant, bool)>| at.map(|(since, _)| since);
        if self.current != Some(at) && since(self.slot(Some(at))) >= since(self.slot(self.current)) {
            self.current = Some(at);
            self.sent = 0;
            self.used = false;
            self.rekey = false;
        }
    }

    fn keep(&mut self, packet: &[u8]) -> Result<(), EngineError> {
        // A keepalive has nothing to wait for.
        if packet.is_empty() {
            return Ok(());
        }
        if self.queue.len() >= self.rules.waiting || self.queued_bytes + packet.len() > WAITING_BYTES {
            return Err(EngineError::QueueFull);
        }
        self.queued_bytes += packet.len();
        self.queue.push_back(packet.to_vec());
        Ok(())
    }

    fn encrypt(&mut self, packet: &[u8], out: &mut [u8]) -> Result<Sealed, EngineError> {
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(datagram) => match Message::parse(datagram) {
                Some(Message::Data { counter, .. }) => {
                    let length = datagram.len();
                    self.sent = counter.saturating_add(1);
                    self.used |= !packet.is_empty();
                    self.rekey |= self.sent >= self.rules.rekey_messages;
                    Ok(Sealed::Datagram(length))
                }
                // Its own timers were ahead of ours and the session is gone: the packet waits inside boringtun.
                Some(_) | None => Ok(Sealed::Waits(Some(datagram.len()))),
            },
            TunnResult::Done => Ok(Sealed::Waits(None)),
            TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Err(EngineError::Bug)
            }
        }
    }

    fn judge(&self, message: Message, now: Instant) -> Result<(), EngineError> {
        let Message::Data { receiver, counter } = message else { return Ok(()) };
        // Before boringtun sees it: its window adds one to the counter, and would begin again at 0.
        if counter >= self.rules.reject_messages {
            return Err(EngineError::SessionOver);
        }
        match self.slot(Some(receiver as usize % SLOTS)) {
            None => Err(EngineError::NoSession),
            Some((at, _)) if now.saturating_duration_since(at) >= self.rules.reject_after => {
                Err(EngineError::SessionOver)
            }
            Some(_) => Ok(()),
        }
    }

    fn forget(&mut self) -> usize {
        self.slots = [None; SLOTS];
        self.current = None;
        self.initiated = None;
        self.queued_bytes = 0;
        let dropped = self.queue.len();
        self.queue.clear();
        dropped
    }

    /// Whether the session is used, ours to renew and old enough.
    fn is_due(&self, now: Instant) -> bool {
        match self.slot(self.current) {
            Some((at, ours)) => {
                let old = ours && self.used && now.saturating_duration_since(at) >= self.rules.rekey_after;
                old || self.rekey
            }
            None => false,
        }
    }
}

fn room(out: &[u8], least: usize) -> Result<(), EngineError> {
    if out.len() < least.max(LEAST_ROOM) { Err(EngineError::Room) } else { Ok(()) }
}

fn error_of(error: &WireGuardError, message: Message) -> EngineError {
    let data = matches!(message, Message::Data { .. });
    match error {
        WireGuardError::InvalidMac => EngineError::Mac,
        WireGuardError::InvalidTai64nTimestamp | WireGuardError::WrongTai64nTimestamp => EngineError::OldInitiation,
        WireGuardError::InvalidAeadTag if data => EngineError::Tag,
        WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => EngineError::Key,
        WireGuardError::DuplicateCounter => EngineError::Replayed,
        WireGuardError::InvalidCounter => EngineError::TooLate,
        WireGuardError::InvalidPacket if data => EngineError::Inner,
        WireGuardError::InvalidPacket | WireGuardError::IncorrectPacketLength | WireGuardError::WrongPacketType => {
            EngineError::Malformed
        }
        WireGuardError::NoCurrentSession | WireGuardError::ConnectionExpired => EngineError::NoSession,
        WireGuardError::WrongIndex if data => EngineError::NoSession,
        WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => EngineError::Unexpected,
        WireGuardError::DestinationBufferTooSmall => EngineError::Room,
        WireGuardError::LockFailed | WireGuardError::UnderLoad => EngineError::Bug,
    }
}

impl Engine for Boring {
    fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Result<Sealed, EngineError> {
        room(out, packet.len() + OVERHEAD)?;
        if self.sends(now) {
            return self.encrypt(packet, out);
        }
        let kept = self.keep(packet);
        let initiation = self.initiate(out, now)?;
        if initiation.is_none() {
            kept?;
        }
        Ok(Sealed::Waits(initiation))
    }

    fn open(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> Result<(Authentic, Opened), EngineError> {
        room(out, datagram.len())?;
        let message = Message::parse(datagram).ok_or(EngineError::Malformed)?;
        self.judge(message, now)?;
        let (length, is_packet) = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::Done => (0, false),
            TunnResult::Err(error) => return Err(error_of(&error, message)),
            TunnResult::WriteToNetwork(datagram) => (datagram.len(), false),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => (packet.len(), true),
        };
        match message {
            Message::Initiation { .. } => {
                if length != RESPONSE {
                    return Err(EngineError::Bug);
                }
                let index = out.get(..length).and_then(sender).ok_or(EngineError::Bug)?;
                self.establish(index, false, now);
                Ok((Authentic::Initiation, Opened::Reply(length)))
            }
            Message::Response { receiver, .. } => {
                let at = self.establish(receiver, true, now);
                self.switch(at);
                // The keepalive that goes back is what tells the other side that it may send.
                Ok((Authentic::Response, if length > 0 { Opened::Reply(length) } else { Opened::Nothing }))
            }
            Message::Cookie { .. } => {
                // The next initiation carries it: no need to wait out the whole timeout.
                self.initiated = None;
                Ok((Authentic::Cookie, Opened::Nothing))
            }
            Message::Data { receiver, .. } => {
                self.switch(receiver as usize % SLOTS);
                self.used |= is_packet;
                Ok((Authentic::Data, if is_packet { Opened::Packet(length) } else { Opened::Nothing }))
            }
        }
    }

    fn waiting(&mut self, out: &mut [u8], now: Instant) -> Result<Option<usize>, EngineError> {
        if !self.sends(now) {
            return Ok(None);
        }
        let Some(packet) = self.queue.front() else {
            // What waits inside boringtun: keepalives of its own timers, and see `encrypt`.
            room(out, MOST_WAITING)?;
            return match self.tunn.decapsulate(None, &[], out) {
                TunnResult::WriteToNetwork(datagram) => Ok(Some(datagram.len())),
                TunnResult::Done => Ok(None),
                TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                    Err(EngineError::Bug)
                }
            };
        };
        room(out, packet.len() + OVERHEAD)?;
        let Some(packet) = self.queue.pop_front() else { return Ok(None) };
        self.queued_bytes = self.queued_bytes.saturating_sub(packet.len());
        Ok(match self.encrypt(&packet, out)? {
            Sealed::Datagram(length) => Some(length),
            Sealed::Waits(initiation) => initiation,
        })
    }

    fn initiate(&mut self, out: &mut [u8], now: Instant) -> Result<Option<usize>, EngineError> {
        room(out, INITIATION)?;
        if self.initiated.is_some_and(|at| now.saturating_duration_since(at) < REKEY_TIMEOUT) {
            return Ok(None);
        }
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(datagram) => {
                self.initiated = Some(now);
                Ok(Some(datagram.len()))
            }
            TunnResult::Done => Ok(None),
            TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Err(EngineError::Bug)
            }
        }
    }

    fn tick(&mut self, out: &mut [u8], now: Instant) -> Result<Ticked, EngineError> {
        room(out, INITIATION)?;
        if now < self.next_tick {
            return Ok(Ticked::Nothing);
        }
        for slot in &mut self.slots {
            *slot = slot.filter(|(at, _)| now.saturating_duration_since(*at) < self.rules.reject_after);
        }
        if self.slot(self.current).is_none() {
            self.current = None;
        }
        if self.is_due(now)
            && let Some(length) = self.initiate(out, now)?
        {
            return Ok(Ticked::Datagram(length));
        }
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(datagram) => {
                let length = datagram.len();
                if length == INITIATION {
                    self.initiated = Some(now);
                }
                debug_assert_ne!(length, COOKIE);
                Ok(Ticked::Datagram(length))
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.next_tick = now + self.jittered();
                let dropped = self.forget();
                // With a keepalive the peer is to be found again, however long it was away.
                if self.keepalive
                    && let Some(length) = self.initiate(out, now)?
                {
                    return Ok(Ticked::Datagram(length));
                }
                Ok(Ticked::Expired(dropped))
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {
                self.next_tick = now + self.jittered();
                Ok(Ticked::Nothing)
            }
        }
    }

    fn deadline(&self) -> Instant {
        self.next_tick
    }

    fn established(&self) -> Option<Instant> {
        self.slot(self.current).map(|(at, _)| at)
    }
}
