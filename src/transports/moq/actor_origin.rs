//! The way from a relay to its origin: keeps one session there, and makes another when it ends.
//!
//! The session is one of the relay's own, only that this end began it: the directory asks it for every track that nobody
//! here publishes, so a relay with an origin is an edge, and many subscriptions here are one there. While there is no
//! session, tracks that came from the origin wait for it as for any publisher, and those that are new are not to be had.
//! Connecting is tried at once, then after 100 ms, each time twice as long, up to 2 s; only a session that has held for
//! 2 s begins that anew, so that an origin that lets this end in and then refuses it is not asked without pause. That
//! counts as a failure of its server, and is warned of once until a session holds again.
//!
//! What the origin asks for is refused: nothing that is published here goes there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actor_relay::Relay;
use super::actor_session::MoqSession;
use super::actor_site::{Scope, Site};
use super::model_codes::SessionCode;
use super::model_message::Setup;
use super::model_params::Token;
use crate::actors::clock::later;
use crate::actors::{Control, Exit, Fault, Mail, Mesh, Place, Protocol, SpawnError, Spec, Turn};
use crate::transports::kit::balance::{Address, Balancer, Picked};
use crate::transports::quic::{ConnectError, Connection, QuicClient};
use crate::transports::tls;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A session that lives as long was accepted: one that is refused ends at once.
const HELD: Duration = Duration::from_secs(2);

/// How an origin is reached.
#[derive(Clone)]
pub struct OriginSettings {
    /// Makes the connection.
    pub client: QuicClient,
    /// What is said and demanded in the handshake; the name is set anew for each server. Its protocols are the drafts
    /// that are offered.
    pub tls: tls::ClientSettings,
    /// Its servers, over QUIC. One at a time is used.
    pub servers: Arc<Balancer>,
    /// The path that names the scope there. `None`: none is named.
    pub path: Option<String>,
    /// The host that names it. `None`: none is named.
    pub authority: Option<String>,
    /// What authorises this relay there.
    pub tokens: Vec<Token>,
}

impl std::fmt::Debug for OriginSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OriginSettings").field("path", &self.path).finish_non_exhaustive()
    }
}

/// An origin of a relay, until it is dropped.
pub struct Origin {
    mail: Mail<ToOrigin>,
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").finish_non_exhaustive()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.mail.control(Control::Stop);
    }
}

impl Origin {
    /// Begins to connect a relay to its origin. `name` is the scope of the counters of that session.
    ///
    /// # Errors
    /// See [`Mesh::spawn`].
    pub fn start(
        mesh: &Mesh,
        name: &Arc<str>,
        relay: &Arc<Relay>,
        settings: OriginSettings,
    ) -> Result<Self, SpawnError> {
        let (name, relay) = (name.clone(), relay.clone());
        let spec = Spec::named(format!("{name}-origin")).inbox(16, 1 << 16);
        let mail = mesh.spawn(Place::LeastLoaded, spec, move || OriginActor::new(name, relay, settings))?;
        Ok(Self { mail })
    }
}

enum ToOrigin {
    Connected(Result<Connection, ConnectError>),
    Ended(Option<String>),
}

struct OriginActor {
    name: Arc<str>,
    relay: Arc<Relay>,
    settings: OriginSettings,
    server: Option<Picked>,
    connection: Option<Connection>,
    wait: Duration,
    again: Option<Instant>,
    /// When the session that is there will have held.
    holds: Option<Instant>,
    /// It was warned that there is none.
    failing: bool,
}

impl OriginActor {
    const fn new(name: Arc<str>, relay: Arc<Relay>, settings: OriginSettings) -> Self {
        Self {
            name,
            relay,
            settings,
            server: None,
            connection: None,
            wait: FIRST_WAIT,
            again: None,
            holds: None,
            failing: false,
        }
    }

