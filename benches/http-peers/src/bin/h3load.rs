//! Loads an HTTP/3 server and keeps the account: CPU per 1,000 requests and per GB, latency. The client is h3 on quinn,
//! the same for every server; it does not check certificates.
//!
//!     h3load certificate DIR                                                  cert.pem and key.pem, ECDSA P-256
//!     h3load --target 127.0.0.1:9001 --pid P --path /1024 --conns 1 --streams 32 --seconds 3        closed loop
//!     h3load ... --path /268435456 --streams 1 --requests 1                   so many on each stream, then it ends
//!     h3load ... --conns 4 --rate 2000 --seconds 3           open loop: requests begin at their time, whatever the server does
//!
//! `--expect 1024`: bytes that each answer must have; another length, or another status than 200, ends the run.

use std::cell::RefCell;
use std::process::exit;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Buf;
use portway_http_peers::kit::cpu::Meter;
use portway_http_peers::kit::histogram::Histogram;
use portway_http_peers::kit::{Args, Line};
use portway_http_peers::{STREAM_WINDOW, WINDOW, runtime};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

type Sender = h3::client::SendRequest<h3_quinn::OpenStreams, bytes::Bytes>;

#[derive(Default)]
struct Account {
    took: Histogram,
    bytes: u64,
}

fn main() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        exit(1);
    }));
    let args = Args::parse();
    if args.words.first().is_some_and(|word| word == "certificate") {
        return certificate(args.words.get(1).map_or(".", String::as_str));
    }
    tokio::task::LocalSet::new().block_on(&runtime(), run(&args));
}

fn certificate(dir: &str) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let made = made.expect("a certificate");
    std::fs::write(format!("{dir}/cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(format!("{dir}/key.pem"), made.signing_key.serialize_pem()).expect("written");
}

/// Asks once; answers how many bytes came.
async fn ask(sender: &mut Sender, uri: &str) -> u64 {
    let request = http::Request::get(uri).body(()).expect("a request");
    let mut stream = sender.send_request(request).await.expect("sent");
    stream.finish().await.expect("sent");
    let answer = stream.recv_response().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let mut got = 0;
    while let Some(piece) = stream.recv_data().await.expect("a body") {
        got += piece.remaining() as u64;
    }
    got
}

async fn run(args: &Args) {
    let target: std::net::SocketAddr = args.text("target", "127.0.0.1:9001").parse().expect("--target");
    let uri = format!("https://localhost:{}{}", target.port(), args.text("path", "/1024"));
    let (connections, streams) = (args.number("conns", 1), args.number("streams", 32));
    let (requests, rate, time) = (args.number("requests", 0), args.number("rate", 0), args.seconds("seconds", 3.0));
    let expect = args.has("expect").then(|| args.number("expect", 0));
    let mut endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("an endpoint");
    endpoint.set_default_client_config(settings());
    let (mut senders, mut quics) = (Vec::new(), Vec::new());
    for _ in 0..connections {
        let quic = endpoint.connect(target, "localhost").expect("a name").await.expect("connected");
        quics.push(quic.clone());
        let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(quic)).await.expect("HTTP/3");
        tokio::task::spawn_local(async move {
            let _ = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        });
        if requests == 0 {
            // Warm.
            let _ = ask(&mut sender, &uri).await;
        }
        senders.push(sender);
    }
    let account = Rc::new(RefCell::new(Account::default()));
    let one = {
        let account = account.clone();
        move |mut sender: Sender, uri: String, from: Instant| {
            let account = account.clone();
            async move {
                let got = ask(&mut sender, &uri).await;
                assert!(expect.is_none_or(|expect| expect == got), "{got} bytes");
                let mut account = account.borrow_mut();
                account.took.add(from.elapsed());
                account.bytes += got;
                sender
            }
        }
    };
    let meter = Meter::start(args.has("pid").then(|| args.number("pid", 0) as u32));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    if rate > 0 {
        let count = (time.as_secs_f64() * rate as f64) as u64;
        for n in 0..count {
            let at = began + Duration::from_secs_f64(n as f64 / rate as f64);
            if at > Instant::now() {
                tokio::time::sleep_until(at.into()).await;
            }
            let sender = senders[(n % connections) as usize].clone();
            tasks.spawn_local({
                let asked = one(sender, uri.clone(), at);
                async move { drop(asked.await) }
            });
            while tasks.try_join_next().is_some() {}
        }
    } else {
        for sender in &senders {
            for _ in 0..streams {
                let (mut sender, uri, one) = (sender.clone(), uri.clone(), one.clone());
                tasks.spawn_local(async move {
                    let mut done = 0;
                    while if requests > 0 { done < requests } else { began.elapsed() < time } {
                        sender = one(sender, uri.clone(), Instant::now()).await;
                        done += 1;
                    }
                });
            }
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
    let spent = meter.stop();
    let account = account.borrow();
    let (count, gigabytes) = (account.took.count() as f64, account.bytes as f64 / 1e9);
    Line::new(&args.text("name", "h3load"))
        .with("cpu_ms_per_1000", spent.server * 1e6 / count)
        .with("cpu_s_per_gb", spent.server / gigabytes)
        .with("rate", count / spent.wall)
        .with("p50_us", account.took.quantile(0.5))
        .with("p99_us", account.took.quantile(0.99))
        .with("client_cpu_ms_per_1000", spent.own * 1e6 / count)
        .with("others_s", spent.others)
        .print();
    for quic in quics {
        quic.close(0x100_u32.into(), b"");
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

fn settings() -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(WINDOW.into())
        .max_concurrent_uni_streams(100_u32.into());
    let mut settings = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("usable")));
    settings.transport_config(Arc::new(transport));
    settings
}

/// Takes every certificate: what is measured is on this machine.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
