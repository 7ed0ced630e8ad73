//! A client of Media over QUIC: publishes tracks at a relay and subscribes to tracks there.
//!
//! The session lives in the actor of its connection, on one arbiter; what is here are handles, usable from any thread and
//! any task. Waiting calls have no time limit of their own and end when the session does. The session ends once all its
//! handles are dropped and what was written has been delivered, after 5 s at the latest.
//!
//! ```no_run
//! # async fn example(mesh: portway::actors::Mesh) -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use portway::transports::moq::model_names::FullTrackName;
//! use portway::transports::moq::{ClientOptions, MoqClient, Publication, Subscribing};
//! use portway::transports::quic::{ClientSettings, QuicClient};
//! use portway::transports::tls;
//!
//! let quic = QuicClient::start(&mesh, ClientSettings::new("moq-client"))?;
//! let trust = tls::ClientSettings::new(tls::PeerName::new("relay.example"));
//! let client = MoqClient::connect(&quic, "192.0.2.1:4443".parse()?, trust, ClientOptions::default()).await?;
//! let track = FullTrackName::of(["live", "clock"], "seconds")?;
//!
//! let publisher = client.publish(track.clone(), Publication::default()).await?;
//! let mut group = publisher.group(0).await?;
//! group.write("tick").await?;
//! group.finish().await?;
//!
//! let mut subscription = client.subscribe(track, Subscribing::default()).await?;
//! while let Some(object) = subscription.next().await? {
//!     println!("{}: {:?}", object.at, object.payload);
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::actor_client::{Accepted, Answer, Batch, ClientSession, Dropped, Options, ToClient};
use super::codec_datagram::{Content, ObjectDatagram};
use super::codec_subgroup::{ObjectEncoder, SubgroupHeader, SubgroupId};
use super::model::{Draft, Location, ObjectStatus};
use super::model_codes::DoneCode;
use super::model_message::Setup;
use super::model_names::FullTrackName;
use super::model_params::{Params, Properties, Token};
use super::state_assembly::{Bounds, Object};
use crate::actors::{Answer as Waited, Reply};
use crate::transports::quic::{Application, ConnectError, Connection, Door, QuicClient, StreamId};
use crate::transports::tls;
#[cfg(feature = "http")]
use crate::transports::webtransport::{self, Dial};

pub use super::actor_client::ClientError;

/// Why there is no session.
#[derive(Debug)]
#[non_exhaustive]
pub enum JoinError {
    /// No connection, or no draft in common.
    Connect(ConnectError),
    /// The session ended before it was set up.
    Session(ClientError),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Session(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for JoinError {}

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Carrier {
    /// QUIC itself: path and authority are said in SETUP.
    #[default]
    Quic,
    /// WebTransport over HTTP/3: they are those of its request.
    #[cfg(feature = "http")]
    WebTransport,
}

/// A URL that names no relay: it is not `moqt://` or `https://` with a host behind it, or holds what a URL may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadUrl;

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a relay is named by moqt://host:port/path or https://host:port/path")
    }
}

impl std::error::Error for BadUrl {}

/// How a client presents itself.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The scope of its counters. Default `moq-client`.
    pub name: Arc<str>,
    /// What carries it. Default QUIC.
    pub carrier: Carrier,
    /// The path that names the relay's scope, and its query. Default none, which is any; over WebTransport `/`.
    pub path: Option<String>,
    /// The host that names it. Default none; over WebTransport the name that the certificate must have, and the port.
    pub authority: Option<String>,
    /// What authorises the session. Default none.
    pub tokens: Vec<Token>,
    /// Drafts that are offered, the most wanted first. Default [`Draft::ALL`].
    pub drafts: Vec<Draft>,
    /// How long the relay has for its SETUP, and before that for the session of WebTransport. Default 10 s.
    pub setup: Duration,
}

