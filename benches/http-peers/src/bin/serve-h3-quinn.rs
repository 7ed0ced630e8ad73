//! The peer on h3 and quinn, as their examples do: a task for each connection and each request.
//!
//!     serve-h3-quinn --listen 127.0.0.1:9001 --certificate cert.pem --key key.pem
//!
//! `GET /1024` answers 1,024 bytes.

use std::sync::Arc;

use bytes::Bytes;
use portway_http_peers::{STREAM_WINDOW, Serve, WINDOW, body, runtime, size_of};
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(certificates.map(|c| c.expect("PEM")).collect(), key)
        .expect("they belong together");
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(1_000_u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(WINDOW.into());
    let mut settings = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("usable")));
    settings.transport_config(Arc::new(transport));
    settings
}

async fn run(serve: &Serve) {
    let endpoint = quinn::Endpoint::server(settings(serve), serve.listen).expect("an endpoint");
    println!("ready {}", serve.listen);
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            let connection = h3::server::Connection::<_, Bytes>::new(h3_quinn::Connection::new(connection)).await;
            let Ok(mut connection) = connection else { return };
            while let Ok(Some(resolver)) = connection.accept().await {
                tokio::spawn(async move {
                    // Whatever fails, the client sees it.
                    let Ok((request, mut stream)) = resolver.resolve_request().await else { return };
                    let mut left = size_of(request.uri().path());
                    let head = http::Response::builder().header("content-length", left).body(()).expect("a head");
                    if stream.send_response(head).await.is_err() {
                        return;
                    }
                    while left > 0 {
                        let piece = body(left);
                        left -= piece.len() as u64;
                        if stream.send_data(piece).await.is_err() {
                            return;
                        }
                    }
                    let _ = stream.finish().await;
                });
            }
        });
    }
}
