//! The peer on s2n-quic, a task for each connection and each stream, as its examples do.
//!
//!     serve-s2n --listen 127.0.0.1:9001 --certificate cert.pem --key key.pem

use std::path::Path;
use std::time::Duration;

use portway_quic_peers::{
    ALPN, DATAGRAM, Head, SOCKET_BUFFER, STREAM_WINDOW, STREAMS, Serve, WINDOW, body, runtime, socket,
};
use s2n_quic::provider::{io, limits, tls};
use s2n_quic::stream::BidirectionalStream;

/// An MTU counts the headers of IPv4 and UDP too.
const HEADERS: u16 = 28;

fn main() {
    let serve = Serve::parse();
    runtime().block_on(run(&serve));
}

async fn run(serve: &Serve) {
    let tls = tls::default::Server::builder()
        .with_certificate(Path::new(&serve.certificate), Path::new(&serve.key))
        .expect("a certificate")
        .with_application_protocols([ALPN])
        .expect("an ALPN")
        .build()
        .expect("usable");
    let limits = limits::Limits::new()
        .with_max_open_remote_bidirectional_streams(u64::from(STREAMS))
        .and_then(|limits| limits.with_data_window(u64::from(WINDOW)))
        .and_then(|limits| limits.with_bidirectional_remote_data_window(u64::from(STREAM_WINDOW)))
        .and_then(|limits| limits.with_max_send_buffer_size(serve.args.number("send-buffer", 512 << 10) as u32))
        .and_then(|limits| limits.with_stream_batch_size(serve.args.number("stream-batch", 1) as u8))
        .and_then(|limits| limits.with_max_idle_timeout(Duration::from_secs(30)))
        .expect("limits");
    let io = io::tokio::Provider::builder()
        .with_rx_socket(socket(serve.listen))
        .and_then(|io| io.with_send_buffer_size(SOCKET_BUFFER))
        .and_then(|io| io.with_recv_buffer_size(SOCKET_BUFFER))
        .and_then(|io| io.with_max_mtu(DATAGRAM + HEADERS))
        .and_then(io::tokio::Builder::build)
        .expect("sockets");
    let mut server = s2n_quic::Server::builder()
        .with_tls(tls)
        .expect("TLS")
        .with_limits(limits)
        .expect("limits")
        .with_io(io)
        .expect("sockets")
        .start()
        .expect("a server");
    serve.ready();
    while let Some(mut connection) = server.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(stream)) = connection.accept_bidirectional_stream().await {
                tokio::spawn(answer(stream));
            }
        });
    }
}

async fn answer(stream: BidirectionalStream) {
    let (mut receive, mut send) = stream.split();
    let mut head = Head::default();
    let wanted = loop {
        let Ok(Some(chunk)) = receive.receive().await else { return };
        if let Some(wanted) = head.take(&chunk) {
            break wanted;
        }
    };
    let mut sent = 0;
    while sent < wanted {
        let part = body(sent, wanted - sent);
        sent += part.len() as u64;
        if send.send(part).await.is_err() {
            return;
        }
    }
    // The client stops a stream only by ending its connection.
    let _ = send.finish();
    while let Ok(Some(_)) = receive.receive().await {}
}
