//! A session over quinn: made, and its requests answered.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream};
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use crate::wire;

/// What a subscriber that stops reading lets in: streams, and bytes on all of them.
const FEW_STREAMS: u32 = 100;
const FEW_BYTES: u32 = 1 << 20;

/// What all others let in.
const STREAMS: u32 = 10_000;
const BYTES: u32 = 64 << 20;

/// A session, on a socket of its own as another machine would have it.
pub struct Session {
    pub connection: Connection,
    // Both end the session when they go.
    _endpoint: Endpoint,
    _control: quinn::SendStream,
}

impl Session {
    /// Tries for five seconds, since a server that has just been started may not be there yet.
    ///
    /// # Panics
    /// When it still cannot be reached.
    pub async fn open(target: SocketAddr, generous: bool) -> Self {
        let began = Instant::now();
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("an endpoint");
        let settings = settings(generous);
        let connection = loop {
            match endpoint.connect_with(settings.clone(), target, "localhost").expect("a valid name").await {
                Ok(connection) => break connection,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(5), "no connection: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let mut control = connection.open_uni().await.expect("a control stream");
        control.write_all(&wire::setup()).await.expect("SETUP is sent");
        Self { connection, _endpoint: endpoint, _control: control }
    }

    /// Sends a request, and waits until it is granted; the stream stays open.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn ask(&self, request: &[u8]) -> (quinn::SendStream, RecvStream) {
        let (mut send, mut receive) = self.connection.open_bi().await.expect("a stream");
        send.write_all(request).await.expect("a request is sent");
        let (kind, body) = next(&mut receive, &mut Vec::new()).await.expect("an answer");
        assert!(matches!(kind, wire::REQUEST_OK | wire::SUBSCRIBE_OK), "refused: {kind:#x} {body:02x?}");
        (send, receive)
    }

    /// Answers what the relay asks a publisher for, as long as there is a session.
    pub async fn answer(&self) {
        let mut kept = Vec::new();
        while let Ok((mut send, mut receive)) = self.connection.accept_bi().await {
            let answer = match next(&mut receive, &mut Vec::new()).await {
                Some((wire::SUBSCRIBE, body)) if wire::asks_for_the_track(&body) => wire::subscribe_ok(),
                Some((wire::SUBSCRIBE_NAMESPACE, body)) => wire::namespaces(&body),
                // Nothing else is had here; who asks sees no answer.
                _ => continue,
            };
            if send.write_all(&answer).await.is_ok() {
                kept.push((send, receive));
            }
        }
    }
}

/// The next message of a stream.
async fn next(receive: &mut RecvStream, buffer: &mut Vec<u8>) -> Option<(u64, Vec<u8>)> {
    loop {
        if let Some((kind, body)) = wire::read_message(buffer) {
            return Some((kind, body.to_vec()));
        }
        buffer.extend_from_slice(&receive.read_chunk(1 << 16, true).await.ok()??.bytes);
    }
}

fn settings(generous: bool) -> quinn::ClientConfig {
    let provider = CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![ring::kx_group::X25519],
        ..ring::default_provider()
    };
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"moqt-18".to_vec()];
    let (streams, bytes) = if generous { (STREAMS, BYTES) } else { (FEW_STREAMS, FEW_BYTES) };
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_uni_streams(streams.into())
        .stream_receive_window(FEW_BYTES.into())
        .receive_window(bytes.into())
        .keep_alive_interval(Some(Duration::from_secs(4)));
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
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256, rustls::SignatureScheme::ED25519]
    }
}
