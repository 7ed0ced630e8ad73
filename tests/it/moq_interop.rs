//! Media over QUIC with a client that nobody here wrote: aiomoqt's interop client, all its cases, in both drafts, over
//! QUIC and over WebTransport. `scripts/setup test` makes its environment; where it is missing the test says so and
//! fails.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::gateway::Running;
use crate::moq::relay;

/// Cases that run when none is named, and those that must be.
const ALL: usize = 12;
const NAMED: [&str; 2] = ["fetch", "join"];

fn client() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"), PathBuf::from);
    let client = cache.join("portway/moq-peers/bin/moq-interop-client");
    assert!(
        client.exists(),
        "{} is missing (Python 3.12 or newer is needed): run `scripts/setup test`",
        client.display()
    );
    client
}

/// What the client says of a run, and which cases passed.
fn run(url: &str, draft: &str, case: Option<&str>) -> (Vec<String>, String) {
    let mut command = Command::new(client());
    command.args(["-r", url, "--draft", draft, "--tls-disable-verify"]).stdin(Stdio::null());
    if let Some(case) = case {
        command.args(["-t", case]);
    }
    let output = command.output().expect("the client runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let passed = said.lines().filter(|line| line.starts_with("ok ") && !line.contains("# SKIP"));
    (passed.map(str::to_owned).collect(), said)
}

fn all_cases(draft: &str, webtransport: bool) {
    let web = "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\ncertificate = \"local\"\n\
               [[listener.route]]\npath = \"/\"\nwebtransport = true\nservice = \"moq\"\n";
    let running = Running::start(&relay(2, web));
    let url = match webtransport {
        true => format!("https://{}/", running.address("web")),
        false => format!("moqt://{}", running.address("moq")),
    };
    let (passed, said) = run(&url, draft, None);
    assert_eq!(passed.len(), ALL, "{said}");
    for case in NAMED {
        let (passed, said) = run(&url, draft, Some(case));
        assert_eq!(passed.len(), 1, "{case}: {said}");
    }
}

#[test]
fn aiomoqt_passes_all_cases_of_draft_18_over_quic() {
    all_cases("18", false);
}

#[test]
fn aiomoqt_passes_all_cases_of_draft_20_over_quic() {
    all_cases("20", false);
}

#[test]
fn aiomoqt_passes_all_cases_of_draft_18_over_webtransport() {
    all_cases("18", true);
}

#[test]
fn aiomoqt_passes_all_cases_of_draft_20_over_webtransport() {
    all_cases("20", true);
}
