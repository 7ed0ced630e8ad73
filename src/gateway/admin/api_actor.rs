//! `/api/actors/ID`: all that is known about one actor.

use serde::Serialize;

use super::api::Work;
use super::sample;
use crate::actors::Mesh;
use crate::gateway::Status;

/// One actor.
#[derive(Debug, Serialize)]
pub(super) struct OneActor {
    id: u64,
    kind: &'static str,
    family: &'static str,
    /// Whether it may be closed from outside.
    session: bool,
    name: Option<String>,
    /// The actor that started it: its kind and name.
    parent: Option<(u64, String)>,
    /// The listener that let it in, if one did.
    listener: Option<String>,
    arbiter: usize,
    age_ms: u128,
    peer: Option<String>,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(flatten)]
    work: Work,
    draining: bool,
    /// Of a QUIC connection.
    path: Option<Path>,
}

/// What QUIC knows of the way to a peer.
#[derive(Debug, Serialize)]
pub(super) struct Path {
    state: &'static str,
    alpn: String,
    server_name: Option<String>,
    rtt_us: u128,
    window_bytes: usize,
    mtu: usize,
    packets_lost: u64,
    streams: usize,
    queued_bytes: usize,
}

pub(super) async fn actor(mesh: &Mesh, status: &Status, id: u64) -> Option<OneActor> {
    let actor = mesh.actor(id).await?;
    let parent = match actor.parent {
        Some(parent) => mesh.actor(parent.number()).await,
        None => None,
    };
    let listeners = status.listeners();
    let is_listener = |name: &str| listeners.iter().any(|listener| *listener.name == *name);
    let of_parent = parent.as_ref().and_then(|parent| parent.name.as_deref()).filter(|name| is_listener(name));
    let session = sample::is_session(actor.kind);
    Some(OneActor {
        id: actor.id.number(),
        kind: actor.kind,
        family: sample::family(actor.kind),
        session,
        name: actor.name.as_deref().map(str::to_owned),
        listener: of_parent.map(str::to_owned),
        parent: parent.as_ref().map(|parent| {
            let name = parent.name.as_deref().unwrap_or_default();
            (parent.id.number(), format!("{} {name}", parent.kind).trim_end().to_owned())
        }),
        arbiter: actor.arbiter,
        age_ms: actor.age.as_millis(),
        peer: actor.traffic.peer.map(|peer| peer.to_string()),
        bytes_in: actor.traffic.bytes_in,
        bytes_out: actor.traffic.bytes_out,
        work: (&actor).into(),
        draining: actor.draining,
        path: if actor.kind == "quic" { path(status, id).await } else { None },
    })
}

#[cfg(feature = "quic")]
async fn path(status: &Status, id: u64) -> Option<Path> {
    let mut found = None;
    for listener in status.listeners().iter() {
        if let (None, Some(quic)) = (&found, &listener.quic) {
            found = quic.server.connection(id).await;
        }
    }
    let info = found?;
    Some(Path {
        state: info.state,
        alpn: String::from_utf8_lossy(&info.alpn).into_owned(),
        server_name: info.server_name.as_deref().map(str::to_owned),
        rtt_us: info.rtt.as_micros(),
        window_bytes: info.window,
        mtu: info.mtu,
        packets_lost: info.packets[2],
        streams: info.streams,
        queued_bytes: info.queued,
    })
}

#[cfg(not(feature = "quic"))]
#[expect(clippy::unused_async, reason = "with QUIC it waits for the arbiters")]
async fn path(_: &Status, _: u64) -> Option<Path> {
    None
}
