//! The connections that relays share to servers over QUIC: on each arbiter one for each server, made when a stream is
//! first wanted, and made anew after it has ended.
//!
//! An actor on each arbiter holds them. Who wants a stream asks it and waits, as long as its own time to connect lasts.
//! A server that allows no more streams makes those who want one wait; more than 4,096 at once are turned away.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dial::NotShielded;
use super::quic_wire::Opening;
use super::state::Failure;
use crate::actors::{Control, Fault, Mail, Mesh, Place, Protocol, Reply, SpawnError, Spec, Turn};
use crate::transports::quic::{ConnectError, Connection, Duplex, End, OpenError, Priority, QuicClient, Who};
use crate::transports::tls;

/// Streams that may be waited for at once, on each arbiter.
const WAITING: usize = 4_096;
/// Far beyond any time a relay waits for its server: it gives up first.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is said to the servers of one upstream.
#[derive(Clone)]
pub struct LinkSettings {
    /// Makes the connections.
    pub client: QuicClient,
    /// What is said and demanded in handshakes; the name is set anew for each server.
    pub tls: tls::ClientSettings,
}

impl fmt::Debug for LinkSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkSettings").field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl LinkSettings {
    /// The handshake with a server whose certificate must name this.
    fn named(&self, name: &str) -> Arc<tls::ClientSettings> {
        Arc::new(tls::ClientSettings { name: tls::PeerName::new(name), ..self.tls.clone() })
    }
}

/// The way to the servers of one upstream. A clone is the same way.
#[derive(Clone)]
pub struct Links {
    mesh: Mesh,
    keepers: Arc<[Mail<ToKeeper>]>,
    settings: Arc<LinkSettings>,
}

/// The same way, not another one to the same servers.
impl PartialEq for Links {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keepers, &other.keepers)
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("arbiters", &self.keepers.len()).finish_non_exhaustive()
    }
}

impl Links {
    /// Starts an actor on each arbiter. Nothing is connected yet.
    ///
    /// # Errors
    /// See [`Mesh::spawn`]; nothing is left running then.
    pub fn start(mesh: &Mesh, name: &str, settings: LinkSettings) -> Result<Self, SpawnError> {
        let settings = Arc::new(settings);
        let mut keepers: Vec<Mail<ToKeeper>> = Vec::new();
        for arbiter in 0..mesh.arbiters() {
            let settings = settings.clone();
            // Each that waits has a slot for its answer as well.
            let spec = Spec::named(name).inbox(2 * WAITING, usize::MAX);
            let keeper = mesh.spawn(Place::On(arbiter), spec, move || Keeper { settings, links: BTreeMap::new() });
            match keeper {
                Ok(keeper) => keepers.push(keeper),
                Err(error) => {
                    keepers.iter().for_each(|keeper| keeper.control(Control::Stop));
                    return Err(error);
                }
            }
        }
        Ok(Self { mesh: mesh.clone(), keepers: keepers.into(), settings })
    }

    /// What is said to the servers, and by whom.
    #[must_use]
    pub fn settings(&self) -> &LinkSettings {
        &self.settings
    }

    /// Ends the actors; streams that are open go on, and their connections end with the last of them.
    pub fn stop(&self) {
        self.keepers.iter().for_each(|keeper| keeper.control(Control::Stop));
    }

    /// A stream to a server, of the connection on the caller's arbiter.
    pub(super) fn open(&self, address: SocketAddr, name: Arc<str>) -> Opening {
        let keeper = self.keepers.get(self.mesh.here().unwrap_or(0)).or_else(|| self.keepers.first()).cloned();
        Opening::new(async move {
            let keeper = keeper.ok_or(io::ErrorKind::Unsupported)?;
            let asked = keeper.ask(|reply| ToKeeper::Open(Wish { address, name, again: true, reply }), PATIENCE);
            asked.await.map_err(|error| io::Error::other(error.to_string()))?
        })
    }

    /// A connection of the caller's own to a server.
    pub(super) async fn connect(&self, address: SocketAddr, name: &str) -> Result<Connection, ConnectError> {
        self.settings.client.connect(address, self.settings.named(name)).await
    }
}

/// Somebody who wants a stream.
struct Wish {
    address: SocketAddr,
    name: Arc<str>,
    /// If the connection turns out to have ended, another one may be made.
    again: bool,
    reply: Reply<io::Result<Duplex>>,
}

type Server = (SocketAddr, Arc<str>);

enum ToKeeper {
    Open(Wish),
    Connected(Server, Result<Connection, ConnectError>),
    Opened(Wish, Result<Duplex, OpenError>),
}

enum Link {
    Connecting(Vec<Wish>),
    Up(Connection),
}

struct Keeper {
    settings: Arc<LinkSettings>,
    links: BTreeMap<Server, Link>,
}

