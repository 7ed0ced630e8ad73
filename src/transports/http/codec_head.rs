//! Watches the bytes of an HTTP/1.1 client before a parser sees them, and refuses what two parsers might read
//! differently.
//!
//! Bytes come in as they are read, in pieces of any size; the answer says how many of them may pass. The guard follows
//! the framing of bodies, so it meets every head of a connection, however many requests it carries. It changes nothing:
//! what it lets pass is what was sent. It keeps at most one line of a head. RFC 9112, sections 2.2, 3, 5, 6, 7 and 11.2.

use std::fmt;

/// The longest line between chunks of a body: its size and extensions.
const CHUNK_LINE: usize = 1_024;
/// Empty lines before a request line that are passed over (RFC 9112, section 2.2).
const EMPTY_LINES: u8 = 1;

/// Why the bytes of a client are not let through. Each is an error of the client, answered by 400 unless it says
/// otherwise, and the end of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A line that ends in a line feed alone.
    BareLineFeed,
    /// A carriage return inside a line, or a NUL.
    ControlByte,
    /// Not `METHOD SP target SP HTTP/1.x`.
    RequestLine,
    /// A field line that begins with a blank (obs-fold), has no name, or a blank behind its name.
    Field,
    /// More than one `Content-Length`, also if they are equal, or one that is no number.
    ContentLength,
    /// `Content-Length` beside `Transfer-Encoding`.
    LengthAndEncoding,
    /// A transfer encoding that is not `chunked` alone, or one before HTTP/1.1.
    TransferEncoding,
    /// No `Host` in HTTP/1.1.
    NoHost,
    /// More than one `Host`.
    TwoHosts,
    /// A `Host` that names no authority.
    BadHost,
    /// A head that is longer, or has more fields, than is allowed: answered by 431.
    TooLarge,
    /// A chunk that does not say its size as it must, or does not end where it said.
    Chunk,
    /// A body beside the question for a WebSocket, which has none.
    UpgradeBody,
    /// A request that the library for HTTP/2 refuses before anybody sees it: the reset of its stream.
    Malformed,
    /// More frames of HTTP/2 that carry nothing than anybody needs: the end of the connection, without an answer.
    Flood,
}

impl Refusal {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::BareLineFeed => "bare_line_feed",
            Self::ControlByte => "control_byte",
            Self::RequestLine => "request_line",
            Self::Field => "field_line",
            Self::ContentLength => "content_length",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::TransferEncoding => "transfer_encoding",
            Self::NoHost => "no_host",
            Self::TwoHosts => "two_hosts",
            Self::BadHost => "bad_host",
            Self::TooLarge => "head_too_large",
            Self::Chunk => "chunk",
            Self::UpgradeBody => "upgrade_body",
            Self::Malformed => "malformed",
            Self::Flood => "flood",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// How large a head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the first of the request line to the empty line.
    pub bytes: usize,
    /// Fields.
    pub fields: usize,
}

/// Where in the stream a client is: what its silence means depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before a request.
    Between,
    /// Inside a head.
    Head,
    /// Inside a body.
    Body,
    /// Behind a switch of protocols: nothing is looked at.
    Open,
}

/// What was let through, and what was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// How many of the bytes may pass.
    pub pass: usize,
    /// Why no more.
    pub why: Refusal,
}

/// The guard of one connection.
#[derive(Debug)]
pub struct Guard {
    limits: HeadLimits,
    state: State,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    head: Head,
    heads: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a request line, behind this many empty lines.
    Start(u8),
    Fields,
    Fixed(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Open,
    Refused(Refusal),
}

/// What is known of the head so far.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    fields: usize,
    old: bool,
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
}

impl Guard {
    /// A guard before the first byte.
    #[must_use]
    pub fn new(limits: HeadLimits) -> Self {
        Self { limits, state: State::Start(0), partial: Vec::new(), head: Head::default(), heads: 0 }
    }

