//! Ours, an application inside the actor of each connection.
//!
//!     serve-ours --listen 127.0.0.1:9001 --certificate cert.pem --key key.pem
//!         [--arbiters 1] [--no-steering] [--handles] [--datagram 1350] [--no-discovery] [--no-pacing] [--watch]
//!
//! `--handles` serves through handles instead, from a thread of its own: what a task outside the actors costs.
//! `--watch` prints twice a second how many actors there are beyond those that serve nobody.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portway::actors::{Mesh, MeshConfig};
use portway::transports::quic::{
    Application, Event, Limits, QuicServer, Read, RecvStream, RetryMode, SendStream, ServerSettings, Session,
    StreamError, StreamId, Transport,
};
use portway::transports::tls;
use portway_quic_peers::{
    ALPN, DATAGRAM, Head, PERIOD, SOCKET_BUFFER, STREAM_WINDOW, STREAMS, Serve, WINDOW, body, runtime,
};

fn main() {
    let serve = Serve::parse();
    let arbiters = NonZeroUsize::new(serve.args.number("arbiters", 1) as usize);
    let mesh = Mesh::start(MeshConfig { arbiters, ..MeshConfig::default() }).expect("threads");
    let handles = serve.args.has("handles");
    let server = QuicServer::start(&mesh, settings(&serve), Some(Arc::new(move |_| (!handles).then(application))));
    let server = server.expect("a server");
    let idle = mesh.live();
    serve.ready();
    runtime().block_on(async move {
        tokio::spawn(async move {
            while let Ok(connection) = server.accept().await {
                tokio::spawn(async move {
                    while let Ok((send, receive)) = connection.accept().await {
                        tokio::spawn(answer(send, receive));
                    }
                });
            }
        });
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if serve.args.has("watch") {
                println!("live {}", mesh.live() - idle);
            }
        }
    });
}

fn application() -> Box<dyn Application> {
    Box::new(Bench::default())
}

fn settings(serve: &Serve) -> ServerSettings {
    let certificate = tls::Certificate::from_files(Path::new(&serve.certificate), Path::new(&serve.key));
    let mut tls = tls::ServerSettings::new("bench", vec![Arc::new(certificate.expect("a certificate"))]);
    tls.protocols = vec![ALPN.to_vec()];
    ServerSettings {
        transport: Transport {
            bidirectional: u64::from(STREAMS),
            stream_window: u64::from(STREAM_WINDOW),
            stream_window_max: u64::from(STREAM_WINDOW),
            window: u64::from(WINDOW),
            window_max: u64::from(WINDOW),
            datagram_size: serve.args.number("datagram", u64::from(DATAGRAM)) as usize,
            discover_mtu: !serve.args.has("no-discovery"),
            pacing: !serve.args.has("no-pacing"),
            socket_buffer: SOCKET_BUFFER,
            ..Transport::default()
        },
        // All clients of a measurement have one address; the other servers let in whom they can.
        limits: Limits {
            rate: u32::MAX,
            burst: u32::MAX,
            half_open: 100_000,
            retry: RetryMode::Never,
            ..Limits::default()
        },
        steer: !serve.args.has("no-steering"),
        ..ServerSettings::new("bench", serve.listen, Arc::new(tls))
    }
}

#[derive(Default)]
struct Bench {
    heads: BTreeMap<StreamId, Head>,
    answers: BTreeMap<StreamId, Answer>,
}

struct Answer {
    sent: u64,
    wanted: u64,
}

impl Application for Bench {
    fn on(&mut self, event: Event, session: &mut dyn Session) {
        match event {
            Event::Readable(stream) => self.read(stream, session),
            Event::Writable(stream) => {
                if let Some(answer) = self.answers.remove(&stream) {
                    self.write(stream, answer, session);
                }
            }
            Event::Stopped(stream, _) => drop(self.answers.remove(&stream)),
            Event::Finished(stream) | Event::Reset(stream, _) => drop(self.heads.remove(&stream)),
            _ => {}
        }
    }
}

impl Bench {
    fn read(&mut self, stream: StreamId, session: &mut dyn Session) {
        loop {
            match session.read(stream, PERIOD) {
                Ok(Read::Data(bytes)) => {
                    let mut head = self.heads.remove(&stream).unwrap_or_default();
                    match head.take(&bytes) {
                        Some(wanted) => self.write(stream, Answer { sent: 0, wanted }, session),
                        None => drop(self.heads.insert(stream, head)),
                    }
                }
                Ok(Read::Nothing | Read::End) | Err(_) => return,
            }
        }
    }

    fn write(&mut self, stream: StreamId, mut answer: Answer, session: &mut dyn Session) {
        while answer.sent < answer.wanted {
            let part = body(answer.sent, answer.wanted - answer.sent);
            let len = part.len() as u64;
            let last = answer.sent + len == answer.wanted;
            let written = if last { session.write_last(stream, part) } else { session.write(stream, part) };
            match written {
                Ok(()) if last => return,
                Ok(()) => answer.sent += len,
                Err(StreamError::Full(_)) => {
                    self.answers.insert(stream, answer);
                    return;
                }
                Err(_) => return,
            }
        }
        // The client stops a stream only by ending its connection.
        let _stopped = session.finish(stream);
    }
}

async fn answer(send: SendStream, receive: RecvStream) {
    let mut head = Head::default();
    let wanted = loop {
        let Ok(Some(bytes)) = receive.read(PERIOD).await else { return };
        if let Some(wanted) = head.take(&bytes) {
            break wanted;
        }
    };
    let mut sent = 0;
    while sent < wanted {
        let part = body(sent, wanted - sent);
        sent += part.len() as u64;
        if send.write(part).await.is_err() {
            return;
        }
    }
    // The client stops a stream only by ending its connection.
    let _stopped = send.finish().await;
    while let Ok(Some(_)) = receive.read(PERIOD).await {}
}
