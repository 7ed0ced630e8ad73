//! From a QUIC listener's configuration to its server, and where its connections go.
//!
//! Once its handshake is done a connection is let in or not, and its protocol says where it goes: an echo runs inside
//! its actor, everything else gets a session actor that relays each stream. The routes of a running listener are
//! replaced without touching its connections: they go on as they were let in.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
#[cfg(feature = "http")]
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;

use super::certificates::Certificates;
use super::config::{self, Listener, QuicService};
use super::upstreams::Upstreams;
use super::{ListenerStatus, StartError};
use crate::actors::{Driver, Fault, Mail, Mesh, Place, Progress, Protocol, Spec, Turn, shelf};
use crate::memory::{Budget, Secret, Snapshot, View};
#[cfg(feature = "http")]
use crate::transports::http::{self, OverQuic};
use crate::transports::kit::admission::{Admission, Caps, Occupancy, Refusal, Ticket};
use crate::transports::quic::{
    self as transport, Application, Applications, Closed, Connection, Echo, Event, Info, QuicServer, RetryMode, Session,
};
use crate::transports::relay::{QuicSession, REFUSED, Target};
use crate::transports::tcp::Never;
use crate::transports::tls::ReloadError;
#[cfg(feature = "http")]
use crate::transports::tls::ServerSettings;

/// What a connection takes of the memory budget before it buffers anything: QUIC's state, our actors, TLS.
const BASE_BYTES: usize = 40 << 10;
/// Connections that are awaited at once, so that one that is handed over does not hold up the next.
const AWAITED: usize = 16;
/// How HTTP/3 is called in handshakes.
#[cfg(feature = "http")]
pub(super) const H3: &[u8] = b"h3";
/// A client of HTTP from which no packet came for this long is gone, even if its listener has less patience.
#[cfg(feature = "http")]
const GONE: Duration = Duration::from_secs(120);
/// Clients on one arbiter that may be told at the same time that there are too many.
const ROOM_AT_THE_DOOR: usize = 1_024;
/// Connections on each arbiter for which a listener has room in any case.
const ROOM: usize = 100_000;
/// Fewer bytes of secret could be guessed.
const LEAST_SECRET: usize = 32;

/// A running QUIC listener. A clone is the same one.
#[derive(Clone)]
pub(super) struct QuicListener {
    pub(super) server: QuicServer,
    shared: Arc<Shared>,
}

/// What the listener's actor and its applications share.
struct Shared {
    name: Arc<str>,
    routes: Snapshot<Routes>,
    door: Mutex<Admission>,
    budget: Budget,
    occupancy: Arc<Occupancy>,
    /// What new connections begin with.
    settings: Mutex<transport::ServerSettings>,
    /// What its sockets and mailboxes were made by.
    made_by: transport::ServerSettings,
}

type Routes = BTreeMap<Vec<u8>, Way>;

/// Where connections of one protocol go.
#[derive(Debug, Clone)]
enum Way {
    Echo,
    Relay(Arc<Target>),
    #[cfg(feature = "moq")]
    Moq(Arc<crate::transports::moq::Site>),
    #[cfg(feature = "http")]
    Http(Arc<OverQuic>),
}

impl Shared {
    /// The routes as this arbiter sees them.
    fn view(self: &Arc<Self>) -> Rc<RefCell<View<Routes>>> {
        shelf(self, || RefCell::new(self.routes.view()))
    }

    fn admit(&self, from: IpAddr) -> Result<Ticket, Refusal> {
        let ticket = self.door.lock().admit(from);
        let driver = Driver::default();
        match &ticket {
            Ok(_) => driver.raise("connections_accepted", &self.name, ""),
            Err(refusal) => driver.raise("connections_refused", &self.name, refusal.reason()),
        }
        ticket
    }
}

/// What is needed to start one.
pub(super) struct Around<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) certificates: &'a Certificates,
    pub(super) upstreams: &'a Upstreams,
    pub(super) budget: &'a Budget,
}

