//! Rooms over streams that misbehave: late, slow, chopped, cut off, in any order of everything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::sim::{Sim, for_seeds};
use portway::actors::sim_link::{Faults, Stream, StreamPlug, stream_link};
use portway::actors::{Mail, Mesh, Place, clock};
use portway::transports::framed::rooms::{Hubs, Limits, Member};
use portway::transports::framed::{Format, FramedClient, FramedMsg, Settings};

const LONG: Duration = Duration::from_secs(3_600);

fn hubs(sim: &Sim, settings: &Settings) -> Arc<Hubs> {
    Hubs::start(sim.mesh(), &Arc::from("sim"), settings.outbound, settings.when_slow, Limits::default()).unwrap()
}

fn connect(mesh: &Mesh, place: Place, plug: StreamPlug, settings: &Settings, hubs: &Arc<Hubs>) -> Mail<FramedMsg> {
    let (settings, hubs) = (Arc::new(settings.clone()), hubs.clone());
    let spec = Member::<Stream>::spec(&settings);
    mesh.spawn(place, spec, move || Member::new(plug.open(), Arc::from("sim"), settings, hubs)).unwrap()
}

fn bad_link(seed: u64) -> (StreamPlug, StreamPlug) {
    let faults =
        Faults::default().delay(Duration::from_millis(20)).jitter(Duration::from_millis(30)).rate(500_000).chop(0.5);
    stream_link(seed, faults, faults, 8_192)
}

async fn join(client: &mut FramedClient<Stream>, room: &str) {
    let wish = format!("J{room}");
    client.send(wish.as_bytes()).await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), wish.as_bytes());
}

fn say(who: u32, number: u32) -> Vec<u8> {
    let padding = (number as usize * 37 + who as usize) % 300;
    [&b"M"[..], &who.to_be_bytes(), &number.to_be_bytes(), &vec![0; padding]].concat()
}

fn heard(message: &[u8]) -> (u32, u32) {
    assert_eq!(message[0], b'M');
    let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
    assert_eq!(message.len(), say(word(1), word(5)).len());
    (word(1), word(5))
}

/// Takes messages until it has all of everybody else: each speaker's in order, once.
async fn hear_all(
    client: &mut FramedClient<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>,
    me: u32,
    speakers: u32,
    lines: u32,
) {
    let mut next: BTreeMap<u32, u32> = (0..speakers).filter(|who| *who != me).map(|who| (who, 0)).collect();
    while next.values().any(|next| *next < lines) {
        let (who, number) = heard(&client.recv().await.unwrap().expect("not closed"));
        let expected = next.get_mut(&who).unwrap_or_else(|| panic!("{me} hears {who}"));
        assert_eq!(number, *expected, "{me} hears {who}");
        *expected += 1;
    }
}

#[test]
fn every_healthy_member_gets_every_broadcast_once_in_order() {
    for_seeds(60, |seed| {
        let mut sim = Mesh::sim_with(seed, 1 + (seed % 3) as usize);
        let settings = Settings { outbound: 200_000, ..Settings::default() };
        let hubs = hubs(&sim, &settings);
        let (members, speakers, lines) = (6u32, 3u32, 30u32);
        let joined = Rc::new(RefCell::new(0));
        let mut clients = Vec::new();
        for who in 0..members {
            let (ours, theirs) = bad_link(seed * 100 + u64::from(who));
            connect(sim.mesh(), Place::LeastLoaded, ours, &settings, &hubs);
            let joined = joined.clone();
            clients.push(async move {
                let mut client = FramedClient::over(theirs.open(), Format::default());
                join(&mut client, "room").await;
                *joined.borrow_mut() += 1;
                while *joined.borrow() < members {
                    clock::sleep(Duration::from_millis(1)).await;
                }
                let (stream, rest) = client.into_parts();
                let (read, write) = tokio::io::split(stream);
                let read = tokio::io::AsyncReadExt::chain(std::io::Cursor::new(rest), read);
                let mut reader = FramedClient::over(tokio::io::join(read, tokio::io::sink()), Format::default());
                let mut writer = FramedClient::over(tokio::io::join(tokio::io::empty(), write), Format::default());
                let speaking = async {
                    for number in 0..if who < speakers { lines } else { 0 } {
                        writer.send(&say(who, number)).await.unwrap();
                    }
                };
                tokio::join!(speaking, hear_all(&mut reader, who, speakers, lines));
                writer.finish().await.unwrap();
                assert!(reader.recv().await.unwrap().is_none(), "nothing more than that");
            });
        }
        drop(hubs);
        let done = sim.block_on(LONG, async move {
            futures_util::future::join_all(clients).await;
        });
        assert!(done.is_some(), "in time");
        sim.run_for(Duration::from_secs(5));
        assert_eq!(sim.mesh().live(), 0, "the hubs end with the last member");
    });
}

