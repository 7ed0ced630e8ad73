//! Two engines that hand each other their packets, without sockets and without actors.

use std::net::SocketAddr;

use super::super::actor_remote::Remote;
use super::super::messages::{Asked, Back, Direction};
use super::super::session::Read;
use super::super::state_datagrams::Datagram;
use super::*;
use crate::actors::clock::now;
use crate::actors::{Answer, Reply};
use crate::transports::tls;

/// Both ends of one connection.
pub(in super::super) struct Ends {
    pub(in super::super) server: Engine,
    pub(in super::super) client: Engine,
    addresses: [SocketAddr; 2],
}

impl Ends {
    /// Connected.
    pub(in super::super) fn new(change: impl FnOnce(&mut Transport, &mut Transport)) -> Self {
        let addresses = [SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2))];
        let [server, client] = addresses;
        let (mut served, mut used) = (Transport::default(), Transport::default());
        change(&mut served, &mut used);
        let certificate = Arc::new(tls::Certificate::generate(&["localhost".into()]).unwrap());
        let mut tls_server = tls::ServerSettings::new("test", vec![certificate.clone()]);
        let mut tls_client = tls::ClientSettings::new(tls::PeerName::new("localhost"));
        tls_server.protocols = vec![b"test".to_vec()];
        tls_client.protocols = vec![b"test".to_vec()];
        tls_client.roots = tls::Roots::Only(certificate);
        let mut accepting = served.config(tls_server.builder().unwrap()).unwrap();
        let mut connecting = used.config(tls_client.builder().unwrap()).unwrap();
        let id = quiche::ConnectionId::from_ref(&[1; 16]);
        let accepted = quiche::accept_with_buf_factory(&id, None, server, client, &mut accepting).unwrap();
        let id = quiche::ConnectionId::from_ref(&[2; 16]);
        let connected =
            quiche::connect_with_buffer_factory(Some("localhost"), &id, client, server, &mut connecting).unwrap();
        let mut ends = Self {
            server: Engine::new(Box::new(accepted), Arc::new(served), Role::Server, 0, now()),
            client: Engine::new(Box::new(connected), Arc::new(used), Role::Client, 0, now()),
            addresses,
        };
        while ends.server.phase != Phase::Open || ends.client.phase != Phase::Open {
            ends.exchange();
        }
        ends.server.events.clear();
        ends.client.events.clear();
        ends
    }

    /// One turn of each end, as its actor would take it. True if packets went either way.
    pub(in super::super) fn exchange(&mut self) -> bool {
        let [server, client] = self.addresses;
        let there = one_turn(&mut self.client, &mut self.server, [client, server]);
        let back = one_turn(&mut self.server, &mut self.client, [server, client]);
        there || back
    }

    /// Hands the client one packet of the server.
    pub(in super::super) fn deliver(&mut self, packet: &mut [u8]) {
        let [from, to] = self.addresses;
        self.client.heard = true;
        self.client.quic.recv(packet, quiche::RecvInfo { from, to }).unwrap();
    }

    /// What the client has to say, to the server.
    pub(in super::super) fn answer(&mut self) {
        let [to, from] = self.addresses;
        one_turn(&mut self.client, &mut self.server, [from, to]);
    }

    /// A turn of the client, of which the server takes note without an answer.
    pub(in super::super) fn say(&mut self) {
        let [server, client] = self.addresses;
        one_turn(&mut self.client, &mut self.server, [client, server]);
        self.server.learn();
    }

    /// A turn of the client, of which the server takes no note yet.
    pub(in super::super) fn tell(&mut self) {
        let [server, client] = self.addresses;
        one_turn(&mut self.client, &mut self.server, [client, server]);
    }

    /// Turns until nothing is left to be said.
    pub(in super::super) fn settle(&mut self) {
        while self.exchange() {}
    }
}

