//! Reload: applied as a difference or refused whole, and nobody who is not concerned loses anything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use portway::gateway::config::Config;
use portway::gateway::{Builder, StartError, check};

use crate::gateway::{Binary, Client, Neighbour, Running, free};
use crate::probe::{SOON, eventually, wait};
use crate::relay::Server;

fn listener(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "[[listener]]\nname = \"{name}\"\nlisten = \"{address}\"\nprotocol = \"framed\"\nservice = \"echo\"\n{more}"
    )
}

fn config(listeners: &[String]) -> Config {
    let text = format!("version = 1\n[runtime]\narbiters = 2\ndrain = \"5s\"\n{}", listeners.concat());
    check::parse("test.toml", &text, &check::Known::default()).unwrap_or_else(|r| panic!("{}", r.render(false)))
}

fn start(listeners: &[String]) -> Running {
    Running::of(Builder::new().start(config(listeners)).unwrap())
}

#[test]
fn only_what_differs_is_touched() {
    let (a, b, c) = (free(), free(), free());
    let running = start(&[listener("a", a, ""), listener("b", b, ""), listener("c", c, "")]);
    let mut on_a = Neighbour::of(a);
    let mut on_b = Neighbour::of(b);
    let mut on_c = Client::to(c);
    on_c.echoes(b"x");
    let d = free();
    let new = config(&[
        listener("d", d, ""),
        listener("a", a, ""),
        listener("b", b, "[listener.limits]\nconnections = 1\nper_source = 1\n"),
    ]);
    let done = running.gateway().reload(new).unwrap();
    assert_eq!((done.kept, done.added), (vec!["a".to_owned()], vec!["d".to_owned()]));
    assert_eq!((done.changed, done.removed), (vec!["b".to_owned()], vec!["c".to_owned()]));
    assert!(done.restart.is_empty());
    on_a.works();
    on_b.works();
    Neighbour::of(d).works();
    // The new cap of b counts the connection that the old acceptor let in.
    assert!(Client::to(b).rest().is_empty());
    running.counts("connections_refused", "b", "limit_connections", 1);
    assert!(on_c.rest().is_empty(), "c finishes its connections in order");
    drop(on_c);
    running.counts("connections_closed", "c", "drained", 1);
    eventually("c is closed", || std::net::TcpStream::connect(c).is_err());
    assert_eq!(running.gateway().not_ready(), None);
}

#[test]
fn a_listener_that_was_taken_out_is_shown_until_its_last_connection_has_ended() {
    let server = Server::start();
    let (a, b) = (free(), free());
    let relay = format!(
        "[[upstream]]\nname = \"app\"\nservers = [\"{}\"]\n[[listener]]\nname = \"b\"\nlisten = \"{b}\"\n\
         protocol = \"relay\"\nupstream = \"app\"\n",
        server.servers()[0]
    );
    let running = start(&[listener("a", a, ""), relay]);
    let mut on_a = Neighbour::of(a);
    let mut on_b = Client::to(b);
    // `e` for an echo.
    on_b.0.write_all(b"ehello").unwrap();
    let mut hello = [0; 5];
    on_b.0.read_exact(&mut hello).unwrap();
    let rows = || {
        let rows = wait(running.gateway().overview()).listeners;
        rows.into_iter().map(|row| (row.name, row.accepting, row.draining, row.connections)).collect::<Vec<_>>()
    };
    let row_of = |name: &str, draining: bool| (name.to_owned(), !draining, draining, 1);
    eventually("both are shown", || rows() == [row_of("a", false), row_of("b", false)]);
    running.gateway().reload(config(&[listener("a", a, "")])).unwrap();
    assert_eq!(rows(), [row_of("a", false), row_of("b", true)]);
    assert!(wait(running.gateway().overview()).text().contains("draining"));
    assert_eq!(running.gateway().not_ready(), None);
    // Another reload does not forget it.
    running.gateway().reload(config(&[listener("a", a, "[listener.limits]\nconnections = 7\n")])).unwrap();
    assert_eq!(rows(), [row_of("a", false), row_of("b", true)]);
    on_b.0.write_all(b"again").unwrap();
    on_b.0.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"again");
    drop(on_b);
    eventually("it is gone", || rows() == [row_of("a", false)]);
    on_a.works();
}

