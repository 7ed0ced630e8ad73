//! The peer on tokio-quiche, an application inside the task of each connection, without a copy when it sends.
//!
//!     serve-tokio-quiche --listen 127.0.0.1:9001 --certificate cert.pem --key key.pem [--copy] [--datagram 1350]
//!
//! Retry is off (its default is on). `--copy` and `--datagram 1350` are what the library does unasked.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use boring::ssl::{SslContextBuilder, SslFiletype, SslMethod, SslOptions};
use futures::StreamExt;
use portway_quic_peers::{ALPN, DATAGRAM, Head, STREAM_WINDOW, STREAMS, Serve, WINDOW, body, runtime, slice, socket};
use tokio_quiche::metrics::DefaultMetrics;
use tokio_quiche::quic::{ConnectionHook, HandshakeInfo, QuicheConnection};
use tokio_quiche::settings::{CertificateKind, ConnectionParams, Hooks, QuicSettings, TlsCertificatePaths};
use tokio_quiche::{ApplicationOverQuic, QuicResult};

fn main() {
    let serve = Serve::parse();
    runtime().block_on(run(&serve));
}

async fn run(serve: &Serve) {
    let datagram = serve.args.number("datagram", u64::from(DATAGRAM)) as usize;
    let mut settings = QuicSettings::default();
    settings.alpn = vec![ALPN.to_vec()];
    settings.initial_max_streams_bidi = u64::from(STREAMS);
    settings.initial_max_data = u64::from(WINDOW);
    settings.initial_max_stream_data_bidi_remote = u64::from(STREAM_WINDOW);
    settings.max_connection_window = u64::from(WINDOW);
    settings.max_stream_window = u64::from(STREAM_WINDOW);
    settings.max_idle_timeout = Some(Duration::from_secs(30));
    settings.disable_client_ip_validation = true;
    settings.max_send_udp_payload_size = datagram;
    settings.max_recv_udp_payload_size = datagram;
    settings.discover_path_mtu = datagram != 1_350;
    let certificate =
        TlsCertificatePaths { cert: &serve.certificate, private_key: &serve.key, kind: CertificateKind::X509 };
    let hooks = Hooks { connection_hook: Some(Arc::new(NoTickets)) };
    let params = ConnectionParams::new_server(settings, certificate, hooks);
    let mut listeners = tokio_quiche::listen([socket(serve.listen)], params, DefaultMetrics).expect("a listener");
    let copy = serve.args.has("copy");
    serve.ready();
    while let Some(connection) = listeners[0].next().await {
        if let Ok(connection) = connection {
            connection.start(Bench { copy, ..Bench::default() });
        }
    }
}

/// The certificate as the library would load it; the other servers hand out no session tickets, nor does this one.
struct NoTickets;

impl ConnectionHook for NoTickets {
    fn create_custom_ssl_context_builder(&self, files: TlsCertificatePaths<'_>) -> Option<SslContextBuilder> {
        let mut builder = SslContextBuilder::new(SslMethod::tls()).ok()?;
        builder.set_certificate_chain_file(files.cert).ok()?;
        builder.set_private_key_file(files.private_key, SslFiletype::PEM).ok()?;
        builder.set_options(SslOptions::NO_TICKET);
        Some(builder)
    }
}

#[derive(Default)]
struct Bench {
    copy: bool,
    heads: HashMap<u64, Head>,
    answers: HashMap<u64, Answer>,
    /// Answers of which nothing was written yet; the others are found by asking which stream can be written.
    fresh: VecDeque<(u64, Answer)>,
}

struct Answer {
    sent: u64,
    wanted: u64,
}

impl ApplicationOverQuic for Bench {
    fn on_conn_established(&mut self, _: &mut QuicheConnection, _: &HandshakeInfo) -> QuicResult<()> {
        Ok(())
    }

    fn should_act(&self) -> bool {
        true
    }

    async fn wait_for_data(&mut self, _: &mut QuicheConnection) -> QuicResult<()> {
        std::future::pending().await
    }

    fn process_reads(&mut self, quic: &mut QuicheConnection) -> QuicResult<()> {
        let mut buffer = [0; 4_096];
        while let Some(id) = quic.stream_readable_next() {
            while let Ok((len, end)) = quic.stream_recv(id, &mut buffer) {
                let mut head = self.heads.remove(&id).unwrap_or_default();
                match head.take(&buffer[..len]) {
                    Some(wanted) => self.fresh.push_back((id, Answer { sent: 0, wanted })),
                    None if end => {}
                    None => drop(self.heads.insert(id, head)),
                }
            }
        }
        Ok(())
    }

    fn process_writes(&mut self, quic: &mut QuicheConnection) -> QuicResult<()> {
        while let Some((id, answer)) = self.fresh.pop_front() {
            self.write(quic, id, answer);
        }
        while let Some(id) = quic.stream_writable_next() {
            if let Some(answer) = self.answers.remove(&id) {
                self.write(quic, id, answer);
            }
        }
        Ok(())
    }
}

impl Bench {
    fn write(&mut self, quic: &mut QuicheConnection, id: u64, mut answer: Answer) {
        loop {
            let left = answer.wanted - answer.sent;
            let part = body(answer.sent, left);
            let last = part.len() as u64 == left;
            let len = part.len();
            let sent = if self.copy {
                quic.stream_send(id, slice(answer.sent, len), last)
            } else {
                quic.stream_send_zc(id, part, last).map(|(sent, _)| sent)
            };
            let sent = match sent {
                Ok(sent) if sent == len && last => return,
                Ok(sent) => sent,
                Err(quiche::Error::Done) => 0,
                Err(_) => return,
            };
            answer.sent += sent as u64;
            if sent < len {
                self.answers.insert(id, answer);
                return;
            }
        }
    }
}
