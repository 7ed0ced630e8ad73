//! `/api/wireguard`: every interface with its peers, as JSON. No key but public ones.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Tunnel;
use crate::transports::wireguard::{DeviceMsg, PeerView};

/// A device that does not answer within this is shown without peers.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct InterfaceRow {
    name: String,
    listen: String,
    mode: &'static str,
    public_key: String,
    answered: bool,
    sessions: usize,
    peers: Vec<PeerRow>,
}

#[derive(Serialize)]
struct PeerRow {
    name: Option<String>,
    public_key: String,
    endpoint: Option<String>,
    allowed_ips: Vec<String>,
    keepalive_s: Option<u16>,
    expires: Option<u64>,
    /// Where its session lives, if it has one.
    arbiter: Option<usize>,
    received_bytes: u64,
    sent_bytes: u64,
    /// Seconds since keys were last agreed.
    handshake_ago_s: Option<u64>,
}

impl PeerRow {
    fn of(view: &PeerView) -> Self {
        Self {
            name: view.settings.name.as_ref().map(ToString::to_string),
            public_key: view.settings.public_key.to_string(),
            endpoint: view.endpoint.map(|endpoint| endpoint.to_string()),
            allowed_ips: view.settings.allowed.iter().map(ToString::to_string).collect(),
            keepalive_s: view.settings.keepalive,
            expires: view.settings.expires,
            arbiter: view.arbiter,
            received_bytes: view.received,
            sent_bytes: view.sent,
            handshake_ago_s: view.handshake_ago.map(|ago| ago.as_secs()),
        }
    }
}

/// The page.
pub(crate) async fn api(tunnels: &[Arc<Tunnel>]) -> Result<String, serde_json::Error> {
    let mut rows = Vec::new();
    for tunnel in tunnels {
        let peers = tunnel.device().ask_urgent(DeviceMsg::Peers, PATIENCE).await;
        rows.push(InterfaceRow {
            name: tunnel.name.to_string(),
            listen: tunnel.address.to_string(),
            mode: tunnel.inside.mode(),
            public_key: tunnel.public_key().to_string(),
            answered: peers.is_ok(),
            sessions: tunnel.interface.sessions(),
            peers: peers.iter().flatten().map(PeerRow::of).collect(),
        });
    }
    serde_json::to_string_pretty(&rows)
}
