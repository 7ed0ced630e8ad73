//! The end of a gateway with tunnels: what was accepted inside is finished, and who is cut off is told.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use portway::actors::DrainReport;
use portway::gateway::check;
use portway::transports::netstack::{NetStream, connect};
use tokio::io::AsyncReadExt;

use crate::gateway::{Binary, Running};
use crate::probe::{SOON, mesh, stop, wait};
use crate::wireguard::{Mode, echoes, in_both};
use crate::wireguard_gateway::{Text, client, key_file};

const PART: usize = 100_000;
const PARTS: usize = 15;

/// Sends a part every tenth of a second to each who comes, and ends after the last, or never.
fn server(ends: bool) -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                for _ in 0..PARTS {
                    stream.write_all(&[5; PART]).unwrap();
                    std::thread::sleep(Duration::from_millis(100));
                }
                // Not before the gateway has ended it.
                while !ends && stream.write_all(&[6]).is_ok() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
    });
    address
}

fn text(mode: Mode, drain: &str, upstream: SocketAddr) -> String {
    let more = format!(
        "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:80\"\nprotocol = \"relay\"\nupstream = \"app\"\n\
         [[upstream]]\nname = \"app\"\nservers = [\"{upstream}\"]\n"
    );
    let text = Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file());
    text.replace("arbiters = 2\n", &format!("arbiters = 2\ndrain = \"{drain}\"\n"))
}

/// Reads until a transfer is well under way.
async fn begun(stream: &mut NetStream) {
    let mut begin = vec![0; PART];
    stream.read_exact(&mut begin).await.expect("a part");
}

fn drained(mode: Mode, drain: &str, ends: bool) -> (std::io::Result<usize>, DrainReport) {
    let running = Running::start(&text(mode, drain, server(ends)));
    let clients = mesh(1);
    let stack = client(&clients, 10, running.address("wg0")).stack;
    let mut stream = wait(connect(&stack, "10.98.0.1:80".parse().unwrap(), SOON)).expect("it connects");
    wait(begun(&mut stream));
    let gateway = running.gateway();
    let (read, report) = std::thread::scope(|scope| {
        let draining = scope.spawn(|| wait(gateway.drain()));
        let mut rest = Vec::new();
        let read = wait(stream.read_to_end(&mut rest));
        drop(stream);
        (read, draining.join().unwrap())
    });
    stop(&clients);
    (read, report)
}

#[test]
fn a_transfer_inside_a_tunnel_is_finished_before_the_tunnel_ends() {
    in_both(|mode| {
        let (read, report) = drained(mode, "9s", true);
        assert_eq!(read.unwrap(), (PARTS - 1) * PART);
        assert!(report.complete(), "{report:?}");
        assert!(report.took < Duration::from_secs(8), "it ends with the transfer: {report:?}");
    });
}

#[test]
fn a_transfer_that_outlasts_a_drain_is_reset() {
    in_both(|mode| {
        let (read, report) = drained(mode, "1s", false);
        assert_eq!(read.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
        let kinds: Vec<_> = report.unfinished.iter().map(|one| one.kind).collect();
        assert_eq!(kinds, ["relay"], "it alone was not done");
    });
}

#[test]
fn a_reload_says_when_it_cuts_off_the_sessions_of_a_tunnel() {
    let before = text(Mode::Single, "1s", server(true));
    let running = Running::start(&before);
    let clients = mesh(1);
    let site = client(&clients, 10, running.address("wg0"));
    echoes(&site.stack, "10.98.0.1:7001", b"a session");
    let parse = |text: &str| check::parse("test.toml", text, &check::Known::default()).unwrap();
    let plan = |text: &str| running.gateway().plan(&parse(text)).unwrap().text();
    let of_tunnel = |plan: String| plan.lines().find(|line| line.contains("wg0")).unwrap().to_owned();
    assert_eq!(of_tunnel(plan(&before)), "keep    listener  wg0  1 session");
    let service =
        "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:7002\"\nprotocol = \"framed\"\nservice = \"echo\"\n";
    let more = before.replace("[[upstream]]", &format!("{service}[[upstream]]"));
    assert_eq!(of_tunnel(plan(&more)), "change  listener  wg0  1 session");
    let other = before.replace("mode = \"netstack\"\n", "mode = \"netstack\"\nmtu = 1400\n");
    assert_eq!(of_tunnel(plan(&other)), "renew   listener  wg0  made anew, 1 session cut off");
    let done = running.gateway().reload(parse(&other)).unwrap();
    assert_eq!((&done.changed, &done.renewed), (&vec!["wg0".to_owned()], &vec!["wg0".to_owned()]));
    assert!(done.to_string().ends_with("; made anew, sessions cut off: wg0"), "{done}");
    stop(&clients);
}

/// The kernel's own TCP inside: what it holds when a relay is done is still sent.
#[test]
fn a_transfer_inside_a_private_network_is_finished_after_a_signal() {
    let text = text(Mode::Single, "9s", server(true)).replace("mode = \"netstack\"", "mode = \"private\"");
    let mut binary = Binary::start(&text);
    let clients = mesh(1);
    let stack = client(&clients, 10, binary.address("wg0")).stack;
    let mut stream = wait(connect(&stack, "10.98.0.1:80".parse().unwrap(), SOON)).expect("it connects");
    wait(begun(&mut stream));
    binary.signal("TERM");
    let mut rest = Vec::new();
    assert_eq!(wait(stream.read_to_end(&mut rest)).unwrap(), (PARTS - 1) * PART);
    drop(stream);
    assert!(binary.ends_within(SOON).success());
    stop(&clients);
}