    /// Where the client is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Start(_) if self.partial.is_empty() => Stage::Between,
            State::Start(_) | State::Fields | State::Refused(_) => Stage::Head,
            State::Fixed(_) | State::ChunkSize | State::ChunkData(_) | State::ChunkEnd | State::Trailers => Stage::Body,
            State::Open => Stage::Open,
        }
    }

    /// How many heads were let through.
    #[must_use]
    pub const fn heads(&self) -> u64 {
        self.heads
    }

    /// From here on another protocol is spoken.
    pub fn open(&mut self) {
        self.state = State::Open;
        self.partial = Vec::new();
    }

    /// Looks at what was read next.
    ///
    /// # Errors
    /// [`Refused`], once; everything after it is refused for the same reason.
    pub fn look(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            match self.step(rest) {
                Ok(taken) => at += taken,
                Err(why) => {
                    self.state = State::Refused(why);
                    self.partial = Vec::new();
                    return Err(Refused { pass: at, why });
                }
            }
        }
        Ok(())
    }

    /// Takes a piece of `rest`, which is not empty: body, one line, or the beginning of one.
    fn step(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        match self.state {
            State::Open => Ok(rest.len()),
            State::Refused(why) => Err(why),
            State::Fixed(left) => {
                let (taken, left) = take(left, rest);
                self.state = if left == 0 { State::Start(0) } else { State::Fixed(left) };
                Ok(taken)
            }
            State::ChunkData(left) => {
                let (taken, left) = take(left, rest);
                self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                Ok(taken)
            }
            State::Start(_) | State::Fields | State::ChunkSize | State::ChunkEnd | State::Trailers => self.line(rest),
        }
    }

    fn line(&mut self, rest: &[u8]) -> Result<usize, Refusal> {
        let end = memchr::memchr(b'\n', rest).map(|end| end + 1);
        let taken = end.unwrap_or(rest.len());
        let piece = rest.get(..taken).unwrap_or_default();
        self.room(taken)?;
        if end.is_none() {
            self.partial.extend_from_slice(piece);
            return Ok(taken);
        }
        if self.partial.is_empty() {
            self.whole(piece)?;
        } else {
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(piece);
            self.whole(&line)?;
        }
        Ok(taken)
    }

    /// Whether so many more bytes of this line may come.
    fn room(&mut self, more: usize) -> Result<(), Refusal> {
        match self.state {
            State::ChunkSize if self.partial.len() + more > CHUNK_LINE => Err(Refusal::Chunk),
            State::ChunkEnd if self.partial.len() + more > 2 => Err(Refusal::Chunk),
            State::ChunkSize
            | State::ChunkEnd
            | State::Fixed(_)
            | State::ChunkData(_)
            | State::Open
            | State::Refused(_) => Ok(()),
            State::Start(_) | State::Fields | State::Trailers => {
                self.head.bytes += more;
                if self.head.bytes > self.limits.bytes { Err(Refusal::TooLarge) } else { Ok(()) }
            }
        }
    }

    /// Judges a whole line, with its end.
    fn whole(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Refusal::BareLineFeed) };
        if memchr::memchr2(b'\r', 0, line).is_some() {
            return Err(Refusal::ControlByte);
        }
        match self.state {
            State::Start(empty) if line.is_empty() => {
                if empty >= EMPTY_LINES {
                    return Err(Refusal::RequestLine);
                }
                self.state = State::Start(empty + 1);
            }
            State::Start(_) => {
                self.head.old = request_line(line)?;
                self.state = State::Fields;
            }
            State::Fields if line.is_empty() => self.end_of_head()?,
            State::Fields => self.field(line)?,
            State::Trailers if line.is_empty() => self.next(),
            State::Trailers => self.trailer(line)?,
            State::ChunkSize => {
                self.state = match chunk_size(line)? {
                    0 => {
                        self.head = Head::default();
                        State::Trailers
                    }
                    size => State::ChunkData(size),
                }
            }
            State::ChunkEnd => {
                if !line.is_empty() {
                    return Err(Refusal::Chunk);
                }
                self.state = State::ChunkSize;
            }
            State::Fixed(_) | State::ChunkData(_) | State::Open | State::Refused(_) => {}
        }
        Ok(())
    }

    fn next(&mut self) {
        self.head = Head::default();
        self.state = State::Start(0);
    }

    fn count_field(&mut self) -> Result<(), Refusal> {
        self.head.fields += 1;
        if self.head.fields > self.limits.fields { Err(Refusal::TooLarge) } else { Ok(()) }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.count_field()?;
        let (name, value) = split_field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            if self.head.hosts > 0 {
                return Err(Refusal::TwoHosts);
            }
            self.head.hosts = 1;
            if !is_authority(value) {
                return Err(Refusal::BadHost);
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // RFC 9110, section 8.6 would allow a list of equal ones; parsers differ.
            let length = decimal(value).ok_or(Refusal::ContentLength)?;
            if self.head.length.replace(length).is_some() {
                return Err(Refusal::ContentLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // RFC 9112, section 6.1: a server answers codings it does not know by 501, and 1.0 knows none.
            if self.head.chunked || self.head.old || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::TransferEncoding);
            }
            self.head.chunked = true;
        }
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.count_field()?;
        let (name, _) = split_field(line)?;
        // RFC 9110, section 6.5.1: not what frames or routes the message.
        let framing: [&[u8]; 3] = [b"host", b"content-length", b"transfer-encoding"];
        if framing.iter().any(|word| name.eq_ignore_ascii_case(word)) { Err(Refusal::Field) } else { Ok(()) }
    }

    fn end_of_head(&mut self) -> Result<(), Refusal> {
        let Head { old, hosts, length, chunked, .. } = std::mem::take(&mut self.head);
        if hosts == 0 && !old {
            return Err(Refusal::NoHost);
        }
        self.state = match (chunked, length) {
            (true, Some(_)) => return Err(Refusal::LengthAndEncoding),
            (true, None) => State::ChunkSize,
            (false, None | Some(0)) => State::Start(0),
            (false, Some(length)) => State::Fixed(length),
        };
        self.heads += 1;
        Ok(())
    }
}

