//! The gateway: from one configuration file to running listeners, and to their end.
//!
//! The order in which things start lives here and nowhere else: sockets are bound before any thread exists, so a port
//! in use leaves nothing half open; then the mesh, the listeners, and the admin listener last. It ends the other way
//! round: readiness turns false, listeners close, connections finish what they accepted, the admin listener goes
//! last. Programs that bring a protocol of their own use [`Builder::tcp_protocol`] and [`cli::main`].

mod admin;
mod ask;
#[cfg(any(feature = "http", feature = "quic"))]
#[cfg_attr(
    not(feature = "quic"),
    expect(dead_code, reason = "QUIC is a client as well, and turns the keys of tickets")
)]
mod certificates;
pub mod check;
pub mod cli;
pub mod config;
mod control;
#[cfg(feature = "deadlock")]
mod deadlocks;
mod doctor;
#[cfg(feature = "wireguard")]
mod keygen;
mod limits;
#[cfg(feature = "quic")]
mod links;
mod listeners;
mod log;
#[cfg(feature = "moq")]
mod moq;
#[cfg(not(feature = "moq"))]
#[path = "gateway/moq/none.rs"]
mod moq;
mod options;
mod overview;
mod passed;
#[cfg(feature = "quic")]
mod quic;
mod raw;
mod reload;
pub mod report;
mod schema;
mod service;
#[cfg_attr(not(feature = "http"), path = "gateway/sites/none.rs")]
mod sites;
mod spare;
mod start_error;
#[cfg(feature = "wireguard")]
mod tunnels;
#[cfg(not(feature = "wireguard"))]
#[path = "gateway/tunnels/none.rs"]
mod tunnels;
#[cfg(feature = "udp")]
mod udp;
pub mod units;
pub mod upstreams;
mod watch;
#[cfg(feature = "wireguard")]
mod wg_client;
#[cfg(feature = "wireguard")]
pub mod wg_conf;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::actors::{DrainReport, Mail, Mesh, MeshConfig, SpawnError, clock};
use crate::memory::{Budget, Level, Shared, Snapshot, ThreadSafe, Version};
use crate::transports::kit::admission::Occupancy;
use crate::transports::tcp::{Accepted, Never, OnAccept};
use config::Config;
pub use options::Options;
pub use overview::{ArbiterRow, LastReload, ListenerRow, Overview, ServerRow};
use passed::Passed;
pub use reload::Reloaded;
pub use reload::plan::{Fate, Plan, Step};
use sites::Web;
pub use start_error::StartError;
use tunnels::{Tunnel, Tunnels};
use upstreams::Upstreams;

/// How often the memory budget is looked at.
const MEMORY_TICK: Duration = Duration::from_millis(100);
/// How often files of certificates are looked at.
#[cfg(any(feature = "http", feature = "quic"))]
const CERTIFICATE_TICK: Duration = Duration::from_secs(2);
/// How often the ring of ticket keys turns: a ticket opens for one to two turns.
#[cfg(feature = "quic")]
const TICKET_TURN: Duration = Duration::from_secs(12 * 60 * 60);

/// Whether a reload was applied, and what it did or why it was refused.
pub type Outcome = (bool, String);
type Reloader = Arc<dyn Fn() -> Outcome + Send + Sync>;
type Made = Box<dyn FnMut() -> Box<dyn OnAccept> + Send>;
type Factory = Arc<dyn Fn(&Options) -> Result<Made, String> + Send + Sync>;

/// What a gateway is made of beside its configuration: protocols that the embedding program brings.
#[derive(Clone, Default)]
pub struct Builder {
    protocols: BTreeMap<String, Factory>,
    helper: Option<PathBuf>,
    passed: Passed,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("protocols", &self.protocols.keys()).finish()
    }
}

