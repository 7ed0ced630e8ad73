//! WireGuard listeners: from their configuration to running interfaces with what is inside, and through reloads.
//!
//! A reload that changes peers alone changes peers alone, also those that `wg` has changed: sessions of the others go
//! on. Services change without touching the interface. Anything else makes it anew, on the same socket.

pub(super) mod api;
mod around;
pub(super) mod datagrams;
pub(super) mod inside;
pub(super) mod kernel;
mod live;
pub(super) mod names;
pub(super) mod way;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::Arc;

use parking_lot::Mutex;
use socket2::SockRef;

use super::config::wireguard::{InsideService, Key, Speaks, ThreadingMode, Wireguard};
use super::config::{Config, Listener, Protocol};
use super::passed::Passed;
use super::reload::plan::Fate;
#[cfg(feature = "http")]
use super::sites;
use super::sites::Certificates;
use super::upstreams::Upstreams;
use super::{StartError, keygen};
use crate::actors::{Control, Mail, Mesh, clock};
use crate::transports::wireguard::{
    self as wg, DeviceMsg, Interface, PeerSettings, PublicKey, SecretKey, Settings, Threading, public_key,
};
pub(super) use api::api;
pub(super) use around::Around;
use inside::{Inside, Running};
use live::ByWg;

/// Arbiters for cryptography of one pipeline, at most.
const MOST_CRYPTO: usize = 16;

/// A running WireGuard listener.
pub(crate) struct Tunnel {
    pub(super) name: Arc<str>,
    pub(super) address: SocketAddr,
    configured: Listener,
    socket: UdpSocket,
    secret: SecretKey,
    pub(super) interface: Interface,
    pub(super) inside: Inside,
    /// Looks up the names of endpoints.
    names: Option<Mail<Infallible>>,
    /// Serves `wg`.
    uapi: Option<Mail<Infallible>>,
    by_wg: ByWg,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All of them, in the order of the file.
pub(crate) type Tunnels = Mutex<Vec<Arc<Tunnel>>>;

impl Around<'_> {
    /// Whether what a service leads to is the same as before the reload.
    pub(super) fn is_as_before(&self, speaks: &Speaks) -> bool {
        let Some((upstreams, certificates)) = self.before else { return false };
        let same = |name: &str| match (upstreams.get(name), self.upstreams.get(name)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (_, None) | (None, _) => false,
        };
        leads_alike(speaks, same, (certificates, self.certificates))
    }
}

/// Whether a service leads to upstreams of which `same` holds, and says the same in handshakes as before.
fn leads_alike(
    speaks: &Speaks,
    same: impl Fn(&str) -> bool,
    #[cfg_attr(not(feature = "http"), expect(unused_variables, reason = "without TLS there are none"))] (before, now): (
        &Certificates,
        &Certificates,
    ),
) -> bool {
    match speaks {
        Speaks::Framed(framed) => framed.upstream.as_deref().is_none_or(same),
        Speaks::Relay(relay) => same(&relay.upstream),
        Speaks::Udp(upstream) => same(upstream),
        #[cfg(feature = "http")]
        Speaks::Http(http) => sites::upstreams_of(http).all(same) && sites::same_certificates(http, before, now),
    }
}

/// A socket that is bound and not served yet.
pub(super) type Bound = (Listener, UdpSocket);

/// Binds the sockets of all tunnels.
pub(super) fn bind(config: &Config, passed: &Passed) -> Result<Vec<Bound>, StartError> {
    config
        .listeners
        .iter()
        .filter(|listener| of(listener).is_some())
        .map(|listener| bind_one(listener, passed))
        .collect()
}

fn bind_one(listener: &Listener, passed: &Passed) -> Result<Bound, StartError> {
    if let Some(socket) = passed.udp(listener.listen) {
        tracing::info!(listener = %listener.name, address = %listener.listen, "takes a socket of the service manager");
        return Ok((listener.clone(), socket));
    }
    let socket = wg::bind(listener.listen).map_err(|error| StartError::Bind {
        listener: listener.name.clone(),
        address: listener.listen,
        place: listener.place.clone(),
        error,
    })?;
    Ok((listener.clone(), socket))
}

