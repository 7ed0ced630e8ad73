//! Fields of HTTP/3 as messages: the head of a request and what makes it malformed, trailers, the head of an answer
//! (RFC 9114, sections 4.2 and 4.3).

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, Version, uri};

use super::codec::{frame, put_frame};
use super::codec_qpack::{self as qpack, Field};

/// A message that is not what a message must be; its stream ends with `H3_MESSAGE_ERROR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(
    /// What is wrong with it.
    pub &'static str,
);

/// What an extended CONNECT asks for (RFC 9220, section 3), as an extension of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectProtocol(
    /// Its name.
    pub Bytes,
);

#[derive(Default)]
struct Pseudo {
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
}

impl Pseudo {
    fn set(&mut self, field: Field) -> Result<(), Malformed> {
        let place = match &*field.name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":authority" => &mut self.authority,
            b":path" => &mut self.path,
            b":protocol" => &mut self.protocol,
            _ => return Err(Malformed("unknown_pseudo_header")),
        };
        match place.replace(field.value) {
            None => Ok(()),
            Some(_) => Err(Malformed("duplicate_pseudo_header")),
        }
    }
}

/// The head of a request.
///
/// # Errors
/// See [`Malformed`].
pub fn request(fields: Vec<Field>) -> Result<Request<()>, Malformed> {
    let mut pseudo = Pseudo::default();
    let mut map = HeaderMap::with_capacity(fields.len());
    let mut fields = fields.into_iter().peekable();
    while let Some(field) = fields.next_if(|field| field.name.first() == Some(&b':')) {
        pseudo.set(field)?;
    }
    fields.try_for_each(|field| add(&mut map, field))?;
    let method = pseudo.method.ok_or(Malformed("no_method"))?;
    let method = Method::from_bytes(&method).map_err(|_| Malformed("method"))?;
    let connect = method == Method::CONNECT;
    if pseudo.protocol.is_some() && !connect {
        return Err(Malformed("protocol_without_connect"));
    }
    let mut parts = uri::Parts::default();
    if connect && pseudo.protocol.is_none() {
        // RFC 9114, section 4.4.
        if pseudo.scheme.is_some() || pseudo.path.is_some() {
            return Err(Malformed("connect_with_path"));
        }
    } else {
        let scheme = pseudo.scheme.ok_or(Malformed("no_scheme"))?;
        let path = pseudo.path.ok_or(Malformed("no_path"))?;
        parts.scheme = Some(uri::Scheme::try_from(&*scheme).map_err(|_| Malformed("scheme"))?);
        if !(path.starts_with(b"/") || &*path == b"*" && method == Method::OPTIONS) {
            return Err(Malformed("path"));
        }
        parts.path_and_query = Some(uri::PathAndQuery::from_maybe_shared(path).map_err(|_| Malformed("path"))?);
    }
    let host = one(&map, &header::HOST)?;
    match (&pseudo.authority, host) {
        // RFC 9114, section 4.3.1: both, and they differ, or neither.
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(Malformed("two_authorities"));
        }
        (None, None) => return Err(Malformed("no_authority")),
        (Some(_), _) | (None, Some(_)) => {}
    }
    let authority = pseudo.authority.or_else(|| host.map(|host| Bytes::copy_from_slice(host.as_bytes())));
    let authority = authority.ok_or(Malformed("no_authority"))?;
    parts.authority = Some(uri::Authority::from_maybe_shared(authority).map_err(|_| Malformed("authority"))?);
    if let Some(length) = one(&map, &header::CONTENT_LENGTH)? {
        content_length(length).ok_or(Malformed("content_length"))?;
    }
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.version_mut() = Version::HTTP_3;
    *request.uri_mut() = if connect && parts.path_and_query.is_none() {
        let authority = parts.authority.take().ok_or(Malformed("no_authority"))?;
        Uri::from(authority)
    } else {
        Uri::from_parts(parts).map_err(|_| Malformed("target"))?
    };
    *request.headers_mut() = map;
    if let Some(protocol) = pseudo.protocol {
        request.extensions_mut().insert(ConnectProtocol(protocol));
    }
    Ok(request)
}