impl ClientOptions {
    /// For the relay that a URL names: over QUIC if it begins with `moqt://`, over WebTransport if with `https://`. All
    /// else is as by default. Where the host is, and by what it is known, is said to [`MoqClient::connect`].
    ///
    /// # Errors
    /// [`BadUrl`].
    pub fn of_url(url: &str) -> Result<Self, BadUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(BadUrl)?;
        let carrier = match scheme {
            "moqt" => Carrier::Quic,
            #[cfg(feature = "http")]
            "https" => Carrier::WebTransport,
            _ => return Err(BadUrl),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or(BadUrl)?;
        let allowed = rest.bytes().all(|byte| byte.is_ascii_graphic()) && !rest.contains('#');
        if authority.is_empty() || authority.contains('@') || !allowed {
            return Err(BadUrl);
        }
        let path = Some(path.to_owned()).filter(|path| !path.is_empty());
        Ok(Self { carrier, path, authority: Some(authority.to_owned()), ..Self::default() })
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: Arc::from("moq-client"),
            carrier: Carrier::Quic,
            path: None,
            authority: None,
            tokens: Vec::new(),
            drafts: Draft::ALL.to_vec(),
            setup: Duration::from_secs(10),
        }
    }
}

/// What a subscription asks for.
#[derive(Debug, Clone, Default)]
pub struct Subscribing {
    /// Filter, priority, order, timeouts, and how long the relay may wait for a publisher. Default: what the relay has of
    /// the track's past, and all that is new.
    pub params: Params,
    /// How much may wait for [`Subscription::next`]. Default 4 MiB, objects of up to 16 MiB.
    pub bounds: Bounds,
}

impl From<Params> for Subscribing {
    fn from(params: Params) -> Self {
        Self { params, ..Self::default() }
    }
}

/// What a track says of itself.
#[derive(Debug, Clone, Default)]
pub struct Publication {
    /// Passed on to subscribers as they are. Default none.
    pub properties: Properties,
}

impl From<Properties> for Publication {
    fn from(properties: Properties) -> Self {
        Self { properties }
    }
}

/// What all handles of a session share; with the last of them it ends.
struct Inner {
    connection: Connection,
    door: Door,
    draft: Draft,
    dropped: Arc<Dropped>,
    /// Seen by the session.
    alive: Option<Arc<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.alive = None;
        self.look();
    }
}

impl Inner {
    /// The session is to look for handles that are gone. It does so in its next turn, and a full mailbox brings one too.
    fn look(&self) {
        self.dropped.note();
        let _full = self.door.tell(Box::new(ToClient::Look));
    }

    async fn ask<T>(&self, make: impl FnOnce(Answer<T>) -> ToClient) -> Result<T, ClientError> {
        ask(&self.connection, make).await
    }
}

async fn ask<T>(connection: &Connection, make: impl FnOnce(Answer<T>) -> ToClient) -> Result<T, ClientError> {
    let (reply, answer) = Reply::new();
    tell(connection, make(reply)).await?;
    answer.0.await.unwrap_or_else(|_| Err(ended(connection)))
}

async fn tell(connection: &Connection, what: ToClient) -> Result<(), ClientError> {
    connection.message(Box::new(what)).await.map_err(|_| ended(connection))
}

fn ended(connection: &Connection) -> ClientError {
    let end = connection.end().map_or_else(|| "the connection has ended".to_owned(), |end| end.to_string());
    ClientError::Ended(end.into())
}

/// A handle's life, for the session to see.
struct Held {
    inner: Arc<Inner>,
    alive: Option<Arc<()>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.alive = None;
        self.inner.look();
    }
}

impl Held {
    fn new(inner: &Arc<Inner>) -> (Self, std::sync::Weak<()>) {
        let alive = Arc::new(());
        let seen = Arc::downgrade(&alive);
        (Self { inner: inner.clone(), alive: Some(alive) }, seen)
    }
}

/// A session with a relay. Clones share it. See the top of the file.
#[derive(Clone)]
pub struct MoqClient {
    inner: Arc<Inner>,
}

impl fmt::Debug for MoqClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoqClient").field("draft", &self.inner.draft).finish_non_exhaustive()
    }
}

