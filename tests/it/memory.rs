//! The memory library in a running gateway: what pools and locks do is on the metrics page as it is, and the check for
//! leaked buffers that every test ends with can fail.

use std::io::Write;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use portway::actors::{SpawnError, Turn};
use portway::gateway::{Builder, check};
use portway::memory::{Buf, PoolStats};
use portway::transports::tcp::{Accepted, Never, OnAccept};

use crate::gateway::{Client, Neighbour, Running, free, get};
use crate::probe::{SOON, assert_nothing_out, eventually};

#[path = "../../examples/memory_policies.rs"]
#[expect(dead_code, reason = "its main is not called here")]
mod memory_policies;

#[test]
fn one_function_serves_one_thread_rayon_and_tokio() {
    let [one, threads, tasks] = memory_policies::three_ways().unwrap();
    assert_eq!(one[&'n'], 8, "{one:?}");
    assert_eq!((&threads, &tasks), (&one, &one));
}

/// A gateway of one arbiter with an admin listener, an echo, and what else is wanted.
fn text(admin: SocketAddr, more: &str) -> String {
    format!(
        "version = 1\n[runtime]\narbiters = 1\n[admin]\nlisten = \"{admin}\"\n[[listener]]\nname = \"echo\"\n\
         listen = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n[listener.limits]\nconnections = 2000\n\
         per_source = 2000\nhalf_open = 2000\n{more}"
    )
}

/// The value of a line of the metrics page.
fn value(admin: SocketAddr, line: &str) -> f64 {
    let (_, metrics) = get(admin, "/metrics");
    let found = metrics.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{line} is not in\n{metrics}")).parse().unwrap()
}

fn pool(admin: SocketAddr, name: &str, bytes: usize) -> f64 {
    let total = if name.starts_with("buffers") { "" } else { "_total" };
    value(admin, &format!("portway_pool_{name}{total}{{arbiter=\"portway-0\",bytes=\"{bytes}\"}}"))
}

#[test]
fn what_pools_have_and_could_not_give_is_on_the_metrics_page() {
    const OF_EACH: usize = 1_024;
    const BEYOND: usize = 6;
    let admin = free();
    let running = Running::start(&text(admin, ""));
    let echo = running.address("echo");
    let mut neighbour = Neighbour::of(echo);
    let of = |bytes: usize| {
        let pools = running.gateway().mesh().pools();
        let (_, pools) = pools.into_iter().find(|(arbiter, _)| &**arbiter == "portway-0").unwrap();
        pools.into_iter().find(|pool| pool.size == bytes).unwrap()
    };
    let shown = |bytes: usize| {
        let names = ["buffers_limit", "buffers", "buffers_out", "buffers_high", "exhausted", "came_home", "resized"];
        names.map(|name| pool(admin, name, bytes) as u64)
    };
    let true_ones = |bytes: usize| {
        let PoolStats { limit, made, out, high, exhausted, came_home, resized, .. } = of(bytes);
        [limit as u64, made, out, high, exhausted, came_home, resized]
    };
    // A turn gives its buffers back after its answer has left.
    eventually("an idle connection has none", || of(2_048).out == 0);
    assert_eq!(of(2_048).exhausted, 0);
    // Each has said half of a message of 100 bytes, which is kept in a small buffer while there are some.
    let mut clients: Vec<Client> = (0..OF_EACH + BEYOND).map(|_| Client::to(echo)).collect();
    for client in &mut clients {
        client.0.write_all(&[&100_u32.to_be_bytes()[..], &[7; 50]].concat()).unwrap();
    }
    eventually("each has a buffer, and the page says so", || {
        let all = of(2_048).out + of(16_384).out == (OF_EACH + BEYOND) as u64;
        all && [2_048, 16_384, 65_536].iter().all(|bytes| shown(*bytes) == true_ones(*bytes))
    });
    assert_eq!(shown(2_048)[0], OF_EACH as u64);
    assert!(of(2_048).high == OF_EACH as u64 && of(2_048).exhausted >= BEYOND as u64, "{:?}", of(2_048));
    // Nobody loses anything by it.
    neighbour.works();
    for client in &mut clients {
        client.0.write_all(&[7; 50]).unwrap();
        assert_eq!(client.recv(), [7; 100]);
    }
    neighbour.works();
    eventually("all are back, and the most there were stays", || {
        shown(2_048)[2..4] == [0, OF_EACH as u64] && shown(16_384)[2] == 0
    });
}

/// Gives away a buffer of the arbiter for each connection.
struct Giving(Arc<Mutex<mpsc::Sender<Buf>>>);

impl OnAccept for Giving {
    fn accepted(&mut self, _: Accepted, turn: &Turn<'_, Never>) -> Result<(), SpawnError> {
        self.0.lock().send(turn.buffer(2_000)).unwrap();
        Ok(())
    }
}