/// What the connections of a QUIC listener begin with.
///
/// # Errors
/// [`StartError::Tls`] and, for its secret, [`StartError::Options`].
pub(super) fn settings_of(
    listener: &Listener,
    quic: &config::Quic,
    around: &Around<'_>,
) -> Result<transport::ServerSettings, StartError> {
    let protocols = quic.routes.iter().map(|route| route.alpn.as_bytes().to_vec()).collect();
    let tls = around
        .certificates
        .server(&listener.name, &quic.tls, protocols)
        .map_err(|error| StartError::Tls { of: format!("listener `{}`", listener.name), error })?;
    let mut settings = transport::ServerSettings::new(listener.name.as_str(), listener.listen, Arc::new(tls));
    settings.transport = transport_of(listener, quic);
    settings.limits = transport::Limits {
        connections: let_in(listener),
        half_open: listener.limits.half_open,
        retry: match quic.settings.retry {
            config::Retry::Auto => RetryMode::Auto,
            config::Retry::Always => RetryMode::Always,
            config::Retry::Never => RetryMode::Never,
        },
        ..transport::Limits::default()
    };
    settings.steer = quic.settings.steer;
    settings.budget = Some(around.budget.clone());
    settings.secret = match &quic.settings.secret_file {
        Some(file) => Some(secret(file).map_err(|message| StartError::Options {
            listener: listener.name.clone(),
            place: listener.place.clone(),
            message,
        })?),
        None => None,
    };
    Ok(settings)
}

/// Connections that QUIC lets in on each arbiter. It drops what is too many before the handshake, so that its client hears
/// nothing; the door, where the listener's own limit is kept, tells them why. So there is room for some at the door.
fn let_in(listener: &Listener) -> usize {
    listener.limits.connections.saturating_add(listener.limits.half_open.min(ROOM_AT_THE_DOOR))
}

const fn caps_of(listener: &Listener) -> Caps {
    Caps {
        connections: listener.limits.connections,
        per_source: listener.limits.per_source,
        // Handshakes are bounded by the transport, and done when this door is reached.
        half_open: usize::MAX,
        base_bytes: BASE_BYTES,
    }
}

fn shared(
    listener: &Listener,
    routes: Routes,
    settings: transport::ServerSettings,
    around: &Around<'_>,
    occupancy: Arc<Occupancy>,
) -> Arc<Shared> {
    Arc::new(Shared {
        name: settings.name.clone(),
        routes: Snapshot::new(routes),
        door: Mutex::new(Admission::new(caps_of(listener), around.budget.clone(), occupancy.clone())),
        budget: around.budget.clone(),
        occupancy,
        made_by: settings.clone(),
        settings: Mutex::new(settings),
    })
}

fn start_error(listener: &Listener, address: SocketAddr, error: transport::StartError) -> StartError {
    let (listener, place) = (listener.name.clone(), listener.place.clone());
    match error {
        transport::StartError::Bind(error) => {
            StartError::Bind { listener, address, place, error: std::io::Error::other(error) }
        }
        transport::StartError::Spawn(error) => StartError::Spawn(error),
        other @ (transport::StartError::Tls(_) | transport::StartError::Settings) => {
            StartError::Options { listener, place, message: other.to_string() }
        }
    }
}

/// Binds and starts a listener, and the actor that takes its connections.
///
/// # Errors
/// See [`StartError`]; nothing is left running then.
fn start(
    listener: &Listener,
    quic: &config::Quic,
    around: &Around<'_>,
    occupancy: Arc<Occupancy>,
) -> Result<(QuicListener, Mail<Never>), StartError> {
    let settings = settings_of(listener, quic, around)?;
    let name = settings.name.clone();
    let shared = shared(listener, routes(listener, quic, around.upstreams), settings.clone(), around, occupancy);
    let server = QuicServer::start(around.mesh, settings, Some(applications(shared.clone())))
        .map_err(|error| start_error(listener, listener.listen, error))?;
    let listening = QuicListener { server: server.clone(), shared };
    let taking = listening.clone();
    let acceptor = around.mesh.spawn(Place::LeastLoaded, Spec::named(name), move || Taker::new(taking));
    match acceptor {
        Ok(acceptor) => Ok((listening, acceptor)),
        Err(error) => {
            server.stop();
            Err(StartError::Spawn(error))
        }
    }
}

