//! A balancer as plainly as it can be said, which the real one has to agree with. For tests alone.

use proptest::prelude::*;

use super::tests::{SECOND, balancer, tcp};
use super::*;

/// What happens to a balancer, and to the model beside it.
#[derive(Debug, Clone)]
enum Step {
    Pick { random: u64, tried: Vec<bool> },
    Succeed(prop::sample::Index),
    Fail(prop::sample::Index),
    Drop(prop::sample::Index),
    Wait(u64),
    Health(prop::sample::Index, bool),
    Servers(Vec<u16>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pick = (any::<u64>(), prop::collection::vec(prop::bool::weighted(0.2), 6));
    let step = prop_oneof![
        6 => pick.prop_map(|(random, tried)| Step::Pick { random, tried }),
        2 => any::<prop::sample::Index>().prop_map(Step::Succeed),
        5 => any::<prop::sample::Index>().prop_map(Step::Fail),
        2 => any::<prop::sample::Index>().prop_map(Step::Drop),
        2 => (0..3_000_u64).prop_map(Step::Wait),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, healthy)| Step::Health(at, healthy)),
        1 => prop::collection::vec(1..7_u16, 0..6).prop_map(Step::Servers),
    ];
    prop::collection::vec(step, 0..120)
}

fn settings() -> impl Strategy<Value = BalanceSettings> {
    let policy = prop_oneof![
        Just(Policy::RoundRobin),
        Just(Policy::LeastConnections),
        Just(Policy::RandomOfTwo),
        Just(Policy::Source)
    ];
    (policy, 1..4_usize, 0..4_u32, prop_oneof![Just(0_u8), Just(34), Just(50), Just(100)]).prop_map(
        |(policy, max_connections, eject_after, keep)| BalanceSettings {
            policy,
            max_connections,
            eject_after,
            eject_for: SECOND,
            keep,
            slow_start: Duration::ZERO,
        },
    )
}

/// One server as plainly as it can be said; times in milliseconds.
#[derive(Debug, Clone)]
struct Plain {
    id: u64,
    port: u16,
    here: bool,
    held: usize,
    healthy: bool,
    failures: u32,
    ejections: u32,
    until: u64,
}

struct Model {
    settings: BalanceSettings,
    /// Every server there ever was; `list` has the present ones in order.
    all: Vec<Plain>,
    list: Vec<u64>,
    turn: usize,
    now: u64,
}

impl Model {
    fn servers(&mut self, ports: &[u16]) {
        self.list.clear();
        let before = self.all.clone();
        self.all.iter_mut().for_each(|server| server.here = false);
        for port in ports {
            if self.all.iter().any(|server| server.here && server.port == *port) {
                continue;
            }
            match before.iter().find(|server| server.here && server.port == *port) {
                Some(server) => self.all[server.id as usize].here = true,
                None => self.all.push(Plain {
                    id: self.all.len() as u64,
                    port: *port,
                    here: true,
                    held: 0,
                    healthy: true,
                    failures: 0,
                    ejections: 0,
                    until: 0,
                }),
            }
            self.list.push(self.all.iter().find(|s| s.here && s.port == *port).unwrap().id);
        }
        while self.out().len() > self.may_eject() {
            let first = self.out().into_iter().min_by_key(|id| (self.at(*id).until, u64::MAX - self.place(*id)));
            self.all[first.unwrap() as usize].until = 0;
        }
        // Whether an ejection that is over is remembered makes no difference but for when doubling ends.
        let mut were = self.list.clone();
        were.retain(|id| self.at(*id).until > 0);
        were.sort_by_key(|id| std::cmp::Reverse(self.at(*id).until));
        for id in were.into_iter().skip(self.may_eject()) {
            self.all[id as usize].until = 0;
        }
    }

    fn place(&self, id: u64) -> u64 {
        self.list.iter().position(|other| *other == id).unwrap() as u64
    }

    fn at(&self, id: u64) -> &Plain {
        &self.all[id as usize]
    }

    fn out(&self) -> Vec<u64> {
        self.list.iter().copied().filter(|id| self.at(*id).until > self.now).collect()
    }

    fn may_eject(&self) -> usize {
        let n = self.list.len();
        if n == 1 { 0 } else { n * (100 - self.settings.keep as usize) / 100 }
    }

    fn length(&self, ejections: u32) -> u64 {
        [0, 1_000, 2_000, 4_000, 8_000, 10_000][ejections.min(5) as usize]
    }