/// The settings of a tunnel, if the listener is one.
pub(super) fn of(listener: &Listener) -> Option<&Wireguard> {
    match &listener.protocol {
        Protocol::Wireguard(wireguard) => Some(wireguard),
        #[cfg(feature = "http")]
        Protocol::Http(_) => None,
        Protocol::Framed(_) | Protocol::Relay(_) | Protocol::Quic(_) | Protocol::Udp(_) | Protocol::Custom { .. } => {
            None
        }
    }
}

/// Starts all tunnels.
pub(super) fn start_all(around: Around<'_>, bound: Vec<Bound>) -> Result<Vec<Arc<Tunnel>>, StartError> {
    let mut started: Vec<Arc<Tunnel>> = Vec::new();
    for (number, (listener, socket)) in bound.into_iter().enumerate() {
        match start(around, number, listener, socket, None) {
            Ok(tunnel) => started.push(Arc::new(tunnel)),
            Err(error) => {
                started.iter().for_each(|tunnel| tunnel.stop());
                return Err(error);
            }
        }
    }
    Ok(started)
}

fn start(
    around: Around<'_>,
    number: usize,
    listener: Listener,
    socket: UdpSocket,
    generated: Option<SecretKey>,
) -> Result<Tunnel, StartError> {
    let refuse = |message: String| StartError::Options {
        listener: listener.name.clone(),
        place: listener.place.clone(),
        message,
    };
    let Some(wireguard) = of(&listener) else { return Err(refuse("this is no tunnel".to_owned())) };
    warn(&listener, wireguard);
    let secret = match (&wireguard.key, generated) {
        (Key::Given(secret), _) => secret.clone(),
        (Key::Generated, Some(secret)) => secret,
        (Key::Generated, None) => {
            keygen::random_key().map_err(|error| refuse(format!("no random key can be made: {error}")))?
        }
    };
    let name: Arc<str> = Arc::from(listener.name.as_str());
    let settings =
        settings(wireguard, &listener.name, secret.clone(), threading(around.mesh, wireguard, &listener.name, number));
    let first = settings.threading.clone();
    let kept = socket.try_clone().map_err(|error| refuse(format!("the socket cannot be shared: {error}")))?;
    let address = socket.local_addr().unwrap_or(listener.listen);
    let interface = Interface::start(around.mesh, socket, settings, peers(wireguard)).map_err(|error| match error {
        wg::StartError::Spawn(error) => StartError::Spawn(error),
        error @ wg::StartError::Socket(_) => refuse(error.to_string()),
    })?;
    let inside = match inside::start(around, &listener, wireguard, &interface, &first) {
        Ok(inside) => inside,
        Err(error) => {
            interface.stop();
            return Err(error);
        }
    };
    tracing::info!(
        listener = %name,
        %address,
        protocol = "wireguard",
        mode = inside.mode(),
        public_key = %public_key(&secret),
        "listening"
    );
    if let Some(why) = &inside.why {
        tracing::warn!(listener = %name, mode = inside.mode(), "no private network: {why}");
    }
    if matches!(inside.running, Running::Tun(_)) {
        let marked = mark(&kept, &listener, kernel::settings_of(wireguard));
        marked.map_err(|error| refuse(format!("the socket cannot be marked: {error}")))?;
    }
    let names = names::start(around.mesh, &name, wireguard, &interface);
    let by_wg = ByWg::default();
    let served = live::Served {
        listener: &listener,
        wireguard,
        interface: &interface,
        inside: &inside,
        socket: &kept,
        secret: &secret,
        by_wg: &by_wg,
    };
    let uapi = live::start(around.mesh, &served);
    Ok(Tunnel { name, address, configured: listener, socket: kept, secret, interface, inside, names, uapi, by_wg })
}

/// Marks the tunnel's own datagrams where everything else on the host goes into it.
fn mark<'a>(
    socket: &UdpSocket,
    listener: &Listener,
    peers: impl IntoIterator<Item = &'a PeerSettings>,
) -> io::Result<()> {
    if kernel::takes_all(peers) { SockRef::from(socket).set_mark(kernel::mark(listener)) } else { Ok(()) }
}

/// Takes away a mark that `wg` may have given.
fn unmark(socket: &UdpSocket, changed_by_wg: bool) {
    let socket = SockRef::from(socket);
    if changed_by_wg && socket.mark().is_ok_and(|mark| mark > 0) {
        // Who may not take it away could not give it.
        let _not_ours = socket.set_mark(0);
    }
}