impl MoqClient {
    /// Connects and sets a session up. `tls` says whom the relay's certificate must name and whom to trust; its protocols
    /// are replaced by those of the carrier. The session lives on the caller's arbiter, or on any if the caller has none.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn connect(
        quic: &QuicClient,
        to: SocketAddr,
        mut tls: tls::ClientSettings,
        options: ClientOptions,
    ) -> Result<Self, JoinError> {
        let ClientOptions { name, carrier, path, authority, tokens, drafts, setup: patience } = options;
        let protocols: Vec<&str> = drafts.iter().map(|draft| draft.alpn()).collect();
        // Over WebTransport its request names them.
        #[cfg(feature = "http")]
        let (path, authority, dial) = match carrier {
            Carrier::Quic => (path, authority, None),
            Carrier::WebTransport => {
                let dial = Dial {
                    name: name.clone(),
                    authority: authority.unwrap_or_else(|| authority_of(&tls.name, to)),
                    path: request_path(path),
                    protocols: protocols.iter().map(|name| (*name).to_owned()).collect(),
                    patience,
                };
                (None, None, Some(dial))
            }
        };
        let setup = Setup { path, authority, tokens, ..super::Site::setup() };
        tls.protocols = match carrier {
            Carrier::Quic => protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
            #[cfg(feature = "http")]
            Carrier::WebTransport => vec![b"h3".to_vec()],
        };
        let (alive, dropped) = (Arc::new(()), Arc::new(Dropped::default()));
        let options = Options { name, setup, patience, alive: Arc::downgrade(&alive), dropped: dropped.clone() };
        let made = quic.connect_as(to, Arc::new(tls), move |_| {
            let session: Box<dyn Application> = Box::new(ClientSession::new(options));
            #[cfg(feature = "http")]
            if let Some(dial) = dial {
                return Box::new(webtransport::Client::new(dial, session));
            }
            session
        });
        let connection = made.await.map_err(JoinError::Connect)?;
        let (door, draft) = ask(&connection, ToClient::Ready).await.map_err(JoinError::Session)?;
        Ok(Self { inner: Arc::new(Inner { connection, door, draft, dropped, alive: Some(alive) }) })
    }

    /// The draft that was agreed on.
    #[must_use]
    pub fn draft(&self) -> Draft {
        self.inner.draft
    }

    /// The arbiter that the session is pinned to.
    #[must_use]
    pub fn arbiter(&self) -> usize {
        self.inner.connection.arbiter()
    }

    /// Offers a track to the relay (PUBLISH); waits until it accepts.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn publish(&self, track: FullTrackName, how: Publication) -> Result<Publisher, ClientError> {
        let (held, alive) = Held::new(&self.inner);
        let properties = how.properties;
        let accepted = self.inner.ask(|reply| ToClient::Publish { track, properties, alive, reply }).await?;
        Ok(Publisher { number: accepted.number, held })
    }

    /// Subscribes to a track; waits until the relay accepts, which it does once a publisher has.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn subscribe(&self, track: FullTrackName, how: Subscribing) -> Result<Subscription, ClientError> {
        let (held, alive) = Held::new(&self.inner);
        let (params, bounds) = (Box::new(how.params), how.bounds);
        let accepted = self.inner.ask(|reply| ToClient::Subscribe { track, params, bounds, alive, reply }).await?;
        Ok(Subscription { accepted, held, ready: VecDeque::new(), asked: None, lost: 0, done: None })
    }
}

/// A server as a URI names it.
#[cfg(feature = "http")]
fn authority_of(name: &tls::PeerName, to: SocketAddr) -> String {
    match name {
        tls::PeerName::Host(host) => format!("{host}:{}", to.port()),
        tls::PeerName::Address(address) => SocketAddr::new(*address, to.port()).to_string(),
    }
}

/// The path of a request: never empty.
#[cfg(feature = "http")]
fn request_path(path: Option<String>) -> String {
    match path {
        Some(path) if path.starts_with('/') => path,
        other => format!("/{}", other.unwrap_or_default()),
    }
}

