//! The command line's side of the admin listener: one request to a running gateway.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Overview;
use crate::actors::clock;

/// A gateway answers within a second, even if an arbiter does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer is some kilobytes: per listener, kind and reason, never per connection.
const LONGEST_ANSWER: usize = 16 << 20;

/// Why a running gateway could not be asked.
#[derive(Debug)]
pub(super) struct AskGatewayError {
    address: SocketAddr,
    why: String,
}

impl fmt::Display for AskGatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the gateway's admin listener on {} did not answer: {}", self.address, self.why)
    }
}

impl std::error::Error for AskGatewayError {}

/// Asks the gateway whose admin listener is on `address` how it is.
pub(super) async fn overview(address: SocketAddr) -> Result<Overview, AskGatewayError> {
    let fail = |why: String| AskGatewayError { address, why };
    let body = match clock::within(PATIENCE, get(address, "/api/status")).await {
        Ok(answer) => answer.map_err(fail)?,
        Err(clock::Elapsed) => return Err(fail(format!("no answer in {} s", PATIENCE.as_secs()))),
    };
    serde_json::from_slice(&body).map_err(|error| fail(format!("not a portway of this version: {error}")))
}

async fn get(address: SocketAddr, path: &str) -> Result<Bytes, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let asking = async {
        let response = sender
            .send_request(request.map_err(|error| error.to_string())?)
            .await
            .map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
    };
    tokio::pin!(connection, asking);
    // The connection makes the request progress; it may end before the answer is read to its end.
    tokio::select! {
        answer = &mut asking => answer,
        _ended = &mut connection => asking.await,
    }
}
