//! The control socket: the way to change the running gateway that needs no token.
//!
//! A Unix socket that its owner alone may use (mode 0600). It knows `POST /reload`, which waits until that is done or
//! refused, `GET /plan`, what a reload would do, and `GET /status`, whatever the admin listener demands of its callers.
//! It serves one caller at a time: callers are a person or a script of the same user, who has five seconds to say what
//! is wanted. They are let in also when no descriptor is left, and a reload has some for the files it reads.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::Mode;
use tokio::net::UnixListener;

use super::spare::Spare;
use crate::actors::clock;

const PATIENCE: Duration = Duration::from_secs(5);
/// One for the caller, and some for the configuration, its certificates and keys, which are read one after the other.
const KEPT_BACK: usize = 8;

/// Opens the socket. What a gateway that is gone has left behind is replaced; a socket that somebody serves is not.
///
/// # Errors
/// What the system says; `AddrInUse` when a gateway answers there already, or the path is something else.
pub(super) fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() || std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    // The process has one thread yet, so nobody else makes a file under this mask.
    let before = rustix::process::umask(Mode::from_bits_truncate(0o177));
    let socket = std::os::unix::net::UnixListener::bind(path);
    rustix::process::umask(before);
    let socket = socket?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Read the configuration again and apply it.
    Reload,
    /// Read the configuration again and say, as JSON, what applying it would do.
    Plan,
    /// Say, as JSON, how the gateway is.
    Status,
}

/// Serves the socket for ever. `run` answers whether a command was carried out, and what it did or why it was refused.
pub(super) async fn serve(socket: UnixListener, run: impl AsyncFn(Command) -> (bool, String)) {
    let run = Rc::new(run);
    let spare = Rc::new(RefCell::new(Spare::new(KEPT_BACK)));
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if spare.borrow_mut().makes_room(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "the control socket could not accept");
                clock::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        let (run, kept) = (run.clone(), spare.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (run, spare) = (run.clone(), kept.clone());
            async move { Ok::<_, Infallible>(answer(&request, &*run, &spare).await) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match clock::within(PATIENCE, serving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a caller of the control socket went away"),
            Err(clock::Elapsed) => tracing::warn!("a caller of the control socket was too slow"),
        }
        spare.borrow_mut().refill();
    }
}

async fn answer(
    request: &Request<Incoming>,
    run: &impl AsyncFn(Command) -> (bool, String),
    spare: &RefCell<Spare>,
) -> Response<Full<Bytes>> {
    const KNOWN: &str = "this socket knows POST /reload, GET /plan and GET /status";
    let command = match (request.method(), request.uri().path()) {
        (&Method::POST, "/reload") => Ok(Command::Reload),
        (&Method::GET, "/plan") => Ok(Command::Plan),
        (&Method::GET, "/status") => Ok(Command::Status),
        (_, "/reload" | "/plan" | "/status") => Err(StatusCode::METHOD_NOT_ALLOWED),
        _ => Err(StatusCode::NOT_FOUND),
    };
    let (status, text) = match command {
        Err(status) => (status, KNOWN.to_owned()),
        Ok(command) => {
            if command != Command::Status {
                spare.borrow_mut().give_up();
            }
            let (done, text) = run(command).await;
            if command == Command::Reload {
                tracing::info!(target: "audit", peer = "control socket", action = "reload", fine = done, "audit: done");
            }
            (if done { StatusCode::OK } else { StatusCode::CONFLICT }, text)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
