//! Framed connections over streams that misbehave: chopped, late, slow, cut off, at any moment and in any order.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::sim::for_seeds;
use portway::actors::sim_link::{Faults, Stream, StreamPlug, stream_link};
use portway::actors::{Control, Exit, Mail, Mesh, Place, Spec, clock};
use portway::transports::framed::{
    Connection, Echo, Format, FramedClient, FramedMsg, Outbox, Service, Settings, WhenSlow,
};

const LONG: Duration = Duration::from_secs(600);

fn connect(mesh: &Mesh, plug: StreamPlug, settings: Settings) -> Mail<FramedMsg> {
    let settings = Arc::new(settings);
    mesh.spawn(Place::LeastLoaded, Spec::default(), move || {
        Connection::new(plug.open(), Arc::from("sim"), settings, Echo)
    })
    .unwrap()
}

fn bad_link(seed: u64) -> (StreamPlug, StreamPlug) {
    let faults =
        Faults::default().delay(Duration::from_millis(20)).jitter(Duration::from_millis(30)).rate(500_000).chop(0.5);
    stream_link(seed, faults, faults, 8_192)
}

/// Sends messages of seeded sizes and expects them back in order; answers how many came.
async fn converse(mut client: FramedClient<Stream>, sizes: Vec<usize>) -> usize {
    let mut answered = 0;
    for (n, size) in sizes.into_iter().enumerate() {
        let message = vec![n as u8; size];
        client.send(&message).await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap(), message);
        answered += 1;
    }
    client.finish().await.unwrap();
    assert!(client.recv().await.unwrap().is_none());
    answered
}

#[test]
fn every_message_comes_back_over_a_bad_link() {
    for_seeds(60, |seed| {
        let mut sim = Mesh::sim(seed);
        let (ours, theirs) = bad_link(seed);
        let mail = connect(sim.mesh(), ours, Settings::default());
        let mut random = sim.random();
        let sizes: Vec<usize> = (0..20).map(|_| random.below(20_000) as usize).collect();
        let answered = sim
            .block_on(LONG, async move { converse(FramedClient::over(theirs.open(), Format::default()), sizes).await });
        assert_eq!(answered, Some(20));
        sim.run_for(Duration::from_secs(1));
        assert_eq!(mail.exit(), Some(Exit::Normal));
        assert_eq!(sim.mesh().live(), 0);
    });
}

