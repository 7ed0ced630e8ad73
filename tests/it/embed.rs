//! The gateway as a library: a program with a protocol of its own, made from the very example.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use portway::actors::{SpawnError, Turn};
use portway::gateway::{Builder, StartError, check};
use portway::transports::tcp::{Accepted, Never, OnAccept};

use crate::gateway::{Client, Neighbour, Running};
use crate::probe::{eventually, view};

#[path = "../../examples/custom_protocol.rs"]
#[expect(dead_code, reason = "its main is not called here")]
mod custom_protocol;

fn text() -> String {
    std::fs::read_to_string("examples/configs/custom_protocol.toml")
        .unwrap()
        .replace(":7100", ":0")
        .replace(":9180", ":0")
}

#[test]
fn a_protocol_of_ones_own_gets_caps_counters_and_a_drain() {
    let builder = custom_protocol::builder();
    let running = Running::with(&builder, &text(), &builder.known());
    let mut client = Client::to(running.address("loud"));
    client.0.write_all(b"hello\nwor").unwrap();
    client.0.write_all(b"ld\n").unwrap();
    let mut lines = BufReader::new(&client.0).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "> HELLO");
    assert_eq!(lines.next().unwrap().unwrap(), "> WORLD");
    assert_eq!(running.totals().get("connections_accepted", "loud", ""), 1);
    assert_eq!(view(running.gateway().mesh()).of_kind("shout").count(), 1);
    let mut rude = Client::to(running.address("loud"));
    rude.0.write_all(&[b'x'; 5_000]).unwrap();
    assert!(rude.rest().is_empty());
    running.counts("actor_exits", "shout", "line_too_long", 1);
    client.0.write_all(b"still here\n").unwrap();
    assert_eq!(BufReader::new(&client.0).lines().next().unwrap().unwrap(), "> STILL HERE");
}

#[test]
fn its_options_are_checked_by_itself() {
    let builder = custom_protocol::builder();
    let good = check::load(Path::new("examples/configs/custom_protocol.toml"), &builder.known()).unwrap();
    assert!(builder.check(&good).is_ok());
    let text = text().replace("prefix =", "postfix =");
    let config = check::parse("custom.toml", &text, &builder.known()).unwrap();
    let Err(StartError::Options { listener, place, message }) = builder.check(&config) else { panic!("refused") };
    assert_eq!((listener.as_str(), place.file.as_str()), ("loud", "custom.toml"));
    assert!(message.contains("postfix"), "{message}");
    assert!(matches!(builder.start(config), Err(StartError::Options { .. })));
    assert!(check::parse("custom.toml", &text, &Builder::new().known()).is_err(), "unknown without the program");
}

/// Panics at every connection it accepts.
struct Fragile;

impl OnAccept for Fragile {
    fn accepted(&mut self, _: Accepted, _: &Turn<'_, Never>) -> Result<(), SpawnError> {
        panic!("told to");
    }
}

#[test]
fn a_listener_that_panics_ten_times_is_ended_by_its_budget_and_the_rest_serves() {
    let builder = Builder::new().tcp_protocol("fragile", |_| Ok(|| Fragile));
    let text = "version = 1\n[[listener]]\nname = \"fragile\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"fragile\"\n\
                [[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n";
    let running = Running::with(&builder, text, &builder.known());
    let mut neighbour = Neighbour::of(running.address("echo"));
    assert_eq!(running.gateway().not_ready(), None);
    let fragile = running.address("fragile");
    for _ in 0..10 {
        // Once the budget is spent, nobody listens any more.
        let _refused = std::net::TcpStream::connect(fragile);
        neighbour.works();
    }
    running.counts("actor_restarts", "listener", "panic", 3);
    running.counts("actor_exits", "listener", "panic", 1);
    running.counts("actor_panics", "listener", "io", 4);
    assert_eq!(running.gateway().not_ready().as_deref(), Some("listener fragile has ended"));
    eventually("its port is closed", || std::net::TcpStream::connect(fragile).is_err());
    neighbour.works();
}
