//! What is known of the servers of one upstream: addresses of the file, and what names led to last. Pure.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::gateway::config::{self, Host, Server};
use crate::transports::kit::balance::Address;

/// Addresses taken from one name: whoever answers for it does not decide how much we keep.
pub(super) const ADDRESSES: usize = 256;

/// What is known of the servers, in the order of the file.
pub(super) struct Answers(Vec<Answer>);

enum Answer {
    Given(Address),
    /// What a name led to last, and what is spoken there.
    Found(Spoken, Vec<Address>),
}

/// What is spoken at an address that a name led to.
enum Spoken {
    Tcp,
    Udp,
    /// QUIC, by a server whose certificate names this.
    Quic(Arc<str>),
    /// TLS, by a server whose certificate names this.
    Tls(Arc<str>),
}

impl Spoken {
    fn at(&self, address: SocketAddr) -> Address {
        match self {
            Self::Tcp => Address::Tcp(address),
            Self::Udp => Address::Udp(address),
            Self::Quic(name) => Address::Quic { address, name: name.clone() },
            Self::Tls(name) => Address::Tls { address, name: name.clone() },
        }
    }
}

impl Answers {
    pub(super) fn new(upstream: &config::Upstream) -> Self {
        let demanded = upstream.tls.as_ref().and_then(|tls| tls.name.as_deref());
        let there = |host: &Host, port: u16, spoken: Spoken| match host {
            Host::Address(ip) => Answer::Given(spoken.at(SocketAddr::new(*ip, port))),
            Host::Name(_) => Answer::Found(spoken, Vec::new()),
        };
        let answer = |server: &Server| match server {
            Server::Tcp(address) if upstream.tls.is_some() => {
                let name = demanded.map_or_else(|| Arc::from(address.ip().to_string()), Arc::from);
                Answer::Given(Spoken::Tls(name).at(*address))
            }
            Server::Name { host, .. } if upstream.tls.is_some() => {
                Answer::Found(Spoken::Tls(Arc::from(demanded.unwrap_or(host))), Vec::new())
            }
            Server::Tcp(address) => Answer::Given(Address::Tcp(*address)),
            Server::Unix(path) => Answer::Given(Address::Unix(path.clone())),
            Server::Name { .. } => Answer::Found(Spoken::Tcp, Vec::new()),
            Server::Udp { host, port } => there(host, *port, Spoken::Udp),
            Server::Quic { host, port } => {
                let name = demanded.map_or_else(|| Arc::from(host.to_string()), Arc::from);
                there(host, *port, Spoken::Quic(name))
            }
        };
        Self(upstream.servers.iter().map(answer).collect())
    }

    pub(super) fn has_names(&self) -> bool {
        self.0.iter().any(|answer| matches!(answer, Answer::Found(..)))
    }

    pub(super) fn servers(&self) -> Vec<Address> {
        let all = self.0.iter().flat_map(|answer| match answer {
            Answer::Given(address) => std::slice::from_ref(address),
            Answer::Found(_, addresses) => addresses,
        });
        all.cloned().collect()
    }

    /// Whether that is news. Resolvers give the addresses of a name in any order.
    pub(super) fn set(&mut self, at: usize, mut addresses: Vec<SocketAddr>) -> bool {
        addresses.sort();
        addresses.dedup();
        addresses.truncate(ADDRESSES);
        let Some(Answer::Found(spoken, before)) = self.0.get_mut(at) else { return false };
        let addresses: Vec<_> = addresses.into_iter().map(|address| spoken.at(address)).collect();
        let news = *before != addresses;
        *before = addresses;
        news
    }
}
