//! Reads whom a TLS client wants and what it would speak, from its ClientHello (RFC 8446, section 4.1.2), and changes
//! nothing: the bytes stay where they are for whoever terminates TLS.
//!
//! Bytes come in as far as they have arrived; the answer is the hello, how many bytes are needed before it makes sense
//! to look again, or why this is none. A hello may be spread over records (section 5.1), up to [`LONGEST`] bytes.

use std::fmt;

/// Bytes of the largest hello, without the headers of records. Those of browsers have about 2,000.
pub const LONGEST: usize = 16 << 10;
/// Bytes of its records, with their headers, of which the smallest carries one byte each in the worst case; no more is
/// looked at.
pub const MOST: usize = LONGEST + 64 * RECORD_HEADER;
/// Protocols of which a hello is believed to offer that many.
const PROTOCOLS: usize = 64;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
/// The content type of handshakes, and the message type of a ClientHello.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Extensions (RFC 6066, section 3; RFC 7301, section 3.1).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What a client says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Whom it wants, in lower case and without a dot at the end.
    pub name: Option<String>,
    /// What it would speak, most wanted first.
    pub protocols: Vec<Vec<u8>>,
}

/// How far it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// All of it.
    Whole(Hello),
    /// Not before so many bytes have come in all.
    Needs(usize),
}

/// Why it is no hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoHello {
    /// It does not begin as TLS does.
    NotTls,
    /// It is longer than is allowed, or in too many pieces.
    TooLarge,
    /// It does not keep to its own lengths, says something twice, or names no name.
    Malformed,
}

impl NoHello {
    /// The word that counters use.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::TooLarge => "hello_too_large",
            Self::Malformed => "hello_malformed",
        }
    }
}

impl fmt::Display for NoHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// Reads what has come so far, from the first byte of the connection.
///
/// # Errors
/// It is no hello.
pub fn read(bytes: &[u8]) -> Result<Seen, NoHello> {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        // What is there already must fit, so that whoever speaks something else is not waited for.
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3) {
            return Err(if at == 0 { NoHello::NotTls } else { NoHello::Malformed });
        }
        let Some([_, _, _, high, low]) = rest.get(..RECORD_HEADER) else {
            return needs(at + RECORD_HEADER);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 {
            return Err(NoHello::Malformed);
        }
        let end = at + RECORD_HEADER + length;
        let Some(piece) = bytes.get(at + RECORD_HEADER..end) else {
            // The type of the message may tell already that it is none.
            if message.is_empty() && rest.get(RECORD_HEADER).is_some_and(|kind| *kind != CLIENT_HELLO) {
                return Err(NoHello::NotTls);
            }
            return needs(end);
        };
        message.extend_from_slice(piece);
        at = end;
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(NoHello::NotTls);
        }
        let Some([_, a, b, c]) = message.get(..HANDSHAKE_HEADER) else { continue };
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        if length > LONGEST {
            return Err(NoHello::TooLarge);
        }
        if let Some(body) = message.get(HANDSHAKE_HEADER..HANDSHAKE_HEADER + length) {
            return hello(body).map(Seen::Whole).ok_or(NoHello::Malformed);
        }
    }
}

fn needs(bytes: usize) -> Result<Seen, NoHello> {
    if bytes > MOST { Err(NoHello::TooLarge) } else { Ok(Seen::Needs(bytes)) }
}

fn hello(body: &[u8]) -> Option<Hello> {
    let mut body = Reader(body);
    // Version and random; session, cipher suites and compression, which do not matter here.
    body.take(2 + 32)?;
    body.short_list()?;
    body.long_list()?;
    body.short_list()?;
    let mut hello = Hello::default();
    if body.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(body.long_list()?);
    if !body.0.is_empty() {
        return None;
    }
    let (mut named, mut offered) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let data = Reader(extensions.long_list()?);
        match kind {
            SERVER_NAME if !named => {
                named = true;
                hello.name = Some(name(data)?);
            }
            ALPN if !offered => {
                offered = true;
                hello.protocols = protocols(data)?;
            }
            // Each at most once (RFC 8446, section 4.2): two readers might take different ones.
            SERVER_NAME | ALPN => return None,
            _ => {}
        }
    }
    Some(hello)
}

