//! The guard against requests that two parsers may read differently.

use proptest::prelude::*;

use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 1_024, fields: 16 };

fn guard() -> Guard {
    Guard::new(LIMITS)
}

/// How many requests pass, or why not.
fn all(text: &[u8]) -> Result<u64, Refusal> {
    let mut guard = guard();
    guard.look(text).map_err(|refused| refused.why)?;
    Ok(guard.heads())
}

fn get(fields: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

#[test]
fn good_requests_pass_one_after_the_other() {
    let many = b"\r\nGET / HTTP/1.1\r\nHost: a.example:80\r\n\r\n\
        POST /x?y HTTP/1.1\r\nhost:\t[::1]:80 \r\nContent-Length: 5\r\n\r\nab\0\nc\
        PUT http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
        3;x=\"y\"\r\na\r\n\r\nA\r\n0123456789\r\n0\r\nExpires: never\r\n\r\n\
        GET / HTTP/1.0\r\n\r\n";
    assert_eq!(all(many), Ok(4));
    let mut guard = guard();
    for byte in many {
        guard.look(&[*byte]).unwrap();
    }
    assert_eq!((guard.heads(), guard.stage()), (4, Stage::Between));
}

#[test]
fn each_refusal_has_its_reason() {
    for (bytes, why) in [
        (&b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..], Refusal::BareLineFeed),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", Refusal::BareLineFeed),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", Refusal::ControlByte),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", Refusal::ControlByte),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n", Refusal::ControlByte),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (b"GET /\t HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (b"GET /\r\n", Refusal::RequestLine),
        (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Refusal::Field),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", Refusal::Field),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", Refusal::Field),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Refusal::Field),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", Refusal::Field),
        (b"GET / HTTP/1.1\r\n\r\n", Refusal::NoHost),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Refusal::TwoHosts),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Refusal::BadHost),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refusal::BadHost),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Refusal::BadHost),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Refusal::BadHost),
        (b"GET / HTTP/1.1\r\nHost: a:8o\r\n\r\n", Refusal::BadHost),
    ] {
        assert_eq!(all(bytes), Err(why), "{}", bytes.escape_ascii());
    }
    for (fields, why) in [
        ("Content-Length: 1\r\nContent-Length: 1\r\n", Refusal::ContentLength),
        ("Content-Length: 1, 1\r\n", Refusal::ContentLength),
        ("Content-Length: +1\r\n", Refusal::ContentLength),
        ("Content-Length: 0x1\r\n", Refusal::ContentLength),
        ("Content-Length:\r\n", Refusal::ContentLength),
        ("Content-Length: 99999999999999999999\r\n", Refusal::ContentLength),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", Refusal::LengthAndEncoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Refusal::LengthAndEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: xchunked\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding:\r\n", Refusal::TransferEncoding),
    ] {
        assert_eq!(all(&get(fields)), Err(why), "{fields}");
    }
    assert_eq!(all(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(Refusal::TransferEncoding));
    let chunked = get("Transfer-Encoding: chunked\r\n");
    let endless = format!("1;{}", "x".repeat(2_000));
    for body in
        ["x\r\n", "\r\n", " 1\r\n", "1 \r\n", "-1\r\n", "0x1\r\n", "1111111111111111\r\n", "1\r\nabcd", &endless]
    {
        assert_eq!(all(&[&chunked, body.as_bytes()].concat()), Err(Refusal::Chunk), "{body}");
    }
    assert_eq!(all(&[&chunked[..], b"1\n"].concat()), Err(Refusal::BareLineFeed));
    assert_eq!(all(&[&chunked[..], b"1;a\rb\r\n"].concat()), Err(Refusal::ControlByte));
    assert_eq!(all(&[&chunked[..], b"0\r\nContent-Length: 1\r\n\r\n"].concat()), Err(Refusal::Field));
    assert_eq!(all(&[&chunked[..], b"0\r\n folded\r\n\r\n"].concat()), Err(Refusal::Field));
}