/// Says what is doubtful.
fn warn(listener: &Listener, wireguard: &Wireguard) {
    for warning in &wireguard.warnings {
        tracing::warn!(listener = %listener.name, "{warning}");
    }
}

fn settings(wireguard: &Wireguard, name: &str, secret: SecretKey, threading: Threading) -> Settings {
    Settings {
        addresses: wireguard.addresses.clone(),
        mtu: wireguard.mtu,
        peer_to_peer: wireguard.peer_to_peer,
        handshakes: wireguard.handshakes,
        gso: wireguard.gso,
        threading,
        ..Settings::new(name, secret)
    }
}

/// The arbiters that tunnels get for themselves, by name: those that a pipeline has. They are made with the mesh; a
/// pipeline that a reload brings shares the arbiters of everybody.
pub(super) fn apart(config: &Config) -> Vec<String> {
    let count = config.runtime.arbiters.map_or_else(cores, NonZeroUsize::get);
    let pipelines = config.listeners.iter().filter(|one| of(one).is_some_and(|tunnel| is_pipeline(tunnel, count)));
    pipelines.flat_map(|one| stages(&one.name, count)).collect()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn is_pipeline(wireguard: &Wireguard, arbiters: usize) -> bool {
    match wireguard.threading {
        ThreadingMode::Auto => arbiters > 2,
        ThreadingMode::Single => false,
        ThreadingMode::Pipeline => true,
    }
}

/// Names for the arbiters of a pipeline: receiving, sending, and as many for cryptography as there would be cores left.
fn stages(name: &str, arbiters: usize) -> Vec<String> {
    let crypto = (0..arbiters.saturating_sub(2).clamp(1, MOST_CRYPTO)).map(|n| format!("{name}-crypto-{n}"));
    [format!("{name}-rx"), format!("{name}-tx")].into_iter().chain(crypto).collect()
}

/// The arbiters of a tunnel. Several tunnels begin at different ones.
fn threading(mesh: &Mesh, wireguard: &Wireguard, name: &str, number: usize) -> Threading {
    let count = mesh.arbiters().max(1);
    let at = |n: usize| (number + n) % count;
    if !is_pipeline(wireguard, count) {
        return Threading::Single { arbiter: at(0) };
    }
    let own = |stage: &str| mesh.apart(&format!("{name}-{stage}"));
    let crypto: Vec<usize> = (0..MOST_CRYPTO).filter_map(|n| own(&format!("crypto-{n}"))).collect();
    if let (Some(rx), Some(tx), false) = (own("rx"), own("tx"), crypto.is_empty()) {
        return Threading::Pipeline { rx, crypto, tx };
    }
    tracing::info!(listener = name, "its pipeline shares arbiters until the next start");
    // With two arbiters receiving and sending share one; with one there is no choice.
    let crypto = match count {
        1 => vec![0],
        2 => vec![at(1)],
        _ => (1..count - 1).map(at).collect(),
    };
    Threading::Pipeline { rx: at(0), crypto, tx: if count < 3 { at(0) } else { at(count - 1) } }
}

fn peers(wireguard: &Wireguard) -> Vec<PeerSettings> {
    wireguard.peers.iter().map(|peer| peer.settings.clone()).collect()
}

/// What is shown of a tunnel beside the listeners of TCP.
pub(crate) struct Row<'a> {
    pub(super) name: &'a Arc<str>,
    pub(super) address: SocketAddr,
    pub(super) accepting: bool,
    pub(super) sessions: usize,
}

impl Tunnel {
    pub(super) fn row(&self) -> Row<'_> {
        Row {
            name: &self.name,
            address: self.address,
            accepting: self.accepting(),
            sessions: self.interface.sessions(),
        }
    }

    pub(super) fn accepting(&self) -> bool {
        !self.interface.device().is_closed() && self.inside.is_alive()
    }

    pub(super) fn public_key(&self) -> PublicKey {
        public_key(&self.secret)
    }

    pub(super) const fn device(&self) -> &Mail<DeviceMsg> {
        self.interface.device()
    }

    pub(super) fn stop(&self) {
        self.names.iter().chain(&self.uapi).for_each(|actor| actor.control(Control::Stop));
        self.interface.stop();
        self.inside.stop();
    }
}

