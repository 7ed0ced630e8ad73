//! A decision about requests by code of one's own: for programs that embed the library.

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};

/// Decides about each request of a route, behind its limit and its passwords and before what answers.
///
/// It is called on the arbiter of the client's connection, many times a second and from several threads: it must not
/// wait. A panic in it ends that one connection and is counted.
pub trait Hook: fmt::Debug + Send + Sync + 'static {
    /// Request in, decision out.
    fn decide(&self, request: &Asked<'_>) -> Decision;
}

/// A request as a hook sees it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// What it asks for; the path is one that no two readers understand differently.
    pub uri: &'a Uri,
    /// Its fields, as the client sent them.
    pub fields: &'a HeaderMap,
    /// Who is connected.
    pub peer: SocketAddr,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It goes on.
    Pass,
    /// It goes on with these fields, in the place of all of these names.
    PassWith(Vec<(HeaderName, HeaderValue)>),
    /// It is answered here, and counted in `http_denied` as `hook`.
    Answer {
        /// The status.
        status: StatusCode,
        /// The body, plain text.
        body: Bytes,
    },
}
