//! Loads a UDP relay and keeps the account: CPU per relayed datagram. Also the echo behind the relay.
//!
//!     udpload --serve 127.0.0.1:17110                                         answers each datagram with itself
//!     udpload --target 127.0.0.1:17111 --pid P --flows 50 --window 1 --size 100 --seconds 2
//!
//! Each flow is a thread with a socket of its own: it sends `window` datagrams and waits for their answers. What does not
//! come back within 200 ms is counted as lost. An answer is two relayed datagrams: one there, one back.

use std::net::UdpSocket;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use portway_peers::cpu::Meter;
use portway_peers::{Args, Line};

fn main() {
    let args = Args::parse();
    if args.has("serve") {
        serve(&args.text("serve", ""));
    }
    let target = args.text("target", "127.0.0.1:17111");
    let (flows, window) = (args.number("flows", 50) as usize, args.number("window", 1));
    let content = vec![0x5a; args.number("size", 100) as usize];
    let (answered, lost, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let ready = Barrier::new(flows + 1);
    std::thread::scope(|scope| {
        for _ in 0..flows {
            scope.spawn(|| {
                let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
                socket.connect(&target).expect("an address");
                socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
                let mut buffer = vec![0; 65_535];
                // The flow exists before the account is opened.
                while socket.send(&content).is_err() || socket.recv(&mut buffer).is_err() {}
                ready.wait();
                while !stop.load(Ordering::Relaxed) {
                    let sent = (0..window).filter(|_| socket.send(&content).is_ok()).count() as u64;
                    let came = (0..sent).take_while(|_| socket.recv(&mut buffer).is_ok()).count() as u64;
                    answered.fetch_add(came, Ordering::Relaxed);
                    lost.fetch_add(sent - came, Ordering::Relaxed);
                }
            });
        }
        ready.wait();
        let meter = Meter::start(args.has("pid").then(|| args.number("pid", 0) as u32));
        std::thread::sleep(args.seconds("seconds", 2.0));
        let spent = meter.stop();
        let relayed = 2.0 * answered.load(Ordering::Relaxed) as f64;
        stop.store(true, Ordering::Relaxed);
        Line::new(&args.text("name", "udpload"))
            .with("srv_s_per_million", spent.server / relayed * 1e6)
            .with("datagrams_per_s", relayed / spent.wall)
            .with("lost", lost.load(Ordering::Relaxed) as f64)
            .with("others", spent.others)
            .print();
    });
}

fn serve(listen: &str) -> ! {
    let socket = UdpSocket::bind(listen).expect("a port");
    let mut buffer = vec![0; 65_535];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _gone = socket.send_to(&buffer[..length], from);
        }
    }
}
