//! A QUIC server: binds, starts an endpoint on each arbiter, and hands out what comes in.
//!
//! What a connection is used for is decided when its handshake is done: by an [`Application`] that runs inside its
//! actor, or by whoever calls [`QuicServer::accept`]. Connections that nobody accepts wait in a bounded line; beyond it
//! they are closed with CONNECTION_REFUSED and counted. Its endpoints and that line are supervised together: each is made
//! anew when it fails, and all end when that happens too often, which `accept` answers with [`Closed`].

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::actor_endpoint::{Endpoint, Peers, Plan};
use super::actor_engine::Engine;
use super::actor_listen::Listen;
use super::actor_qlog::Log;
use super::codec_token::Secrets;
use super::handle::{Closed, Connection};
use super::handle_kept::Kept;
use super::messages::{Asked, Request, Status, ToConnection, ToEndpoint};
use super::session::{Application, Info, Session};
use super::settings::{ServerSettings, Terms};
use super::state_admission::Limits;
use crate::actors::clock::{later, now};
use crate::actors::{
    AskError, Budget, Control, Exit, Fault, Group as Supervised, Mail, Mesh, Permit, Place, Protocol, Reply,
    SpawnError, Spec, Strategy, Turn,
};
use crate::memory::{Secret, Snapshot};
use crate::transports::tls;
use crate::transports::udp::{Group, GroupError};

/// How long one endpoint or connection has to answer a question about itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// Messages an endpoint's mailbox takes beside those of its connections, and bytes forwarded by other arbiters.
const INBOX: usize = 4_096;
const INBOX_BYTES: usize = 8 << 20;
/// Messages each connection may have on the way to its endpoint at once.
const EACH: usize = 4;
/// Longer than connections go on, mostly.
pub(super) const A_DAY: Duration = Duration::from_secs(86_400);
/// Connections on each arbiter for whose messages there is room, at least: so many a reload may allow.
const MOST: usize = 100_000;
/// Those who may wait for a connection at once.
const ACCEPTING: usize = 1_024;

/// Decides what a connection is used for: an application inside it, or nothing, which leaves it to `accept`.
pub type Applications = Arc<dyn Fn(&Info) -> Option<Box<dyn Application>> + Send + Sync>;

/// Why no server was started.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// Its port.
    Bind(GroupError),
    /// Its certificates, or what else TLS is told.
    Tls(tls::TlsError),
    /// QUIC refuses the settings.
    Settings,
    /// The mesh takes no new actors.
    Spawn(SpawnError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::Settings => f.write_str("QUIC refuses the settings"),
            Self::Spawn(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// Where connections go that have come in.
pub(super) struct Arrivals {
    applications: Option<Applications>,
    backlog: Mail<ToBacklog>,
}

impl Arrivals {
    pub(super) fn application(&self, engine: &Engine) -> Option<Box<dyn Application>> {
        self.applications.as_ref().and_then(|applications| applications(&engine.info()))
    }

    /// False if too many wait already.
    pub(super) fn hand_over(&self, connection: Connection) -> bool {
        self.backlog.tell(ToBacklog::Arrived(connection)).is_ok()
    }
}

/// A running server. Clones share it; dropping the last stops nothing.
#[derive(Clone)]
pub struct QuicServer {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Vec<Mail<ToEndpoint>>,
    backlog: Mail<ToBacklog>,
    local: SocketAddr,
    steered: bool,
    /// Generations that were begun.
    generation: AtomicU64,
    terms: Snapshot<Arc<Terms>>,
    /// Connections on each arbiter for whose messages there is room.
    most: usize,
    mesh: Mesh,
}

impl fmt::Debug for QuicServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicServer").field("local", &self.inner.local).finish_non_exhaustive()
    }
}

