//! Relayed streams on real sockets: what arrives, what each kind of bad input costs, and that a neighbour pays nothing.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Budget as Restarts, Mesh, Place, Totals};
use portway::memory::Budget;
use portway::transports::kit::admission::{Caps, Occupancy};
use portway::transports::kit::balance::{Address, BalanceSettings, Balancer};
use portway::transports::relay::{Connections, Header, ProxyVersion, RelaySettings};
use portway::transports::tcp::{Acceptor, AcceptorSettings, bind};

use crate::probe::{SOON, eventually, mesh, stop, view, wait};

/// A listener that relays.
pub(crate) struct Running {
    pub(crate) mesh: Mesh,
    pub(crate) address: SocketAddr,
    pub(crate) budget: Budget,
    pub(crate) occupancy: Arc<Occupancy>,
}

impl Running {
    pub(crate) fn to(servers: Vec<Address>) -> Self {
        Self::with(servers, |_| {})
    }

    pub(crate) fn with(servers: Vec<Address>, change: impl FnOnce(&mut RelaySettings)) -> Self {
        let mesh = mesh(2);
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let budget = Budget::new(1 << 30);
        let occupancy = Arc::new(Occupancy::default());
        let mut settings = RelaySettings::new(Balancer::new(servers, BalanceSettings::default()), Arc::from("app"));
        change(&mut settings);
        let acceptor = AcceptorSettings {
            name: Arc::from("relay"),
            caps: Caps { connections: 1_000, per_source: 1_000, half_open: 1_000, base_bytes: 1_024 },
            budget: budget.clone(),
            shed_delay: SOON,
            occupancy: occupancy.clone(),
        };
        let on_accept = move || Connections::new(Arc::from("relay"), settings.clone());
        Acceptor::start(&mesh, Place::On(0), Arc::new(socket), acceptor, Restarts::default(), on_accept).unwrap();
        Self { mesh, address, budget, occupancy }
    }

    pub(crate) fn client(&self) -> TcpStream {
        patient(TcpStream::connect_timeout(&self.address, SOON).unwrap())
    }

