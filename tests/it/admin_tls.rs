//! The admin listener over TLS, with curl at the other end: names, client certificates, tokens, and their reload.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::dashboard::TOKEN;
use crate::gateway::{Binary, Client, free, temp_dir};
use crate::http_upstreams::Authority;
use crate::probe::{SOON, eventually};

/// A gateway in a folder of its own with a server's certificate for `admin.test` and the authorities `clients` and
/// `others`, each with one client.
fn with_tls(admin: &str) -> (Binary, SocketAddr) {
    let dir = temp_dir();
    let (servers, clients, others) =
        (Authority::new(&dir, "servers"), Authority::new(&dir, "clients"), Authority::new(&dir, "others"));
    servers.signs("admin.test");
    clients.signs("operator");
    others.signs("stranger");
    let port = free().port();
    let text = text(&dir, port, admin);
    let binary = Binary::start(&text);
    (binary, SocketAddr::from(([127, 0, 0, 1], port)))
}

fn text(dir: &Path, port: u16, admin: &str) -> String {
    let file = |name: &str| dir.join(name).display().to_string();
    let admin = admin.replace("CLIENTS", &file("clients.pem")).replace("OTHERS", &file("others.pem"));
    format!(
        "version = 1\n[runtime]\narbiters = 2\n[admin]\nlisten = \"0.0.0.0:{port}\"\ncertificate = \"own\"\n{admin}\n\
         [[certificate]]\nname = \"own\"\ncert = {:?}\nkey = {:?}\n\
         [[listener]]\nname = \"echo\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"framed\"\nservice = \"echo\"\n",
        file("admin.test.pem"),
        file("admin.test.key")
    )
}

/// Where the files of a gateway are.
fn files(binary: &Binary) -> std::path::PathBuf {
    let text = binary.text();
    let cert = text.lines().find_map(|line| line.strip_prefix("cert = \"")).expect("a certificate");
    Path::new(cert.trim_end_matches('"')).parent().expect("a folder").to_owned()
}

/// What curl got: the status, 0 for none, and the body or what was wrong.
fn curl(binary: &Binary, at: SocketAddr, host: &str, path: &str, more: &[&str]) -> (u16, String) {
    let dir = files(binary);
    let output = Command::new("curl")
        .current_dir(&dir)
        .args(["--silent", "--show-error", "--max-time", "10", "--cacert", "servers.pem", "-w", "\n%{http_code}"])
        .args(["--resolve", &format!("{host}:{}:127.0.0.1", at.port())])
        .args(more)
        .arg(format!("https://{host}:{}{path}", at.port()))
        .output()
        .expect("curl is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().unwrap(), body.to_owned() + &String::from_utf8_lossy(&output.stderr))
}

const OPERATOR: [&str; 4] = ["--cert", "operator.pem", "--key", "operator.key"];
const STRANGER: [&str; 4] = ["--cert", "stranger.pem", "--key", "stranger.key"];

/// How often callers were refused for a reason.
fn refused(binary: &Binary, at: SocketAddr, reason: &str, who: &[&str]) -> u64 {
    let (status, metrics) = curl(binary, at, "admin.test", "/metrics", who);
    assert_eq!(status, 200, "{metrics}");
    let line = format!("portway_admin_refused_total{{listener=\"admin\",reason=\"{reason}\"}} ");
    metrics.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().expect("a number"))
}

