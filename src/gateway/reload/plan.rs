//! What a reload of a configuration would do to the running gateway: `portway check --diff` shows it, nothing is touched.
//!
//! It judges by the same comparisons as the reload itself. What only trying can tell, a port in use for instance, it
//! does not know; what a name resolves to it does not ask.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::settings::Differences;
#[cfg(feature = "quic")]
use crate::gateway::certificates::Certificates as Loaded;
use crate::gateway::config::{Config, Listener, Protocol};
#[cfg(feature = "http")]
use crate::gateway::sites;
use crate::gateway::sites::Certificates;
use crate::gateway::{Gateway, StartError, tunnels};

/// What becomes of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Fate {
    /// Not touched.
    Keep,
    /// Told of what differs; its sessions go on.
    Change,
    /// Made anew: its sessions end at once, and their peers find that out by themselves.
    Renew,
    /// Takes no more; its sessions finish.
    Drain,
    /// New.
    Start,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Change => "change",
            Self::Renew => "renew",
            Self::Drain => "drain",
            Self::Start => "start",
        })
    }
}

/// One listener or upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Step {
    /// What becomes of it.
    pub fate: Fate,
    /// `listener` or `upstream`.
    pub of: String,
    /// Its name.
    pub name: String,
    /// Sessions it has now.
    pub sessions: usize,
}

/// All that a reload would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// Listeners, then upstreams, each in the order of the new file, those that go at the end.
    pub steps: Vec<Step>,
    /// Keys beside listeners and upstreams that differ and would be in use at once.
    #[serde(default)]
    pub settings: Vec<String>,
    /// Keys, or tables, that differ and need a restart.
    pub restart: Vec<String>,
}

impl Plan {
    /// The names of the listeners with this fate.
    pub fn listeners(&self, fate: Fate) -> impl Iterator<Item = &str> {
        self.steps.iter().filter(move |step| step.fate == fate && step.of == "listener").map(|step| step.name.as_str())
    }

    /// As lines for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let width = self.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
        for Step { fate, of, name, sessions } in &self.steps {
            let plural = if *sessions == 1 { "session" } else { "sessions" };
            let tail = match fate {
                Fate::Start => String::new(),
                Fate::Drain => format!("{sessions} {plural} to finish"),
                Fate::Keep | Fate::Change => format!("{sessions} {plural}"),
                Fate::Renew => format!("made anew, {sessions} {plural} cut off"),
            };
            // Writing to a String does not fail.
            let _ = writeln!(out, "{}", format!("{fate:<7} {of:<9} {name:<width$}  {tail}").trim_end());
        }
        if !self.settings.is_empty() {
            let _ = writeln!(out, "settings changed: {}", self.settings.join(", "));
        }
        if !self.restart.is_empty() {
            let _ = writeln!(out, "needs a restart: {}", self.restart.join(", "));
        }
        out
    }
}

