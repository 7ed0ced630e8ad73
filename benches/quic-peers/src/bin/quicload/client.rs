//! One thread of the load: a pinned event loop with an endpoint of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portway_quic_peers::{ALPN, DATAGRAM, STREAM_WINDOW, WINDOW, matches, socket};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use crate::Load;

pub(crate) struct Client {
    runtime: Runtime,
    tasks: LocalSet,
    endpoint: Endpoint,
    settings: quinn::ClientConfig,
    target: SocketAddr,
}

impl Client {
    /// On the CPU of that thread.
    pub(crate) fn pinned(load: &Load, thread: usize) -> Self {
        let mut cpus = rustix::thread::CpuSet::new();
        cpus.set(load.cpus[thread]);
        rustix::thread::sched_setaffinity(None, &cpus).expect("--cpus: there is such a CPU");
        let runtime = portway_quic_peers::runtime();
        let entered = runtime.enter();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let datagram = load.args.number("datagram", u64::from(DATAGRAM)) as u16;
        let mut config = quinn::EndpointConfig::default();
        config.max_udp_payload_size(datagram.max(1_472)).expect("--datagram: at least 1,200");
        let endpoint = Endpoint::new(config, None, socket(local), Arc::new(quinn::TokioRuntime));
        drop(entered);
        Self {
            runtime,
            tasks: LocalSet::new(),
            endpoint: endpoint.expect("an endpoint"),
            settings: settings(),
            target: load.target,
        }
    }

    pub(crate) fn block_on<R>(&self, work: impl Future<Output = R>) -> R {
        self.tasks.block_on(&self.runtime, work)
    }

    /// What begins connections, for tasks to own.
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer { endpoint: self.endpoint.clone(), settings: self.settings.clone(), target: self.target }
    }

    /// `count` connections, each of which has had an answer.
    pub(crate) fn connect(&self, count: usize) -> Vec<Connection> {
        self.block_on(async {
            let dialer = self.dialer();
            let mut connections = Vec::with_capacity(count);
            for n in 0..count {
                let connection = dialer.dial().await.unwrap_or_else(|error| panic!("connection {n}: {error}"));
                fetch(&connection, 1_000).await;
                connections.push(connection);
            }
            connections
        })
    }

    /// Closes everything and waits until it is said.
    pub(crate) fn farewell(&self) {
        self.endpoint.close(0_u32.into(), b"");
        self.block_on(async {
            let _ = tokio::time::timeout(Duration::from_secs(2), self.endpoint.wait_idle()).await;
        });
    }
}

#[derive(Clone)]
pub(crate) struct Dialer {
    endpoint: Endpoint,
    settings: quinn::ClientConfig,
    target: SocketAddr,
}

impl Dialer {
    /// # Errors
    /// Why the server does not want it.
    pub(crate) async fn dial(&self) -> Result<Connection, quinn::ConnectionError> {
        self.endpoint.connect_with(self.settings.clone(), self.target, "localhost").expect("a valid name").await
    }
}

/// Asks for `wanted` bytes on a new stream and checks them all.
pub(crate) async fn fetch(connection: &Connection, wanted: u64) {
    let (mut send, receive) = connection.open_bi().await.expect("a stream");
    send.write_all(&wanted.to_be_bytes()).await.expect("sent");
    send.finish().expect("an end");
    let got = drain(receive).await.expect("the answer");
    assert_eq!(got, wanted, "the answer has another length");
}

/// Reads to the end.
pub(crate) async fn drain(mut receive: quinn::RecvStream) -> Result<u64, quinn::ReadError> {
    let mut chunks: [bytes::Bytes; 32] = Default::default();
    let mut got = 0;
    while let Some(count) = receive.read_chunks(&mut chunks).await? {
        for chunk in &mut chunks[..count] {
            assert!(matches(got, chunk), "wrong bytes near {got}");
            got += chunk.len() as u64;
            *chunk = bytes::Bytes::new();
        }
    }
    Ok(got)
}

fn settings() -> quinn::ClientConfig {
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let mut transport = quinn::TransportConfig::default();
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM);
    transport
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(WINDOW.into())
        .max_idle_timeout(None)
        .mtu_discovery_config(Some(discovery));
    let mut settings = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("usable")));
    settings.transport_config(Arc::new(transport));
    settings
}

/// Takes every certificate, and looks at no signature: the client's cost is not measured.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
