//! Judges upstreams, and whether those that listeners name are there.
use std::collections::BTreeMap;

use super::check_listener::{copied, count, small};
use super::config::{Health, Upstream, UpstreamLimits};
use super::raw_section::{At, Field};
use super::raw_text::Text;
use super::raw_upstream::{RawHealth, RawUpstream, RawUpstreamLimits};
use super::raw_words::nearest_or_list;
use super::report::{Mistakes, Span};

/// The names of all upstreams, also of those with mistakes.
pub(super) struct Names {
    names: Vec<Text>,
    /// Some upstream has no name that can be read: it may be the one that is meant.
    unknown: bool,
}

impl Names {
    pub(super) fn of(raw: &[RawUpstream]) -> Self {
        let names = raw.iter().filter_map(|upstream| match &upstream.name {
            Field::Is(name) => Some(name.value.clone()),
            Field::Absent | Field::Bad => None,
        });
        let names: Vec<_> = names.collect();
        Self { unknown: names.len() < raw.len(), names }
    }

    /// Notes a name that no upstream has.
    pub(super) fn need(&self, name: &At<Text>, mistakes: &mut Mistakes) {
        if self.unknown || self.names.iter().any(|known| known.text == name.value.text) {
            return;
        }
        let known = self.shown();
        let hint = if known.is_empty() {
            "add an `[[upstream]]` with this name".to_owned()
        } else {
            nearest_or_list(&name.value, &known)
        };
        mistakes.add(name.span, format!("{} is not the name of an `[[upstream]]`", name.value.shown()), hint);
    }

    /// What to write where a name is missing.
    pub(super) fn example(&self) -> String {
        match self.shown().first() {
            Some(name) => format!("add `upstream = \"{name}\"`"),
            None => "add `upstream = \"app\"` and an `[[upstream]]` with that name".to_owned(),
        }
    }

    /// Those that did not come from a variable or a file, which no message may quote.
    fn shown(&self) -> Vec<&str> {
        self.names.iter().filter(|name| !name.hidden).map(|name| name.text.as_str()).collect()
    }
}

/// All upstreams; those with mistakes are left out.
pub(super) fn all(raw: Vec<RawUpstream>, mistakes: &mut Mistakes) -> Vec<Upstream> {
    let mut names: BTreeMap<String, Span> = BTreeMap::new();
    let mut upstreams = Vec::with_capacity(raw.len());
    for raw in raw {
        if let Field::Is(name) = &raw.name {
            if let Some(first) = names.get(&name.value.text) {
                let hint = "give each upstream its own name";
                mistakes.add_pair(name.span, "this name is taken", hint, *first, "taken here");
            } else {
                names.insert(name.value.text.clone(), name.span);
            }
        }
        upstreams.extend(upstream(raw));
    }
    upstreams
}

fn upstream(raw: RawUpstream) -> Option<Upstream> {
    let servers = raw.servers.value()?.into_iter().map(|server| server.value).collect();
    let default = Upstream::new(raw.name.value()?.text, servers);
    Some(Upstream {
        balance: raw.balance.value().unwrap_or(default.balance),
        resolve: raw.resolve.value().unwrap_or(default.resolve),
        limits: raw.limits.map(|raw| limits(&raw)).unwrap_or_default(),
        health: raw.health.map(|raw| health(&raw)).unwrap_or_default(),
        ..default
    })
}

fn limits(raw: &RawUpstreamLimits) -> UpstreamLimits {
    let default = UpstreamLimits::default();
    UpstreamLimits {
        connections: count(&raw.connections, default.connections),
        connect_timeout: copied(&raw.connect_timeout, default.connect_timeout),
    }
}

fn health(raw: &RawHealth) -> Health {
    let default = Health::default();
    Health {
        eject_after: small(&raw.eject_after, default.eject_after),
        eject_for: copied(&raw.eject_for, default.eject_for),
        check: copied(&raw.check, default.check),
        interval: copied(&raw.interval, default.interval),
        timeout: copied(&raw.timeout, default.timeout),
        healthy_after: small(&raw.healthy_after, default.healthy_after),
        unhealthy_after: small(&raw.unhealthy_after, default.unhealthy_after),
    }
}
