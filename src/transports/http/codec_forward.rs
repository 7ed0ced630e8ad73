//! What a gateway changes in the fields of a message that it passes on.
//!
//! Fields of one hop stay behind (RFC 9110, section 7.6.1); the server learns who asked, by what name and how:
//! `Forwarded` (RFC 7239), `X-Forwarded-For`, `-Proto` and `-Host`, `X-Request-Id` and `Via`. What a client says about
//! itself there is believed only if it is a proxy that the configuration names, and taken away otherwise.

use std::fmt::Write;
use std::net::IpAddr;

use bytes::Bytes;
use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::state_routes::host_of;

/// `X-Forwarded-For`.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// The name by which a request is found in logs on both sides.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Fields that [`to_server`] adds to a request.
const ADDED: usize = 7;
/// The longest request id that is taken over from a trusted proxy.
const LONGEST_ID: usize = 128;

/// Who sends requests, and by what name it asks for them. It holds what servers are told of that, ready to be copied:
/// most requests of a connection ask for one name.
#[derive(Debug, Clone)]
pub struct Sender {
    tls: bool,
    trusted: bool,
    version: Version,
    authority: String,
    host: String,
    /// The authority, the address and both together, as fields say them.
    named: HeaderValue,
    address: HeaderValue,
    forwarded: HeaderValue,
}

/// How a client is connected.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Its address.
    pub address: IpAddr,
    /// Whether it came over TLS.
    pub tls: bool,
    /// Whether it is a proxy whose word counts.
    pub trusted: bool,
    /// The version of HTTP it speaks.
    pub version: Version,
}

impl Sender {
    /// Of requests for this authority; nothing if no field could name it.
    #[must_use]
    pub fn new(way: Way, authority: &str) -> Option<Self> {
        let address = way.address.to_canonical();
        let shared = |text: String| HeaderValue::from_maybe_shared(Bytes::from(text)).ok();
        Some(Self {
            tls: way.tls,
            trusted: way.trusted,
            version: way.version,
            authority: authority.to_owned(),
            host: host_of(authority),
            named: shared(authority.to_owned())?,
            address: shared(address.to_string())?,
            forwarded: shared(forwarded(address, authority, way.tls))?,
        })
    }

    /// What it asks for.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host of that, as routes name it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The authority as `Host` says it.
    #[must_use]
    pub fn named(&self) -> HeaderValue {
        self.named.clone()
    }
}

/// Takes away what concerns one hop only. An upgrade goes with it.
pub fn strip_hop(fields: &mut HeaderMap) {
    // Most messages have none or one of these: one look at all names costs less than to ask for each.
    take_hop(fields, fields.keys().fold(0, |found, name| found | hop(name.as_str())));
}

/// Takes away those of [`HOP`] that were found.
fn take_hop(fields: &mut HeaderMap, found: u8) {
    if found & 1 != 0 {
        let mut named = Vec::new();
        for value in fields.get_all(header::CONNECTION) {
            let names = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
            // Mostly it says one of these, which name no other field or one that goes anyhow.
            let names = names.filter(|n| !n.eq_ignore_ascii_case(b"keep-alive") && !n.eq_ignore_ascii_case(b"close"));
            // What frames or routes the message cannot be taken away by its sender.
            let names = names.filter_map(|name| HeaderName::from_bytes(name).ok());
            named.extend(names.filter(|name| {
                *name != header::HOST && *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING
            }));
        }
        for name in named {
            fields.remove(name);
        }
    }
    for (at, name) in HOP.iter().enumerate().filter(|(at, _)| found & (1 << at) != 0) {
        debug_assert_eq!(hop(name.as_str()), 1 << at);
        fields.remove(name);
    }
}

/// What concerns one hop, the list of which comes first.
const HOP: [HeaderName; 6] =
    [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, HTTP2_SETTINGS];

/// The bit of a field among those of [`HOP`]; 0 for all others.
fn hop(name: &str) -> u8 {
    match name {
        "connection" => 1,
        "keep-alive" => 2,
        "proxy-connection" => 4,
        "transfer-encoding" => 8,
        "upgrade" => 16,
        "http2-settings" => 32,
        _ => 0,
    }
}

/// Whether a field concerns one hop, or the framing of a message.
#[must_use]
pub fn is_of_one_hop(name: &HeaderName) -> bool {
    let framing = [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::UPGRADE];
    framing.contains(name) || [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS].contains(name)
}

/// Whether the head of a server's answer of HTTP/1.1 says in one way how its body is framed: by one length that is a
/// number, or as `chunked` and nothing else (RFC 9112, sections 6.1 and 6.3). What says more is read differently by
/// different parsers, and its length does not hold for what is passed on.
#[must_use]
pub fn is_framed_once(version: Version, fields: &HeaderMap) -> bool {
    let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => true,
        (None, Some(length)) => {
            lengths.next().is_none() && !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
        }
        (Some(coding), None) => {
            version != Version::HTTP_10
                && codings.next().is_none()
                && coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        }
        (Some(_), Some(_)) => false,
    }
}

