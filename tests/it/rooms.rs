//! Rooms over real sockets: who gets what, in which order, at which cost, and who suffers for a slow member.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Mail, Mesh, Place, Spec, Totals};
use portway::memory::Budget;
use portway::transports::framed::rooms::{Limits, Rooms};
use portway::transports::framed::{Settings, WhenSlow};
use portway::transports::kit::admission::{Caps, Occupancy};
use portway::transports::tcp::{Acceptor, AcceptorSettings, Never, bind};

use crate::gateway::Client;
use crate::probe::{Probe, SOON, eventually, hold, mesh, stop, view, wait};

/// A listener with rooms on a mesh of its own.
struct Chat {
    mesh: Mesh,
    address: SocketAddr,
    acceptor: Mail<Never>,
}

impl Chat {
    fn start(arbiters: usize, settings: Settings, limits: Limits) -> Self {
        let mesh = mesh(arbiters);
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let name: Arc<str> = Arc::from("chat");
        let acceptor_settings = AcceptorSettings {
            name: name.clone(),
            caps: Caps { connections: 20_000, per_source: 20_000, half_open: 20_000, base_bytes: 0 },
            budget: Budget::new(1 << 30),
            shed_delay: Duration::from_secs(60),
            occupancy: Arc::new(Occupancy::default()),
        };
        let acceptor = Acceptor::start(
            &mesh,
            Place::On(0),
            Arc::new(socket),
            acceptor_settings,
            portway::actors::Budget::default(),
            move || Rooms::new(name.clone(), settings.clone(), limits),
        )
        .unwrap();
        Self { mesh, address, acceptor }
    }

    fn plain(arbiters: usize) -> Self {
        Self::start(arbiters, Settings::default(), Limits::default())
    }

    fn totals(&self) -> Totals {
        view(&self.mesh).totals
    }

    fn get(&self, family: &str) -> u64 {
        self.totals().get(family, "chat", "")
    }

    fn member(&self, room: &str) -> Client {
        let mut client = Client::to(self.address);
        join(&mut client, room);
        client
    }

    /// All who were in a room are out, and the hubs hold nothing.
    fn is_empty(&self) {
        eventually("no member is left", || {
            let seen = view(&self.mesh);
            let held: usize = seen.of_kind("rooms").map(|hub| hub.held).sum();
            seen.of_kind("framed").count() == 0 && held == 0
        });
        let totals = self.totals();
        assert_eq!(totals.family("rooms_joined"), totals.family("rooms_left"));
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        stop(&self.mesh);
    }
}

fn join(client: &mut Client, room: &str) {
    client.send(format!("J{room}").as_bytes());
    assert_eq!(client.recv(), format!("J{room}").as_bytes());
}

fn say(number: u32, size: usize) -> Vec<u8> {
    let mut message = vec![b'M'; size.max(5)];
    message[1..5].copy_from_slice(&number.to_be_bytes());
    message
}

fn number(message: &[u8]) -> u32 {
    assert_eq!(message[0], b'M', "{:?}", String::from_utf8_lossy(message));
    u32::from_be_bytes(message[1..5].try_into().unwrap())
}

#[test]
fn what_one_says_all_others_get_in_order_and_it_does_not() {
    let chat = Chat::plain(2);
    let mut members: Vec<_> = (0..10).map(|_| chat.member("one")).collect();
    let (speaker, rest) = members.split_first_mut().unwrap();
    for n in 0..1_000 {
        speaker.send(&say(n, 50));
    }
    for member in &mut *rest {
        for n in 0..1_000 {
            assert_eq!(number(&member.recv()), n);
        }
    }
    // The next thing the speaker hears is not its own words.
    rest[0].send(b"Mend");
    assert_eq!(speaker.recv(), b"Mend");
    assert_eq!(chat.get("rooms_broadcasts"), 1_001);
    assert_eq!(chat.get("rooms_deliveries"), 1_001 * 9);
    drop(members);
    chat.is_empty();
}

