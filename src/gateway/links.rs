//! The ways to servers over QUIC: one for each upstream that has such servers, all through one client.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::StartError;
use super::certificates::Certificates;
use super::config;
use crate::actors::Mesh;
#[cfg(feature = "qlog")]
use crate::transports::quic::Qlog;
use crate::transports::quic::{ClientSettings, QuicClient, Transport};
use crate::transports::relay::{LinkSettings, Links};
use crate::transports::tls;

/// A connection that carries nothing asks this often whether the other end is still there.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(10);
/// Then a handshake begins anew: QUIC waits twice as long after each packet that nobody has answered, and a server that is
/// back is to be found within seconds.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(5);
/// Bytes of a stream, and of a connection, that may wait for a slow client: as for listeners.
const TRANSPORT: fn() -> Transport =
    || Transport { keep_alive: Some(KEEP_ALIVE), handshake_timeout: HANDSHAKE, ..Transport::default() };

/// The ways by the names of their upstreams. A clone is the same ones.
#[derive(Clone, Default)]
pub(super) struct AllLinks {
    client: Option<QuicClient>,
    by_upstream: BTreeMap<String, Way>,
}

/// The way to the servers of one upstream.
#[derive(Clone)]
struct Way {
    says: tls::ClientSettings,
    /// The folder of logs.
    qlog: Option<PathBuf>,
    client: QuicClient,
    links: Links,
}

impl fmt::Debug for AllLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_upstream.keys()).finish()
    }
}

impl AllLinks {
    /// What these become under another configuration: those that say and demand the same go on. Nothing ends yet: see
    /// [`retire`](Self::retire).
    ///
    /// # Errors
    /// See [`StartError`]; what had been started for it ends then.
    pub(super) fn renewed(
        &self,
        mesh: &Mesh,
        upstreams: &[config::Upstream],
        certificates: &Certificates,
    ) -> Result<Self, StartError> {
        let mut next = Self { client: self.client.clone(), by_upstream: BTreeMap::new() };
        for upstream in upstreams {
            let Some(tls) = upstream.tls.as_ref().filter(|_| upstream.is_over_quic()) else { continue };
            match self.one(mesh, upstream, tls, certificates, &mut next.client) {
                Ok(made) => drop(next.by_upstream.insert(upstream.name.clone(), made)),
                Err(error) => {
                    next.retire(self);
                    return Err(error);
                }
            }
        }
        Ok(next)
    }

    fn one(
        &self,
        mesh: &Mesh,
        upstream: &config::Upstream,
        tls: &config::UpstreamTls,
        certificates: &Certificates,
        client: &mut Option<QuicClient>,
    ) -> Result<Way, StartError> {
        let says = certificates
            .client(tls)
            .map_err(|error| StartError::Tls { of: format!("upstream `{}`", upstream.name), error })?;
        let qlog = tls.qlog.clone();
        let before = self.by_upstream.get(&upstream.name);
        if let Some(before) = before.filter(|before| before.says == says && before.qlog == qlog) {
            return Ok(before.clone());
        }
        let client = match client {
            Some(client) => client.clone(),
            None => {
                let settings = ClientSettings { transport: TRANSPORT(), ..ClientSettings::new("upstreams") };
                let started = QuicClient::start(mesh, settings).map_err(|error| StartError::Tls {
                    of: "QUIC to upstreams".to_owned(),
                    error: tls::TlsError::Library(error.to_string()),
                })?;
                client.insert(started).clone()
            }
        };
        let client = logged(client, &upstream.name, qlog.as_ref())?;
        let settings = LinkSettings { client: client.clone(), tls: says.clone() };
        let links = Links::start(mesh, &upstream.name, settings).map_err(|error| {
            client.end_log();
            StartError::Spawn(error)
        })?;
        Ok(Way { says, qlog, client, links })
    }

    /// The way to the servers of this upstream, if it is over QUIC.
    pub(super) fn get(&self, upstream: &str) -> Option<&Links> {
        self.by_upstream.get(upstream).map(|way| &way.links)
    }

    /// Ends those that `kept` has not. Streams that are open go on.
    pub(super) fn retire(&self, kept: &Self) {
        for (name, way) in &self.by_upstream {
            if kept.get(name) != Some(&way.links) {
                way.links.stop();
                way.client.end_log();
            }
        }
    }

    /// What makes the connections, once there is need of it.
    pub(super) fn client(&self) -> Option<&QuicClient> {
        self.client.as_ref()
    }
}

/// The client, with the logs that an upstream asks for.
#[cfg(feature = "qlog")]
fn logged(client: QuicClient, upstream: &str, qlog: Option<&PathBuf>) -> Result<QuicClient, StartError> {
    let Some(folder) = qlog else { return Ok(client) };
    client.logged(&upstream.into(), Qlog::new(folder)).map_err(|error| StartError::Tls {
        of: format!("upstream `{upstream}`"),
        error: tls::TlsError::Library(error.to_string()),
    })
}

/// No logs without the feature: `check` refuses to ask for them.
#[cfg(not(feature = "qlog"))]
#[expect(clippy::unnecessary_wraps, reason = "with logs it may fail")]
fn logged(client: QuicClient, _: &str, _: Option<&PathBuf>) -> Result<QuicClient, StartError> {
    Ok(client)
}