/// Starts what a listener of HTTP has on UDP: its address is that of its TCP socket.
///
/// # Errors
/// See [`StartError`]; nothing is left running then.
#[cfg(feature = "http")]
pub(super) fn for_http(
    listener: &Listener,
    address: SocketAddr,
    (tls, site): (ServerSettings, Arc<OverQuic>),
    (streams, patience): (u32, Duration),
    around: &Around<'_>,
    occupancy: Arc<Occupancy>,
) -> Result<QuicListener, StartError> {
    let settings = settings_for_http(listener, address, tls, (streams, patience), around.budget);
    let routes = BTreeMap::from([(H3.to_vec(), Way::Http(site))]);
    let shared = shared(listener, routes, settings.clone(), around, occupancy);
    let server = QuicServer::start(around.mesh, settings, Some(applications(shared.clone())))
        .map_err(|error| start_error(listener, address, error))?;
    Ok(QuicListener { server, shared })
}

/// What the connections of a listener of HTTP begin with: so many streams, and so long for a handshake.
#[cfg(feature = "http")]
pub(super) fn settings_for_http(
    listener: &Listener,
    address: SocketAddr,
    tls: ServerSettings,
    (streams, patience): (u32, Duration),
    budget: &Budget,
) -> transport::ServerSettings {
    let mut settings = transport::ServerSettings::new(listener.name.as_str(), address, Arc::new(tls));
    settings.budget = Some(budget.clone());
    settings.transport.bidirectional = u64::from(streams);
    settings.transport.handshake_timeout = patience;
    // HTTP knows when a client was silent for too long; this is for those that are gone.
    settings.transport.idle_timeout = listener.limits.idle.max(GONE);
    settings.limits = transport::Limits {
        connections: let_in(listener),
        half_open: listener.limits.half_open,
        ..transport::Limits::default()
    };
    settings
}

/// As [`start`], as the gateway knows its listeners.
///
/// # Errors
/// See [`StartError`].
pub(super) fn started(
    listener: &Listener,
    quic: &config::Quic,
    around: &Around<'_>,
    occupancy: Arc<Occupancy>,
) -> Result<ListenerStatus, StartError> {
    let (running, acceptor) = start(listener, quic, around, occupancy.clone())?;
    let address = running.server.local_addr();
    let protocol = if quic.moq.is_some() { "moq" } else { "quic" };
    tracing::info!(listener = %listener.name, %address, steered = running.server.steered(), protocol, "listening");
    Ok(ListenerStatus {
        web: None,
        name: running.shared.name.clone(),
        address,
        configured: listener.listen,
        socket: Weak::new(),
        protocol: protocol.to_owned(),
        occupancy,
        acceptor,
        quic: Some(running),
        udp: None,
    })
}

impl QuicListener {
    /// Other routes and limits for connections from now on.
    pub(super) fn set_routes(&self, listener: &Listener, quic: &config::Quic, upstreams: &Upstreams) {
        self.shared.routes.publish(routes(listener, quic, upstreams));
        self.set_limits(listener);
    }

    /// Other limits for connections from now on; those inside count.
    pub(super) fn set_limits(&self, listener: &Listener) {
        let shared = &self.shared;
        *shared.door.lock() = Admission::new(caps_of(listener), shared.budget.clone(), shared.occupancy.clone());
    }

    /// Whether it is the same one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether these settings differ from those in use.
    pub(super) fn would_change(&self, new: &transport::ServerSettings) -> bool {
        let now = self.shared.settings.lock();
        (&now.tls, &now.transport, &now.limits, &now.secret) != (&new.tls, &new.transport, &new.limits, &new.secret)
    }

    /// The keys in which these settings differ from those by which its sockets and mailboxes were made.
    pub(super) fn needs_restart(&self, new: &transport::ServerSettings) -> Vec<&'static str> {
        let made = &self.shared.made_by;
        let (was, now) = (&made.transport, &new.transport);
        let keys = [
            ("listener.quic.steer", made.steer != new.steer),
            ("listener.quic.gso", was.gso != now.gso),
            ("listener.quic.socket_buffer", was.socket_buffer != now.socket_buffer),
            ("listener.limits.connections", new.limits.connections > made.limits.connections.max(ROOM)),
        ];
        keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// Uses these settings for new connections, on all arbiters or on none; answers those of before.
    ///
    /// # Errors
    /// See [`ReloadError`]; the old ones are in use everywhere then.
    pub(super) async fn renew(
        &self,
        settings: transport::ServerSettings,
    ) -> Result<transport::ServerSettings, ReloadError> {
        self.server.renew(&settings).await?;
        Ok(std::mem::replace(&mut *self.shared.settings.lock(), settings))
    }

