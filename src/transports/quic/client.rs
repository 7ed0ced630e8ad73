//! A QUIC client: a socket on each arbiter, shared by all connections that live there.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::actor_endpoint::{Peers, Plan};
use super::actor_qlog::Log;
use super::handle::Connection;
use super::messages::{Connect, ConnectError, Made, Status, ToEndpoint};
use super::server::{A_DAY, StartError, connections, secrets, start_endpoint, status};
use super::session::{Application, Info};
use super::settings::ClientSettings;
#[cfg(feature = "qlog")]
use super::settings::Transport;
use crate::actors::clock::{later, now};
use crate::actors::{Budget, Control, Mail, Mesh, Reply, Strategy};
use crate::transports::tls;
use crate::transports::udp::Group;

/// A running client. Clones share it; dropping the last stops nothing.
#[derive(Clone)]
pub struct QuicClient {
    inner: Arc<Inner>,
    /// Where connections made through this handle are logged.
    log: Option<Log>,
}

struct Inner {
    mesh: Mesh,
    v4: Vec<Mail<ToEndpoint>>,
    v6: Vec<Mail<ToEndpoint>>,
    turn: AtomicUsize,
    log: Option<Log>,
}

impl fmt::Debug for QuicClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicClient").field("arbiters", &self.inner.mesh.arbiters()).finish_non_exhaustive()
    }
}

impl QuicClient {
    /// Binds and starts. On a machine without IPv6, connections to IPv6 addresses answer [`ConnectError::NoSocket`].
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start(mesh: &Mesh, settings: ClientSettings) -> Result<Self, StartError> {
        let log = Log::of(mesh, &settings.name, &settings.transport).map_err(StartError::Spawn)?;
        let bound = |local| endpoints(mesh, &settings, local, log.as_ref());
        let mut client =
            Inner { mesh: mesh.clone(), v4: Vec::new(), v6: Vec::new(), turn: AtomicUsize::new(0), log: log.clone() };
        let started = settings.local_v4.map_or(Ok(Vec::new()), bound).and_then(|v4| {
            client.v4 = v4;
            match settings.local_v6.map_or(Ok(Vec::new()), bound) {
                Err(StartError::Bind(error)) if !client.v4.is_empty() => {
                    tracing::debug!(%error, "no IPv6 here");
                    Ok(Vec::new())
                }
                other => other,
            }
        });
        match started {
            Ok(v6) => client.v6 = v6,
            Err(error) => {
                client.v4.iter().for_each(|mail| mail.control(Control::Stop));
                log.iter().for_each(|log| log.end(now()));
                return Err(error);
            }
        }
        Ok(Self { inner: Arc::new(client), log: None })
    }

    /// The same client; connections made through this handle and its clones are logged there, under the name `scope`.
    ///
    /// # Errors
    /// See [`StartError`].
    #[cfg(feature = "qlog")]
    pub fn logged(&self, scope: &Arc<str>, qlog: super::Qlog) -> Result<Self, StartError> {
        let transport = Transport { qlog: Some(qlog), ..Transport::default() };
        let log = Log::of(&self.inner.mesh, scope, &transport).map_err(StartError::Spawn)?;
        Ok(Self { inner: self.inner.clone(), log })
    }

    /// No more connections are made through this handle: its log ends with the last of them.
    pub fn end_log(&self) {
        self.log.iter().for_each(|log| log.end(later(now(), A_DAY)));
    }

