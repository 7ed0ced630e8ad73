//! The command line's side of a running gateway: one request to its control socket, or to its admin listener.
//!
//! How the gateway is comes by the control socket, if there is one that this user may open, since that needs neither
//! token nor certificate; else from the admin listener, with the token of the configuration, over TLS if it speaks that.
//! Trusted is then the certificate that the configuration names, alone.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use zeroize::Zeroizing;

use super::Overview;
use super::config::{Admin, Certificate};
use crate::actors::clock;
use crate::memory::Secret;

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

/// Asks the gateway of this `[admin]` how it is.
pub(super) async fn overview(admin: &Admin, certificates: &[Certificate]) -> Result<Overview, AskGatewayError> {
    let parsed = |whom: String, body: &[u8]| {
        serde_json::from_slice(body)
            .map_err(|error| AskGatewayError { whom, why: format!("not a portway of this version: {error}") })
    };
    if let Some(path) = &admin.control
        && let Ok((true, text)) = command(path, Method::GET, "/status", PATIENCE).await
    {
        return parsed(path.display().to_string(), text.as_bytes());
    }
    let address = admin.listen;
    let fail = |why: String| AskGatewayError { whom: address.to_string(), why };
    let asking = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let asked =
            Asked { method: Method::GET, path: "/api/status", host: &address.to_string(), token: admin.token.as_ref() };
        match &admin.tls {
            None => request(stream, asked).await,
            Some(tls) => request(secure::shaken(stream, tls, certificates).await?, asked).await,
        }
    };
    let (status, body) = patient(PATIENCE, asking).await.map_err(fail)?;
    if status != StatusCode::OK {
        return Err(fail(format!("it answered {status}")));
    }
    parsed(address.to_string(), &body)
}

/// Asks the gateway whose control socket is at `path` to reload: whether it did, and what or why not. Waits as long as
/// that takes.
pub(super) async fn reload(path: &Path) -> Result<(bool, String), AskGatewayError> {
    command(path, Method::POST, "/reload", RELOAD_PATIENCE).await
}

/// Asks it what a reload would do, as JSON, or why that would be refused.
pub(super) async fn plan(path: &Path) -> Result<(bool, String), AskGatewayError> {
    command(path, Method::GET, "/plan", RELOAD_PATIENCE).await
}

async fn command(path: &Path, method: Method, what: &str, time: Duration) -> Result<(bool, String), AskGatewayError> {
    let fail = |why: String| AskGatewayError { whom: path.display().to_string(), why };
    let asking = async {
        let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        request(stream, Asked { method, path: what, host: "localhost", token: None }).await
    };
    let (status, body) = patient(time, asking).await.map_err(fail)?;
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

struct Asked<'a> {
    method: Method,
    path: &'a str,
    host: &'a str,
    token: Option<&'a Secret>,
}

async fn request<S>(stream: S, asked: Asked<'_>) -> Result<(StatusCode, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Asked { method, path, host, token } = asked;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let mut request = Request::builder().method(method).uri(path).header(HOST, host);
    if let Some(token) = token {
        let shown = Zeroizing::new([b"Bearer ".as_slice(), token.expose()].concat());
        let mut shown = HeaderValue::from_bytes(&shown).map_err(|error| error.to_string())?;
        shown.set_sensitive(true);
        request = request.header(AUTHORIZATION, shown);
    }
    let request = request.body(Empty::<Bytes>::new());
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

#[cfg(feature = "http")]
mod secure {
    //! TLS to the admin listener.

    use std::sync::Arc;

    use tokio::net::TcpStream;
    use tokio_boring::{SslStream, SslStreamBuilder};

    use crate::gateway::config::{Certificate, CertificateSource, ListenerTls};
    use crate::transports::tls::{self, ClientSettings, PeerName, Roots};

    const BY_CONTROL: &str = "add `control` to [admin] and ask by that";

    pub(super) async fn shaken(
        stream: TcpStream,
        admin: &ListenerTls,
        certificates: &[Certificate],
    ) -> Result<SslStream<TcpStream>, String> {
        if admin.client_ca.is_some() {
            return Err(format!("it asks for a certificate of the caller: {BY_CONTROL}"));
        }
        let named = admin.certificates.first();
        let source = certificates.iter().find(|known| Some(&known.name) == named).map(|known| &known.source);
        let Some(CertificateSource::Files { cert, key }) = source else {
            return Err(format!("its certificate is made anew at each start, and nobody can know it: {BY_CONTROL}"));
        };
        let own = tls::Certificate::from_files(cert, key).map_err(|error| error.to_string())?;
        let name = own.names().next().ok_or("its certificate names nobody")?.to_owned();
        let host = PeerName::new(&name.replace('*', "gateway"));
        let mut settings = ClientSettings::new(host.clone());
        settings.roots = Roots::Only(Arc::new(own));
        let context = settings.builder().map_err(|error| error.to_string())?.build();
        let mut ssl = boring::ssl::Ssl::new(&context).map_err(|error| error.to_string())?;
        if let Some(name) = host.sni() {
            ssl.set_hostname(name).map_err(|error| error.to_string())?;
        }
        SslStreamBuilder::new(ssl, stream).connect().await.map_err(|error| error.to_string())
    }
}

#[cfg(not(feature = "http"))]
mod secure {
    //! Without HTTP no admin listener speaks TLS.

    use tokio::net::TcpStream;

    use crate::gateway::config::{Certificate, ListenerTls};

    #[expect(clippy::unused_async, reason = "with HTTP it waits for the handshake")]
    pub(super) async fn shaken(_: TcpStream, _: &ListenerTls, _: &[Certificate]) -> Result<TcpStream, String> {
        Err("TLS needs a build with the feature `http`".to_owned())
    }
}