    /// Lets nobody in any more; what is in finishes by then.
    pub(super) fn drain(&self, by: Instant) {
        self.server.drain(by);
    }
}

/// The parts of `[listener.quic]` and the limits that hold for each connection.
fn transport_of(listener: &Listener, quic: &config::Quic) -> transport::Transport {
    let settings = &quic.settings;
    let bytes = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
    let default = transport::Transport::default();
    let (window, stream) = (bytes(settings.connection_window), bytes(settings.stream_window));
    transport::Transport {
        idle_timeout: settings.idle_timeout,
        handshake_timeout: listener.limits.first_message,
        bidirectional: bytes(settings.streams),
        unidirectional: bytes(settings.uni_streams),
        stream_window: default.stream_window.min(stream),
        stream_window_max: stream,
        window: default.window.min(window),
        window_max: window,
        congestion: match settings.congestion {
            config::Congestion::Cubic => transport::Congestion::Cubic,
            config::Congestion::Bbr2 => transport::Congestion::Bbr2,
        },
        datagram_size: settings.max_datagram,
        discover_mtu: settings.mtu_discovery,
        migration: settings.migration,
        socket_buffer: settings.socket_buffer,
        gso: settings.gso,
        #[cfg(feature = "qlog")]
        qlog: settings.qlog.as_ref().map(transport::Qlog::new),
        ..default
    }
}

fn routes(listener: &Listener, quic: &config::Quic, upstreams: &Upstreams) -> Routes {
    let to = |route: &config::Route| match &route.service {
        QuicService::Echo => Way::Echo,
        QuicService::Upstream(name) => {
            Way::Relay(Arc::new(target(listener, Some(name), route.datagrams.as_ref(), upstreams)))
        }
        #[cfg(feature = "moq")]
        QuicService::Moq => match upstreams.relays().of_listener(&listener.name) {
            Some(site) => Way::Moq(site),
            None => Way::Relay(Arc::new(target(listener, None, None, upstreams))),
        },
        #[cfg(not(feature = "moq"))]
        QuicService::Moq => Way::Relay(Arc::new(target(listener, None, None, upstreams))),
        QuicService::Nothing => Way::Relay(Arc::new(target(listener, None, route.datagrams.as_ref(), upstreams))),
    };
    quic.routes.iter().map(|route| (route.alpn.as_bytes().to_vec(), to(route))).collect()
}

/// Where the streams and datagrams of connections go, or of sessions inside them.
pub(super) fn target(
    listener: &Listener,
    streams: Option<&String>,
    datagrams: Option<&String>,
    upstreams: &Upstreams,
) -> Target {
    // Over QUIC a server takes datagrams as well.
    let datagrams = datagrams.or_else(|| streams.filter(|name| upstreams.links(name).is_some()));
    Target {
        streams: streams.and_then(|name| upstreams.relay(name, &listener.limits)).map(Arc::new),
        network: streams.map(|name| upstreams.network(name)).unwrap_or_default(),
        datagrams: datagrams.and_then(|name| upstreams.get(name)).cloned(),
        links: datagrams.and_then(|name| upstreams.links(name)).cloned(),
    }
}

/// The secret of Retry tokens and stateless resets.
fn secret(file: &Path) -> Result<Secret, String> {
    let bytes = fs::read(file).map_err(|error| format!("cannot read `secret_file` {}: {error}", file.display()))?;
    let secret = Secret::from(bytes);
    if secret.expose().len() < LEAST_SECRET {
        return Err(format!("`secret_file` {} holds fewer than {LEAST_SECRET} bytes", file.display()));
    }
    Ok(secret)
}

