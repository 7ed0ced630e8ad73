//! The dashboard: what its stream tells, and what a person does with it in a real browser.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::gateway::{Binary, Client, free, get};
use crate::probe::{SOON, eventually};

pub(crate) const TOKEN: &str = "0123456789abcdef-of-a-test";

pub(crate) fn with_token() -> (Binary, SocketAddr) {
    let admin = free();
    let binary = Binary::start(&format!(
        "version = 1\n[runtime]\narbiters = 2\ndrain = \"1s\"\n[admin]\nlisten = \"{admin}\"\ntoken = \"{TOKEN}\"\n\
         [[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n"
    ));
    (binary, admin)
}

/// A reader of the stream.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(admin: SocketAddr) -> Result<Self, String> {
        let mut stream = TcpStream::connect_timeout(&admin, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(format!("GET /api/events HTTP/1.1\r\nHost: {admin}\r\n\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("a head") > 0, "{head}");
        }
        if head.starts_with("HTTP/1.1 200") { Ok(Self(reader)) } else { Err(head) }
    }

    /// The next event, and its length.
    fn next(&mut self) -> (Value, usize) {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).expect("an event") > 0, "the stream has ended");
            if let Some(json) = line.strip_prefix("data: ") {
                return (serde_json::from_str(json).expect("JSON"), json.len());
            }
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Value) -> bool) -> Value {
        for _ in 0..10 {
            let (event, _) = self.next();
            if done(&event) {
                return event;
            }
        }
        panic!("not told: {what}");
    }
}

/// Cells in a list of them.
fn cells(event: &Value, list: &str, each: usize) -> usize {
    event[list].as_array().map_or(0, |list| list.len() / each)
}

#[test]
fn the_stream_tells_what_is_and_then_what_differs() {
    let (mut binary, admin) = with_token();
    let echo = binary.address("echo");
    binary.says("running");
    let mut stream = Stream::open(admin).unwrap();
    let first = stream.until("the first event", |event| event["first"] == true);
    assert_eq!(first["top"]["sessions"], 0);
    assert_eq!(first["top"]["config"], 1);
    assert_eq!(first["listeners"][0]["name"], "echo");
    // The two data arbiters and the System's thread.
    assert_eq!(first["lanes"].as_array().unwrap().len(), 3);

    let mut clients: Vec<_> = (0..50).map(|_| Client::to(echo)).collect();
    clients.iter_mut().for_each(|client| client.echoes(b"hello"));
    let mut added = 0;
    let event = stream.until("50 sessions", |event| {
        added += cells(event, "add", 6);
        event["top"]["sessions"] == 50
    });
    assert!(added >= 50, "{added}");
    let kinds = event["kinds"].as_array();
    assert!(kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind[0] == "framed" && kind[1] == "framed")), "{event}");
    // Nothing happens: nothing of the 50 is told again.
    let mut length = 0;
    for _ in 0..3 {
        let (event, bytes) = stream.next();
        length = bytes;
        if cells(&event, "add", 6) + cells(&event, "gone", 1) == 0 && event.get("listeners").is_none() {
            break;
        }
    }
    assert!(length < 2_000, "{length} bytes for a quiet second");
    drop(clients);
    let mut gone = 0;
    stream.until("nobody is left", |event| {
        gone += cells(event, "gone", 1);
        event["top"]["sessions"] == 0
    });
    assert!(gone >= 50, "{gone}");

    // A refusal is told as what happened.
    binary.rewrite("version = 1\n[[listner]]\n");
    binary.signal("HUP");
    let event = stream.until("the refused reload", |event| event.get("happened").is_some());
    assert!(event["happened"][0]["text"].as_str().unwrap().contains("reload refused"), "{event}");
    assert_eq!(event["top"]["last_reload"]["applied"], false);
}

