//! What an endpoint does with packets that belong to no connection of its: admits new ones, asks for proof of an
//! address, answers foreign versions and lost connections, and drops the rest under a counted reason.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actor_connection::Purpose;
use super::actor_endpoint::{Endpoint, Key};
use super::actor_engine::Quic;
use super::codec::{Cid, MIN_CLIENT_DCID, MIN_INITIAL, Peek, peek};
use super::codec_token::{RESET_RANDOM, TokenError, reset};
use super::messages::{Packets, ToConnection, ToEndpoint};
use super::server::Arrivals;
use super::session::Role;
use super::settings::Terms;
use super::state_admission::{Admission, Asked, Verdict};
use crate::actors::{Fault, Turn, clock};
use crate::memory::Snapshot;
use crate::transports::tls::{Generations, Reload, TlsError};
use crate::transports::udp::Transmit;

/// Answers to packets of nobody (stateless resets, version negotiations, Retries beyond admission) per second.
const ANSWERS: u32 = 100;

/// What makes an endpoint a server's.
#[derive(Clone)]
pub(super) struct Listen {
    /// What it begins with when it is made anew.
    pub(super) terms: Snapshot<Arc<Terms>>,
    pub(super) arrivals: Arc<Arrivals>,
}

/// What there is once the arbiter has built its TLS context.
pub(super) struct Door {
    contexts: Generations<Context>,
    admission: Admission,
    answers: Answers,
}

/// One generation of what new connections begin with.
struct Context {
    config: quiche::Config,
    terms: Arc<Terms>,
}

impl Context {
    fn new(terms: &Arc<Terms>) -> Result<Self, TlsError> {
        let config = terms.transport.config(terms.tls.builder()?);
        let config = config.map_err(|error| TlsError::Library(format!("QUIC: {error}")))?;
        Ok(Self { config, terms: terms.clone() })
    }
}

impl Door {
    /// The generation of certificates and settings in use.
    pub(super) const fn generation(&self) -> u64 {
        self.contexts.number()
    }

    pub(super) const fn terms(&self) -> &Arc<Terms> {
        &self.contexts.in_use().terms
    }
}

/// How many answers to strangers are left in this second.
struct Answers {
    left: u32,
    since: Instant,
}

impl Answers {
    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { left: ANSWERS, since: now };
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

impl Endpoint {
    /// Builds what is needed to let clients in.
    pub(super) fn open_listener(&mut self, turn: &Turn<'_, ToEndpoint>) -> Result<(), Fault> {
        let Some(listen) = &self.plan.listen else { return Ok(()) };
        let terms = listen.terms.read().clone();
        let context = Context::new(&terms).map_err(|error| Fault::local("tls", error.to_string()))?;
        self.door = Some(Door {
            contexts: Generations::new(terms.generation, context),
            admission: Admission::new(terms.limits, turn.now()),
            answers: Answers { left: ANSWERS, since: turn.now() },
        });
        Ok(())
    }

    pub(super) fn reload(&mut self, told: Reload<Terms>) -> Result<(), Fault> {
        let Some(door) = &mut self.door else { return Ok(()) };
        let changed = door.contexts.handle(told, Context::new);
        if changed.map_err(|error| Fault::local("tls", error.to_string()))? {
            door.admission.set_limits(door.contexts.in_use().terms.limits);
        }
        Ok(())
    }

    /// A run of packets whose connection nobody here knows.
    pub(super) fn stranger(&mut self, packets: Packets, turn: &Turn<'_, ToEndpoint>) {
        if self.plan.listen.is_none() {
            self.refuse(packets, "unknown_connection", turn);
            return;
        }
        let size = packets.len.min(packets.stride);
        let first = packets.buffer.get(..size).unwrap_or_default();
        let reason = match peek(first) {
            Ok(Peek::Short { dcid }) => self.answer_lost(Cid::of(dcid), &packets, size, turn),
            Ok(Peek::Foreign { version, dcid, scid }) => self.answer_version(version, dcid, scid, &packets, size, turn),
            Ok(Peek::Long { .. }) => "unknown_connection",
            Ok(Peek::Initial { .. }) if size < MIN_INITIAL => "short_initial",
            Ok(Peek::Initial { dcid, .. }) if dcid.len() < MIN_CLIENT_DCID => "short_id",
            Ok(Peek::Initial { .. }) if self.quiet && !self.may_answer(turn) => "closing",
            Ok(Peek::Initial { dcid, scid, token }) => {
                match self.admit(dcid, scid, token, &packets, turn) {
                    Ok(mail) => {
                        // An empty mailbox takes one run.
                        drop(mail.tell(ToConnection::Packets(packets)));
                        return;
                    }
                    Err(reason) => reason,
                }
            }
            Err(error) => error.reason(),
        };
        self.refuse(packets, reason, turn);
    }