impl Builder {
    /// A gateway with the built-in protocols.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Names a program that makes private networks: this one, if its `main` is [`cli::main`] or calls
    /// `tun::serve_private_network` when its only argument is `private-network`. Without one, tunnels in mode `auto`
    /// have a netstack inside.
    #[must_use]
    pub fn helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.helper = Some(program.into());
        self
    }

    /// From now on sockets that the service manager has passed on are used instead of bound ones where their address is
    /// that of a listener. Reads and clears `LISTEN_FDS` and `LISTEN_PID`: once, while the process has one thread.
    #[must_use]
    pub fn passed_sockets(mut self) -> Self {
        self.passed = Passed::from_environment();
        self
    }

    /// Adds a protocol on TCP: `[[listener]] protocol = "NAME"` in the configuration leads here, and its
    /// `[listener.options]` table is handed to `options`, which refuses what it does not understand with a sentence;
    /// `portway check` asks it as well. What it answers makes, on the listener's thread, the [`OnAccept`] that starts
    /// an actor for each connection; it is called again if the listener fails and is made anew.
    #[must_use]
    pub fn tcp_protocol<A, M>(
        mut self,
        name: &str,
        options: impl Fn(&Options) -> Result<M, String> + Send + Sync + 'static,
    ) -> Self
    where
        A: OnAccept,
        M: FnMut() -> A + Send + 'static,
    {
        let factory: Factory = Arc::new(move |table: &Options| {
            let mut make = options(table)?;
            let made: Made = Box::new(move || Box::new(make()));
            Ok(made)
        });
        self.protocols.insert(name.to_owned(), factory);
        self
    }

    /// The protocols of this program, for [`check::load`] and [`check::parse`].
    #[must_use]
    pub fn known(&self) -> check::Known {
        self.protocols.keys().fold(check::Known::default(), |known, name| known.protocol(name.as_str()))
    }

    /// Asks the protocols of the embedding program whether they understand their options.
    ///
    /// # Errors
    /// [`StartError::Options`] for the first that does not.
    pub fn check(&self, config: &Config) -> Result<(), StartError> {
        config.listeners.iter().try_for_each(|listener| self.check_options(listener))
    }

    fn check_options(&self, listener: &config::Listener) -> Result<(), StartError> {
        match &listener.protocol {
            config::Protocol::Custom { .. } => {
                listeners::made(listener, &self.protocols, &Upstreams::default()).map(drop)
            }
            #[cfg(feature = "http")]
            config::Protocol::Http(_) => Ok(()),
            config::Protocol::Framed(_)
            | config::Protocol::Relay(_)
            | config::Protocol::Quic(_)
            | config::Protocol::Udp(_) => Ok(()),
            #[cfg(feature = "wireguard")]
            config::Protocol::Wireguard(_) => Ok(()),
        }
    }

    /// Binds all sockets, starts the threads, then the listeners. Blocks for a moment: not for an event loop's
    /// thread.
    ///
    /// # Errors
    /// See [`StartError`]; everything that had been started is gone then.
    pub fn start(&self, config: Config) -> Result<Gateway, StartError> {
        #[cfg(feature = "deadlock")]
        deadlocks::watch();
        let mut failed = Vec::new();
        let passed = self.passed.clone().kept_for(&config);
        let admin = config.admin.as_ref().map(|admin| match passed.tcp(admin.listen) {
            Some(socket) => Ok(socket),
            None => listeners::bind("admin", admin.listen, &admin.place).map(Arc::new),
        });
        let admin = admin.and_then(|socket| socket.map_err(|error| failed.push(error)).ok());
        #[cfg(feature = "quic")]
        let certificates = certificates::Certificates::load(&config.certificates, None)?;
        let mut bound = Vec::new();
        for listener in config.listeners.iter().filter(|listener| tunnels::is_tcp(listener)) {
            self.check_options(listener)?;
            match listeners::taken_or_bound(listener, &passed) {
                Ok(socket) => bound.push(socket),
                Err(error) => failed.push(error),
            }
        }
        match failed.len() {
            0 => {}
            1 => return Err(failed.remove(0)),
            _ => return Err(StartError::Several(failed)),
        }
        let tunnels = tunnels::bind(&config, &passed)?;
        let budget = Budget::new(limits::memory_of(&config.runtime));
        let mesh = Mesh::start(MeshConfig {
            arbiters: config.runtime.arbiters,
            apart: tunnels::apart(&config),
            pin_cores: config.runtime.pin_cores,
            memory: Some(budget.clone()),
            ..MeshConfig::default()
        })
        .map_err(StartError::Mesh)?;
        let parts = Parts {
            admin,
            bound,
            passed: passed.clone(),
            tunnels,
            budget,
            #[cfg(feature = "quic")]
            certificates,
        };
        let started = self.start_on(&mesh, &config, parts);
        match started {
            Ok((status, admin)) => Ok(Gateway {
                mesh,
                status,
                admin,
                protocols: self.protocols.clone(),
                helper: self.helper.clone(),
                passed,
                config: Snapshot::new(config),
            }),
            Err(error) => {
                let _not_on_arbiter = mesh.stop();
                Err(error)
            }
        }
    }

    /// Starts what lives on the mesh, in order: upstreams, listeners, the admin listener.
    fn start_on(
        &self,
        mesh: &Mesh,
        config: &Config,
        parts: Parts,
    ) -> Result<(Arc<Status>, Option<Mail<Never>>), StartError> {
        #[cfg(feature = "quic")]
        let links = links::AllLinks::default().renewed(mesh, &config.upstreams, &parts.certificates)?;
        #[cfg(all(feature = "http", feature = "quic"))]
        let certificates = parts.certificates.clone();
        #[cfg(all(feature = "http", not(feature = "quic")))]
        let certificates = certificates::Certificates::load(&config.certificates, None)?;
        #[cfg(not(feature = "http"))]
        let certificates = sites::Certificates;
        #[cfg(feature = "http")]
        let secure = upstreams::secure::Secure::load(&config.upstreams, &certificates)?;
        #[cfg(not(feature = "http"))]
        let secure = upstreams::secure::Secure::default();
        let upstreams = Upstreams::default().renewed(
            mesh,
            &config.upstreams,
            &secure,
            #[cfg(feature = "quic")]
            &links,
        );
        let upstreams = upstreams.map_err(StartError::Spawn)?;
        #[cfg(feature = "moq")]
        let upstreams = {
            let relays = upstreams.relays().renewed(mesh, config, &parts.budget).map_err(StartError::Spawn)?;
            let upstreams = upstreams.with_relays(relays);
            upstreams.relays().take_over(&moq::Relays::default(), mesh, &upstreams, config.runtime.drain);
            upstreams
        };
        let mut prepared = Vec::new();
        let tcp = config.listeners.iter().filter(|listener| tunnels::is_tcp(listener));
        for (listener, socket) in tcp.zip(parts.bound) {
            let around =
                listeners::Around { protocols: &self.protocols, upstreams: &upstreams, certificates: &certificates };
            let port = listeners::port_of(listener, &socket);
            let (made, web) = listeners::prepare(listener, around, None, port)?;
            let occupancy = Arc::default();
            prepared.push(listeners::Prepared {
                listener: listener.clone(),
                socket,
                made,
                web,
                occupancy,
                inside: None,
            });
        }
        // Before listeners: whoever they let in may be led into a tunnel.
        let around = tunnels::Around {
            mesh,
            upstreams: &upstreams,
            certificates: &certificates,
            before: None,
            budget: &parts.budget,
            passed: &parts.passed,
            helper: self.helper.as_ref(),
        };
        let tunnels = tunnels::start_all(around, parts.tunnels)?;
        tunnels::lead(&upstreams, &tunnels);
        #[cfg_attr(not(feature = "udp"), expect(unused_mut, reason = "listeners on UDP are added"))]
        let mut listeners = listeners::start_all(mesh, prepared, &parts.budget, &parts.passed)?;
        #[cfg(feature = "quic")]
        {
            let around =
                quic::Around { mesh, certificates: &parts.certificates, upstreams: &upstreams, budget: &parts.budget };
            for listener in &config.listeners {
                if let config::Protocol::Quic(quic) = &listener.protocol {
                    listeners.push(Arc::new(quic::started(listener, quic, &around, Arc::default())?));
                }
                #[cfg(feature = "http")]
                if let config::Protocol::Http(http) = &listener.protocol
                    && let Some(status) = listeners.iter_mut().find(|status| *status.name == *listener.name)
                {
                    sites::quic::start(listener, http, &around, status)?;
                }
            }
            in_order(&mut listeners, config);
        }
        #[cfg(feature = "udp")]
        {
            let around = udp::Around { mesh, upstreams: &upstreams, budget: &parts.budget };
            udp::start_all(config, around, &mut listeners)?;
        }
        let terms = admin::Terms::of(config.admin.as_ref(), &certificates, None)?;
        let status = Arc::new(Status {
            draining: AtomicBool::new(false),
            budget: parts.budget,
            listeners: Snapshot::new(listeners),
            leaving: Snapshot::default(),
            tunnels: Mutex::new(tunnels),
            upstreams: Snapshot::new(upstreams),
            certificates: Mutex::new(certificates),
            started: clock::now(),
            applied: AtomicU64::new(1),
            refused: AtomicU64::new(0),
            last_applied: Snapshot::default(),
            file: Snapshot::default(),
            reloader: Snapshot::default(),
            terms: Snapshot::new(terms),
            admin_is_local: config.admin.as_ref().is_none_or(|admin| admin.listen.ip().is_loopback()),
            drain: Snapshot::new(config.runtime.drain),
            watched: Arc::default(),
            last_reload: Snapshot::default(),
            reloading: Shared::default(),
            #[cfg(feature = "quic")]
            over_quic: Mutex::new(OverQuic { certificates: parts.certificates, links }),
        });
        let Some(socket) = parts.admin else { return Ok((status, None)) };
        if let Ok(address) = socket.local_addr() {
            tracing::info!(%address, "admin listening");
        }
        let admin = admin::start(mesh, socket, status.clone()).map_err(StartError::Spawn)?;
        Ok((status, Some(admin)))
    }
}