fn one_turn(one: &mut Engine, other: &mut Engine, [from, to]: [SocketAddr; 2]) -> bool {
    one.now = now();
    one.learn();
    one.feed();
    one.begin_send();
    one.next_end();
    let mut packet = [0; 2_048];
    let mut some = false;
    while let Ok((length, _)) = one.quic.send(&mut packet) {
        one.next_end();
        some = true;
        other.heard = true;
        other.quic.recv(&mut packet[..length], quiche::RecvInfo { from, to }).unwrap();
    }
    some
}

fn happened(engine: &mut Engine) -> Vec<Event> {
    engine.events.drain(..).collect()
}

/// Hands everything that happened to those with handles.
fn tell(remote: &mut Remote, engine: &mut Engine) {
    remote.look_for_given_up(engine);
    while let Some(event) = engine.events.pop_front() {
        remote.on(&event, engine);
    }
}

#[test]
fn streams_of_a_peer_are_not_kept_for_handles_that_nobody_has() {
    let mut ends = Ends::new(|_, _| ());
    let mut remote = Remote::default();
    for _ in 0..10_000 {
        let stream = ends.client.open(StreamKind::Bidirectional, Priority::default()).unwrap();
        ends.client.write(stream, Bytes::from_static(b"question")).unwrap();
        ends.client.finish(stream).unwrap();
        while !ends.server.events.contains(&Event::Readable(stream)) {
            ends.exchange();
        }
        tell(&mut remote, &mut ends.server);
        assert_eq!(ends.server.read(stream, 100), Ok(Read::Data(Bytes::from_static(b"question"))));
        assert_eq!(ends.server.read(stream, 100), Ok(Read::End));
        ends.server.finish(stream).unwrap();
        while !ends.client.events.contains(&Event::Readable(stream)) {
            ends.exchange();
        }
        assert_eq!(ends.client.read(stream, 100), Ok(Read::End));
        ends.client.events.clear();
    }
    assert_eq!((remote.unaccepted(), ends.server.info().streams, ends.client.info().streams), (0, 0, 0));
}

#[test]
fn a_stream_that_its_peer_gave_up_waits_for_nobody() {
    let mut ends = Ends::new(|_, _| ());
    let mut remote = Remote::default();
    remote.attend();
    let kinds = [StreamKind::Bidirectional, StreamKind::Unidirectional];
    // More than may be open at once: each that was given up must leave room for another.
    for round in 0..400 {
        for kind in kinds {
            let stream = ends.client.open(kind, Priority::default()).unwrap();
            ends.client.write(stream, Bytes::from_static(b"never mind")).unwrap();
            ends.settle();
            tell(&mut remote, &mut ends.server);
            assert_eq!(remote.unaccepted(), 1, "round {round}");
            ends.client.reset(stream, 7).unwrap();
            ends.settle();
            tell(&mut remote, &mut ends.server);
            ends.settle();
            assert_eq!((remote.unaccepted(), ends.server.info().streams), (0, 0), "round {round}");
            let news = happened(&mut ends.client);
            if kind == StreamKind::Bidirectional {
                assert!(news.contains(&Event::Readable(stream)), "{news:?}");
                assert_eq!(ends.client.read(stream, 1), Err(StreamError::Reset(7)));
            }
        }
    }
}

#[test]
fn a_stream_that_ended_before_it_was_accepted_is_there_to_be_read() {
    let mut ends = Ends::new(|_, _| ());
    let mut remote = Remote::default();
    remote.attend();
    for text in ["", "something"] {
        let stream = ends.client.open(StreamKind::Unidirectional, Priority::default()).unwrap();
        ends.client.write(stream, Bytes::from_static(text.as_bytes())).unwrap();
        ends.client.finish(stream).unwrap();
        ends.settle();
        tell(&mut remote, &mut ends.server);
        assert_eq!(remote.unaccepted(), 1);
        let (reply, answer) = Reply::new();
        remote.request(Asked::Accept { kind: StreamKind::Unidirectional, reply }, &mut ends.server);
        let accepted = futures_util::FutureExt::now_or_never(answer.0).unwrap().unwrap();
        assert_eq!(accepted.map(|new| new.stream), Ok(stream));
        if !text.is_empty() {
            assert_eq!(ends.server.read(stream, 100), Ok(Read::Data(Bytes::from_static(text.as_bytes()))));
        }
        assert_eq!(ends.server.read(stream, 100), Ok(Read::End));
        assert_eq!(remote.unaccepted(), 0);
    }
}

