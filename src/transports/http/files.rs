//! Files below a folder: types by name, validators, conditional requests, one range.
//!
//! A path is opened by the kernel below the folder and nowhere else (`RESOLVE_BENEATH`): links that lead out are as if
//! they were not there. What the kernel has in memory is opened and read on the arbiter, a piece at a time, as the
//! client takes them; what it would have to fetch from a disk is opened and read beside it (`RESOLVE_CACHED`,
//! `RWF_NOWAIT`, and where these say that they would wait, [`blocking`]). When as much is being fetched as may, a file
//! that is not open yet is answered by 503, and one that is waits for its next piece.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::body::{FilePart, ToClient};
use super::codec_file::{Condition, RangeAnswer, conditions, decode, range};
use super::record::Record;
use crate::actors::{NotDone, blocking};

/// What is asked for.
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

/// The answer to a request for this path below the folder, which begins with `/`.
pub(super) async fn answer(
    root: &Arc<OwnedFd>,
    index: &str,
    Asked { method, path, query }: Asked<'_>,
    fields: &HeaderMap,
    record: &Rc<Record>,
) -> Response<ToClient> {
    if *method != Method::GET && *method != Method::HEAD {
        let mut response = empty(StatusCode::METHOD_NOT_ALLOWED, record);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let Some(mut name) = decode(path) else { return empty(StatusCode::NOT_FOUND, record) };
    if name.is_empty() || name.ends_with('/') {
        name.push_str(index);
    }
    let opened = match open(root, name.clone()).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(_)) => return empty(StatusCode::NOT_FOUND, record),
        Err(NotDone::Full | NotDone::Lost) => return empty(StatusCode::SERVICE_UNAVAILABLE, record),
    };
    let Ok(stat) = rustix::fs::fstat(&opened) else { return empty(StatusCode::NOT_FOUND, record) };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => {
            // Relative links on the page need the slash.
            let mut response = empty(StatusCode::MOVED_PERMANENTLY, record);
            let last = path.rsplit('/').next().unwrap_or_default();
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            if let Ok(to) = HeaderValue::try_from(format!("{last}/{query}")) {
                response.headers_mut().insert(header::LOCATION, to);
            }
            return response;
        }
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => return empty(StatusCode::NOT_FOUND, record),
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let tag = format!("\"{seconds:x}.{:x}-{size:x}\"", stat.st_mtime_nsec);
    let modified = UNIX_EPOCH + Duration::from_secs(seconds);
    let kind = mime_guess::from_path(&name).first_or_octet_stream();
    let mut builder = Response::builder()
        .header(header::ETAG, &tag)
        .header(header::LAST_MODIFIED, httpdate::fmt_http_date(modified))
        .header(header::ACCEPT_RANGES, "bytes");
    let text = |name: header::HeaderName| fields.get(name).and_then(|value| value.to_str().ok());
    let date = |name: header::HeaderName| text(name).and_then(|date| httpdate::parse_http_date(date).ok());
    let condition = conditions(
        &tag,
        text(header::IF_MATCH),
        text(header::IF_NONE_MATCH),
        date(header::IF_MODIFIED_SINCE).map(|since| modified <= since),
        date(header::IF_UNMODIFIED_SINCE).map(|since| modified <= since),
    );
    match condition {
        Condition::Send => {}
        Condition::NotModified => return finish(builder.status(StatusCode::NOT_MODIFIED), None, record),
        Condition::Failed => return finish(builder.status(StatusCode::PRECONDITION_FAILED), None, record),
    }
    // RFC 9110, section 13.1.5: a range of another version of the file is of no use.
    let current = match text(header::IF_RANGE) {
        None => true,
        Some(wanted) if wanted.starts_with('"') => wanted == tag,
        Some(wanted) => httpdate::parse_http_date(wanted).is_ok_and(|date| date == modified),
    };
    builder = builder.header(header::CONTENT_TYPE, content_type(kind.as_ref()));
    let wanted = text(header::RANGE).filter(|_| current && *method == Method::GET);
    let (status, at, left) = match wanted.map_or(RangeAnswer::Whole, |wanted| range(wanted, size)) {
        RangeAnswer::Whole => (StatusCode::OK, 0, size),
        RangeAnswer::Part { first, last } => {
            builder = builder.header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
        RangeAnswer::Unsatisfiable => {
            builder = builder.header(header::CONTENT_RANGE, format!("bytes */{size}"));
            return finish(builder.status(StatusCode::RANGE_NOT_SATISFIABLE), None, record);
        }
    };
    builder = builder.status(status).header(header::CONTENT_LENGTH, left);
    finish(builder, Some(FilePart::new(File::from(opened), at, left)), record)
}

/// Opens what the kernel can find without waiting here, and anything else beside the arbiter.
async fn open(root: &Arc<OwnedFd>, name: String) -> Result<rustix::io::Result<OwnedFd>, NotDone> {
    let below = |root: &OwnedFd, name: &str, more: ResolveFlags| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | more;
        rustix::fs::openat2(root, name, flags, Mode::empty(), resolve)
    };
    match below(root, &name, ResolveFlags::CACHED) {
        // Not in memory; or a kernel before 5.12, which does not know the flag.
        Err(Errno::AGAIN | Errno::INVAL) => {
            let root = root.clone();
            blocking(move || below(&root, &name, ResolveFlags::empty())).await
        }
        opened => Ok(opened),
    }
}

fn content_type(kind: &str) -> HeaderValue {
    let text = kind.starts_with("text/") || kind == "application/javascript" || kind == "application/json";
    let with_charset = if text { format!("{kind}; charset=utf-8") } else { kind.to_owned() };
    HeaderValue::try_from(with_charset).unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

fn finish(builder: http::response::Builder, part: Option<FilePart>, record: &Rc<Record>) -> Response<ToClient> {
    let body = match part {
        Some(part) => ToClient::file(part, record.clone()),
        None => ToClient::whole(Bytes::new(), record.clone()),
    };
    // Every field was checked as it was made.
    builder.body(body).unwrap_or_else(|_| empty(StatusCode::INTERNAL_SERVER_ERROR, record))
}

fn empty(status: StatusCode, record: &Rc<Record>) -> Response<ToClient> {
    super::exchange::plain(status, record)
}