/// The one host name of a list.
fn name(mut data: Reader<'_>) -> Option<String> {
    let mut list = Reader(data.long_list()?);
    let kind = list.take(1)?;
    let name = list.long_list()?;
    let label = |label: &[u8]| {
        (1..=63).contains(&label.len()) && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let name = name.strip_suffix(b".").unwrap_or(name);
    let good = kind == [0] && name.len() <= 253 && name.split(|b| *b == b'.').all(label);
    if !good || !list.0.is_empty() || !data.0.is_empty() {
        return None;
    }
    String::from_utf8(name.to_ascii_lowercase()).ok()
}

fn protocols(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(data.long_list()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let name = list.short_list()?;
        if name.is_empty() || protocols.len() >= PROTOCOLS {
            return None;
        }
        protocols.push(name.to_vec());
    }
    (data.0.is_empty() && !protocols.is_empty()).then_some(protocols)
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn short_list(&mut self) -> Option<&'a [u8]> {
        let length = *self.take(1)?.first()?;
        self.take(usize::from(length))
    }

    fn long_list(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }
}

/// What a route asks of a hello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HelloRule {
    /// A name in lower case, or `*.` and one: any name below it. `None`: any, also none.
    pub name: Option<String>,
    /// A protocol the client must offer. `None`: any, also none.
    pub protocol: Option<Vec<u8>>,
}

impl HelloRule {
    /// How specific it is, if it fits: the name counts before the protocol.
    #[must_use]
    pub fn fits(&self, hello: &Hello) -> Option<(usize, bool)> {
        let by_name = match (&self.name, &hello.name) {
            (None, _) => 0,
            (Some(wanted), Some(name)) if wanted == name => usize::MAX,
            (Some(wanted), Some(name)) => {
                let below = wanted.strip_prefix('*')?;
                let label = name.strip_suffix(below)?;
                if label.is_empty() {
                    return None;
                }
                below.len()
            }
            (Some(_), None) => return None,
        };
        let by_protocol = match &self.protocol {
            None => false,
            Some(wanted) if hello.protocols.contains(wanted) => true,
            Some(_) => return None,
        };
        Some((by_name, by_protocol))
    }
}