impl Gateway {
    /// What a [`reload`](Self::reload) with this configuration would do. May read the files of certificates.
    ///
    /// # Errors
    /// [`StartError`] if one of them cannot be used: then the reload would be refused.
    pub fn plan(&self, new: &Config) -> Result<Plan, StartError> {
        let running = self.config.read();
        let old = self.status.listeners();
        #[cfg(feature = "quic")]
        let over = {
            let over = self.status.over_quic.lock();
            Loaded::load(&new.certificates, Some(&over.certificates))?
        };
        let before = self.status.certificates.lock().clone();
        #[cfg(all(feature = "http", feature = "quic"))]
        let certificates = over.clone();
        #[cfg(all(feature = "http", not(feature = "quic")))]
        let certificates = Certificates::load(&new.certificates, Some(&before))?;
        #[cfg(not(feature = "http"))]
        let certificates = Certificates;
        let changed = changed_upstreams(&running, new, (&before, &certificates));
        let Differences { taken, held } = Differences::between(&running, new);
        let owned = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        let mut plan = Plan { settings: owned(taken), restart: owned(held), ..Plan::default() };
        let tunnels = self.status.tunnels();
        for listener in &new.listeners {
            let was = running.listeners.iter().find(|was| was.name == listener.name);
            let status = old.iter().find(|status| *status.name == *listener.name);
            let tunnel = tunnels.iter().find(|tunnel| **tunnel.row().name == *listener.name);
            let sessions = match (status, tunnel) {
                (Some(status), _) => status.occupancy.connections(),
                (None, Some(tunnel)) => tunnel.row().sessions,
                (None, None) => 0,
            };
            let fate = if is_tunnel(listener) {
                match tunnel {
                    None => Fate::Start,
                    Some(tunnel) => {
                        let same = |name: &str| !changed.contains(name);
                        tunnels::fate(tunnel, listener, same, (&before, &certificates))
                    }
                }
            } else if was.is_none() {
                Fate::Start
            } else if is_quic(listener) {
                #[cfg(feature = "quic")]
                let stays = self.quic_stays(listener, was, status, (&over, &mut plan.restart))?;
                #[cfg(not(feature = "quic"))]
                let stays = false;
                if stays { Fate::Keep } else { Fate::Change }
            } else {
                let alive = status.is_some_and(|status| status.accepting());
                let same = alive
                    && was.is_some_and(|was| super::same(was, listener))
                    && same_around(listener, |name| !changed.contains(name), (&before, &certificates));
                if same { Fate::Keep } else { Fate::Change }
            };
            plan.steps.push(Step { fate, of: "listener".to_owned(), name: listener.name.clone(), sessions });
        }
        let stays = |name: &str| new.listeners.iter().any(|listener| listener.name == name);
        let gone = old.iter().map(|status| (status.name.to_string(), status.occupancy.connections()));
        let gone = gone.chain(tunnels.iter().map(|tunnel| (tunnel.row().name.to_string(), tunnel.row().sessions)));
        plan.steps.extend(gone.filter(|(name, _)| !stays(name)).map(|(name, sessions)| Step {
            fate: Fate::Drain,
            of: "listener".to_owned(),
            name,
            sessions,
        }));
        self.plan_upstreams(&running, new, &changed, &mut plan);
        Ok(plan)
    }

    fn plan_upstreams(&self, running: &Config, new: &Config, changed: &BTreeSet<&str>, plan: &mut Plan) {
        let upstreams = self.status.upstreams();
        let now = crate::actors::clock::now();
        let sessions = |name: &str| {
            upstreams.get(name).map_or(0, |balancer| balancer.view(now).iter().map(|server| server.connections).sum())
        };
        let mut push = |fate, name: &str| {
            plan.steps.push(Step { fate, of: "upstream".to_owned(), name: name.to_owned(), sessions: sessions(name) });
        };
        for upstream in &new.upstreams {
            let known = running.upstreams.iter().any(|was| was.name == upstream.name);
            push(
                match (known, changed.contains(upstream.name.as_str())) {
                    (false, _) => Fate::Start,
                    (true, true) => Fate::Change,
                    (true, false) => Fate::Keep,
                },
                &upstream.name,
            );
        }
        for was in running.upstreams.iter().filter(|was| !new.upstreams.iter().any(|new| new.name == was.name)) {
            push(Fate::Drain, &was.name);
        }
    }

    #[cfg(feature = "quic")]
    fn quic_stays(
        &self,
        listener: &Listener,
        was: Option<&Listener>,
        status: Option<&std::sync::Arc<crate::gateway::ListenerStatus>>,
        (certificates, restart): (&Loaded, &mut Vec<String>),
    ) -> Result<bool, StartError> {
        let (Protocol::Quic(quic), Some(was)) = (&listener.protocol, was) else { return Ok(false) };
        let Protocol::Quic(before) = &was.protocol else { return Ok(false) };
        let Some(server) = status.filter(|status| status.accepting()).and_then(|status| status.quic.as_ref()) else {
            return Ok(false);
        };
        let upstreams = self.status.upstreams();
        let around = crate::gateway::quic::Around {
            mesh: &self.mesh,
            certificates,
            upstreams: &upstreams,
            budget: &self.status.budget,
        };
        let settings = crate::gateway::quic::settings_of(listener, quic, &around)?;
        let held = server.needs_restart(&settings).into_iter().map(str::to_owned);
        restart.extend(held.filter(|key| !restart.contains(key)).collect::<Vec<_>>());
        let same = before.routes == quic.routes
            && before.moq == quic.moq
            && was.limits == listener.limits
            && was.listen == listener.listen;
        Ok(same && !server.would_change(&settings))
    }
}

