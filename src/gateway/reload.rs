//! A new configuration for a running gateway: applied as a difference, or refused whole.
//!
//! Everything that can fail comes first: options are asked, sockets are bound, new acceptors are started. Only then
//! are old ones told to end. A listener that is not changed is not touched; a changed one gets a new acceptor on the
//! same socket, so no connection is refused in between, and its connections go on as they were let in; a removed one
//! closes its port and its connections finish what they accepted. What cannot change while running is named.

pub(super) mod plan;
#[cfg(feature = "quic")]
pub(super) mod quic;
mod settings;

use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::admin::Terms;
use super::config::{Config, Listener, Log};
use super::sites::{Certificates, Web};
#[cfg(feature = "udp")]
use super::udp;
use super::upstreams::Upstreams;
use super::upstreams::secure::Secure;
use super::{Gateway, Leaving, ListenerStatus, StartError, in_order, limits, listeners, tunnels};
use crate::actors::{Control, clock};
use crate::transports::tcp;
use plan::same_around;
use settings::Differences;

/// How long a reload waits for another to be done.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a reload did, by the names of listeners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// Not touched.
    pub kept: Vec<String>,
    /// Opened.
    pub added: Vec<String>,
    /// Taking new connections by new rules.
    pub changed: Vec<String>,
    /// Those of the changed that were made anew: their sessions ended.
    pub renewed: Vec<String>,
    /// Closed; their connections finish.
    pub removed: Vec<String>,
    /// Keys beside listeners and upstreams that have changed and are in use now.
    pub settings: Vec<&'static str>,
    /// Keys, or tables, that have changed and need a restart.
    pub restart: Vec<&'static str>,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts =
            [(&self.kept, "kept"), (&self.added, "added"), (&self.changed, "changed"), (&self.removed, "removed")];
        for (n, (names, what)) in counts.into_iter().enumerate() {
            write!(f, "{}{} {what}", if n == 0 { "" } else { ", " }, names.len())?;
        }
        if !self.renewed.is_empty() {
            write!(f, "; made anew, sessions cut off: {}", self.renewed.join(", "))?;
        }
        if !self.settings.is_empty() {
            write!(f, "; settings changed: {}", self.settings.join(", "))?;
        }
        if self.restart.is_empty() { Ok(()) } else { write!(f, "; needs a restart: {}", self.restart.join(", ")) }
    }
}

/// From which configuration to which.
#[derive(Clone, Copy)]
struct Step<'a> {
    running: &'a Config,
    new: &'a Config,
    old: &'a [Arc<ListenerStatus>],
    before: (&'a Upstreams, &'a Certificates),
    now: (&'a Upstreams, &'a Certificates),
}

/// The same listener, wherever in the file it stands.
pub(super) fn same(a: &Listener, b: &Listener) -> bool {
    a.name == b.name && a.listen == b.listen && a.limits == b.limits && a.protocol == b.protocol
}

impl Gateway {
    /// Notes that a new configuration was refused before it could be applied, for [`overview`](Self::overview).
    pub fn reload_refused(&self, why: impl Into<String>) {
        self.status.note_reload(false, why.into());
    }

    /// Applies a checked configuration to the running gateway. Blocks for a moment: not for an event loop's thread.
    ///
    /// # Errors
    /// [`StartError`]; then nothing has changed.
    pub fn reload(&self, new: Config) -> Result<Reloaded, StartError> {
        let result = self.apply(new);
        match &result {
            Ok(done) => self.status.note_reload(true, done.to_string()),
            Err(error) => self.status.note_reload(false, error.to_string()),
        }
        result
    }

