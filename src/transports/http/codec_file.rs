//! What the fields of a request for a file mean: its path, its conditions, its range.

/// Whether a file is sent (RFC 9110, section 13.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It is.
    Send,
    /// The client has it.
    NotModified,
    /// It is not the one the client means.
    Failed,
}

/// What of a file is sent (RFC 9110, section 14.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeAnswer {
    /// All of it.
    Whole,
    /// From the first to the last byte, both included.
    Part {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Nothing of what was asked for is there.
    Unsatisfiable,
}

/// The name of a file below a folder, from a path that begins with `/` and holds no dot segments. Nothing for a path
/// that names no file: bad percent encoding, a slash or a NUL in it, or bytes that are no text.
#[must_use]
pub fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.strip_prefix('/').unwrap_or(path).bytes();
    while let Some(byte) = rest.next() {
        if byte == 0 {
            return None;
        }
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16);
        let decoded = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
        match u8::try_from(decoded).ok()? {
            0 | b'/' | b'\\' => return None,
            decoded => bytes.push(decoded),
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    // An absolute name would leave the folder, and the kernel would refuse it.
    let plain = !name.starts_with('/') && name.split('/').all(|segment| segment != "." && segment != "..");
    plain.then_some(name)
}

/// Judges conditions against an entity tag. The dates have been compared: whether the file is as old as they ask.
#[must_use]
pub fn conditions(
    tag: &str,
    if_match: Option<&str>,
    if_none_match: Option<&str>,
    unchanged_since: Option<bool>,
    unmodified_since: Option<bool>,
) -> Condition {
    match if_match {
        Some(list) if !names(list, tag, false) => return Condition::Failed,
        None if unmodified_since == Some(false) => return Condition::Failed,
        Some(_) | None => {}
    }
    match if_none_match {
        Some(list) if names(list, tag, true) => Condition::NotModified,
        None if unchanged_since == Some(true) => Condition::NotModified,
        Some(_) | None => Condition::Send,
    }
}

/// Whether a list of entity tags holds this strong one; `weak`: also as a weak one (RFC 9110, section 8.8.3.2).
fn names(list: &str, tag: &str, weak: bool) -> bool {
    list.split(',')
        .map(str::trim)
        .any(|other| other == "*" || other == tag || (weak && other.strip_prefix("W/") == Some(tag)))
}

/// What a `Range` asks for of so many bytes. More than one range is answered with all, as a server may.
#[must_use]
pub fn range(wanted: &str, size: u64) -> RangeAnswer {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let Some(spec) = wanted.strip_prefix("bytes=").map(str::trim).filter(|spec| !spec.contains(',')) else {
        return RangeAnswer::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else { return RangeAnswer::Whole };
    match (number(first), number(last)) {
        (Some(first), _) if first >= size && (last.is_empty() || number(last).is_some()) => RangeAnswer::Unsatisfiable,
        (Some(first), None) if last.is_empty() => RangeAnswer::Part { first, last: size - 1 },
        (Some(first), Some(last)) if last >= first => RangeAnswer::Part { first, last: last.min(size - 1) },
        (None, Some(0)) if first.is_empty() => RangeAnswer::Unsatisfiable,
        (None, Some(_)) if first.is_empty() && size == 0 => RangeAnswer::Unsatisfiable,
        (None, Some(count)) if first.is_empty() => {
            RangeAnswer::Part { first: size.saturating_sub(count), last: size - 1 }
        }
        _ => RangeAnswer::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read() {
        let part = |first, last| RangeAnswer::Part { first, last };
        for (wanted, answer) in [
            ("bytes=0-4", part(0, 4)),
            ("bytes=5-", part(5, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-30", part(0, 9)),
            ("bytes=9-99", part(9, 9)),
            ("bytes=10-", RangeAnswer::Unsatisfiable),
            ("bytes=10-12", RangeAnswer::Unsatisfiable),
            ("bytes=-0", RangeAnswer::Unsatisfiable),
            ("bytes=4-2", RangeAnswer::Whole),
            ("bytes=0-1,3-4", RangeAnswer::Whole),
            ("bytes=a-b", RangeAnswer::Whole),
            ("bytes=-", RangeAnswer::Whole),
            ("lines=1-2", RangeAnswer::Whole),
        ] {
            assert_eq!(range(wanted, 10), answer, "{wanted}");
        }
        assert_eq!(range("bytes=0-", 0), RangeAnswer::Unsatisfiable);
        assert_eq!(range("bytes=-1", 0), RangeAnswer::Unsatisfiable);
    }

    #[test]
    fn conditions_are_judged_in_their_order() {
        let judge = |if_match, if_none_match, since, unmodified| {
            conditions("\"a\"", if_match, if_none_match, since, unmodified)
        };
        assert_eq!(judge(None, None, None, None), Condition::Send);
        assert_eq!(judge(None, Some("\"b\", W/\"a\""), None, None), Condition::NotModified);
        assert_eq!(judge(None, Some("*"), None, None), Condition::NotModified);
        assert_eq!(judge(None, Some("\"b\""), Some(true), None), Condition::Send, "the tag counts, not the date");
        assert_eq!(judge(None, None, Some(true), None), Condition::NotModified);
        assert_eq!(judge(Some("W/\"a\""), None, None, None), Condition::Failed);
        assert_eq!(judge(Some("\"a\""), None, None, Some(false)), Condition::Send);
        assert_eq!(judge(None, None, None, Some(false)), Condition::Failed);
    }

    #[test]
    fn names_stay_below_the_folder() {
        assert_eq!(decode("/a%20b/c.html"), Some("a b/c.html".to_owned()));
        assert_eq!(decode("/"), Some(String::new()));
        for bad in ["//etc/passwd", "/a%2fb", "/%00", "/%2e%2e/a", "/a/%2E", "/%", "/%g0", "/%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_inside(wanted in "bytes=[0-9]{0,3}-[0-9]{0,3}", size in 0_u64..200) {
            if let RangeAnswer::Part { first, last } = range(&wanted, size) {
                prop_assert!(first <= last && last < size);
            }
        }

        #[test]
        fn no_name_leaves_the_folder(path in "(/|\\.|%2e|%2f|a|%){0,8}") {
            if let Some(name) = decode(&path) {
                prop_assert!(!name.starts_with('/') && name.split('/').all(|segment| segment != ".."));
            }
        }
    }
}
