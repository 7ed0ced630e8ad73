//! What the dashboard shows, as data: a sample of the gateway each second, and the difference of two samples as JSON.
//!
//! Pure: `sampler` asks the arbiters, `events` sends. A session is a cell of four small numbers; a difference lists the
//! cells that came, changed or went, so that a second in which nothing happens costs a few hundred bytes with 20,000
//! sessions as with none. At most [`CELLS`] are shown; how many are not is told.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use super::super::overview::{LastReload, ListenerRow, ServerRow};
use crate::actors::ArbiterGlance;

/// Cells that one sample has at most: beyond that nobody sees single ones.
pub(super) const CELLS: usize = 50_000;
/// Events that a page which has just opened is told of.
pub(super) const TAIL: usize = 100;

/// One actor as a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) id: u64,
    /// Its place in [`Sample::kinds`].
    pub(super) kind: u8,
    /// What it moved in the last second, from 0 (nothing) to 7 (16 MiB and more).
    pub(super) level: u8,
    /// See [`CROWDED`] and [`DRAINING`].
    pub(super) flags: u8,
    /// How often it was made anew, as far as it fits.
    pub(super) restarts: u8,
}

pub(super) const CROWDED: u8 = 1;
pub(super) const DRAINING: u8 = 2;

/// One arbiter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) busy_permille: u32,
    pub(super) delay_us: u64,
    pub(super) answered: bool,
    pub(super) actors: usize,
}

/// The line on top.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Top {
    pub(super) version: &'static str,
    pub(super) uptime_s: u64,
    pub(super) not_ready: Option<String>,
    /// How many configurations have been applied.
    pub(super) config: u64,
    pub(super) last_reload: Option<LastReload>,
    pub(super) bits_in: u64,
    pub(super) bits_out: u64,
    pub(super) sessions: usize,
    /// Actors beyond [`CELLS`].
    pub(super) hidden: usize,
    pub(super) memory: (usize, usize),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Happened {
    /// Counted from the start.
    pub(super) number: u64,
    /// Milliseconds since 1970.
    pub(super) at_ms: u64,
    /// `info`, `warn` or `error`.
    pub(super) level: &'static str,
    pub(super) text: String,
}

/// The gateway at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Counted from 1.
    pub(super) number: u64,
    pub(super) top: Top,
    pub(super) lanes: Vec<Lane>,
    /// Of each lane, in the order of their identities.
    pub(super) cells: Vec<Vec<Cell>>,
    /// Kinds of actors and what they belong to, in the order in which they were first seen.
    pub(super) kinds: Vec<(&'static str, &'static str)>,
    pub(super) listeners: Vec<ListenerRow>,
    pub(super) servers: Vec<ServerRow>,
    /// Counter, scope, reason and number of what was not done.
    pub(super) drops: Vec<(String, String, String, u64)>,
    /// The last [`TAIL`].
    pub(super) happened: Vec<Happened>,
}

/// The protocol that a kind of actor belongs to; `system` is what serves no single peer.
pub(super) fn family(kind: &str) -> &'static str {
    const SYSTEM: [&str; 22] = [
        "admin",
        "admin_connection",
        "admin_sampler",
        "listener",
        "moq-directory",
        "moq-mirror",
        "moq-track",
        "netstack",
        "private_network",
        "quic_backlog",
        "quic_endpoint",
        "quic_links",
        "quic_qlog",
        "rooms",
        "tun",
        "udp_door",
        "udp_flows",
        "upstream",
        "wireguard",
        "wireguard_names",
        "wireguard_tx",
        "wireguard_uapi",
    ];
    const FAMILIES: [&str; 7] = ["framed", "relay", "http", "quic", "wireguard", "moq", "udp"];
    if SYSTEM.contains(&kind) || kind.ends_with("_listener") {
        return "system";
    }
    FAMILIES.into_iter().find(|family| kind.starts_with(family)).unwrap_or("custom")
}

/// Whether a kind of actor serves one peer: only such may be closed from outside.
pub(super) fn is_session(kind: &str) -> bool {
    family(kind) != "system"
}

