//! `/api/moq`: every relay of Media over QUIC with its namespaces and tracks, as JSON.

use std::time::Duration;

use serde::Serialize;

use super::Relays;

/// A relay or track that does not answer within this is shown without what it knows.
const PATIENCE: Duration = Duration::from_secs(1);
/// Tracks and namespaces shown of one relay.
const SHOWN: usize = 1_000;

#[derive(Serialize)]
struct RelayRow {
    listener: String,
    path: Option<String>,
    sessions: usize,
    /// Subscriptions that wait for a publisher.
    waiting: usize,
    namespaces: Vec<NamespaceRow>,
    tracks: Vec<TrackRow>,
}

#[derive(Serialize)]
struct NamespaceRow {
    namespace: String,
    publishers: usize,
}

#[derive(Serialize)]
struct TrackRow {
    track: String,
    publishers: usize,
    live: bool,
    /// Whether some subscriber wants objects.
    wanted: bool,
    /// Arbiters with subscribers, and those of them that have not caught up.
    arbiters: usize,
    behind: usize,
    largest: Option<String>,
    cached_groups: usize,
    cached_bytes: usize,
}

pub(crate) async fn api(relays: &Relays) -> Result<String, serde_json::Error> {
    let mut rows = Vec::new();
    for (listener, path, relay) in relays.all() {
        let view = relay.view(PATIENCE).await;
        rows.push(RelayRow {
            listener,
            path,
            sessions: view.sessions,
            waiting: view.held,
            namespaces: view
                .namespaces
                .iter()
                .take(SHOWN)
                .map(|(namespace, publishers)| NamespaceRow {
                    namespace: namespace.to_string(),
                    publishers: *publishers,
                })
                .collect(),
            tracks: view
                .tracks
                .iter()
                .take(SHOWN)
                .map(|track| TrackRow {
                    track: track.name.to_string(),
                    publishers: track.publishers,
                    live: track.live,
                    wanted: track.forward,
                    arbiters: track.arbiters,
                    behind: track.behind,
                    largest: track.largest.map(|at| at.to_string()),
                    cached_groups: track.cached_groups,
                    cached_bytes: track.cached_bytes,
                })
                .collect(),
        });
    }
    serde_json::to_string_pretty(&rows)
}