/// The number of the most specific rule that fits; of equals, which the configuration refuses, the first.
pub fn choose<'a>(rules: impl IntoIterator<Item = &'a HelloRule>, hello: &Hello) -> Option<usize> {
    let fit = rules.into_iter().enumerate().filter_map(|(number, rule)| Some((number, rule.fits(hello)?)));
    fit.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_length(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length(data)].concat()
    }

    fn sni(name: &str) -> Vec<u8> {
        extension(SERVER_NAME, &with_length(&[&[0][..], &with_length(name.as_bytes())].concat()))
    }

    fn alpn(names: &[&str]) -> Vec<u8> {
        let list: Vec<u8> =
            names.iter().flat_map(|n| [&[u8::try_from(n.len()).unwrap()][..], n.as_bytes()].concat()).collect();
        extension(ALPN, &with_length(&list))
    }

    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(with_length(&[0x13, 1]));
        body.extend([1, 0]);
        body.extend(with_length(&extensions.concat()));
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO][..], &length[1..], &body].concat()
    }

    fn records(message: &[u8], piece: usize) -> Vec<u8> {
        message.chunks(piece).flat_map(|piece| [&[HANDSHAKE, 3, 1][..], &with_length(piece)].concat()).collect()
    }

    fn hello_of(name: &str, protocols: &[&str]) -> Hello {
        Hello { name: Some(name.to_owned()), protocols: protocols.iter().map(|p| p.as_bytes().to_vec()).collect() }
    }

    #[test]
    fn names_and_protocols_are_read_however_the_hello_is_cut() {
        let message = message(&[extension(10, &[0, 2, 0, 29]), sni("A.example."), alpn(&["h2", "http/1.1"])]);
        let expected = hello_of("a.example", &["h2", "http/1.1"]);
        for piece in [message.len(), 100, 50, 3] {
            let whole = records(&message, piece);
            assert_eq!(read(&whole), Ok(Seen::Whole(expected.clone())), "in pieces of {piece}");
            let mut wanted = 0;
            for end in 0..whole.len() {
                match read(&whole[..end]) {
                    Ok(Seen::Needs(more)) => {
                        assert!(more > end && more <= whole.len(), "{more} at {end} of {}", whole.len());
                        wanted = wanted.max(more);
                    }
                    other => panic!("{other:?} at {end}"),
                }
            }
            assert_eq!(wanted, whole.len());
            assert_eq!(read(&[&whole[..], b"what comes behind it"].concat()), Ok(Seen::Whole(expected.clone())));
        }
        assert_eq!(read(&records(&self::message(&[]), 999)), Ok(Seen::Whole(Hello::default())));
    }

    #[test]
    fn what_is_no_hello_is_said_as_early_as_can_be() {
        for (bytes, why) in [
            (&b"GET / HTTP/1.1\r\n"[..], NoHello::NotTls),
            (b"S", NoHello::NotTls),
            (&[22, 2], NoHello::NotTls),
            (&[22, 3, 1, 0, 5, 2], NoHello::NotTls),
            (&[22, 3, 1, 0, 0], NoHello::Malformed),
            (&[22, 3, 1, 0, 4, 1, 0, 0x40, 1], NoHello::TooLarge),
            (&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff], NoHello::TooLarge),
            (&[22, 3, 1, 0xff, 0xff, 1], NoHello::TooLarge),
            (&[22, 3, 1, 0, 4, 1, 0, 0, 9, 23], NoHello::Malformed),
        ] {
            assert_eq!(read(bytes), Err(why), "{bytes:?}");
        }
        // One byte in each record: more of that than is looked at.
        let long = message(&[extension(21, &[0; 2_000]), sni("a.example")]);
        assert_eq!(read(&records(&long, 1)).ok().filter(|seen| matches!(seen, Seen::Needs(_))), None);
        for extensions in [
            vec![sni("a"), sni("b")],
            vec![alpn(&["h2"]), alpn(&["h2"])],
            vec![sni("")],
            vec![sni("a..b")],
            vec![sni("a\0b")],
            vec![sni(&"a".repeat(64))],
            vec![alpn(&[])],
            vec![alpn(&[""])],
            vec![extension(SERVER_NAME, &[0, 9, 0])],
        ] {
            assert_eq!(read(&records(&message(&extensions), 999)), Err(NoHello::Malformed), "{extensions:?}");
        }
    }

    #[test]
    fn the_most_specific_rule_wins() {
        let rule = |name: &str, protocol: &str| HelloRule {
            name: (!name.is_empty()).then(|| name.to_owned()),
            protocol: (!protocol.is_empty()).then(|| protocol.as_bytes().to_vec()),
        };
        let rules = [
            rule("", ""),
            rule("*.example", ""),
            rule("*.b.example", ""),
            rule("a.example", ""),
            rule("a.example", "h2"),
            rule("", "ssh"),
        ];
        let find = |name: &str, protocols: &[&str]| choose(&rules, &hello_of(name, protocols));
        assert_eq!(find("a.example", &[]), Some(3));
        assert_eq!(find("a.example", &["http/1.1", "h2"]), Some(4));
        assert_eq!(find("x.example", &["ssh"]), Some(1), "the name counts more");
        assert_eq!(find("x.b.example", &[]), Some(2));
        assert_eq!(find("example", &["ssh"]), Some(5));
        assert_eq!(find("else", &[]), Some(0));
        assert_eq!(choose(&rules[1..5], &Hello::default()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(Seen::Needs(more)) = read(&bytes) {
                prop_assert!(more > bytes.len() && more <= MOST);
            }
        }

        #[test]
        fn any_damage_to_a_hello_is_survived(at in 0..120_usize, with in any::<u8>(), cut in 0..120_usize) {
            let mut whole = records(&message(&[sni("a.example"), alpn(&["h2"])]), 40);
            if let Some(byte) = whole.get_mut(at) {
                *byte = with;
            }
            whole.truncate(whole.len().saturating_sub(cut));
            if let Ok(Seen::Needs(more)) = read(&whole) {
                prop_assert!(more > whole.len());
            }
        }
    }
}