#[test]
fn a_start_that_fails_leaves_no_control_socket_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = free();
    let text = format!(
        "version = 1\n[admin]\nlisten = \"{admin}\"\ncontrol = \"control.sock\"\n{}",
        listener("late", taken.local_addr().unwrap(), "")
    );
    let mut binary = Binary::start(&text);
    assert_eq!(binary.ends_within(SOON).code(), Some(1));
    binary.says("late");
    assert!(!binary.dir().join("control.sock").exists());
}

#[test]
fn a_reload_that_cannot_be_is_refused_whole() {
    let (a, b) = (free(), free());
    let running = start(&[listener("a", a, "")]);
    let mut on_a = Neighbour::of(a);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let new = config(&[listener("b", b, ""), listener("late", taken.local_addr().unwrap(), "")]);
    let error = running.gateway().reload(new).unwrap_err();
    assert!(matches!(&error, StartError::Bind { listener, .. } if listener == "late"), "{error}");
    on_a.works();
    Neighbour::of(a).works();
    assert!(std::net::TcpStream::connect(b).is_err(), "what was bound before the refusal is closed again");
    assert_eq!(running.gateway().listeners().len(), 1);
    // And the same without the mistake goes through.
    let done = running.gateway().reload(config(&[listener("a", a, ""), listener("b", b, "")])).unwrap();
    assert_eq!(done.added, ["b"]);
    on_a.works();
}

#[test]
fn names_may_swap_their_addresses_and_what_needs_a_restart_is_named() {
    let (a, b) = (free(), free());
    let running = start(&[listener("a", a, ""), listener("b", b, "")]);
    let mut on_a = Neighbour::of(a);
    let mut new = config(&[listener("a", b, ""), listener("b", a, "")]);
    new.runtime.pin_cores = true;
    let done = running.gateway().reload(new).unwrap();
    assert_eq!(done.changed, ["a", "b"]);
    assert_eq!(done.restart, ["runtime.pin_cores"]);
    assert!(done.settings.is_empty());
    on_a.works();
    Neighbour::of(a).works();
    Neighbour::of(b).works();
}

#[test]
fn the_memory_budget_changes_with_a_reload() {
    let a = free();
    let with = |memory: &str| {
        let text = format!(
            "version = 1\n[runtime]\narbiters = 2\nmemory = \"{memory}\"\n{}",
            listener("a", a, "[listener.framed]\nslow_after = \"60s\"\n")
        );
        check::parse("test.toml", &text, &check::Known::default()).unwrap_or_else(|r| panic!("{}", r.render(false)))
    };
    let running = Running::of(Builder::new().start(with("256MiB")).unwrap());
    let mut neighbour = Neighbour::of(a);
    // They send and never read: what is echoed to them is held.
    let frame = [&1_000_000u32.to_be_bytes()[..], &vec![1; 1_000_000]].concat();
    let mut holders = Vec::new();
    while running.gateway().memory_leased() < 20 << 20 {
        let mut holder = std::net::TcpStream::connect(a).unwrap();
        holder.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while holder.write_all(&frame).is_ok() {}
        holders.push(holder);
        assert!(holders.len() < 200, "{} bytes held", running.gateway().memory_leased());
    }
    assert_eq!(running.totals().get("connections_refused", "a", "memory"), 0);

    let done = running.gateway().reload(with("16MiB")).unwrap();
    assert_eq!((done.kept, done.settings, done.restart.len()), (vec!["a".to_owned()], vec!["runtime.memory"], 0));
    let refused = Client::to(a).rest();
    assert!(refused.is_empty());
    eventually("the newcomer is counted", || running.totals().get("connections_refused", "a", "memory") == 1);
    neighbour.works();
    wait(async {
        tokio::select! {
            () = running.gateway().keep_budget() => {}
            () = async {
                while running.gateway().memory_leased() > 14 << 20 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            } => {}
        }
    });
    assert!(running.totals().get("connections_closed", "a", "memory") > 0);
    neighbour.works();

    assert_eq!(running.gateway().reload(with("256MiB")).unwrap().settings, ["runtime.memory"]);
    Neighbour::of(a).works();
    neighbour.works();
    assert_eq!(running.totals().get("connections_refused", "a", "memory"), 1);
}

