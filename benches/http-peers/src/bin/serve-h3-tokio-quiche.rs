//! The peer on tokio-quiche's HTTP/3 driver, as its examples do: a task for each connection and each request. Retry is
//! off, so that the servers do the same; everything else is as the library comes.
//!
//!     serve-h3-tokio-quiche --listen 127.0.0.1:9001 --certificate cert.pem --key key.pem
//!
//! `GET /1024` answers 1,024 bytes.

use futures::{SinkExt, StreamExt};
use portway_http_peers::{Serve, body, runtime, size_of};
use tokio_quiche::http3::driver::{IncomingH3Headers, OutboundFrame, ServerH3Event};
use tokio_quiche::http3::settings::Http3Settings;
use tokio_quiche::quiche::h3::{Header, NameValue};
use tokio_quiche::settings::{CertificateKind, ConnectionParams, Hooks, QuicSettings, TlsCertificatePaths};

fn main() {
    let serve = Serve::parse();
    runtime().block_on(run(&serve));
}

async fn run(serve: &Serve) {
    let mut settings = QuicSettings::default();
    settings.disable_client_ip_validation = true;
    settings.initial_max_streams_bidi = 1_000;
    let files = TlsCertificatePaths { cert: &serve.certificate, private_key: &serve.key, kind: CertificateKind::X509 };
    let params = ConnectionParams::new_server(settings, files, Hooks::default());
    let socket = tokio::net::UdpSocket::bind(serve.listen).await.expect("the address is free");
    let mut listeners =
        tokio_quiche::listen([socket], params, tokio_quiche::metrics::DefaultMetrics).expect("a listener");
    println!("ready {}", serve.listen);
    while let Some(connection) = listeners[0].next().await {
        let Ok(connection) = connection else { continue };
        let (driver, mut controller) = tokio_quiche::ServerH3Driver::new(Http3Settings::default());
        connection.start(driver);
        tokio::spawn(async move {
            while let Some(event) = controller.event_receiver_mut().recv().await {
                let ServerH3Event::Headers { incoming_headers, .. } = event else { continue };
                let IncomingH3Headers { mut send, headers, .. } = incoming_headers;
                tokio::spawn(async move {
                    let path = headers.iter().find(|field| field.name() == b":path");
                    let path = path.and_then(|field| std::str::from_utf8(field.value()).ok()).unwrap_or("");
                    let mut left = size_of(path);
                    let length = left.to_string();
                    let head =
                        vec![Header::new(b":status", b"200"), Header::new(b"content-length", length.as_bytes())];
                    if send.send(OutboundFrame::Headers(head, None)).await.is_err() {
                        return;
                    }
                    loop {
                        let piece = body(left);
                        left -= piece.len() as u64;
                        if send.send(OutboundFrame::Body(piece, left == 0)).await.is_err() || left == 0 {
                            return;
                        }
                    }
                });
            }
        });
    }
}