/// A track that is published. Dropped without [`finish`](Self::finish), it is as if its publisher had vanished.
pub struct Publisher {
    number: u64,
    held: Held,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Which subgroup is to be published, and what its objects have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subgroup {
    /// Its group.
    pub group: u64,
    /// Its number in the group. Default 0.
    pub subgroup: u64,
    /// Its priority, lower goes first. Default that of the track.
    pub priority: Option<u8>,
    /// Whether its objects have properties. Default no.
    pub properties: bool,
    /// Whether the last object of the group is in it. Default no.
    pub end_of_group: bool,
}

impl Subgroup {
    /// The subgroup 0 of a group.
    #[must_use]
    pub const fn of(group: u64) -> Self {
        Self { group, subgroup: 0, priority: None, properties: false, end_of_group: false }
    }
}

impl Publisher {
    /// Begins a group of one subgroup, which is all of it.
    ///
    /// # Errors
    /// As [`subgroup`](Self::subgroup).
    pub async fn group(&self, group: u64) -> Result<SubgroupWriter, ClientError> {
        self.subgroup(Subgroup { end_of_group: true, ..Subgroup::of(group) }).await
    }

    /// Begins a subgroup, on a stream of its own; waits until the relay allows one. As long as nobody wants objects they
    /// are not sent, and writing them costs nothing.
    ///
    /// # Errors
    /// See [`ClientError`]; `Busy` if 64 wait for a stream already.
    pub async fn subgroup(&self, of: Subgroup) -> Result<SubgroupWriter, ClientError> {
        let (held, alive) = Held::new(&self.held.inner);
        let header = SubgroupHeader {
            // The session puts its own.
            track_alias: 0,
            group: of.group,
            subgroup: if of.subgroup == 0 { SubgroupId::Zero } else { SubgroupId::Given(of.subgroup) },
            priority: of.priority,
            properties: of.properties,
            end_of_group: of.end_of_group,
            first_object: true,
        };
        let publisher = self.number;
        let stream = self.held.inner.ask(|reply| ToClient::Begin { publisher, header, alive, reply }).await?;
        Ok(SubgroupWriter { stream, encoder: ObjectEncoder::new(&header), next: 0, held })
    }

    /// Sends an object as a datagram: it may be lost on the way.
    ///
    /// # Errors
    /// `TooLarge` if the path does not allow it, `Busy` if no room is left in the queue; else see [`ClientError`].
    pub async fn datagram(&self, at: Location, payload: impl Into<Bytes>) -> Result<(), ClientError> {
        let datagram = Box::new(ObjectDatagram {
            track_alias: 0,
            at,
            priority: None,
            end_of_group: false,
            properties: Properties::default(),
            content: Content::Payload(payload.into()),
        });
        let publisher = self.number;
        self.held.inner.ask(|reply| ToClient::Datagram { publisher, datagram, reply }).await
    }

    /// Ends the track: waits until all its subgroups have ended, and tells the relay.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn finish(self) -> Result<(), ClientError> {
        let publisher = self.number;
        self.held.inner.ask(|reply| ToClient::Done { publisher, reply }).await
    }
}

/// A subgroup that is being published. Dropped without [`finish`](Self::finish), it is given up.
pub struct SubgroupWriter {
    /// `None`: nobody wants it.
    stream: Option<StreamId>,
    encoder: ObjectEncoder,
    next: u64,
    held: Held,
}

impl fmt::Debug for SubgroupWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubgroupWriter").field("next", &self.next).finish_non_exhaustive()
    }
}

