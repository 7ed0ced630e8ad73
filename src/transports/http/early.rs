//! Answers before the answer: heads of status 1xx that a server sends, such as 103 (RFC 8297), on their way to a client
//! of HTTP/1.1.
//!
//! hyper writes no such heads for a server, so they are written beside it, where its last byte is written and the next
//! answer has not begun; see `wire`. Those that come too late, or find no room, are dropped, as they may be (RFC 9110,
//! section 15.2). Over HTTP/2 there is no such place: clients of it get the answer alone.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use http::{Request, StatusCode};

use super::actor::Client;
use super::body::ToServer;
use super::codec_forward::is_of_one_hop;

/// Bytes of such heads that may wait.
const MOST: usize = 16 << 10;

/// Has heads before the answer to this request passed on.
pub(super) async fn heard(client: &Rc<Client>, mut request: Request<ToServer>) -> Request<ToServer> {
    if client.has_streams() {
        return request;
    }
    let early = client.notes.early();
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    hyper::ext::on_informational(&mut request, move |head| {
        // 100 was answered here, and 101 comes by another way.
        if head.status() == StatusCode::CONTINUE || head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let mut text = format!("HTTP/1.1 {}\r\n", head.status()).into_bytes();
        for (name, value) in head.headers().iter().filter(|(name, _)| !is_of_one_hop(name)) {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        if early.push(&text, MOST) {
            waker.wake_by_ref();
        }
    });
    request
}
