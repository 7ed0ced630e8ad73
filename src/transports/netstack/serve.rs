//! What serves connections of a netstack: framed messages, rooms, HTTP, a relay to an upstream, a relay to whatever was
//! asked for; and the way out, through a netstack to a server behind a tunnel.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;

use super::actor::{NetMsg, Serve, Visitor};
use super::stream::{NetStream, pair};
use crate::actors::{Mail, Place, Refused, SpawnError, Spec, Turn, clock};
use crate::transports::framed::rooms::{Limits, Rooms};
use crate::transports::framed::{Connection, Service, Settings};
#[cfg(feature = "http")]
use crate::transports::http;
#[cfg(feature = "http")]
use crate::transports::kit::admission::Admission;
use crate::transports::kit::balance::{Address, BalanceSettings, Balancer};
#[cfg(feature = "http")]
use crate::transports::relay::Wire;
use crate::transports::relay::{Detour, Dial, Network, Relay, RelaySettings, Way};

/// Framed messages, answered by what `service` makes.
#[derive(Debug)]
pub struct Framed<F> {
    listener: Arc<str>,
    settings: Arc<Settings>,
    service: F,
}

impl<F> Framed<F> {
    /// `listener` is the scope of the counters.
    pub const fn new(listener: Arc<str>, settings: Arc<Settings>, service: F) -> Self {
        Self { listener, settings, service }
    }
}

impl<V: Service + Send + 'static, F: Fn() -> V + 'static> Serve for Framed<F> {
    fn serve(&mut self, visitor: Visitor, turn: &Turn<'_, NetMsg>) -> Result<(), SpawnError> {
        let (listener, settings, service) = (self.listener.clone(), self.settings.clone(), (self.service)());
        let spec = Spec::default().inbox(1_024, self.settings.outbound.max(1));
        turn.spawn(Place::Here, spec, move || Connection::new(visitor.stream, listener, settings, service)).map(drop)
    }
}

/// Clients that talk to each other in rooms.
#[derive(Debug)]
pub struct Roomed(Rooms);

impl Roomed {
    /// `listener` is the scope of the counters.
    #[must_use]
    pub fn new(listener: Arc<str>, settings: Settings, limits: Limits) -> Self {
        Self(Rooms::new(listener, settings, limits))
    }
}

impl Serve for Roomed {
    fn serve(&mut self, visitor: Visitor, turn: &Turn<'_, NetMsg>) -> Result<(), SpawnError> {
        self.0.inside(visitor.stream, turn)
    }
}

/// HTTP: each request is answered by the site of that moment.
#[cfg(feature = "http")]
#[derive(Debug)]
pub struct Sited {
    connections: http::Connections,
    listener: Arc<str>,
    admission: Admission,
}

#[cfg(feature = "http")]
impl Sited {
    /// `listener` is the scope of the counters; `admission` says who comes in, beside the netstack's own bounds.
    #[must_use]
    pub const fn new(connections: http::Connections, listener: Arc<str>, admission: Admission) -> Self {
        Self { connections, listener, admission }
    }
}

#[cfg(feature = "http")]
impl Serve for Sited {
    fn serve(&mut self, mut visitor: Visitor, turn: &Turn<'_, NetMsg>) -> Result<(), SpawnError> {
        match self.admission.admit(visitor.peer.ip()) {
            Ok(ticket) => self.connections.inside(visitor.stream, visitor.peer, ticket, turn),
            Err(refusal) => {
                turn.counter("connections_refused", &self.listener, refusal.reason()).add(1);
                visitor.stream.abort();
                Ok(())
            }
        }
    }
}

/// Each connection joined to a server of an upstream.
#[derive(Debug)]
pub struct Relayed {
    network: Network,
    listener: Arc<str>,
    settings: Arc<RelaySettings>,
    random: RandomState,
    count: u64,
}