/// Asks, and goes away before or after the answer.
fn asked<R>(make: impl FnOnce(Reply<R>) -> Asked, remote: &mut Remote, engine: &mut Engine) -> Answer<R> {
    let (reply, answer) = Reply::new();
    remote.request(make(reply), engine);
    answer
}

fn told<R>(answer: Answer<R>) -> Option<R> {
    futures_util::FutureExt::now_or_never(answer.0).and_then(Result::ok)
}

#[test]
fn datagrams_of_somebody_who_has_gone_are_for_the_next() {
    let mut ends = Ends::new(|_, _| ());
    let mut remote = Remote::default();
    drop(asked(Asked::Datagrams, &mut remote, &mut ends.server));
    for text in ["first", "second"] {
        ends.client.send_datagram(Datagram::new(Bytes::from_static(text.as_bytes()))).unwrap();
    }
    ends.settle();
    tell(&mut remote, &mut ends.server);
    assert_eq!(remote.held(), 11, "taken for somebody who was gone");
    let taken = told(asked(Asked::Datagrams, &mut remote, &mut ends.server)).unwrap();
    assert_eq!((&*taken, remote.held()), (&[Bytes::from("first"), Bytes::from("second")][..], 0));
    // Given up after the answer was there: it comes back, and goes before what has come since.
    ends.client.send_datagram(Datagram::new(Bytes::from_static(b"third"))).unwrap();
    ends.settle();
    remote.request(Asked::Back(Back::Datagrams(taken)), &mut ends.server);
    tell(&mut remote, &mut ends.server);
    let all = told(asked(Asked::Datagrams, &mut remote, &mut ends.server)).unwrap();
    assert_eq!(all, ["first", "second", "third"]);
    assert!(told(asked(Asked::Datagrams, &mut remote, &mut ends.server)).is_none(), "each but once");
}

#[test]
fn datagrams_that_nobody_reads_are_bounded_and_counted() {
    let mut ends = Ends::new(|server, _| server.datagrams_in = 4);
    let mut remote = Remote::default();
    for number in 0..7_u8 {
        ends.client.send_datagram(Datagram::new(Bytes::from(vec![number]))).unwrap();
        ends.settle();
        ends.server.note_datagrams();
    }
    assert_eq!((ends.server.dropped_unread(), ends.server.dropped_unread()), (3, 0));
    tell(&mut remote, &mut ends.server);
    let taken = told(asked(Asked::Datagrams, &mut remote, &mut ends.server)).unwrap();
    assert_eq!(taken, [3, 4, 5, 6].map(|number| vec![number]));
    let more: Vec<Bytes> = taken.iter().chain(&taken).cloned().collect();
    remote.request(Asked::Back(Back::Datagrams(more)), &mut ends.server);
    assert_eq!((remote.held(), remote.take_dropped(), remote.take_dropped()), (4, 4, 0));
    assert_eq!(told(asked(Asked::Datagrams, &mut remote, &mut ends.server)).unwrap(), taken);
}

