//! Which server of an upstream gets the next connection.
//!
//! One `Balancer` is shared by all arbiters. A [`Picked`] is a place at a server: it travels with the connection and
//! gives the place back when it is dropped. Servers that fail too often in a row are ejected for a while, never more
//! than the settings allow at once; servers that an active check found down are out until it finds them up. `pick`
//! takes no lock and allocates nothing; only ejections and new lists of servers wait for each other.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use super::balance_words::{Address, BalanceSettings, NoServer, Policy, ServerId, ServerView};
use crate::memory::Snapshot;

/// An ejection is never longer than this many times the first.
const LONGEST: u32 = 10;
/// How often a pick starts again because another arbiter took the last place of the server it chose.
const RACES: usize = 16;

impl BalanceSettings {
    fn may_eject(&self, servers: usize) -> usize {
        let share = 100_usize.saturating_sub(usize::from(self.keep));
        if servers <= 1 { 0 } else { servers.saturating_mul(share) / 100 }
    }

    /// Microseconds that an ejection lasts, counted from 1.
    fn length(&self, ejection: u32) -> u64 {
        let times = 1_u32.checked_shl(ejection.saturating_sub(1)).unwrap_or(LONGEST).clamp(1, LONGEST);
        micros(self.eject_for.saturating_mul(times)).max(1)
    }
}

