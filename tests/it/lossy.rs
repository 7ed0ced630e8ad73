//! A UDP path between a client and a server, on loopback, that does what a seed says: loses, delays, reorders,
//! duplicates, corrupts, limits the rate, goes dark, and moves the client to another port or address.
//!
//! What happens to a datagram is decided by the links of `portway::actors::sim_link`, on real time; here are only the
//! sockets and a thread. Each client that sends to the path gets a link and a socket of its own towards the server, so
//! the server sees as many addresses as there are clients.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use portway::actors::sim_link::{DatagramControl, DatagramSocket, Faults, datagram_link};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::probe::wait;

const LONGEST: usize = 65_535;

/// A path to a server. It ends when dropped.
pub(crate) struct Lossy {
    address: SocketAddr,
    tell: Option<mpsc::UnboundedSender<Told>>,
    thread: Option<std::thread::JoinHandle<()>>,
    carried: Arc<Carried>,
}

/// Bytes that came from each side, before anything happened to them.
#[derive(Default)]
struct Carried {
    up: AtomicU64,
    down: AtomicU64,
}

enum Told {
    Faults(Faults, Faults, oneshot::Sender<()>),
    /// Gives every client another socket towards the server.
    Rebind(Option<IpAddr>, oneshot::Sender<()>),
}

/// One client.
struct Flow {
    control: DatagramControl,
    inward: DatagramSocket,
    server_side: std::cell::RefCell<Rc<UdpSocket>>,
    /// Wakes the reader of `server_side` to look for a new one.
    moved: tokio::sync::Notify,
}

impl Lossy {
    /// A path to `server`; `up` is what happens towards it, `down` on the way back.
    pub(crate) fn to(server: SocketAddr, seed: u64, up: Faults, down: Faults) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (say, said) = std::sync::mpsc::channel();
        let carried = Arc::new(Carried::default());
        let counts = carried.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let local = LocalSet::new();
            local.block_on(&runtime, async {
                let any = SocketAddr::new(server.ip(), 0);
                let front = Rc::new(UdpSocket::bind(any).await.expect("a port"));
                say.send(front.local_addr().expect("its address")).expect("the test waits");
                run(front, server, seed, (up, down), told, counts).await;
            });
        });
        let address = said.recv().expect("the path begins");
        Self { address, tell: Some(tell), thread: Some(thread), carried }
    }

    /// Where clients send to in place of the server.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Other faults from now on.
    pub(crate) fn set(&self, up: Faults, down: Faults) {
        self.told(|done| Told::Faults(up, down, done));
    }

    /// Nothing passes any more.
    pub(crate) fn go_dark(&self) {
        self.set(Faults::none().loss(1.0), Faults::none().loss(1.0));
    }

    /// From now on the server sees the clients at other ports.
    pub(crate) fn rebind_port(&self) {
        self.told(|done| Told::Rebind(None, done));
    }

    /// From now on the server sees the clients at another address (of 127.0.0.0/8).
    pub(crate) fn rebind_address(&self, to: Ipv4Addr) {
        self.told(|done| Told::Rebind(Some(to.into()), done));
    }

    /// Bytes that clients sent, and that the server sent.
    pub(crate) fn carried(&self) -> (u64, u64) {
        (self.carried.up.load(Ordering::Relaxed), self.carried.down.load(Ordering::Relaxed))
    }

    fn told(&self, what: impl FnOnce(oneshot::Sender<()>) -> Told) {
        let (done, is_done) = oneshot::channel();
        let tell = self.tell.as_ref().expect("until dropped");
        assert!(tell.send(what(done)).is_ok(), "the path is alive");
        wait(is_done).expect("it was done");
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        drop(self.tell.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the path panicked");
        }
    }
}

async fn run(
    front: Rc<UdpSocket>,
    server: SocketAddr,
    seed: u64,
    mut faults: (Faults, Faults),
    mut told: mpsc::UnboundedReceiver<Told>,
    carried: Arc<Carried>,
) {
    let mut flows: HashMap<SocketAddr, Rc<Flow>> = HashMap::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        tokio::select! {
            told = told.recv() => match told {
                None => return,
                Some(Told::Faults(up, down, done)) => {
                    faults = (up, down);
                    #[expect(clippy::disallowed_methods, reason = "each is told the same, in any order")]
                    flows.values().for_each(|flow| flow.control.set_faults(up, down));
                    let _nobody_waits = done.send(());
                }
                Some(Told::Rebind(to, done)) => {
                    let local = SocketAddr::new(to.unwrap_or_else(|| server.ip()), 0);
                    #[expect(clippy::disallowed_methods, reason = "each is moved, in any order")]
                    for flow in flows.values() {
                        flow.server_side.replace(Rc::new(UdpSocket::bind(local).await.expect("a port")));
                        flow.moved.notify_one();
                    }
                    let _nobody_waits = done.send(());
                }
            },
            received = front.recv_from(&mut buffer) => {
                // An ICMP answer to something sent earlier is no datagram.
                let Ok((length, client)) = received else { continue };
                carried.up.fetch_add(length as u64, Ordering::Relaxed);
                let flow = match flows.get(&client) {
                    Some(flow) => flow.clone(),
                    None => {
                        let seed = seed.wrapping_add(flows.len() as u64);
                        let flow = begin(front.clone(), client, server, seed, faults, carried.clone()).await;
                        flows.insert(client, flow.clone());
                        flow
                    }
                };
                flow.inward.try_send(&buffer[..length]).expect("short enough");
            }
        }
    }
}