#[test]
fn a_head_is_bounded_in_bytes_and_fields() {
    let long = get(&format!("X: {}\r\n", "x".repeat(LIMITS.bytes)));
    assert_eq!(all(&long), Err(Refusal::TooLarge));
    assert_eq!(all(&vec![b'x'; LIMITS.bytes + 1]), Err(Refusal::TooLarge));
    let fits = LIMITS.bytes - get("X: \r\n").len();
    assert_eq!(all(&get(&format!("X: {}\r\n", "x".repeat(fits)))), Ok(1));
    assert_eq!(all(&get(&"A: b\r\n".repeat(LIMITS.fields - 1))), Ok(1));
    assert_eq!(all(&get(&"A: b\r\n".repeat(LIMITS.fields))), Err(Refusal::TooLarge));
    let trailers = "A: b\r\n".repeat(LIMITS.fields + 1);
    let text = [&get("Transfer-Encoding: chunked\r\n")[..], b"0\r\n", trailers.as_bytes()].concat();
    assert_eq!(all(&text), Err(Refusal::TooLarge));
}

#[test]
fn what_precedes_a_bad_line_passes_and_nothing_after_it() {
    let mut guard = guard();
    let good = get("");
    let refused = guard.look(&[&good[..], b"GET / HTTP/1.1\r\nX : y\r\n"].concat()).unwrap_err();
    assert_eq!(refused, Refused { pass: good.len() + "GET / HTTP/1.1\r\n".len(), why: Refusal::Field });
    assert_eq!(guard.look(&good), Err(Refused { pass: 0, why: Refusal::Field }));
    assert_eq!(guard.heads(), 1);
}

#[test]
fn stages_tell_what_silence_means() {
    let mut guard = guard();
    for (bytes, stage) in [
        (&b""[..], Stage::Between),
        (b"G", Stage::Head),
        (b"ET / HTTP/1.1\r\n", Stage::Head),
        (b"Host: a\r\nContent-Length: 2\r\n\r\n", Stage::Body),
        (b"x", Stage::Body),
        (b"x", Stage::Between),
    ] {
        guard.look(bytes).unwrap();
        assert_eq!(guard.stage(), stage);
    }
    guard.open();
    guard.look(b"\0\n\r").unwrap();
    assert_eq!(guard.stage(), Stage::Open);
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(get("")),
        Just(get("Content-Length: 3\r\n")),
        Just(get("Transfer-Encoding: chunked\r\n")),
        Just(b"abc".to_vec()),
        Just(b"3\r\nabc\r\n".to_vec()),
        Just(b"0\r\n\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_answer(pieces in proptest::collection::vec(piece(), 0..12), cuts in proptest::collection::vec(1_usize..9, 1..40)) {
        let text = pieces.concat();
        let mut whole = guard();
        let one = whole.look(&text).map_err(|refused| refused.why);
        let mut cut = guard();
        let (mut rest, mut many, mut n) = (&text[..], Ok(()), 0);
        while !rest.is_empty() && many.is_ok() {
            let (now, later) = rest.split_at(cuts[n % cuts.len()].min(rest.len()));
            many = cut.look(now).map_err(|refused| refused.why);
            (rest, n) = (later, n + 1);
        }
        // A line that will be refused whole may be refused for its length first.
        prop_assert_eq!(one.is_ok(), many.is_ok());
        prop_assert_eq!(whole.heads(), cut.heads());
        prop_assert!(cut.partial.len() <= LIMITS.bytes.max(CHUNK_LINE));
    }

    #[test]
    fn what_passes_has_one_length_and_one_host(fields in proptest::collection::vec("(Host|Content-Length|Transfer-Encoding|X): ?(a|1|chunked)", 0..5)) {
        let lines: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let head = format!("GET / HTTP/1.1\r\n{lines}\r\n");
        let mut guard = guard();
        if guard.look(head.as_bytes()).is_ok() {
            let count = |name: &str| fields.iter().filter(|field| field.starts_with(name)).count();
            prop_assert_eq!(count("Host"), 1);
            prop_assert!(count("Content-Length") + count("Transfer-Encoding") <= 1);
        }
    }
}
