//! Tests of names: who is asked, told and offered what, and each session's share.

use std::time::Duration;

use super::super::model_names::TrackName;
use super::*;

fn namespace(text: &str) -> Namespace {
    Namespace::new(text.split('/').filter(|field| !field.is_empty())).unwrap()
}

fn track(namespace: &str, name: &str) -> FullTrackName {
    FullTrackName::new(self::namespace(namespace), TrackName::new(name).unwrap()).unwrap()
}

const fn asked(session: u64, request: u64) -> Asked {
    Asked { session: SessionId(session), request }
}

/// A directory whose tracks are their names.
struct Bench {
    directory: Directory<String>,
    now: Instant,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self { directory: Directory::new(limits), now: crate::actors::clock::now() }
    }

    fn with<R>(
        &mut self,
        act: impl FnOnce(&mut Directory<String>, Make<'_, String>, &mut Vec<Say<String>>) -> R,
    ) -> (R, Vec<Say<String>>) {
        let mut out = Vec::new();
        let mut make = |name: &FullTrackName, _: SessionId| Some(name.to_string());
        let done = act(&mut self.directory, &mut make, &mut out);
        (done, out)
    }

    fn announce(&mut self, session: u64, text: &str) -> Vec<Say<String>> {
        let (done, out) =
            self.with(|all, make, out| all.publish_namespace(SessionId(session), &namespace(text), make, out));
        assert_eq!(done, Ok(()));
        out
    }

    fn publish(&mut self, session: u64, name: &FullTrackName) -> Vec<Say<String>> {
        let (done, out) = self.with(|all, make, out| all.publish(SessionId(session), name, make, out));
        assert_eq!(done, Ok(name.to_string()));
        out
    }

    fn find(&mut self, asked: Asked, name: &FullTrackName, hold: u64) -> Vec<Say<String>> {
        let now = self.now;
        self.with(|all, make, out| all.find(asked, name, Duration::from_secs(hold), now, make, out)).1
    }
}

fn bench() -> Bench {
    Bench::new(Limits::default())
}

/// Rule 10: all publishers of a matching namespace are asked, fields in full; what is there already is joined.
#[test]
fn a_subscription_goes_to_all_matching_publishers_and_once() {
    let mut bench = bench();
    let name = track("a/b", "t");
    bench.announce(1, "a");
    bench.announce(2, "a/b");
    bench.announce(3, "a/bc");
    let out = bench.find(asked(9, 1), &name, 0);
    let t = name.to_string();
    let expected = [
        Say::Pull(SessionId(1), t.clone(), Duration::ZERO),
        Say::Pull(SessionId(2), t.clone(), Duration::ZERO),
        Say::Begun(asked(9, 1), t.clone()),
    ];
    assert_eq!(out, expected);
    assert_eq!(bench.find(asked(8, 5), &name, 0), [Say::Found(asked(8, 5), t.clone())], "one subscription upstream");
    assert_eq!(
        bench.announce(4, ""),
        [Say::Pull(SessionId(4), t, Duration::ZERO)],
        "a publisher that comes is asked as well"
    );
}

/// Rule 10: a subscription is held for a publisher, and then not offered the track besides.
#[test]
fn a_held_subscription_is_served_and_not_offered() {
    let mut bench = bench();
    let name = track("a", "t");
    let t = name.to_string();
    for session in [5, 6] {
        let (done, _) = bench.with(|all, _, out| all.watch_tracks(asked(session, 1), &namespace("a"), out));
        assert_eq!(done, Ok(()));
    }
    assert_eq!(bench.find(asked(5, 2), &name, 9), []);
    assert_eq!(bench.directory.counts(), [0, 0, 1]);
    let out = bench.publish(1, &name);
    let expected = [Say::Offer { to: asked(6, 1), track: t.clone() }, Say::Begun(asked(5, 2), t)];
    assert_eq!(out, expected);
    assert_eq!(bench.directory.counts(), [0, 1, 0], "publishing a track publishes no namespace");
    assert_eq!(
        bench.find(asked(7, 1), &track("a", "other"), 0),
        [Say::NotFound(asked(7, 1), RequestCode::DoesNotExist)]
    );
}

#[test]
fn what_is_held_expires_by_its_time_and_by_ours() {
    let mut bench = bench();
    let name = track("a", "t");
    bench.find(asked(1, 1), &name, 1);
    bench.find(asked(1, 2), &name, 1_000_000);
    let begin = bench.now;
    assert_eq!(bench.directory.deadline(), Some(begin + Duration::from_secs(1)));
    let (_, out) = bench.with(|all, _, out| all.expire(begin + Duration::from_secs(1), out));
    assert_eq!(out, [Say::NotFound(asked(1, 1), RequestCode::Timeout)]);
    let (_, out) = bench.with(|all, _, out| all.expire(begin + Duration::from_secs(30), out));
    assert_eq!(out, [Say::NotFound(asked(1, 2), RequestCode::Timeout)]);
    assert_eq!(bench.directory.deadline(), None);
}