#[test]
fn all_speak_at_once_and_each_speaker_is_heard_in_order() {
    let chat = Chat::plain(3);
    let count = 12u32;
    let lines = 300u32;
    let mut members: Vec<_> = (0..count).map(|_| chat.member("busy")).collect();
    std::thread::scope(|scope| {
        for (who, member) in members.iter_mut().enumerate() {
            scope.spawn(move || {
                let mut next = vec![0; count as usize];
                let mut reader = Client(member.0.try_clone().unwrap());
                std::thread::scope(|scope| {
                    scope.spawn(|| (0..lines).for_each(|n| member.send(&say(who as u32 * lines + n, 20))));
                    for _ in 0..(count - 1) * lines {
                        let got = number(&reader.recv());
                        let from = (got / lines) as usize;
                        assert_ne!(from, who, "its own words");
                        assert_eq!(got % lines, next[from], "in order, once");
                        next[from] += 1;
                    }
                });
            });
        }
    });
    let broadcasts = u64::from(count * lines);
    assert_eq!(chat.get("rooms_broadcasts"), broadcasts);
    assert_eq!(chat.get("rooms_deliveries"), broadcasts * u64::from(count - 1));
    assert!(chat.get("rooms_cross_arbiter") <= broadcasts * 2);
    drop(members);
    chat.is_empty();
}

#[test]
fn rooms_do_not_mix_and_those_who_leave_hear_no_more() {
    let chat = Chat::plain(2);
    let mut red: Vec<_> = (0..4).map(|_| chat.member("red")).collect();
    let mut blue: Vec<_> = (0..4).map(|_| chat.member("blue")).collect();
    red[0].send(b"Mto red");
    blue[0].send(b"Mto blue");
    red[1..].iter_mut().for_each(|member| assert_eq!(member.recv(), b"Mto red"));
    blue[1..].iter_mut().for_each(|member| assert_eq!(member.recv(), b"Mto blue"));
    red[1].send(b"L");
    assert_eq!(red[1].recv(), b"L");
    join(&mut red[2], "blue");
    red[0].send(b"Mred again");
    blue[0].send(b"Mblue again");
    assert_eq!(red[3].recv(), b"Mred again");
    assert_eq!(red[2].recv(), b"Mblue again");
    red[1].send(b"Mto nobody");
    assert!(red[1].recv().starts_with(b"Enot in a room"));
    drop((red, blue));
    chat.is_empty();
}

#[test]
fn wrong_commands_are_answered_in_their_order_and_change_nothing() {
    let limits = Limits { rooms: 2, members: 4 };
    let chat = Chat::start(2, Settings { outbound: 100_000, ..Settings::default() }, limits);
    let mut client = Client::to(chat.address);
    let long = [b"J", &[b'n'; 65][..]].concat();
    for wrong in [&b""[..], b"X", b"J", b"J\xff", &long, b"L", b"Mx"] {
        client.send(wrong);
    }
    client.send(b"Jok");
    for start in ["Eunknown", "Eunknown", "Ea room", "Ea room", "Ea room", "Enot", "Enot", "Jok"] {
        let answer = client.recv();
        assert!(answer.starts_with(start.as_bytes()), "{start}: {}", String::from_utf8_lossy(&answer));
    }
    client.send(&say(1, 100_000));
    assert!(client.recv().starts_with(b"Ethe message is larger"));
    let mut second = chat.member("two");
    second.send(b"Jthree");
    assert_eq!(second.recv(), b"Etoo many rooms");
    // Four places, two on each arbiter; the rest is refused.
    let more: Vec<_> = (0..8).map(|_| Client::to(chat.address)).collect();
    let mut inside = Vec::new();
    for mut client in more {
        client.send(b"Jok");
        match &*client.recv() {
            b"Jok" => inside.push(client),
            other => assert_eq!(other, b"Ethe room is full"),
        }
    }
    assert_eq!(inside.len(), 3);
    client.send(b"Mstill here");
    inside.iter_mut().for_each(|member| assert_eq!(member.recv(), b"Mstill here"));
    let totals = chat.totals();
    for (reason, count) in
        [("unknown_verb", 2), ("bad_name", 3), ("not_in_a_room", 2), ("too_large", 1), ("too_many_rooms", 1)]
    {
        assert_eq!(totals.get("rooms_refused", "chat", reason), count, "{reason}");
    }
    assert_eq!(totals.get("rooms_refused", "chat", "room_full"), 5);
    assert_eq!(totals.family("rooms_refused"), 14, "nothing else was");
    drop((client, second, inside));
    chat.is_empty();
}

