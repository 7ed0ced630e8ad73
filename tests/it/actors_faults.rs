//! Panics and faults end one actor: the named counter rises by one and a neighbour loses nothing.

use std::time::Duration;

use portway::actors::{Exit, Mail, Mesh, Place, Spec};

use crate::probe::{Msg, Probe, eventually, mesh, seen, stop, view, wait};

/// A neighbour on the same arbiter that is sent messages all the while.
struct Neighbour {
    mail: Mail<Msg>,
    told: u64,
}

impl Neighbour {
    fn new(mesh: &Mesh) -> Self {
        Self { mail: mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap(), told: 0 }
    }

    fn tell(&mut self, count: u64) {
        for _ in 0..count {
            self.mail.tell(Msg::Note(self.told)).unwrap();
            self.told += 1;
        }
    }

    fn lost_nothing(&self) {
        assert_eq!(seen(&self.mail), (0..self.told).collect::<Vec<_>>());
    }
}

fn panics_in(place: &str, how: Msg, ends_with: &str) {
    let mesh = mesh(1);
    let mut neighbour = Neighbour::new(&mesh);
    let victim = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    neighbour.tell(100);
    victim.tell(how).unwrap();
    neighbour.tell(100);
    let exit = wait(victim.closed());
    assert_eq!(exit.reason(), ends_with);
    neighbour.tell(100);
    neighbour.lost_nothing();
    let totals = view(&mesh).totals;
    assert_eq!(totals.get("actor_panics", "probe", place), 1);
    assert_eq!(totals.family("actor_panics"), 1);
    assert_eq!(totals.get("actor_exits", "probe", ends_with), 1);
    assert_eq!(mesh.live(), 1);
    stop(&mesh);
}

#[test]
fn a_panic_in_a_handler() {
    panics_in("handler", Msg::Panic, "panic");
}

#[test]
fn a_panic_in_flush() {
    panics_in("flush", Msg::PanicInFlush, "panic");
}

#[test]
fn a_panic_in_closed() {
    panics_in("closed", Msg::PanicInClosed, "normal");
}

#[test]
fn a_panic_in_a_job_is_the_answer_of_the_job() {
    let mesh = mesh(1);
    let mut neighbour = Neighbour::new(&mesh);
    let victim = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    neighbour.tell(100);
    victim.tell(Msg::PanicInJob).unwrap();
    neighbour.tell(100);
    eventually("the answer", || seen(&victim) == [99]);
    neighbour.lost_nothing();
    let totals = view(&mesh).totals;
    assert_eq!(totals.get("actor_panics", "probe", "job"), 1);
    assert_eq!(totals.family("actor_exits"), 0, "the actor itself goes on");
    stop(&mesh);
}

#[test]
fn a_panic_in_the_factory_and_one_in_a_destructor() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("told to");
            }
        }
    }
    struct Armed(Bomb);
    impl portway::actors::Protocol for Armed {
        type Msg = ();
        const KIND: &'static str = "armed";
        fn on(&mut self, (): (), turn: &mut portway::actors::Turn<'_, ()>) -> Result<(), portway::actors::Fault> {
            let Self(Bomb) = self;
            turn.stop();
            Ok(())
        }
    }
    let mesh = mesh(1);
    let mut neighbour = Neighbour::new(&mesh);
    neighbour.tell(10);
    let unborn = mesh.spawn(Place::On(0), Spec::default(), || -> Probe { panic!("told to") }).unwrap();
    assert!(matches!(wait(unborn.closed()), Exit::Panic(_)));
    let armed = mesh.spawn(Place::On(0), Spec::default(), || Armed(Bomb)).unwrap();
    armed.tell(()).unwrap();
    assert_eq!(wait(armed.closed()), Exit::Normal);
    neighbour.lost_nothing();
    let totals = view(&mesh).totals;
    assert_eq!(totals.get("actor_panics", "probe", "factory"), 1);
    assert_eq!(totals.get("actor_panics", "armed", "drop"), 1);
    stop(&mesh);
}

#[test]
fn a_fault_names_its_reason_and_a_long_turn_is_counted() {
    let mesh = mesh(1);
    let victim = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    victim.tell(Msg::Busy(Duration::from_millis(20))).unwrap();
    victim.tell(Msg::Fail("made_up")).unwrap();
    assert_eq!(wait(victim.closed()).reason(), "made_up");
    let totals = view(&mesh).totals;
    assert_eq!(totals.get("actor_exits", "probe", "made_up"), 1);
    stop(&mesh);
}

#[test]
fn a_long_turn_is_counted_under_its_message() {
    let mesh = mesh(1);
    let slow = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    slow.tell(Msg::Busy(Duration::from_millis(20))).unwrap();
    eventually("counted", || view(&mesh).totals.get("actor_slow_turns", "probe", "busy") == 1);
    let longest = view(&mesh).of_kind("probe").map(|actor| actor.longest_turn).max();
    assert!(longest >= Some(Duration::from_millis(20)), "{longest:?}");
    stop(&mesh);
}

#[test]
fn what_is_queued_behind_the_end_is_answered_closed() {
    let mesh = mesh(1);
    let victim = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    victim.tell(Msg::Busy(Duration::from_millis(30))).unwrap();
    victim.tell(Msg::Panic).unwrap();
    let answer = victim.ask_blocking(Msg::Seen, Duration::from_secs(5));
    assert_eq!(answer, Err(portway::actors::AskError::Closed));
    stop(&mesh);
}
