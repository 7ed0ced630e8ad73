//! The floor for the TCP relay: plain tokio, one task per connection, bytes copied both ways until both ends have ended.
//!
//!     tcpcopy [--listen 127.0.0.1:9100] [--target 127.0.0.1:9000]
//!
//! No limits, no time limits, no second server, no record of anything.

use std::net::SocketAddr;

use portway_peers::{Args, raise_open_files};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    raise_open_files();
    let target = args.text("target", "127.0.0.1:9000").parse().expect("--target: an address and a port");
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(args.text("listen", "127.0.0.1:9100").parse().expect("an address"))?;
        let listener = socket.listen(4_096)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(copy(stream, target))),
                Err(error) => eprintln!("accept: {error}"),
            }
        }
    })
}

async fn copy(mut client: TcpStream, target: SocketAddr) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