/// Whether a client asks for a WebSocket (RFC 6455, section 4.1), the one switch of protocols that is passed on.
#[must_use]
pub fn asks_for_websocket(fields: &HeaderMap) -> bool {
    if !fields.contains_key(header::UPGRADE) {
        return false;
    }
    let upgrades = fields.get_all(header::CONNECTION).iter().any(|value| {
        value.as_bytes().split(|b| *b == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let mut protocols = fields.get_all(header::UPGRADE).iter();
    let websocket = protocols.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    upgrades && websocket && protocols.next().is_none()
}

/// Makes the fields of a client's request those of a request to a server. `id` names it unless a trusted proxy has.
pub fn to_server(fields: &mut HeaderMap, sender: &Sender, id: impl FnOnce() -> HeaderValue) {
    // For what is added below, at once.
    fields.reserve(ADDED);
    // Most requests have none of these: one look at all names costs less than to ask for each.
    let (mut found, mut te, mut own, mut claims) = (0, false, false, false);
    for name in fields.keys() {
        match name.as_str() {
            "te" => te = true,
            "expect" | "proxy-authorization" => own = true,
            name => {
                claims |= claims_who(name);
                found |= hop(name);
            }
        }
    }
    let trailers = te
        && fields.get_all(header::TE).iter().any(|value| {
            value.as_bytes().split(|b| *b == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        });
    take_hop(fields, found);
    if trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    } else if te {
        fields.remove(header::TE);
    }
    if own {
        // Answered here: the body is asked for when the server takes it.
        fields.remove(header::EXPECT);
        fields.remove(header::PROXY_AUTHORIZATION);
    }
    if claims && !sender.trusted {
        let lies: Vec<HeaderName> = fields.keys().filter(|name| claims_who(name.as_str())).cloned().collect();
        for name in lies {
            fields.remove(name);
        }
    }
    say_who(fields, sender);
    let known = sender.trusted
        && fields
            .get(X_REQUEST_ID)
            .is_some_and(|id| (1..=LONGEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic));
    if !known {
        fields.insert(X_REQUEST_ID, id());
    }
    fields.append(header::VIA, via(sender.version));
}

/// Whether a field says something of the client that a proxy would say: `X-Forwarded-` anything, `X-Real-IP`,
/// `X-Request-Id`, also with low lines, which some servers take for hyphens.
fn claims_who(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("x-").or_else(|| name.strip_prefix("x_")) else { return false };
    let is = |known: &str| {
        rest.len() >= known.len() && rest.bytes().zip(known.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    };
    is("forwarded") || ["real-ip", "request-id"].iter().any(|known| rest.len() == known.len() && is(known))
}

/// What this hop is called (RFC 9110, section 7.6.3).
fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_3 => "3 portway",
        Version::HTTP_2 => "2 portway",
        _ => "1.1 portway",
    })
}

/// Whom the last proxy of a chain says it was asked by, in `X-Forwarded-For`.
#[must_use]
pub fn last_forwarded(fields: &HeaderMap) -> Option<IpAddr> {
    let last = fields.get_all(X_FORWARDED_FOR).iter().next_back()?;
    last.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
}

/// Joins the pieces in which HTTP/2 sends cookies, for servers that read one field (RFC 9113, section 8.2.3).
pub fn join_cookies(fields: &mut HeaderMap) {
    let mut cookies = fields.get_all(header::COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        fields.insert(header::COOKIE, joined);
    }
}

fn say_who(fields: &mut HeaderMap, sender: &Sender) {
    let proto = HeaderValue::from_static(if sender.tls { "https" } else { "http" });
    let (address, forwarded, named) = (sender.address.clone(), sender.forwarded.clone(), sender.named.clone());
    if sender.trusted {
        let before = joined(fields, &X_FORWARDED_FOR);
        fields.insert(X_FORWARDED_FOR, appended(before, address.clone()));
        let before = joined(fields, &header::FORWARDED);
        fields.insert(header::FORWARDED, appended(before, forwarded));
        // The first proxy knows by what name and how it was asked.
        if !fields.contains_key(X_FORWARDED_PROTO) {
            fields.insert(X_FORWARDED_PROTO, proto);
        }
        if !fields.contains_key(X_FORWARDED_HOST) {
            fields.insert(X_FORWARDED_HOST, named);
        }
        if !fields.contains_key(X_REAL_IP) {
            fields.insert(X_REAL_IP, address);
        }
        return;
    }
    fields.insert(X_FORWARDED_FOR, address.clone());
    fields.insert(header::FORWARDED, forwarded);
    fields.insert(X_FORWARDED_PROTO, proto);
    fields.insert(X_FORWARDED_HOST, named);
    fields.insert(X_REAL_IP, address);
}

/// RFC 7239, section 4; an IPv6 address stands in brackets and quotes (section 6).
fn forwarded(address: IpAddr, authority: &str, tls: bool) -> String {
    let mut text = String::with_capacity(64);
    let proto = if tls { "https" } else { "http" };
    // Writing to a string cannot fail.
    let _written = match address {
        IpAddr::V4(v4) => write!(text, "for={v4};host=\"{authority}\";proto={proto}"),
        IpAddr::V6(v6) => write!(text, "for=\"[{v6}]\";host=\"{authority}\";proto={proto}"),
    };
    text
}

fn joined(fields: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let values: Vec<&[u8]> = fields.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.join(&b", "[..])
}

fn appended(mut before: Vec<u8>, last: HeaderValue) -> HeaderValue {
    if before.is_empty() {
        return last;
    }
    before.extend_from_slice(b", ");
    before.extend_from_slice(last.as_bytes());
    HeaderValue::from_bytes(&before).unwrap_or(last)
}

/// A network of addresses, `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: u128,
    bits: u8,
    v4: bool,
}

