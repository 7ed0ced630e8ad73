//! Asks a server whether it is well: one request, of which the status is all that counts.
//!
//! For active checks of servers that speak TLS or HTTP/2. The connection is made for it and ends with it; whoever asks
//! bounds the time it may take.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;

use super::body::ToServer;
use super::dial::dial;
use super::nursery::Nursery;
use super::site::{Upstream, Version};
use crate::transports::kit::balance::Address;

/// The status with which a server answers `GET` of this path. Without a path it is enough that it can be spoken to:
/// that is 200.
///
/// # Errors
/// What kept it from being reached or from answering. An [`io::ErrorKind::Other`] is its own fault.
pub async fn ask(upstream: &Arc<Upstream>, address: &Address, path: Option<&str>) -> io::Result<StatusCode> {
    let other = |error: hyper::Error| io::Error::other(error.to_string());
    let dialled = dial(upstream, upstream.version, address).await;
    let dialled = dialled.map_err(|not| io::Error::other(not.why))?;
    let Some(path) = path else { return Ok(StatusCode::OK) };
    let host = match address {
        Address::Tls { name, .. } => name.to_string(),
        Address::Unix(_) => "localhost".to_owned(),
        Address::Tcp(_) | Address::Quic { .. } | Address::Udp(_) => address.to_string(),
    };
    let request = |target: String| {
        Request::get(target)
            .header(header::USER_AGENT, "portway-check")
            .header(header::ACCEPT, "*/*")
            .body(ToServer::Empty)
            .map_err(|error| io::Error::other(error.to_string()))
    };
    let io = TokioIo::new(dialled.stream);
    if dialled.http2 {
        let scheme = if upstream.tls.is_some() { "https" } else { "http" };
        let nursery = Nursery::default();
        let (mut sender, mut connection) = http2::handshake(nursery.clone(), io).await.map_err(other)?;
        let asked = sender.send_request(request(format!("{scheme}://{host}{path}"))?);
        let answer = both(asked, |cx| {
            let done = Pin::new(&mut connection).poll(cx).is_ready();
            if nursery.poll(cx) && !done { Pin::new(&mut connection).poll(cx).is_ready() } else { done }
        });
        return answer.await.map(|response| response.status());
    }
    let (mut sender, mut connection) = http1::handshake(io).await.map_err(other)?;
    let mut request = request(path.to_owned())?;
    if let Ok(host) = header::HeaderValue::try_from(host) {
        request.headers_mut().insert(header::HOST, host);
    }
    let answer = both(sender.send_request(request), |cx| Pin::new(&mut connection).poll(cx).is_ready());
    answer.await.map(|response| response.status())
}

/// The answer, while the connection is polled beside it.
async fn both(
    asked: impl Future<Output = hyper::Result<Response<Incoming>>>,
    mut connection: impl FnMut(&mut std::task::Context<'_>) -> bool,
) -> io::Result<Response<Incoming>> {
    let mut asked = std::pin::pin!(asked);
    let mut ended = false;
    poll_fn(|cx| {
        ended = ended || connection(cx);
        match asked.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(answer.map_err(|error| io::Error::other(error.to_string()))),
            Poll::Pending if ended => Poll::Ready(Err(io::Error::other("the server closed the connection"))),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

impl Upstream {
    /// Whether a plain request of HTTP/1.1 would not be understood by its servers.
    #[must_use]
    pub fn is_asked_in_its_own_way(&self) -> bool {
        self.tls.is_some() || self.version != Version::One
    }

    /// Whether a TLS handshake with its servers decides about the version of HTTP.
    #[must_use]
    pub fn agrees_on_a_version(&self) -> bool {
        self.tls.is_some() && self.version != Version::One
    }
}