#[test]
fn a_broadcast_to_a_thousand_costs_one_message_to_the_other_arbiter() {
    let chat = Chat::plain(2);
    let mut members: Vec<_> = (0..1_000).map(|_| chat.member("crowd")).collect();
    let here = view(&chat.mesh).of_kind("framed").filter(|actor| actor.arbiter == 0).count();
    assert!((300..=700).contains(&here), "both arbiters have many: {here}");
    let hub = |family: &str| chat.get(family);
    assert_eq!(hub("rooms_cross_arbiter"), 0);
    let (speaker, rest) = members.split_first_mut().unwrap();
    let broadcasts = 20;
    for n in 0..broadcasts {
        speaker.send(&say(n, 100));
        // One per turn: all have it before the next.
        rest.iter_mut().for_each(|member| assert_eq!(number(&member.recv()), n));
    }
    assert_eq!(hub("rooms_broadcasts"), u64::from(broadcasts));
    assert_eq!(hub("rooms_cross_arbiter"), u64::from(broadcasts));
    assert_eq!(hub("rooms_deliveries"), u64::from(broadcasts) * 999);
    // Said at once they cost less, never more.
    let frames: Vec<u8> = (0..100).flat_map(|n| [&100u32.to_be_bytes()[..], &say(n, 100)].concat()).collect();
    std::io::Write::write_all(&mut speaker.0, &frames).unwrap();
    rest.iter_mut().for_each(|member| (0..100).for_each(|n| assert_eq!(number(&member.recv()), n)));
    let cost = hub("rooms_cross_arbiter") - u64::from(broadcasts);
    assert!((1..=10).contains(&cost), "{cost} messages for 100 broadcasts at once");
    drop(members);
    chat.is_empty();
}

#[test]
fn a_member_that_never_reads_is_closed_and_everybody_else_gets_everything() {
    let settings = Settings { outbound: 256 << 10, ..Settings::default() };
    let chat = Chat::start(2, settings, Limits::default());
    let mut members: Vec<_> = (0..10).map(|_| chat.member("room")).collect();
    let mut deaf = chat.member("room");
    let (speaker, rest) = members.split_first_mut().unwrap();
    let lines = 3_000;
    for n in 0..lines {
        speaker.send(&say(n, 10_000));
        rest.iter_mut().for_each(|member| assert_eq!(number(&member.recv()), n));
    }
    eventually("the deaf one is closed", || chat.totals().get("connections_closed", "chat", "slow_reader") == 1);
    let seen = deaf.rest();
    assert!(seen.len() < lines as usize * 10_004);
    assert_eq!(chat.totals().family("connections_closed"), 1, "that one alone");
    assert_eq!(chat.totals().family("messages_dropped"), 0);
    drop((members, deaf));
    chat.is_empty();
}