#[test]
fn what_was_read_for_somebody_who_has_gone_is_for_the_next() {
    let mut ends = Ends::new(|_, _| ());
    let mut remote = Remote::default();
    remote.attend();
    let stream = ends.client.open(StreamKind::Unidirectional, Priority::default()).unwrap();
    ends.client.write(stream, Bytes::from_static(b"hello")).unwrap();
    ends.settle();
    tell(&mut remote, &mut ends.server);
    let accept = |reply| Asked::Accept { kind: StreamKind::Unidirectional, reply };
    let accepted = told(asked(accept, &mut remote, &mut ends.server)).unwrap();
    assert_eq!(remote.unaccepted(), 0);
    remote.request(Asked::Back(Back::Accepted(accepted)), &mut ends.server);
    assert_eq!(remote.unaccepted(), 1, "it is there to be accepted again");
    let read = |max| move |reply| Asked::Read { stream, max, reply };
    let (reply, answer) = Reply::new();
    drop(answer);
    remote.request(read(100)(reply), &mut ends.server);
    assert_eq!(remote.held(), 5, "read for somebody who was gone");
    let some = told(asked(read(2), &mut remote, &mut ends.server)).unwrap();
    assert_eq!(some, Ok(Read::Data(Bytes::from_static(b"he"))));
    let rest = told(asked(read(100), &mut remote, &mut ends.server)).unwrap();
    remote.request(Asked::Back(Back::Read(stream, rest)), &mut ends.server);
    let rest = told(asked(read(100), &mut remote, &mut ends.server)).unwrap();
    assert_eq!(rest, Ok(Read::Data(Bytes::from_static(b"llo"))));
    // The end as well.
    ends.client.finish(stream).unwrap();
    let waiting = asked(read(100), &mut remote, &mut ends.server);
    ends.settle();
    tell(&mut remote, &mut ends.server);
    remote.request(Asked::Back(Back::Read(stream, told(waiting).unwrap())), &mut ends.server);
    assert_eq!(told(asked(read(100), &mut remote, &mut ends.server)), Some(Ok(Read::End)));
    // With the last handle it is gone.
    remote.request(Asked::Back(Back::Read(stream, rest)), &mut ends.server);
    assert_eq!(remote.held(), 3);
    remote.request(Asked::Released(stream, Direction::Receive), &mut ends.server);
    assert_eq!(remote.held(), 0);
}

#[test]
fn a_stream_that_was_opened_for_somebody_who_has_gone_is_given_up() {
    let mut ends = Ends::new(|_, _| ());
    let mut remote = Remote::default();
    let open = |reply| Asked::Open { kind: StreamKind::Bidirectional, priority: Priority::default(), reply };
    let (reply, answer) = Reply::new();
    drop(answer);
    remote.request(open(reply), &mut ends.client);
    assert_eq!(ends.client.info().streams, 0);
    let new = told(asked(open, &mut remote, &mut ends.client)).unwrap();
    assert_eq!(ends.client.info().streams, 1);
    remote.request(Asked::Back(Back::Opened(new)), &mut ends.client);
    assert_eq!(ends.client.info().streams, 0);
}

#[test]
fn credit_that_comes_back_is_for_the_next_in_line() {
    let mut ends = Ends::new(|_, client| client.stream_credit = 1_000);
    let mut remote = Remote::default();
    let stream = ends.client.open(StreamKind::Unidirectional, Priority::default()).unwrap();
    let shared = ends.client.share(stream).unwrap();
    let credit = |bytes| move |reply| Asked::Credit { stream, bytes, reply };
    let first = told(asked(credit(900), &mut remote, &mut ends.client)).unwrap();
    let second = asked(credit(500), &mut remote, &mut ends.client);
    assert_eq!(shared.credit.free(), 100);
    remote.request(Asked::Back(Back::Credit(first)), &mut ends.client);
    assert_eq!((told(second).unwrap().map(|granted| granted.bytes), shared.credit.free()), (Ok(500), 1_000));
}

