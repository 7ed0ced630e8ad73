//! What a reload publishes is seen by every arbiter, on connections that were there before.

use portway::gateway::check;

use crate::gateway::{Kept, Running, free};
use crate::probe::view;

const ARBITERS: usize = 4;

#[test]
fn every_arbiter_sees_what_a_reload_published() {
    let port = free();
    let config = |body: &str| {
        let text = format!(
            "version = 1\n[runtime]\narbiters = {ARBITERS}\n[[listener]]\nname = \"web\"\nlisten = \"{port}\"\n\
             protocol = \"http\"\n[[listener.route]]\npath = \"/\"\nservice = \"respond\"\nbody = \"{body}\"\n"
        );
        check::parse("test.toml", &text, &check::Known::default()).unwrap_or_else(|r| panic!("{}", r.render(false)))
    };
    let running = Running::of(portway::gateway::Builder::new().start(config("first")).unwrap());
    let mut kept: Vec<_> = (0..4 * ARBITERS).map(|_| Kept::to(port)).collect();
    assert!(kept.iter_mut().all(|kept| kept.get("/") == "first"));
    let arbiters = view(running.gateway().mesh()).arbiters;
    let with = arbiters.iter().filter(|arbiter| arbiter.actors.iter().any(|actor| actor.kind == "http")).count();
    assert_eq!(with, ARBITERS, "connections on each of them");
    for body in ["second", "third"] {
        running.gateway().reload(config(body)).unwrap();
        // From the moment the reload is done, each.
        assert!(kept.iter_mut().all(|kept| kept.get("/") == body));
    }
}
