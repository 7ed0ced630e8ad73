//! Connections of TLS in front of a relay: looked into, and routed by whom their clients want; and terminated, if the
//! listener has a certificate.
//!
//! An actor waits for the ClientHello of each connection and reads none of it (`MSG_PEEK`), so that a stream that is not
//! terminated reaches its server as it was sent and the kernel may move it. Then it makes the handshake if one is to be
//! made, hands the stream to the actor of the relay on its own arbiter, and ends. Whoever says no hello in time, says
//! none at all, or wants what no route leads to is closed and counted in `relay_hello`.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use boring::ssl::Ssl;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::actor::Relay;
use super::codec::Header;
use super::codec_hello::{self, Hello, HelloRule, NoHello, Seen};
use super::dial::Network;
use super::shielded::Shielded;
use super::state::RelaySettings;
use crate::actors::clock::later;
use crate::actors::{Driver, Fault, Kind, Place, SpawnError, Spec, Turn, shelf};
use crate::transports::tcp::{Accepted, Never, OnAccept};
use crate::transports::tls::ServerSettings;

/// The kind of a connection until its relay begins.
#[derive(Debug)]
pub struct Waiting;
impl Kind for Waiting {
    const KIND: &'static str = "relay_hello";
}

/// Where connections go that fit a rule.
#[derive(Debug, Clone)]
pub struct HelloRoute {
    /// What is asked of the hello.
    pub rule: HelloRule,
    /// How it is relayed.
    pub settings: Arc<RelaySettings>,
    /// What reaches the servers.
    pub network: Network,
}

/// What becomes of the connections of a listener that are looked into.
#[derive(Debug)]
pub struct HelloSettings {
    /// The most specific one that fits is taken.
    pub routes: Vec<HelloRoute>,
    /// How long a hello may take, and the handshake behind it.
    pub within: Duration,
    /// With it, TLS ends here.
    pub tls: Option<Arc<ServerSettings>>,
}

/// Starts an actor for each connection of a listener.
pub struct HelloConnections {
    listener: Arc<str>,
    settings: Arc<HelloSettings>,
    random: RandomState,
    count: u64,
}

impl fmt::Debug for HelloConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HelloConnections").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl HelloConnections {
    /// For a listener of this name.
    #[must_use]
    pub fn new(listener: Arc<str>, settings: Arc<HelloSettings>) -> Self {
        Self { listener, settings, random: RandomState::new(), count: 0 }
    }
}

impl OnAccept for HelloConnections {
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        self.count += 1;
        let (listener, settings, random) =
            (self.listener.clone(), self.settings.clone(), self.random.hash_one(self.count));
        let make = move |driver| waiting(driver, listener, settings, accepted, random);
        turn.drive::<Waiting, _>(Place::LeastLoaded, Spec::default(), make).map(drop)
    }
}

async fn waiting(
    driver: Driver,
    listener: Arc<str>,
    settings: Arc<HelloSettings>,
    accepted: Accepted,
    random: u64,
) -> Result<(), Fault> {
    let result = begin(&driver, &listener, &settings, accepted, random).await;
    if let Err(fault) = &result {
        driver.raise("relay_hello", &listener, fault.reason);
    }
    result
}

async fn begin(
    driver: &Driver,
    listener: &Arc<str>,
    settings: &HelloSettings,
    accepted: Accepted,
    random: u64,
) -> Result<(), Fault> {
    let local = |error: io::Error| Fault::local("no_event_loop", error.to_string());
    let Accepted { stream, peer, ticket } = accepted;
    let tcp = TcpStream::from_std(stream).map_err(local)?;
    let until = later(driver.now(), settings.within);
    let late = || Fault::peer("hello_timeout", "");
    let hello = by(driver, until, hello(&tcp)).await.ok_or_else(late)??;
    let rules = settings.routes.iter().map(|route| &route.rule);
    let route = codec_hello::choose(rules, &hello).and_then(|number| settings.routes.get(number));
    let Some(HelloRoute { settings: relay, network, .. }) = route else {
        return Err(Fault::peer("no_route", hello.name.unwrap_or_default()));
    };
    let (mesh, place) = driver.here().ok_or_else(|| Fault::bug("no_arbiter", ""))?;
    let (listener, relay, network) = (listener.clone(), relay.clone(), network.clone());
    let spec = Spec::default();
    let spawned = if let Some(tls) = &settings.tls {
        let header = match relay.proxy_out.map(|_| tcp.local_addr()) {
            Some(Ok(destination)) => Header::Proxied { source: peer, destination },
            Some(Err(_)) | None => Header::Local,
        };
        let context = shelf(tls, || tls.builder().map(|builder| builder.build()));
        let context = context.as_ref().as_ref().map_err(|error| Fault::local("tls", error.to_string()))?;
        let ssl = Ssl::new(context).map_err(|error| Fault::local("tls", error.to_string()))?;
        let client = by(driver, until, Shielded::accept(ssl, tcp)).await;
        let client = client.ok_or_else(late)?.map_err(|why| Fault::peer("handshake", why))?;
        let make = move || Relay::guest(client, (peer, ticket), network, header, listener, relay, random);
        mesh.spawn(place, spec, make).map(drop)
    } else {
        let stream = tcp.into_std().map_err(local)?;
        let accepted = Accepted { stream, peer, ticket };
        mesh.spawn(place, spec, move || Relay::accepted(accepted, network, listener, relay, random)).map(drop)
    };
    spawned.map_err(|error| Fault::local("no_actor", error.to_string()))
}

/// Waits until the hello has come, without reading it.
async fn hello(tcp: &TcpStream) -> Result<Hello, Fault> {
    let mut bytes = vec![0; codec_hello::MOST];
    let mut needed = 1;
    loop {
        let ready = tcp.ready(Interest::READABLE).await.map_err(|error| Fault::peer("reset", error.to_string()))?;
        let looked = tcp.try_io(Interest::READABLE, || {
            let room = bytes.get_mut(..).unwrap_or_default();
            let (count, _) = rustix::net::recv(tcp, room, rustix::net::RecvFlags::PEEK)?;
            // What has been seen is not news: only more of it is.
            if count > 0 && count < needed { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
        });
        let count = match looked {
            Ok(0) => return Err(Fault::peer("closed", "")),
            Ok(count) => count,
            // An end behind half a hello: nothing more will be there to peek at.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready.is_read_closed() => {
                return Err(Fault::peer("closed", ""));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Fault::peer("reset", error.to_string())),
        };
        match codec_hello::read(bytes.get(..count).unwrap_or_default()) {
            Ok(Seen::Whole(hello)) => return Ok(hello),
            Ok(Seen::Needs(more)) => needed = more,
            Err(why) => return Err(no_hello(why)),
        }
    }
}

fn no_hello(why: NoHello) -> Fault {
    Fault::peer(why.reason(), "")
}

/// Waits for `future` until `at`, by the alarm of the actor.
async fn by<F: Future>(driver: &Driver, at: std::time::Instant, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(out) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(out));
        }
        if driver.now() >= at || driver.draining().is_some_and(|by| driver.now() >= by) {
            return Poll::Ready(None);
        }
        driver.alarm(Some(at));
        Poll::Pending
    })
    .await
}