#[test]
fn events_of_a_reader_who_has_gone_are_for_the_next() {
    let mut ends = Ends::new(|_, _| ());
    let mut remote = Remote::default();
    let events = told(asked(Asked::Events, &mut remote, &mut ends.server)).unwrap();
    assert_eq!(events, [Event::Connected]);
    remote.request(Asked::Back(Back::Events(events)), &mut ends.server);
    assert_eq!(told(asked(Asked::Events, &mut remote, &mut ends.server)), Some(vec![Event::Connected]));
}

/// A limit of quiche 0.30, and how it is got round: a packet that was overtaken by the word that gave its id back.
#[test]
fn a_packet_with_an_id_that_was_given_back_is_late_and_no_mistake() {
    let mut ends = Ends::new(|_, _| ());
    for number in [3, 4] {
        let id = [number; 16];
        ends.server.quic.new_scid(&quiche::ConnectionId::from_ref(&id), number.into(), false).unwrap();
    }
    ends.settle();
    ends.client.quic.send_ack_eliciting().unwrap();
    let mut late = [0; 2_048];
    let (length, _) = ends.client.quic.send(&mut late).unwrap();
    assert!(!ends.server.is_late(&late[..length]), "not before its id was given back");
    ends.client.quic.retire_dcid(0).unwrap();
    ends.settle();
    assert_eq!(ends.server.quic.retired_scids(), 1);
    assert!(ends.server.is_late(&late[..length]));
    // A packet with an id that is in use is none, nor is one with a long header, or cut.
    ends.client.quic.send_ack_eliciting().unwrap();
    let mut next = [0; 2_048];
    let (other, _) = ends.client.quic.send(&mut next).unwrap();
    assert!(
        !ends.server.is_late(&next[..other]) && !ends.server.is_late(&[0xc0; 40]) && !ends.server.is_late(&[0x40; 16])
    );
    let [server, client] = ends.addresses;
    let info = quiche::RecvInfo { from: client, to: server };
    assert_eq!(ends.server.quic.recv(&mut late[..length], info), Err(quiche::Error::InvalidState));
    ends.server.notice_end();
    assert!(ends.server.end.is_some(), "it would have been the end of the connection");
}

fn write(engine: &mut Engine, stream: StreamId, length: usize) {
    engine.write(stream, Bytes::from(vec![stream.0 as u8; length])).unwrap();
}

#[test]
fn small_answers_need_no_queue_and_what_waits_is_not_overtaken() {
    let mut ends = Ends::new(|_, _| ());
    let [first, second, third] =
        [0; 3].map(|_| ends.server.open(StreamKind::Unidirectional, Priority::default()).unwrap());
    ends.server.write_last(first, Bytes::from_static(b"whole")).unwrap();
    assert_eq!((ends.server.held(), ends.server.info().streams), (0, 2));
    assert_eq!(ends.server.write(first, Bytes::from_static(b"more")), Err(StreamError::Unknown));
    // More than the first window: some of it waits, and all that is written behind it.
    write(&mut ends.server, second, 50_000);
    write(&mut ends.server, second, 10);
    write(&mut ends.server, third, 10);
    ends.server.finish(third).unwrap();
    assert_eq!(ends.server.finish(third), Err(StreamError::Finished));
    assert_eq!(ends.server.held(), 50_020);
    ends.server.finish(second).unwrap();
    let mut got = std::collections::BTreeMap::<StreamId, Vec<u8>>::new();
    while got.len() < 3 || ends.server.held() > 0 {
        assert!(ends.exchange(), "it stands still");
        for event in happened(&mut ends.client) {
            if let Event::Readable(stream) = event {
                while let Ok(Read::Data(bytes)) = ends.client.read(stream, 1 << 20) {
                    got.entry(stream).or_default().extend(bytes);
                }
            }
        }
    }
    ends.settle();
    assert_eq!(got[&first], b"whole");
    assert_eq!(got[&third], [third.0 as u8; 10]);
    assert_eq!(ends.server.credit.used(), 0);
    assert!(ends.server.is_delivered(), "all was acknowledged");
}