    /// A client that is reset at once, perhaps before it knows that it was connected.
    #[track_caller]
    pub(crate) fn resets_a_client(&self) {
        match TcpStream::connect_timeout(&self.address, SOON) {
            Ok(client) => is_reset(&mut patient(client)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    /// A client that the server will treat as `command` says.
    pub(crate) fn asks(&self, command: u8) -> TcpStream {
        let mut client = self.client();
        client.write_all(&[command]).unwrap();
        client
    }

    /// A client that is in and stays in.
    pub(crate) fn neighbour(&self) -> Neighbour {
        let mut neighbour = Neighbour(self.asks(ECHO));
        neighbour.works();
        neighbour
    }

    /// The same where the servers are in the hands of the test: this one's sends back what it gets.
    pub(crate) fn beside(&self, servers: &TcpListener) -> Neighbour {
        let client = self.client();
        let (served, _) = servers.accept().unwrap();
        std::thread::spawn(move || io::copy(&mut &served, &mut &served));
        let mut neighbour = Neighbour(client);
        neighbour.works();
        neighbour
    }

    pub(crate) fn totals(&self) -> Totals {
        view(&self.mesh).totals
    }

    #[track_caller]
    pub(crate) fn counts(&self, family: &str, scope: &str, reason: &str, value: u64) {
        eventually(&format!("{family} {reason}"), || self.totals().get(family, scope, reason) >= value);
        assert_eq!(self.totals().get(family, scope, reason), value, "{family} {scope} {reason}");
    }

    /// One stream has ended, for this reason.
    #[track_caller]
    pub(crate) fn closed(&self, reason: &str) {
        self.counts("connections_closed", "relay", reason, 1);
        assert_eq!(self.totals().family("connections_closed"), 1);
    }

    /// What the relays hold in buffers now.
    pub(crate) fn held(&self) -> usize {
        view(&self.mesh).of_kind("relay").chain(view(&self.mesh).of_kind("forward")).map(|actor| actor.held).sum()
    }

    pub(crate) fn is_empty(&self) {
        eventually("nothing is left", || {
            let view = view(&self.mesh);
            view.of_kind("relay").chain(view.of_kind("forward")).count() == 0 && self.budget.used() == 0
        });
        assert_eq!((self.occupancy.connections(), self.occupancy.half_open()), (0, 0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        stop(&self.mesh);
    }
}

pub(crate) struct Neighbour(TcpStream);

impl Neighbour {
    /// Loses nothing.
    #[track_caller]
    pub(crate) fn works(&mut self) {
        let mut answer = [0; 5];
        self.0.write_all(b"hello").unwrap();
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    }
}

pub(crate) const ECHO: u8 = b'e';
/// Sends 1,000 bytes, then resets.
pub(crate) const RESET: u8 = b'r';
/// Reads nothing and sends nothing until the client's direction ends, then sends what came in.
pub(crate) const LATE: u8 = b'l';
/// Ends its own direction at once, then reads to the end and counts.
pub(crate) const SINK: u8 = b's';
/// Waits for a moment, then sends for as long as somebody takes it.
pub(crate) const FLOOD: u8 = b'f';
/// Neither reads nor sends nor ends until its listener is gone.
pub(crate) const STALL: u8 = b'x';

/// A server that does what the first byte of each connection says. It ends with the process.
pub(crate) struct Server {
    address: SocketAddr,
    fate: std::sync::mpsc::Receiver<(u8, u64)>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, fate) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let tell = tell.clone();
                std::thread::spawn(move || {
                    let Ok(stream) = stream else { return };
                    let mut command = [0];
                    if (&stream).read_exact(&mut command).is_ok() {
                        let moved = serve(stream, command[0]);
                        let _nobody_asks = tell.send((command[0], moved));
                    }
                });
            }
        });
        Self { address, fate }
    }

    pub(crate) fn servers(&self) -> Vec<Address> {
        vec![Address::Tcp(self.address)]
    }

    /// What the connection with this command came to.
    pub(crate) fn fate(&self, command: u8) -> u64 {
        loop {
            let (which, moved) = self.fate.recv_timeout(SOON).expect("the server is done");
            if which == command {
                return moved;
            }
        }
    }
}

fn serve(mut stream: TcpStream, command: u8) -> u64 {
    match command {
        ECHO => io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap_or(0),
        RESET => {
            stream.write_all(&[1; 1_000]).unwrap();
            // The reset must not overtake them.
            std::thread::sleep(Duration::from_millis(100));
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            0
        }
        LATE => {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
            all.len() as u64
        }
        SINK => {
            stream.shutdown(Shutdown::Write).unwrap();
            io::copy(&mut stream, &mut io::sink()).unwrap_or(0)
        }
        FLOOD => {
            std::thread::sleep(Duration::from_millis(100));
            let mut sent = 0;
            while let Ok(count) = stream.write(&[2; 65_536]) {
                sent += count as u64;
            }
            sent
        }
        _ => {
            std::thread::sleep(SOON);
            0
        }
    }
}

pub(crate) fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

pub(crate) fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// Writes `bytes` and then ends its direction, on a thread of its own.
pub(crate) fn writing(client: &TcpStream, bytes: &[u8]) -> std::thread::JoinHandle<()> {
    let (mut writer, bytes) = (client.try_clone().unwrap(), bytes.to_vec());
    std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    })
}

/// Everything that comes from now on.
pub(crate) fn rest(mut client: &TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    got
}

/// `bytes`, then the end of its direction, and the same comes back.
#[track_caller]
pub(crate) fn goes_round(client: &TcpStream, bytes: &[u8]) {
    let writing = writing(client, bytes);
    let got = rest(client);
    writing.join().unwrap();
    assert!(got == bytes, "{} of {} bytes came back", got.len(), bytes.len());
}