/// Trailers.
///
/// # Errors
/// See [`Malformed`].
pub fn trailers(fields: Vec<Field>) -> Result<HeaderMap, Malformed> {
    let mut map = HeaderMap::with_capacity(fields.len());
    for field in fields {
        // RFC 9114, section 4.3.
        if field.name.first() == Some(&b':') {
            return Err(Malformed("pseudo_header_in_trailers"));
        }
        add(&mut map, field)?;
    }
    Ok(map)
}

/// The head of an answer, as a client reads it.
///
/// # Errors
/// See [`Malformed`].
pub fn response(fields: Vec<Field>) -> Result<(StatusCode, HeaderMap), Malformed> {
    let mut map = HeaderMap::with_capacity(fields.len());
    let mut status = None;
    for field in fields {
        if &*field.name == b":status" && map.is_empty() && status.is_none() {
            status = Some(StatusCode::from_bytes(&field.value).map_err(|_| Malformed("status"))?);
        } else {
            add(&mut map, field)?;
        }
    }
    Ok((status.ok_or(Malformed("no_status"))?, map))
}

fn add(map: &mut HeaderMap, field: Field) -> Result<(), Malformed> {
    if field.name.first() == Some(&b':') {
        return Err(Malformed("late_pseudo_header"));
    }
    // Refuses capitals as well (RFC 9114, section 4.2).
    let name = HeaderName::from_lowercase(&field.name).map_err(|_| Malformed("field_name"))?;
    let value = HeaderValue::from_maybe_shared(field.value).map_err(|_| Malformed("field_value"))?;
    // RFC 9114, section 4.2: what concerns one connection of HTTP/1.1 must not come.
    let of_one_hop = name == header::CONNECTION
        || name == header::TRANSFER_ENCODING
        || name == header::UPGRADE
        || name == "keep-alive"
        || name == "proxy-connection"
        || (name == header::TE && !value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if of_one_hop {
        return Err(Malformed("field_of_one_hop"));
    }
    map.append(name, value);
    Ok(())
}

fn one<'a>(map: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Malformed> {
    let mut values = map.get_all(name).iter();
    match (values.next(), values.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(Malformed("duplicate_field")),
    }
}

/// The number of a `Content-Length`, if it is one.
#[must_use]
pub fn content_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

/// Appends the frame with the head of an answer.
pub fn put_response(out: &mut BytesMut, status: StatusCode, fields: &HeaderMap) {
    let mut section = BytesMut::with_capacity(256);
    qpack::begin(&mut section);
    qpack::put(&mut section, ":status", status.as_str().as_bytes());
    put_section(out, section, fields);
}

/// Appends the frame with trailers.
pub fn put_trailers(out: &mut BytesMut, fields: &HeaderMap) {
    let mut section = BytesMut::with_capacity(128);
    qpack::begin(&mut section);
    put_section(out, section, fields);
}

fn put_section(out: &mut BytesMut, mut section: BytesMut, fields: &HeaderMap) {
    for (name, value) in fields {
        qpack::put(&mut section, name.as_str(), value.as_bytes());
    }
    put_frame(out, frame::HEADERS, section.len());
    out.extend_from_slice(&section);
}