impl SubgroupWriter {
    /// Writes the next object; waits until QUIC has taken it. Answers its number. Not cancel-safe: an object may have been
    /// written in part, and the subgroup is of no use then.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn write(&mut self, payload: impl Into<Bytes>) -> Result<u64, ClientError> {
        let id = self.next;
        self.write_object(id, &Properties::default(), payload.into()).await?;
        Ok(id)
    }

    /// Writes an object of a number above all before, with properties if the subgroup has them.
    ///
    /// # Errors
    /// As [`write`](Self::write); `Unsayable` if the number does not ascend, or properties were not announced.
    pub async fn write_object(&mut self, id: u64, properties: &Properties, payload: Bytes) -> Result<(), ClientError> {
        let mut bytes = BytesMut::with_capacity(payload.len() + 32);
        self.encoder.put(id, properties, payload.len() as u64, ObjectStatus::Normal, &mut bytes)?;
        self.next = id.saturating_add(1);
        let Some(stream) = self.stream else { return Ok(()) };
        bytes.extend_from_slice(&payload);
        let bytes = bytes.freeze();
        self.held.inner.ask(|reply| ToClient::Write { stream, bytes, reply }).await
    }

    /// Ends the subgroup: it is complete.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn finish(self) -> Result<(), ClientError> {
        let Some(stream) = self.stream else { return Ok(()) };
        self.held.inner.ask(|reply| ToClient::Finish { stream, reply }).await
    }
}

/// A track that is subscribed to. Dropping it gives the subscription up.
pub struct Subscription {
    accepted: Accepted,
    held: Held,
    ready: VecDeque<Object>,
    /// What was asked for and has not come.
    asked: Option<Waited<Result<Batch, ClientError>>>,
    lost: u64,
    done: Option<DoneCode>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("accepted", &self.accepted).finish_non_exhaustive()
    }
}

impl Subscription {
    /// The next object, in the order in which they become complete; waits for one. `None` when the track has ended:
    /// [`ended`](Self::ended) says why.
    ///
    /// Cancel-safe: what had been asked for is there for the next call.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<Object>, ClientError> {
        while self.ready.is_empty() && self.done.is_none() {
            let subscription = self.accepted.number;
            let connection = &self.held.inner.connection;
            let asked = match &mut self.asked {
                Some(asked) => asked,
                None => {
                    let (reply, answer) = Reply::new();
                    tell(connection, ToClient::Next { subscription, reply }).await?;
                    self.asked.insert(answer)
                }
            };
            let answer = (&mut asked.0).await;
            self.asked = None;
            let Batch { objects, lost, done } = answer.unwrap_or_else(|_| Err(ended(connection)))?;
            self.ready = objects.into();
            (self.lost, self.done) = (lost, done);
        }
        Ok(self.ready.pop_front())
    }

    /// Why the track has ended, if it has.
    #[must_use]
    pub const fn ended(&self) -> Option<DoneCode> {
        self.done
    }

    /// Subgroups that did not come to their end, and datagrams for which there was no room, as of the last object.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The largest object that the relay knew when it accepted.
    #[must_use]
    pub const fn largest(&self) -> Option<Location> {
        self.accepted.params.largest
    }

    /// What the publisher says of the track.
    #[must_use]
    pub const fn properties(&self) -> &Properties {
        &self.accepted.properties
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_carrier_the_host_and_the_scope() {
        let read = |url| ClientOptions::of_url(url).map(|of| (of.carrier, of.authority, of.path));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("moqt://a.example:4443"), Ok((Carrier::Quic, some("a.example:4443"), None)));
        assert_eq!(read("moqt://[::1]:4443?x=1"), Ok((Carrier::Quic, some("[::1]:4443"), some("?x=1"))));
        #[cfg(feature = "http")]
        assert_eq!(
            read("https://a.example/live?x=1"),
            Ok((Carrier::WebTransport, some("a.example"), some("/live?x=1")))
        );
        for wrong in [
            "",
            "a.example",
            "http://a.example/",
            "moqt://",
            "moqt:///live",
            "https://a@b/",
            "moqt://a/#b",
            "moqt://a b",
        ] {
            assert_eq!(read(wrong), Err(BadUrl), "{wrong}");
        }
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_request_has_an_authority_and_a_path() {
        let to: SocketAddr = "[::1]:8443".parse().unwrap();
        assert_eq!(authority_of(&tls::PeerName::new("a.example"), to), "a.example:8443");
        assert_eq!(authority_of(&tls::PeerName::new("::1"), to), "[::1]:8443");
        let paths = [None, Some("/live"), Some("?x=1")].map(|path| request_path(path.map(str::to_owned)));
        assert_eq!(paths, ["/", "/live", "/?x=1"]);
    }
}