/// A gateway whose listener `giving` hands a buffer to this test for each connection.
fn giving(admin: SocketAddr) -> (Running, mpsc::Receiver<Buf>) {
    let (give, given) = mpsc::channel();
    let give = Arc::new(Mutex::new(give));
    let builder = Builder::new().tcp_protocol("giving", move |_| {
        let give = give.clone();
        Ok(move || Giving(give.clone()))
    });
    let more = "[[listener]]\nname = \"giving\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"giving\"\n";
    (Running::with(&builder, &text(admin, more), &builder.known()), given)
}

/// A connection and the buffer given away for it. An arbiter that a busy machine holds up sheds new connections.
fn given_to(running: &Running, given: &mpsc::Receiver<Buf>) -> (Client, Buf) {
    let mut got = None;
    eventually("a connection is let in", || {
        let client = Client::to(running.address("giving"));
        got = given.recv_timeout(SOON / 10).ok().map(|buffer| (client, buffer));
        got.is_some()
    });
    got.expect("just now")
}

#[test]
fn buffers_that_come_home_from_elsewhere_are_on_the_metrics_page() {
    let admin = free();
    let (running, given) = giving(admin);
    let seen = || ["buffers_out", "came_home", "resized"].map(|name| pool(admin, name, 2_048));
    let (client, mut buffer) = given_to(&running, &given);
    assert_eq!(seen(), [1.0, 0.0, 0.0]);
    buffer.push(1);
    drop(buffer);
    assert_eq!(seen(), [0.0, 1.0, 0.0], "on this thread, which is not the pool's");
    let (another, mut buffer) = given_to(&running, &given);
    buffer.reserve_exact(5_000);
    drop(buffer);
    assert_eq!(seen(), [0.0, 2.0, 1.0]);
    drop((client, another));
}

/// What every test of a gateway ends with.
#[test]
fn a_buffer_that_is_not_given_back_is_noticed() {
    let (running, given) = giving(free());
    let (_client, buffer) = given_to(&running, &given);
    let mesh = running.gateway().mesh().clone();
    let leaked = catch_unwind(AssertUnwindSafe(|| assert_nothing_out(&mesh))).unwrap_err();
    assert!(leaked.downcast::<String>().unwrap().contains("buffers were leaked"));
    let ended = catch_unwind(AssertUnwindSafe(|| drop(running)));
    assert!(ended.is_err(), "also after the end of the gateway");
    drop(buffer);
    assert_nothing_out(&mesh);
}

#[test]
fn who_waits_for_a_lock_is_on_the_metrics_page() {
    let admin = free();
    let (hold, (began, begins), (release, released)) =
        (Arc::new(AtomicBool::new(false)), mpsc::channel(), mpsc::channel());
    let (holding, began, released) = (hold.clone(), Mutex::new(began), Mutex::new(released));
    // A protocol that takes its time to look at its options: meanwhile the reload that asks it goes on.
    let builder = Builder::new().tcp_protocol("thoughtful", move |_| {
        if holding.swap(false, Ordering::SeqCst) {
            began.lock().send(()).unwrap();
            let () = released.lock().recv_timeout(SOON).unwrap();
        }
        Ok(|| Thoughtful)
    });
    let config = |limit: usize| {
        let more = format!(
            "[[listener]]\nname = \"slow\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"thoughtful\"\n\
             [listener.limits]\nconnections = {limit}\n"
        );
        check::parse("test.toml", &text(admin, &more), &builder.known()).unwrap()
    };
    let running = Running::of(builder.start(config(1)).unwrap());
    let locks = || {
        ["refused", "waited", "timed_out"]
            .map(|name| value(admin, &format!("portway_lock_{name}_total{{lock=\"reload\"}}")))
    };
    let mut neighbour = Neighbour::of(running.address("echo"));
    running.gateway().reload(config(2)).unwrap();
    assert_eq!(locks(), [0.0; 3], "a lock that is free counts nothing");
    hold.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| running.gateway().reload(config(3)).map(drop));
        begins.recv_timeout(SOON).unwrap();
        let (tell, told) = mpsc::channel();
        let running = &running;
        let second = scope.spawn(move || {
            tell.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
            running.gateway().reload(config(4)).map(drop)
        });
        let thread = std::path::Path::new("/proc").join(told.recv_timeout(SOON).unwrap()).join("stat");
        eventually("the second reload waits", || {
            let stat = std::fs::read_to_string(&thread).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('S')
        });
        neighbour.works();
        release.send(()).unwrap();
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    assert_eq!(locks(), [0.0, 1.0, 0.0]);
    neighbour.works();
}

struct Thoughtful;

impl OnAccept for Thoughtful {
    fn accepted(&mut self, _: Accepted, _: &Turn<'_, Never>) -> Result<(), SpawnError> {
        Ok(())
    }
}
