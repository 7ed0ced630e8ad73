//! The peer on quinn, a task for each connection and each stream, as its examples do.
//!
//!     serve-quinn --listen 127.0.0.1:9001 --certificate cert.pem --key key.pem [--crypto ring]

use std::sync::Arc;
use std::time::Duration;

use portway_quic_peers::{ALPN, DATAGRAM, Head, STREAM_WINDOW, STREAMS, Serve, WINDOW, body, runtime, socket};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

fn main() {
    let serve = Serve::parse();
    runtime().block_on(run(&serve));
}

fn settings(serve: &Serve) -> quinn::ServerConfig {
    let certificates = CertificateDer::pem_file_iter(&serve.certificate).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&serve.key).expect("a key");
    let provider = match serve.args.text("crypto", "aws-lc").as_str() {
        "ring" => rustls::crypto::ring::default_provider(),
        "aws-lc" => rustls::crypto::aws_lc_rs::default_provider(),
        other => panic!("--crypto {other}: ring or aws-lc"),
    };
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(certificates.map(|c| c.expect("PEM")).collect(), key)
        .expect("they belong together");
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let mut transport = quinn::TransportConfig::default();
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM);
    transport
        .max_concurrent_bidi_streams(STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(WINDOW.into())
        .send_window(u64::from(STREAM_WINDOW))
        .max_idle_timeout(Some(Duration::from_secs(30).try_into().expect("it fits")))
        .mtu_discovery_config(Some(discovery));
    let mut settings = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("usable")));
    settings.transport_config(Arc::new(transport));
    settings
}

async fn run(serve: &Serve) {
    let socket = socket(serve.listen);
    let endpoint = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(settings(serve)),
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .expect("an endpoint");
    serve.ready();
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, receive)) = connection.accept_bi().await {
                tokio::spawn(answer(send, receive));
            }
        });
    }
}

async fn answer(mut send: quinn::SendStream, mut receive: quinn::RecvStream) {
    let mut head = Head::default();
    let wanted = loop {
        let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await else { return };
        if let Some(wanted) = head.take(&chunk.bytes) {
            break wanted;
        }
    };
    let mut sent = 0;
    while sent < wanted {
        let part = body(sent, wanted - sent);
        sent += part.len() as u64;
        if send.write_chunk(part).await.is_err() {
            return;
        }
    }
    // The client stops a stream only by ending its connection.
    let _ = send.finish();
    while let Ok(Some(_)) = receive.read_chunk(usize::MAX, true).await {}
}
