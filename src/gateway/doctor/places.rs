//! What a configuration names on this machine: ports, certificates and files of keys; and the clock by which certificates
//! and tokens are judged.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Finding;
use crate::actors::clock;
use crate::gateway::config::{CertificateSource, Config, Protocol};
use crate::transports::tcp;

/// 2026-01-01, as seconds since 1970: an earlier clock has lost its battery.
const BUILT_AFTER: u64 = 1_767_225_600;

pub(super) fn findings(config: Option<&Config>) -> Vec<Finding> {
    let mut all = vec![clock_of_the_wall()];
    #[cfg(feature = "udp")]
    all.push(steering());
    let Some(config) = config else { return all };
    all.extend(ports(config));
    for certificate in &config.certificates {
        if let CertificateSource::Files { cert, key } = &certificate.source {
            #[cfg(feature = "tls")]
            all.push(validity(&certificate.name, cert, key));
            #[cfg(not(feature = "tls"))]
            let _ = cert;
            all.push(permissions(key));
        }
    }
    if let Some(admin) = &config.admin
        && admin.tls.is_none()
        && !admin.listen.ip().is_loopback()
    {
        let hint = "the token can be read on the way: add `certificate` to [admin]";
        all.push(Finding::less("admin listener", "plain HTTP for other machines", hint));
    }
    all
}

fn clock_of_the_wall() -> Finding {
    if clock::since_1970().as_secs() < BUILT_AFTER {
        let hint = "certificates and tokens are judged wrongly: `timedatectl set-ntp true`";
        return Finding::less("clock", "before 2026", hint);
    }
    Finding::good("clock", "plausible")
}

/// Whether the kernel sends datagrams of QUIC to the arbiter that its connection id names.
#[cfg(feature = "udp")]
fn steering() -> Finding {
    match crate::transports::udp::Group::bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0)), 2, true) {
        Ok(group) if group.steered() => Finding::good("steering", "the kernel knows the arbiter of a QUIC datagram"),
        Ok(_) => Finding::less("steering", "not by the kernel", "arbiters pass datagrams on: `steer = false` says so"),
        Err(error) => Finding::less("steering", error.to_string(), "QUIC on several arbiters needs SO_REUSEPORT"),
    }
}

/// Binds each port for a moment.
fn ports(config: &Config) -> Vec<Finding> {
    let admin = config.admin.as_ref().map(|admin| ("admin", admin.listen, true, false));
    let listeners = config.listeners.iter().map(|listener| {
        let (tcp, udp) = match &listener.protocol {
            Protocol::Framed(_) | Protocol::Relay(_) | Protocol::Custom { .. } => (true, false),
            #[cfg(feature = "http")]
            Protocol::Http(http) => (true, http.settings.http3),
            Protocol::Quic(_) | Protocol::Udp(_) => (false, true),
            #[cfg(feature = "wireguard")]
            Protocol::Wireguard(_) => (false, true),
        };
        (listener.name.as_str(), listener.listen, tcp, udp)
    });
    let mut bad = Vec::new();
    let mut free = 0;
    for (name, at, over_tcp, over_udp) in admin.into_iter().chain(listeners) {
        let tried = [
            over_tcp.then(|| ("TCP", tcp::bind(at).map(drop))),
            over_udp.then(|| ("UDP", UdpSocket::bind(at).map(drop))),
        ];
        for (kind, result) in tried.into_iter().flatten() {
            let what = format!("port of {name}");
            match result {
                Ok(()) => free += 1,
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    let hint = "by a gateway that runs, or by another program: `ss -lnp` shows it";
                    bad.push(Finding::less(what, format!("{at} is in use over {kind}"), hint));
                }
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    let hint = "`setcap cap_net_bind_service=+ep` on the program, or the unit of systemd";
                    bad.push(Finding::missing(what, format!("{at} over {kind}: {error}"), hint));
                }
                Err(error) => {
                    let hint = "name an address of this machine: `ip address` lists them";
                    bad.push(Finding::missing(what, format!("{at} over {kind}: {error}"), hint));
                }
            }
        }
    }
    if free > 0 {
        bad.insert(0, Finding::good("ports", format!("{free} free")));
    }
    bad
}

#[cfg(feature = "tls")]
fn validity(name: &str, cert: &Path, key: &Path) -> Finding {
    let what = format!("certificate {name}");
    let hint = "get a new one and write it over the files: it is used without a reload";
    match crate::transports::tls::Certificate::from_files(cert, key).map(|read| read.days_left()) {
        Ok(days) if days < 0 => Finding::less(what, format!("expired {} days ago", -days), hint),
        Ok(days) if days < 14 => Finding::less(what, format!("expires in {days} days"), hint),
        Ok(days) => Finding::good(what, format!("good for {days} days")),
        Err(error) => Finding::missing(what, error.to_string(), "`portway check` shows the place"),
    }
}

fn permissions(key: &Path) -> Finding {
    let what = format!("key {}", key.display());
    match std::fs::metadata(key).map(|found| found.permissions().mode() & 0o777) {
        Ok(mode) if mode & 0o077 == 0 => Finding::good(what, "for its owner alone"),
        Ok(mode) => {
            Finding::less(what, format!("mode {mode:o}: others may read it"), format!("`chmod 600 {}`", key.display()))
        }
        Err(error) => Finding::missing(what, error.to_string(), "`portway check` shows the place"),
    }
}
