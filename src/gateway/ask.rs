//! The command line's side of the admin listener: one request to a running gateway.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::Overview;
use crate::actors::clock;

/// A gateway answers within a second, even if an arbiter does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// A reload waits up to 30 seconds for another one to be done, and then reads, binds and tells.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);
/// An answer is some kilobytes: per listener, kind and reason, never per connection.
const LONGEST_ANSWER: usize = 16 << 20;

/// Why a running gateway could not be asked.
#[derive(Debug)]
pub(super) struct AskGatewayError {
    whom: String,
    why: String,
}

impl fmt::Display for AskGatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the gateway did not answer on {}: {}", self.whom, self.why)
    }
}

impl std::error::Error for AskGatewayError {}

/// Asks the gateway whose admin listener is on `address` how it is.
pub(super) async fn overview(address: SocketAddr) -> Result<Overview, AskGatewayError> {
    let fail = |why: String| AskGatewayError { whom: address.to_string(), why };
    let asking = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        request(stream, Method::GET, "/api/status", &address.to_string()).await
    };
    let (status, body) = patient(PATIENCE, asking).await.map_err(fail)?;
    if status != StatusCode::OK {
        return Err(fail(format!("it answered {status}")));
    }
    serde_json::from_slice(&body).map_err(|error| fail(format!("not a portway of this version: {error}")))
}

/// Asks the gateway whose control socket is at `path` to reload: whether it did, and what or why not. Waits as long as
/// that takes.
pub(super) async fn reload(path: &Path) -> Result<(bool, String), AskGatewayError> {
    command(path, Method::POST, "/reload").await
}

/// Asks it what a reload would do, as JSON, or why that would be refused.
pub(super) async fn plan(path: &Path) -> Result<(bool, String), AskGatewayError> {
    command(path, Method::GET, "/plan").await
}

async fn command(path: &Path, method: Method, what: &str) -> Result<(bool, String), AskGatewayError> {
    let fail = |why: String| AskGatewayError { whom: path.display().to_string(), why };
    let asking = async {
        let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        request(stream, method, what, "localhost").await
    };
    let (status, body) = patient(RELOAD_PATIENCE, asking).await.map_err(fail)?;
    let text = String::from_utf8_lossy(&body).into_owned();
    match status {
        StatusCode::OK => Ok((true, text)),
        StatusCode::CONFLICT => Ok((false, text)),
        _ => Err(fail(format!("it answered {status}"))),
    }
}

async fn patient<T>(time: Duration, asking: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match clock::within(time, asking).await {
        Ok(answer) => answer,
        Err(clock::Elapsed) => Err(format!("no answer in {} s", time.as_secs())),
    }
}

async fn request<S>(stream: S, method: Method, path: &str, host: &str) -> Result<(StatusCode, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let request = Request::builder().method(method).uri(path).header(HOST, host).body(Empty::<Bytes>::new());
    let asking = async {
        let request = request.map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        body.map(|body| (status, body.to_bytes())).map_err(|error| error.to_string())
    };
    tokio::pin!(connection, asking);
    // The connection makes the request progress; it may end before the answer is read to its end.
    tokio::select! {
        answer = &mut asking => answer,
        _ended = &mut connection => asking.await,
    }
}