#[test]
fn a_handle_that_comes_late_sees_the_credit_that_is_used() {
    let mut ends = Ends::new(|server, _| server.stream_credit = 60_000);
    let stream = ends.server.open(StreamKind::Unidirectional, Priority::default()).unwrap();
    write(&mut ends.server, stream, 50_000);
    let shared = ends.server.share(stream).unwrap();
    assert_eq!((shared.credit.free(), ends.server.room(stream)), (10_000, 10_000));
    assert_eq!(ends.server.write(stream, Bytes::from(vec![0; 10_001])), Err(StreamError::Full(10_000)));
    ends.server.feed();
    let taken = 50_000 - ends.server.held();
    assert_eq!(shared.credit.free(), 10_000 + taken);
    ends.server.reset(stream, 1).unwrap();
    assert_eq!((shared.fate.get(), ends.server.credit.used()), (Some(&StreamError::Finished), 0));
}

#[test]
fn an_end_alone_is_not_forgotten_when_all_before_it_is_acknowledged() {
    let mut ends = Ends::new(|_, _| ());
    for kind in [StreamKind::Bidirectional, StreamKind::Unidirectional] {
        let stream = ends.client.open(kind, Priority::default()).unwrap();
        write(&mut ends.client, stream, 100);
        ends.exchange();
        assert!(matches!(ends.server.read(stream, 100), Ok(Read::Data(_))));
        // The end is written before the acknowledgement is read that came for the data, and leaves after it.
        ends.client.finish(stream).unwrap();
        assert!(ends.client.end_due().is_some());
        one_turn(&mut ends.server, &mut ends.client, ends.addresses);
        ends.settle();
        assert_eq!((ends.server.read(stream, 100), ends.client.end_due()), (Ok(Read::End), None));
    }
}

/// QUIC says that a stream can be written once for each time that it took nothing: whoever misses that waits for ever.
#[test]
fn a_stream_that_is_held_back_again_and_again_goes_on_each_time() {
    let mut ends = Ends::new(|server, client| {
        (server.stream_credit, client.stream_window, client.stream_window_max) = (100_000, 1_000, 1_000);
    });
    let streams = [0; 3].map(|_| ends.server.open(StreamKind::Unidirectional, Priority::default()).unwrap());
    for stream in streams {
        write(&mut ends.server, stream, 20_000);
        ends.server.finish(stream).unwrap();
    }
    let (mut got, mut ended, mut held_back) = (0, 0, 0);
    while ended < streams.len() {
        ends.settle();
        held_back += usize::from(ends.server.sending.is_held_back());
        let before = (got, ended);
        for event in happened(&mut ends.client) {
            let Event::Readable(stream) = event else { continue };
            loop {
                match ends.client.read(stream, 1 << 20).unwrap() {
                    Read::Data(bytes) => got += bytes.len(),
                    Read::End => break ended += 1,
                    Read::Nothing => break,
                }
            }
        }
        assert_ne!(before, (got, ended), "it stands still");
    }
    assert_eq!(got, 60_000);
    assert!(held_back >= 10, "held back {held_back} times");
    assert_eq!(ends.server.credit.used(), 0);
}

