//! The floor for framed TCP: plain tokio, one task per connection, no actor, no limits beyond the frame's length.
//!
//!     tcpecho [--listen 127.0.0.1:9100]
//!
//! A frame is a 4-byte big-endian length and that many bytes; it goes back as it came.

use bytes::{Buf, BytesMut};
use portway_peers::{Args, raise_open_files};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const LARGEST: usize = 1 << 20;

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    raise_open_files();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(args.text("listen", "127.0.0.1:9100").parse().expect("an address"))?;
        let listener = socket.listen(4_096)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(echo(stream))),
                Err(error) => eprintln!("accept: {error}"),
            }
        }
    })
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = BytesMut::with_capacity(8_192);
    let mut out = BytesMut::with_capacity(8_192);
    loop {
        read.reserve(4_096);
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        while let Some(head) = read.first_chunk() {
            let whole = 4 + u32::from_be_bytes(*head) as usize;
            if whole > LARGEST {
                return Ok(());
            }
            if read.len() < whole {
                break;
            }
            out.extend_from_slice(&read[..whole]);
            read.advance(whole);
        }
        stream.write_all(&out).await?;
        out.clear();
    }
}
