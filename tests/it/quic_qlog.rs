//! Logs of connections in the qlog format: one file each, bounded, and never a reason for a connection to fail.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use portway::gateway::check::{Known, parse};
use portway::transports::quic::{ClientSettings, Qlog};

use crate::gateway::Running;
use crate::probe::{SOON, eventually, wait};
use crate::quic::{Pair, echo, round_trip};
use crate::quic_gateway::{ECHO, listening, pem};

/// A folder of its own for a test, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portway-qlog-{name}-{}", std::process::id()));
        let _before = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.0).expect("readable").map(|entry| entry.expect("an entry").path()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn logged(settings: Qlog) -> Pair {
    Pair::with(2, "127.0.0.1:0", echo(), |server| server.transport.qlog = Some(settings), |_| ())
}

fn connects(pair: &Pair, times: usize, bytes: usize) {
    wait(async {
        for _ in 0..times {
            let connection = pair.connect().await;
            round_trip(&connection, Bytes::from(vec![1; bytes])).await;
            connection.close(0, "");
            connection.join().await;
        }
    });
    eventually("all have ended", || pair.actors() == 0);
}

/// The events of a log: JSON texts, each behind a record separator (RFC 7464).
fn events(file: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(file).expect("text");
    let records = text.split('\u{1e}').filter(|record| !record.trim().is_empty());
    records.map(|record| serde_json::from_str(record).unwrap_or_else(|error| panic!("{error}: {record}"))).collect()
}

#[test]
fn each_connection_has_a_file_that_says_what_happened() {
    let folder = Folder::new("each");
    let pair = logged(Qlog::new(&folder.0));
    connects(&pair, 3, 50_000);
    pair.server.stop();
    eventually("the writer has ended", || crate::probe::view(&pair.mesh).of_kind("quic_qlog").count() == 0);
    let files = folder.files();
    assert_eq!(files.len(), 3);
    files.iter().for_each(|file| is_log_of(file, "server"));
    assert_eq!(pair.counter("quic_qlog_files", "q", ""), 3);
    pair.end();
}

/// Whether a file is the whole log of one end of a connection that sent something.
fn is_log_of(file: &Path, role: &str) {
    assert_eq!(std::fs::metadata(file).expect("there").permissions().mode() & 0o777, 0o600);
    let events = events(file);
    assert_eq!(events[0]["trace"]["vantage_point"]["type"], role, "{}", events[0]);
    let sent = events.iter().filter(|event| event["name"].as_str().is_some_and(|n| n.ends_with("packet_sent")));
    assert!(sent.count() > 10, "{} events", events.len());
}

#[test]
fn connections_of_a_client_have_logs_as_well() {
    let (all, some) = (Folder::new("client"), Folder::new("handle"));
    let client = |client: &mut ClientSettings| client.transport.qlog = Some(Qlog::new(&all.0));
    let mut pair = Pair::with(2, "127.0.0.1:0", echo(), |_| (), client);
    connects(&pair, 2, 50_000);
    // Through this handle they go elsewhere, under another name.
    let other = pair.client.logged(&"some".into(), Qlog::new(&some.0)).expect("a log");
    let first = std::mem::replace(&mut pair.client, other);
    connects(&pair, 3, 50_000);
    pair.client.end_log();
    eventually("its writer has ended", || crate::probe::view(&pair.mesh).of_kind("quic_qlog").count() == 1);
    pair.client = first;
    connects(&pair, 1, 50_000);
    pair.client.stop();
    eventually("the writer has ended", || crate::probe::view(&pair.mesh).of_kind("quic_qlog").count() == 0);
    for (folder, scope, count) in [(&all, "c", 3), (&some, "some", 3)] {
        let files = folder.files();
        assert_eq!((files.len(), pair.counter("quic_qlog_files", scope, "")), (count, count as u64));
        files.iter().for_each(|file| is_log_of(file, "client"));
    }
    pair.end();
}

/// A gateway logs what it says to servers over QUIC, until it is told not to.
#[test]
fn connections_to_upstreams_have_logs() {
    let folder = Folder::new("upstream");
    let far = Running::start(&listening(1, ECHO));
    let text = |qlog: &str| {
        format!(
            "version = 1\n[runtime]\narbiters = 1\n[[upstream]]\nname = \"far\"\nservers = [\"quic://{}\"]\n\
             [upstream.tls]\nca = {:?}\nname = \"localhost\"\nalpn = \"echo\"\n{qlog}\
             [[listener]]\nname = \"in\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"relay\"\nupstream = \"far\"\n",
            far.address("q"),
            pem("good.pem"),
        )
    };
    let near = Running::start(&text(&format!("qlog = {:?}\n", folder.0)));
    let ask = || {
        let mut stream = std::net::TcpStream::connect(near.address("in")).expect("connected");
        stream.set_read_timeout(Some(SOON)).expect("set");
        stream.write_all(&[7; 50_000]).expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("read");
        assert!(back == [7; 50_000]);
    };
    ask();
    near.counts("quic_qlog_files", "far", "", 1);
    let without = parse("n.toml", &text(""), &Known::default()).expect("right");
    near.gateway().reload(without).expect("applied");
    let writers = || crate::probe::view(near.gateway().mesh()).of_kind("quic_qlog").count();
    eventually("its writer has ended with the connection", || writers() == 0);
    let [file] = &*folder.files() else { panic!("one connection, one file") };
    is_log_of(file, "client");
    ask();
    near.counts("quic_qlog_files", "far", "", 1);
    assert_eq!(folder.files().len(), 1);
}

#[test]
fn a_log_ends_at_its_bound_and_only_so_many_are_written() {
    let folder = Folder::new("bounds");
    let pair = logged(Qlog { bytes: 20_000, files: 2, ..Qlog::new(&folder.0) });
    connects(&pair, 4, 200_000);
    let sizes = || folder.files().iter().map(|f| std::fs::metadata(f).expect("there").len()).collect::<Vec<_>>();
    assert_eq!(
        pair.counter("quic_qlog_lost", "q", "size"),
        2,
        "{:?} {:?}",
        sizes(),
        crate::probe::view(&pair.mesh).totals
    );
    assert_eq!(pair.counter("quic_qlog_lost", "q", "files"), 2);
    eventually("written", || pair.counter("quic_qlog_files", "q", "") == 2);
    assert!(folder.files().iter().all(|file| std::fs::metadata(file).expect("there").len() <= 20_000));
    pair.end();
}

#[test]
fn a_folder_that_is_not_there_costs_the_log_alone() {
    let folder = Folder::new("missing");
    let pair = logged(Qlog::new(folder.0.join("nowhere")));
    connects(&pair, 1, 100_000);
    eventually("counted", || pair.counter("quic_qlog_lost", "q", "open") == 1);
    assert_eq!(pair.counter("quic_connections_closed", "q", "peer_closed"), 1);
    pair.end();
}

#[test]
fn a_configuration_names_a_folder_that_is_there() {
    let judged = |folder: &Path| {
        let text = listening(1, ECHO);
        let text = format!("{text}[listener.quic]\nqlog = {folder:?}\n");
        parse("c.toml", &text, &Known::default())
    };
    let there = std::env::temp_dir();
    assert!(judged(&there).is_ok());
    let missing = there.join("portway-no-such-folder");
    let report = judged(&missing).expect_err("it is not there").render(false);
    assert!(report.contains("`qlog` is not a folder") && report.contains("make the folder"), "{report}");
    // Of servers over TCP there is nothing to log.
    let text = format!(
        "version = 1\n[[upstream]]\nname = \"app\"\nservers = [\"127.0.0.1:1\"]\n[upstream.tls]\nqlog = {there:?}\n\
         [[listener]]\nname = \"h\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\n[[listener.route]]\nupstream = \"app\"\n"
    );
    let report = parse("c.toml", &text, &Known::default()).expect_err("over TCP").render(false);
    assert!(report.contains("`qlog` is for servers over QUIC"), "{report}");
}