#[test]
fn whoever_has_joined_hears_what_is_said_from_then_on() {
    for_seeds(150, |seed| {
        let mut sim = Mesh::sim_with(seed, 3);
        let settings = Settings::default();
        let hubs = hubs(&sim, &settings);
        // The speaker is in already; listeners come and go on other arbiters, and tell it when they are in.
        let (ours, theirs) = stream_link(seed, Faults::default(), Faults::default(), 8_192);
        connect(sim.mesh(), Place::On(0), ours, &settings, &hubs);
        let mut plugs = Vec::new();
        for n in 0..20u64 {
            let (ours, theirs) = stream_link(seed + n, Faults::default(), Faults::default(), 8_192);
            connect(sim.mesh(), Place::On((n % 3) as usize), ours, &settings, &hubs);
            plugs.push(theirs);
        }
        let done = sim.block_on(LONG, async move {
            let mut speaker = FramedClient::over(theirs.open(), Format::default());
            join(&mut speaker, "room").await;
            for (n, plug) in (0u32..).zip(plugs) {
                let mut listener = FramedClient::over(plug.open(), Format::default());
                join(&mut listener, "room").await;
                speaker.send(&say(0, n)).await.unwrap();
                assert_eq!(heard(&listener.recv().await.unwrap().unwrap()), (0, n), "the first it hears");
                // Alone on its arbiter it leaves in one of the ways there are, so that the next one is its first again.
                if n % 2 == 0 {
                    listener.send(b"L").await.unwrap();
                    assert_eq!(listener.recv().await.unwrap().unwrap(), &b"L"[..]);
                }
            }
        });
        assert!(done.is_some());
        drop(hubs);
        sim.run_for(Duration::from_secs(400));
        assert_eq!(sim.mesh().live(), 0);
    });
}

#[test]
fn members_that_stall_or_reset_hurt_nobody_else() {
    for_seeds(60, |seed| {
        let mut sim = Mesh::sim(seed);
        let settings = Settings { outbound: 10_000, ..Settings::default() };
        let hubs = hubs(&sim, &settings);
        let (members, lines) = (5u32, 300u32);
        let mut random = sim.random();
        let mut bad = Vec::new();
        let mut mails = Vec::new();
        for n in 0..4u64 {
            let (ours, theirs) = stream_link(seed + 1_000 + n, Faults::default(), Faults::default(), 2_000);
            mails.push(connect(sim.mesh(), Place::LeastLoaded, ours, &settings, &hubs));
            bad.push((theirs, Duration::from_millis(random.below(40))));
        }
        let joined = Rc::new(RefCell::new(0));
        let mut clients = Vec::new();
        for who in 0..members {
            let faults = Faults::default().delay(Duration::from_millis(2)).chop(0.3);
            let (ours, theirs) = stream_link(seed * 10 + u64::from(who), faults, faults, 64_000);
            connect(sim.mesh(), Place::LeastLoaded, ours, &settings, &hubs);
            let joined = joined.clone();
            clients.push(async move {
                let mut client = FramedClient::over(theirs.open(), Format::default());
                join(&mut client, "room").await;
                *joined.borrow_mut() += 1;
                while *joined.borrow() < members + 4 {
                    clock::sleep(Duration::from_millis(1)).await;
                }
                if who == 0 {
                    for number in 0..lines {
                        client.send(&say(0, number)).await.unwrap();
                        clock::sleep(Duration::from_millis(1)).await;
                    }
                } else {
                    hear_all(&mut client, who, 1, lines).await;
                }
            });
        }
        let in_by_now = joined;
        let misbehaving = bad.into_iter().enumerate().map(move |(n, (plug, when))| {
            let joined = in_by_now.clone();
            async move {
                let control = plug.control();
                let mut client = FramedClient::over(plug.open(), Format::default());
                join(&mut client, "room").await;
                *joined.borrow_mut() += 1;
                clock::sleep(when).await;
                if n % 2 == 0 {
                    control.stall(true);
                    clock::sleep(Duration::from_secs(60)).await;
                } else {
                    // In the middle of a message of its own.
                    drop(client.send(&[b'X'; 1_500]).await);
                    control.reset();
                }
                client
            }
        });
        let misbehaving: Vec<_> = misbehaving.collect();
        let done = sim.block_on(LONG, async move {
            tokio::join!(futures_util::future::join_all(clients), futures_util::future::join_all(misbehaving));
        });
        assert!(done.is_some(), "in time");
        for (n, mail) in mails.iter().enumerate() {
            let reason = mail.exit().map(|exit| exit.reason());
            assert_eq!(reason, Some(if n % 2 == 0 { "slow_reader" } else { "reset" }), "{n}");
        }
        drop(hubs);
        sim.run_for(Duration::from_secs(400));
        assert_eq!(sim.mesh().live(), 0);
    });
}