impl Network {
    /// Reads an address, or an address and a number of bits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        let network = Self { address: number(address), bits, v4: address.is_ipv4() };
        (bits <= most && network.masked(network.address) == network.address).then_some(network)
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.v4 && self.masked(number(address)) == self.address
    }

    fn masked(&self, address: u128) -> u128 {
        let width = if self.v4 { 32 } else { 128 };
        let low = u32::from(width - self.bits.min(width));
        address.checked_shr(low).and_then(|high| high.checked_shl(low)).unwrap_or(0)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn sender(trusted: bool) -> Sender {
        let address = "::ffff:10.0.0.1".parse().unwrap();
        Sender::new(Way { address, tls: true, trusted, version: Version::HTTP_11 }, "a:1").unwrap()
    }

    #[test]
    fn fields_of_one_hop_stay_behind() {
        let mut map = fields(&[
            ("connection", "close, X-A"),
            ("connection", "te, host"),
            ("x-a", "1"),
            ("x-b", "2"),
            ("host", "a"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip;q=1, Trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("expect", "100-continue"),
            ("proxy-authorization", "x"),
            ("content-length", "1"),
        ]);
        to_server(&mut map, &sender(false), || HeaderValue::from_static("id"));
        let names: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        for gone in ["connection", "x-a", "keep-alive", "transfer-encoding", "upgrade", "expect", "http2-settings"] {
            assert!(!names.contains(&gone), "{gone} of {names:?}");
        }
        assert_eq!(map.get("te").unwrap(), "trailers");
        assert_eq!([map.get("x-b").unwrap(), map.get("host").unwrap()], ["2", "a"]);
        assert_eq!(map.get("content-length").unwrap(), "1");
        assert_eq!(map.get("via").unwrap(), "1.1 portway");
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let lies = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", "theirs"),
            ("x-real-ip", "1.1.1.1"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-prefix", "/x"),
            ("x-forwarded-server", "x"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x_real-ip", "1.1.1.1"),
            ("x-forward", "kept"),
        ];
        let mut map = fields(&lies);
        to_server(&mut map, &sender(false), || HeaderValue::from_static("ours"));
        assert_eq!(map.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["10.0.0.1"]);
        assert_eq!(map.get("forwarded").unwrap(), "for=10.0.0.1;host=\"a:1\";proto=https");
        assert_eq!([map.get("x-forwarded-proto").unwrap(), map.get("x-forwarded-host").unwrap()], ["https", "a:1"]);
        assert_eq!([map.get("x-request-id").unwrap(), map.get("x-real-ip").unwrap()], ["ours", "10.0.0.1"]);
        let mut map = fields(&lies);
        to_server(&mut map, &sender(true), || HeaderValue::from_static("ours"));
        assert_eq!(map.get("x-forwarded-for").unwrap(), "1.1.1.1, 2.2.2.2, 10.0.0.1");
        assert_eq!(map.get("forwarded").unwrap(), "for=1.1.1.1, for=10.0.0.1;host=\"a:1\";proto=https");
        assert_eq!([map.get("x-forwarded-proto").unwrap(), map.get("x-request-id").unwrap()], ["http", "theirs"]);
    }

    #[test]
    fn cookies_of_http2_become_one() {
        let mut map = fields(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut map);
        assert_eq!(map.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn websockets_are_told_from_other_upgrades() {
        assert!(asks_for_websocket(&fields(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!asks_for_websocket(&fields(&[("connection", "upgrade"), ("upgrade", "h2c")])));
        assert!(!asks_for_websocket(&fields(&[("upgrade", "websocket")])));
        assert!(!asks_for_websocket(&fields(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("upgrade", "h2c")
        ])));
    }

    #[test]
    fn networks_contain_addresses() {
        let ten = Network::parse("10.0.0.0/8").unwrap();
        assert!(ten.contains("10.1.2.3".parse().unwrap()) && ten.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!ten.contains("11.0.0.0".parse().unwrap()) && !ten.contains("::a00:1".parse().unwrap()));
        assert!(Network::parse("::/0").unwrap().contains("2001:db8::1".parse().unwrap()));
        assert!(Network::parse("0.0.0.0/0").unwrap().contains("1.2.3.4".parse().unwrap()));
        assert!(Network::parse("192.0.2.1").unwrap().contains("192.0.2.1".parse().unwrap()));
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "a", "10.0.0.0/", "::1/129"] {
            assert!(Network::parse(bad).is_none(), "{bad}");
        }
    }
}