/// What was prepared before there were threads.
struct Parts {
    admin: Option<Arc<TcpListener>>,
    /// For each listener on TCP.
    bound: Vec<Arc<TcpListener>>,
    passed: Passed,
    tunnels: Vec<tunnels::Bound>,
    budget: Budget,
    #[cfg(feature = "quic")]
    certificates: certificates::Certificates,
}

/// What QUIC listeners and servers over QUIC are made with.
#[cfg(feature = "quic")]
pub(crate) struct OverQuic {
    certificates: certificates::Certificates,
    links: links::AllLinks,
}

/// Puts what runs into the order of the file, which is the order of the admin pages.
fn in_order(listeners: &mut [Arc<ListenerStatus>], config: &Config) {
    listeners.sort_by_key(|status| config.listeners.iter().position(|listener| *listener.name == *status.name));
}

/// What is known about the running gateway, shared with the admin listener.
pub(crate) struct Status {
    draining: AtomicBool,
    budget: Budget,
    listeners: Snapshot<Vec<Arc<ListenerStatus>>>,
    /// Those that reloads took out, while they have connections: each reload forgets the others.
    leaving: Snapshot<Vec<Leaving>>,
    tunnels: Tunnels,
    upstreams: Snapshot<Upstreams>,
    certificates: Mutex<sites::Certificates>,
    started: Instant,
    /// Configurations applied, that of the start among them.
    applied: AtomicU64,
    /// Configurations that were refused while this one ran.
    refused: AtomicU64,
    /// What the last of those applied did.
    last_applied: Snapshot<Reloaded>,
    /// The file that `reloader` reads.
    file: Snapshot<Option<PathBuf>>,
    /// Reads the configuration again and applies it, for the admin listener.
    reloader: Snapshot<Option<Reloader>>,
    /// By what terms the admin listener lets callers in.
    terms: Snapshot<admin::Terms>,
    /// The admin listener is on loopback.
    admin_is_local: bool,
    /// How long a drain may take.
    drain: Snapshot<Duration>,
    /// Who watches the dashboard.
    watched: Arc<admin::Hub>,
    /// When the last reload was, whether it was applied, and what it did.
    last_reload: Snapshot<Option<(Instant, bool, String)>>,
    /// Held while a reload is applied: one at a time.
    reloading: Shared<(), ThreadSafe>,
    #[cfg(feature = "quic")]
    over_quic: Mutex<OverQuic>,
}

