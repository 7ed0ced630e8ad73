//! HTTP/3 and WebTransport with programs that nobody here wrote: aioquic, also as one that breaks every rule of QUIC, h3 on
//! quinn, and a browser. A peer that is missing fails the test: `scripts/setup test` installs them, and quinn's program is
//! built when it is first needed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use boring::asn1::Asn1Time;
use boring::bn::BigNum;
use boring::ec::{EcGroup, EcKey};
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::PKey;
use boring::x509::extension::SubjectAlternativeName;
use boring::x509::{X509, X509NameBuilder};

use crate::gateway::{Running, temp_dir};
use crate::http::Server;
use crate::http3::{Client, PROXY, gateway};
use crate::probe::{eventually, view, wait};
use crate::quic_gateway::pem;
use crate::quic_interop::{python, quinn};
use crate::webtransport::ECHO;

/// A proxy that waits for slow peers: Python on a busy machine is late with a head after a handshake, and with taking
/// 64 MiB, and would be closed for it (0x107), which is not what is asked here.
fn patient() -> String {
    format!("[listener.http]\nhead_timeout = \"5m\"\nbody_timeout = \"5m\"\nsend_timeout = \"5m\"\n{PROXY}")
}

fn aioquic(running: &Running, case: &str, input: &[u8]) -> String {
    let address = running.address("web");
    let mut child = Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/aioquic_http3.py"))
        .arg(pem("good.pem"))
        .args([&address.ip().to_string(), &address.port().to_string(), "localhost", case])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the peer runs");
    child.stdin.take().expect("piped").write_all(input).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.starts_with("ok"), "{case}: {said}\n{complaint}");
    said
}

fn empty(running: &Running) {
    eventually("no connection is left", || view(running.gateway().mesh()).of_kind("quic").count() == 0);
    assert_eq!(running.totals().family("http3_errors"), 0);
}

#[test]
fn aioquic_makes_requests_at_what_alt_svc_names() {
    let server = Server::start();
    let running = gateway(&server, &patient());
    let url = format!("https://{}/hello", running.address("web"));
    let head = Command::new("curl").args(["-sk", "-D", "-", "-o", "/dev/null", &url]).output().expect("curl");
    let said = aioquic(&running, "alternative", &head.stdout);
    assert!(said.contains("settings="), "{said}");
    empty(&running);
    assert_eq!(running.totals().get("http_requests", "web", "2xx"), 305);
}

#[test]
fn aioquic_opens_sessions() {
    let server = Server::start();
    let running = gateway(&server, &format!("{ECHO}{PROXY}"));
    let said = aioquic(&running, "webtransport", b"");
    assert!(said.contains("sessions=2"), "{said}");
    empty(&running);
}

/// A certificate that browsers take by its hash: of P-256, for at most fourteen days.
pub(crate) struct Short {
    pub(crate) folder: PathBuf,
    pub(crate) hash: [u8; 32],
    key_hash: String,
}

impl Short {
    pub(crate) fn make() -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("the curve");
        let key = PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key");
        let mut name = X509NameBuilder::new().expect("a name");
        name.append_entry_by_text("CN", "localhost").expect("a name");
        let name = name.build();
        let mut builder = X509::builder().expect("a certificate");
        builder.set_version(2).expect("set");
        let serial = BigNum::from_u32(7).and_then(|number| number.to_asn1_integer()).expect("a number");
        builder.set_serial_number(&serial).expect("set");
        builder.set_subject_name(&name).expect("set");
        builder.set_issuer_name(&name).expect("set");
        builder.set_pubkey(&key).expect("set");
        builder.set_not_before(&Asn1Time::days_from_now(0).expect("now")).expect("set");
        builder.set_not_after(&Asn1Time::days_from_now(10).expect("then")).expect("set");
        let names =
            SubjectAlternativeName::new().dns("localhost").ip("127.0.0.1").build(&builder.x509v3_context(None, None));
        builder.append_extension(&names.expect("names")).expect("set");
        builder.sign(&key, MessageDigest::sha256()).expect("signed");
        let certificate = builder.build();
        let folder = temp_dir();
        std::fs::write(folder.join("cert.pem"), certificate.to_pem().expect("PEM")).expect("written");
        std::fs::write(folder.join("key.pem"), key.private_key_to_pem_pkcs8().expect("PEM")).expect("written");
        let hash = boring::sha::sha256(&certificate.to_der().expect("DER"));
        let public = key.public_key_to_der().expect("DER");
        Self { folder, hash, key_hash: boring::base64::encode_block(&boring::sha::sha256(&public)) }
    }

    pub(crate) fn cert(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    pub(crate) fn text(&self) -> String {
        let (cert, key) = (self.folder.join("cert.pem"), self.folder.join("key.pem"));
        format!("[[certificate]]\nname = \"local\"\ncert = {cert:?}\nkey = {key:?}\n")
    }
}