#[test]
fn a_client_certificate_opens_an_admin_listener_for_all_and_no_other_does() {
    let (mut binary, admin) = with_tls("client_ca = \"CLIENTS\"");
    let mut neighbour = Client::to(binary.address("echo"));
    neighbour.echoes(b"x");
    binary.says("running");
    assert_eq!(curl(&binary, admin, "admin.test", "/readyz", &OPERATOR), (200, "ready\n".to_owned()));
    assert_eq!(curl(&binary, admin, "admin.test", "/api/status", &OPERATOR).0, 200);

    // Without a token the certificate is enough to change something, and it is said who did.
    let post = [&OPERATOR[..], &["-X", "POST"]].concat();
    assert_eq!(curl(&binary, admin, "admin.test", "/api/reload", &post).0, 200);
    binary.says("audit: done peer=127.0.0.1");

    let plain = |bytes: &[u8]| {
        let mut stream = TcpStream::connect_timeout(&admin, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        std::io::Write::write_all(&mut stream, bytes).unwrap();
        let mut answer = Vec::new();
        let _reset = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert!(!answer.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&answer));
    };
    for (reason, ask) in [
        ("certificate", &(|| assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &[]).0, 0)) as &dyn Fn()),
        ("certificate", &|| assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &STRANGER).0, 0)),
        ("handshake", &|| plain(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")),
        ("handshake", &|| plain(&[0xff; 2_000])),
        ("host", &|| {
            let foreign = [&OPERATOR[..], &["-H", "Host: evil.example"]].concat();
            assert_eq!(curl(&binary, admin, "admin.test", "/metrics", &foreign).0, 403);
        }),
        ("origin", &|| {
            let foreign = [&post[..], &["-H", "Origin: https://evil.example"]].concat();
            assert_eq!(curl(&binary, admin, "admin.test", "/api/reload", &foreign).0, 403);
        }),
    ] {
        let before = refused(&binary, admin, reason, &OPERATOR);
        ask();
        eventually("it is counted", || refused(&binary, admin, reason, &OPERATOR) > before);
        assert_eq!(refused(&binary, admin, reason, &OPERATOR), before + 1, "{reason}");
        neighbour.echoes(b"nothing of it is felt");
    }
    let own = format!("Origin: https://admin.test:{}", admin.port());
    let own = [&post[..], &["-H", &own]].concat();
    assert_eq!(curl(&binary, admin, "admin.test", "/api/reload", &own).0, 200);
    std::fs::remove_dir_all(files(&binary)).unwrap();
}

#[test]
fn over_tls_the_token_is_asked_for_as_ever_and_status_shows_it() {
    let (mut binary, admin) = with_tls(&format!("token = \"{TOKEN}\""));
    binary.says("running");
    let bearer = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(curl(&binary, admin, "admin.test", "/metrics", &[]).0, 401);
    assert_eq!(curl(&binary, admin, "admin.test", "/metrics", &["-H", &bearer]).0, 200);
    assert_eq!(curl(&binary, admin, "admin.test", "/api/reload", &["-X", "POST", "-H", &bearer]).0, 200);
    // Somebody who does not know the server's authority refuses it, which is the caller's affair.
    assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &["--cacert", "others.pem"]).0, 0);

    // The command line trusts the certificate that the configuration names, and no other.
    let status = binary.portway(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned() + &String::from_utf8_lossy(&status.stderr);
    assert!(status.status.success() && said.contains(", ready") && said.contains("echo"), "{said}");
    let dir = files(&binary);
    let before = binary.text();
    Authority::new(&dir, "false").signs("impostor");
    binary.rewrite(&before.replace("admin.test", "impostor"));
    let status = binary.portway(&["status"]);
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(!status.status.success() && said.contains("CERTIFICATE_VERIFY_FAILED"), "{said}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn other_terms_of_the_admin_listener_hold_from_a_reload_on() {
    let (mut binary, admin) = with_tls("control = \"control\"\nclient_ca = \"CLIENTS\"");
    let mut neighbour = Client::to(binary.address("echo"));
    neighbour.echoes(b"x");
    binary.says("running");
    // By the control socket, which asks for no certificate.
    let status = binary.portway(&["status", "--json"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let overview: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(overview["listeners"][0]["connections"], 1);

    assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &OPERATOR).0, 200);
    assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &STRANGER).0, 0);
    // A stream that was begun under the old terms ends with them.
    let dir = files(&binary);
    let mut watching = Command::new("curl")
        .current_dir(&dir)
        .args(["-sN", "--cacert", "servers.pem", "--resolve", &format!("admin.test:{}:127.0.0.1", admin.port())])
        .args(OPERATOR)
        .args(["-o", "events", &format!("https://admin.test:{}/api/events", admin.port())])
        .spawn()
        .expect("curl is installed");
    eventually("it is told", || std::fs::metadata(dir.join("events")).is_ok_and(|file| file.len() > 0));
    let before = binary.text();
    binary.rewrite(&before.replace("clients.pem", "others.pem"));
    let reloaded = binary.portway(&["reload"]);
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &OPERATOR).0, 0);
    assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &STRANGER).0, 200);
    eventually("the stream has ended", || watching.try_wait().unwrap().is_some());

    // Authorities that cannot be used change nothing.
    let said = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    binary.rewrite(&before.replace("clients.pem", "admin.test.key"));
    let refused = said(binary.portway(&["reload"]));
    assert!(refused.contains("refused") || refused.contains("cannot be used"), "{refused}");
    assert_eq!(curl(&binary, admin, "admin.test", "/healthz", &STRANGER).0, 200);
    neighbour.echoes(b"through all of it");
    std::fs::remove_dir_all(dir).unwrap();
}
