//! `/api/connections`: a reading of each QUIC connection, of listeners and to upstreams.

use serde::Serialize;

use crate::gateway::Status;
use crate::transports::quic::{Info, Role};

/// Connections shown per arbiter and listener, at most.
const MOST: usize = 1_000;

#[derive(Serialize)]
struct Row {
    /// The listener, or `upstreams`.
    of: String,
    role: &'static str,
    state: &'static str,
    arbiter: usize,
    alpn: String,
    server_name: Option<String>,
    local: String,
    peer: String,
    rtt_us: u128,
    cwnd_bytes: usize,
    /// Of BBR2 alone.
    bandwidth_bytes_s: Option<u64>,
    mtu: usize,
    packets_sent: u64,
    packets_received: u64,
    packets_lost: u64,
    bytes_sent: u64,
    bytes_received: u64,
    bytes_lost: u64,
    streams: usize,
    queued_bytes: usize,
    resumed: bool,
    age_ms: u128,
}

fn row(of: &str, info: &Info) -> Row {
    let [packets_sent, packets_received, packets_lost] = info.packets;
    let [bytes_sent, bytes_received, bytes_lost] = info.bytes;
    Row {
        of: of.to_owned(),
        role: match info.role {
            Role::Server => "server",
            Role::Client => "client",
        },
        state: info.state,
        arbiter: info.arbiter,
        alpn: String::from_utf8_lossy(&info.alpn).into_owned(),
        server_name: info.server_name.as_deref().map(str::to_owned),
        local: info.local.to_string(),
        peer: info.peer.to_string(),
        rtt_us: info.rtt.as_micros(),
        cwnd_bytes: info.window,
        bandwidth_bytes_s: info.bandwidth,
        mtu: info.mtu,
        packets_sent,
        packets_received,
        packets_lost,
        bytes_sent,
        bytes_received,
        bytes_lost,
        streams: info.streams,
        queued_bytes: info.queued,
        resumed: info.resumed,
        age_ms: info.age.as_millis(),
    }
}

pub(super) async fn connections(status: &Status) -> Result<String, serde_json::Error> {
    let mut rows = Vec::new();
    for listener in status.listeners().iter() {
        if let Some(quic) = &listener.quic {
            rows.extend(quic.server.connections(MOST).await.iter().map(|info| row(&listener.name, info)));
        }
    }
    let client = status.over_quic.lock().links.client().cloned();
    if let Some(client) = client {
        rows.extend(client.connections(MOST).await.iter().map(|info| row("upstreams", info)));
    }
    serde_json::to_string_pretty(&rows)
}