/// To set its priority is what makes a stream known to QUIC; its peer learns of it with the first word that is sent.
#[test]
fn a_stream_that_was_opened_and_not_used_can_be_ended_reset_and_left() {
    let mut ends = Ends::new(|_, _| ());
    for kind in [StreamKind::Bidirectional, StreamKind::Unidirectional] {
        let [ended, reset, unused] = [0; 3].map(|_| ends.client.open(kind, Priority::default()).unwrap());
        ends.settle();
        assert_eq!(happened(&mut ends.server), [], "nothing was said of them");
        ends.client.finish(ended).unwrap();
        ends.client.reset(reset, 7).unwrap();
        ends.settle();
        let seen = happened(&mut ends.server);
        assert!(seen.contains(&Event::Opened(ended)) && !seen.contains(&Event::Opened(unused)), "{seen:?}");
        assert_eq!(ends.server.read(ended, 10), Ok(Read::End));
        // The number below it that was reset or never used holds up nothing.
        let next = ends.client.open(kind, Priority::default()).unwrap();
        ends.client.write_last(next, Bytes::from_static(b"next")).unwrap();
        ends.settle();
        assert_eq!(ends.server.read(next, 10), Ok(Read::Data(Bytes::from_static(b"next"))));
        ends.client.finish(unused).unwrap();
        ends.settle();
        assert_eq!(ends.server.read(unused, 10), Ok(Read::End));
        ends.server.events.clear();
    }
    assert!(ends.server.end.is_none() && ends.client.end.is_none());
}

impl Ends {
    /// The client is behind another port from now on; answers `true` of `pass` reach it.
    fn turn_from(&mut self, port: u16, pass: bool, mut again: usize) {
        let [server, client] = self.addresses;
        let new = SocketAddr::from(([127, 0, 0, 1], port));
        let mut packet = [0; 2_048];
        for end in [&mut self.client, &mut self.server] {
            end.now = now();
            if end.quic.timeout_instant().is_some_and(|at| at <= end.now) {
                end.time_out();
            }
            end.learn();
            end.feed();
        }
        while let Ok((length, _)) = self.client.quic.send(&mut packet) {
            self.server.heard = true;
            if again > 0 {
                again -= 1;
                self.client.quic.send_ack_eliciting().unwrap();
            }
            // What ends the connection is seen by the test.
            let _refused = self.server.receive(&mut packet[..length], quiche::RecvInfo { from: new, to: server });
        }
        let asking: Vec<_> = self.server.paths.asking.drain(..).map(|asking| (asking.bytes, asking.to)).collect();
        let more = std::iter::from_fn(|| {
            let (length, info) = self.server.quic.send(&mut packet).ok()?;
            Some((packet[..length].to_vec(), self.server.addressed(info.from, info.to).1))
        });
        let said: Vec<_> = asking.into_iter().chain(more).collect();
        for (mut bytes, to) in said {
            if pass && to == new {
                self.client.heard = true;
                self.client.quic.recv(&mut bytes, quiche::RecvInfo { from: server, to: client }).unwrap();
            }
        }
        self.client.learn();
        self.server.learn();
    }
}

/// A client's port changes, and what asks for proof of the new one is lost. quiche gives the new path up when its timer
/// comes and nothing more may be sent there, or at the third time; and would end the connection with the second packet
/// that comes from there afterwards.
#[test]
fn a_new_address_that_was_not_proved_in_time_is_asked_again_when_something_comes_from_it() {
    let mut ends = Ends::new(|_, _| ());
    let stream = ends.client.open(StreamKind::Bidirectional, Priority::default()).unwrap();
    ends.client.write(stream, Bytes::from("question")).unwrap();
    ends.settle();
    // More than three times what the client says from its new port.
    ends.server.write(stream, Bytes::from(vec![7; 100_000])).unwrap();
    ends.client.write(stream, Bytes::from("x")).unwrap();
    let end = now() + Duration::from_secs(20);
    while ends.server.paths.failed.is_empty() {
        assert!(now() < end, "never given up");
        ends.turn_from(3, false, 0);
    }
    for _ in 0..3 {
        ends.client.quic.send_ack_eliciting().unwrap();
        ends.turn_from(3, false, 2);
        assert_eq!(ends.server.quic.local_error(), None);
        assert!(!ends.server.quic.is_closed());
    }
    let mut got = 0;
    while got < 100_000 {
        assert!(
            now() < end && ends.server.end.is_none(),
            "{got} bytes came; {:?} {:?} {:#?} {:#?}",
            ends.server.end,
            ends.server.paths,
            ends.server.quic.path_stats().collect::<Vec<_>>(),
            ends.client.quic.path_stats().collect::<Vec<_>>()
        );
        ends.turn_from(3, true, 0);
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, _)) = ends.client.quic.stream_recv(stream.0, &mut buffer) {
            got += length;
        }
    }
    assert!(ends.server.paths.failed.is_empty() && ends.server.paths.left.iter().all(|left| left.path.1.port() != 3));
}