/// A server at a Unix socket: what one client sends to its end goes back.
pub(crate) struct UnixServer {
    folder: std::path::PathBuf,
    serving: std::thread::JoinHandle<()>,
}

impl UnixServer {
    pub(crate) fn start() -> (Address, Self) {
        let folder = crate::gateway::temp_dir();
        let path = folder.join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        (Address::Unix(path), Self { folder, serving })
    }

    /// It has served its client. Its listener is gone then, its file is not until this is dropped.
    pub(crate) fn served(self) -> impl Drop {
        struct Folder(std::path::PathBuf);
        impl Drop for Folder {
            fn drop(&mut self) {
                std::fs::remove_dir_all(&self.0).unwrap();
            }
        }
        self.serving.join().unwrap();
        Folder(self.folder)
    }
}

#[track_caller]
pub(crate) fn is_reset(client: &mut TcpStream) {
    let error = client.read_to_end(&mut Vec::new()).expect_err("a reset, not an end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn megabytes_go_there_and_back() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let bytes = pattern(20 << 20);
    goes_round(&running.asks(ECHO), &bytes);
    running.closed("finished");
    assert_eq!(running.totals().get("relay_bytes_up", "relay", ""), (20 << 20) + 1);
    assert_eq!(running.totals().get("relay_bytes_down", "relay", ""), 20 << 20);
    running.is_empty();
}

#[test]
fn many_streams_at_once_and_then_none() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut all: Vec<_> = (0..100).map(|_| running.neighbour()).collect();
    assert_eq!(view(&running.mesh).of_kind("relay").count(), 100);
    assert_eq!((running.occupancy.connections(), running.occupancy.half_open()), (100, 0));
    all.iter_mut().for_each(Neighbour::works);
    assert_eq!(running.held(), 0, "who keeps up holds no buffer");
    drop(all);
    running.is_empty();
    running.counts("connections_closed", "relay", "finished", 100);
}

#[test]
fn a_unix_socket_is_a_server_too() {
    let (address, server) = UnixServer::start();
    let running = Running::to(vec![address]);
    goes_round(&running.client(), b"over there");
    let _file = server.served();
    running.closed("finished");
    // The listener is gone, its file is not.
    running.resets_a_client();
    running.counts("connections_closed", "relay", "connect_refused", 1);
}

/// An address at which nobody listens, for as long as the socket is kept.
pub(crate) fn nobody() -> (Address, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    (Address::Tcp(socket.local_addr().unwrap().as_socket().unwrap()), socket)
}

/// An address that neither takes nor refuses connections: its queue is full.
pub(crate) fn full_queue() -> (Address, Vec<socket2::Socket>) {
    let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = new();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut kept = vec![listener];
    for _ in 0..4 {
        let filler = new();
        filler.set_nonblocking(true).unwrap();
        let _in_progress = filler.connect(&address);
        kept.push(filler);
    }
    (Address::Tcp(address.as_socket().unwrap()), kept)
}

/// A server that works and one that does not: whoever gets the bad one is told, and whoever is with the other one loses
/// nothing; where there are more attempts, nobody gets it.
fn beside_a_bad_server(bad: &Address, reason: &str) {
    let server = Server::start();
    let one_attempt = |settings: &mut RelaySettings| {
        settings.attempts = 1;
        settings.connect_timeout = SOON / 10;
    };
    // Servers take turns.
    let running = Running::with(vec![Address::Tcp(server.address), bad.clone()], one_attempt);
    let mut neighbour = running.neighbour();
    running.resets_a_client();
    running.closed(reason);
    running.counts("upstream_failures", "app", reason, 1);
    assert_eq!(running.totals().family("upstream_failures"), 1);
    neighbour.works();
    drop(neighbour);
    running.is_empty();

    let quick = |settings: &mut RelaySettings| settings.connect_timeout = SOON / 10;
    let running = Running::with(vec![bad.clone(), Address::Tcp(server.address)], quick);
    let (mut one, mut two) = (running.neighbour(), running.neighbour());
    assert!(running.totals().get("upstream_failures", "app", reason) >= 1, "the next one was tried");
    one.works();
    two.works();
}

