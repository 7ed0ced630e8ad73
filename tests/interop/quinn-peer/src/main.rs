//! An independent QUIC peer, on quinn and rustls, for portway's interop tests: a server that echoes streams and
//! datagrams, and a client that checks that it is echoed.
//!
//! `quinn-peer server CERT KEY LISTEN ALPN [retry] [rekey]` prints `listening ADDRESS` and serves until its standard
//! input ends. `quinn-peer client CA CONNECT NAME ALPN CASE [BYTES] [STREAMS]` does what CASE says, prints `ok` and
//! facts as `key=value`, and fails with a sentence otherwise. `quinn-peer http3 CA CONNECT NAME CASE` does the same as a
//! client of HTTP/3.

mod http3;

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", cert, key, listen, alpn, options @ ..] => serve(cert, key, listen, alpn, options).await,
        ["client", ca, connect, name, alpn, case, rest @ ..] => {
            let number = |at: usize, default: usize| rest.get(at).map_or(Ok(default), |word| word.parse());
            let (bytes, streams) = (number(0, 1 << 20)?, number(1, 1)?);
            let client = Client::new(ca, connect, name, alpn, case == &"chacha20")?;
            tokio::time::timeout(Duration::from_secs(100), client.run(case, bytes, streams)).await??;
            Ok(())
        }
        ["http3", ca, connect, name, case] => {
            let client = Client::new(ca, connect, name, "h3", false)?;
            let quic = client.endpoint.connect(client.to, name)?.await?;
            let authority = format!("{name}:{}", client.to.port());
            tokio::time::timeout(Duration::from_secs(100), http3::run(quic, &authority, case)).await??;
            client.endpoint.wait_idle().await;
            Ok(())
        }
        _ => Err("usage: see the top of src/main.rs".into()),
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(200_u32.into());
    transport.max_idle_timeout(Some(Duration::from_secs(60).try_into().expect("short")));
    Arc::new(transport)
}

async fn serve(cert: &str, key: &str, listen: &str, alpn: &str, options: &[&str]) -> Result<(), Failure> {
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, listen.parse()?)?;
    println!("listening {}", endpoint.local_addr()?);
    let (retry, rekey) = (options.contains(&"retry"), options.contains(&"rekey"));
    let mut input = tokio::io::stdin();
    loop {
        let mut byte = [0];
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return Ok(()) };
                if retry && !incoming.remote_address_validated() {
                    incoming.retry()?;
                    continue;
                }
                tokio::spawn(async move {
                    // A client that gives up is its own affair.
                    if let Ok(connection) = incoming.await {
                        echo(connection, rekey).await;
                    }
                });
            }
            read = input.read(&mut byte) => if read? == 0 { return Ok(()) },
        }
    }
}

async fn echo(connection: Connection, rekey: bool) {
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let Ok((mut send, mut receive)) = stream else { return };
                if rekey {
                    connection.force_key_update();
                }
                tokio::spawn(async move {
                    loop {
                        match receive.read_chunk(64 * 1024, true).await {
                            Ok(Some(chunk)) => if send.write_chunk(chunk.bytes).await.is_err() { return },
                            Ok(None) => break,
                            Err(_) => {
                                let _gone = send.reset(7_u32.into());
                                return;
                            }
                        }
                    }
                    let _gone = send.finish();
                    let _gone = send.stopped().await;
                });
            }
            datagram = connection.read_datagram() => {
                let Ok(datagram) = datagram else { return };
                let _full = connection.send_datagram(datagram);
            }
        }
    }
}

struct Client {
    endpoint: Endpoint,
    to: SocketAddr,
    name: String,
}

impl Client {
    fn new(ca: &str, connect: &str, name: &str, alpn: &str, chacha: bool) -> Result<Self, Failure> {
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_file_iter(ca)? {
            roots.add(authority?)?;
        }
        let mut provider = rustls::crypto::ring::default_provider();
        if chacha {
            // The Initial packets need AES, whatever the rest speaks.
            let wanted = rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
            let initial = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
            provider.cipher_suites.retain(|suite| [wanted, initial].contains(&suite.suite()));
            provider.cipher_suites.sort_by_key(|suite| suite.suite() != wanted);
        }
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let to: SocketAddr = connect.parse()?;
        let mut endpoint = Endpoint::client(any(to))?;
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(transport());
        endpoint.set_default_client_config(config);
        Ok(Self { endpoint, to, name: name.to_owned() })
    }