#[test]
fn namespaces_are_told_once_and_withdrawn_with_the_last() {
    let mut bench = bench();
    bench.announce(1, "a/b");
    let told =
        |is, text: &str| Say::Namespace { to: asked(9, 1), prefix: namespace("a"), namespace: namespace(text), is };
    let (_, out) = bench.with(|all, _, out| all.watch_namespaces(asked(9, 1), &namespace("a"), out));
    assert_eq!(out, [told(true, "a/b")]);
    assert_eq!(bench.announce(2, "a/b"), []);
    assert_eq!(bench.announce(2, "ab"), [], "fields are matched in full");
    let withdraw = |session| {
        move |all: &mut Directory<String>, _: Make<'_, String>, out: &mut Vec<Say<String>>| {
            all.withdraw_namespace(SessionId(session), &namespace("a/b"), out);
        }
    };
    assert_eq!(bench.with(withdraw(1)).1, []);
    assert_eq!(bench.with(withdraw(2)).1, [told(false, "a/b")]);
}

/// Rule 10: reserved names are never forwarded.
#[test]
fn reserved_names_do_not_exist() {
    let mut bench = bench();
    let name = track(".session", "t");
    assert_eq!(bench.find(asked(1, 1), &name, 9), [Say::NotFound(asked(1, 1), RequestCode::DoesNotExist)]);
    let (done, out) =
        bench.with(|all, make, out| all.publish_namespace(SessionId(1), &namespace(".session"), make, out));
    assert_eq!((done, out), (Err(RequestCode::DoesNotExist), vec![]));
}

/// 100,000 namespaces of one session: beyond its share each is refused, and another session has its own.
#[test]
fn a_session_has_its_share_of_names() {
    let mut bench = bench();
    let mut refused = 0;
    for number in 0..100_000 {
        let name = namespace(&format!("n/{number}"));
        let (done, _) = bench.with(|all, make, out| all.publish_namespace(SessionId(1), &name, make, out));
        refused += usize::from(done == Err(RequestCode::ExcessiveLoad));
    }
    assert_eq!(refused, 99_000);
    bench.announce(2, "other");
    assert_eq!(bench.directory.counts()[0], 1_001);
    bench.with(|all, _, out| all.gone(SessionId(1), out));
    assert_eq!(bench.directory.counts()[0], 1, "they go with it");
}

#[test]
fn a_publisher_that_comes_back_is_asked_again() {
    let mut bench = bench();
    let name = track("a", "t");
    let t = name.to_string();
    bench.announce(1, "a");
    bench.find(asked(9, 1), &name, 0);
    let (_, out) = bench.with(|all, _, out| all.gone(SessionId(1), out));
    assert_eq!(out, [Say::SourceGone(t.clone(), SessionId(1))]);
    assert_eq!(bench.announce(2, "a"), [Say::Pull(SessionId(2), t.clone(), Duration::ZERO)]);
    bench.directory.ended(&name, &t);
    assert_eq!(bench.directory.counts()[1], 0);
}

/// A track says itself that it has ended, but later: its name is free with its last publisher's last word.
#[test]
fn a_name_is_free_as_soon_as_its_last_publisher_is_done() {
    let mut bench = bench();
    let name = track("a", "t");
    bench.publish(1, &name);
    bench.publish(2, &name);
    bench.directory.leave(SessionId(1), &name, true);
    assert_eq!(bench.directory.counts()[1], 1, "another one feeds it");
    bench.directory.leave(SessionId(3), &name, true);
    assert_eq!(bench.directory.counts()[1], 1, "it never fed it");
    bench.directory.leave(SessionId(2), &name, false);
    assert_eq!(bench.directory.counts()[1], 1, "it may come back");
    bench.publish(2, &name);
    bench.directory.leave(SessionId(2), &name, true);
    assert_eq!(bench.directory.counts()[1], 0);
    assert_eq!(bench.find(asked(7, 1), &name, 0), [Say::NotFound(asked(7, 1), RequestCode::DoesNotExist)]);
}

