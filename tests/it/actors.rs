//! The mailbox: exact, ordered, fair; permits, asks, jobs, watches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portway::actors::{AskError, Exit, Fault, Place, Protocol, Refused, Spec, Turn, clock};

use crate::probe::{Msg, Probe, SOON, eventually, hold, mesh, now, seen, stop, view, wait};

#[test]
fn the_bound_is_exact_over_all_clones() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(4, 1 << 20), Probe::default).unwrap();
    // While the arbiter is kept busy, nothing is handled: the busy message itself counts until its turn is over.
    hold(&mail, Duration::from_millis(200));
    let accepted = (0..1_000).filter(|_| mail.clone().tell(Msg::Ignore).is_ok()).count();
    assert_eq!(accepted, 3, "{:?}", mail.depth());
    assert_eq!(mail.depth().refused, 997);
    stop(&mesh);
}

#[test]
fn the_byte_bound_is_exact_and_too_large_is_told_apart() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(100, 1_000), Probe::default).unwrap();
    hold(&mail, Duration::from_millis(200));
    assert!(mail.tell(Msg::Big(600)).is_ok());
    assert!(mail.tell(Msg::Big(400)).is_ok());
    assert!(matches!(mail.tell(Msg::Big(1)), Err(Refused::Full(_))));
    assert!(matches!(mail.tell(Msg::Big(1_001)), Err(Refused::TooLarge(_))));
    eventually("room again", || mail.tell(Msg::Big(1_000)).is_ok());
    stop(&mesh);
    assert!(matches!(mail.tell(Msg::Ignore), Err(Refused::Closed(_))));
}

#[test]
fn messages_of_one_sender_arrive_in_order_and_urgent_ones_first() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    hold(&mail, Duration::from_millis(50));
    for n in 1..=200 {
        mail.tell(Msg::Note(n)).unwrap();
    }
    let mut many: VecDeque<Msg> = (201..=400).map(Msg::Note).collect();
    assert_eq!(mail.tell_many(&mut many), 200);
    mail.urgent(Msg::Note(0)).unwrap();
    assert_eq!(seen(&mail), (0..=400).collect::<Vec<_>>());
    stop(&mesh);
}

#[test]
fn tell_many_leaves_what_does_not_fit() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(10, 1_000), Probe::default).unwrap();
    hold(&mail, Duration::from_millis(100));
    let mut many: VecDeque<Msg> = (0..50).map(Msg::Note).collect();
    let taken = mail.tell_many(&mut many);
    assert_eq!(taken, 9);
    assert_eq!(many.len(), 50 - taken);
    assert!(matches!(many.front(), Some(Msg::Note(n)) if *n == taken as u64), "the rest begins where it stopped");
    stop(&mesh);
}

#[test]
fn urgent_messages_are_few() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    hold(&mail, Duration::from_millis(100));
    let taken = (0..100).filter(|_| mail.urgent(Msg::Ignore).is_ok()).count();
    assert_eq!(taken, 16);
    stop(&mesh);
}

#[test]
fn a_permit_waits_for_room_and_is_never_refused_afterwards() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(2, 100), Probe::default).unwrap();
    hold(&mail, Duration::from_millis(100));
    mail.tell(Msg::Note(1)).unwrap();
    assert!(matches!(mail.try_permit(0), Err(Refused::Full(()))));
    let permit = wait(mail.permit(50)).unwrap();
    assert!(matches!(mail.try_permit(51), Err(Refused::Full(()))), "reserved bytes count");
    permit.tell(Msg::Note(2)).unwrap();
    assert!(matches!(wait(mail.permit(101)), Err(Refused::TooLarge(()))));
    let small = wait(mail.permit(10)).unwrap();
    assert!(matches!(small.tell(Msg::Big(11)), Err(Refused::TooLarge(_))));
    eventually("the room came back", || mail.depth().reserved == 0);
    assert_eq!(seen(&mail), [1, 2]);
    stop(&mesh);
    assert!(matches!(wait(mail.permit(1)), Err(Refused::Closed(()))));
}

#[test]
fn those_who_wait_go_first_and_in_order() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(1, 100), Probe::default).unwrap();
    hold(&mail, Duration::from_millis(100));
    let order = wait(async {
        let mut first = Box::pin(mail.permit(0));
        let mut second = Box::pin(mail.permit(0));
        let mut third = Box::pin(mail.permit(0));
        std::future::poll_fn(|cx| {
            assert!(first.as_mut().poll(cx).is_pending());
            assert!(second.as_mut().poll(cx).is_pending());
            assert!(third.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        assert!(matches!(mail.tell(Msg::Note(0)), Err(Refused::Full(_))), "no overtaking");
        drop(second);
        let mut order = Vec::new();
        first.await.unwrap().tell(Msg::Note(1)).unwrap();
        order.push(1);
        third.await.unwrap().tell(Msg::Note(3)).unwrap();
        order.push(3);
        order
    });
    assert_eq!(order, [1, 3]);
    eventually("both arrived", || mail.depth().messages == 0);
    assert_eq!(seen(&mail), [1, 3]);
    stop(&mesh);
}

#[test]
fn asks_end_in_an_answer_or_a_reason() {
    let mesh = mesh(2);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(2, 10), Probe::default).unwrap();
    assert_eq!(mail.ask_blocking(Msg::Seen, SOON), Ok(vec![]));
    hold(&mail, Duration::from_millis(300));
    assert_eq!(mail.ask_blocking(Msg::Seen, Duration::from_millis(20)), Err(AskError::Timeout));
    assert_eq!(mail.ask_blocking(Msg::Seen, SOON), Err(AskError::Full));
    eventually("free again", || mail.depth().messages == 0);
    mail.tell(Msg::Stop).unwrap();
    assert_eq!(wait(mail.closed()), Exit::Normal);
    assert_eq!(mail.ask_blocking(Msg::Seen, SOON), Err(AskError::Closed));
    stop(&mesh);
}

#[test]
fn a_blocking_ask_on_an_arbiter_is_an_error_not_a_deadlock() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let other = mail;
    let stopper = mesh.clone();
    mesh.actix(0).unwrap().spawn_fn(move || {
        tell.send((other.ask_blocking(Msg::Seen, SOON), stopper.stop().is_err())).unwrap();
    });
    assert_eq!(told.recv_timeout(SOON).unwrap(), (Err(AskError::OnArbiter), true));
    stop(&mesh);
}