/// What is known about one listener.
pub(crate) struct ListenerStatus {
    name: Arc<str>,
    address: SocketAddr,
    /// The address as configured: port 0 there is a real one in `address`.
    configured: SocketAddr,
    /// Held by the acceptor; a reload hands it on to the next.
    socket: Weak<TcpListener>,
    protocol: String,
    occupancy: Arc<Occupancy>,
    /// The site, if it has one; a reload hands it on to the next.
    web: Option<Web>,
    acceptor: Mail<Never>,
    #[cfg(feature = "quic")]
    quic: Option<quic::QuicListener>,
    #[cfg(feature = "udp")]
    udp: Option<crate::transports::datagram::UdpServer>,
}

/// A listener that is no more, but for its connections.
#[derive(Clone)]
pub(crate) struct Leaving {
    name: Arc<str>,
    address: SocketAddr,
    protocol: String,
    occupancy: Arc<Occupancy>,
}

impl ListenerStatus {
    fn accepting(&self) -> bool {
        !self.acceptor.is_closed()
    }
}

impl Status {
    /// Why the gateway is not ready, if it is not.
    fn not_ready(&self) -> Option<String> {
        if self.draining.load(Ordering::Acquire) {
            return Some("draining".to_owned());
        }
        let listeners = self.listeners();
        if let Some(down) = listeners.iter().find(|listener| !listener.accepting()) {
            return Some(format!("listener {} has ended", down.name));
        }
        let tunnels = self.tunnels();
        let down = tunnels.iter().find(|tunnel| !tunnel.accepting())?;
        Some(format!("listener {} has ended", down.row().name))
    }