impl Sample {
    /// The cells of a reading, with levels by what has moved since the reading before.
    pub(super) fn cells_of(&mut self, now: &[ArbiterGlance], before: &[ArbiterGlance], millis: u64) {
        let mut room = CELLS;
        self.lanes.clear();
        self.cells.clear();
        (self.top.sessions, self.top.hidden) = (0, 0);
        for (n, arbiter) in now.iter().enumerate() {
            let actors = arbiter.actors.as_deref().unwrap_or_default();
            let mut old = before.get(n).and_then(|old| old.actors.as_deref()).unwrap_or_default().iter().peekable();
            let mut cells = Vec::with_capacity(actors.len().min(room));
            for actor in actors {
                let kind = self.kind(actor.kind);
                let session = self.kinds.get(usize::from(kind)).is_some_and(|(_, family)| *family != "system");
                self.top.sessions += usize::from(session);
                if cells.len() >= room {
                    self.top.hidden += 1;
                    continue;
                }
                while old.next_if(|old| old.id < actor.id).is_some() {}
                let (bytes, turns) = match old.peek().filter(|old| old.id == actor.id) {
                    Some(old) => (actor.bytes.saturating_sub(old.bytes), actor.turns.saturating_sub(old.turns)),
                    None => (actor.bytes, actor.turns),
                };
                let per_second = bytes.saturating_mul(1_000) / millis.max(1);
                cells.push(Cell {
                    id: actor.id.number(),
                    kind,
                    level: level(per_second, turns),
                    flags: if actor.crowded { CROWDED } else { 0 } | if actor.draining { DRAINING } else { 0 },
                    restarts: u8::try_from(actor.restarts).unwrap_or(u8::MAX),
                });
            }
            room -= cells.len();
            self.cells.push(cells);
            self.lanes.push(Lane {
                name: arbiter.name.to_string(),
                busy_permille: arbiter.busy_permille,
                delay_us: u64::try_from(arbiter.delay.as_micros()).unwrap_or(u64::MAX),
                answered: arbiter.actors.is_some(),
                actors: actors.len(),
            });
        }
    }

    /// The number of a kind, a new one if it was never seen. Kinds are named by the code, so they are few.
    fn kind(&mut self, kind: &'static str) -> u8 {
        let found = self.kinds.iter().position(|(known, _)| *known == kind);
        let at = found.unwrap_or_else(|| {
            self.kinds.push((kind, family(kind)));
            self.kinds.len() - 1
        });
        u8::try_from(at).unwrap_or(u8::MAX)
    }

    /// What whoever knows `before` has to be told, as one JSON object; everything, if that is nothing.
    pub(super) fn since(&self, before: Option<&Self>) -> Result<String, serde_json::Error> {
        let nothing = Self::default();
        let old = before.unwrap_or(&nothing);
        let mut out = String::with_capacity(4_096);
        // Writing to a String does not fail.
        let _ = write!(out, "{{\"number\":{},\"first\":{}", self.number, before.is_none());
        let mut part = |name: &str, json: String| {
            let _ = write!(out, ",\"{name}\":{json}");
        };
        part("top", serde_json::to_string(&self.top)?);
        part("lanes", serde_json::to_string(&self.lanes)?);
        if self.kinds.len() != old.kinds.len() {
            part("kinds", serde_json::to_string(&self.kinds)?);
        }
        if self.listeners != old.listeners {
            part("listeners", serde_json::to_string(&self.listeners)?);
        }
        if self.servers != old.servers {
            part("servers", serde_json::to_string(&self.servers)?);
        }
        if self.drops != old.drops {
            part("drops", serde_json::to_string(&self.drops)?);
        }
        let seen = old.happened.last().map_or(0, |last| last.number);
        let new: Vec<_> = self.happened.iter().filter(|happened| happened.number > seen).collect();
        if !new.is_empty() {
            part("happened", serde_json::to_string(&new)?);
        }
        self.cells_since(old, &mut out);
        out.push('}');
        Ok(out)
    }

    /// `add` has lane, number, kind, level, flags, restarts; `set` has number, level, flags, restarts; `gone` numbers.
    fn cells_since(&self, old: &Self, out: &mut String) {
        let (mut add, mut set, mut gone) = (String::new(), String::new(), String::new());
        let none = Vec::new();
        for lane in 0..self.cells.len().max(old.cells.len()) {
            let (mut was, mut is) = (
                old.cells.get(lane).unwrap_or(&none).iter().peekable(),
                self.cells.get(lane).unwrap_or(&none).iter().peekable(),
            );
            loop {
                let order = match (was.peek(), is.peek()) {
                    (None, None) => break,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some(was), Some(is)) => was.id.cmp(&is.id),
                };
                match order {
                    Ordering::Less => {
                        if let Some(cell) = was.next() {
                            let _ = write!(gone, ",{}", cell.id);
                        }
                    }
                    Ordering::Greater => {
                        if let Some(Cell { id, kind, level, flags, restarts }) = is.next() {
                            let _ = write!(add, ",{lane},{id},{kind},{level},{flags},{restarts}");
                        }
                    }
                    Ordering::Equal => {
                        let (was, is) = (was.next(), is.next());
                        if let Some(Cell { id, level, flags, restarts, .. }) = is.filter(|_| was != is) {
                            let _ = write!(set, ",{id},{level},{flags},{restarts}");
                        }
                    }
                }
            }
        }
        for (name, list) in [("add", add), ("set", set), ("gone", gone)] {
            if let Some(list) = list.strip_prefix(',') {
                let _ = write!(out, ",\"{name}\":[{list}]");
            }
        }
    }
}