    fn apply(&self, new: Config) -> Result<Reloaded, StartError> {
        let _one_at_a_time = self.status.reloading.write_within(PATIENCE).map_err(StartError::Reloading)?;
        let running = self.config.read();
        let Differences { taken, held } = Differences::between(&running, &new);
        let mut done = Reloaded { settings: taken, restart: held, ..Reloaded::default() };
        let old = self.status.listeners();
        let tunnels_before = self.status.tunnels();

        // What can be refused.
        #[cfg(feature = "quic")]
        let over = self.renewed_over_quic(&new)?;
        let certificates_before = self.status.certificates.lock().clone();
        #[cfg(all(feature = "http", feature = "quic"))]
        let certificates = over.certificates.clone();
        #[cfg(all(feature = "http", not(feature = "quic")))]
        let certificates = Certificates::load(&new.certificates, Some(&certificates_before))?;
        #[cfg(not(feature = "http"))]
        let certificates = Certificates;
        #[cfg(feature = "http")]
        let secure = Secure::load(&new.upstreams, &certificates).inspect_err(|_| {
            #[cfg(feature = "quic")]
            over.links.retire(&self.status.over_quic.lock().links);
        })?;
        #[cfg(not(feature = "http"))]
        let secure = Secure::default();
        let terms = Terms::of(new.admin.as_ref(), &certificates, Some(&self.status.terms.read()));
        let terms = terms.inspect_err(|_| {
            #[cfg(feature = "quic")]
            over.links.retire(&self.status.over_quic.lock().links);
        })?;
        #[cfg(feature = "udp")]
        let mut over_udp = udp::Changes::new();
        let before = self.status.upstreams();
        let upstreams = before.renewed(
            &self.mesh,
            &new.upstreams,
            &secure,
            #[cfg(feature = "quic")]
            &over.links,
        );
        let started = upstreams.map_err(StartError::Spawn).and_then(|upstreams| {
            #[cfg(feature = "moq")]
            let upstreams = {
                let relays = upstreams.relays().renewed(&self.mesh, &new, &self.status.budget);
                let relays = relays.inspect_err(|_| upstreams.retire(&before)).map_err(StartError::Spawn)?;
                upstreams.with_relays(relays)
            };
            let step = Step {
                running: &running,
                new: &new,
                old: &old,
                before: (&before, &certificates_before),
                now: (&upstreams, &certificates),
            };
            // Before listeners: whoever they let in may be led into a tunnel that is there already.
            tunnels::lead(&upstreams, &tunnels_before);
            let started = self.start_new(&step, &mut done);
            #[cfg(feature = "quic")]
            let started = started
                .and_then(|started| self.start_quic(&running, &new, &old, &upstreams, &over, &mut done, started));
            #[cfg(feature = "udp")]
            let started = started.and_then(|mut started| {
                let around = udp::Around { mesh: &self.mesh, upstreams: &upstreams, budget: &self.status.budget };
                let renewed = udp::renew((&running, &new), &old, around, &before, &mut done, &mut started);
                renewed.inspect_err(|_| end_new(&old, &started)).map(|changes| (started, changes))
            });
            started.inspect_err(|_| upstreams.retire(&before)).map(|started| (upstreams, started))
        });
        #[cfg(feature = "udp")]
        let started = started.map(|(upstreams, (started, changes))| {
            over_udp = changes;
            (upstreams, started)
        });
        let (upstreams, started) = match started {
            Ok(started) => started,
            Err(error) => {
                #[cfg(feature = "quic")]
                over.links.retire(&self.status.over_quic.lock().links);
                return Err(error);
            }
        };
        // Tunnels come last of what can fail: an error leaves what was changed of them, and says so.
        let around = tunnels::Around {
            mesh: &self.mesh,
            upstreams: &upstreams,
            certificates: &certificates,
            before: Some((&before, &certificates_before)),
            budget: &self.status.budget,
            passed: &self.passed,
            helper: self.helper.as_ref(),
        };
        let steps = tunnels::plan(around, &tunnels_before, &new);
        let tunnels = steps.and_then(|steps| tunnels::apply(around, &tunnels_before, steps, &mut done));
        let tunnels = match tunnels {
            Ok(tunnels) => tunnels,
            Err(error) => {
                end_new(&old, &started);
                upstreams.retire(&before);
                return Err(error);
            }
        };
        tunnels::lead(&upstreams, &tunnels);
        *self.status.tunnels.lock() = tunnels;
        #[cfg(feature = "moq")]
        upstreams.relays().take_over(before.relays(), &self.mesh, &upstreams, running.runtime.drain);
        before.retire(&upstreams);
        self.status.upstreams.publish(upstreams);
        *self.status.certificates.lock() = certificates;
        #[cfg(feature = "quic")]
        {
            let retired = std::mem::replace(&mut *self.status.over_quic.lock(), over);
            retired.links.retire(&self.status.over_quic.lock().links);
        }
        // From here on nothing fails.
        #[cfg(feature = "udp")]
        over_udp.into_iter().for_each(|(server, terms)| server.change(terms));
        started.iter().filter_map(|status| status.web.as_ref()).for_each(Web::publish);
        let by = clock::later(clock::now(), running.runtime.drain);
        let mut now = started;
        let mut leaving: Vec<_> =
            self.status.leaving.read().iter().filter(|gone| gone.occupancy.connections() > 0).cloned().collect();
        for status in old.iter().cloned() {
            let goes_on = now.iter().any(|new| Arc::ptr_eq(new, &status));
            if goes_on || done.kept.iter().any(|name| *name == *status.name) {
                if !goes_on {
                    now.push(status);
                }
                continue;
            }
            let over_tcp = |status: &ListenerStatus| !matches!(status.protocol.as_str(), "quic" | "udp" | "moq");
            let socket_goes_on =
                over_tcp(&status) && now.iter().any(|new| new.address == status.address && over_tcp(new));
            if socket_goes_on {
                status.acceptor.control(Control::Stop);
            } else {
                status.acceptor.control(Control::Drain(by));
                // Now and not when the acceptor gets to it: the next reload may want the port again.
                if let Some(socket) = status.socket.upgrade().filter(|socket| !self.passed.holds(socket)) {
                    tcp::refuse(&*socket);
                }
            }
            // Unless its successor has taken it over.
            #[cfg(feature = "quic")]
            if let Some(quic) = &status.quic
                && !now.iter().filter_map(|new| new.quic.as_ref()).any(|new| new.is(quic))
            {
                quic.drain(by);
            }
            if !done.changed.iter().any(|name| *name == *status.name) {
                self.mesh.drain_children(status.acceptor.id(), by);
                done.removed.push(status.name.to_string());
                leaving.push(Leaving {
                    name: status.name.clone(),
                    address: status.address,
                    protocol: status.protocol.clone(),
                    occupancy: status.occupancy.clone(),
                });
            }
        }
        in_order(&mut now, &new);
        self.status.listeners.publish(now);
        self.status.leaving.publish(leaving);
        let (runtime, admin) = (settings::runtime(&running, &new), settings::admin(&running, &new));
        if new.admin.is_some() && admin.is_some() {
            self.status.terms.publish(terms);
        }
        if done.settings.contains(&"runtime.memory") {
            self.status.budget.set_limit(limits::memory_of(&runtime));
        }
        let Config { listeners, upstreams, certificates, .. } = new;
        let log = Log { level: new.log.level, ..running.log };
        super::log::set_level(log.level);
        self.status.drain.publish(runtime.drain);
        self.config.publish(Config { listeners, upstreams, certificates, runtime, admin, log });
        self.status.applied.fetch_add(1, Ordering::Relaxed);
        self.status.last_applied.publish(done.clone());
        Ok(done)
    }

