//! Logs of connections in the qlog format: one file each, bounded, and never a reason for a connection to fail.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use portway::transports::quic::Qlog;

use crate::probe::{eventually, wait};
use crate::quic::{Pair, echo, round_trip};

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
    for file in files {
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        let events = events(&file);
        assert_eq!(events[0]["trace"]["vantage_point"]["type"], "server", "{}", events[0]);
        let sent = events.iter().filter(|event| event["name"].as_str().is_some_and(|n| n.ends_with("packet_sent")));
        assert!(sent.count() > 10, "{} events", events.len());
    }
    assert_eq!(pair.counter("quic_qlog_files", "q", ""), 3);
    pair.end();
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
        let text = crate::quic_gateway::listening(1, crate::quic_gateway::ECHO);
        let text = format!("{text}[listener.quic]\nqlog = {folder:?}\n");
        portway::gateway::check::parse("c.toml", &text, &portway::gateway::check::Known::default())
    };
    let there = std::env::temp_dir();
    assert!(judged(&there).is_ok());
    let missing = there.join("portway-no-such-folder");
    let report = judged(&missing).expect_err("it is not there").render(false);
    assert!(report.contains("`qlog` is not a folder") && report.contains("make the folder"), "{report}");
}
