//! Relays connections to where their clients wanted to, behind a redirect of the kernel (`SO_ORIGINAL_DST`).
//!
//! A connection that wanted to an address outside of the allowed networks, to one that is no other host's, or nowhere
//! but here, is reset and counted as `forward_refused`.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;

use super::actor::Relay;
use super::dial::Reach;
use super::state::RelaySettings;
use crate::actors::{Place, SpawnError, Spec, Turn};
use crate::transports::kit::balance::{Address, BalanceSettings, Balancer};
use crate::transports::kit::routes::{Network, is_elsewhere};
use crate::transports::tcp::{Accepted, Never, OnAccept};

/// See the top of the file.
#[derive(Debug)]
pub struct Onward {
    listener: Arc<str>,
    allowed: Vec<Network>,
    idle: Option<Duration>,
    random: RandomState,
    count: u64,
}

impl Onward {
    /// `listener` is the scope of the counters; a connection on which nothing moves for `idle` is cut.
    #[must_use]
    pub fn new(listener: Arc<str>, allowed: Vec<Network>, idle: Option<Duration>) -> Self {
        Self { listener, allowed, idle, random: RandomState::new(), count: 0 }
    }

    fn wanted(&self, accepted: &Accepted) -> Option<SocketAddr> {
        let socket = SockRef::from(&accepted.stream);
        let here = accepted.stream.local_addr().ok()?;
        let wanted = if here.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        let wanted = wanted.ok()?.as_socket()?;
        let allowed = self.allowed.iter().any(|network| network.contains(wanted.ip()));
        (wanted != here && allowed && is_elsewhere(wanted.ip())).then_some(wanted)
    }
}

impl OnAccept for Onward {
    fn accepted(&mut self, accepted: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        let Some(wanted) = self.wanted(&accepted) else {
            turn.counter("forward_refused", &self.listener, "").add(1);
            // So that its client cannot take it for an empty answer.
            let _gone_already = SockRef::from(&accepted.stream).set_linger(Some(Duration::ZERO));
            return Ok(());
        };
        let balancer = Balancer::new(vec![Address::Tcp(wanted)], BalanceSettings::default());
        let mut settings = RelaySettings::new(balancer, self.listener.clone());
        settings.idle = self.idle;
        settings.attempts = 1;
        self.count += 1;
        let (listener, random) = (self.listener.clone(), self.random.hash_one(self.count));
        let make = move || Relay::accepted(accepted, Reach::default(), listener, Arc::new(settings), random);
        turn.spawn(Place::LeastLoaded, Spec::default(), make).map(drop)
    }
}
