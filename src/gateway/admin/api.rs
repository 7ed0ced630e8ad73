//! The JSON answers of the admin listener.

use serde::Serialize;

use crate::actors::{ActorView, MeshView};
use crate::gateway::{LastReload, Status};

const LIMIT: usize = 1_000;

/// What part of the actor tree to show.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter {
    kind: Option<String>,
    limit: usize,
}

impl Filter {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, &'static str> {
        let mut filter = Self { kind: None, limit: LIMIT };
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("kind", kind)) => filter.kind = Some(kind.to_owned()),
                Some(("limit", limit)) => filter.limit = limit.parse().map_err(|_| "limit must be a number\n")?,
                Some(_) | None => return Err("the query knows kind= and limit=\n"),
            }
        }
        Ok(filter)
    }
}

#[derive(Serialize)]
struct Tree<'a> {
    arbiters: Vec<Arbiter<'a>>,
    /// Actors that the filter matches; `actors` shows at most `limit` of them.
    total: usize,
    actors: Vec<Actor<'a>>,
}

#[derive(Serialize)]
struct Arbiter<'a> {
    index: usize,
    name: &'a str,
    answered: bool,
    live: usize,
    busy_percent: f64,
    delay_us: u128,
}

#[derive(Serialize)]
struct Actor<'a> {
    id: u64,
    kind: &'a str,
    name: Option<&'a str>,
    parent: Option<u64>,
    arbiter: usize,
    age_ms: u128,
    #[serde(flatten)]
    work: Work,
}

/// What an actor has to do and has done: the same for one and in the list of all.
#[derive(Debug, Serialize)]
pub(super) struct Work {
    inbox: usize,
    inbox_bytes: usize,
    inbox_high: usize,
    inbox_oldest_us: Option<u128>,
    refused: u64,
    handled: u64,
    turns: u64,
    busy_us: u128,
    longest_turn_us: u128,
    held_bytes: usize,
    restarts: u32,
    last_failure: Option<&'static str>,
}

impl From<&ActorView> for Work {
    fn from(actor: &ActorView) -> Self {
        Self {
            inbox: actor.inbox,
            inbox_bytes: actor.inbox_bytes,
            inbox_high: actor.inbox_high,
            inbox_oldest_us: actor.inbox_oldest.map(|age| age.as_micros()),
            refused: actor.refused,
            handled: actor.handled,
            turns: actor.turns,
            busy_us: actor.busy.as_micros(),
            longest_turn_us: actor.longest_turn.as_micros(),
            held_bytes: actor.held,
            restarts: actor.restarts,
            last_failure: actor.last_failure,
        }
    }
}

pub(super) fn actors(view: &MeshView, filter: &Filter) -> Result<String, serde_json::Error> {
    let matches = |kind: &str| filter.kind.as_deref().is_none_or(|wanted| wanted == kind);
    let tree = Tree {
        arbiters: view
            .arbiters
            .iter()
            .map(|arbiter| Arbiter {
                index: arbiter.index,
                name: &arbiter.name,
                answered: arbiter.answered,
                live: arbiter.live,
                busy_percent: f64::from(arbiter.busy_permille) / 10.0,
                delay_us: arbiter.delay.as_micros(),
            })
            .collect(),
        total: view.actors().filter(|actor| matches(actor.kind)).count(),
        actors: view
            .actors()
            .filter(|actor| matches(actor.kind))
            .take(filter.limit)
            .map(|actor| Actor {
                id: actor.id.number(),
                kind: actor.kind,
                name: actor.name.as_deref(),
                parent: actor.parent.map(|parent| parent.number()),
                arbiter: actor.arbiter,
                age_ms: actor.age.as_millis(),
                work: actor.into(),
            })
            .collect(),
    };
    serde_json::to_string_pretty(&tree)
}

#[derive(Serialize)]
struct Running {
    /// Configurations that have been applied, that of the start among them.
    applied: u64,
    /// The file that a reload reads; absent in a program that has none.
    file: Option<String>,
    last_reload: Option<LastReload>,
    kept: Vec<String>,
    changed: Vec<String>,
    /// Those of the changed that were made anew: their sessions ended.
    renewed: Vec<String>,
    added: Vec<String>,
    removed: Vec<String>,
    /// Keys beside listeners and upstreams that have changed and are in use.
    settings: Vec<&'static str>,
    /// Keys, or tables, that have changed and need a restart.
    needs_restart: Vec<&'static str>,
}

/// Which configuration runs: `last_reload` is the last that was tried, the lists are of the last that was applied.
pub(super) fn config(status: &Status) -> Result<String, serde_json::Error> {
    let done = status.last_applied.read();
    serde_json::to_string_pretty(&Running {
        applied: status.applied(),
        file: status.file.read().as_ref().map(|file| file.display().to_string()),
        last_reload: status.last_reload(),
        kept: done.kept.clone(),
        changed: done.changed.clone(),
        renewed: done.renewed.clone(),
        added: done.added.clone(),
        removed: done.removed.clone(),
        settings: done.settings.clone(),
        needs_restart: done.restart.clone(),
    })
}

#[derive(Serialize)]
struct Listener<'a> {
    name: &'a str,
    listen: String,
    protocol: &'a str,
    accepting: bool,
    connections: usize,
    half_open: usize,
    accepted: u64,
    refused: std::collections::BTreeMap<&'a str, u64>,
    closed: std::collections::BTreeMap<&'a str, u64>,
}

pub(super) fn listeners(view: &MeshView, status: &Status) -> Result<String, serde_json::Error> {
    let by_reason = |family: &str, name: &str| {
        view.totals
            .iter()
            .filter(|(counter, _)| counter.family == family && &*counter.scope == name)
            .map(|(counter, value)| (counter.reason, value))
            .collect()
    };
    let running = status.listeners();
    let listeners: Vec<_> = running
        .iter()
        .map(|listener| Listener {
            name: &listener.name,
            listen: listener.address.to_string(),
            protocol: &listener.protocol,
            accepting: listener.accepting(),
            connections: listener.occupancy.connections(),
            half_open: listener.occupancy.half_open(),
            accepted: view.totals.get("connections_accepted", &listener.name, ""),
            refused: by_reason("connections_refused", &listener.name),
            closed: by_reason("connections_closed", &listener.name),
        })
        .collect();
    serde_json::to_string_pretty(&listeners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_strict() {
        assert_eq!(Filter::parse(None), Ok(Filter { kind: None, limit: LIMIT }));
        assert_eq!(
            Filter::parse(Some("kind=framed&limit=3")),
            Ok(Filter { kind: Some("framed".to_owned()), limit: 3 })
        );
        assert!(Filter::parse(Some("limit=x")).is_err());
        assert!(Filter::parse(Some("colour=red")).is_err());
    }
}
