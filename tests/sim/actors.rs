//! The actor library under the simulator: the same protocols, jobs, permits, watches and drains, in seeded orders.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use portway::actors::sim::for_seeds;
use portway::actors::{Exit, Fault, Mail, Mesh, Place, Protocol, Reply, Spec, Turn, clock};

const LONG: Duration = Duration::from_secs(60);

enum Msg {
    Add(u64),
    Later(Duration, u64),
    Sum(Reply<(u64, usize)>),
    Ring(u32),
    Next(Mail<Self>),
    Watch(Mail<Self>),
    Gone(Exit),
    Panic,
}

#[derive(Default)]
struct Node {
    sum: u64,
    order: Vec<u64>,
    next: Option<Mail<Msg>>,
    ticks: u32,
    tick_at: Option<std::time::Instant>,
    gone: Vec<Exit>,
}

impl Protocol for Node {
    type Msg = Msg;
    const KIND: &'static str = "node";

    fn started(&mut self, turn: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        self.tick_at = Some(turn.now() + Duration::from_millis(10));
        Ok(())
    }

    fn on(&mut self, m: Msg, turn: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        match m {
            Msg::Add(n) => {
                self.sum += n;
                self.order.push(n);
            }
            Msg::Later(time, n) => {
                turn.job(clock::sleep(time), move |_| Msg::Add(n)).map_err(|_| Fault::local("no_room", ""))?;
            }
            Msg::Sum(reply) => drop(reply.send((self.sum, self.gone.len()))),
            Msg::Ring(0) => self.sum += 1,
            Msg::Ring(left) => {
                if let Some(next) = &self.next {
                    next.tell(Msg::Ring(left - 1)).map_err(|_| Fault::bug("ring", "full"))?;
                }
            }
            Msg::Next(next) => self.next = Some(next),
            Msg::Watch(other) => {
                turn.watch(&other, |exit| Msg::Gone(exit.clone())).map_err(|_| Fault::local("watch", ""))?;
            }
            Msg::Gone(exit) => self.gone.push(exit),
            Msg::Panic => panic!("told to"),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<std::time::Instant> {
        self.tick_at
    }

    fn on_deadline(&mut self, turn: &mut Turn<'_, Msg>) -> Result<(), Fault> {
        self.ticks += 1;
        self.tick_at = (self.ticks < 100).then(|| turn.now() + Duration::from_millis(10));
        Ok(())
    }
}

#[test]
fn equal_seeds_take_equal_decisions_and_other_seeds_do_not() {
    let run = |seed| {
        let mut sim = Mesh::sim_with(seed, 3);
        let nodes: Vec<_> =
            (0..10).map(|n| sim.mesh().spawn(Place::On(n % 3), Spec::default(), Node::default).unwrap()).collect();
        for (n, node) in nodes.iter().enumerate() {
            node.tell(Msg::Next(nodes[(n + 1) % 10].clone())).unwrap();
            node.tell(Msg::Ring(100)).unwrap();
            node.tell(Msg::Later(Duration::from_millis(n as u64), n as u64)).unwrap();
        }
        sim.run_for(Duration::from_secs(2));
        (sim.trace(), sim.steps())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn jobs_timers_rings_and_watches_in_any_order() {
    for_seeds(200, |seed| {
        let mut sim = Mesh::sim(seed);
        let a = sim.mesh().spawn(Place::On(0), Spec::default(), Node::default).unwrap();
        let b = sim.mesh().spawn(Place::On(1), Spec::default(), Node::default).unwrap();
        a.tell(Msg::Next(b.clone())).unwrap();
        b.tell(Msg::Next(a.clone())).unwrap();
        a.tell(Msg::Watch(b.clone())).unwrap();
        a.tell(Msg::Ring(50)).unwrap();
        for n in 1..=20 {
            a.tell(Msg::Later(Duration::from_millis(n), n)).unwrap();
        }
        let asked = a.clone();
        let sum = sim.block_on(LONG, async move {
            clock::sleep(Duration::from_millis(100)).await;
            asked.ask(Msg::Sum, LONG).await.unwrap().0
        });
        assert_eq!(sum, Some(210 + 1), "all twenty jobs and the end of the ring");
        b.tell(Msg::Panic).unwrap();
        let (asked, ended) = (a, b);
        let gone = sim.block_on(LONG, async move {
            let exit = ended.closed().await;
            clock::sleep(Duration::from_millis(1)).await;
            (exit.reason(), asked.ask(Msg::Sum, LONG).await.unwrap().1)
        });
        assert_eq!(gone, Some(("panic", 1)));
    });
}

#[test]
fn permits_are_served_in_order_and_nothing_is_lost() {
    for_seeds(200, |seed| {
        let mut sim = Mesh::sim(seed);
        let node = sim.mesh().spawn(Place::On(0), Spec::default().inbox(3, 1 << 20), Node::default).unwrap();
        let granted = Rc::new(RefCell::new(Vec::new()));
        let (mail, log) = (node, granted.clone());
        let done = sim.block_on(LONG, async move {
            let waits = (0..20u64).map(|n| {
                let (mail, log) = (mail.clone(), log.clone());
                async move {
                    let permit = mail.permit(0).await.unwrap();
                    log.borrow_mut().push(n);
                    permit.tell(Msg::Add(n)).unwrap();
                }
            });
            futures_util::future::join_all(waits).await;
            mail.ask(Msg::Sum, LONG).await.unwrap().0
        });
        assert_eq!(done, Some(190));
        assert_eq!(*granted.borrow(), (0..20).collect::<Vec<_>>());
    });
}

#[test]
fn a_drain_waits_for_jobs_and_the_report_is_complete() {
    for_seeds(100, |seed| {
        let mut sim = Mesh::sim(seed);
        let node = sim.mesh().spawn(Place::On(0), Spec::default(), Node::default).unwrap();
        node.tell(Msg::Later(Duration::from_secs(3), 5)).unwrap();
        sim.run_for(Duration::from_millis(1));
        let mesh = sim.mesh().clone();
        let report = sim.block_on(LONG, async move { mesh.drain(Duration::from_secs(10)).await }).unwrap();
        assert!(report.complete(), "{report:?}");
        assert!(report.took >= Duration::from_millis(2_900) && report.took < Duration::from_millis(3_100));
        assert_eq!(node.exit(), Some(Exit::Normal));
    });
}

#[test]
fn a_drain_that_is_too_short_ends_at_its_deadline() {
    let mut sim = Mesh::sim(7);
    let node = sim.mesh().spawn(Place::On(0), Spec::named("long"), Node::default).unwrap();
    node.tell(Msg::Later(Duration::from_secs(3_600), 5)).unwrap();
    sim.run_for(Duration::from_millis(1));
    let mesh = sim.mesh().clone();
    let report = sim.block_on(LONG, async move { mesh.drain(Duration::from_secs(10)).await }).unwrap();
    assert_eq!(report.unfinished.len(), 1);
    assert_eq!(report.unfinished[0].name.as_deref(), Some("long"));
    assert_eq!(node.exit(), Some(Exit::Deadline));
}

#[test]
fn a_failing_seed_is_named_and_replays() {
    let failed = RefCell::new(Vec::new());
    let test = |seed: u64| {
        let mut sim = Mesh::sim(seed);
        let order = sim.random().below(10);
        sim.run_for(Duration::from_millis(1));
        if order == 3 {
            failed.borrow_mut().push((seed, sim.trace()));
            panic!("found");
        }
    };
    let first = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| for_seeds(1_000, &test)));
    assert!(first.is_err());
    let (seed, _) = failed.borrow()[0];
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
    assert!(again.is_err());
    let failed = failed.borrow();
    assert_eq!(failed[0], failed[1]);
}

#[test]
fn a_blocking_ask_in_a_simulation_is_an_error_not_a_hang() {
    let sim = Mesh::sim(1);
    let node = sim.mesh().spawn(Place::On(0), Spec::default(), Node::default).unwrap();
    let answer = node.ask_blocking(Msg::Sum, LONG);
    assert_eq!(answer, Err(portway::actors::AskError::OnArbiter));
}
