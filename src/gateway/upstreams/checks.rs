//! Active checks: each server is connected to again and again, and asked where the configuration says so.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::keeper::Count;
use crate::actors::clock::{later, now, sleep_until, within};
use crate::gateway::config::{Check, Health};
use crate::transports::kit::balance::{Address, Balancer, ServerId, ServerView};
use crate::transports::relay::{Dial, Network};

/// Servers of one upstream that are checked at the same time.
const CHECKS: usize = 64;

/// Checks that went the same way in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Streak {
    good: u32,
    bad: u32,
}

impl Streak {
    /// What the server is to be taken for from now on, if that changes.
    fn note(&mut self, good: bool, healthy: bool, health: &Health) -> Option<bool> {
        if good {
            *self = Self { good: self.good.saturating_add(1), bad: 0 };
            (!healthy && self.good >= health.healthy_after).then_some(true)
        } else {
            *self = Self { good: 0, bad: self.bad.saturating_add(1) };
            (healthy && self.bad >= health.unhealthy_after).then_some(false)
        }
    }
}

/// Connects to each server again and again.
pub(super) async fn check(health: &Health, balancer: &Arc<Balancer>, asked: &Asked, count: &Count) -> Infallible {
    let mut streaks: BTreeMap<ServerId, Streak> = BTreeMap::new();
    loop {
        let began = now();
        let servers = balancer.view(began);
        streaks.retain(|id, _| servers.iter().any(|server| server.id == *id));
        let checks = servers.into_iter().map(|server| async move { (connects(&server, health, asked).await, server) });
        let mut checks = stream::iter(checks).buffer_unordered(CHECKS);
        while let Some((result, server)) = checks.next().await {
            let good = match result {
                Found::Up => true,
                Found::Down => false,
                // Says nothing about the server.
                Found::Unknown => {
                    count.raise("upstream_checks", "local");
                    continue;
                }
            };
            count.raise("upstream_checks", if good { "ok" } else { "failed" });
            if let Some(healthy) = streaks.entry(server.id).or_default().note(good, server.healthy, health) {
                balancer.set_health(server.id, healthy);
                // Servers are no peers: whoever mends one has to know which.
                if healthy {
                    tracing::info!(upstream = %count.upstream, server = %server.address, "a server is back");
                } else {
                    tracing::warn!(upstream = %count.upstream, server = %server.address, "a server is down");
                }
            }
        }
        sleep_until(later(began, health.interval)).await;
    }
}

enum Found {
    Up,
    Down,
    Unknown,
}

async fn connects(server: &ServerView, health: &Health, asked: &Asked) -> Found {
    let path = (health.check == Check::Http).then_some(health.path.as_str());
    if let Some(found) = asked.in_their_way(server, health, path).await {
        return found;
    }
    let mut network = asked.network.clone();
    let host = match &server.address {
        Address::Tcp(address) => address.to_string(),
        Address::Tls { name, .. } => name.to_string(),
        Address::Unix(_) => "localhost".to_owned(),
        // The configuration refuses checks of these.
        Address::Quic { .. } | Address::Udp(_) => return Found::Unknown,
    };
    let connected = within(health.timeout, async {
        let mut stream = network.dial(&server.address)?;
        std::future::poll_fn(|cx| network.poll_connected(&mut stream, cx)).await?;
        answers(stream, &host, path).await
    });
    match connected.await {
        Ok(Ok(())) => Found::Up,
        Ok(Err(error)) if is_ours(&error) => Found::Unknown,
        Ok(Err(_)) | Err(_) => Found::Down,
    }
}

/// How servers are reached, and asked if they speak TLS or HTTP/2.
pub(super) struct Asked {
    pub(super) network: Network,
    #[cfg(feature = "http")]
    pub(super) http: Arc<crate::transports::http::Upstream>,
}

impl Asked {
    #[cfg(feature = "http")]
    async fn in_their_way(&self, server: &ServerView, health: &Health, path: Option<&str>) -> Option<Found> {
        // Without a path it is enough that a relay would be joined to it, unless a version of HTTP has to be agreed on.
        if !self.http.is_asked_in_its_own_way() || (path.is_none() && !self.http.agrees_on_a_version()) {
            return None;
        }
        let answer = within(health.timeout, crate::transports::http::ask(&self.http, &server.address, path)).await;
        if let Ok(Err(error)) = &answer {
            tracing::debug!(server = %server.address, %error, "a check failed");
        }
        Some(match answer {
            Ok(Ok(status)) if status.is_success() || status.is_redirection() => Found::Up,
            Ok(Err(error)) if is_ours(&error) => Found::Unknown,
            Ok(Ok(_) | Err(_)) | Err(_) => Found::Down,
        })
    }

    #[cfg(not(feature = "http"))]
    async fn in_their_way(&self, _: &ServerView, _: &Health, _: Option<&str>) -> Option<Found> {
        std::future::ready(None).await
    }
}

/// Whether a server answers a request for `path` well, if it is to be asked.
async fn answers(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    host: &str,
    path: Option<&str>,
) -> io::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: portway-check\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // `HTTP/1.1 200`: the status is all that counts.
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    match &head {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'2' | b'3', _, _] => Ok(()),
        _ => Err(io::Error::other("the answer is not from 200 to 399")),
    }
}

/// Whether this machine lacks what a connection needs, whoever it goes to.
fn is_ours(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    // A tunnel that is not up is no fault of a server behind it.
    error.kind() == io::ErrorKind::NetworkDown
        || Errno::from_io_error(error).is_some_and(|errno| lacking.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaks_decide_only_changes() {
        let health = Health { healthy_after: 2, unhealthy_after: 3, ..Health::default() };
        let mut streak = Streak::default();
        let note = |streak: &mut Streak, good, healthy| streak.note(good, healthy, &health);
        assert_eq!(note(&mut streak, false, true), None);
        assert_eq!(note(&mut streak, false, true), None);
        assert_eq!(note(&mut streak, true, true), None);
        assert_eq!([(); 3].map(|()| note(&mut streak, false, true)), [None, None, Some(false)]);
        assert_eq!(note(&mut streak, false, false), None);
        assert_eq!(note(&mut streak, true, false), None);
        assert_eq!(note(&mut streak, true, false), Some(true));
    }
}