/// Serves a page, and hears what it reports.
pub(crate) struct Pages {
    pub(crate) address: SocketAddr,
    pub(crate) reports: Receiver<String>,
}

impl Pages {
    pub(crate) fn serve(page: impl Fn() -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let (tell, reports) = channel();
        let page = std::sync::Arc::new(page);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (tell, page) = (tell.clone(), page.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.expect("a connection"));
                    loop {
                        let (mut first, mut line) = (String::new(), String::new());
                        if !matches!(reader.read_line(&mut first), Ok(1..)) {
                            return;
                        }
                        while line != "\r\n" {
                            line.clear();
                            if !matches!(reader.read_line(&mut line), Ok(1..)) {
                                return;
                            }
                        }
                        let path = first.split(' ').nth(1).unwrap_or_default();
                        let body = if path == "/page" { page() } else { String::new() };
                        if let Some(report) = path.strip_prefix("/done?") {
                            let _last = tell.send(report.replace("%20", " "));
                        }
                        let head = format!(
                            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if reader.get_mut().write_all(head.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, reports }
    }

    pub(crate) fn report(&self, browser: &Browser) -> String {
        match self.reports.recv_timeout(Duration::from_secs(50)) {
            Ok(report) => report,
            Err(_) => panic!("the page said nothing: {}", browser.complaints()),
        }
    }
}

/// A browser without a window; it ends with this.
pub(crate) struct Browser {
    pub(crate) child: Child,
    pub(crate) folder: PathBuf,
}

impl Browser {
    pub(crate) fn open(url: &str, flags: &[String]) -> Self {
        let folder = temp_dir();
        let child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
            .args([
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--enable-logging=stderr",
            ])
            .arg(format!("--user-data-dir={}", folder.display()))
            .args(flags)
            .arg("--remote-debugging-port=0")
            .arg(url)
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("stderr")).expect("a file"))
            .spawn()
            .expect("chromium runs: `scripts/setup test` installs it");
        Self { child, folder }
    }