/// A client moves while much of what it has sent is lost. quiche finds that out by later packets of the path that was left,
/// and without one sends the same two packets again at each of its timers.
#[test]
fn what_was_lost_on_the_path_that_a_client_leaves_is_sent_again_on_the_new_one() {
    const WINDOW: usize = 300_000;
    let mut ends = Ends::new(|server, _| server.stream_window = 4 << 20);
    let [server, old] = ends.addresses;
    let new = SocketAddr::from(([127, 0, 0, 1], 4));
    let stream = ends.client.open(StreamKind::Unidirectional, Priority::default()).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut read = |ends: &mut Ends| {
        let mut got = 0;
        while let Ok((length, _)) = ends.server.quic.stream_recv(stream.0, &mut buffer) {
            got += length;
        }
        got
    };
    // Ids for one more path, which the actors ask their endpoint for.
    for (end, number) in [(&mut ends.server, 3), (&mut ends.client, 4)] {
        let id = [number; 16];
        let id = quiche::ConnectionId::from_ref(&id);
        end.quic.new_scid(&id, u128::from(number), false).unwrap();
    }
    ends.settle();
    // A congestion window of some size.
    let (mut sent, mut got) = (0, 0);
    while got < 2 * WINDOW {
        while ends.client.room(stream) >= 10_000 {
            ends.client.write(stream, Bytes::from(vec![7; 10_000])).unwrap();
            sent += 10_000;
        }
        ends.exchange();
        got += read(&mut ends);
    }
    // And what it has under way is lost, all of it.
    let mut packet = [0; 2_048];
    let (mut lost, mut before) = (0, usize::MAX);
    while before != lost {
        before = lost;
        while ends.client.room(stream) >= 10_000 {
            ends.client.write(stream, Bytes::from(vec![7; 10_000])).unwrap();
            sent += 10_000;
        }
        ends.client.feed();
        while ends.client.quic.send(&mut packet).is_ok() {
            lost += 1;
        }
    }
    assert!(lost > 40, "{lost} packets");
    let end = now() + Duration::from_secs(5);
    let mut moved = false;
    while got < sent {
        assert!(now() < end, "{got} of {sent} bytes came, {lost} packets were lost");
        for one in [&mut ends.client, &mut ends.server] {
            one.now = now();
            if one.quic.timeout_instant().is_some_and(|at| at <= one.now) {
                one.time_out();
            }
            one.learn();
            one.feed();
        }
        if !moved && ends.client.quic.available_dcids() > 0 && ends.client.quic.path_stats().count() == 1 {
            ends.client.quic.probe_path(new, server).unwrap();
        }
        for (local, peer, valid) in std::mem::take(&mut ends.client.proved) {
            if valid && local == new && !moved {
                ends.client.move_to(local, peer).unwrap();
                moved = true;
            }
        }
        while let Ok((length, info)) = ends.client.quic.send(&mut packet) {
            assert!(info.from == old || info.from == new);
            let info = quiche::RecvInfo { from: info.from, to: server };
            ends.server.heard = true;
            ends.server.receive(&mut packet[..length], info).unwrap();
        }
        while let Ok((length, info)) = ends.server.quic.send(&mut packet) {
            let (_, to) = ends.server.addressed(info.from, info.to);
            ends.client.heard = true;
            ends.client.receive(&mut packet[..length], quiche::RecvInfo { from: server, to }).unwrap();
        }
        got += read(&mut ends);
    }
    assert!(moved);
}