#[test]
fn two_hundred_reloads_under_load_lose_nothing() {
    let (a, b) = (free(), free());
    let running = start(&[listener("a", a, ""), listener("b", b, "")]);
    let stop = Arc::new(AtomicBool::new(false));
    // Connections that stay on the listener that never changes, and ones that come and go on the one that always
    // does: every connect must be let in.
    let steady: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut clients: Vec<_> = (0..50).map(|_| Neighbour::of(a)).collect();
                while !stop.load(Ordering::Relaxed) {
                    clients.iter_mut().for_each(Neighbour::works);
                }
                clients.len()
            })
        })
        .collect();
    let came = Arc::new(AtomicUsize::new(0));
    let fresh = {
        let (stop, came) = (stop.clone(), came.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                Neighbour::of(b).works();
                came.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let mut n = 0;
    while n < 200 || came.load(Ordering::Relaxed) < 100 {
        n += 1;
        let limits = format!("[listener.limits]\nconnections = {}\n", 5_000 + n);
        let done = running.gateway().reload(config(&[listener("a", a, ""), listener("b", b, &limits)])).unwrap();
        assert_eq!((done.kept.len(), done.changed.len()), (1, 1));
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(steady.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 200);
    fresh.join().unwrap();
    running.is_empty();
    assert_eq!(running.totals().family("connections_refused"), 0);
}

#[test]
fn sighup_reloads_the_file_and_a_broken_one_changes_nothing() {
    let (a, b, admin) = (free(), free(), free());
    let text = |listeners: &[String]| {
        let head = format!("version = 1\n[admin]\nlisten = \"{admin}\"\n[runtime]\narbiters = 2\n");
        head + &listeners.concat()
    };
    let reloads = || {
        let page = crate::gateway::get(admin, "/metrics").1;
        let of = |result: &str| {
            let line = format!("portway_reloads_total{{result=\"{result}\"}} ");
            page.lines().find_map(|found| found.strip_prefix(&line)).unwrap().to_owned()
        };
        (of("applied"), of("refused"))
    };
    let counts = |applied: &str, refused: &str| (applied.to_owned(), refused.to_owned());
    let mut binary = Binary::start(&text(&[listener("a", a, "")]));
    binary.says("running");
    assert_eq!(reloads(), counts("0", "0"));
    let mut on_a = Neighbour::of(a);
    binary.rewrite(&text(&[listener("a", a, ""), listener("b", b, "")]));
    binary.signal("HUP");
    let line = binary.says("reloaded");
    assert!(line.contains("1 kept, 1 added, 0 changed, 0 removed"), "{line}");
    on_a.works();
    Neighbour::of(b).works();
    binary.rewrite("version = 1\n[[listner]]\n");
    binary.signal("HUP");
    binary.says("reload refused");
    binary.says("did you mean");
    assert_eq!(reloads(), counts("1", "1"));
    on_a.works();
    Neighbour::of(b).works();
    binary.signal("TERM");
    drop(on_a);
    assert_eq!(binary.ends_within(SOON + Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn the_reload_command_goes_through_a_socket_of_its_owner_alone() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    let (a, b, admin) = (free(), free(), free());
    let text = |listeners: &[String]| {
        let head = format!("version = 1\n[admin]\nlisten = \"{admin}\"\ncontrol = \"gw.sock\"\n");
        head + "[runtime]\narbiters = 2\n" + &listeners.concat()
    };
    let mut binary = Binary::start(&text(&[listener("a", a, "")]));
    binary.says("running");
    let socket = binary.dir().join("gw.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut on_a = Neighbour::of(a);

    binary.rewrite(&text(&[listener("a", a, ""), listener("b", b, "")]));
    let done = binary.portway(&["reload"]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("1 kept, 1 added"), "{done:?}");
    on_a.works();
    Neighbour::of(b).works();

    // A port in use is known only when the gateway tries: refused there, and told here.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    binary.rewrite(&text(&[listener("a", a, ""), listener("late", taken.local_addr().unwrap(), "")]));
    let refused = binary.portway(&["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("late") && told.contains("config.toml:"), "{told}");
    on_a.works();
    Neighbour::of(b).works();

    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET /reload HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");

    // The socket of a gateway that runs is not taken away; one that is left behind is replaced.
    binary.rewrite(&text(&[listener("b", free(), "")]).replace(&admin.to_string(), &free().to_string()));
    let second = binary.portway(&["run"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("gw.sock"), "{second:?}");
    on_a.works();
    drop(on_a);
    binary.signal("TERM");
    assert_eq!(binary.ends_within(SOON).code(), Some(0));
    assert!(!socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert_eq!(binary.portway(&["reload"]).status.code(), Some(1), "nobody answers there");
    binary.again(&text(&[listener("a", a, "")]));
    binary.says("running");
    assert_eq!(binary.portway(&["reload"]).status.code(), Some(0));
}

#[test]
fn check_diff_says_what_the_reload_then_does() {
    let (a, b, c, d, admin) = (free(), free(), free(), free(), free());
    let text = |listeners: &[String]| {
        let head = format!("version = 1\n[admin]\nlisten = \"{admin}\"\ncontrol = \"gw.sock\"\n");
        head + "[runtime]\narbiters = 2\ndrain = \"2s\"\n" + &listeners.concat()
    };
    let mut binary = Binary::start(&text(&[listener("a", a, ""), listener("b", b, ""), listener("c", c, "")]));
    binary.says("running");
    let (mut on_a, mut on_b, mut on_c) = (Neighbour::of(a), Neighbour::of(b), Neighbour::of(c));
    on_a.works();
    let changed = "[listener.limits]\nconnections = 7\nper_source = 7\n";
    binary.rewrite(&text(&[listener("a", a, ""), listener("b", b, changed), listener("d", d, "")]));
    let plan = binary.portway(&["check", "--diff"]);
    assert_eq!(plan.status.code(), Some(0), "{}", String::from_utf8_lossy(&plan.stderr));
    let said = String::from_utf8_lossy(&plan.stdout).into_owned();
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected: [&[&str]; 4] = [
        &["keep", "listener", "a", "1", "session"],
        &["change", "listener", "b", "1", "session"],
        &["start", "listener", "d"],
        &["drain", "listener", "c", "1", "session", "to", "finish"],
    ];
    assert_eq!(lines, expected, "{said}");
    let json = binary.portway(&["check", "--diff", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["steps"].as_array().unwrap().len(), 4);
    // Nothing was touched.
    for neighbour in [&mut on_a, &mut on_b, &mut on_c] {
        neighbour.works();
    }
    assert!(std::net::TcpStream::connect(d).is_err(), "it was not started");
    assert!(crate::gateway::get(admin, "/api/config").1.contains("\"applied\": 1"));

    let done = binary.portway(&["reload"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("1 kept, 1 added, 1 changed, 1 removed"), "{said}");
    let config: serde_json::Value = serde_json::from_str(&crate::gateway::get(admin, "/api/config").1).unwrap();
    assert_eq!(config["applied"], 2);
    assert_eq!((&config["kept"][0], &config["changed"][0]), (&"a".into(), &"b".into()));
    assert_eq!((&config["added"][0], &config["removed"][0]), (&"d".into(), &"c".into()));
    assert_eq!(config["last_reload"]["applied"], true);
    on_a.works();

    // A file that would be refused: the plan says why, and so does the state.
    binary.rewrite("version = 1\n[[listner]]\n");
    let refused = binary.portway(&["check", "--diff"]);
    assert_eq!(refused.status.code(), Some(2), "its own check refuses it already");
    assert_eq!(crate::gateway::get(admin, "/readyz").0, 200);
}

/// Whatever the step, the plan names what the reload then does.
#[test]
fn the_plan_and_the_reload_agree() {
    use portway::gateway::Fate;

    let addresses: Vec<_> = (0..4).map(|_| free()).collect();
    let upstream = |port: u16| format!("[[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:{port}\"]\n");
    let relay = |n: usize| {
        let address = addresses[n];
        format!("[[listener]]\nname = \"r\"\nlisten = \"{address}\"\nprotocol = \"relay\"\nupstream = \"app\"\n")
    };
    let framed = |name: &str, n: usize, limit: usize| {
        listener(name, addresses[n], &format!("[listener.limits]\nconnections = {limit}\nper_source = {limit}\n"))
    };
    let steps: Vec<Vec<String>> = vec![
        vec![framed("a", 0, 5), framed("b", 1, 5)],
        vec![framed("a", 0, 5), framed("b", 1, 5)],
        vec![framed("a", 0, 6), framed("b", 1, 5)],
        vec![framed("a", 1, 6), framed("b", 0, 5)],
        vec![upstream(9), relay(2), framed("a", 1, 6)],
        vec![upstream(9), framed("a", 1, 6), relay(2)],
        vec![upstream(10), framed("a", 1, 6), relay(2)],
        vec![upstream(10), framed("c", 3, 6), relay(2)],
        vec![framed("c", 3, 6)],
    ];
    let running = start(&steps[0]);
    for (n, step) in steps.iter().enumerate() {
        let new = config(step);
        let plan = running.gateway().plan(&new).unwrap();
        let planned = |fate| {
            let mut names: Vec<_> = plan.listeners(fate).map(str::to_owned).collect();
            names.sort();
            names
        };
        let done = running.gateway().reload(new).unwrap();
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let did = [done.kept, done.changed, done.added, done.removed].map(sorted);
        assert_eq!([Fate::Keep, Fate::Change, Fate::Start, Fate::Drain].map(planned), did, "step {n}");
    }
}

#[test]
fn a_watched_file_is_used_when_it_has_changed_and_is_left_alone() {
    let (a, b, admin) = (free(), free(), free());
    let text = |watch: bool, listeners: &[String]| {
        format!(
            "version = 1\n[admin]\nlisten = \"{admin}\"\nwatch = {watch}\n[runtime]\narbiters = 2\n{}",
            listeners.concat()
        )
    };
    let mut binary = Binary::start(&text(true, &[listener("a", a, "")]));
    binary.says("running");
    let mut on_a = Neighbour::of(a);
    binary.rewrite(&text(true, &[listener("a", a, ""), listener("b", b, "")]));
    binary.says("the configuration has changed");
    let line = binary.says("reloaded");
    assert!(line.contains("1 kept, 1 added"), "{line}");
    Neighbour::of(b).works();
    // A broken one changes nothing; the next good one is used, also when it came by a rename.
    binary.rewrite("version = 1\n[[listner]]\n");
    binary.says("reload refused");
    on_a.works();
    let next = binary.dir().join("next.toml");
    std::fs::write(&next, text(false, &[listener("a", a, "")])).unwrap();
    std::fs::rename(&next, binary.dir().join("config.toml")).unwrap();
    binary.says("1 kept, 0 added, 0 changed, 1 removed");
    on_a.works();
    // From here on nobody watches: SIGHUP is what counts.
    binary.rewrite(&text(true, &[listener("a", a, ""), listener("b", b, "")]));
    binary.signal("HUP");
    eventually("the third change is used", || {
        let config: serde_json::Value = serde_json::from_str(&crate::gateway::get(admin, "/api/config").1).unwrap();
        config["applied"].as_u64() >= Some(4)
    });
    Neighbour::of(b).works();
}

#[test]
fn a_reload_changes_the_level_of_the_log() {
    let a = free();
    let text = |level: &str| {
        format!("version = 1\n[runtime]\narbiters = 2\n[log]\nlevel = \"{level}\"\n{}", listener("a", a, ""))
    };
    let mut binary = Binary::start(&text("info"));
    binary.says("running");
    drop(Neighbour::of(a));
    binary.rewrite(&text("debug"));
    binary.signal("HUP");
    let line = binary.says("reloaded");
    assert!(!line.contains("restart"), "{line}");
    drop(Neighbour::of(a));
    binary.says("connection closed");
}