    fn last_reload(&self) -> Option<LastReload> {
        let last = self.last_reload.read();
        last.as_ref().map(|(at, applied, message)| LastReload {
            ago_s: clock::now().saturating_duration_since(*at).as_secs(),
            applied: *applied,
            message: message.clone(),
        })
    }

    /// How many configurations have been applied.
    fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Reloads since the start, by their result.
    fn reloads(&self) -> [(&'static str, u64); 2] {
        [("applied", self.applied().saturating_sub(1)), ("refused", self.refused.load(Ordering::Relaxed))]
    }

    fn drain_time(&self) -> Duration {
        *self.drain.read()
    }

    fn note_reload(&self, applied: bool, message: String) {
        let (level, what) = if applied { ("info", "reloaded") } else { ("warn", "reload refused") };
        self.refused.fetch_add(u64::from(!applied), Ordering::Relaxed);
        self.watched.note(level, format!("{what}: {message}"));
        self.last_reload.publish(Some((clock::now(), applied, message)));
    }

    fn upstreams(&self) -> Version<Upstreams> {
        self.upstreams.read()
    }

    fn listeners(&self) -> Version<Vec<Arc<ListenerStatus>>> {
        self.listeners.read()
    }

    fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        self.tunnels.lock().clone()
    }
}

/// A running gateway. A clone is another handle of the same one.
#[derive(Clone)]
pub struct Gateway {
    mesh: Mesh,
    status: Arc<Status>,
    admin: Option<Mail<Never>>,
    protocols: BTreeMap<String, Factory>,
    helper: Option<PathBuf>,
    passed: Passed,
    /// What the gateway runs by.
    config: Snapshot<Config>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("listeners", &self.listeners().len()).finish_non_exhaustive()
    }
}