#[test]
fn dropping_policies_cost_the_slow_member_messages_and_nobody_else() {
    for when_slow in [WhenSlow::DropOldest, WhenSlow::DropNewest] {
        let settings = Settings { outbound: 64 << 10, when_slow, ..Settings::default() };
        let chat = Chat::start(2, settings, Limits::default());
        let mut members: Vec<_> = (0..6).map(|_| chat.member("room")).collect();
        let mut deaf = chat.member("room");
        let (speaker, rest) = members.split_first_mut().unwrap();
        let lines = 2_000;
        for n in 0..lines {
            speaker.send(&say(n, 10_000));
            rest.iter_mut().for_each(|member| assert_eq!(number(&member.recv()), n));
        }
        deaf.send(b"L");
        let mut heard = Vec::new();
        loop {
            match &*deaf.recv() {
                b"L" => break,
                line => heard.push(number(line)),
            }
        }
        assert!(heard.is_sorted_by(|a, b| a < b), "in order, once");
        let dropped = chat.totals().get("messages_dropped", "chat", "slow_reader");
        assert!(dropped > 0);
        // Six messages fit and leave room for the answer to the leave.
        assert_eq!(heard.len() as u64 + dropped, u64::from(lines), "{when_slow:?}");
        assert_eq!(chat.totals().family("connections_closed"), 0);
        drop((members, deaf));
        chat.is_empty();
    }
}

#[test]
fn a_disconnect_in_the_middle_of_a_message_hurts_nobody() {
    let chat = Chat::plain(2);
    let mut a = chat.member("room");
    let mut b = chat.member("room");
    for round in 0..20u32 {
        let mut rude = chat.member("room");
        // A whole message, half a message, and the end: the whole one counts. (A socket that is closed with something
        // unread in it, what the others say for instance, resets.)
        let whole = say(round, 100);
        let bytes = [&100u32.to_be_bytes()[..], &whole, &100u32.to_be_bytes(), &whole[..50]].concat();
        std::io::Write::write_all(&mut rude.0, &bytes).unwrap();
        rude.0.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(number(&a.recv()), round);
        assert_eq!(number(&b.recv()), round);
        rude.rest();
    }
    a.send(b"Mstill here");
    assert_eq!(b.recv(), b"Mstill here");
    eventually("each was counted", || chat.totals().family("connections_closed") >= 20);
    assert_eq!(chat.totals().get("connections_closed", "chat", "eof_in_message"), 20);
    assert_eq!(chat.totals().family("connections_closed"), 20);
    drop((a, b));
    chat.is_empty();
}

#[test]
fn the_last_words_of_a_client_that_closes_at_once_are_heard() {
    let chat = Chat::plain(2);
    let mut listener = chat.member("room");
    for round in 0..50u32 {
        let mut brief = Client::to(chat.address);
        brief.send(b"Jroom");
        brief.send(&say(round, 10));
        brief.0.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(number(&listener.recv()), round);
        brief.rest();
    }
    drop(listener);
    chat.is_empty();
}

#[test]
fn ten_thousand_members_come_and_go_and_none_is_left() {
    let chat = Chat::plain(2);
    let stays = chat.member("lobby");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let chat = &chat;
            scope.spawn(move || {
                for n in 0..2_500 {
                    let mut client = Client::to(chat.address);
                    client.send(if n % 2 == 0 { b"Jlobby" } else { b"Jelsewhere" });
                    // Some go before they are told that they are in.
                    if n % 3 != 0 {
                        assert_eq!(client.recv()[0], b'J', "{thread}");
                    }
                    if n % 5 == 0 {
                        socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                }
            });
        }
    });
    drop(stays);
    chat.is_empty();
    // A client that resets at once may end before its join was read.
    assert!((8_000..=10_001).contains(&chat.get("rooms_joined")), "{}", chat.get("rooms_joined"));
}

#[test]
fn hubs_end_after_their_listener_and_its_last_member() {
    let chat = Chat::plain(2);
    let mut a = chat.member("room");
    let mut b = chat.member("room");
    assert_eq!(view(&chat.mesh).of_kind("rooms").count(), 2);
    chat.acceptor.control(portway::actors::Control::Stop);
    eventually("the listener has ended", || chat.acceptor.is_closed());
    a.send(b"Mstill works");
    assert_eq!(b.recv(), b"Mstill works");
    drop((a, b));
    eventually("nothing is left", || chat.mesh.live() == 0);
}

