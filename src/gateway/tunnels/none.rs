//! A build without WireGuard: there are no tunnels. The same names as in `tunnels`, so that nobody else needs to know.

#[path = "around.rs"]
mod around;

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::config::{Config, Listener, Protocol};
use super::passed::Passed;
use super::reload::plan::Fate;
use super::sites::Certificates;
use super::upstreams::Upstreams;
use super::{Reloaded, StartError};

pub(super) use around::Around;

/// There is none.
#[derive(Debug)]
pub(crate) enum Tunnel {}

pub(crate) type Tunnels = Mutex<Vec<Arc<Tunnel>>>;

impl Tunnel {
    pub(super) fn row(&self) -> Row<'_> {
        match *self {}
    }

    pub(super) fn accepting(&self) -> bool {
        match *self {}
    }
}

/// What is shown of a tunnel beside the listeners of TCP.
pub(crate) struct Row<'a> {
    pub(super) name: &'a Arc<str>,
    pub(super) address: SocketAddr,
    pub(super) accepting: bool,
    pub(super) sessions: usize,
}

pub(super) enum Step {}

pub(super) type Bound = Step;

pub(super) const fn apart(_: &Config) -> Vec<String> {
    Vec::new()
}

pub(super) fn bind(_: &Config, _: &Passed) -> Result<Vec<Step>, StartError> {
    Ok(Vec::new())
}

pub(super) fn start_all(_: Around<'_>, _: Vec<Step>) -> Result<Vec<Arc<Tunnel>>, StartError> {
    Ok(Vec::new())
}

pub(super) fn plan(_: Around<'_>, _: &[Arc<Tunnel>], _: &Config) -> Result<Vec<Step>, StartError> {
    Ok(Vec::new())
}

pub(super) fn fate(tunnel: &Tunnel, _: &Listener, _: impl Fn(&str) -> bool, _: (&Certificates, &Certificates)) -> Fate {
    match *tunnel {}
}

pub(super) fn apply(
    _: Around<'_>,
    _: &[Arc<Tunnel>],
    _: Vec<Step>,
    _: &mut Reloaded,
) -> Result<Vec<Arc<Tunnel>>, StartError> {
    Ok(Vec::new())
}

pub(super) fn lead(_: &Upstreams, _: &[Arc<Tunnel>]) {}

pub(super) fn drain(_: &[Arc<Tunnel>], _: std::time::Duration) {}

pub(super) fn is_tcp(listener: &Listener) -> bool {
    !matches!(listener.protocol, Protocol::Quic(_) | Protocol::Udp(_))
}

pub(super) async fn api(_: &[Arc<Tunnel>]) -> Result<String, serde_json::Error> {
    Ok("[]".to_owned())
}