#[test]
fn what_an_origin_lists_is_told_like_what_is_published_here() {
    let mut bench = Bench::new(Limits { listed: 2, ..Limits::default() });
    let (origin, watcher) = (SessionId(9), asked(1, 4));
    let watch = |tracks, on| Say::Watch { origin, tracks, on };
    let told = |text: &str, is| Say::Namespace { to: watcher, prefix: namespace("a"), namespace: namespace(text), is };
    assert_eq!(bench.with(|all, make, out| all.origin(origin, make, out)).1, [], "nobody watches");
    bench.announce(2, "a/here");
    let (done, out) = bench.with(|all, _, out| all.watch_namespaces(watcher, &namespace("a"), out));
    assert_eq!((done, out), (Ok(()), vec![told("a/here", true), watch(false, true)]));
    let list =
        |bench: &mut Bench, text: &str, is| bench.with(|all, _, out| all.listed(origin, &namespace(text), is, out));
    assert_eq!(list(&mut bench, "a/far", true), (true, vec![told("a/far", true)]));
    assert_eq!(list(&mut bench, "a/here", true), (true, vec![]), "it is there already");
    assert_eq!(list(&mut bench, "a/more", true), (false, vec![]), "no more are kept");
    assert_eq!(list(&mut bench, "a/far", false), (true, vec![told("a/far", false)]));
    assert_eq!(list(&mut bench, "b/far", true), (true, vec![]), "nobody watches it");
    let withdrawn =
        |bench: &mut Bench| bench.with(|all, _, out| all.withdraw_namespace(SessionId(2), &namespace("a/here"), out)).1;
    assert_eq!(withdrawn(&mut bench), [], "the origin has it still");
    let second = asked(3, 0);
    let (_, out) = bench.with(|all, _, out| all.watch_namespaces(second, &namespace("a"), out));
    let [Say::Namespace { to, namespace: of, is: true, .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((*to, of), (second, &namespace("a/here")), "and the origin is not asked twice");
    assert_eq!(bench.with(|all, _, out| all.unwatch(second, &namespace("a"), out)).1, []);
    // Lost, and back: all that it listed goes, and it is asked anew.
    assert_eq!(bench.with(|all, _, out| all.gone(origin, out)).1, [told("a/here", false)]);
    assert_eq!(bench.with(|all, make, out| all.origin(origin, make, out)).1, [watch(false, true)]);
    assert_eq!(bench.with(|all, _, out| all.gone(SessionId(1), out)).1, [watch(false, false)]);
}

#[test]
fn tracks_of_an_origin_are_offered_however_they_came() {
    let mut bench = bench();
    let (origin, watcher) = (SessionId(9), asked(1, 4));
    let offer = |name: &FullTrackName| Say::Offer { to: watcher, track: name.to_string() };
    bench.with(|all, make, out| all.origin(origin, make, out));
    let (early, late, brought) = (track("a", "early"), track("a", "late"), track("a", "brought"));
    bench.find(asked(2, 0), &early, 0);
    let (done, out) = bench.with(|all, _, out| all.watch_tracks(watcher, &namespace("a"), out));
    assert_eq!((done, out), (Ok(()), vec![offer(&early), Say::Watch { origin, tracks: true, on: true }]));
    assert!(bench.find(asked(2, 2), &late, 0).contains(&offer(&late)));
    assert_eq!(bench.publish(9, &brought), [offer(&brought)]);
    let (_, out) = bench.with(|all, _, out| all.unwatch(watcher, &namespace("a"), out));
    assert_eq!(out, [Say::Watch { origin, tracks: true, on: false }]);
}

/// 100,000 namespaces of one session, where it may have as many: told, found, and gone with it.
#[test]
fn a_session_may_have_as_many_namespaces_as_it_is_allowed() {
    const ALL: usize = 100_000;
    let mut bench = Bench::new(Limits { namespaces: ALL, ..Limits::default() });
    let (_, out) = bench.with(|all, _, out| all.watch_namespaces(asked(2, 0), &namespace("many"), out));
    assert_eq!(out, []);
    for number in 0..ALL {
        assert_eq!(bench.announce(1, &format!("many/{number}")).len(), 1, "the watcher is told");
    }
    let beyond = bench.with(|all, make, out| all.publish_namespace(SessionId(1), &namespace("more"), make, out));
    assert_eq!(beyond, (Err(RequestCode::ExcessiveLoad), vec![]));
    assert_eq!(bench.directory.counts()[0], ALL);
    bench.announce(3, "many/here");
    assert_eq!(bench.with(|all, _, out| all.gone(SessionId(1), out)).1.len(), ALL);
    assert_eq!(bench.directory.counts()[0], 1, "those of others stay");
}

/// Two relays are each other's origin: what one has from the other is told, offered and given to everybody but the other.
#[test]
fn what_comes_from_a_relay_does_not_go_back_to_it() {
    let mut bench = bench();
    // The other relay is its peer twice: as its origin, and as an edge.
    let (origin, edge, local) = (SessionId(9), asked(1, 0), asked(2, 0));
    for session in [origin, edge.session] {
        bench.directory.relay(session, 77);
    }
    bench.directory.relay(SessionId(3), 78);
    let (prefix, another) = (namespace("a"), asked(3, 0));
    bench.with(|all, make, out| all.origin(origin, make, out));
    let told = |to, text: &str, is| Say::Namespace { to, prefix: namespace("a"), namespace: namespace(text), is };
    let watch = |tracks, on| Say::Watch { origin, tracks, on };
    for tracks in [false, true] {
        let mut watches = |asked| {
            let act = |all: &mut Directory<String>, _: Make<'_, String>, out: &mut Vec<Say<String>>| match tracks {
                false => all.watch_namespaces(asked, &prefix, out),
                true => all.watch_tracks(asked, &prefix, out),
            };
            bench.with(act).1
        };
        assert_eq!(watches(edge), [], "what it watches is not watched there for it");
        assert_eq!(watches(local), [watch(tracks, true)]);
        assert_eq!(watches(another), []);
    }
    let list =
        |bench: &mut Bench, text: &str, is| bench.with(|all, _, out| all.listed(origin, &namespace(text), is, out)).1;
    assert_eq!(list(&mut bench, "a/far", true), [told(local, "a/far", true), told(another, "a/far", true)]);
    assert_eq!(bench.announce(5, "a/far"), [told(edge, "a/far", true)], "now it is here as well");
    let withdraw =
        |bench: &mut Bench| bench.with(|all, _, out| all.withdraw_namespace(SessionId(5), &namespace("a/far"), out)).1;
    assert_eq!(withdraw(&mut bench), [told(edge, "a/far", false)], "and it is not told what it knows");
    let late = asked(1, 8);
    let (_, out) = bench.with(|all, _, out| all.watch_namespaces(late, &namespace("a"), out));
    assert_eq!(out, []);
    assert_eq!(list(&mut bench, "a/far", false), [told(local, "a/far", false), told(another, "a/far", false)]);
    // Neither are tracks.
    let (name, t) = (track("a", "t"), track("a", "t").to_string());
    let none = |asked, code| [Say::NotFound(asked, code)];
    assert_eq!(bench.find(edge, &name, 0), none(edge, RequestCode::DoesNotExist), "it is not asked for it");
    assert_eq!(bench.find(edge, &name, 9), [], "but it may wait for one here");
    let out = bench.publish(9, &name);
    let offer = |to| Say::Offer { to, track: t.clone() };
    assert_eq!(out, [offer(local), offer(another)], "what waits is not served by itself");
    assert_eq!(bench.find(local, &name, 0), [Say::Found(local, t.clone())]);
    assert_eq!(bench.find(asked(1, 5), &name, 0), none(asked(1, 5), RequestCode::DoesNotExist));
    assert!(bench.publish(6, &name).contains(&Say::Begun(edge, t.clone())), "somebody here has it as well");
    assert_eq!(bench.find(asked(1, 5), &name, 0), [Say::Found(asked(1, 5), t)]);
    // With those who watch here goes the watch there, though the other relay watches on.
    let gone = |bench: &mut Bench, session| bench.with(|all, _, out| all.gone(SessionId(session), out)).1;
    assert_eq!(gone(&mut bench, 3), []);
    assert_eq!(gone(&mut bench, 2), [watch(false, false), watch(true, false)]);
}

/// What is asked for by a name that nobody here publishes is asked of the origin for everybody else, and who held it from
/// there goes on waiting.
#[test]
fn a_relay_that_is_an_origin_too_is_asked_for_others_alone() {
    let mut bench = bench();
    let (origin, edge, local) = (SessionId(9), asked(1, 0), asked(2, 0));
    let (name, hold) = (track("a", "t"), Duration::from_secs(30));
    let t = name.to_string();
    bench.directory.relay(edge.session, 77);
    assert_eq!(bench.find(edge, &name, 9), []);
    assert_eq!(bench.find(local, &name, 9), []);
    bench.directory.relay(origin, 77);
    let (_, out) = bench.with(|all, make, out| all.origin(origin, make, out));
    assert_eq!(out, [Say::Pull(origin, t.clone(), hold), Say::Begun(local, t.clone())]);
    assert_eq!(bench.directory.counts(), [0, 1, 1], "the other one is held still");
    let out = bench.announce(5, "a");
    assert_eq!(out, [Say::Pull(SessionId(5), t.clone(), Duration::ZERO), Say::Begun(edge, t)]);
}
