//! TCP of the netstack as its users see it: what came is read, however late and however the connection ended.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use portway::transports::netstack::connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::gateway::Running;
use crate::probe::{SOON, eventually, mesh, stop, view, wait};
use crate::wireguard::in_both;
use crate::wireguard_gateway::{Text, client, key_file};

/// More than a stream takes that nobody reads; the rest waits in the socket, behind which comes the end.
const LENGTH: usize = 100_000;

/// The connection is over on both sides before the first byte is read.
#[test]
fn what_came_before_the_end_is_read_after_it() {
    in_both(|mode| {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).unwrap();
            assert_eq!(asked, b"all of it");
            stream.write_all(&[7; LENGTH]).unwrap();
        });
        let more = format!(
            "[[listener.wireguard.service]]\nlisten = \"10.98.0.1:80\"\nprotocol = \"relay\"\nupstream = \"app\"\n\
             [[upstream]]\nname = \"app\"\nservers = [\"{upstream}\"]\n"
        );
        let running = Running::start(&Text::new(mode, [10]).with(&more).write("127.0.0.1:0", &key_file()));
        let clients = mesh(1);
        let stack = client(&clients, 10, running.address("wg0")).stack;
        let mut stream = wait(connect(&stack, "10.98.0.1:80".parse().unwrap(), SOON)).expect("it connects");
        wait(async {
            stream.write_all(b"all of it").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        serving.join().unwrap();
        eventually("the relay is done", || view(running.gateway().mesh()).of_kind("relay").count() == 0);
        let arrived = || view(&clients).totals.family("netstack_bytes_in");
        eventually("the stream is full", || arrived() >= 64 << 10);
        // The last segments and the end are on their way at most for as long as an acknowledgement may be put off.
        std::thread::sleep(Duration::from_millis(300));
        assert!(arrived() < LENGTH as u64, "the rest waits in the socket");
        let mut all = Vec::new();
        wait(stream.read_to_end(&mut all)).unwrap();
        assert!(all == [7; LENGTH], "{} bytes", all.len());
        stop(&clients);
    });
}