fn take(left: u64, rest: &[u8]) -> (usize, u64) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
    (taken, left - taken as u64)
}

/// RFC 9110, section 5.6.2.
pub(super) const fn is_token(b: u8) -> bool {
    matches!(b, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
        || b.is_ascii_alphanumeric()
}

/// Whether all bytes are good. It looks at all of them, many at once, since mostly all are.
fn all(bytes: &[u8], good: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, b| all & good(*b))
}

/// Whether the version is older than 1.1.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|b| *b == b' ');
    let parts = (parts.next(), parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = parts else { return Err(Refusal::RequestLine) };
    if method.is_empty() || !all(method, is_token) || target.is_empty() || !all(target, |b| b.is_ascii_graphic()) {
        return Err(Refusal::RequestLine);
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err(Refusal::RequestLine),
    }
}

/// Name and value of a field line (RFC 9112, section 5).
fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr::memchr(b':', line).ok_or(Refusal::Field)?;
    let (name, value) = (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
    if name.is_empty() || !all(name, is_token) {
        return Err(Refusal::Field);
    }
    // RFC 9110, section 5.5: a tab is the one control byte that a value may hold.
    if !all(value, |b| (b >= b' ' && b != 0x7f) || b == b'\t') {
        return Err(Refusal::ControlByte);
    }
    Ok((name, trim(value)))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, b| b.is_ascii_digit().then(|| sum * 10 + u64::from(b - b'0')))
}

/// Whether it can be the authority of an `http` URI: host and perhaps port, without user information
/// (RFC 9110, sections 4.2.1 and 7.2).
#[must_use]
pub fn is_authority(value: &[u8]) -> bool {
    let host = |b: &u8| {
        b.is_ascii_alphanumeric()
            || matches!(b, b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')')
            || matches!(b, b'*' | b'+' | b',' | b';' | b'=')
    };
    let port = |port: &[u8]| port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', rest) else { return false };
        let (v6, after) = (rest.get(..end).unwrap_or_default(), rest.get(end + 1..).unwrap_or_default());
        let good = !v6.is_empty() && v6.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
        return good && (after.is_empty() || after.strip_prefix(b":").is_some_and(port));
    }
    let colon = memchr::memchr(b':', value).unwrap_or(value.len());
    let (name, after) = (value.get(..colon).unwrap_or_default(), value.get(colon..).unwrap_or_default());
    !name.is_empty() && name.iter().all(host) && (after.is_empty() || after.strip_prefix(b":").is_some_and(port))
}

/// RFC 9112, section 7.1. Blanks around the size, which some parsers allow, are refused.
fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let end = memchr::memchr(b';', line).unwrap_or(line.len());
    let (digits, extension) = (line.get(..end).unwrap_or_default(), line.get(end..).unwrap_or_default());
    if digits.is_empty() || digits.len() > 15 || extension.iter().any(|b| *b < b' ' && *b != b'\t') {
        return Err(Refusal::Chunk);
    }
    let digit = |b: u8| char::from(b).to_digit(16).map(u64::from).ok_or(Refusal::Chunk);
    digits.iter().try_fold(0_u64, |sum, b| Ok(sum * 16 + digit(*b)?))
}

#[cfg(test)]
#[path = "codec_head_tests.rs"]
mod tests;
