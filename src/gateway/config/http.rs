//! The part of the checked configuration that speaks of HTTP.

use std::path::PathBuf;
use std::time::Duration;

use super::ListenerTls;
use crate::memory::Secret;

/// A listener that speaks HTTP/1.1 and HTTP/2, and HTTP/3 over UDP on the same port if it has TLS. `[listener.limits]` holds: `first_message` is not used, `idle` is the
/// longest silence between two requests.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Who it is; `None`: without TLS.
    pub tls: Option<ListenerTls>,
    /// What becomes of requests; at least one.
    pub routes: Vec<HttpRoute>,
    /// What clients may do.
    pub settings: HttpSettings,
}

/// `[listener.http]`: what clients may do.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Bytes of a head, 1 KiB to 1 MiB. Default 32 KiB.
    pub head_bytes: usize,
    /// Fields of a head, 1 to 10 000. Default 100.
    pub head_fields: usize,
    /// How long a head may take, the handshake before the first included. Default 10 s.
    pub head_timeout: Duration,
    /// Longest silence of a client inside a body. Default 30 s.
    pub body_timeout: Duration,
    /// How long a client may take nothing of an answer. Default 30 s.
    pub send_timeout: Duration,
    /// Requests on one connection before it is closed; 0 = any number. Default 0.
    pub requests: u64,
    /// Requests of one HTTP/2 connection at the same time, 1 to 10 000. Default 100.
    pub streams: u32,
    /// Networks of proxies whose word about their clients counts. Default none.
    pub trusted_proxies: Vec<String>,
    /// Whether each request is logged. Default `false`.
    pub access_log: bool,
    /// What its lines say; empty: all but what browsers say of themselves. Default empty.
    pub access_fields: Vec<String>,
    /// Whether HTTP/3 is spoken, over UDP on the port of the listener, and announced by `Alt-Svc`. Default: with TLS.
    pub http3: bool,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            head_bytes: 32 << 10,
            head_fields: 100,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            send_timeout: Duration::from_secs(30),
            requests: 0,
            streams: 100,
            trusted_proxies: Vec::new(),
            access_log: false,
            access_fields: Vec::new(),
            http3: cfg!(feature = "quic"),
        }
    }
}

/// `[[listener.route]]` of an HTTP listener.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRoute {
    /// Its name in metrics. Default: its number, from 1.
    pub name: String,
    /// A host name in lower case, or `*.` and one: any name below it. Default: any host.
    pub host: Option<String>,
    /// What is asked of the path. Default the prefix `/`.
    pub path: HttpPath,
    /// One of these methods; empty: any.
    pub methods: Vec<String>,
    /// Fields a request must have, in lower case, with a value or any.
    pub headers: Vec<(String, Option<String>)>,
    /// What answers.
    pub action: HttpAction,
    /// Whether the prefix is taken off the path before it is passed on. Default `false`.
    pub strip_prefix: bool,
    /// How long a server may take for the head of its answer, and be silent inside it. Default 60 s.
    pub timeout: Duration,
    /// How often a request that is safe to repeat is sent again, 0 to 10. Default 2.
    pub retries: u32,
    /// Bytes of the largest body of a request. Default 1 GiB.
    pub max_body: u64,
    /// What takes the place of the path's prefix, of the path, or of what fits the expression (`$1` for its groups).
    /// Default: the path stays.
    pub rewrite: Option<String>,
    /// Who may pass, and how often.
    pub guards: HttpGuards,
    /// Which fields are changed.
    pub edits: HttpEdits,
}

/// Who may pass a route, and how often.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpGuards {
    /// How often. Default: without limit.
    pub rate: Option<HttpRate>,
    /// What the file of users says: lines of a name and a bcrypt hash. Default: nobody is asked for a password.
    pub basic_auth: Option<Secret>,
    /// What a bearer's token must be. Default: nobody is asked for one.
    pub tokens: Option<HttpTokens>,
}

/// How often a route may be asked.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpRate {
    /// So many requests, 1 to 1 000 000,
    pub count: u32,
    /// in this time. Default 1 s.
    pub per: Duration,
    /// So many at once. Default: as many as in that time.
    pub burst: u32,
    /// All sources together; else each on its own. Default `false`.
    pub by_route: bool,
}