    fn pick(&mut self, random: u64, tried: &[u64]) -> Result<u64, NoServer> {
        let turn = self.turn;
        self.turn += 1;
        if self.list.is_empty() {
            return Err(NoServer::Empty);
        }
        let mut left = self.list.clone();
        left.retain(|id| !tried.contains(id));
        if left.is_empty() {
            return Err(NoServer::AllTried);
        }
        left.retain(|id| self.at(*id).healthy && self.at(*id).until <= self.now);
        if left.is_empty() {
            return Err(NoServer::AllEjected);
        }
        left.retain(|id| self.at(*id).held < self.settings.max_connections);
        if left.is_empty() {
            return Err(NoServer::Full);
        }
        let n = left.len();
        let chosen = match self.settings.policy {
            Policy::RoundRobin => left[turn % n],
            Policy::LeastConnections => {
                left.rotate_left(turn % n);
                let least = left.iter().map(|id| self.at(*id).held).min().unwrap();
                *left.iter().find(|id| self.at(**id).held == least).unwrap()
            }
            Policy::Source => {
                let rank = |id: u64| mixed(random ^ fnv(tcp(self.at(id).port).to_string().as_bytes()));
                left.iter().copied().max_by_key(|id| rank(*id)).unwrap()
            }
            Policy::RandomOfTwo if n == 1 => left[0],
            Policy::RandomOfTwo => {
                let first = left[(random as u32) as usize % n];
                left.rotate_left((random as u32) as usize % n);
                let second = left[1..][(random >> 32) as usize % (n - 1)];
                assert_ne!(first, second);
                if self.at(second).held < self.at(first).held { second } else { first }
            }
        };
        self.all[chosen as usize].held += 1;
        Ok(chosen)
    }

    fn succeed(&mut self, id: u64) {
        let length = self.length(self.at(id).ejections);
        let now = self.now;
        let server = &mut self.all[id as usize];
        if server.until <= now {
            server.failures = 0;
            if now >= server.until + length {
                server.ejections = 0;
            }
        }
    }

    fn fail(&mut self, id: u64) {
        let (now, after) = (self.now, self.settings.eject_after);
        if self.at(id).until > now {
            return;
        }
        self.all[id as usize].failures += 1;
        let room = self.out().len() < self.may_eject();
        if after > 0 && self.at(id).failures >= after && self.at(id).here && room {
            let length = self.length(self.at(id).ejections + 1);
            let server = &mut self.all[id as usize];
            server.ejections += 1;
            server.failures = after - 1;
            server.until = now + length;
        }
    }

    fn health(&mut self, id: u64, healthy: bool) {
        let server = &mut self.all[id as usize];
        if server.here {
            if healthy && !server.healthy {
                (server.failures, server.until) = (0, 0);
            }
            server.healthy = healthy;
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(settings in settings(), steps in steps()) {
        let (balancer, start) = balancer(3, settings);
        let mut model = Model { settings, all: Vec::new(), list: Vec::new(), turn: 0, now: 0 };
        model.servers(&[1, 2, 3]);
        prop_assert_eq!(balancer.view(start).len(), 3);
        let mut held: Vec<Picked> = Vec::new();
        for step in steps {
            let now = start + Duration::from_millis(model.now);
            match step {
                Step::Pick { random, tried } => {
                    let tried: Vec<u64> =
                        model.list.iter().zip(tried).filter(|(_, tried)| *tried).map(|(id, _)| *id).collect();
                    let ids: Vec<ServerId> = tried.iter().map(|id| ServerId(*id)).collect();
                    let (one, other) = (balancer.pick(now, random, &ids), model.pick(random, &tried));
                    prop_assert_eq!(one.as_ref().map(|picked| picked.id().0), other.as_ref().map(|id| *id));
                    held.extend(one);
                }
                Step::Succeed(at) if !held.is_empty() => {
                    let picked = at.get(&held);
                    picked.succeeded(now);
                    model.succeed(picked.id().0);
                }
                Step::Fail(at) if !held.is_empty() => {
                    let picked = at.get(&held);
                    picked.failed(now);
                    model.fail(picked.id().0);
                }
                Step::Drop(at) if !held.is_empty() => {
                    let picked = held.swap_remove(at.index(held.len()));
                    model.all[picked.id().0 as usize].held -= 1;
                }
                Step::Succeed(_) | Step::Fail(_) | Step::Drop(_) => {}
                Step::Wait(ms) => model.now += ms,
                Step::Health(at, healthy) => {
                    let id = at.index(model.all.len()) as u64;
                    balancer.set_health(ServerId(id), healthy);
                    model.health(id, healthy);
                }
                Step::Servers(ports) => {
                    balancer.set_servers(ports.iter().copied().map(tcp).collect());
                    model.servers(&ports);
                }
            }
            let now = start + Duration::from_millis(model.now);
            let view = balancer.view(now);
            let expected: Vec<_> = model.list.iter().map(|id| model.at(*id)).map(|server| ServerView {
                id: ServerId(server.id),
                address: tcp(server.port),
                connections: server.held,
                healthy: server.healthy,
                failures: server.failures,
                ejected: (server.until > model.now).then(|| Duration::from_millis(server.until - model.now)),
            }).collect();
            prop_assert_eq!(&view, &expected);
            prop_assert!(view.iter().filter(|view| view.ejected.is_some()).count() <= model.may_eject());
        }
        drop(held);
        prop_assert!(balancer.view(start).iter().all(|view| view.connections == 0));
    }
}
