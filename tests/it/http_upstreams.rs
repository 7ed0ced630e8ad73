//! HTTP to servers that nobody here wrote: nginx over TLS, asking for certificates, over HTTP/2; and what is refused of
//! a server that is not who it should be.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::gateway::{Running, free, temp_dir};
use crate::http::{Client, Server, config, header};
use crate::probe::{eventually, view};

/// An authority, and certificates that it signed, as files.
pub(crate) struct Authority {
    pub(crate) dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), cert.pem()).unwrap();
        Self { dir: dir.to_owned(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn signs(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.dir.join(format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(self.dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// nginx with a port for each way to be spoken to.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) dir: PathBuf,
    /// TLS and HTTP/2 or 1.1, for `a.test` and `b.test`.
    pub(crate) both: u16,
    /// TLS and HTTP/1.1 alone, for clients with a certificate.
    pub(crate) mutual: u16,
    /// HTTP/2 without TLS.
    pub(crate) clear: u16,
}

impl Nginx {
    pub(crate) fn start() -> Self {
        let dir = temp_dir();
        let authority = Authority::new(&dir, "ca");
        Authority::new(&dir, "other-ca");
        for name in ["a.test", "b.test", "client.test"] {
            authority.signs(name);
        }
        let [both, mutual, clear] = [(); 3].map(|()| free().port());
        let answer = "default_type text/plain; location / { return 200 \
                      \"$server_protocol|$ssl_server_name|$ssl_client_verify|$host\"; }";
        let named = |name: &str| {
            format!(
                "server {{ listen 127.0.0.1:{both} ssl http2; server_name {name}; ssl_certificate {name}.pem; \
                 ssl_certificate_key {name}.key; {answer} }}"
            )
        };
        let text = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{}}\n\
             http {{ access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; \
             uwsgi_temp_path t4; scgi_temp_path t5;\n{}\n{}\n\
             server {{ listen 127.0.0.1:{mutual} ssl; ssl_certificate a.test.pem; ssl_certificate_key a.test.key; \
             ssl_client_certificate ca.pem; ssl_verify_client on; {answer} }}\n\
             server {{ listen 127.0.0.1:{clear} http2; {answer} }} }}\n",
            named("a.test"),
            named("b.test")
        );
        std::fs::write(dir.join("nginx.conf"), text).unwrap();
        let child = Command::new("nginx")
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed: run `scripts/setup test`");
        let nginx = Self { child, dir, both, mutual, clear };
        for port in [both, mutual, clear] {
            eventually("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
        nginx
    }

    /// A gateway in front of one of its ports.
    fn behind(&self, port: u16, tls: &str, http: &str) -> Running {
        let tls = if tls.is_empty() { String::new() } else { format!("[upstream.tls]\n{tls}\n") };
        let certificate = format!(
            "[[certificate]]\nname = \"client\"\ncert = {:?}\nkey = {:?}\n",
            self.dir.join("client.test.pem"),
            self.dir.join("client.test.key")
        );
        let upstream = format!("[upstream.http]\n{http}\n{tls}[[listener]]");
        let text = config(([127, 0, 0, 1], port).into(), "", "").replacen("[[listener]]", &upstream, 1) + &certificate;
        Running::start(&text)
    }

    fn ca(&self) -> String {
        format!("ca = {:?}", self.dir.join("ca.pem"))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _over = self.child.kill();
        let _over = self.child.wait();
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

fn answer(gateway: &Running) -> (u16, String) {
    let (status, _, body) = Client::to(gateway.address("web")).get("/");
    (status, String::from_utf8(body).unwrap())
}

#[test]
fn servers_prove_who_they_are() {
    let nginx = Nginx::start();
    let gateway = nginx.behind(nginx.both, &format!("{}\nname = \"a.test\"", nginx.ca()), "");
    assert_eq!(answer(&gateway), (200, "HTTP/1.1|a.test|NONE|a.example".to_owned()));
    let gateway = nginx.behind(nginx.both, &format!("{}\nname = \"b.test\"", nginx.ca()), "");
    assert_eq!(answer(&gateway), (200, "HTTP/1.1|b.test|NONE|a.example".to_owned()));
    let other = format!("ca = {:?}", nginx.dir.join("other-ca.pem"));
    for (tls, why) in [
        (format!("{}\nname = \"c.test\"", nginx.ca()), "another name"),
        // Its address is no name of its certificate.
        (nginx.ca(), "the address"),
        (format!("{other}\nname = \"a.test\""), "another authority"),
        ("name = \"a.test\"".to_owned(), "the authorities of the system"),
    ] {
        let gateway = nginx.behind(nginx.both, &tls, "");
        let (status, head, _) = Client::to(gateway.address("web")).get("/");
        assert_eq!(status, 502, "{why}: {head}");
        // Once, and as often again as `retries` allows.
        gateway.counts("http_failures", "app", "handshake", 3);
        gateway.counts("http_retries", "app", "handshake", 2);
    }
}

#[test]
fn versions_are_agreed_on_or_known() {
    let nginx = Nginx::start();
    let tls = format!("{}\nname = \"a.test\"", nginx.ca());
    let spoken = |port: u16, tls: &str, http: &str| {
        let (status, body) = answer(&nginx.behind(port, tls, http));
        if status == 200 { body.split('|').next().unwrap().to_owned() } else { status.to_string() }
    };
    assert_eq!(spoken(nginx.both, &tls, "version = \"1.1\""), "HTTP/1.1");
    assert_eq!(spoken(nginx.both, &tls, "version = \"2\""), "HTTP/2.0");
    assert_eq!(spoken(nginx.both, &tls, "version = \"auto\""), "HTTP/2.0");
    assert_eq!(spoken(nginx.clear, "", "version = \"2\""), "HTTP/2.0");
    let shown = format!("{tls}\ncertificate = \"client\"");
    assert_eq!(spoken(nginx.mutual, &shown, "version = \"auto\""), "HTTP/1.1");
    assert_eq!(spoken(nginx.mutual, &shown, "version = \"2\""), "502", "it does not speak HTTP/2");
}

#[test]
fn certificates_are_shown_to_servers_that_ask() {
    let nginx = Nginx::start();
    let tls = format!("{}\nname = \"a.test\"", nginx.ca());
    assert_eq!(answer(&nginx.behind(nginx.mutual, &tls, "")).0, 400, "nginx wants one");
    let shown = answer(&nginx.behind(nginx.mutual, &format!("{tls}\ncertificate = \"client\""), ""));
    assert_eq!(shown, (200, "HTTP/1.1|a.test|SUCCESS|a.example".to_owned()));
}

#[test]
fn many_requests_share_a_connection_of_http2() {
    let nginx = Nginx::start();
    let gateway = nginx.behind(nginx.both, &format!("{}\nname = \"a.test\"", nginx.ca()), "version = \"auto\"");
    assert_eq!(answer(&gateway).0, 200);
    let mut clients: Vec<_> = (0..50).map(|_| Client::to(gateway.address("web"))).collect();
    for _ in 0..5 {
        clients.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"));
        for client in &mut clients {
            assert_eq!(client.answer().2, b"HTTP/2.0|a.test|NONE|a.test");
        }
    }
    let seen = view(gateway.gateway().mesh());
    // One for each arbiter; which of them carried the first request decides about another at the start.
    assert!((1..=3).contains(&seen.of_kind("http_upstream").count()), "{}", seen.of_kind("http_upstream").count());
}

#[test]
fn a_server_that_comes_gets_its_share_little_by_little() {
    let (old, address) = (Server::start(), free());
    let gateway = Running::start(&format!(
        "version = 1\n[runtime]\narbiters = 1\n\
         [[upstream]]\nname = \"app\"\nservers = [\"{}\", \"{address}\"]\n\
         [upstream.health]\ncheck = \"tcp\"\ninterval = \"100ms\"\nhealthy_after = 1\nunhealthy_after = 1\n\
         slow_start = \"10m\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[listener.route]]\nupstream = \"app\"\n",
        old.address
    ));
    eventually("it is found down", || gateway.totals().get("upstream_checks", "app", "failed") > 0);
    let mut client = Client::to(gateway.address("web"));
    (0..20).for_each(|_| client.works());
    assert_eq!(old.heads().len(), 20);
    let new = Server::on(TcpListener::bind(address).unwrap());
    eventually("it is asked as well", || {
        client.works();
        !new.heads().is_empty()
    });
    let before = (old.heads().len(), new.heads().len());
    (0..400).for_each(|_| client.works());
    let (old, new) = (old.heads().len() - before.0, new.heads().len() - before.1);
    assert_eq!(old + new, 400);
    // Half of them would be its share; it gets a tenth of that, or a little more by chance.
    assert!((4..=80).contains(&new), "{new}");
    assert_eq!(gateway.totals().family("http_failures"), 0);
}

#[test]
fn checks_speak_what_their_servers_speak() {
    let nginx = Nginx::start();
    let tls = format!("{}\nname = \"a.test\"", nginx.ca());
    let check = "[upstream.health]\ncheck = \"http\"\ninterval = \"100ms\"\nunhealthy_after = 1\nhealthy_after = 1";
    for (port, tls, version) in
        [(nginx.both, &*tls, "version = \"auto\""), (nginx.both, &tls, ""), (nginx.clear, "", "version = \"2\"")]
    {
        let gateway = nginx.behind(port, tls, &format!("{version}\n{check}"));
        eventually("two good checks", || gateway.totals().get("upstream_checks", "app", "ok") >= 2);
        assert_eq!(gateway.totals().get("upstream_checks", "app", "failed"), 0);
        assert_eq!(answer(&gateway).0, 200);
    }
    let wrong = format!("{}\nname = \"c.test\"\n{check}", nginx.ca());
    let gateway = nginx.behind(nginx.both, &wrong, "");
    eventually("a failed check", || gateway.totals().get("upstream_checks", "app", "failed") >= 2);
    assert_eq!(answer(&gateway).0, 503, "it is taken for down");
}

/// A gateway as the server: HTTP/2 with bodies and trailers in both directions.
#[test]
fn bodies_and_trailers_pass_over_http2_to_servers() {
    let server = Server::start();
    let certificate = "[[certificate]]\nname = \"local\"\ngenerate = [\"localhost\"]\n";
    let inner = Running::start(&(config(server.address, "certificate = \"local\"", "") + certificate));
    let dir = temp_dir();
    let pem = dir.join("inner.pem");
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", &inner.address("web").to_string(), "-showcerts"])
        .stdin(Stdio::null())
        .output()
        .expect("openssl runs");
    let shown = String::from_utf8(shown.stdout).unwrap();
    let from = shown.find("-----BEGIN CERTIFICATE-----").expect("a certificate");
    let end = shown.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
    std::fs::write(&pem, &shown[from..end]).unwrap();
    let upstream =
        format!("[upstream.http]\nversion = \"2\"\n[upstream.tls]\nca = {pem:?}\nname = \"localhost\"\n[[listener]]");
    let outer = Running::start(&config(inner.address("web"), "", "").replacen("[[listener]]", &upstream, 1));
    let mut client = Client::to(outer.address("web"));
    let body = "x".repeat(300_000);
    client.send(format!("POST /echo HTTP/1.1\r\nhost: a.example\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    let (status, _, back) = client.answer();
    assert_eq!((status, back.len()), (200, body.len()));
    client.send("POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(client.answer().2, b"abc");
    client.send("GET /chunks HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n");
    let text = client.until("0\r\nx-end: yes\r\n\r\n");
    assert!(text.contains("hello") && text.contains(" world"), "{text}");
    let head = server.heads().into_iter().find(|head| head.starts_with("POST /echo")).unwrap();
    assert_eq!(header(&head, "host"), Some("a.example"));
    assert_eq!(header(&head, "x-forwarded-host"), Some("a.example"));
    assert_eq!(header(&head, "via"), Some("1.1 portway"));
    client.send("GET /truncated HTTP/1.1\r\nhost: a\r\n\r\n");
    // The reset may overtake what came before it; what must not come is a whole answer.
    let rest = client.rest();
    assert!(rest.is_empty() || rest.ends_with(b"\r\n\r\n") || rest.ends_with(b"ten bytes."), "{}", rest.escape_ascii());
    outer.counts("http_requests", "web", "broken", 1);
    let mut gone = Client::to(outer.address("web"));
    gone.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually("the server has it", || server.heads().iter().any(|head| head.starts_with("GET /never")));
    let before = server.gone.load(Ordering::Relaxed);
    drop(gone);
    eventually("a client that goes is felt by the server", || server.gone.load(Ordering::Relaxed) > before);
    std::fs::remove_dir_all(dir).unwrap();
}
