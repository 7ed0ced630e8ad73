//! What `portway status` shows: the gateway at one moment, as JSON for machines and as tables for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Status;
use crate::actors::{CounterName, MeshView, Totals, clock};
use crate::transports::kit::balance::Balancer;

/// The gateway at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Overview {
    /// The version of the program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Why it is not ready; absent while it is.
    pub not_ready: Option<String>,
    /// The last reload, if there was one.
    pub last_reload: Option<LastReload>,
    /// Bytes leased of the memory budget, and the budget.
    pub memory: (usize, usize),
    /// The arbiters.
    pub arbiters: Vec<ArbiterRow>,
    /// The listeners, in the order of the file; then those that a reload took out, while they have connections.
    pub listeners: Vec<ListenerRow>,
    /// The servers of all upstreams, in the order of the upstreams' names.
    pub servers: Vec<ServerRow>,
    /// Actors alive, by kind.
    pub actors: BTreeMap<String, usize>,
    /// What was refused, closed for a fault, dropped or contained: counter, scope, reason and number.
    pub drops: Vec<(String, String, String, u64)>,
}

/// How the last reload went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LastReload {
    /// Seconds ago.
    pub ago_s: u64,
    /// Whether it was applied.
    pub applied: bool,
    /// What it did, or why it was refused.
    pub message: String,
}

/// One arbiter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArbiterRow {
    /// The name of its thread.
    pub name: String,
    /// Whether it answered within a second.
    pub answered: bool,
    /// CPU time in percent of wall time, last 100 ms.
    pub busy_percent: f64,
    /// What a message waits for at least, in microseconds.
    pub delay_us: u64,
    /// Actors on it.
    pub actors: usize,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListenerRow {
    /// Its name.
    pub name: String,
    /// The address it is bound to.
    pub address: String,
    /// Its protocol.
    pub protocol: String,
    /// Whether it takes connections.
    pub accepting: bool,
    /// Whether a reload took it out: it is here until its last connection has ended.
    pub draining: bool,
    /// Connections now.
    pub connections: usize,
    /// Connections let in since the start.
    pub accepted: u64,
    /// Connections refused since the start.
    pub refused: u64,
}

/// One server of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerRow {
    /// The upstream.
    pub upstream: String,
    /// Where the server listens.
    pub address: String,
    /// What active checks found last; `true` without checks.
    pub healthy: bool,
    /// Seconds for which it stays ejected after failures, if it is.
    pub ejected_s: Option<u64>,
    /// Connections it has from us.
    pub connections: usize,
    /// Failures in a row.
    pub failures: u32,
}

/// Families whose every rise means that something was not done; and all that end in `_dropped` or `_refused`.
const DROPS: &[&str] = &["actor_panics", "actor_slow_turns", "other"];
/// Ends of connections that are as they should be.
const FINE: &[&str] = &["eof", "finished", "drained", "stopped", "idle", "normal", "unanswered", ""];

impl Overview {
    pub(super) fn of(view: &MeshView, status: &Status) -> Self {
        let mut actors = BTreeMap::new();
        for actor in view.actors() {
            *actors.entry(actor.kind.to_owned()).or_default() += 1;
        }
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: clock::now().saturating_duration_since(status.started).as_secs(),
            not_ready: status.not_ready(),
            last_reload: status.last_reload(),
            memory: (status.budget.used(), status.budget.limit()),
            arbiters: view
                .arbiters
                .iter()
                .map(|arbiter| ArbiterRow {
                    name: arbiter.name.to_string(),
                    answered: arbiter.answered,
                    busy_percent: f64::from(arbiter.busy_permille) / 10.0,
                    delay_us: u64::try_from(arbiter.delay.as_micros()).unwrap_or(u64::MAX),
                    actors: arbiter.live,
                })
                .collect(),
            listeners: listeners(&view.totals, status),
            servers: servers(status),
            actors,
            drops: drops(&view.totals),
        }
    }

    /// As tables for a terminal of any width.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _infallible = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let ready = self.not_ready.as_deref().map_or_else(|| "ready".to_owned(), |why| format!("NOT READY: {why}"));
        writeln!(out, "portway {}, up {} s, {ready}", self.version, self.uptime_s)?;
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        writeln!(out, "memory {:.1} of {:.0} MiB leased", mib(self.memory.0), mib(self.memory.1))?;
        if let Some(reload) = &self.last_reload {
            let what = if reload.applied { "applied" } else { "REFUSED" };
            writeln!(out, "last reload {} s ago, {what}: {}", reload.ago_s, reload.message)?;
        }
        let mut rows = vec![row(&["arbiter", "busy", "delay", "actors"])];
        for a in &self.arbiters {
            let busy = if a.answered { format!("{:.1}%", a.busy_percent) } else { "NO ANSWER".to_owned() };
            rows.push(row(&[&a.name, &busy, &format!("{} us", a.delay_us), &a.actors.to_string()]));
        }
        table(out, &rows)?;
        rows = vec![row(&["listener", "address", "protocol", "state", "now", "accepted", "refused"])];
        for l in &self.listeners {
            let state = match l {
                ListenerRow { draining: true, .. } => "draining",
                ListenerRow { accepting: true, .. } => "open",
                _ => "ENDED",
            };
            let numbers = [l.connections as u64, l.accepted, l.refused].map(|n| n.to_string());
            rows.push(row(&[&l.name, &l.address, &l.protocol, state, &numbers[0], &numbers[1], &numbers[2]]));
        }
        table(out, &rows)?;
        if !self.servers.is_empty() {
            rows = vec![row(&["upstream", "server", "state", "now", "failures in a row"])];
            for s in &self.servers {
                let state = match s.ejected_s {
                    _ if !s.healthy => "DOWN".to_owned(),
                    Some(left) => format!("ejected for {left} s"),
                    None => "up".to_owned(),
                };
                rows.push(row(&[&s.upstream, &s.address, &state, &s.connections.to_string(), &s.failures.to_string()]));
            }
            table(out, &rows)?;
        }
        rows = vec![row(&["actors", "alive"])];
        rows.extend(self.actors.iter().map(|(kind, n)| row(&[kind, &n.to_string()])));
        table(out, &rows)?;
        if !self.drops.is_empty() {
            rows = vec![row(&["dropped or refused", "where", "reason", "times"])];
            rows.extend(
                self.drops.iter().map(|(family, scope, reason, n)| row(&[family, scope, reason, &n.to_string()])),
            );
            table(out, &rows)?;
        }
        Ok(())
    }
}

