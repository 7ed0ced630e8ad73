//! What a reload publishes is seen by every arbiter, on connections that were there before.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use portway::gateway::check;

use crate::gateway::{Running, free};
use crate::probe::{SOON, view};

const ARBITERS: usize = 4;

/// A connection that is kept.
struct Kept(BufReader<TcpStream>);

impl Kept {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, SOON).expect("it connects");
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(BufReader::new(stream))
    }

    fn get(&mut self) -> String {
        self.0.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            assert!(self.0.read_line(&mut line).expect("an answer") > 0);
            if let Some((_, value)) = line.to_ascii_lowercase().split_once("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}

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
    assert!(kept.iter_mut().all(|kept| kept.get() == "first"));
    let arbiters = view(running.gateway().mesh()).arbiters;
    let with = arbiters.iter().filter(|arbiter| arbiter.actors.iter().any(|actor| actor.kind == "http")).count();
    assert_eq!(with, ARBITERS, "connections on each of them");
    for body in ["second", "third"] {
        running.gateway().reload(config(body)).unwrap();
        // From the moment the reload is done, each.
        assert!(kept.iter_mut().all(|kept| kept.get() == body));
    }
}
