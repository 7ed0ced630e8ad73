//! The mesh: starts anywhere, pins for real, finds by name, drains in order, works with stock actix actors.

use std::collections::BTreeMap;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use portway::actors::{Control, Deliver, Exit, Fault, Kind, Mesh, MeshConfig, Place, RegistryError, SpawnError, Spec};

use crate::probe::{Msg, Probe, SOON, eventually, hold, mesh, now, seen, stop, view, wait};

fn works() {
    let mesh = mesh(2);
    let mail = mesh.spawn(Place::On(1), Spec::default(), Probe::default).unwrap();
    mail.tell(Msg::Note(1)).unwrap();
    eventually("handled", || mail.depth().accepted == 1 && mail.depth().messages == 0);
    std::thread::spawn(move || stop(&mesh)).join().unwrap();
    assert!(mail.is_closed());
    assert_eq!(mail.exit().map(|exit| exit.reason()), Some("arbiter_stopped"));
}

#[test]
fn starts_on_a_plain_thread_twice() {
    works();
    works();
}

#[test]
fn starts_inside_a_tokio_runtime() {
    wait(async { works() });
}

#[test]
fn starts_inside_an_actix_system() {
    std::thread::spawn(|| actix_rt::System::new().block_on(async { works() })).join().unwrap();
}

#[test]
fn fifty_actors_stay_on_their_arbiters_and_then_there_are_none() {
    let mesh = mesh(2);
    let mails: Vec<_> =
        (0..50).map(|n| mesh.spawn(Place::On(n % 2), Spec::default(), Probe::default).unwrap()).collect();
    let mut threads = BTreeMap::new();
    for _ in 0..10 {
        for (n, mail) in mails.iter().enumerate() {
            let (arbiter, thread) = mail.ask_blocking(Msg::Arbiter, SOON).unwrap();
            assert_eq!(arbiter, n % 2);
            assert_eq!(*threads.entry(arbiter).or_insert(thread), thread);
        }
    }
    let view_now = view(&mesh);
    assert_eq!(view_now.of_kind("probe").count(), 50);
    for actor in view_now.of_kind("probe") {
        assert!(actor.turns >= 10 && actor.handled >= 10, "{actor:?}");
        assert_eq!(actor.arbiter as u64, (actor.id.number() - 1) % 2);
    }
    assert_eq!(view_now.arbiters.len(), 3, "two and the System's thread");
    mails.iter().for_each(|mail| mail.control(Control::Stop));
    eventually("none left", || mesh.live() == 0);
    assert_eq!(view(&mesh).of_kind("probe").count(), 0);
    stop(&mesh);
}

#[test]
fn places_lead_where_they_say() {
    let mesh = mesh(3);
    let at = |place| {
        let mail = mesh.spawn(place, Spec::default(), Probe::default).unwrap();
        mail.ask_blocking(Msg::Arbiter, SOON).unwrap().0
    };
    assert_eq!(at(Place::On(2)), 2);
    assert_eq!(at(Place::Id(7)), 1);
    assert_eq!(at(Place::Hash(42)), at(Place::Hash(42)));
    assert_eq!(at(Place::System), 3);
    let beyond = mesh.spawn(Place::On(3), Spec::default(), Probe::default);
    assert_eq!(beyond.err(), Some(SpawnError::Stopped), "the System's thread carries no data");
    stop(&mesh);
    let late = mesh.spawn(Place::On(0), Spec::default(), Probe::default);
    assert_eq!(late.err(), Some(SpawnError::Draining));
}

#[test]
fn no_more_actors_than_allowed() {
    let config = MeshConfig { arbiters: std::num::NonZeroUsize::new(1), max_actors: 3, ..MeshConfig::default() };
    let mesh = Mesh::start(config).unwrap();
    let mails: Vec<_> = (0..5).map(|_| mesh.spawn(Place::Here, Spec::default(), Probe::default)).collect();
    assert_eq!(mails.iter().filter(|m| matches!(m, Err(SpawnError::Full))).count(), 2);
    mails[0].as_ref().unwrap().control(Control::Stop);
    eventually("room again", || mesh.spawn(Place::Here, Spec::default(), Probe::default).is_ok());
    stop(&mesh);
}

#[test]
fn a_stale_name_never_reaches_the_next_holder() {
    let mesh = mesh(1);
    let first = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    let name = mesh.register("service", &first).unwrap();
    let second = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    assert_eq!(mesh.register("service", &second), Err(RegistryError::Taken));
    assert!(mesh.find::<u8>("service").is_none(), "another type of message");
    first.tell(Msg::Stop).unwrap();
    wait(first.closed());
    assert!(mesh.find::<Msg>("service").is_none());
    let again = mesh.register("service", &second).unwrap();
    assert!(again.generation > name.generation);
    assert!(mesh.resolve::<Msg>(&name).is_none());
    assert_eq!(mesh.resolve::<Msg>(&again).map(|mail| mail.id()), Some(second.id()));
    mesh.unregister(&name);
    assert!(mesh.find::<Msg>("service").is_some(), "a stale name frees nothing");
    assert_eq!(mesh.register("other", &first), Err(RegistryError::Closed));
    assert!(mesh.find::<Msg>("other").is_none());
    stop(&mesh);
}