    fn connect(&mut self, turn: &mut Turn<'_, ToOrigin>) {
        let picked = self.settings.servers.pick(turn.now(), 0, &[]).ok();
        let Some((address, host)) = picked.as_ref().and_then(|picked| match picked.address() {
            Address::Quic { address, name } => Some((*address, name.clone())),
            Address::Tcp(_) | Address::Unix(_) | Address::Udp(_) | Address::Tls { .. } => None,
        }) else {
            return self.later(turn);
        };
        self.server = picked;
        let tls = Arc::new(tls::ClientSettings { name: tls::PeerName::new(&host), ..self.settings.tls.clone() });
        let setup = Setup {
            path: self.settings.path.clone(),
            authority: self.settings.authority.clone(),
            tokens: self.settings.tokens.clone(),
            relay: self.relay.identity(),
            ..Site::setup()
        };
        let scope = Scope { path: None, authority: None, relay: self.relay.clone() };
        let site = Site::over_quic(self.name.clone(), vec![scope]);
        let client = self.settings.client.clone();
        let connecting =
            async move { client.connect_as(address, tls, move |_| Box::new(MoqSession::to_origin(site, setup))).await };
        let told =
            turn.job(connecting, |connected| ToOrigin::Connected(connected.unwrap_or(Err(ConnectError::Closed))));
        if told.is_err() {
            self.later(turn);
        }
    }

    /// The session is one that the origin has accepted.
    fn held(&mut self, turn: &Turn<'_, ToOrigin>) {
        self.holds = None;
        self.wait = FIRST_WAIT;
        if let Some(server) = &self.server {
            server.succeeded(turn.now());
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!(upstream = %self.name, "the origin of a relay is back");
        }
    }

    /// There was no connection, or the session on it did not hold.
    fn failed(&mut self, why: &str, turn: &Turn<'_, ToOrigin>) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(upstream = %self.name, why, "no session with the origin of a relay");
        }
        if let Some(server) = &self.server {
            server.failed(turn.now());
        }
        self.later(turn);
    }

    fn later(&mut self, turn: &Turn<'_, ToOrigin>) {
        turn.counter("moq_origin_lost", &self.name, "").add(1);
        self.server = None;
        self.connection = None;
        self.holds = None;
        self.again = Some(later(turn.now(), self.wait));
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

impl Protocol for OriginActor {
    type Msg = ToOrigin;
    const KIND: &'static str = "moq-origin";

    fn started(&mut self, turn: &mut Turn<'_, ToOrigin>) -> Result<(), Fault> {
        self.connect(turn);
        Ok(())
    }

    fn on(&mut self, m: ToOrigin, turn: &mut Turn<'_, ToOrigin>) -> Result<(), Fault> {
        match m {
            ToOrigin::Connected(Ok(connection)) => {
                self.holds = Some(later(turn.now(), HELD));
                self.connection = Some(connection.clone());
                let ended = async move { connection.join().await.end.to_string() };
                if turn.job(ended, |end| ToOrigin::Ended(end.ok())).is_err() {
                    self.later(turn);
                }
            }
            ToOrigin::Connected(Err(error)) => {
                self.failed(&error.to_string(), turn);
            }
            // One that has held is lost, and no fault of the way there.
            ToOrigin::Ended(_) if self.holds.is_none() => self.later(turn),
            ToOrigin::Ended(end) => self.failed(end.as_deref().unwrap_or("ended"), turn),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        [self.again, self.holds].into_iter().flatten().min()
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, ToOrigin>) -> Result<(), Fault> {
        if self.again.is_some_and(|at| at <= turn.now()) {
            self.again = None;
            self.connect(turn);
        }
        if self.holds.is_some_and(|at| at <= turn.now()) {
            self.held(turn);
        }
        Ok(())
    }

    fn closed(&mut self, _: &Exit) {
        if let Some(connection) = self.connection.take() {
            connection.close(SessionCode::NoError.number(super::model::Draft::D18), "");
        }
    }
}
