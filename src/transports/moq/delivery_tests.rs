//! Tests of what a subscription still gets: the rules of the draft for streams, priorities and timeouts.

use super::super::state_cache::{Item, Limits};
use super::*;

fn now() -> Instant {
    crate::actors::clock::now()
}

fn head(group: u64, subgroup: u64, priority: Option<u8>) -> Head {
    Head { group, subgroup: Some(subgroup), priority, properties: false, end_of_group: false, first_object: true }
}

struct Bench {
    groups: Groups,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { groups: Groups::new(Limits::default()), now: now() }
    }

    fn begin(&mut self, no: u64, head: Head) {
        self.groups.apply(&Item::Begin { no, head, at: self.now });
    }

    /// An object of ten bytes, of which the first is its number.
    fn object(&mut self, no: u64, id: u64) {
        let at = self.groups.get(no).unwrap().length();
        let mark = Mark { id, at, delta: 1, status: 0, properties: 0, head: 2, payload: 8, arrived: self.now };
        self.groups.apply(&Item::Data { no, marks: vec![mark], bytes: Bytes::from(vec![id as u8; 10]) });
    }

    fn end(&mut self, no: u64, end: End) {
        self.groups.apply(&Item::End { no, end, at: self.now });
    }

    /// All steps there are for now, in words.
    fn run(&self, delivery: &mut Delivery, room: usize) -> Vec<String> {
        delivery.look(&self.groups);
        let mut said = Vec::new();
        for _ in 0..100 {
            let Some(rank) = delivery.first(&self.groups) else { return said };
            let no = rank.no;
            said.push(match delivery.step(no, &self.groups, room, self.now) {
                Step::Open { head, first, .. } => format!("open {no} at {first:?} first {}", head.first_object),
                Step::Write { bytes, last, .. } => {
                    format!("write {no} {}{}", bytes.len(), if last { " last" } else { "" })
                }
                Step::Finish => format!("finish {no}"),
                Step::Reset(code) => format!("reset {no} {code}"),
                Step::Datagram { mark, .. } => format!("datagram {no} {}", mark.id),
                Step::Skip => format!("skip {no}"),
                Step::Wait => return said,
            });
        }
        said
    }
}

fn plain() -> Delivery {
    Delivery::new(Wishes::default(), 128)
}

/// Rule 3: FIN if everything from the start on was written.
#[test]
fn a_whole_subgroup_ends_with_its_last_bytes() {
    let mut bench = Bench::new();
    bench.begin(0, head(0, 0, None));
    bench.object(0, 0);
    let mut delivery = plain();
    assert_eq!(bench.run(&mut delivery, 99), ["open 0 at Some(0) first true", "write 0 9"]);
    bench.object(0, 1);
    bench.end(0, End::Complete);
    assert_eq!(bench.run(&mut delivery, 99), ["write 0 10 last"]);
    assert!(delivery.is_idle());
    assert_eq!(delivery.opened(), 1);
}

/// Rule 3: and a reset otherwise, with the publisher's code; rule 16: nothing else ends with it.
#[test]
fn a_reset_of_the_publisher_is_one_here() {
    let mut bench = Bench::new();
    bench.begin(0, head(0, 0, None));
    bench.object(0, 0);
    bench.begin(1, head(0, 1, None));
    let mut delivery = plain();
    bench.run(&mut delivery, 99);
    bench.end(0, End::Reset(ResetCode::DeliveryTimeout.number(super::super::model::Draft::D18)));
    bench.object(1, 1);
    assert_eq!(bench.run(&mut delivery, 99), ["reset 0 delivery_timeout", "open 1 at Some(1) first true", "write 1 9"]);
}

#[test]
fn objects_pass_while_they_arrive() {
    let mut bench = Bench::new();
    bench.begin(0, head(0, 0, None));
    let mark = Mark { id: 0, at: 0, delta: 1, status: 0, properties: 0, head: 4, payload: 1_000, arrived: bench.now };
    bench.groups.apply(&Item::Data { no: 0, marks: vec![mark], bytes: Bytes::from(vec![0; 50]) });
    let mut delivery = plain();
    assert_eq!(bench.run(&mut delivery, 99), ["open 0 at Some(0) first true", "write 0 49"]);
    bench.groups.apply(&Item::Data { no: 0, marks: Vec::new(), bytes: Bytes::from(vec![0; 70]) });
    assert_eq!(bench.run(&mut delivery, 99), ["write 0 70"]);
}

/// Rule 2: who joins in the midst of a subgroup gets the next object in a stream of its own, which says that it is not
/// the first; by its filter that is all it asked for, so that the stream ends properly.
#[test]
fn who_joins_in_the_midst_begins_with_the_next_object() {
    let mut bench = Bench::new();
    bench.begin(0, head(3, 0, None));
    bench.object(0, 0);
    bench.object(0, 1);
    let start = next(bench.groups.largest().unwrap());
    let mut delivery = Delivery::new(Wishes { start, ..Wishes::default() }, 128);
    assert_eq!(bench.run(&mut delivery, 99), [""; 0]);
    bench.object(0, 2);
    assert_eq!(bench.run(&mut delivery, 99), ["open 0 at Some(2) first false", "write 0 9"]);
    bench.end(0, End::Complete);
    assert_eq!(bench.run(&mut delivery, 99), ["finish 0"]);
}

