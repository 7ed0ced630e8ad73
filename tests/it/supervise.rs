//! Supervised actors: made anew with their mailbox kept, by themselves or with their group, until the budget is spent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use portway::actors::{Budget, Control, Exit, Fault, Mail, Mesh, Place, Protocol, Spec, Strategy, Turn, clock};

use crate::probe::{Msg, Probe, SOON, eventually, hold, mesh, seen, stop, view, wait};

fn quick(failures: u32) -> Budget {
    Budget {
        failures,
        within: Duration::from_secs(10),
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_millis(20),
    }
}

/// A factory that counts how often it was called.
fn counted() -> (Arc<AtomicUsize>, impl FnMut() -> Probe + Send + 'static) {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = made.clone();
    (made, move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Probe::default()
    })
}

fn restarts(mesh: &Mesh, mail: &Mail<Msg>) -> u32 {
    view(mesh).actors().find(|actor| actor.id == mail.id()).map_or(0, |actor| actor.restarts)
}

#[test]
fn the_mailbox_survives_and_only_the_message_that_failed_is_gone() {
    let mesh = mesh(1);
    let (made, make) = counted();
    let mail = mesh.supervise(Place::On(0), Spec::default(), quick(3), make).unwrap();
    hold(&mail, Duration::from_millis(50));
    mail.tell(Msg::Note(1)).unwrap();
    mail.tell(Msg::Panic).unwrap();
    for n in 2..=100 {
        mail.tell(Msg::Note(n)).unwrap();
    }
    assert_eq!(seen(&mail), (2..=100).collect::<Vec<_>>(), "the state is new, the messages are the old ones");
    assert_eq!(made.load(Ordering::Relaxed), 2);
    assert_eq!(restarts(&mesh, &mail), 1);
    assert_eq!(view(&mesh).totals.get("actor_restarts", "probe", "panic"), 1);
    mail.tell(Msg::Fail("made_up")).unwrap();
    assert!(seen(&mail).is_empty());
    assert_eq!(view(&mesh).totals.get("actor_restarts", "probe", "made_up"), 1);
    assert_eq!(view(&mesh).totals.family("actor_exits"), 0, "it has never ended");
    stop(&mesh);
}

#[test]
fn the_budget_ends_it_and_watchers_learn_why() {
    let mesh = mesh(1);
    let (made, make) = counted();
    let mail = mesh.supervise(Place::On(0), Spec::default(), quick(3), make).unwrap();
    let neighbour = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    for _ in 0..4 {
        mail.tell(Msg::Panic).unwrap();
    }
    assert_eq!(wait(mail.closed()).reason(), "panic");
    assert_eq!(made.load(Ordering::Relaxed), 4, "three more after the first");
    neighbour.tell(Msg::Note(1)).unwrap();
    assert_eq!(seen(&neighbour), [1]);
    let totals = view(&mesh).totals;
    assert_eq!(totals.get("actor_restarts", "probe", "panic"), 3);
    assert_eq!(totals.get("actor_exits", "probe", "panic"), 1);
    assert_eq!(totals.get("actor_panics", "probe", "handler"), 4);
    stop(&mesh);
}

#[test]
fn a_factory_that_panics_is_a_failure_too() {
    let mesh = mesh(1);
    let mut calls = 0;
    let mail = mesh
        .supervise(Place::On(0), Spec::default(), quick(5), move || {
            calls += 1;
            assert!(calls > 2, "told to");
            Probe::default()
        })
        .unwrap();
    mail.tell(Msg::Note(5)).unwrap();
    assert_eq!(seen(&mail), [5], "what was told before it could be made is kept");
    assert_eq!(view(&mesh).totals.get("actor_panics", "probe", "factory"), 2);
    stop(&mesh);
}

#[test]
fn jobs_end_with_the_state_and_give_their_room_back() {
    let mesh = mesh(1);
    let mail = mesh.supervise(Place::On(0), Spec::default(), quick(3), Probe::default).unwrap();
    for _ in 0..5 {
        mail.tell(Msg::Job(Duration::from_secs(3_600), 1)).unwrap();
    }
    eventually("reserved", || mail.depth().reserved == 5);
    mail.tell(Msg::Panic).unwrap();
    eventually("given back", || mail.depth().reserved == 0);
    assert!(seen(&mail).is_empty());
    stop(&mesh);
}

fn group(strategy: Strategy) -> (Mesh, Vec<Mail<Msg>>) {
    let mesh = mesh(2);
    let group = mesh.group(strategy, quick(3));
    let mails: Vec<_> =
        (0..3).map(|n| group.spawn(Place::On(n % 2), Spec::default(), Probe::default).unwrap()).collect();
    for mail in &mails {
        mail.tell(Msg::Note(1)).unwrap();
        assert_eq!(seen(mail), [1]);
    }
    mails[1].tell(Msg::Panic).unwrap();
    eventually("it is back", || restarts(&mesh, &mails[1]) == 1);
    (mesh, mails)
}