#[cfg(feature = "wireguard")]
const fn is_tunnel(listener: &Listener) -> bool {
    matches!(listener.protocol, Protocol::Wireguard(_))
}

#[cfg(not(feature = "wireguard"))]
const fn is_tunnel(_: &Listener) -> bool {
    false
}

const fn is_quic(listener: &Listener) -> bool {
    matches!(listener.protocol, Protocol::Quic(_))
}

/// The upstreams of the new configuration that the running ones cannot stand for.
fn changed_upstreams<'a>(
    running: &Config,
    new: &'a Config,
    certificates: (&Certificates, &Certificates),
) -> BTreeSet<&'a str> {
    let is_same = |upstream: &crate::gateway::config::Upstream| {
        let was = running.upstreams.iter().find(|was| was.name == upstream.name);
        was == Some(upstream) && same_names(upstream, certificates)
    };
    new.upstreams.iter().filter(|upstream| !is_same(upstream)).map(|upstream| upstream.name.as_str()).collect()
}

#[cfg(feature = "http")]
fn same_names(upstream: &crate::gateway::config::Upstream, (before, now): (&Certificates, &Certificates)) -> bool {
    let names = upstream.tls.iter().flat_map(|tls| tls.trust.iter().chain(&tls.certificate)).cloned().collect();
    before.same_for(now, &crate::gateway::config::ListenerTls { certificates: names, ..Default::default() })
}

#[cfg(not(feature = "http"))]
const fn same_names(_: &crate::gateway::config::Upstream, _: (&Certificates, &Certificates)) -> bool {
    true
}

/// Whether what a listener on TCP leads to, and what it says in handshakes, is the same as before.
pub(crate) fn same_around(
    listener: &Listener,
    unchanged: impl Fn(&str) -> bool,
    #[cfg_attr(not(feature = "http"), expect(unused_variables, reason = "without TLS there are none"))] (before, now): (
        &Certificates,
        &Certificates,
    ),
) -> bool {
    match &listener.protocol {
        #[cfg(feature = "http")]
        Protocol::Relay(relay) => {
            relay.upstreams().all(unchanged) && relay.tls.as_ref().is_none_or(|tls| before.same_for(now, tls))
        }
        #[cfg(not(feature = "http"))]
        Protocol::Relay(relay) => relay.upstreams().all(unchanged),
        Protocol::Framed(framed) => framed.upstream.as_deref().is_none_or(unchanged),
        #[cfg(feature = "http")]
        Protocol::Http(http) => sites::upstreams_of(http).all(unchanged) && sites::same_certificates(http, before, now),
        Protocol::Udp(udp) => udp.upstream.as_deref().is_none_or(unchanged),
        Protocol::Quic(_) | Protocol::Custom { .. } => true,
        #[cfg(feature = "wireguard")]
        Protocol::Wireguard(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_goes_on_and_what_finishes() {
        let step =
            |fate, name: &str, sessions| Step { fate, of: "listener".to_owned(), name: name.to_owned(), sessions };
        let plan = Plan {
            steps: vec![step(Fate::Keep, "a", 1), step(Fate::Drain, "long", 2), step(Fate::Start, "new", 0)],
            settings: vec!["runtime.memory".to_owned(), "log.level".to_owned()],
            restart: vec!["admin".to_owned()],
        };
        let expected = "keep    listener  a     1 session\ndrain   listener  long  2 sessions to finish\n\
                        start   listener  new\nsettings changed: runtime.memory, log.level\nneeds a restart: admin\n";
        assert_eq!(plan.text(), expected);
    }
}
