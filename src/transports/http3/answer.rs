//! What answers the requests of a connection, and how one answer goes from its head to its last byte.
//!
//! A future of the connection's actor. It is woken when its server sends or its client has room, and dropped when its
//! client gives the request up.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Body;

use super::codec::Code;
use super::sessions::Accepted;
use super::stream::{Incoming, Last, Stream};

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head, as RFC 9114, section 4.2.2 counts them.
    pub head_bytes: usize,
    /// Fields of a head.
    pub head_fields: usize,
    /// How long a head may take, from the first byte of its stream.
    pub head_timeout: Duration,
    /// Whether sessions of WebTransport may be opened.
    pub sessions: bool,
}

/// What answers the requests of one connection. It lives in the actor of that connection.
pub trait Service: 'static {
    /// The body of its answers.
    type Body: Body<Data = Bytes> + 'static;

    /// A turn begins at this time.
    fn turn(&self, now: Instant);

    /// Answers a request. Dropped when the client gives it up.
    fn call(self: Rc<Self>, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + 'static;

    /// Answers a request for a session of WebTransport, with what runs in it.
    ///
    /// # Errors
    /// The status to answer with instead.
    fn session(&self, request: &Request<()>) -> Result<Accepted, StatusCode>;

    /// A stream lost its request, for this reason.
    fn refused(&self, reason: &'static str);

    /// The client broke a rule, and the connection is closed.
    fn failed(&self, code: Code);

    /// An answer went on, or waits for the client to take more.
    fn wrote(&self, waits: bool);

    /// Calls those of its answers whose time has come, and says when to look again.
    fn tick(&self) -> Option<Instant>;

    /// What the client is late with, if it is: the connection is closed.
    fn late(&self) -> Option<&'static str>;

    /// Whether no more requests are wanted on this connection.
    fn is_closing(&self) -> bool;

    /// It is to end by then.
    fn drain(&self, by: Instant);
}

/// One answer, from the request to its last byte.
pub(super) async fn exchange<S: Service>(
    service: Rc<S>,
    request: Request<Incoming>,
    stream: Rc<Stream>,
    id: u64,
) -> u64 {
    let head = *request.method() == Method::HEAD;
    let mut work = pin!(respond(service, request, &stream, head));
    poll_fn(|cx| if stream.poll_given_up(cx).is_ready() { Poll::Ready(()) } else { work.as_mut().poll(cx) }).await;
    id
}

async fn respond<S: Service>(service: Rc<S>, request: Request<Incoming>, stream: &Stream, head: bool) {
    let (mut parts, body) = service.call(request).await.into_parts();
    let status = parts.status;
    let no_body = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED || status.is_informational();
    if !no_body
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    stream.put_head(status, &parts.headers);
    if head || no_body {
        drop(body);
        stream.ends(Last::Finish);
        return;
    }
    let mut body = pin!(body);
    loop {
        if body.is_end_stream() {
            break;
        }
        match poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            Some(Ok(frame)) => {
                match frame.into_data() {
                    Ok(data) => stream.put_data(data),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            stream.put_trailers(&trailers);
                        }
                    }
                }
                poll_fn(|cx| stream.poll_room(cx)).await;
            }
            // What was sent is not all there is: the client must not take it for that.
            Some(Err(_)) => {
                stream.ends(Last::Reset(Code::InternalError));
                return;
            }
            None => break,
        }
    }
    stream.ends(Last::Finish);
}
