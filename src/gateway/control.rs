//! The control socket: the only way by which a request changes the running gateway.
//!
//! A Unix socket that its owner alone may use (mode 0600). It knows one request, `POST /reload`, and serves one
//! caller at a time, for at most five seconds each: callers are a person or a script of the same user.

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

use crate::actors::clock;

const PATIENCE: Duration = Duration::from_secs(5);

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

/// Serves the socket for ever. `reload` answers whether it was applied, and what it did or why it was refused.
pub(super) async fn serve(socket: UnixListener, reload: impl FnMut() -> (bool, String)) {
    let reload = Rc::new(RefCell::new(reload));
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket could not accept");
                clock::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        let reload = reload.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let reload = reload.clone();
            async move { Ok::<_, Infallible>(answer(&request, &reload)) }
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
    }
}

fn answer(request: &Request<Incoming>, reload: &Rc<RefCell<impl FnMut() -> (bool, String)>>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::POST, "/reload") => match reload.try_borrow_mut() {
            Ok(mut reload) => {
                let (applied, text) = reload();
                (if applied { StatusCode::OK } else { StatusCode::CONFLICT }, text)
            }
            Err(_) => (StatusCode::CONFLICT, "another reload is under way".to_owned()),
        },
        (_, "/reload") => (StatusCode::METHOD_NOT_ALLOWED, "POST /reload".to_owned()),
        _ => (StatusCode::NOT_FOUND, "this socket knows POST /reload".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