    fn admit(
        &mut self,
        dcid: &[u8],
        scid: &[u8],
        token: &[u8],
        packets: &Packets,
        turn: &Turn<'_, ToEndpoint>,
    ) -> Result<crate::actors::Mail<ToConnection>, &'static str> {
        let scope = self.plan.scope.clone();
        let secrets = self.secrets();
        let original = if token.is_empty() {
            None
        } else {
            match secrets.verify(token, packets.from, dcid, clock::since_1970()) {
                Ok(original) => {
                    turn.counter("quic_retries", &scope, "valid").add(1);
                    Some(original)
                }
                // Another server's, or nobody's: as if there were none.
                Err(TokenError::Unknown) => None,
                Err(error) => {
                    turn.counter("quic_retries", &scope, error.reason()).add(1);
                    return Err("bad_token");
                }
            }
        };
        let asked = Asked {
            source: packets.from.ip(),
            proved: original.is_some(),
            connections: self.connections,
            half_open: self.half_open,
            delay: turn.mesh().delay(self.arbiter),
        };
        let id = self.new_id().ok_or("no_random")?;
        let token_of_reset = secrets.reset_token(&id).map_err(|_| "no_hash")?;
        let arrivals = self.plan.listen.as_ref().map(|listen| listen.arrivals.clone());
        let (Some(arrivals), Some(door)) = (arrivals, self.door.as_mut()) else { return Err("unknown_connection") };
        match door.admission.decide(&asked, turn.now()) {
            Verdict::Accept => {}
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Retry => {
                let expires = clock::since_1970() + door.terms().retry_life;
                let token = secrets.token(packets.from, dcid, id.for_retry(), expires).map_err(|_| "no_hash")?;
                self.retry(dcid, scid, &id, &token, packets);
                turn.counter("quic_retries", &scope, "sent").add(1);
                return Err("retry");
            }
        }
        let config = &mut door.contexts.used().config;
        config.set_stateless_reset_token(Some(token_of_reset));
        let ours = quiche::ConnectionId::from_ref(id.bytes());
        let (local, peer) = (packets.to, packets.from);
        let accept = |config: &mut quiche::Config| -> quiche::Result<Quic> {
            match original {
                Some(original) => quiche::accept_with_retry(
                    &ours,
                    quiche::RetryConnectionIds {
                        original_destination_cid: &quiche::ConnectionId::from_ref(original),
                        retry_source_cid: &quiche::ConnectionId::from_ref(dcid),
                    },
                    local,
                    peer,
                    config,
                ),
                None => quiche::accept_with_buf_factory(&ours, None, local, peer, config),
            }
        };
        let quic = accept(config).or_else(|error| {
            // quiche has 128 bytes for our transport parameters. After a Retry of a client with long ids (quinn's have
            // 20 bytes) they are longer; the reset token of the first id is what can be missed.
            if error != quiche::Error::BufferTooShort {
                return Err(error);
            }
            config.set_stateless_reset_token(None);
            accept(config)
        });
        let quic = quic.map_err(|_| "quic")?;
        let purpose = if self.quiet { Purpose::Refused } else { Purpose::Arrived(arrivals) };
        self.start(quic, Role::Server, id, Key::new(dcid), purpose, turn).ok_or("closing")
    }

    fn retry(&self, dcid: &[u8], scid: &[u8], id: &Cid, token: &[u8], packets: &Packets) {
        let mut answer = [0; 512];
        let written = quiche::retry(
            &quiche::ConnectionId::from_ref(scid),
            &quiche::ConnectionId::from_ref(dcid),
            &quiche::ConnectionId::from_ref(id.for_retry()),
            token,
            quiche::PROTOCOL_VERSION,
            &mut answer,
        );
        if let Ok(length) = written {
            self.answer(answer.get(..length).unwrap_or_default(), packets);
        }
    }

    /// A packet of a connection that was lost with the process before: its peer learns that.
    fn answer_lost(
        &mut self,
        id: Option<Cid>,
        packets: &Packets,
        size: usize,
        turn: &Turn<'_, ToEndpoint>,
    ) -> &'static str {
        let mut random = [0; RESET_RANDOM];
        let token = id.and_then(|id| self.secrets().reset_token(&id).ok());
        let made = boring::rand::rand_bytes(&mut random).ok().and(token).and_then(|token| reset(size, token, random));
        if let Some(answer) = made
            && self.may_answer(turn)
        {
            self.answer(&answer, packets);
            turn.counter("quic_resets_sent", &self.plan.scope, "").add(1);
        }
        "unknown_connection"
    }

    fn answer_version(
        &mut self,
        version: u32,
        dcid: &[u8],
        scid: &[u8],
        packets: &Packets,
        size: usize,
        turn: &Turn<'_, ToEndpoint>,
    ) -> &'static str {
        // RFC 9000, section 6.1: never in answer to a negotiation, nor to what is shorter than an Initial.
        if version != 0 && size >= MIN_INITIAL && self.may_answer(turn) {
            let mut answer = [0; 1_200];
            let (scid, dcid) = (quiche::ConnectionId::from_ref(scid), quiche::ConnectionId::from_ref(dcid));
            if let Ok(length) = quiche::negotiate_version(&scid, &dcid, &mut answer) {
                self.answer(answer.get(..length).unwrap_or_default(), packets);
                turn.counter("quic_version_negotiations", &self.plan.scope, "").add(1);
            }
        }
        "foreign_version"
    }

    fn may_answer(&mut self, turn: &Turn<'_, ToEndpoint>) -> bool {
        self.door.as_mut().is_some_and(|door| door.answers.take(turn.now()))
    }

    /// Sends one datagram back whence packets came. If the socket takes none, it is as if it had been lost.
    fn answer(&self, bytes: &[u8], packets: &Packets) {
        let Some(shared) = self.shared() else { return };
        let transmit = Transmit {
            destination: packets.from,
            ecn: None,
            contents: bytes,
            segment_size: None,
            src_ip: shared.answers_from_asked.then_some(packets.to.ip()),
        };
        match shared.socket.try_send(&transmit) {
            Ok(_) => {
                shared.counters.packets_out.add(1);
                shared.counters.bytes_out.add(bytes.len() as u64);
            }
            Err(_) => shared.counters.send_errors.add(1),
        }
    }
}