    async fn run(&self, case: &str, bytes: usize, streams: usize) -> Result<(), Failure> {
        let connection = self.endpoint.connect(self.to, &self.name)?.await?;
        match case {
            "handshake" => {}
            "transfer" | "chacha20" => transfer(&connection, bytes).await?,
            "multiplexing" => {
                let mut all = Vec::new();
                for n in 0..streams {
                    let connection = connection.clone();
                    all.push(tokio::spawn(async move {
                        transfer(&connection, bytes + n % 7).await.map_err(|error| error.to_string())
                    }));
                }
                for one in all {
                    one.await??;
                }
            }
            "handshakes" => {
                transfer(&connection, bytes).await?;
                for _ in 1..streams {
                    let one = self.endpoint.connect(self.to, &self.name)?.await?;
                    transfer(&one, bytes).await?;
                    one.close(0_u32.into(), b"done");
                }
            }
            "keyupdate" => {
                for _ in 0..5 {
                    transfer(&connection, bytes / 5).await?;
                    connection.force_key_update();
                }
                transfer(&connection, 1_000).await?;
            }
            "migration" => {
                for _ in 0..3 {
                    transfer(&connection, bytes / 3).await?;
                    self.endpoint.rebind(UdpSocket::bind(any(self.to))?)?;
                }
                transfer(&connection, 1_000).await?;
            }
            "resumption" => {
                transfer(&connection, bytes).await?;
                connection.close(0_u32.into(), b"again");
                let again = self.endpoint.connect(self.to, &self.name)?.await?;
                transfer(&again, bytes).await?;
            }
            "datagrams" => datagrams(&connection, streams).await?,
            "reset" => reset(&connection).await?,
            _ => return Err(format!("no case {case}").into()),
        }
        let stats = connection.stats();
        println!("ok lost={} rtt_ms={}", stats.path.lost_packets, connection.rtt().as_millis());
        connection.close(0_u32.into(), b"done");
        self.endpoint.wait_idle().await;
        Ok(())
    }
}

fn any(of: SocketAddr) -> SocketAddr {
    match of {
        SocketAddr::V4(_) => ([127, 0, 0, 1], 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::LOCALHOST, 0).into(),
    }
}

/// Sends a stream and checks its echo, both at the same time.
async fn transfer(connection: &Connection, bytes: usize) -> Result<(), Failure> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let sent = async {
        let mut left = bytes;
        let mut at = 0_usize;
        while left > 0 {
            let piece: Vec<u8> = (at..at + left.min(16_384)).map(|n| (n % 251) as u8).collect();
            (left, at) = (left - piece.len(), at + piece.len());
            send.write_all(&piece).await?;
        }
        send.finish()?;
        Ok::<(), Failure>(())
    };
    let received = async {
        let mut at = 0_usize;
        while let Some(chunk) = receive.read_chunk(65_536, true).await? {
            if !chunk.bytes.iter().enumerate().all(|(n, byte)| *byte == ((at + n) % 251) as u8) {
                return Err("the echo differs".into());
            }
            at += chunk.bytes.len();
        }
        if at == bytes { Ok::<(), Failure>(()) } else { Err(format!("{at} of {bytes} bytes came back").into()) }
    };
    tokio::try_join!(sent, received)?;
    Ok(())
}

async fn datagrams(connection: &Connection, count: usize) -> Result<(), Failure> {
    for n in 0..count {
        let datagram = bytes::Bytes::from(vec![n as u8; 100 + n % 900]);
        connection.send_datagram(datagram.clone())?;
        if connection.read_datagram().await? != datagram {
            return Err("the echoed datagram differs".into());
        }
    }
    Ok(())
}

/// Gives a stream up in the midst and expects to learn of a reset; the connection goes on.
async fn reset(connection: &Connection) -> Result<(), Failure> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(b"half").await?;
    let mut four = [0; 4];
    receive.read_exact(&mut four).await?;
    send.reset(9_u32.into())?;
    let mut byte = [0];
    match receive.read(&mut byte).await {
        Err(quinn::ReadError::Reset(code)) => println!("reset code={code}"),
        other => return Err(format!("no reset came back: {other:?}").into()),
    }
    transfer(connection, 1_000).await
}