/// Four times as much is one more; an actor that counts no bytes shows its turns.
fn level(bytes: u64, turns: u64) -> u8 {
    match bytes {
        0 => u8::from(turns > 0),
        1..1_024 => 1,
        1_024..16_384 => 2,
        16_384..131_072 => 3,
        131_072..1_048_576 => 4,
        1_048_576..4_194_304 => 5,
        4_194_304..16_777_216 => 6,
        _ => 7,
    }
}

/// What rose between two lists of drops, in words.
pub(super) fn risen(now: &[(String, String, String, u64)], before: &[(String, String, String, u64)]) -> Vec<String> {
    let known: BTreeSet<_> = before.iter().collect();
    let old = |drop: &(String, String, String, u64)| {
        before.iter().find(|old| (&old.0, &old.1, &old.2) == (&drop.0, &drop.1, &drop.2)).map_or(0, |old| old.3)
    };
    now.iter()
        .filter(|drop| !known.contains(drop))
        .map(|drop| {
            let (family, scope, reason, n) = drop;
            format!("{family} {scope} {reason}: {} more, {n} in all", n.saturating_sub(old(drop)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(id: u64, level: u8) -> Cell {
        Cell { id, kind: 0, level, flags: 0, restarts: 0 }
    }

    fn sample(cells: &[&[Cell]]) -> Sample {
        Sample { cells: cells.iter().map(|cells| cells.to_vec()).collect(), ..Sample::default() }
    }

    fn said(now: &Sample, before: Option<&Sample>) -> serde_json::Value {
        serde_json::from_str(&now.since(before).unwrap()).unwrap()
    }

    #[test]
    fn a_difference_says_who_came_changed_and_went() {
        let before = sample(&[&[cell(1, 0), cell(3, 0), cell(5, 0)], &[cell(2, 0)]]);
        let now = sample(&[&[cell(1, 0), cell(4, 2), cell(5, 7)], &[]]);
        let json = said(&now, Some(&before));
        assert_eq!(json["add"], serde_json::json!([0, 4, 0, 2, 0, 0]));
        assert_eq!(json["set"], serde_json::json!([5, 7, 0, 0]));
        assert_eq!(json["gone"], serde_json::json!([3, 2]));
        assert_eq!(json["first"], false);
    }

    #[test]
    fn a_quiet_second_is_small_whatever_there_is() {
        let cells: Vec<Cell> = (0..20_000).map(|id| cell(id, 1)).collect();
        let (before, now) = (sample(&[&cells]), sample(&[&cells]));
        let text = now.since(Some(&before)).unwrap();
        assert!(text.len() < 600, "{text}");
        let first = said(&now, None);
        assert_eq!(first["add"].as_array().unwrap().len(), 6 * 20_000);
        assert_eq!(first["first"], true);
    }

    #[test]
    fn kinds_belong_to_protocols() {
        for (kind, expected) in [
            ("framed", "framed"),
            ("http", "http"),
            ("http_upstream", "http"),
            ("quic", "quic"),
            ("quic_endpoint", "system"),
            ("wireguard_peer", "wireguard"),
            ("wireguard", "system"),
            ("udp_flow", "udp"),
            ("moq_session", "moq"),
            ("moq-track", "system"),
            ("shout", "custom"),
            ("tls_listener", "system"),
        ] {
            assert_eq!(family(kind), expected, "{kind}");
        }
    }

    #[test]
    fn levels_rise_with_what_is_moved() {
        let levels =
            [(0, 0), (0, 9), (1, 0), (5_000, 0), (20_000, 0), (1 << 18, 0), (2 << 20, 0), (8 << 20, 0), (1 << 30, 0)];
        assert_eq!(levels.map(|(bytes, turns)| level(bytes, turns)), [0, 1, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn what_rose_is_told_with_by_how_much() {
        let drop = |n| ("refused".to_owned(), "echo".to_owned(), "limit".to_owned(), n);
        assert_eq!(risen(&[drop(5)], &[drop(2)]), ["refused echo limit: 3 more, 5 in all"]);
        assert_eq!(risen(&[drop(5)], &[drop(5)]), [""; 0]);
        assert_eq!(risen(&[drop(5)], &[]), ["refused echo limit: 5 more, 5 in all"]);
    }
}