    /// Prepares and starts the listeners that are new or changed.
    fn start_new(&self, step: &Step<'_>, done: &mut Reloaded) -> Result<Vec<Arc<ListenerStatus>>, StartError> {
        let Step { running, new, old, before, now } = *step;
        #[cfg_attr(not(feature = "http"), expect(unused_variables, reason = "only what ends TLS looks at it"))]
        let ((before, old_certificates), (upstreams, certificates)) = (before, now);
        let mut start = Vec::new();
        for listener in new.listeners.iter().filter(|listener| tunnels::is_tcp(listener)) {
            let was = running.listeners.iter().find(|old| old.name == listener.name);
            let unchanged = |name: &str| match (before.get(name), upstreams.get(name)) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (_, None) | (None, _) => false,
            };
            let same_upstream = same_around(listener, unchanged, (old_certificates, certificates));
            let alive = old.iter().any(|status| *status.name == *listener.name && status.accepting());
            if alive && same_upstream && was.is_some_and(|was| same(was, listener)) {
                done.kept.push(listener.name.clone());
                continue;
            }
            let names = if was.is_some() { &mut done.changed } else { &mut done.added };
            names.push(listener.name.clone());
            let socket = match socket_of(old, listener) {
                Some(socket) => socket,
                None => listeners::taken_or_bound(listener, &self.passed)?,
            };
            let predecessor = old.iter().find(|status| *status.name == *listener.name);
            let around = listeners::Around { protocols: &self.protocols, upstreams, certificates };
            let port = listeners::port_of(listener, &socket);
            let (made, web) = listeners::prepare(listener, around, predecessor.map(|status| &**status), port)?;
            let occupancy = predecessor.map_or_else(Arc::default, |status| status.occupancy.clone());
            start.push(listeners::Prepared { listener: listener.clone(), socket, made, web, occupancy, inside: None });
        }
        listeners::start_all(&self.mesh, start, &self.status.budget, &self.passed)
    }
}

/// Ends those of `started` that did not run before.
fn end_new(old: &[Arc<ListenerStatus>], started: &[Arc<ListenerStatus>]) {
    for status in started.iter().filter(|status| !old.iter().any(|old| Arc::ptr_eq(old, status))) {
        status.acceptor.control(Control::Stop);
        #[cfg(feature = "quic")]
        if let Some(quic) = &status.quic
            && !old.iter().filter_map(|old| old.quic.as_ref()).any(|old| old.is(quic))
        {
            quic.server.stop();
        }
    }
}

/// The socket of a running listener on the very address, whatever its name.
fn socket_of(old: &[Arc<ListenerStatus>], listener: &Listener) -> Option<Arc<TcpListener>> {
    let status = old.iter().find(|status| status.configured == listener.listen && listener.listen.port() != 0)?;
    status.socket.upgrade()
}