/// What a token must be (RFC 7519).
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTokens {
    /// How it is signed.
    pub algorithm: String,
    /// A shared secret, or a public key in PEM.
    pub key: Secret,
    /// Who must have issued it. Default: anybody who has the key.
    pub issuer: Option<String>,
    /// For whom it must be. Default: not looked at.
    pub audience: Option<String>,
}

/// Changes to the fields of requests and answers: removed first, then set, then added.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpEdits {
    /// `name: value`, in the place of all of that name.
    pub request_set: Vec<String>,
    /// `name: value`, behind those of that name.
    pub request_add: Vec<String>,
    /// Names.
    pub request_remove: Vec<String>,
    /// As for requests.
    pub response_set: Vec<String>,
    /// As for requests.
    pub response_add: Vec<String>,
    /// As for requests.
    pub response_remove: Vec<String>,
}

/// What a route asks of the path.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpPath {
    /// To begin with these segments.
    Prefix(String),
    /// To be this.
    Exact(String),
    /// To fit this regular expression.
    Pattern(String),
}

/// What answers.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAction {
    /// A server of this upstream.
    Upstream(String),
    /// Always the same.
    #[non_exhaustive]
    Respond {
        /// The status. Default 200.
        status: u16,
        /// The body. Default: the words of the status.
        body: String,
    },
    /// Somewhere else.
    #[non_exhaustive]
    Redirect {
        /// 301, 302, 303, 307 or 308. Default 308.
        status: u16,
        /// Where; `{host}`, `{path}` and `{query}` stand for those of the request.
        to: String,
    },
    /// Files below a folder.
    #[non_exhaustive]
    Static {
        /// The folder.
        root: PathBuf,
        /// Which folder that was when the configuration was read: device and number. Another one in its place is a
        /// change, for which a reload opens it.
        folder: (u64, u64),
        /// The file that stands for a folder. Default `index.html`.
        index: String,
    },
    /// A page that shows the request.
    Demo,
    /// The SHA-256 of a certificate in hexadecimal digits, as it is when the configuration is taken up: for pages that
    /// open sessions of WebTransport by the hash of a certificate that no authority has signed.
    #[non_exhaustive]
    Fingerprint {
        /// The name of the certificate: the first of the file.
        certificate: String,
    },
    /// A relay of Media over QUIC in sessions of WebTransport.
    #[non_exhaustive]
    Moq {
        /// Pages that may open sessions, by their origins. Default: all.
        origins: Vec<String>,
    },
    /// Sessions of WebTransport.
    #[non_exhaustive]
    Session {
        /// Protocols inside, the most wanted first. Default none.
        protocols: Vec<String>,
        /// Pages that may open one, by their origins, in small letters. Default: all.
        origins: Vec<String>,
        /// Whether everything goes back to where it came from.
        echo: bool,
        /// The upstream that streams go to, each to a server of its own. Default: none, they are refused.
        upstream: Option<String>,
        /// The upstream that datagrams go to. Default: where the streams go if that is over QUIC, else none.
        datagrams: Option<String>,
    },
}

/// Which HTTP the servers of an upstream speak.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    One,
    /// HTTP/2, known beforehand; over TLS a server that does not agree to it is not used.
    Two,
    /// What a server chooses in its TLS handshake, HTTP/2 offered first.
    Agreed,
}

/// `[upstream.http]`: how servers are spoken to that answer HTTP.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamHttp {
    /// Which HTTP its servers speak. Default HTTP/1.1.
    pub version: HttpVersion,
    /// How long a connection without a request is kept. Default 60 s.
    pub idle: Duration,
    /// Connections kept so, per server and arbiter. Default 128.
    pub idle_connections: usize,
    /// Requests per arbiter that may wait while all servers have as many as they may. Default 1 024.
    pub pending: usize,
}

impl Default for UpstreamHttp {
    fn default() -> Self {
        Self { version: HttpVersion::One, idle: Duration::from_secs(60), idle_connections: 128, pending: 1_024 }
    }
}