/// What runs inside connections: the echo, and the refusal of those that are not let in. All others are left to the
/// listener's actor.
fn applications(shared: Arc<Shared>) -> Applications {
    Arc::new(move |info: &Info| {
        let view = shared.view();
        let mut view = view.borrow_mut();
        let routes = view.get();
        match routes.get(&*info.alpn) {
            Some(Way::Relay(_)) => None,
            #[cfg(feature = "http")]
            Some(Way::Http(site)) => Some(match shared.admit(info.peer.ip()) {
                Ok(ticket) => site.application(info, ticket),
                Err(refusal) => Box::new(http::Refused(refusal.reason())),
            }),
            #[cfg(feature = "moq")]
            Some(Way::Moq(site)) => Some(match shared.admit(info.peer.ip()) {
                Ok(mut ticket) => {
                    ticket.complete();
                    Box::new(Admitted { inside: site.application(), _ticket: ticket }) as Box<dyn Application>
                }
                Err(refusal) => Box::new(Refused(refusal.reason())),
            }),
            Some(Way::Echo) => Some(match shared.admit(info.peer.ip()) {
                Ok(mut ticket) => {
                    ticket.complete();
                    Box::new(Admitted { inside: Box::new(Echo::default()), _ticket: ticket }) as Box<dyn Application>
                }
                Err(refusal) => Box::new(Refused(refusal.reason())),
            }),
            // Its protocol was taken out while it shook hands.
            None => Some(Box::new(Refused("no_route"))),
        }
    })
}

/// What runs in a connection that was let in.
struct Admitted {
    inside: Box<dyn Application>,
    _ticket: Ticket,
}

impl Application for Admitted {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        self.inside.on(event, session);
    }

    fn message(&mut self, m: Box<dyn Any + Send>, session: &mut dyn Session) {
        self.inside.message(m, session);
    }

    fn poll(&mut self, cx: &mut Context<'_>, session: &mut dyn Session) -> bool {
        self.inside.poll(cx, session)
    }

    fn drain(&mut self, by: Instant, session: &mut dyn Session) {
        self.inside.drain(by, session);
    }

    fn deadline(&self) -> Option<Instant> {
        self.inside.deadline()
    }

    fn on_deadline(&mut self, session: &mut dyn Session) {
        self.inside.on_deadline(session);
    }
}

/// Closes its connection, and says why.
struct Refused(&'static str);

impl Application for Refused {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        if event == Event::Connected {
            session.close(REFUSED, self.0);
        }
    }
}

type Accepting = LocalBoxFuture<'static, Result<Connection, Closed>>;

/// Takes the connections that no application took, and starts a session for each, on its arbiter.
struct Taker {
    listener: QuicListener,
    accepting: FuturesUnordered<Accepting>,
}

impl Taker {
    fn new(listener: QuicListener) -> Self {
        let taker = Self { listener, accepting: FuturesUnordered::new() };
        (0..AWAITED).for_each(|_| taker.accept());
        taker
    }

    fn accept(&self) {
        let server = self.listener.server.clone();
        self.accepting.push(Box::pin(async move { server.accept().await }));
    }

    fn take(&self, connection: Connection, turn: &Turn<'_, Never>) {
        let shared = &self.listener.shared;
        let view = shared.view();
        let Some(Way::Relay(target)) = view.borrow_mut().get().get(connection.alpn()).cloned() else {
            connection.close(REFUSED, "no_route");
            return;
        };
        match shared.admit(connection.peer().ip()) {
            Ok(ticket) => {
                let (name, place) = (shared.name.clone(), Place::On(connection.arbiter()));
                let make = move || QuicSession::new(connection, name, target, ticket);
                // With the session its connection is dropped, which closes it.
                if turn.spawn(place, Spec::default(), make).is_err() {
                    turn.counter("connections_refused", &shared.name, Refusal::Closing.reason()).add(1);
                }
            }
            Err(refusal) => connection.close(REFUSED, refusal.reason()),
        }
    }
}

impl Protocol for Taker {
    type Msg = Never;
    const KIND: &'static str = "listener";

    fn on(&mut self, m: Never, _: &mut Turn<'_, Never>) -> Result<(), Fault> {
        match m {}
    }

    fn io(&mut self, turn: &mut Turn<'_, Never>) -> Result<Progress, Fault> {
        for _ in 0..AWAITED {
            match self.accepting.poll_next_unpin(&mut turn.cx()) {
                Poll::Ready(Some(Ok(connection))) => {
                    self.take(connection, turn);
                    self.accept();
                }
                // The server has ended, and with it what this actor is for.
                Poll::Ready(Some(Err(Closed)) | None) => {
                    turn.stop();
                    return Ok(Progress::Idle);
                }
                Poll::Pending => return Ok(Progress::Idle),
            }
        }
        Ok(Progress::More)
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, Never>) {
        turn.stop();
    }
}