#[test]
fn a_drain_passes_on_what_was_accepted() {
    let chat = Chat::plain(2);
    let mut speaker = chat.member("room");
    let mut listener = chat.member("room");
    for n in 0..500 {
        speaker.send(&say(n, 1_000));
    }
    assert_eq!(number(&listener.recv()), 0);
    let mesh = chat.mesh.clone();
    let draining = std::thread::spawn(move || wait(async move { mesh.drain(SOON).await }));
    let rest = listener.rest();
    assert_eq!(rest.len() % 1_004, 0, "whole messages");
    drop((speaker, listener));
    let report = draining.join().unwrap();
    assert!(report.complete(), "{report:?}");
}

#[test]
fn a_flood_is_held_back_and_nothing_is_lost_between_arbiters() {
    // So little may wait that hubs and speakers have to wait for each other all the time.
    let settings = Settings { outbound: 16 << 10, when_slow: WhenSlow::DropNewest, ..Settings::default() };
    let chat = Chat::start(2, settings, Limits::default());
    let mut speakers: Vec<_> = (0..4).map(|_| chat.member("flood")).collect();
    let mut ears: Vec<_> = (0..2).map(|_| chat.member("flood")).collect();
    let lines = 20_000u64;
    let heard: u64 = std::thread::scope(|scope| {
        let counting: Vec<_> = ears
            .iter_mut()
            .chain(speakers.iter_mut())
            .map(|member| {
                let mut reader = Client(member.0.try_clone().unwrap());
                reader.0.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
                scope.spawn(move || {
                    use std::io::Read;
                    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
                    while let Ok(count @ 1..) = reader.0.read(&mut buffer) {
                        bytes += count as u64;
                    }
                    assert_eq!(bytes % 104, 0, "whole messages");
                    bytes / 104
                })
            })
            .collect();
        // An arbiter that is held up for a while has to be waited for as well.
        let holder = chat.mesh.spawn(Place::On(1), Spec::default(), Probe::default).unwrap();
        scope.spawn(move || (0..4).for_each(|_| hold(&holder, Duration::from_millis(100))));
        for speaker in &speakers {
            let mut writer = Client(speaker.0.try_clone().unwrap());
            scope.spawn(move || {
                let frame = [&100u32.to_be_bytes()[..], &say(0, 100)].concat().repeat(100);
                (0..lines / 100).for_each(|_| std::io::Write::write_all(&mut writer.0, &frame).unwrap());
            });
        }
        counting.into_iter().map(|count| count.join().unwrap()).sum()
    });
    let totals = chat.totals();
    assert_eq!(totals.family("rooms_broadcasts"), 4 * lines);
    let dropped = totals.family("messages_dropped");
    // Each of the four is heard by five others.
    assert_eq!(heard + dropped, 4 * lines * 5, "{dropped} dropped by policy");
    drop((speakers, ears));
    chat.is_empty();
}

#[test]
fn a_large_room_is_served_over_turns_while_others_come_and_go() {
    let chat = Chat::plain(1);
    let mut speakers: Vec<_> = (0..3).map(|_| chat.member("large")).collect();
    let mut rest: Vec<_> = (0..600).map(|_| chat.member("large")).collect();
    let lines = 100u32;
    std::thread::scope(|scope| {
        for (who, speaker) in (0u32..).zip(speakers.iter_mut()) {
            scope.spawn(move || (0..lines).for_each(|n| speaker.send(&say(who * lines + n, 20))));
        }
        scope.spawn(|| {
            for _ in 0..50 {
                let mut brief = Client::to(chat.address);
                brief.send(b"Jlarge");
                // In the middle of everything; what it hears first is that it is in.
                assert_eq!(brief.recv(), b"Jlarge");
                brief.send(b"L");
                while brief.recv() != b"L" {}
            }
        });
        for member in &mut rest {
            let mut next = [0; 3];
            for _ in 0..3 * lines {
                let got = number(&member.recv());
                let from = (got / lines) as usize;
                assert_eq!(got % lines, next[from], "in order, once");
                next[from] += 1;
            }
        }
    });
    drop((speakers, rest));
    chat.is_empty();
}
