//! Pipes of the kernel's that carry bytes from socket to socket without copying them (splice(2)), pooled per arbiter.
//!
//! A relay takes a pipe only while bytes of it are on their way and hands it back empty, so few are needed: each arbiter
//! makes [`MOST`] at most and keeps [`SPARES`] that are not in use. When there is no pipe to be had, for that reason or
//! because the process is short of descriptors, `take` says so at once and the relay copies. A pipe that is not empty is
//! closed and never used again: what is in it belongs to somebody.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// Pipes of one arbiter in use at once. Each takes two file descriptors.
const MOST: usize = 256;
/// Pipes kept for later.
const SPARES: usize = 16;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { spares: Vec::new(), lent: 0 }) };
}

struct Pool {
    spares: Vec<Ends>,
    lent: usize,
}

struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// A stream that the kernel can move bytes from and to.
#[derive(Debug, Clone, Copy)]
pub enum Plain<'a> {
    /// TCP.
    Tcp(&'a TcpStream),
    /// A Unix socket.
    Unix(&'a UnixStream),
}

/// A pipe in use.
pub(super) struct Pipe {
    ends: Option<Ends>,
    inside: usize,
}

impl Pipe {
    /// A pipe of this arbiter, if there is one to be had.
    pub(super) fn take() -> Option<Self> {
        POOL.with_borrow_mut(|pool| {
            if pool.lent >= MOST {
                return None;
            }
            let ends = match pool.spares.pop() {
                Some(ends) => ends,
                None => {
                    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                    Ends { reader, writer }
                }
            };
            pool.lent += 1;
            Some(Self { ends: Some(ends), inside: 0 })
        })
    }

    /// Moves up to `most` bytes from a socket into this pipe, which is empty; 0: the socket's other side has ended.
    /// `WouldBlock` means that splice sees nothing to take, which is not the same as that there is nothing to read: it
    /// stops in front of urgent data. A read must follow; its answer counts, and it arranges the wake-up.
    pub(super) fn fill(&mut self, from: Plain<'_>, most: usize, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        let ready = match from {
            Plain::Tcp(tcp) => tcp.poll_read_ready(&mut cx_of(cx)),
            Plain::Unix(unix) => unix.poll_read_ready(&mut cx_of(cx)),
        };
        match ready {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {}
        }
        let moved = match from {
            Plain::Tcp(tcp) => splice(tcp, None, &ends.writer, None, most, SpliceFlags::NONBLOCK),
            Plain::Unix(unix) => splice(unix, None, &ends.writer, None, most, SpliceFlags::NONBLOCK),
        };
        Poll::Ready(moved.inspect(|count| self.inside += count).map_err(io::Error::from))
    }

    /// Moves up to `count` bytes of those inside to a socket. Never ready with nothing moved. Where the process does not
    /// ignore SIGPIPE, as Rust programs do, a socket that is gone raises it.
    pub(super) fn empty(&mut self, to: Plain<'_>, count: usize, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Err(io::ErrorKind::WriteZero.into())) };
        loop {
            let ready = match to {
                Plain::Tcp(tcp) => tcp.poll_write_ready(&mut cx_of(cx)),
                Plain::Unix(unix) => unix.poll_write_ready(&mut cx_of(cx)),
            };
            match ready {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let flags = SpliceFlags::NONBLOCK;
            let moved = match to {
                Plain::Tcp(tcp) => {
                    tcp.try_io(Interest::WRITABLE, || Ok(splice(&ends.reader, None, tcp, None, count, flags)?))
                }
                Plain::Unix(unix) => {
                    unix.try_io(Interest::WRITABLE, || Ok(splice(&ends.reader, None, unix, None, count, flags)?))
                }
            };
            match moved {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.inside = self.inside.saturating_sub(count);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn cx_of<'a>(cx: &Context<'a>) -> Context<'a> {
    Context::from_waker(cx.waker())
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let ends = self.ends.take().filter(|_| self.inside == 0);
        // At the end of the thread there is no pool any more.
        let _closed = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            pool.lent = pool.lent.saturating_sub(1);
            if pool.spares.len() < SPARES {
                pool.spares.extend(ends);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arbiter_lends_so_many_pipes_and_keeps_a_few() {
        let mut lent: Vec<Pipe> = (0..MOST).map(|_| Pipe::take().unwrap()).collect();
        assert!(Pipe::take().is_none());
        lent.pop();
        lent.push(Pipe::take().unwrap());
        assert!(Pipe::take().is_none());
        drop(lent);
        POOL.with_borrow(|pool| assert_eq!((pool.lent, pool.spares.len()), (0, SPARES)));
    }

    #[test]
    fn a_pipe_that_is_not_empty_is_not_kept() {
        let mut pipe = Pipe::take().unwrap();
        pipe.inside = 1;
        drop(pipe);
        POOL.with_borrow(|pool| assert_eq!((pool.lent, pool.spares.len()), (0, 0)));
    }
}