async fn begin(
    front: Rc<UdpSocket>,
    client: SocketAddr,
    server: SocketAddr,
    seed: u64,
    (up, down): (Faults, Faults),
    carried: Arc<Carried>,
) -> Rc<Flow> {
    let (near, far) = datagram_link(seed, up, down);
    let (near, far) = (near.receive_buffer(65_536, 1 << 26), far.receive_buffer(65_536, 1 << 26));
    let control = near.control();
    let server_side = Rc::new(UdpSocket::bind(SocketAddr::new(server.ip(), 0)).await.expect("a port"));
    let flow = Rc::new(Flow {
        control,
        inward: near.open(),
        server_side: std::cell::RefCell::new(server_side),
        moved: tokio::sync::Notify::new(),
    });
    let far = Rc::new(far.open());
    // Out of the link, to the server.
    tokio::task::spawn_local({
        let (flow, far) = (flow.clone(), far.clone());
        async move {
            let mut buffer = vec![0; LONGEST];
            loop {
                let length = far.recv(&mut buffer).await.expect("it never fails");
                let socket = flow.server_side.borrow().clone();
                // A server that is gone answers with an ICMP error, which is not the path's business.
                let _gone = socket.send_to(&buffer[..length], server).await;
            }
        }
    });
    // From the server, into the link.
    tokio::task::spawn_local({
        let (flow, carried) = (flow.clone(), carried.clone());
        async move {
            let mut buffer = vec![0; LONGEST];
            loop {
                let socket = flow.server_side.borrow().clone();
                tokio::select! {
                    () = flow.moved.notified() => {}
                    received = socket.recv_from(&mut buffer) => {
                        let Ok((length, _)) = received else { continue };
                        carried.down.fetch_add(length as u64, Ordering::Relaxed);
                        far.try_send(&buffer[..length]).expect("short enough");
                    }
                }
            }
        }
    });
    // Out of the link, to the client.
    tokio::task::spawn_local({
        let flow = flow.clone();
        async move {
            let mut buffer = vec![0; LONGEST];
            loop {
                let length = flow.inward.recv(&mut buffer).await.expect("it never fails");
                let _gone = front.send_to(&buffer[..length], client).await;
            }
        }
    });
    flow
}

mod tests {
    use std::collections::BTreeSet;
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::probe::{SOON, now};

    /// Sends back what comes, until dropped; remembers from where.
    struct Echo {
        address: SocketAddr,
        seen: Arc<parking_lot::Mutex<BTreeSet<SocketAddr>>>,
    }

    impl Echo {
        fn start() -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            socket.set_read_timeout(Some(SOON)).expect("set");
            let address = socket.local_addr().expect("its address");
            let seen: Arc<parking_lot::Mutex<BTreeSet<SocketAddr>>> = Arc::default();
            let remember = seen.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 2_000];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    remember.lock().insert(from);
                    socket.send_to(&buffer[..length], from).expect("sent");
                }
            });
            Self { address, seen }
        }
    }

    fn client() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(SOON)).expect("set");
        socket
    }

    fn ask(socket: &UdpSocket, to: SocketAddr, what: &[u8]) -> Vec<u8> {
        socket.send_to(what, to).expect("sent");
        let mut buffer = [0; 2_000];
        let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
        assert_eq!(from, to);
        buffer[..length].to_vec()
    }

    #[test]
    fn a_path_without_faults_is_a_wire_and_clients_are_told_apart() {
        let echo = Echo::start();
        let path = Lossy::to(echo.address, 1, Faults::none(), Faults::none());
        let (one, two) = (client(), client());
        for n in 0..50_u8 {
            assert_eq!(ask(&one, path.address(), &[n; 1_200]), [n; 1_200]);
            assert_eq!(ask(&two, path.address(), &[n, 1]), [n, 1]);
        }
        assert_eq!(echo.seen.lock().len(), 2);
        assert_eq!(path.carried(), (50 * 1_202, 50 * 1_202));
    }

    #[test]
    fn faults_are_those_asked_for_and_change_while_it_runs() {
        let echo = Echo::start();
        let delay = Duration::from_millis(30);
        let path = Lossy::to(echo.address, 2, Faults::none().delay(delay), Faults::none().delay(delay));
        let one = client();
        let began = now();
        ask(&one, path.address(), b"slow");
        assert!(now() - began >= 2 * delay);

        path.set(Faults::none().corrupt(1.0), Faults::none().duplicate(1.0));
        let answer = ask(&one, path.address(), &[0; 100]);
        assert_eq!(answer.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        let mut buffer = [0; 200];
        assert_eq!(one.recv(&mut buffer).expect("a second copy"), 100);

        path.set(Faults::none().loss(0.5), Faults::none());
        for _ in 0..400 {
            one.send_to(b"x", path.address()).expect("sent");
        }
        one.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        let came = std::iter::from_fn(|| one.recv(&mut buffer).ok()).count();
        assert!((120..280).contains(&came), "{came} of 400 at a loss of a half");

        path.go_dark();
        one.send_to(b"x", path.address()).expect("sent");
        assert!(one.recv(&mut buffer).is_err());
    }

    #[test]
    fn the_server_sees_the_client_move() {
        let echo = Echo::start();
        let path = Lossy::to(echo.address, 3, Faults::none(), Faults::none());
        let one = client();
        ask(&one, path.address(), b"first");
        path.rebind_port();
        ask(&one, path.address(), b"second");
        path.rebind_address(Ipv4Addr::new(127, 0, 0, 77));
        ask(&one, path.address(), b"third");
        let seen: Vec<_> = echo.seen.lock().iter().copied().collect();
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen.iter().filter(|address| address.ip() == Ipv4Addr::new(127, 0, 0, 77)).count(), 1);
    }
}