    pub(crate) fn complaints(&self) -> String {
        let mut text = String::new();
        let file = std::fs::File::open(self.folder.join("stderr"));
        let _read = file.and_then(|mut file| file.read_to_string(&mut text));
        text
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

const SESSION: &str = r#"<!doctype html><title>echo</title><script>
(async () => {
  const say = (what) => fetch("/done?" + what);
  try {
    const hash = new Uint8Array([HASH]);
    const wt = new WebTransport("https://127.0.0.1:PORT/wt", {serverCertificateHashes: [{algorithm: "sha-256", value: hash}]});
    await wt.ready;
    const bytes = new TextEncoder(), read = async (stream) => await new Response(stream).text();
    const write = async (stream, data) => { const w = stream.getWriter(); await w.write(data); await w.close(); };
    const big = new Uint8Array(300000).map((_, n) => n % 251);
    const one = await wt.createBidirectionalStream();
    const [back] = await Promise.all([read(one.readable), write(one.writable, bytes.encode("hello"))]);
    const two = await wt.createBidirectionalStream();
    const [all] = await Promise.all([new Response(two.readable).arrayBuffer(), write(two.writable, big)]);
    const same = all.byteLength === big.length && new Uint8Array(all).every((byte, n) => byte === n % 251);
    await write(await wt.createUnidirectionalStream(), bytes.encode("one way"));
    const {value: incoming} = await wt.incomingUnidirectionalStreams.getReader().read();
    const way = await read(incoming);
    const out = (wt.datagrams.createWritable ? wt.datagrams.createWritable() : wt.datagrams.writable).getWriter();
    const reader = wt.datagrams.readable.getReader();
    let datagram;
    for (let n = 0; n < 20 && !datagram; n++) {
      await out.write(bytes.encode("ping"));
      datagram = await Promise.race([reader.read(), new Promise((done) => setTimeout(done, 500))]);
    }
    wt.close({closeCode: 7, reason: "done"});
    await wt.closed;
    await say(`${back}|${same}|${way}|${new TextDecoder().decode(datagram?.value)}`);
  } catch (error) {
    await say("failed: " + error);
  }
})();
</script>"#;

#[test]
fn a_browser_opens_a_session_by_the_hash_of_a_certificate() {
    let short = Short::make();
    let port = crate::gateway::free().port();
    let hash = short.hash.map(|byte| byte.to_string()).join(",");
    let pages = Pages::serve(move || SESSION.replace("HASH", &hash).replace("PORT", &port.to_string()));
    let text = format!(
        "version = 1\n[runtime]\narbiters = 2\n{}\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"http\"\ncertificate = \"local\"\n{ECHO}",
        short.text()
    );
    let running = Running::start(&text);
    let browser = Browser::open(&format!("http://{}/page", pages.address), &[]);
    assert_eq!(pages.report(&browser), "hello|true|one way|ping");
    drop(browser);
    assert_eq!(running.totals().get("http_route_requests", "web/wt", "2xx"), 1);
    assert_eq!(running.totals().family("http3_errors"), 0);
}

/// Tells what the page of the example says, once it has said its last.
const TELLS: &str = r#"<script>
new MutationObserver(() => {
  const said = document.getElementById("out").textContent;
  if (/closed|failed/.test(said)) fetch("/done?" + said.trim().replaceAll("\n", "|"));
}).observe(document.getElementById("out"), {childList: true});
</script>"#;

#[test]
fn the_page_of_the_example_talks_to_its_echo() {
    let short = Short::make();
    let port = crate::gateway::free().port();
    let hash = short.hash.map(|byte| byte.to_string()).join(", ");
    let page = include_str!("../../examples/webtransport_echo.html");
    let page = page.replace("HASH", &hash).replace("PORT", &port.to_string()) + TELLS;
    let pages = Pages::serve(move || page.clone());
    let echo = ECHO.replace("/wt", "/echo");
    let text = format!(
        "version = 1\n[runtime]\narbiters = 2\n{}\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"http\"\ncertificate = \"local\"\n{echo}",
        short.text()
    );
    let running = Running::start(&text);
    let browser = Browser::open(&format!("http://{}/page", pages.address), &[]);
    let said = "connected|hello on a stream|hello one way|hello in a datagram|closed";
    assert_eq!(pages.report(&browser), said);
    drop(browser);
    assert_eq!(running.totals().family("http3_errors"), 0);
}

const PAGE: &str = r#"<!doctype html><title>page</title><script>
(async () => {
  const body = "x".repeat(200000);
  const answer = await fetch("/echo", {method: "POST", body});
  const same = await answer.text() === body;
  const all = await Promise.all([...Array(50)].map(async (_, n) => (await fetch("/hello?" + n)).status));
  const used = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const protocols = [...new Set(used.map((entry) => entry.nextHopProtocol))].join(",");
  await fetch(`/done?${same}|${all.every((status) => status === 200)}|${protocols}`);
})();
</script>"#;

#[test]
fn a_browser_loads_a_page_over_http3() {
    let short = Short::make();
    let server = Server::start();
    let pages = Pages::serve(|| PAGE.to_owned());
    let port = crate::gateway::free().port();
    let text = format!(
        "version = 1\n[runtime]\narbiters = 2\n{}\
         [[upstream]]\nname = \"pages\"\nservers = [\"{}\"]\n[[upstream]]\nname = \"app\"\nservers = [\"{}\"]\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"http\"\ncertificate = \"local\"\n\
         [[listener.route]]\npath_regex = \"^/(page|done|favicon.ico)\"\nupstream = \"pages\"\n{PROXY}",
        short.text(),
        pages.address,
        server.address
    );
    let running = Running::start(&text);
    let flags = [
        format!("--origin-to-force-quic-on=127.0.0.1:{port}"),
        format!("--ignore-certificate-errors-spki-list={}", short.key_hash),
    ];
    let browser = Browser::open(&format!("https://127.0.0.1:{port}/page"), &flags);
    assert_eq!(pages.report(&browser), "true|true|h3");
    drop(browser);
    assert!(running.totals().get("http_requests", "web", "2xx") >= 53);
    assert_eq!(running.totals().family("http3_errors"), 0);
    assert!(TcpStream::connect(running.address("web")).is_ok(), "TCP was there to be chosen");
}

/// h3 on quinn and rustls as the client; a neighbour works before and after.
fn h3_quinn(case: &str, check: impl FnOnce(&Running, &Server)) {
    // It may have to be built first, which takes longer than a neighbour may be idle.
    let program = quinn();
    let server = Server::start();
    let running = gateway(&server, &patient());
    let neighbour = wait(Client::to(running.address("web")));
    wait(neighbour.works());
    let output = Command::new(program)
        .arg("http3")
        .arg(pem("good.pem"))
        .args([&running.address("web").to_string(), "localhost", case])
        .stdin(Stdio::null())
        .output()
        .expect("the peer runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.starts_with("ok"), "{case}: {said}\n{complaint}");
    check(&running, &server);
    wait(neighbour.works());
    neighbour.connection.close(0x100, "");
    empty(&running);
    assert_eq!(running.totals().family("actor_panics"), 0);
}

#[test]
fn h3_quinn_makes_requests() {
    h3_quinn("requests", |running, _| {
        running.counts("http_requests", "web", "2xx", 201);
        assert_eq!(running.totals().family("http3_refused"), 0);
    });
}

#[test]
fn h3_quinn_sends_and_gets_bodies_and_trailers() {
    h3_quinn("bodies", |running, server| {
        running.counts("http_requests", "web", "2xx", 6);
        assert_eq!(server.heads().iter().filter(|head| head.starts_with("POST /echo")).count(), 4);
    });
}

#[test]
fn h3_quinn_gets_heads_and_is_refused_too_large_ones() {
    h3_quinn("heads", |running, server| {
        running.counts("http3_refused", "web", "head_too_large", 1);
        assert_eq!(running.totals().family("http3_refused"), 1);
        assert!(server.heads().iter().all(|head| !head.contains("x-1: ")), "no server sees it");
    });
}

#[test]
fn what_h3_quinn_gives_up_is_given_up_at_the_server() {
    h3_quinn("given_up", |running, server| {
        let asked = || server.heads().iter().filter(|head| head.contains(" /never?")).count();
        eventually("the server is left by each", || server.gone.load(Ordering::SeqCst) == asked());
        running.counts("http3_refused", "web", "given_up", 2);
        assert_eq!(running.totals().family("http3_refused"), 2);
    });
}

#[test]
fn what_a_server_broke_off_is_not_whole_to_h3_quinn() {
    h3_quinn("broken_off", |running, _| {
        running.counts("http_broken", "web", "truncated", 2);
        running.counts("http_requests", "web", "broken", 2);
    });
}

/// The code that each case is closed with (RFC 9000, section 20; TLS alerts from 0x100 on). `nothing`: the server does not
/// mind, or its close comes under keys that the client has not got yet; docs/interop.md says which.
const FORBIDDEN: &[(&str, &str)] = &[
    ("original_destination_id_of_a_client", "nothing"),
    ("stateless_reset_token_of_a_client", "nothing"),
    ("preferred_address_of_a_client", "nothing"),
    ("retry_source_id_of_a_client", "nothing"),
    ("no_initial_source_id", "nothing"),
    ("payload_too_small", "nothing"),
    ("delay_exponent_too_large", "nothing"),
    ("delay_too_large", "nothing"),
    ("no_transport_parameters", "0x16d"),
    ("no_common_protocol", "0x178"),
    // Early data is off: a packet of it is none.
    ("crypto_in_early_data", "nothing"),
    ("reserved_bits_handshake", "nothing"),
    ("path_challenge_in_the_handshake", "0xa"),
    ("key_update_in_the_handshake", "0x10a"),
    ("end_of_early_data", "0x10a"),
    ("stream_beyond_its_window", "0x3"),
    ("unknown_frame", "0x7"),
    ("no_frames", "0xa"),
    ("reserved_bits_short", "nothing"),
    ("reset_of_a_stream_only_the_server_writes", "0x5"),
    ("stop_of_a_stream_that_is_not_there", "0x5"),
    ("stop_of_a_stream_only_the_client_writes", "0x5"),
    ("max_stream_data_of_a_stream_that_is_not_there", "0x5"),
    ("max_stream_data_of_a_stream_only_the_client_writes", "0x5"),
    ("blocked_on_a_stream_only_the_server_writes", "nothing"),
    ("data_on_a_stream_only_the_server_writes", "0x5"),
    ("stream_beyond_its_limit", "0x4"),
    ("one_way_stream_beyond_its_limit", "0x4"),
    ("max_streams_beyond_all", "0x7"),
    ("streams_blocked_beyond_all", "0x7"),
    ("new_id_that_retires_itself", "0x7"),
    ("new_id_of_no_bytes", "0x7"),
    ("new_token_of_a_client", "0xa"),
    ("handshake_done_of_a_client", "0xa"),
    ("key_update_of_tls", "0x10a"),
];
/// Those that the server does not mind.
const BORNE: u64 = 4;

#[test]
fn what_quic_forbids_costs_its_connection() {
    let server = Server::start();
    let running = gateway(&server, &patient());
    let address = running.address("web");
    let neighbour = wait(Client::to(address));
    wait(neighbour.works());
    let over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        // The neighbour goes on meanwhile.
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                wait(neighbour.works());
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let output = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/aioquic_conformance.py"))
            .arg(pem("good.pem"))
            .args([&address.ip().to_string(), &address.port().to_string(), "localhost", "h3"])
            .stdin(Stdio::null())
            .output()
            .expect("the peer runs");
        over.store(true, Ordering::SeqCst);
        output
    });
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let got: Vec<(&str, &str)> = said.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(got, FORBIDDEN, "{complaint}");
    let closed = || running.totals().get("quic_connections_closed", "web", "protocol_error");
    let expected = FORBIDDEN.len() as u64 - BORNE;
    // At least once each: a client that has not seen the close begins anew.
    eventually("each was closed", || closed() >= expected);
    wait(neighbour.works());
    assert_eq!(running.totals().family("http3_errors"), 0);
}
