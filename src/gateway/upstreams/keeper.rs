//! The actor that keeps one balancer true: it looks names up and lets the servers be checked, on the system arbiter.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{LocalBoxFuture, join, join_all};
use tokio::sync::oneshot;

use super::checks::{Asked, check};
use super::names::Answers;
use crate::actors::clock::sleep;
use crate::actors::{Fault, Progress, Protocol, Tally, Turn};
use crate::gateway::config::{self, Check, Host, Server};
use crate::transports::kit::balance::Balancer;
use crate::transports::relay::Network;

/// How soon a name is looked up again that has never been found.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

pub(super) type Lookup = Arc<dyn Fn(String, u16) -> LocalBoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

pub(super) fn lookup() -> Lookup {
    Arc::new(|host, port| Box::pin(apart(move || Ok((host.as_str(), port).to_socket_addrs()?.collect()))))
}

/// The actor of one upstream.
pub(super) enum Keeper {
    Made {
        upstream: Box<config::Upstream>,
        balancer: Arc<Balancer>,
        lookup: Lookup,
        network: Network,
        #[cfg(feature = "http")]
        http: Arc<crate::transports::http::Upstream>,
    },
    Runs(Pin<Box<dyn Future<Output = Infallible>>>),
    Ended,
}

impl Protocol for Keeper {
    type Msg = Infallible;
    const KIND: &'static str = "upstream";

    fn started(&mut self, turn: &mut Turn<'_, Infallible>) -> Result<(), Fault> {
        #[cfg(feature = "http")]
        if let Self::Made { upstream, balancer, lookup, network, http } = std::mem::replace(self, Self::Ended) {
            let asked = Asked { network, http };
            *self = Self::Runs(Box::pin(keep(*upstream, balancer, lookup, asked, turn.tally())));
        }
        #[cfg(not(feature = "http"))]
        if let Self::Made { upstream, balancer, lookup, network } = std::mem::replace(self, Self::Ended) {
            let asked = Asked { network };
            *self = Self::Runs(Box::pin(keep(*upstream, balancer, lookup, asked, turn.tally())));
        }
        Ok(())
    }

    fn on(&mut self, m: Infallible, _: &mut Turn<'_, Infallible>) -> Result<(), Fault> {
        match m {}
    }

    fn io(&mut self, turn: &mut Turn<'_, Infallible>) -> Result<Progress, Fault> {
        match self {
            Self::Runs(future) => match future.as_mut().poll(&mut turn.cx()) {
                std::task::Poll::Pending => Ok(Progress::Idle),
            },
            Self::Made { .. } | Self::Ended => Ok(Progress::Idle),
        }
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, Infallible>) {
        *self = Self::Ended;
        turn.stop();
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// What one keeper counts under.
pub(super) struct Count {
    tally: Tally,
    pub(super) upstream: Arc<str>,
}

impl Count {
    pub(super) fn raise(&self, family: &'static str, reason: &'static str) {
        self.tally.raise(family, &self.upstream, reason);
    }
}

async fn keep(
    upstream: config::Upstream,
    balancer: Arc<Balancer>,
    lookup: Lookup,
    asked: Asked,
    tally: Tally,
) -> Infallible {
    let count = Count { tally, upstream: Arc::from(upstream.name.as_str()) };
    let answers = RefCell::new(Answers::new(&upstream));
    let names = upstream.servers.iter().enumerate().filter_map(|(at, server)| match server {
        Server::Name { host, port }
        | Server::Quic { host: Host::Name(host), port }
        | Server::Udp { host: Host::Name(host), port } => Some((at, host, *port)),
        Server::Tcp(_) | Server::Unix(_) | Server::Quic { .. } | Server::Udp { .. } => None,
    });
    // Each name goes round on its own: a slow one does not hold up the others.
    let names = names.map(|(at, host, port)| {
        let (count, lookup, answers, balancer) = (&count, &lookup, &answers, &balancer);
        async move {
            resolve(
                upstream.resolve,
                host,
                count,
                || lookup(host.clone(), port),
                |addresses| {
                    let mut answers = answers.borrow_mut();
                    if answers.set(at, addresses) {
                        balancer.set_servers(answers.servers());
                    }
                },
            )
            .await
        }
    });
    let checks = async {
        match upstream.health.check {
            Check::Off => std::future::pending().await,
            Check::Tcp | Check::Http => check(&upstream.health, &balancer, &asked, &count).await,
        }
    };
    join(join_all(names), checks).await.1
}

/// Looks a name up once, on a thread of its own.
#[cfg(feature = "wireguard")]
pub(in crate::gateway) async fn look_up(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    apart(move || Ok((host.as_str(), port).to_socket_addrs()?.collect())).await
}

/// Runs what blocks on a thread of its own, which nobody waits for: the end of a runtime waits for its blocking
/// threads, and the resolver of the system may take half a minute. One per name at a time.
pub(super) async fn apart<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("lookup".to_owned()).spawn(move || {
        let _nobody_waits = tell.send(work());
    })?;
    told.await.unwrap_or_else(|_| Err(io::Error::other("the look-up panicked")))
}

/// Looks one name up again and again.
async fn resolve(
    every: Duration,
    host: &str,
    count: &Count,
    lookup: impl Fn() -> LocalBoxFuture<'static, io::Result<Vec<SocketAddr>>>,
    found: impl Fn(Vec<SocketAddr>),
) -> Infallible {
    let mut ever = false;
    let mut failing = false;
    loop {
        let addresses = lookup().await.and_then(|addresses| {
            if addresses.is_empty() { Err(io::Error::other("the name leads to no address")) } else { Ok(addresses) }
        });
        match addresses {
            Ok(addresses) => {
                count.raise("upstream_resolve", "ok");
                found(addresses);
                if failing {
                    tracing::info!(upstream = %count.upstream, host, "the name is found again");
                }
                (ever, failing) = (true, false);
            }
            Err(error) => {
                count.raise("upstream_resolve", "failed");
                if !failing {
                    tracing::warn!(upstream = %count.upstream, host, %error, "the name of a server is not found");
                }
                failing = true;
            }
        }
        sleep(if ever { every } else { every.min(FIRST_ANSWER) }).await;
    }
}