impl Relayed {
    /// Servers are reached through `network`; `listener` is the scope of the counters.
    #[must_use]
    pub fn new(network: Network, listener: Arc<str>, settings: Arc<RelaySettings>) -> Self {
        Self { network, listener, settings, random: RandomState::new(), count: 0 }
    }
}

impl Serve for Relayed {
    fn serve(&mut self, visitor: Visitor, turn: &Turn<'_, NetMsg>) -> Result<(), SpawnError> {
        self.count += 1;
        let random = self.random.hash_one(self.count);
        let (network, listener, settings) = (self.network.clone(), self.listener.clone(), self.settings.clone());
        let make = move || Relay::new(visitor.stream, network, listener, settings, random);
        turn.spawn(Place::Here, Spec::default(), make).map(drop)
    }
}

/// Each connection joined to the very address it asked for, by a socket of this machine.
#[derive(Debug)]
pub struct Forwarded {
    listener: Arc<str>,
    idle: Option<Duration>,
}

impl Forwarded {
    /// `listener` is the scope of the counters; a connection on which nothing moves for `idle` is cut.
    #[must_use]
    pub const fn new(listener: Arc<str>, idle: Option<Duration>) -> Self {
        Self { listener, idle }
    }
}

impl Serve for Forwarded {
    fn serve(&mut self, visitor: Visitor, turn: &Turn<'_, NetMsg>) -> Result<(), SpawnError> {
        let balancer = Balancer::new(vec![Address::Tcp(visitor.local)], BalanceSettings::default());
        let mut settings = RelaySettings::new(balancer, self.listener.clone());
        settings.idle = self.idle;
        settings.attempts = 1;
        let listener = self.listener.clone();
        let make = move || Relay::new(visitor.stream, Network::default(), listener, Arc::new(settings), 0);
        turn.spawn(Place::Here, Spec::default(), make).map(drop)
    }
}

/// Opens a connection through a netstack and waits until it stands.
///
/// # Errors
/// `ConnectionRefused` if it did not come about (why is counted under `netstack_dropped`), `TimedOut` after `within`,
/// another if the netstack is gone or full.
pub async fn connect(stack: &Mail<NetMsg>, to: SocketAddr, within: Duration) -> io::Result<NetStream> {
    let stream = open(stack, to)?;
    let connected = std::future::poll_fn(|cx| stream.poll_connected(cx));
    match clock::within(within, connected).await {
        Ok(connected) => connected.map(|()| stream),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn open(stack: &Mail<NetMsg>, to: SocketAddr) -> io::Result<NetStream> {
    let (near, far) = pair();
    match stack.tell(NetMsg::Connect(to, far)) {
        Ok(()) => Ok(near),
        Err(Refused::Closed(_)) => Err(io::ErrorKind::NotConnected.into()),
        Err(Refused::Full(_) | Refused::TooLarge(_)) => Err(io::ErrorKind::ResourceBusy.into()),
    }
}

/// Opens streams to servers behind a tunnel: `via` in a configuration.
#[derive(Debug, Clone)]
pub struct Via {
    stack: Mail<NetMsg>,
}

impl Via {
    /// Through this netstack.
    #[must_use]
    pub const fn new(stack: Mail<NetMsg>) -> Self {
        Self { stack }
    }
}

impl Way for Via {
    fn open(&self, to: SocketAddr) -> io::Result<Box<dyn Detour>> {
        open(&self.stack, to).map(|stream| Box::new(stream) as Box<dyn Detour>)
    }
}

impl Detour for NetStream {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<TcpStream>>> {
        self.poll_connected(cx).map_ok(|()| None)
    }
}

impl Dial for Via {
    type Stream = NetStream;

    fn dial(&mut self, to: &Address) -> io::Result<NetStream> {
        match to {
            Address::Tcp(to) => open(&self.stack, *to),
            Address::Unix(_) | Address::Quic { .. } | Address::Udp(_) | Address::Tls { .. } => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }

    fn poll_connected(&mut self, stream: &mut NetStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream.poll_connected(cx)
    }
}