/// What a reload does to one listener.
pub(super) enum Step {
    Keep(Arc<Tunnel>),
    /// Only peers or services are other ones.
    Adjust(Arc<Tunnel>, Listener),
    Start(Bound),
    /// Made anew on the socket it has.
    Renew(Arc<Tunnel>, Listener),
}

/// What a reload is going to do; everything that can fail before something is stopped has happened.
pub(super) fn plan(around: Around<'_>, old: &[Arc<Tunnel>], new: &Config) -> Result<Vec<Step>, StartError> {
    let mut steps = Vec::new();
    for listener in new.listeners.iter().filter(|listener| of(listener).is_some()) {
        let running = old.iter().find(|tunnel| *tunnel.name == *listener.name);
        steps.push(match running {
            None => Step::Start(bind_one(listener, around.passed)?),
            // Something of it has ended, its interface perhaps: it keeps its socket, and so its port.
            Some(tunnel) if !tunnel.accepting() && tunnel.configured.listen == listener.listen => {
                Step::Renew(tunnel.clone(), listener.clone())
            }
            Some(tunnel) if !tunnel.accepting() => Step::Start(bind_one(listener, around.passed)?),
            Some(tunnel) => match compare(|one| around.is_as_before(&one.speaks), &tunnel.configured, listener) {
                Difference::None if !tunnel.by_wg.has_changed() => Step::Keep(tunnel.clone()),
                Difference::None | Difference::PeersOrServices => Step::Adjust(tunnel.clone(), listener.clone()),
                Difference::Address => Step::Start(bind_one(listener, around.passed)?),
                Difference::Interface => Step::Renew(tunnel.clone(), listener.clone()),
            },
        });
    }
    Ok(steps)
}

/// What a reload would do to a tunnel, if `same` holds of the upstreams that stay.
pub(super) fn fate(
    tunnel: &Tunnel,
    new: &Listener,
    same: impl Fn(&str) -> bool,
    certificates: (&Certificates, &Certificates),
) -> Fate {
    if !tunnel.accepting() {
        return Fate::Renew;
    }
    match compare(|one| leads_alike(&one.speaks, &same, certificates), &tunnel.configured, new) {
        Difference::None if !tunnel.by_wg.has_changed() => Fate::Keep,
        Difference::None | Difference::PeersOrServices => Fate::Change,
        Difference::Interface | Difference::Address => Fate::Renew,
    }
}

enum Difference {
    None,
    PeersOrServices,
    Interface,
    Address,
}

fn compare(same: impl Fn(&InsideService) -> bool, old: &Listener, new: &Listener) -> Difference {
    let (Some(was), Some(is)) = (of(old), of(new)) else { return Difference::Interface };
    if old.listen != new.listen {
        return Difference::Address;
    }
    // The same but for what can be changed while it runs.
    let alike = Wireguard {
        peers: was.peers.clone(),
        services: was.services.clone(),
        warnings: was.warnings.clone(),
        ..is.clone()
    };
    fn udp(wireguard: &Wireguard) -> impl Iterator<Item = &InsideService> {
        wireguard.services.iter().filter(|one| matches!(one.speaks, Speaks::Udp(_)))
    }
    // What takes datagrams out stands before everything that is inside, or does not.
    let taken = |wireguard: &Wireguard| !wireguard.forward.is_empty() || udp(wireguard).next().is_some();
    if alike != *was || old.limits != new.limits || taken(was) != taken(is) {
        return Difference::Interface;
    }
    let services = was.services != is.services || !is.services.iter().all(&same);
    if was.peers == is.peers && !services { Difference::None } else { Difference::PeersOrServices }
}