#[test]
fn eight_may_watch_and_one_more_is_told_so() {
    let (mut binary, admin) = with_token();
    binary.says("running");
    let mut watching: Vec<_> = (0..8).map(|_| Stream::open(admin).expect("a place")).collect();
    let Err(refused) = Stream::open(admin) else { panic!("nine watch") };
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    let metrics = get(admin, "/metrics").1;
    assert!(metrics.contains("portway_admin_refused_total{listener=\"admin\",reason=\"watchers\"} 1"), "{metrics}");
    watching.iter_mut().for_each(|stream| drop(stream.next()));
    watching.pop();
    eventually("the place is free again", || Stream::open(admin).is_ok());
}

/// What a person does, by mouse and keys: finds the busiest session among 41, closes it, reloads, looks around. The
/// pictures are those of the README: `UPDATE_EXPECT=1` keeps them.
#[cfg(feature = "quic")]
#[test]
fn a_person_finds_a_session_closes_it_and_sees_a_reload() {
    let (mut binary, admin) = with_token();
    let echo = binary.address("echo");
    binary.says("running");
    let mut idle: Vec<_> = (0..40).map(|_| Client::to(echo)).collect();
    idle.iter_mut().for_each(|client| client.echoes(b"hello"));
    let ended = Arc::new(AtomicBool::new(false));
    let busy = {
        let ended = ended.clone();
        let mut client = Client::to(echo);
        let address = client.0.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let frame = [&20_000_u32.to_be_bytes()[..], &[7; 20_000]].concat();
            let mut answer = vec![0; frame.len()];
            // Until the gateway ends it.
            while client.0.write_all(&frame).is_ok() && std::io::Read::read_exact(&mut client.0, &mut answer).is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            ended.store(true, Ordering::Relaxed);
        });
        (address, thread)
    };
    let folder = crate::gateway::temp_dir();
    let output = std::process::Command::new(crate::quic_interop::python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/dashboard.py"))
        .args([&format!("http://{admin}/"), TOKEN, folder.to_str().unwrap()])
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let saw: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(saw["sessions"], 41);
    assert_eq!((&saw["title"], &saw["state"]), (&Value::from("Portway"), &Value::from("ready")));
    let detail = saw["detail"].as_str().unwrap();
    assert!(detail.contains(&busy.0.to_string()), "the busiest is {}: {detail}", busy.0);
    assert!(detail.contains("echo") && detail.contains("Mailbox"), "{detail}");
    assert_eq!(saw["alive_after_refusal"], true);
    assert_eq!((&saw["moved"], &saw["theme"]), (&Value::from(true), &Value::from(true)));
    assert_eq!(saw["faults"], Value::Array(Vec::new()));
    assert!(saw["config"].as_str().unwrap().contains("reloaded"), "{saw}");
    eventually("the busy client has ended", || ended.load(Ordering::Relaxed));
    busy.1.join().unwrap();
    idle.iter_mut().for_each(|client| client.echoes(b"still there"));
    // 20,000 cells, each another colour every second, in whatever machine this is.
    assert_eq!(saw["many"]["cells"], 20_000);
    assert!(saw["many"]["median_ms"].as_f64().unwrap() < 500.0, "{saw}");

    let update = std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1");
    let kept = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    for name in
        ["dashboard-1280-dark", "dashboard-1280-light", "dashboard-390-dark", "dashboard-390-light", "dashboard-20000"]
    {
        let picture = std::fs::read(folder.join(format!("{name}.png"))).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() < 200_000, "{name}: {} bytes", picture.len());
        if update {
            std::fs::create_dir_all(&kept).unwrap();
            std::fs::write(kept.join(format!("{name}.png")), picture).unwrap();
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(get(admin, "/healthz").0, 200);
}

/// What three actors look like in a browser: one whose mailbox was over half full, one that drains, one that is made
/// anew after a panic.
#[cfg(feature = "quic")]
#[test]
fn a_crowded_mailbox_a_drain_and_a_restart_are_seen() {
    use std::io::Read;

    use portway::actors::{Budget, Control, Place, Spec};
    use portway::gateway::Builder;

    use crate::gateway::Running;
    use crate::probe::{Msg, Probe, now};

    let admin = free();
    let text = format!("version = 1\n[runtime]\narbiters = 2\n[admin]\nlisten = \"{admin}\"\n");
    let config =
        portway::gateway::check::parse("test.toml", &text, &portway::gateway::check::Known::default()).unwrap();
    let running = Running::of(Builder::new().start(config).unwrap());
    let mesh = running.gateway().mesh().clone();
    let small = Spec::default().inbox(16, 1 << 16);
    let crowded = mesh.spawn(Place::On(0), small, Probe::default).unwrap();
    let draining = mesh.spawn(Place::On(0), Spec::default(), Probe::endless).unwrap();
    let restarting = mesh.supervise(Place::On(1), Spec::default(), Budget::default(), Probe::default).unwrap();
    // While it is held up, 12 of the 16 places are taken.
    let (tell, began) = std::sync::mpsc::channel();
    crowded.tell(Msg::Hold(std::time::Duration::from_millis(50), tell)).unwrap();
    began.recv_timeout(SOON).unwrap();
    (0..12).for_each(|n| crowded.tell(Msg::Note(n)).unwrap());
    draining.control(Control::Drain(now() + SOON * 12));

    let folder = crate::gateway::temp_dir();
    let mut browser = std::process::Command::new(crate::quic_interop::python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/dashboard.py"))
        .args([&format!("http://{admin}/"), TOKEN, folder.to_str().unwrap(), "marks"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut said = BufReader::new(browser.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "the browser saw the first two");
    restarting.tell(Msg::Panic).unwrap();
    let mut json = String::new();
    said.read_to_string(&mut json).unwrap();
    assert!(browser.wait().unwrap().success());
    let saw: Value = serde_json::from_str(&json).expect("JSON");
    let of = |marks: &Value, id: u64| {
        marks["cells"].as_array().unwrap().iter().find(|cell| cell["id"] == id).expect("its cell").clone()
    };
    let channels = |value: &Value| value.as_array().unwrap().iter().map(|c| c.as_i64().unwrap()).collect::<Vec<_>>();
    let near = |a: &Value, b: &Value| channels(a).iter().zip(channels(b)).all(|(a, b)| (a - b).abs() < 40);
    let still = &saw["still"];
    let (one, two, three) =
        (of(still, crowded.id().number()), of(still, draining.id().number()), of(still, restarting.id().number()));
    assert!(near(&one["edge"], &still["bad"]) && !near(&one["middle"], &still["bad"]), "a red edge: {one}");
    for other in [&two, &three] {
        assert!(!near(&other["edge"], &still["bad"]), "{other}");
    }
    let spread = |value: &Value| {
        let channels = channels(value);
        channels.iter().max().unwrap() - channels.iter().min().unwrap()
    };
    assert!(spread(&two["middle"]) < 25, "grey: {two}");
    assert!(spread(&three["middle"]) > 25, "a colour: {three}");
    // It goes on and off, and then is as before, with its restart counted.
    let flashes: Vec<Value> =
        saw["flash"].as_array().unwrap().iter().map(|m| of(m, restarting.id().number())).collect();
    let on = flashes.iter().filter(|cell| near(&cell["middle"], &still["text"])).count();
    assert!(on > 0 && on < flashes.len(), "{on} of {}: {flashes:?}", flashes.len());
    let after = of(&saw["after"], restarting.id().number());
    assert_eq!((&after["restarts"], &after["flash"]), (&1.into(), &false.into()));
    assert!(near(&after["middle"], &three["middle"]), "{after} {three}");
    std::fs::remove_dir_all(folder).unwrap();
    crowded.control(Control::Stop);
    draining.control(Control::Stop);
}