    /// Connects; `tls` says whom the server's certificate must name, whom to trust and which protocols to offer. The
    /// connection lives on the caller's arbiter, or on any if the caller has none.
    ///
    /// Ends by itself: a server that does not answer is given up after the handshake's time.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, to: SocketAddr, tls: Arc<tls::ClientSettings>) -> Result<Connection, ConnectError> {
        self.connect_with(to, tls, None).await
    }

    /// As [`connect`](Self::connect), resuming a session of before ([`Connection::session`]) if the server still knows
    /// it.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_with(
        &self,
        to: SocketAddr,
        tls: Arc<tls::ClientSettings>,
        session: Option<Bytes>,
    ) -> Result<Connection, ConnectError> {
        self.dial(to, tls, session, None).await
    }

    /// As [`connect`](Self::connect), with an application inside the connection: it has the streams, and what the handle
    /// is told with [`Connection::message`]. `make` is called on the connection's arbiter once it is established; the
    /// connection goes on without handles, until the application or its peer closes it.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_as(
        &self,
        to: SocketAddr,
        tls: Arc<tls::ClientSettings>,
        make: impl FnOnce(&Info) -> Box<dyn Application> + Send + 'static,
    ) -> Result<Connection, ConnectError> {
        self.dial(to, tls, None, Some(Box::new(make))).await
    }

    async fn dial(
        &self,
        to: SocketAddr,
        tls: Arc<tls::ClientSettings>,
        session: Option<Bytes>,
        application: Option<Made>,
    ) -> Result<Connection, ConnectError> {
        let endpoints = if to.is_ipv4() { &self.inner.v4 } else { &self.inner.v6 };
        let here = self.inner.mesh.here().filter(|here| *here < endpoints.len());
        let at = here.unwrap_or_else(|| self.inner.turn.fetch_add(1, Ordering::Relaxed) % endpoints.len().max(1));
        let endpoint = endpoints.get(at).ok_or(ConnectError::NoSocket)?;
        let (reply, answer) = Reply::new();
        let log = self.log.clone();
        let connect = ToEndpoint::Connect(Box::new(Connect { to, tls, session, log, reply, application }));
        let room = endpoint.permit(0).await.map_err(|_| ConnectError::Closed)?;
        room.tell(connect).map_err(|_| ConnectError::Closed)?;
        answer.0.await.unwrap_or(Err(ConnectError::Closed))
    }

    /// How each endpoint is; those that do not answer within a second are left out.
    pub async fn status(&self) -> Vec<Status> {
        let mut all = status(&self.inner.v4).await;
        all.extend(status(&self.inner.v6).await);
        all
    }

    /// Readings of its connections, at most `most` of each endpoint.
    pub async fn connections(&self, most: usize) -> Vec<Info> {
        let mut all = connections(&self.inner.v4, most).await;
        all.extend(connections(&self.inner.v6, most).await);
        all
    }

    /// Makes no more connections, lets streams finish, and closes the sockets last; by `by` at the latest.
    pub fn drain(&self, by: Instant) {
        self.all().for_each(|mail| mail.control(Control::Drain(by)));
        self.logs().for_each(|log| log.end(by));
    }

    /// Ends all connections now; handles that live elsewhere answer that theirs has ended.
    pub fn stop(&self) {
        self.all().for_each(|mail| mail.control(Control::Stop));
        self.logs().for_each(|log| log.end(later(now(), Duration::from_secs(1))));
    }

    /// Waits until all its endpoints have ended.
    pub async fn stopped(&self) {
        for mail in self.all() {
            mail.closed().await;
        }
    }

    fn logs(&self) -> impl Iterator<Item = &Log> {
        self.inner.log.iter().chain(&self.log)
    }

    fn all(&self) -> impl Iterator<Item = &Mail<ToEndpoint>> {
        self.inner.v4.iter().chain(&self.inner.v6)
    }
}

/// A socket of its own on each arbiter: its port steers.
fn endpoints(
    mesh: &Mesh,
    settings: &ClientSettings,
    local: SocketAddr,
    log: Option<&Log>,
) -> Result<Vec<Mail<ToEndpoint>>, StartError> {
    let transport = Arc::new(settings.transport.clone());
    let secrets = Arc::new(secrets(None).ok_or(StartError::Settings)?);
    let supervised = mesh.group(Strategy::OneForOne, Budget::default());
    let mut started = Vec::with_capacity(mesh.arbiters());
    for arbiter in 0..mesh.arbiters() {
        let endpoint = Group::bind(local, 1, false).map_err(StartError::Bind).and_then(|group| {
            let plan = Plan {
                scope: settings.name.clone(),
                transport: transport.clone(),
                group,
                member: 0,
                arbiters: 1,
                connections: settings.connections,
                secrets: secrets.clone(),
                generation: 0,
                peers: Peers::default(),
                all: Arc::default(),
                serials: Arc::default(),
                budget: settings.budget.clone(),
                listen: None,
                log: log.cloned(),
            };
            start_endpoint(&supervised, arbiter, plan).map_err(StartError::Spawn)
        });
        match endpoint {
            Ok(mail) => started.push(mail),
            Err(error) => {
                started.iter().for_each(|mail| mail.control(Control::Stop));
                return Err(error);
            }
        }
    }
    Ok(started)
}