#[test]
fn the_answer_of_a_job_has_its_room_and_dies_with_the_actor() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(4, 100), Probe::default).unwrap();
    mail.tell(Msg::Job(Duration::from_millis(30), 7)).unwrap();
    eventually("reserved", || mail.depth().reserved == 1);
    eventually("answered", || mail.depth().reserved == 0);
    assert_eq!(seen(&mail), [7]);
    mail.tell(Msg::Job(Duration::from_secs(3_600), 8)).unwrap();
    mail.tell(Msg::Stop).unwrap();
    assert_eq!(wait(mail.closed()), Exit::Normal);
    stop(&mesh);
}

#[test]
fn watchers_learn_why() {
    let mesh = mesh(2);
    let spawn = || mesh.spawn(Place::LeastLoaded, Spec::default(), Probe::default).unwrap();
    let watcher = spawn();
    let ends = [(spawn(), Msg::Stop), (spawn(), Msg::Fail("made_up")), (spawn(), Msg::Panic)];
    for (mail, end) in ends {
        watcher.tell(Msg::Watch(mail.clone())).unwrap();
        let before = watcher.ask_blocking(Msg::Exits, SOON).unwrap().len();
        mail.tell(end).unwrap();
        eventually("the news", || watcher.ask_blocking(Msg::Exits, SOON).unwrap().len() > before);
        // Watching one that has ended brings the news at once.
        watcher.tell(Msg::Watch(mail)).unwrap();
    }
    eventually("six exits", || watcher.ask_blocking(Msg::Exits, SOON).unwrap().len() == 6);
    let exits = watcher.ask_blocking(Msg::Exits, SOON).unwrap();
    let reasons: Vec<_> = exits.iter().map(Exit::reason).collect();
    assert_eq!(reasons, ["normal", "normal", "made_up", "made_up", "panic", "panic"]);
    assert!(matches!(&exits[4], Exit::Panic(message) if &**message == "told to"));
    stop(&mesh);
}

#[test]
fn a_flooded_actor_delays_neither_a_neighbours_timer_nor_its_own_control() {
    let mesh = mesh(1);
    let flooded = mesh.spawn(Place::On(0), Spec::default(), Probe::default).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let (flooded, stop) = (flooded.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut refused = 0u64;
            while !stop.load(Ordering::Relaxed) {
                if flooded.tell(Msg::Busy(Duration::from_micros(20))).is_err() {
                    refused += 1;
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            refused
        })
    };
    let (tell, told) = std::sync::mpsc::channel();
    mesh.actix(0).unwrap().spawn(async move {
        let mut late = Vec::new();
        for _ in 0..300 {
            let due = now() + Duration::from_millis(1);
            clock::sleep_until(due).await;
            late.push(now() - due);
        }
        late.sort();
        tell.send(late).unwrap();
    });
    let mut control: Vec<_> = (0..50)
        .map(|_| {
            let began = now();
            wait(flooded.ask_urgent(Msg::Arbiter, SOON)).unwrap();
            now() - began
        })
        .collect();
    control.sort();
    let late = told.recv_timeout(SOON).unwrap();
    stop.store(true, Ordering::Relaxed);
    let refused = flood.join().unwrap();
    assert!(refused > 0, "it was a flood");
    // The goals are 15 and 10 ms on a quiet machine (benches/RESULTS.md); stock actix is late by seconds here.
    assert!(late[late.len() * 99 / 100] < Duration::from_millis(60), "timer p99 {:?}", late[late.len() * 99 / 100]);
    assert!(control[control.len() / 2] < Duration::from_millis(60), "control p50 {:?}", control[25]);
    assert!(view(&mesh).arbiters[0].answered);
    crate::probe::stop(&mesh);
}

/// Takes as long as it is told for messages of a train's size.
struct Heavy;

impl Protocol for Heavy {
    type Msg = Duration;
    const KIND: &'static str = "heavy";

    fn size(_: &Duration) -> usize {
        64 << 10
    }

    fn on(&mut self, time: Duration, _: &mut Turn<'_, Duration>) -> Result<(), Fault> {
        let until = now() + time;
        while now() < until {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// The clock is looked at after bytes as well as after messages: eight large ones make eight turns.
#[test]
fn a_turn_of_large_messages_is_short() {
    let mesh = mesh(1);
    let mail = mesh.spawn(Place::On(0), Spec::default().inbox(100, 8 << 20), || Heavy).unwrap();
    mail.tell(Duration::from_millis(100)).unwrap();
    for _ in 0..8 {
        mail.tell(Duration::from_micros(150)).unwrap();
    }
    let of_it = || {
        let seen = view(&mesh);
        let heavy = seen.of_kind("heavy").next().expect("it lives");
        (heavy.handled, heavy.turns)
    };
    eventually("all are handled", || of_it().0 == 9);
    let (_, turns) = of_it();
    assert!(turns >= 8, "{turns} turns");
    stop(&mesh);
}