/// FNV-1a: the same in every process, so that gateways side by side agree.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Spreads what differs in few bits over all of them (the finaliser of SplitMix64).
const fn mixed(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct Server {
    id: ServerId,
    address: Address,
    /// Of the address, for [`Policy::Source`].
    hash: u64,
    connections: AtomicUsize,
    healthy: AtomicBool,
    failures: AtomicU32,
    /// Ejections that still make the next one longer. Changed under `Balancer::changes` only.
    ejections: AtomicU32,
    /// Until when it is ejected, in microseconds since the epoch of the balancer; 0 = it never was. Changed under
    /// `Balancer::changes` only.
    ejected_until: AtomicU64,
    /// Since when it is there again, in microseconds since the epoch of the balancer; 0 = it always was, or for long
    /// enough; `UNSEEN` = since the next time a server is picked.
    back_since: AtomicU64,
}

/// Nobody has looked at it since it came back.
const UNSEEN: u64 = u64::MAX;
/// What a server gets of its share, in thousandths, at the least.
const LEAST_SHARE: u64 = 100;

impl Server {
    fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    fn load(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn take_place(&self, most: usize) -> bool {
        let more = |taken: usize| (taken < most).then_some(taken + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// Chooses servers. See the top of this file.
#[derive(Debug)]
pub struct Balancer {
    settings: BalanceSettings,
    servers: Snapshot<Vec<Arc<Server>>>,
    next_id: AtomicU64,
    turn: AtomicU64,
    /// The first instant this balancer saw: instants become numbers that fit into an atomic.
    epoch: OnceLock<Instant>,
    /// Held while servers are ejected, readmitted or replaced; never by `pick`.
    changes: Mutex<()>,
    /// The servers of the balancer that this one follows: one of them that comes into the list is the same server.
    kept: Vec<Arc<Server>>,
}

/// A place at a server. Dropping it gives the place back.
#[derive(Debug)]
pub struct Picked {
    balancer: Arc<Balancer>,
    server: Arc<Server>,
}

impl Picked {
    /// Which server, to be named in `tried` should it fail.
    #[must_use]
    pub fn id(&self) -> ServerId {
        self.server.id
    }

    /// Where to connect.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.server.address
    }

    /// The server took the connection.
    pub fn succeeded(&self, now: Instant) {
        self.balancer.succeeded(&self.server, now);
    }

    /// The server did not take the connection.
    pub fn failed(&self, now: Instant) {
        self.balancer.failed(&self.server, now);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Balancer {
    /// A balancer over these servers; an address that is there twice is one server.
    #[must_use]
    pub fn new(servers: Vec<Address>, settings: BalanceSettings) -> Arc<Self> {
        let balancer = Self {
            settings,
            servers: Snapshot::default(),
            next_id: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            epoch: OnceLock::new(),
            changes: Mutex::new(()),
            kept: Vec::new(),
        };
        balancer.set_servers(servers);
        Arc::new(balancer)
    }

    /// A balancer that takes the place of this one, with other settings: servers that are in both lists are the same
    /// servers, with the connections they have from either, their health and their ejection. For the moment in which
    /// both are used, news of a failure may count once less or more.
    #[must_use]
    pub fn followed(&self, servers: Vec<Address>, settings: BalanceSettings) -> Arc<Self> {
        let known = self.servers.read();
        let balancer = Self {
            settings,
            servers: Snapshot::new(known.to_vec()),
            next_id: AtomicU64::new(self.next_id.load(Ordering::Relaxed)),
            turn: AtomicU64::new(0),
            epoch: self.epoch.clone(),
            changes: Mutex::new(()),
            kept: known.to_vec(),
        };
        if settings.eject_after == 0 {
            known.iter().for_each(|server| server.ejected_until.store(0, Ordering::Relaxed));
        }
        balancer.set_servers(servers);
        Arc::new(balancer)
    }

    /// What to give [`pick`](Self::pick) as its random number for a client at this address: what the address tells where
    /// the source decides, else `random`.
    #[must_use]
    pub fn seed(&self, random: u64, source: IpAddr) -> u64 {
        match (self.settings.policy, source.to_canonical()) {
            (Policy::Source, IpAddr::V4(v4)) => fnv(&v4.octets()),
            (Policy::Source, IpAddr::V6(v6)) => fnv(&v6.octets()),
            (Policy::RoundRobin | Policy::LeastConnections | Policy::RandomOfTwo, _) => random,
        }
    }

    /// A place at a server that is none of `tried`. `random` is used by [`Policy::RandomOfTwo`] and [`Policy::Source`]
    /// only.
    ///
    /// # Errors
    /// Why there is none; nothing has changed then.
    pub fn pick(self: &Arc<Self>, now: Instant, random: u64, tried: &[ServerId]) -> Result<Picked, NoServer> {
        let servers = self.servers.read();
        let now = self.since_epoch(now);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for _ in 0..RACES {
            let may = |server: &&Arc<Server>| self.refusal(server, now, tried).is_none();
            // Those that have just come back are passed over more often than not, unless there are no others.
            let choosy = self.is_slow() && servers.iter().filter(may).any(|server| self.is_warm(server, now, turn));
            let open = || servers.iter().filter(may).filter(|server| !choosy || self.is_warm(server, now, turn));
            let count = open().count() as u64;
            if count == 0 {
                return Err(self.why_none(&servers, now, tried));
            }
            let nth = |n: u64| open().nth(usize::try_from(n).unwrap_or(usize::MAX));
            let chosen = match self.settings.policy {
                Policy::RoundRobin => nth(turn % count),
                Policy::LeastConnections => {
                    let after = open().skip(usize::try_from(turn % count).unwrap_or(0));
                    after.chain(open()).min_by_key(|server| server.load())
                }
                Policy::RandomOfTwo => {
                    let (low, high) = (random & u64::from(u32::MAX), random >> 32);
                    let first = low % count;
                    // The second of the others: never the first again.
                    let second = (first + 1 + high % (count - 1).max(1)) % count;
                    nth(first).into_iter().chain(nth(second)).min_by_key(|server| server.load())
                }
                Policy::Source => open().max_by_key(|server| mixed(random ^ server.hash)),
            };
            // Nothing chosen, or no place left: another arbiter was quicker, so look again.
            if let Some(server) = chosen.filter(|server| server.take_place(self.settings.max_connections)) {
                return Ok(Picked { balancer: self.clone(), server: server.clone() });
            }
        }
        Err(NoServer::Full)
    }

    fn is_slow(&self) -> bool {
        !self.settings.slow_start.is_zero() && self.settings.policy != Policy::Source
    }

    /// Whether a server takes part in this turn, in which more and more of those do that have just come back.
    fn is_warm(&self, server: &Server, now: u64, turn: u64) -> bool {
        let mut since = server.back_since.load(Ordering::Relaxed);
        if since == 0 {
            return true;
        }
        if since == UNSEEN {
            since = now.max(1);
            server.back_since.store(since, Ordering::Relaxed);
        }
        let (here, whole) = (now.saturating_sub(since), micros(self.settings.slow_start).max(1));
        if here >= whole {
            server.back_since.store(0, Ordering::Relaxed);
            return true;
        }
        mixed(turn ^ server.hash) % 1_000 < (here.saturating_mul(1_000) / whole).max(LEAST_SHARE)
    }

    fn refusal(&self, server: &Server, now: u64, tried: &[ServerId]) -> Option<NoServer> {
        if tried.contains(&server.id) {
            Some(NoServer::AllTried)
        } else if !server.healthy.load(Ordering::Relaxed) || server.is_ejected(now) {
            Some(NoServer::AllEjected)
        } else if server.load() >= self.settings.max_connections {
            Some(NoServer::Full)
        } else {
            None
        }
    }

    /// The reason that would go away soonest.
    fn why_none(&self, servers: &[Arc<Server>], now: u64, tried: &[ServerId]) -> NoServer {
        let refusals = servers.iter().filter_map(|server| self.refusal(server, now, tried));
        refusals
            .max_by_key(|refusal| match refusal {
                NoServer::Empty | NoServer::AllTried => 0,
                NoServer::AllEjected => 1,
                NoServer::Full => 2,
            })
            // No refusal at all: no servers, or a place came free just now.
            .unwrap_or(if servers.is_empty() { NoServer::Empty } else { NoServer::Full })
    }

    /// Takes over a new list. Servers that stay keep their id, their connections, health and ejection; connections to
    /// those that went go on.
    pub fn set_servers(&self, servers: Vec<Address>) {
        let _changing = self.changes.lock();
        let before = self.servers.read();
        let mut after: Vec<Arc<Server>> = Vec::with_capacity(servers.len());
        for address in servers {
            if after.iter().any(|server| server.address == address) {
                continue;
            }
            let stays = before.iter().chain(&self.kept).find(|server| server.address == address);
            after.push(stays.cloned().unwrap_or_else(|| {
                Arc::new(Server {
                    id: ServerId(self.next_id.fetch_add(1, Ordering::Relaxed)),
                    hash: fnv(address.to_string().as_bytes()),
                    address,
                    connections: AtomicUsize::new(0),
                    healthy: AtomicBool::new(true),
                    failures: AtomicU32::new(0),
                    ejections: AtomicU32::new(0),
                    ejected_until: AtomicU64::new(0),
                    back_since: AtomicU64::new(if before.is_empty() { 0 } else { UNSEEN }),
                })
            }));
        }
        // Of fewer servers fewer may be ejected: those that would come back first come back now.
        let mut ejected: Vec<_> = after.iter().filter(|s| s.ejected_until.load(Ordering::Relaxed) > 0).collect();
        ejected.sort_by_key(|server| std::cmp::Reverse(server.ejected_until.load(Ordering::Relaxed)));
        for server in ejected.into_iter().skip(self.settings.may_eject(after.len())) {
            server.ejected_until.store(0, Ordering::Relaxed);
        }
        self.servers.publish(after);
    }

    /// What an active check found. A server that comes back is no longer ejected either: it has just been reached.
    pub fn set_health(&self, id: ServerId, healthy: bool) {
        let _changing = self.changes.lock();
        let servers = self.servers.read();
        let Some(server) = servers.iter().find(|server| server.id == id) else { return };
        if !server.healthy.swap(healthy, Ordering::Relaxed) && healthy {
            server.failures.store(0, Ordering::Relaxed);
            server.ejected_until.store(0, Ordering::Relaxed);
            server.back_since.store(UNSEEN, Ordering::Relaxed);
        }
    }

    /// Where the servers are, in the order they were given.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        self.servers.read().iter().map(|server| server.address.clone()).collect()
    }

    /// All servers, in the order they were given.
    #[must_use]
    pub fn view(&self, now: Instant) -> Vec<ServerView> {
        let now = self.since_epoch(now);
        let view = |server: &Arc<Server>| ServerView {
            id: server.id,
            address: server.address.clone(),
            connections: server.load(),
            healthy: server.healthy.load(Ordering::Relaxed),
            failures: server.failures.load(Ordering::Relaxed),
            ejected: match server.ejected_until.load(Ordering::Relaxed).saturating_sub(now) {
                0 => None,
                left => Some(Duration::from_micros(left)),
            },
        };
        self.servers.read().iter().map(view).collect()
    }

    fn succeeded(&self, server: &Server, now: Instant) {
        let now = self.since_epoch(now);
        // News from before the ejection says nothing about what comes after it.
        if server.is_ejected(now) {
            return;
        }
        if server.failures.load(Ordering::Relaxed) > 0 {
            server.failures.store(0, Ordering::Relaxed);
        }
        if server.ejections.load(Ordering::Relaxed) > 0 {
            let _changing = self.changes.lock();
            let ejections = server.ejections.load(Ordering::Relaxed);
            let until = server.ejected_until.load(Ordering::Relaxed);
            if now >= until.saturating_add(self.settings.length(ejections)) {
                server.ejections.store(0, Ordering::Relaxed);
            }
        }
    }

    fn failed(&self, server: &Server, now: Instant) {
        let now = self.since_epoch(now);
        let after = self.settings.eject_after;
        if server.is_ejected(now) {
            return;
        }
        let more = |failures: u32| Some(failures.saturating_add(1));
        let before = server.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or(0);
        if after == 0 || before.saturating_add(1) < after {
            return;
        }
        let _changing = self.changes.lock();
        let servers = self.servers.read();
        let out = servers.iter().filter(|server| server.is_ejected(now)).count();
        let is_ours = servers.iter().any(|other| other.id == server.id);
        if !is_ours || server.is_ejected(now) || out >= self.settings.may_eject(servers.len()) {
            return;
        }
        let ejections = server.ejections.load(Ordering::Relaxed).saturating_add(1);
        server.ejections.store(ejections, Ordering::Relaxed);
        // Once back it is on probation: one more failure ejects it again.
        server.failures.store(after - 1, Ordering::Relaxed);
        let until = now.saturating_add(self.settings.length(ejections));
        server.ejected_until.store(until, Ordering::Relaxed);
        server.back_since.store(until, Ordering::Relaxed);
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        let epoch = self.epoch.get_or_init(|| now);
        micros(now.saturating_duration_since(*epoch))
    }
}

#[cfg(test)]
#[path = "balance_model.rs"]
mod model;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    pub(super) fn tcp(n: u16) -> Address {
        Address::Tcp(SocketAddr::from(([127, 0, 0, 1], n)))
    }

    pub(super) fn balancer(servers: u16, settings: BalanceSettings) -> (Arc<Balancer>, Instant) {
        #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
        let start = Instant::now();
        (Balancer::new((1..=servers).map(tcp).collect(), settings), start)
    }

    fn ports(picked: &[Picked]) -> Vec<u16> {
        let port = |picked: &Picked| match picked.address() {
            Address::Tcp(address) => address.port(),
            Address::Unix(_) | Address::Quic { .. } | Address::Udp(_) | Address::Tls { .. } => 0,
        };
        picked.iter().map(port).collect()
    }

    pub(super) const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn round_robin_goes_round_those_that_are_open() {
        let (balancer, now) = balancer(3, BalanceSettings { max_connections: 2, ..BalanceSettings::default() });
        let mut picked: Vec<_> = (0..6).map(|_| balancer.pick(now, 0, &[]).unwrap()).collect();
        assert_eq!(ports(&picked), [1, 2, 3, 1, 2, 3]);
        assert_eq!(balancer.pick(now, 0, &[]).err(), Some(NoServer::Full));
        let two = picked.remove(1);
        let id = two.id();
        drop(two);
        let again = balancer.pick(now, 0, &[]).unwrap();
        assert_eq!(again.id(), id);
        drop(picked);
        let ids: Vec<_> = balancer.view(now).iter().map(|view| view.id).collect();
        assert_eq!(balancer.pick(now, 0, &ids).err(), Some(NoServer::AllTried));
        assert_eq!(ports(&[balancer.pick(now, 0, &ids[..2]).unwrap()]), [3]);
    }

    #[test]
    fn one_that_follows_counts_on_and_knows_who_is_down() {
        let settings = BalanceSettings { max_connections: 2, eject_after: 1, ..BalanceSettings::default() };
        let (before, now) = balancer(4, settings);
        let mut held: Vec<_> = (0..4).map(|_| before.pick(now, 0, &[]).unwrap()).collect();
        before.pick(now, 0, &[]).unwrap().failed(now);
        let down = before.view(now)[1].id;
        before.set_health(down, false);
        // The third is not in the list any more, another one is.
        let after = before.followed([1, 2, 4, 5].map(tcp).to_vec(), settings);
        let view = after.view(now);
        let seen: Vec<_> = view.iter().map(|one| (one.connections, one.healthy, one.ejected.is_some())).collect();
        assert_eq!(seen, [(1, true, true), (1, false, false), (1, true, false), (0, true, false)]);
        assert!(view[3].id != held[2].id() && view[..3].iter().zip([0, 1, 3]).all(|(one, n)| one.id == held[n].id()));
        // A place is given back to the same server, whoever gave it.
        drop(held.pop());
        assert_eq!(after.view(now)[2].connections, 0);
        // What comes back into the list later, a name for instance, is known as well.
        after.set_servers([4, 3].map(tcp).to_vec());
        assert_eq!(after.view(now)[1].connections, 1);
        let none = BalanceSettings { eject_after: 0, ..settings };
        assert!(before.followed(vec![tcp(1)], none).view(now)[0].ejected.is_none(), "nobody is ejected there");
    }

    /// The share of one server in a thousand picks, in per mille.
    fn share(balancer: &Arc<Balancer>, now: Instant, port: u16) -> usize {
        let picked = (0..1_000_u64).map(|n| ports(&[balancer.pick(now, mixed(n), &[]).unwrap()])[0]);
        picked.filter(|picked| *picked == port).count()
    }

    #[test]
    fn a_server_that_has_come_back_gets_its_share_little_by_little() {
        for policy in [Policy::RoundRobin, Policy::LeastConnections, Policy::RandomOfTwo] {
            let settings = BalanceSettings { policy, slow_start: 10 * SECOND, ..BalanceSettings::default() };
            let (balancer, now) = balancer(2, settings);
            let whole = share(&balancer, now, 2);
            assert!(whole >= 400, "{policy:?}: at the start of all nobody is new: {whole}");
            let id = balancer.view(now)[1].id;
            balancer.set_health(id, false);
            assert_eq!(share(&balancer, now, 2), 0);
            balancer.set_health(id, true);
            let shares: Vec<_> = (0..=10).map(|n| share(&balancer, now + n * SECOND, 2)).collect();
            assert!((20..200).contains(&shares[0]), "{policy:?}: {shares:?}");
            assert!((150..=whole).contains(&shares[5]), "{policy:?}: {shares:?}");
            assert!(shares[0] < shares[5] && shares[5] < shares[9], "{policy:?}: {shares:?}");
            assert!(shares[10] >= 400, "{policy:?}: {shares:?}");
            // One that is added begins slowly as well; where all are new, they are all there is.
            balancer.set_servers([1, 2, 3].map(tcp).to_vec());
            assert!((10..200).contains(&share(&balancer, now + 20 * SECOND, 3)));
            balancer.set_servers(vec![tcp(9)]);
            assert_eq!(share(&balancer, now + 20 * SECOND, 9), 1_000);
        }
    }

    #[test]
    fn a_server_whose_ejection_is_over_begins_slowly() {
        let settings = BalanceSettings { slow_start: 10 * SECOND, eject_after: 1, ..BalanceSettings::default() };
        let (balancer, now) = balancer(2, settings);
        let picked =
            (0..2).map(|_| balancer.pick(now, 0, &[]).unwrap()).find(|p| ports(std::slice::from_ref(p)) == [2]);
        picked.unwrap().failed(now);
        assert_eq!(share(&balancer, now + 9 * SECOND, 2), 0);
        assert!((20..200).contains(&share(&balancer, now + 10 * SECOND, 2)));
        assert!(share(&balancer, now + 20 * SECOND, 2) >= 400);
    }

    #[test]
    fn least_connections_and_random_of_two_prefer_the_idle() {
        for policy in [Policy::LeastConnections, Policy::RandomOfTwo] {
            let (balancer, now) = balancer(2, BalanceSettings { policy, ..BalanceSettings::default() });
            let mut picked: Vec<_> = (0..10).map(|n| balancer.pick(now, n, &[]).unwrap()).collect();
            let view = balancer.view(now);
            assert_eq!((view[0].connections, view[1].connections), (5, 5), "{policy:?}");
            let ones = ports(&picked);
            let mut at = 0;
            picked.retain(|_| (ones[at] == 2, at += 1).0);
            let next: Vec<_> = (0..5).map(|n| balancer.pick(now, n << 31, &[]).unwrap()).collect();
            assert_eq!(ports(&next), [1; 5], "{policy:?}");
        }
    }

    #[test]
    fn a_source_keeps_its_server_while_others_come_and_go() {
        let settings = BalanceSettings { policy: Policy::Source, ..BalanceSettings::default() };
        let (balancer, now) = balancer(5, settings);
        let source = |n: u32| balancer.seed(77, IpAddr::from(n.to_be_bytes()));
        let of = |n: u32| ports(&[balancer.pick(now, source(n), &[]).unwrap()])[0];
        let before: Vec<_> = (0..5_000).map(of).collect();
        for port in 1..=5 {
            let share = before.iter().filter(|picked| **picked == port).count();
            assert!((800..1_200).contains(&share), "{share} of 5,000 for one of five");
        }
        let without = |gone: u16| (1..=5).filter(|port| *port != gone).map(tcp).collect();
        balancer.set_servers(without(3));
        let after: Vec<_> = (0..5_000).map(of).collect();
        assert!(before.iter().zip(&after).all(|(a, b)| a == b || *a == 3), "only those of the server that went");
        assert!(!after.contains(&3));
        // In another order, and with one that comes back.
        balancer.set_servers((1..=5).rev().map(tcp).collect());
        assert_eq!((0..5_000).map(of).collect::<Vec<_>>(), before);
        // One that is out leaves its sources to the others.
        let id = balancer.view(now)[0].id;
        balancer.set_health(id, false);
        let out: Vec<_> = (0..5_000).map(of).collect();
        assert!(before.iter().zip(&out).all(|(a, b)| a == b || *a == 5));
        // IPv4 in IPv6 is the same source; other policies keep the random number.
        let mapped: IpAddr = "::ffff:0.0.0.9".parse().unwrap();
        assert_eq!(balancer.seed(1, mapped), source(9));
        assert_eq!(Balancer::new(Vec::new(), BalanceSettings::default()).seed(77, mapped), 77);
    }

    #[test]
    fn failures_in_a_row_eject_for_longer_each_time() {
        let settings = BalanceSettings { eject_after: 2, eject_for: SECOND, ..BalanceSettings::default() };
        let (balancer, mut now) = balancer(2, settings);
        let one = balancer.pick(now, 0, &[]).unwrap();
        let two = balancer.pick(now, 0, &[]).unwrap();
        one.failed(now);
        one.succeeded(now);
        one.failed(now);
        assert_eq!(balancer.view(now)[0].ejected, None, "not in a row");
        one.failed(now);
        for times in [1, 2, 4, 8, 10, 10] {
            assert_eq!(balancer.view(now)[0].ejected, Some(SECOND * times));
            two.failed(now);
            two.failed(now);
            assert_eq!(balancer.view(now)[1].ejected, None, "half of them stay");
            assert_eq!(ports(&[balancer.pick(now, 0, &[]).unwrap()]), [2]);
            assert_eq!(balancer.pick(now, 0, &[two.id()]).err(), Some(NoServer::AllEjected));
            now += SECOND * times;
            assert_eq!(balancer.view(now)[0].ejected, None);
            two.succeeded(now);
            one.failed(now);
        }
        now += SECOND * 20;
        one.succeeded(now);
        one.failed(now);
        one.failed(now);
        assert_eq!(balancer.view(now)[0].ejected, Some(SECOND), "long enough back in");
    }

    #[test]
    fn one_server_alone_stays_and_fewer_servers_let_one_back() {
        let settings = BalanceSettings { eject_after: 1, ..BalanceSettings::default() };
        let (balancer, now) = balancer(4, settings);
        let picked: Vec<_> = (0..4).map(|_| balancer.pick(now, 0, &[]).unwrap()).collect();
        picked.iter().for_each(|picked| picked.failed(now));
        let out = |balancer: &Balancer| balancer.view(now).iter().filter(|view| view.ejected.is_some()).count();
        assert_eq!(out(&balancer), 2);
        balancer.set_servers(vec![tcp(1), tcp(2)]);
        assert_eq!(out(&balancer), 1);
        balancer.set_servers(vec![tcp(1)]);
        assert_eq!(out(&balancer), 0);
        picked[0].failed(now);
        picked[1].failed(now);
        assert_eq!(out(&balancer), 0);
        balancer.set_servers(Vec::new());
        assert_eq!(balancer.pick(now, 0, &[]).err(), Some(NoServer::Empty));
    }

    #[test]
    fn health_takes_out_and_brings_back() {
        let settings = BalanceSettings { eject_after: 1, ..BalanceSettings::default() };
        let (balancer, now) = balancer(2, settings);
        let one = balancer.pick(now, 0, &[]).unwrap();
        one.failed(now);
        balancer.set_health(one.id(), true);
        assert!(balancer.view(now)[0].ejected.is_some(), "no news");
        balancer.set_health(one.id(), false);
        balancer.set_health(one.id(), true);
        assert_eq!(balancer.view(now)[0].ejected, None);
        let two = balancer.pick(now, 0, &[one.id()]).unwrap();
        balancer.set_health(one.id(), false);
        balancer.set_health(two.id(), false);
        assert_eq!(balancer.pick(now, 0, &[]).err(), Some(NoServer::AllEjected));
        balancer.set_health(ServerId(99), true);
    }

    #[test]
    fn threads_give_every_place_back() {
        for policy in [Policy::RoundRobin, Policy::LeastConnections, Policy::RandomOfTwo, Policy::Source] {
            let settings = BalanceSettings {
                policy,
                max_connections: 3,
                eject_after: 2,
                eject_for: SECOND,
                keep: 50,
                slow_start: Duration::ZERO,
            };
            let (balancer, start) = balancer(4, settings);
            std::thread::scope(|scope| {
                for thread in 0..4_u64 {
                    let balancer = balancer.clone();
                    scope.spawn(move || {
                        let mut held = Vec::new();
                        for n in 0..5_000_u64 {
                            let random = (n + thread).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                            let now = start + Duration::from_millis(n);
                            held.extend(balancer.pick(now, random, &[]));
                            let view = balancer.view(now);
                            assert!(view.iter().all(|view| view.connections <= 3));
                            if held.len() > 4 {
                                let picked: Picked = held.swap_remove((random % 5) as usize);
                                if random & 64 == 0 { picked.failed(now) } else { picked.succeeded(now) }
                            }
                            if n % 50 == thread {
                                let from = u16::try_from(random % 3).unwrap();
                                balancer.set_servers((from..from + 4).map(tcp).collect());
                            }
                        }
                    });
                }
            });
            balancer.set_servers((0..6).map(tcp).collect());
            assert!(balancer.view(start).iter().all(|view| view.connections == 0), "{policy:?}");
        }
    }
}