/// Rule 2: forwarding that goes off and on again leaves the stream and goes on in another, which cannot end properly.
#[test]
fn forwarding_off_and_on_makes_another_stream() {
    let mut bench = Bench::new();
    bench.begin(0, head(0, 0, None));
    bench.object(0, 0);
    let mut delivery = plain();
    bench.run(&mut delivery, 99);
    let off = Wishes { forward: false, ..Wishes::default() };
    assert_eq!(delivery.update(off, &bench.groups), [0], "its stream is reset");
    bench.object(0, 1);
    assert_eq!(bench.run(&mut delivery, 99), [""; 0]);
    assert_eq!(delivery.update(Wishes::default(), &bench.groups), [0; 0]);
    bench.object(0, 2);
    assert_eq!(bench.run(&mut delivery, 99), ["open 0 at Some(2) first false", "write 0 9"]);
    bench.end(0, End::Complete);
    assert_eq!(bench.run(&mut delivery, 99), ["reset 0 cancelled"]);
    assert_eq!(delivery.opened(), 2);
}

/// Rule 6: the subscriber's priority counts before the publisher's, lower first; then the order of groups, then subgroups.
#[test]
fn what_is_important_goes_first() {
    let mut bench = Bench::new();
    for (no, (group, subgroup, priority)) in
        [(1, 1, None), (1, 0, None), (0, 0, Some(200)), (2, 0, Some(1)), (0, 5, None)].into_iter().enumerate()
    {
        bench.begin(no as u64, head(group, subgroup, priority));
        bench.object(no as u64, 0);
        bench.end(no as u64, End::Complete);
    }
    let order = |mut delivery: Delivery| {
        let said = bench.run(&mut delivery, 99);
        said.iter().filter_map(|said| said.strip_prefix("open ")).map(|said| said[..1].to_owned()).collect::<String>()
    };
    assert_eq!(order(plain()), "34102");
    let newest = Wishes { order: GroupOrder::Descending, ..Wishes::default() };
    assert_eq!(order(Delivery::new(newest, 128)), "31042");
    let (mut urgent, mut lazy) = (Delivery::new(Wishes { priority: 1, ..newest }, 255), plain());
    assert!(urgent.look(&bench.groups) && lazy.look(&bench.groups));
    assert!(urgent.first(&bench.groups) < lazy.first(&bench.groups), "the subscriber's word counts first");
}

/// Rule 13: what is too old is not begun, and what was begun is given up; the rest goes on.
#[test]
fn late_objects_are_given_up_with_their_code() {
    let mut bench = Bench::new();
    let limit = Duration::from_millis(100);
    let mut delivery = Delivery::new(Wishes { object_timeout: Some(limit), ..Wishes::default() }, 128);
    bench.begin(0, head(0, 0, None));
    bench.object(0, 0);
    bench.run(&mut delivery, 5);
    bench.object(0, 1);
    bench.begin(1, head(1, 0, None));
    bench.object(1, 0);
    bench.now += limit * 2;
    bench.begin(2, head(2, 0, None));
    bench.object(2, 0);
    let said = bench.run(&mut delivery, 99);
    assert_eq!(said, ["reset 0 delivery_timeout", "skip 1", "open 2 at Some(0) first true", "write 2 9"]);
    assert_eq!(delivery.take_skipped(), 2);
}

#[test]
fn a_slow_subscriber_skips_what_the_cache_let_go_of() {
    let mut bench = Bench::new();
    bench.groups = Groups::new(Limits { groups: 2, ..Limits::default() });
    let mut delivery = plain();
    bench.begin(0, head(0, 0, None));
    bench.object(0, 0);
    assert_eq!(bench.run(&mut delivery, 1).len(), 10, "a byte each time");
    bench.object(0, 1);
    for no in 1..4 {
        bench.begin(no, head(no, 0, None));
        bench.object(no, 0);
        bench.end(no, End::Complete);
        bench.groups.shrink(bench.now);
    }
    let said = bench.run(&mut delivery, 99);
    assert_eq!(said[0], "reset 0 too_far_behind");
    assert_eq!(delivery.take_skipped(), 1);
    assert!(said.contains(&"open 3 at Some(0) first true".to_owned()), "{said:?}");
}

#[test]
fn a_subscription_ends_where_it_was_asked_to() {
    let mut bench = Bench::new();
    for no in 0..3 {
        bench.begin(no, head(no, 0, None));
        bench.object(no, 0);
        bench.object(no, 1);
        bench.end(no, End::Complete);
    }
    let end = Some(Location::new(1, 0));
    let mut delivery = Delivery::new(Wishes { start: Location::new(0, 1), end, ..Wishes::default() }, 128);
    let said = bench.run(&mut delivery, 99);
    let expected = [
        "open 0 at Some(1) first false",
        "write 0 9 last",
        "open 1 at Some(0) first true",
        "write 1 9",
        "reset 1 cancelled",
    ];
    assert_eq!(said, expected);
}

/// Rule 4: a subgroup without objects is a stream as well, so that counts agree.
#[test]
fn an_empty_subgroup_is_told() {
    let mut bench = Bench::new();
    bench.begin(0, head(0, 0, None));
    bench.end(0, End::Complete);
    let mut delivery = plain();
    assert_eq!(bench.run(&mut delivery, 99), ["open 0 at None first true", "finish 0"]);
    assert_eq!(delivery.opened(), 1);
}

#[test]
fn a_datagram_goes_once_and_whole() {
    let mut bench = Bench::new();
    bench.begin(0, Head { subgroup: None, ..head(0, 0, Some(7)) });
    let mark = Mark { id: 4, at: 0, delta: 0, status: 0, properties: 0, head: 0, payload: 10, arrived: bench.now };
    bench.groups.apply(&Item::Data { no: 0, marks: vec![mark], bytes: Bytes::from(vec![4; 10]) });
    bench.end(0, End::Complete);
    let mut delivery = plain();
    assert_eq!(bench.run(&mut delivery, 99), ["datagram 0 4"]);
    assert!(delivery.is_idle());
    assert_eq!(delivery.opened(), 0, "it is no stream");
}