/// The listeners, tunnels among them, with what they took.
pub(super) fn listeners(totals: &Totals, status: &Status) -> Vec<ListenerRow> {
    let sum = |family: &str, scope: &str| {
        let of_scope =
            |(name, n): (&CounterName, u64)| if name.family == family && &*name.scope == scope { n } else { 0 };
        totals.iter().map(of_scope).sum()
    };
    let connections = status.listeners();
    let rows = connections.iter().map(|listener| ListenerRow {
        name: listener.name.to_string(),
        address: listener.address.to_string(),
        protocol: listener.protocol.clone(),
        accepting: listener.accepting(),
        draining: false,
        connections: listener.occupancy.connections(),
        accepted: sum("connections_accepted", &listener.name),
        refused: sum("connections_refused", &listener.name),
    });
    let tunnels = status.tunnels();
    let tunnels = tunnels.iter().map(|tunnel| {
        let tunnel = tunnel.row();
        ListenerRow {
            name: tunnel.name.to_string(),
            address: tunnel.address.to_string(),
            protocol: "wireguard".to_owned(),
            accepting: tunnel.accepting,
            draining: false,
            connections: tunnel.sessions,
            accepted: sum("wireguard_handshakes", tunnel.name),
            refused: sum("wireguard_dropped", tunnel.name),
        }
    });
    let leaving = status.leaving.read();
    let leaving = leaving.iter().filter(|gone| gone.occupancy.connections() > 0).map(|gone| ListenerRow {
        name: gone.name.to_string(),
        address: gone.address.to_string(),
        protocol: gone.protocol.clone(),
        accepting: false,
        draining: true,
        connections: gone.occupancy.connections(),
        accepted: sum("connections_accepted", &gone.name),
        refused: sum("connections_refused", &gone.name),
    });
    rows.chain(tunnels).chain(leaving).collect()
}

/// What was refused, closed for a fault, dropped or contained.
pub(super) fn drops(totals: &Totals) -> Vec<(String, String, String, u64)> {
    let is_drop = |name: &CounterName| {
        DROPS.contains(&name.family)
            || name.family.ends_with("_dropped")
            || name.family.ends_with("_refused")
            || name.family == "connections_closed" && !FINE.contains(&name.reason)
    };
    let drops = totals.iter().filter(|(name, n)| *n > 0 && is_drop(name));
    drops.map(|(name, n)| (name.family.to_owned(), name.scope.to_string(), name.reason.to_owned(), n)).collect()
}

pub(super) fn servers(status: &Status) -> Vec<ServerRow> {
    let now = clock::now();
    let upstreams = status.upstreams();
    let of = |(name, balancer): (&str, &Arc<Balancer>)| {
        let name = name.to_owned();
        balancer.view(now).into_iter().map(move |server| ServerRow {
            upstream: name.clone(),
            address: server.address.to_string(),
            healthy: server.healthy,
            ejected_s: server.ejected.map(|left| left.as_secs()),
            connections: server.connections,
            failures: server.failures,
        })
    };
    upstreams.iter().flat_map(of).collect()
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn table(out: &mut String, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|n| rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count()).max().unwrap_or(0))
        .collect();
    writeln!(out)?;
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_shows_what_matters() {
        let overview = Overview {
            version: "1.2.3".to_owned(),
            uptime_s: 5,
            not_ready: Some("draining".to_owned()),
            last_reload: Some(LastReload { ago_s: 3, applied: false, message: "2 mistakes".to_owned() }),
            memory: (1 << 20, 1 << 30),
            arbiters: vec![ArbiterRow {
                name: "portway-0".to_owned(),
                answered: false,
                busy_percent: 1.0,
                delay_us: 7,
                actors: 2,
            }],
            listeners: Vec::new(),
            servers: vec![ServerRow {
                upstream: "app".to_owned(),
                address: "127.0.0.1:1".to_owned(),
                healthy: true,
                ejected_s: Some(4),
                connections: 3,
                failures: 5,
            }],
            actors: BTreeMap::from([("framed".to_owned(), 2)]),
            drops: vec![("connections_refused".to_owned(), "echo".to_owned(), "memory".to_owned(), 9)],
        };
        let text = overview.text();
        for part in [
            "NOT READY: draining",
            "REFUSED: 2 mistakes",
            "NO ANSWER",
            "1.0 of 1024 MiB",
            "memory  9",
            "ejected for 4 s",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let json = serde_json::to_string(&overview).unwrap();
        assert_eq!(serde_json::from_str::<Overview>(&json).unwrap(), overview);
    }
}