#[test]
fn groups_follow_their_members() {
    let mesh = mesh(2);
    let mails: Vec<_> =
        (0..4).map(|_| mesh.spawn(Place::LeastLoaded, Spec::default(), Probe::default).unwrap()).collect();
    assert_eq!(mesh.group_generation("room"), 0);
    mails.iter().for_each(|mail| mesh.join("room", mail).unwrap());
    let before = mesh.members::<Msg>("room");
    assert_eq!(before.mails.len(), 4);
    mesh.join("room", &mails[0]).unwrap();
    mails[1].tell(Msg::Panic).unwrap();
    eventually("one less", || mesh.members::<Msg>("room").mails.len() == 3);
    mesh.leave("room", &mails[2]);
    let after = mesh.members::<Msg>("room");
    assert_eq!(after.mails.len(), 2);
    assert!(after.generation > before.generation);
    stop(&mesh);
    assert_eq!(mesh.group_generation("room"), 0, "nobody is left");
}

#[test]
fn a_drain_handles_what_was_accepted_and_names_who_did_not_finish() {
    let mesh = mesh(2);
    let good = mesh.spawn(Place::On(0), Spec::named("good"), Probe::default).unwrap();
    let bad = mesh.spawn(Place::On(1), Spec::named("bad"), Probe::endless).unwrap();
    good.tell(Msg::Job(Duration::from_millis(100), 1)).unwrap();
    good.tell(Msg::Busy(Duration::from_millis(20))).unwrap();
    let began = now();
    let report = wait(mesh.drain(Duration::from_millis(500)));
    assert_eq!(good.exit(), Some(Exit::Normal), "it waited for its job");
    assert_eq!(bad.exit(), Some(Exit::Deadline));
    assert_eq!(report.began_with, 2);
    let unfinished: Vec<_> = report.unfinished.iter().map(|u| (u.id, u.name.as_deref(), u.arbiter)).collect();
    assert_eq!(unfinished, [(bad.id(), Some("bad"), 1)]);
    assert!(began.elapsed() < Duration::from_secs(2));
    let refused = mesh.spawn(Place::Here, Spec::default(), Probe::default);
    assert_eq!(refused.err(), Some(SpawnError::Draining));
    stop(&mesh);
}

#[test]
fn a_stuck_arbiter_is_named_and_the_others_are_drained() {
    let mesh = mesh(2);
    let stuck = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    let fine = mesh.spawn(Place::On(1), Spec::default(), Probe::default).unwrap();
    hold(&stuck, Duration::from_millis(2_500));
    let seen_now = view(&mesh);
    assert!(!seen_now.arbiters[0].answered && seen_now.arbiters[1].answered);
    let report = wait(mesh.drain(Duration::from_millis(200)));
    assert_eq!(report.stuck, [0]);
    assert_eq!(fine.exit(), Some(Exit::Normal));
    stop(&mesh);
}

struct Sum(u64);
impl Actor for Sum {
    type Context = Context<Self>;
}
#[derive(Debug)]
struct Add(u64);
impl Message for Add {
    type Result = u64;
}
impl Handler<Add> for Sum {
    type Result = u64;
    fn handle(&mut self, m: Add, _: &mut Context<Self>) -> u64 {
        self.0 += m.0;
        self.0
    }
}

#[test]
fn a_stock_actix_actor_lives_on_our_arbiters_and_reaches_our_actors() {
    let mesh = mesh(1);
    let sum = Sum::start_in_arbiter(&mesh.actix(0).unwrap(), |_| Sum(40));
    let (mail, addr) = mesh.spawn_with_addr(Place::On(0), Spec::default().inbox(2, 10), Probe::default).unwrap();
    let answers = wait(async {
        let total = sum.send(Add(2)).await.unwrap();
        let told = addr.send(Deliver(Msg::Note(7))).await.unwrap().is_ok();
        (total, told)
    });
    assert_eq!(answers, (42, true));
    assert_eq!(seen(&mail), [7]);
    mail.control(Control::Stop);
    wait(mail.closed());
    eventually("its address is closed", || !addr.connected());
    stop(&mesh);
}

#[test]
fn a_driven_future_is_contained_and_asked_to_finish() {
    struct Loop;
    impl Kind for Loop {
        const KIND: &'static str = "loop";
    }
    let mesh = mesh(1);
    let gentle = mesh
        .drive::<Loop, _>(Place::On(0), Spec::default(), |driver| async move {
            let not_send = std::rc::Rc::new(());
            driver.drained().await;
            drop(not_send);
            Ok(())
        })
        .unwrap();
    let panics = mesh
        .drive::<Loop, _>(Place::On(0), Spec::default(), |_| async {
            tokio::task::yield_now().await;
            panic!("told to")
        })
        .unwrap();
    let fails =
        mesh.drive::<Loop, _>(Place::On(0), Spec::default(), |_| async { Err(Fault::peer("made_up", "")) }).unwrap();
    assert_eq!(wait(panics.closed()).reason(), "panic");
    assert_eq!(wait(fails.closed()).reason(), "made_up");
    assert!(!gentle.is_closed());
    let report = wait(mesh.drain(SOON));
    assert!(report.complete(), "{report:?}");
    assert_eq!(gentle.exit(), Some(Exit::Normal));
    stop(&mesh);
}