impl Gateway {
    /// The mesh the gateway's actors live on.
    #[must_use]
    pub const fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The listeners by name and the addresses they are bound to (port 0 in the configuration is a real one here).
    #[must_use]
    pub fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let mut all: Vec<_> =
            self.status.listeners().iter().map(|listener| (listener.name.clone(), listener.address)).collect();
        all.extend(self.status.tunnels().iter().map(|tunnel| (tunnel.row().name.clone(), tunnel.row().address)));
        all
    }

    /// The gateway at this moment.
    pub async fn overview(&self) -> Overview {
        Overview::of(&self.mesh.view().await, &self.status)
    }

    /// Why the gateway is not ready: it drains, or a listener has ended. `None` while all is well.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        self.status.not_ready()
    }

    /// Bytes that sessions hold of the memory budget now.
    #[must_use]
    pub fn memory_leased(&self) -> usize {
        self.status.budget.used()
    }

    /// Keeps the memory budget: while it is at 95 % or above, ends the largest holder. Also turns the ring of ticket
    /// keys, twice a day. Runs until dropped.
    pub async fn keep_budget(&self) {
        #[cfg(feature = "quic")]
        let mut turned = clock::now();
        loop {
            clock::sleep(MEMORY_TICK).await;
            #[cfg(feature = "quic")]
            if clock::now().saturating_duration_since(turned) >= TICKET_TURN {
                turned = clock::now();
                self.status.over_quic.lock().certificates.rotate_tickets();
            }
            let budget = &self.status.budget;
            if budget.level() == Level::Critical {
                // Down to where new work is let in again, in one go: whoever fills the budget is quick.
                let enough = budget.used().saturating_sub(budget.limit() / 10 * 7);
                let ended = self.mesh.stop_largest(enough).await;
                tracing::warn!(ended, "memory: the largest holders were ended");
            }
        }
    }

    /// Looks every few seconds whether files of certificates have changed, and applies what they hold now as a reload of
    /// the same configuration would: to listeners over TCP and QUIC and to upstreams, all or none. Files that do not fit
    /// each other are left until they change again. Runs until dropped; an applied change blocks for a moment.
    #[cfg(any(feature = "http", feature = "quic"))]
    pub async fn keep_certificates(&self) {
        let mut seen = certificates::stamps(&self.config.read().certificates);
        loop {
            clock::sleep(CERTIFICATE_TICK).await;
            let config = Config::clone(&self.config.read());
            let stamps = certificates::stamps(&config.certificates);
            if stamps == seen {
                continue;
            }
            seen = stamps;
            match self.reload(config) {
                Ok(done) => tracing::info!(%done, "certificates have changed"),
                Err(error) => tracing::warn!(%error, "changed certificates are not used"),
            }
        }
    }

    /// Ends the gateway gently within the time the configuration allows: listeners close, connections finish what
    /// they accepted. Then [`stop`](Self::stop) it.
    pub async fn drain(&self) -> DrainReport {
        self.status.draining.store(true, Ordering::Release);
        let time = self.config.read().runtime.drain;
        tunnels::drain(&self.status.tunnels(), time);
        let report = self.mesh.drain(time).await;
        // Last: until here connections may still have been looking for a server.
        self.status.upstreams().drain();
        report
    }

    /// Whether the configuration asks for a look at its file now and then.
    #[must_use]
    pub fn watches_its_file(&self) -> bool {
        self.config.read().admin.as_ref().is_some_and(|admin| admin.watch)
    }

    /// From now on the admin listener may reload: `reload` reads `file` again and applies it.
    pub fn reloads_by(&self, file: PathBuf, reload: impl Fn() -> Outcome + Send + Sync + 'static) {
        self.status.file.publish(Some(file));
        let reloader: Reloader = Arc::new(reload);
        self.status.reloader.publish(Some(reloader));
    }

    /// Ends all threads. Blocks: not for an event loop's thread.
    pub fn stop(self) {
        // It may hold a handle of this gateway.
        self.status.reloader.publish(None);
        if let Some(admin) = &self.admin {
            admin.control(crate::actors::Control::Stop);
        }
        if self.mesh.stop().is_err() {
            tracing::error!("the gateway was stopped from one of its own threads and cannot wait for itself");
        }
    }
}

impl OnAccept for Box<dyn OnAccept> {
    fn accepted(&mut self, accepted: Accepted, turn: &crate::actors::Turn<'_, Never>) -> Result<(), SpawnError> {
        (**self).accepted(accepted, turn)
    }
}