#[test]
fn an_upstream_that_refuses() {
    let (nobody, _kept) = nobody();
    beside_a_bad_server(&nobody, "connect_refused");
}

#[test]
fn an_upstream_that_hangs() {
    let (hanging, _kept) = full_queue();
    beside_a_bad_server(&hanging, "connect_timeout");
}

#[test]
fn an_upstream_that_resets_in_mid_stream() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    let mut client = running.asks(RESET);
    let mut got = [0; 1_000];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, [1; 1_000]);
    is_reset(&mut client);
    running.closed("upstream_reset");
    running.counts("upstream_failures", "app", "upstream_reset", 1);
    neighbour.works();
}

#[test]
fn an_upstream_that_answers_after_the_client_left() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    // In order.
    drop(running.asks(FLOOD));
    server.fate(FLOOD);
    running.closed("client_reset");
    neighbour.works();
    // With a reset.
    let client = running.asks(FLOOD);
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    server.fate(FLOOD);
    running.counts("connections_closed", "relay", "client_reset", 2);
    neighbour.works();
}

#[test]
fn the_client_ends_first_and_takes_its_answer_late() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    let bytes = pattern(16 << 20);
    let mut client = running.asks(LATE);
    client.write_all(&bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // The answer stands in the kernel's buffers and in one read of ours.
    eventually("the answer is held up", || running.held() > 0);
    assert!(running.held() <= 256 << 10, "{}", running.held());
    neighbour.works();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == bytes);
    running.closed("finished");
}

#[test]
fn the_upstream_ends_first_and_takes_everything() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    let mut client = running.asks(SINK);
    assert_eq!(client.read(&mut [0; 10]).unwrap(), 0, "its end is passed on while ours is open");
    client.write_all(&pattern(5 << 20)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.fate(SINK), 5 << 20);
    running.closed("finished");
    neighbour.works();
}

#[test]
fn a_side_that_stalls_costs_one_read_and_the_idle_limit_ends_it() {
    let server = Server::start();
    let running = Running::with(server.servers(), |settings| settings.idle = Some(Duration::from_millis(2_500)));
    let mut neighbour = running.neighbour();
    let mut client = running.asks(STALL);
    client.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut sent = 0;
    while let Ok(count) = client.write(&[3; 65_536]) {
        sent += count;
        assert!(sent < 100 << 20, "it stops being read");
        neighbour.works();
    }
    let held = running.held();
    assert!((1..=256 << 10).contains(&held), "{held}");
    client.shutdown(Shutdown::Write).unwrap();
    let cut = std::thread::spawn(move || is_reset(&mut client));
    // Who is not idle stays.
    eventually("the idle limit ends it", || {
        neighbour.works();
        cut.is_finished()
    });
    cut.join().unwrap();
    running.closed("idle");
    neighbour.works();
    drop(neighbour);
    running.is_empty();
}

#[test]
fn a_proxy_header_names_the_client_to_the_server() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let servers = vec![Address::Tcp(listener.local_addr().unwrap())];
        let running = Running::with(servers, |settings| settings.proxy_out = Some(version));
        let mut client = running.client();
        client.write_all(b"body").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        patient(listener.accept().unwrap().0).read_to_end(&mut got).unwrap();
        let header = Header::Proxied { source: client.local_addr().unwrap(), destination: running.address };
        assert_eq!(got, [&header.encode(version)[..], b"body"].concat());
    }
}