/// Appends the frame with the head of a request: what a client sends.
pub fn put_request(out: &mut BytesMut, fields: &[(&str, &[u8])]) {
    let mut section = BytesMut::with_capacity(256);
    qpack::begin(&mut section);
    for (name, value) in fields {
        qpack::put(&mut section, name, value);
    }
    put_frame(out, frame::HEADERS, section.len());
    out.extend_from_slice(&section);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> Vec<Field> {
        list.iter()
            .map(|(name, value)| Field {
                name: Bytes::from_static(name.as_bytes()),
                value: Bytes::from_static(value.as_bytes()),
            })
            .collect()
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/x?y")];

    fn with(more: &[(&'static str, &'static str)]) -> Vec<Field> {
        fields(&[&GET[..], more].concat())
    }

    #[test]
    fn a_request_is_read() {
        let request = request(with(&[("x-a", "1"), ("host", "A"), ("te", "trailers")])).unwrap();
        assert_eq!((request.method(), request.uri().to_string()), (&Method::GET, "https://a/x?y".to_owned()));
        assert_eq!(request.headers().get("x-a").unwrap(), "1");
        let connect = super::request(fields(&[(":method", "CONNECT"), (":authority", "a:1")])).unwrap();
        assert_eq!(connect.uri().to_string(), "a:1");
        let mut extended = GET;
        extended[0].1 = "CONNECT";
        let extended = [&extended[..], &[(":protocol", "webtransport")]].concat();
        let extended = super::request(fields(&extended)).unwrap();
        assert_eq!(extended.extensions().get(), Some(&ConnectProtocol(Bytes::from_static(b"webtransport"))));
    }

    #[test]
    fn malformed_requests_are_told_apart() {
        for (list, why) in [
            (with(&[(":path", "/")]), "duplicate_pseudo_header"),
            (with(&[(":status", "200")]), "unknown_pseudo_header"),
            (with(&[("x", "1"), (":path", "/")]), "late_pseudo_header"),
            (fields(&GET[1..]), "no_method"),
            (fields(&[GET[0], GET[2], GET[3]]), "no_scheme"),
            (fields(&[GET[0], GET[1], GET[3]]), "no_authority"),
            (fields(&GET[..3]), "no_path"),
            (with(&[(":protocol", "x")]), "protocol_without_connect"),
            (fields(&[(":method", "CONNECT"), GET[1], GET[2], GET[3]]), "connect_with_path"),
            (fields(&[GET[0], GET[1], GET[2], (":path", "")]), "path"),
            (fields(&[GET[0], GET[1], GET[2], (":path", "x")]), "path"),
            (fields(&[("", "GET"), GET[1], GET[2], GET[3]]), "field_name"),
            (with(&[("X-A", "1")]), "field_name"),
            (with(&[("x a", "1")]), "field_name"),
            (with(&[("x-a", "1\r\nx-b: 2")]), "field_value"),
            (with(&[("x-a", "\0")]), "field_value"),
            (with(&[("connection", "close")]), "field_of_one_hop"),
            (with(&[("transfer-encoding", "chunked")]), "field_of_one_hop"),
            (with(&[("te", "gzip")]), "field_of_one_hop"),
            (with(&[("host", "b")]), "two_authorities"),
            (with(&[("host", "a"), ("host", "a")]), "duplicate_field"),
            (with(&[("content-length", "1"), ("content-length", "1")]), "duplicate_field"),
            (with(&[("content-length", "+1")]), "content_length"),
        ] {
            assert_eq!(request(list.clone()).err(), Some(Malformed(why)), "{list:?}");
        }
        assert_eq!(trailers(fields(&[(":path", "/")])).err(), Some(Malformed("pseudo_header_in_trailers")));
    }

    #[test]
    fn an_answer_comes_back_as_it_went() {
        let mut map = HeaderMap::new();
        map.append("content-type", HeaderValue::from_static("text/plain"));
        map.append("x-a", HeaderValue::from_static("1"));
        map.append("x-a", HeaderValue::from_static("2"));
        let mut out = BytesMut::new();
        put_response(&mut out, StatusCode::NOT_FOUND, &map);
        let section = out.freeze().slice(2..);
        let (status, back) = response(qpack::decode(&section, 4_096, 10).unwrap()).unwrap();
        assert_eq!((status, back), (StatusCode::NOT_FOUND, map));
    }
}