#[test]
fn each_strategy_makes_anew_whom_it_says() {
    for (strategy, expected) in
        [(Strategy::OneForOne, [1, 0, 1]), (Strategy::OneForAll, [0, 0, 0]), (Strategy::RestForOne, [1, 0, 0])]
    {
        let (mesh, mails) = group(strategy);
        for (mail, notes) in mails.iter().zip(expected) {
            eventually(&format!("{strategy:?}"), || seen(mail).len() == notes);
        }
        stop(&mesh);
    }
}

#[test]
fn a_group_that_gives_up_ends_all_of_its_actors() {
    let mesh = mesh(2);
    let group = mesh.group(Strategy::OneForOne, quick(1));
    let mails: Vec<_> =
        (0..3).map(|n| group.spawn(Place::On(n % 2), Spec::default(), Probe::default).unwrap()).collect();
    mails[0].tell(Msg::Panic).unwrap();
    mails[2].tell(Msg::Panic).unwrap();
    let reasons: Vec<_> = mails.iter().map(|mail| wait(mail.closed()).reason()).collect();
    assert!(reasons.iter().filter(|reason| **reason == "panic").count() == 1, "{reasons:?}");
    assert!(reasons.iter().filter(|reason| **reason == "group").count() == 2, "{reasons:?}");
    assert!(group.gave_up());
    assert!(group.spawn(Place::Here, Spec::default(), Probe::default).is_err());
    eventually("none left", || mesh.live() == 0);
    stop(&mesh);
}

#[test]
fn an_actor_that_is_asked_to_end_is_not_made_anew() {
    let mesh = mesh(1);
    let (made, make) = counted();
    let mail = mesh.supervise(Place::On(0), Spec::default(), quick(3), make).unwrap();
    assert!(seen(&mail).is_empty());
    mail.control(Control::Stop);
    assert_eq!(wait(mail.closed()), Exit::Normal);
    assert_eq!(made.load(Ordering::Relaxed), 1);

    // And one that waits to be made anew does not hold up a drain.
    let slow = Budget { first_wait: Duration::from_secs(60), longest_wait: Duration::from_secs(60), ..quick(3) };
    let mail = mesh.supervise(Place::On(0), Spec::default(), slow, Probe::default).unwrap();
    mail.tell(Msg::Panic).unwrap();
    eventually("it is down", || restarts(&mesh, &mail) == 1);
    let report = wait(mesh.drain(SOON));
    assert!(report.complete() && report.took < Duration::from_secs(2), "{report:?}");
    assert_eq!(mail.exit(), Some(Exit::Normal));
    stop(&mesh);
}

/// Says when it is asked to finish, takes its time, and says when it has.
struct Node {
    name: &'static str,
    tell: mpsc::Sender<String>,
}

/// Over both arbiters, and not of one depth.
fn children(name: &str) -> &'static [(&'static str, usize)] {
    match name {
        "root" => &[("branch", 1), ("near leaf", 0)],
        "branch" => &[("leaf", 0), ("other leaf", 1)],
        _ => &[],
    }
}

impl Protocol for Node {
    type Msg = ();
    const KIND: &'static str = "node";

    fn started(&mut self, turn: &mut Turn<'_, ()>) -> Result<(), Fault> {
        for &(name, arbiter) in children(self.name) {
            let tell = self.tell.clone();
            turn.spawn(Place::On(arbiter), Spec::named(name), move || Self { name, tell })
                .map_err(|error| Fault::bug("spawn", error.to_string()))?;
        }
        Ok(())
    }

    fn on(&mut self, (): (), _: &mut Turn<'_, ()>) -> Result<(), Fault> {
        Ok(())
    }

    fn drain(&mut self, _: Instant, turn: &mut Turn<'_, ()>) {
        self.tell.send(format!("{} is asked", self.name)).unwrap();
        assert!(turn.job(clock::sleep(Duration::from_millis(30)), |_| ()).is_ok());
        turn.stop_when_empty();
    }

    fn closed(&mut self, why: &Exit) {
        assert_eq!(*why, Exit::Normal);
        self.tell.send(format!("{} has ended", self.name)).unwrap();
    }
}

#[test]
fn nobody_is_asked_to_finish_before_all_of_its_children_have() {
    let mesh = mesh(2);
    let (tell, told) = mpsc::channel();
    mesh.spawn(Place::On(0), Spec::named("root"), move || Node { name: "root", tell }).unwrap();
    eventually("all five are there", || mesh.live() == 5);
    let report = wait(mesh.drain(SOON));
    assert!(report.complete(), "{report:?}");
    let told: Vec<String> = told.iter().collect();
    assert_eq!(told.len(), 10, "each was asked and has ended, once: {told:?}");
    let at = |what: String| told.iter().position(|said| *said == what).expect("it was said");
    for parent in ["root", "branch"] {
        for (child, _) in children(parent) {
            assert!(at(format!("{child} has ended")) < at(format!("{parent} is asked")), "{told:?}");
        }
    }
    stop(&mesh);
}