#[test]
fn a_proxy_header_that_is_garbage_or_never_ends() {
    let server = Server::start();
    let running = Running::with(server.servers(), |settings| {
        settings.proxy_in = true;
        settings.proxy_timeout = SOON / 8;
    });
    let mut neighbour = running.client();
    neighbour.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\ne").unwrap();
    let mut neighbour = Neighbour(neighbour);
    neighbour.works();
    let mut malformed = 0;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100_000], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"] {
        let mut client = running.client();
        // It may be cut off before it has written all.
        let _cut = client.write_all(bytes);
        assert!(client.read(&mut [0; 10]).is_err(), "a reset");
        malformed += 1;
        running.counts("connections_closed", "relay", "proxy_malformed", malformed);
        neighbour.works();
    }
    let mut client = running.client();
    client.write_all(b"PROXY TCP4 192.0.2.1").unwrap();
    is_reset(&mut client);
    running.counts("connections_closed", "relay", "proxy_timeout", 1);
    let mut client = running.client();
    client.write_all(b"PROXY UNKNOWN ").unwrap();
    let slow = std::thread::spawn(move || {
        while client.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    running.counts("connections_closed", "relay", "proxy_timeout", 2);
    slow.join().unwrap();
    neighbour.works();
    assert_eq!(running.totals().family("connections_closed"), 5, "each once, and nobody else");
    assert_eq!(running.totals().family("upstream_failures"), 0, "no server was bothered");
}

#[test]
fn the_access_log_has_a_line_for_each_stream_that_says_why_it_ended() {
    let server = Server::start();
    let mut binary = crate::gateway::Binary::start(&format!(
        "version = 1\n[[upstream]]\nname = \"app\"\nservers = [\"{}\"]\n[[listener]]\nname = \"front\"\n\
         listen = \"127.0.0.1:0\"\nprotocol = \"relay\"\nupstream = \"app\"\n",
        server.address
    ));
    let front = binary.address("front");
    let asks = |command: u8| {
        let mut client = patient(TcpStream::connect(front).unwrap());
        client.write_all(&[command]).unwrap();
        client
    };
    let mut neighbour = Neighbour(asks(ECHO));
    neighbour.works();
    let finishes = asks(ECHO);
    goes_round(&finishes, b"there and back");
    let mut is_cut = asks(RESET);
    is_cut.read_exact(&mut [0; 1_000]).unwrap();
    is_reset(&mut is_cut);
    for (client, reason, up, down) in [(finishes, "finished", 15, 14), (is_cut, "upstream_reset", 1, 1_000)] {
        let line = binary.says(&format!("reason=\"{reason}\""));
        let (peer, server) = (client.local_addr().unwrap(), server.address);
        let parts = [
            "relayed listener=front".to_owned(),
            format!("peer={peer} upstream=app server={server} bytes_up={up} bytes_down={down} ms="),
        ];
        parts.iter().for_each(|part| assert!(line.contains(part), "{part} is not in {line}"));
    }
    neighbour.works();
    drop(neighbour);
    binary.says("bytes_up=11");
}

#[test]
fn a_drain_waits_for_both_ends() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let bytes = pattern(3 << 20);
    let mut client = running.asks(LATE);
    client.write_all(&bytes[..1000]).unwrap();
    eventually("it is in", || running.occupancy.half_open() == 0 && running.occupancy.connections() == 1);
    let mesh = running.mesh.clone();
    let draining = std::thread::spawn(move || wait(async move { mesh.drain(SOON).await }));
    eventually("nobody new comes in", || TcpStream::connect(running.address).is_err());
    client.write_all(&bytes[1000..]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == bytes);
    assert!(draining.join().unwrap().complete());
}

#[test]
fn a_drain_cuts_what_is_open_at_its_deadline() {
    let server = Server::start();
    let running = Running::to(server.servers());
    let mut neighbour = running.neighbour();
    let mesh = running.mesh.clone();
    let report = wait(async move { mesh.drain(Duration::from_millis(300)).await });
    assert!(!report.complete(), "it is reported: {report:?}");
    is_reset(&mut neighbour.0);
}