impl QuicServer {
    /// Binds and starts. Without `applications`, all connections are for [`accept`](Self::accept).
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start(
        mesh: &Mesh,
        settings: ServerSettings,
        applications: Option<Applications>,
    ) -> Result<Self, StartError> {
        // Once here, so that what cannot work fails before anything is bound.
        let builder = settings.tls.builder().map_err(StartError::Tls)?;
        settings.transport.check(builder).map_err(|_| StartError::Settings)?;
        let secrets = Arc::new(secrets(settings.secret.as_ref()).ok_or(StartError::Settings)?);
        let arbiters = mesh.arbiters();
        let group = Group::bind(settings.listen, arbiters, settings.steer).map_err(StartError::Bind)?;
        // One that gives up takes the others along: a port that is read in part would lose a part of all clients.
        let supervised = mesh.group(Strategy::OneForOne, Budget::default());
        let backlog = settings.backlog;
        let spec = Spec::named(settings.name.clone()).inbox(backlog.max(1) + 2 * ACCEPTING, usize::MAX);
        let scope = settings.name.clone();
        let make =
            move || Backlog { scope: scope.clone(), most: backlog, arrived: VecDeque::new(), waiting: VecDeque::new() };
        let backlog = supervised.spawn(Place::LeastLoaded, spec, make).map_err(StartError::Spawn)?;
        let arrivals = Arc::new(Arrivals { applications, backlog: backlog.clone() });
        let most = settings.limits.connections.max(MOST);
        let log = Log::of(mesh, &settings.name, &settings.transport).map_err(StartError::Spawn)?;
        let terms = Snapshot::new(Arc::new(Terms {
            generation: 1,
            tls: settings.tls,
            transport: Arc::new(settings.transport),
            limits: settings.limits,
            retry_life: settings.retry_life,
            secret: settings.secret,
            secrets: secrets.clone(),
            log,
        }));
        let plan = Plan {
            scope: settings.name,
            transport: terms.read().transport.clone(),
            group: group.clone(),
            member: 0,
            arbiters,
            connections: most,
            secrets,
            generation: 0,
            peers: Peers::default(),
            all: Arc::default(),
            serials: Arc::default(),
            budget: settings.budget,
            listen: Some(Listen { terms: terms.clone(), arrivals }),
            log: None,
        };
        let mut endpoints = Vec::with_capacity(arbiters);
        for member in 0..arbiters {
            match start_endpoint(&supervised, member, Plan { member, ..plan.clone() }) {
                Ok(mail) => endpoints.push(mail),
                Err(error) => {
                    endpoints.iter().for_each(|mail| mail.control(Control::Stop));
                    backlog.control(Control::Stop);
                    terms.read().log.iter().for_each(|log| log.end(now()));
                    return Err(StartError::Spawn(error));
                }
            }
        }
        let _first = plan.peers.set(endpoints.clone());
        let inner = Inner {
            endpoints,
            backlog,
            local: group.local_addr(),
            steered: group.steered(),
            generation: AtomicU64::new(1),
            terms,
            most,
            mesh: mesh.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// Whether the kernel hands each datagram to its arbiter; if not, they are forwarded.
    #[must_use]
    pub fn steered(&self) -> bool {
        self.inner.steered
    }

    /// Takes a connection that no application took; waits for one. A call that is given up leaves its connection for the
    /// next.
    ///
    /// # Errors
    /// [`Closed`] when the server has been stopped.
    pub async fn accept(&self) -> Result<Connection, Closed> {
        let (reply, answer) = Reply::new();
        let kept = Kept::new(answer, self.room().await?, ToBacklog::Back);
        self.room().await?.tell(ToBacklog::Next(reply)).map_err(|_| Closed)?;
        kept.answer().await
    }

    async fn room(&self) -> Result<Permit<ToBacklog>, Closed> {
        self.inner.backlog.permit(0).await.map_err(|_| Closed)
    }

    /// Uses other certificates for new connections, on all arbiters or on none; answers which generation they are.
    ///
    /// # Errors
    /// See [`tls::ReloadError`]: the old ones are in use everywhere then.
    pub async fn reload(&self, settings: Arc<tls::ServerSettings>) -> Result<u64, tls::ReloadError> {
        let now = self.inner.terms.read().clone();
        self.put_to_use(Terms { tls: settings, ..Terms::clone(&now) }).await
    }

    /// As [`reload`](Self::reload), and new connections take their transport, limits and Retry from these settings as
    /// well. What belongs to the sockets stays: name, address, `steer`, `backlog`, and of `transport` the offload and
    /// the kernel's buffers; and there is room for as many connections as it was started with, or 100,000 on each
    /// arbiter if those are more. Another secret makes new keys for Retry tokens, and tokens of before stay valid;
    /// stateless resets keep theirs until a restart, since peers were told their tokens.
    ///
    /// # Errors
    /// See [`tls::ReloadError`]: the old ones are in use everywhere then.
    pub async fn renew(&self, settings: &ServerSettings) -> Result<u64, tls::ReloadError> {
        let refused = |what: &str| tls::ReloadError::Refused(tls::TlsError::Library(what.into()));
        let builder = settings.tls.builder().map_err(tls::ReloadError::Refused)?;
        settings.transport.check(builder).map_err(|_| refused("QUIC refuses the settings"))?;
        let now = self.inner.terms.read().clone();
        let secrets = if settings.secret == now.secret {
            now.secrets.clone()
        } else {
            Arc::new(rotated(&now.secrets, settings.secret.as_ref()).ok_or_else(|| refused("no random numbers"))?)
        };
        let log = if Log::same(&settings.transport, &now.transport) {
            now.log.clone()
        } else {
            Log::of(&self.inner.mesh, &settings.name, &settings.transport)
                .map_err(|error| refused(&error.to_string()))?
        };
        let connections = settings.limits.connections.min(self.inner.most);
        self.put_to_use(Terms {
            generation: 0,
            tls: settings.tls.clone(),
            transport: Arc::new(settings.transport.clone()),
            limits: Limits { connections, ..settings.limits },
            retry_life: settings.retry_life,
            secret: settings.secret.clone(),
            secrets,
            log,
        })
        .await
    }

    async fn put_to_use(&self, terms: Terms) -> Result<u64, tls::ReloadError> {
        let inner = &*self.inner;
        let generation = inner.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let terms = Arc::new(Terms { generation, ..terms });
        let publish = || {
            // Overtaken a hundred times, it would have been by newer ones.
            let _newer =
                inner.terms.update(|now| if now.generation < generation { terms.clone() } else { now.clone() });
        };
        let before = inner.terms.read().log.clone();
        let done = tls::reload(&inner.endpoints, generation, &terms, PATIENCE * 5, ToEndpoint::Reload, publish).await;
        end_unused(before, inner.terms.read().log.as_ref(), terms.log.as_ref());
        done.map(|()| generation)
    }

    /// How each endpoint is; those that do not answer within a second are left out.
    pub async fn status(&self) -> Vec<Status> {
        status(&self.inner.endpoints).await
    }

    /// Readings of its connections, at most `most` of each arbiter; those that do not answer are left out.
    pub async fn connections(&self, most: usize) -> Vec<Info> {
        connections(&self.inner.endpoints, most).await
    }

    /// A reading of the connection whose actor has this number, if it is one of this server.
    pub async fn connection(&self, actor: u64) -> Option<Info> {
        for mail in &self.inner.endpoints {
            let Ok(mails) = mail.ask(|reply| ToEndpoint::List(usize::MAX, reply), PATIENCE).await else { continue };
            if let Some(mail) = mails.iter().find(|mail| mail.id().number() == actor) {
                let asked = mail.ask(|reply| ToConnection::Request(Request::OfStreams(Asked::Info(reply))), PATIENCE);
                return asked.await.ok();
            }
        }
        None
    }

    /// Lets nobody in any more, lets streams finish, and closes the sockets last; by `by` at the latest.
    pub fn drain(&self, by: Instant) {
        self.inner.endpoints.iter().for_each(|mail| mail.control(Control::Drain(by)));
        self.end_log(by);
        self.inner.backlog.control(Control::Stop);
    }

    /// Ends all connections now; each peer is told as far as its socket takes it. Safe while handles live elsewhere:
    /// they answer that the connection has ended.
    pub fn stop(&self) {
        self.inner.backlog.control(Control::Stop);
        self.inner.endpoints.iter().for_each(|mail| mail.control(Control::Stop));
        self.end_log(later(now(), PATIENCE));
    }

    fn end_log(&self, by: Instant) {
        if let Some(log) = &self.inner.terms.read().log {
            log.end(by);
        }
    }

    /// Waits until all its endpoints have ended.
    pub async fn stopped(&self) {
        for mail in &self.inner.endpoints {
            mail.closed().await;
        }
    }
}

pub(super) fn start_endpoint(
    supervised: &Supervised,
    arbiter: usize,
    plan: Plan,
) -> Result<Mail<ToEndpoint>, SpawnError> {
    let messages = plan.connections.saturating_mul(EACH).saturating_add(INBOX);
    let spec = Spec::named(plan.scope.clone()).inbox(messages, INBOX_BYTES);
    supervised.spawn(Place::On(arbiter), spec, move || Endpoint::new(plan.clone()))
}

/// A log that no new connection will use ends with the last of those that do.
fn end_unused(before: Option<Log>, used: Option<&Log>, refused: Option<&Log>) {
    for log in before.iter().chain(refused).filter(|log| !used.is_some_and(|used| used.is(log))) {
        log.end(later(now(), A_DAY));
    }
}

/// Keys made from a secret, or from random numbers without one.
pub(super) fn secrets(secret: Option<&Secret>) -> Option<Secrets> {
    let random = random()?;
    Secrets::new(secret.map_or(&*random, |secret| secret.expose().as_slice())).ok()
}

fn rotated(before: &Secrets, secret: Option<&Secret>) -> Option<Secrets> {
    let random = random()?;
    before.rotated(secret.map_or(&*random, |secret| secret.expose().as_slice())).ok()
}

fn random() -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let mut random = zeroize::Zeroizing::new(vec![0; 32]);
    boring::rand::rand_bytes(&mut random).ok()?;
    Some(random)
}

pub(super) async fn status(endpoints: &[Mail<ToEndpoint>]) -> Vec<Status> {
    let mut all = Vec::with_capacity(endpoints.len());
    for mail in endpoints {
        all.extend(mail.ask(ToEndpoint::Status, PATIENCE).await.ok());
    }
    all
}

pub(super) async fn connections(endpoints: &[Mail<ToEndpoint>], most: usize) -> Vec<Info> {
    let mut all = Vec::new();
    for mail in endpoints {
        let Ok(mails) = mail.ask(|reply| ToEndpoint::List(most, reply), PATIENCE).await else { continue };
        let asked: Vec<Result<Info, AskError>> = futures_util::future::join_all(
            mails
                .iter()
                .map(|mail| mail.ask(|reply| ToConnection::Request(Request::OfStreams(Asked::Info(reply))), PATIENCE)),
        )
        .await;
        all.extend(asked.into_iter().flatten());
    }
    all
}

/// What the line of connections is told.
enum ToBacklog {
    Arrived(Connection),
    Next(Reply<Connection>),
    /// An answer that nobody took.
    Back(Connection),
}

/// The line of connections that wait to be accepted.
struct Backlog {
    scope: Arc<str>,
    most: usize,
    arrived: VecDeque<Connection>,
    waiting: VecDeque<Reply<Connection>>,
}

impl Protocol for Backlog {
    type Msg = ToBacklog;
    const KIND: &'static str = "quic_backlog";

    fn on(&mut self, m: ToBacklog, turn: &mut Turn<'_, ToBacklog>) -> Result<(), Fault> {
        match m {
            ToBacklog::Arrived(connection) => self.arrived.push_back(connection),
            ToBacklog::Back(connection) => self.arrived.push_front(connection),
            ToBacklog::Next(reply) if self.waiting.len() < ACCEPTING => self.waiting.push_back(reply),
            // Dropped: whoever asked learns `Closed`.
            ToBacklog::Next(_) => {}
        }
        while !self.arrived.is_empty()
            && let Some(reply) = self.waiting.pop_front()
        {
            if let Some(connection) = self.arrived.pop_front()
                && let Err(connection) = reply.send(connection)
            {
                self.arrived.push_front(connection);
            }
        }
        while self.arrived.len() > self.most {
            if let Some(connection) = self.arrived.pop_back() {
                connection.close(0, "backlog_full");
                turn.counter("quic_connections_refused", &self.scope, "backlog_full").add(1);
            }
        }
        Ok(())
    }

    fn closed(&mut self, _: &Exit) {
        self.arrived.clear();
    }
}
