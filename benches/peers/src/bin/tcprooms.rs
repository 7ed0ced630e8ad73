//! The floor for rooms: plain tokio, one task per connection, what one says written to all others in one bare loop.
//!
//!     tcprooms [--listen 127.0.0.1:9100]
//!
//! The frames of the gateway's `rooms`, and one room only: `J` is answered by itself, `M` goes to everybody else. No
//! queues, no limits, no policy for who is slow: a frame that a socket does not take at once is lost.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use portway_peers::{Args, raise_open_files};
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::{LocalSet, spawn_local};

type Members = Rc<RefCell<Vec<Rc<OwnedWriteHalf>>>>;

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(args.text("listen", "127.0.0.1:9100").parse().expect("an address"))?;
        let listener = socket.listen(4_096)?;
        let members = Members::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (read, write) = stream.into_split();
            let (write, members) = (Rc::new(write), members.clone());
            spawn_local(async move {
                if let Err(error) = member(read, &write, &members).await {
                    eprintln!("member: {error}");
                }
                members.borrow_mut().retain(|other| !Rc::ptr_eq(other, &write));
            });
        }
    })
}

async fn member(mut read: OwnedReadHalf, write: &Rc<OwnedWriteHalf>, members: &Members) -> std::io::Result<()> {
    let mut bytes = BytesMut::with_capacity(4_096);
    while read.read_buf(&mut bytes).await? > 0 {
        while let Some(head) = bytes.first_chunk() {
            let whole = 4 + u32::from_be_bytes(*head) as usize;
            if bytes.len() < whole {
                break;
            }
            let frame = &bytes[..whole];
            match frame.get(4) {
                Some(b'J') => {
                    write.try_write(frame)?;
                    members.borrow_mut().push(write.clone());
                }
                Some(b'M') => {
                    for other in members.borrow().iter().filter(|other| !Rc::ptr_eq(other, write)) {
                        // Its own task sees the end of a stream that broke.
                        drop(other.try_write(frame));
                    }
                }
                _ => {}
            }
            bytes.advance(whole);
        }
    }
    Ok(())
}