/// Carries out a plan: the tunnels that run from now on, in the order of the file.
pub(super) fn apply(
    around: Around<'_>,
    old: &[Arc<Tunnel>],
    steps: Vec<Step>,
    done: &mut super::Reloaded,
) -> Result<Vec<Arc<Tunnel>>, StartError> {
    let mut running: Vec<Arc<Tunnel>> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Keep(tunnel) => {
                done.kept.push(tunnel.name.to_string());
                running.push(tunnel);
            }
            Step::Adjust(tunnel, listener) => {
                done.changed.push(listener.name.clone());
                running.push(Arc::new(adjust(around, &tunnel, listener)?));
            }
            Step::Start((listener, socket)) => {
                let was = old.iter().find(|tunnel| *tunnel.name == *listener.name);
                if was.is_some() {
                    done.renewed.push(listener.name.clone());
                }
                let names = if was.is_some() { &mut done.changed } else { &mut done.added };
                names.push(listener.name.clone());
                let generated = was.map(|tunnel| tunnel.secret.clone());
                // On the host the new one wants the name, and the addresses of services, that the old one has.
                if let Some(tunnel) = was.filter(|tunnel| matches!(tunnel.inside.running, Running::Tun(_))) {
                    tunnel.stop();
                }
                running.push(Arc::new(start(around, number, listener, socket, generated)?));
                if let Some(tunnel) = was {
                    tunnel.stop();
                }
            }
            Step::Renew(tunnel, listener) => {
                done.changed.push(listener.name.clone());
                done.renewed.push(listener.name.clone());
                let socket = tunnel.socket.try_clone().map_err(|error| StartError::Options {
                    listener: listener.name.clone(),
                    place: listener.place.clone(),
                    message: format!("the socket cannot be shared: {error}"),
                })?;
                unmark(&socket, tunnel.by_wg.has_changed());
                // The old one ends first: two that read one socket would take each other's datagrams.
                tunnel.stop();
                running.push(Arc::new(start(around, number, listener, socket, Some(tunnel.secret.clone()))?));
            }
        }
    }
    for tunnel in old.iter().filter(|tunnel| !running.iter().any(|new| new.name == tunnel.name)) {
        done.removed.push(tunnel.name.to_string());
        tunnel.stop();
    }
    Ok(running)
}

fn adjust(around: Around<'_>, tunnel: &Tunnel, listener: Listener) -> Result<Tunnel, StartError> {
    let refuse = |message: &str| StartError::Options {
        listener: listener.name.clone(),
        place: listener.place.clone(),
        message: message.to_owned(),
    };
    let Some(wireguard) = of(&listener) else { return Err(refuse("this is no tunnel")) };
    let socket = tunnel.socket.try_clone().map_err(|_| refuse("the socket cannot be shared"))?;
    warn(&listener, wireguard);
    let changed_by_wg = tunnel.by_wg.forget();
    unmark(&socket, changed_by_wg);
    if matches!(tunnel.inside.running, Running::Tun(_)) {
        mark(&socket, &listener, kernel::settings_of(wireguard)).map_err(|_| refuse("the socket cannot be marked"))?;
    }
    let inside = tunnel.inside.adjusted(around, &listener, wireguard)?;
    if tunnel.device().tell(DeviceMsg::Replace(peers(wireguard))).is_err() {
        tunnel.by_wg.remember(changed_by_wg);
        return Err(refuse("the interface is too busy to take its peers"));
    }
    // Before another begins: this one knows the settings of before.
    tunnel.names.iter().for_each(|names| names.control(Control::Stop));
    let names = names::start(around.mesh, &tunnel.name, wireguard, &tunnel.interface);
    Ok(Tunnel {
        names,
        name: tunnel.name.clone(),
        address: tunnel.address,
        secret: tunnel.secret.clone(),
        uapi: tunnel.uapi.clone(),
        by_wg: tunnel.by_wg.clone(),
        interface: tunnel.interface.clone(),
        configured: listener,
        socket,
        inside,
    })
}

/// Leads upstreams that are reached through a tunnel into theirs.
pub(super) fn lead(upstreams: &Upstreams, tunnels: &[Arc<Tunnel>]) {
    upstreams.lead(|name| {
        let tunnel = tunnels.iter().find(|tunnel| *tunnel.name == *name)?;
        tunnel.inside.way(&tunnel.name)
    });
}

/// Ends all tunnels gently: within `time` what is inside finishes.
pub(super) fn drain(tunnels: &[Arc<Tunnel>], time: std::time::Duration) {
    let by = clock::later(clock::now(), time);
    for tunnel in tunnels {
        tunnel.device().control(Control::Quiesce);
        tunnel.inside.drain(by);
    }
}

/// Whether a listener is served by an acceptor of TCP.
pub(super) fn is_tcp(listener: &Listener) -> bool {
    of(listener).is_none() && !matches!(listener.protocol, Protocol::Quic(_) | Protocol::Udp(_))
}