impl Keeper {
    fn wish(&mut self, wish: Wish, turn: &mut Turn<'_, ToKeeper>) {
        let server = (wish.address, wish.name.clone());
        match self.links.get_mut(&server) {
            Some(Link::Connecting(waiting)) if waiting.len() < WAITING => waiting.push(wish),
            Some(Link::Connecting(_)) => refuse(wish, io::Error::other("too many wait for this server")),
            Some(Link::Up(connection)) if connection.end().is_none() => {
                let connection = connection.clone();
                open(connection, wish, turn);
            }
            Some(Link::Up(_)) | None => {
                let (client, tls) = (self.settings.client.clone(), self.settings.named(&wish.name));
                let address = wish.address;
                let whom = server.clone();
                self.links.insert(server.clone(), Link::Connecting(vec![wish]));
                let connecting = async move { client.connect(address, tls).await };
                let told = turn.job(connecting, move |connected| {
                    ToKeeper::Connected(whom, connected.unwrap_or(Err(ConnectError::Closed)))
                });
                if told.is_err() {
                    self.failed(&server, || io::Error::other("too many wait"));
                }
            }
        }
    }

    fn failed(&mut self, server: &Server, why: impl Fn() -> io::Error) {
        if let Some(Link::Connecting(waiting)) = self.links.remove(server) {
            waiting.into_iter().for_each(|wish| refuse(wish, why()));
        }
    }
}

fn refuse(wish: Wish, why: io::Error) {
    // Who gave up waiting has no use for it.
    drop(wish.reply.send(Err(why)));
}

fn open(connection: Connection, wish: Wish, turn: &mut Turn<'_, ToKeeper>) {
    let opening = async move {
        let opened = connection.open(Priority::default()).await;
        opened.map(|(send, receive)| Duplex::new(send, receive))
    };
    // Dropped with the work if there is no room: who wishes learns that nobody answers.
    drop(turn.job(opening, move |opened| ToKeeper::Opened(wish, opened.unwrap_or(Err(OpenError::Closed)))));
}

impl Protocol for Keeper {
    type Msg = ToKeeper;
    const KIND: &'static str = "quic_links";

    fn on(&mut self, m: ToKeeper, turn: &mut Turn<'_, ToKeeper>) -> Result<(), Fault> {
        match m {
            ToKeeper::Open(wish) => self.wish(wish, turn),
            ToKeeper::Connected(server, Ok(connection)) => {
                let before = self.links.insert(server, Link::Up(connection.clone()));
                if let Some(Link::Connecting(waiting)) = before {
                    waiting.into_iter().for_each(|wish| open(connection.clone(), wish, turn));
                }
            }
            ToKeeper::Connected(server, Err(error)) => {
                tracing::debug!(server = %server.0, %error, "no connection over QUIC");
                self.failed(&server, || meaning(&error));
            }
            ToKeeper::Opened(wish, Ok(stream)) => drop(wish.reply.send(Ok(stream))),
            // It ended between being looked up and being used.
            ToKeeper::Opened(wish, Err(OpenError::Closed)) if wish.again => {
                self.links.remove(&(wish.address, wish.name.clone()));
                self.wish(Wish { again: false, ..wish }, turn);
            }
            ToKeeper::Opened(wish, Err(error)) => refuse(wish, io::Error::other(error)),
        }
        Ok(())
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, ToKeeper>) {
        // Relays still look for servers until the last of them has ended, but by then this is the only actor left.
        turn.stop();
    }
}

/// The error as the relay reads those of sockets: whose fault it is decides what becomes of the server.
fn meaning(error: &ConnectError) -> io::Error {
    if let ConnectError::Ended(end) = error
        && let Some(failure) = broken_handshake(end)
    {
        return io::Error::other(NotShielded::new(failure, error.to_string()));
    }
    let kind = match error {
        ConnectError::Ended(end) if end.reason == "handshake_timeout" => io::ErrorKind::TimedOut,
        ConnectError::Ended(_) => io::ErrorKind::ConnectionRefused,
        ConnectError::Timeout => io::ErrorKind::TimedOut,
        ConnectError::Tls(_)
        | ConnectError::Quic(_)
        | ConnectError::NoSocket
        | ConnectError::Full
        | ConnectError::Closed
        | ConnectError::OnArbiter => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.to_string())
}

/// Whether TLS did not come about, in the words of TLS over TCP: its alerts are QUIC's errors (RFC 9001, section 4.8).
fn broken_handshake(end: &End) -> Option<Failure> {
    Some(match end.code.alert()? {
        "bad_certificate"
        | "unsupported_certificate"
        | "certificate_revoked"
        | "certificate_expired"
        | "certificate_unknown"
        | "unknown_ca"
            if end.who != Who::Peer =>
        {
            Failure::Certificate
        }
        _ => Failure::Handshake,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transports::quic::Code;

    #[test]
    fn handshakes_that_tls_broke_off_have_the_words_of_tls() {
        let of = |who, code| {
            broken_handshake(&End { who, code: Code::Transport(code), text: "".into(), reason: "protocol_error" })
        };
        assert_eq!(of(Who::Local, 0x100 + 48), Some(Failure::Certificate));
        assert_eq!(of(Who::Local, 0x100 + 46), Some(Failure::Certificate));
        // Ours, which they do not want.
        assert_eq!(of(Who::Peer, 0x100 + 48), Some(Failure::Handshake));
        assert_eq!(of(Who::Peer, 0x100 + 116), Some(Failure::Handshake));
        assert_eq!(of(Who::Peer, 0x100 + 120), Some(Failure::Handshake));
        assert_eq!(of(Who::Peer, 0x2), None);
    }
}
