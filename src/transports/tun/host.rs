//! An interface in the host's own network: its addresses, its routes, and what is given back when it ends.
//!
//! Needs CAP_NET_ADMIN. Blocks for the time of some system calls, and of `nft` where addresses are to be masqueraded.
//! Routes go with the interface; rules and the nftables table are taken away on drop. A table that a killed process has
//! left is taken away at the next start.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::codec_request::Prefix;
use super::device::{OffloadKnob, Tun, TunError};
use super::interface::{Interface, configure, nft};

/// What to make.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// The TUN node, usually `/dev/net/tun`.
    pub node: PathBuf,
    /// The interface's name.
    pub name: String,
    /// Its MTU.
    pub mtu: u16,
    /// Whether super-packets are used.
    pub offload: OffloadKnob,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// Networks behind it. One that holds every address of its family is routed as wg-quick(8) does it: for all
    /// packets that do not carry `mark`.
    pub routes: Vec<Prefix>,
    /// The mark of the tunnel's own datagrams, and the number of the routing table for everything.
    pub mark: u32,
    /// What comes out of the tunnel and leaves by another interface gets that one's address. Needs the program `nft`.
    /// Forwarding itself is the host's to allow (`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`).
    pub masquerade: bool,
}

/// An interface in the host's network.
#[derive(Debug)]
pub struct HostNetwork {
    interface: Interface,
    routes: Vec<Prefix>,
    /// The families of which everything goes through it.
    all: Vec<bool>,
    mark: u32,
    /// The name of the nftables table, if there is one.
    table: Option<String>,
}

impl HostNetwork {
    /// Makes the interface and its routes; nothing is left if something fails.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start(settings: &HostSettings) -> Result<(Self, Tun), HostError> {
        let tun = Tun::open(&settings.node, &settings.name, settings.offload).map_err(HostError::Tun)?;
        let interface = configure(tun.name(), settings.mtu, &settings.addresses).map_err(HostError::Interface)?;
        let mut network = Self { interface, routes: Vec::new(), all: Vec::new(), mark: settings.mark, table: None };
        network.set_routes(&settings.routes)?;
        let table = format!("portway_{}", tun.name());
        if !settings.masquerade {
            without_table(&table);
        } else {
            // Created and deleted first, so that one left behind does not count.
            let rules = format!(
                "table inet {table} {{}}
                delete table inet {table}
                table inet {table} {{
                    chain outbound {{
                        type nat hook postrouting priority srcnat;
                        iifname \"{name}\" oifname != \"{name}\" masquerade
                    }}
                }}\n",
                name = tun.name()
            );
            nft(&rules).map_err(HostError::Masquerade)?;
            network.table = Some(table);
        }
        Ok((network, tun))
    }

    /// Routes these networks through the interface, and no longer those that were before and are not among them.
    ///
    /// # Errors
    /// [`HostError::Route`] with the first that was refused; the others stay as they were.
    pub fn set_routes(&mut self, routes: &[Prefix]) -> Result<(), HostError> {
        let network = |prefix: &Prefix| Prefix { address: prefix.network(), bits: prefix.bits };
        let wanted: Vec<Prefix> = routes.iter().map(network).collect();
        for route in &wanted {
            if self.routes.contains(route) {
                continue;
            }
            let said = |error| HostError::Route(*route, error);
            if route.bits == 0 {
                let v6 = route.address.is_ipv6();
                self.interface.take_all(v6, self.mark, false).map_err(said)?;
                self.all.push(v6);
            } else {
                self.interface.add_route(*route).map_err(said)?;
            }
            self.routes.push(*route);
        }
        for route in self.routes.iter().filter(|route| !wanted.contains(route)) {
            let v6 = route.address.is_ipv6();
            let removed = if route.bits == 0 {
                self.all.retain(|family| *family != v6);
                self.interface.take_all(v6, self.mark, true)
            } else {
                self.interface.remove_route(*route)
            };
            if let Err(error) = removed {
                // Somebody else took it away already.
                tracing::debug!(%route, %error, "a route was not there to be removed");
            }
        }
        self.routes.retain(|route| wanted.contains(route));
        Ok(())
    }
}

impl Drop for HostNetwork {
    fn drop(&mut self) {
        for v6 in self.all.drain(..) {
            if let Err(error) = self.interface.take_all(v6, self.mark, true) {
                tracing::warn!(%error, v6, "the rules for a tunnel that takes everything were not removed");
            }
        }
        if let Some(table) = self.table.take()
            && let Err(error) = nft(&format!("delete table inet {table}\n"))
        {
            tracing::warn!(%error, table, "the nftables table was not removed");
        }
    }
}

/// Takes away what a process that could not end in order has left: it would hold for this interface as well.
fn without_table(table: &str) {
    // Created first, so that one that is not there is no error.
    match nft(&format!("table inet {table} {{}}\ndelete table inet {table}\n")) {
        Ok(()) => {}
        // Without the program no table was made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, table, "an nftables table of before, if there is one, was not removed"),
    }
}

/// Why there is no interface.
#[derive(Debug)]
#[non_exhaustive]
pub enum HostError {
    /// It could not be made.
    Tun(TunError),
    /// It could not be set up.
    Interface(io::Error),
    /// A route was refused.
    Route(Prefix, io::Error),
    /// The nftables rules were refused.
    Masquerade(io::Error),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tun(error) => error.fmt(f),
            Self::Interface(error) => write!(f, "the interface cannot be set up: {error}"),
            Self::Route(route, error) => write!(f, "the route to {route}: {error}"),
            Self::Masquerade(error) => write!(f, "masquerading: {error}"),
        }
    }
}

impl std::error::Error for HostError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Tun(error) => Some(error),
            Self::Interface(error) | Self::Route(_, error) | Self::Masquerade(error) => Some(error),
        }
    }
}