#[test]
fn a_run_replays_bit_for_bit() {
    let run = |seed| {
        let mut sim = Mesh::sim(seed);
        let (ours, theirs) = bad_link(seed);
        let _mail = connect(sim.mesh(), ours, Settings::default());
        sim.block_on(LONG, async move {
            converse(FramedClient::over(theirs.open(), Format::default()), vec![100, 5_000, 1]).await
        });
        (sim.trace(), sim.steps())
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

#[test]
fn a_drain_at_any_moment_answers_a_prefix_without_gaps_and_ends_in_order() {
    for_seeds(100, |seed| {
        let mut sim = Mesh::sim(seed);
        let (ours, theirs) = bad_link(seed);
        let mail = connect(sim.mesh(), ours, Settings { outbound: 10_000, ..Settings::default() });
        let got = Rc::new(RefCell::new((0u32, false)));
        let result = got.clone();
        let mesh = sim.mesh().clone();
        let when = Duration::from_millis(sim.random().below(2_000));
        let report = sim.block_on(LONG, async move {
            let (read, write) = tokio::io::split(theirs.open());
            let mut reader = FramedClient::over(tokio::io::join(read, tokio::io::sink()), Format::default());
            let mut writer = FramedClient::over(tokio::io::join(tokio::io::empty(), write), Format::default());
            let sending = async {
                for n in 0u32.. {
                    if writer.send(&[&n.to_be_bytes()[..], &[0; 500]].concat()).await.is_err() {
                        break;
                    }
                }
            };
            let receiving = async {
                while let Some(message) = reader.recv().await.expect("no reset, no half message") {
                    let (next, _) = *result.borrow();
                    assert_eq!(message[..4], next.to_be_bytes());
                    result.borrow_mut().0 += 1;
                }
                result.borrow_mut().1 = true;
            };
            let draining = async {
                clock::sleep(when).await;
                mesh.drain(Duration::from_secs(60)).await
            };
            tokio::select! {
                (report, ()) = async { tokio::join!(draining, receiving) } => report,
                () = sending => panic!("sending ends with the test"),
            }
        });
        let report = report.expect("in time");
        assert!(report.complete(), "{report:?}");
        assert!(got.borrow().1, "an orderly end");
        assert_eq!(mail.exit(), Some(Exit::Normal));
    });
}

#[test]
fn a_peer_that_stops_reading_is_closed_and_one_that_resumes_gets_everything() {
    for_seeds(40, |seed| {
        let mut sim = Mesh::sim(seed);
        let (ours, theirs) = stream_link(seed, Faults::default(), Faults::default(), 4_096);
        let control = theirs.control();
        let settings = Settings { outbound: 10_000, slow_after: Duration::from_secs(10), ..Settings::default() };
        let mail = connect(sim.mesh(), ours, settings);
        let pause = Duration::from_secs(if seed % 2 == 0 { 5 } else { 30 });
        let all = sim.block_on(LONG, async move {
            let (read, write) = tokio::io::split(theirs.open());
            let mut reader = FramedClient::over(tokio::io::join(read, tokio::io::sink()), Format::default());
            let mut writer = FramedClient::over(tokio::io::join(tokio::io::empty(), write), Format::default());
            control.stall(true);
            let sending = async {
                for n in 0..100u32 {
                    if writer.send(&[&n.to_be_bytes()[..], &[1; 996]].concat()).await.is_err() {
                        break;
                    }
                }
            };
            let receiving = async {
                clock::sleep(pause).await;
                control.stall(false);
                let mut count = 0u32;
                while let Ok(Some(message)) = reader.recv().await {
                    assert_eq!(message[..4], count.to_be_bytes());
                    count += 1;
                    if count == 100 {
                        break;
                    }
                }
                count
            };
            tokio::join!(sending, receiving).1
        });
        let reason = mail.exit().map(|exit| exit.reason());
        if seed % 2 == 0 {
            assert_eq!((all, reason), (Some(100), None));
        } else {
            assert_eq!(reason, Some("slow_reader"));
            assert!(all < Some(100));
        }
    });
}

#[test]
fn a_reset_at_any_moment_ends_one_actor_and_frees_it() {
    for_seeds(100, |seed| {
        let mut sim = Mesh::sim(seed);
        let (ours, theirs) = bad_link(seed);
        let control = theirs.control();
        let mail = connect(sim.mesh(), ours, Settings::default());
        let when = Duration::from_millis(sim.random().below(1_000));
        sim.block_on(LONG, async move {
            let mut client = FramedClient::over(theirs.open(), Format::default());
            let talk = async {
                loop {
                    if client.send(&[7; 3_000]).await.is_err() || client.recv().await.is_err() {
                        return;
                    }
                }
            };
            let cut = async {
                clock::sleep(when).await;
                control.reset();
            };
            tokio::join!(talk, cut);
        });
        sim.run_for(Duration::from_secs(5));
        assert!(mail.is_closed());
        assert_eq!(mail.exit().map(|exit| exit.reason()), Some("reset"));
        assert_eq!(sim.mesh().live(), 0);
    });
}

#[test]
fn messages_of_others_follow_the_policy_under_a_stalled_peer() {
    struct Silent;
    impl Service for Silent {
        fn message(&mut self, _: &[u8], _: &mut Outbox) {}
    }
    for_seeds(30, |seed| {
        let policy = [WhenSlow::Close, WhenSlow::DropOldest, WhenSlow::DropNewest][(seed % 3) as usize];
        let mut sim = Mesh::sim(seed);
        let (ours, theirs) = stream_link(seed, Faults::default(), Faults::default().chop(0.5), 1_000);
        let settings =
            Arc::new(Settings { outbound: 2_000, when_slow: policy, first_message: None, ..Settings::default() });
        let mail = sim
            .mesh()
            .spawn(Place::LeastLoaded, Spec::default(), move || {
                Connection::new(ours.open(), Arc::from("sim"), settings, Silent)
            })
            .unwrap();
        theirs.control().stall(true);
        for n in 0..100u32 {
            mail.tell(FramedMsg::Send([&n.to_be_bytes()[..], &[0; 96]].concat().into())).unwrap();
        }
        sim.run_for(Duration::from_secs(1));
        if policy == WhenSlow::Close {
            assert_eq!(mail.exit().map(|exit| exit.reason()), Some("slow_reader"));
            return;
        }
        let (asker, control) = (mail, theirs.control());
        let numbers = sim
            .block_on(LONG, async move {
                let mut client = FramedClient::over(theirs.open(), Format::default());
                control.stall(false);
                clock::sleep(Duration::from_secs(1)).await;
                asker.control(Control::Drain(clock::now() + Duration::from_secs(5)));
                let mut numbers = Vec::new();
                while let Some(message) = client.recv().await.unwrap() {
                    assert_eq!(message.len(), 100, "whole messages only");
                    numbers.push(u32::from_be_bytes(message[..4].try_into().unwrap()));
                }
                numbers
            })
            .unwrap();
        assert!(numbers.is_sorted() && numbers.len() < 100, "{numbers:?}");
        let last = *numbers.last().unwrap();
        assert_eq!(last == 99, policy == WhenSlow::DropOldest, "{numbers:?}");
    });
}
