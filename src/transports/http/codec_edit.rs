//! Changes that a route makes: fields that are set, added and removed, and what becomes of the path.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use regex::Regex;

use super::state_routes::is_plain;

/// Fields that frame a message or concern one hop: nobody edits them.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Changes to the fields of a message, made in this order: remove, set, add.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Taken away, every one of that name.
    pub remove: Vec<HeaderName>,
    /// Put in the place of all of that name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Added behind those of that name.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    /// Makes the changes.
    pub fn apply(&self, fields: &mut HeaderMap) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            fields.append(name, value.clone());
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// Reads the name of a field that may be edited.
#[must_use]
pub fn editable(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (!FRAMING.contains(&name.as_str())).then_some(name)
}

/// Reads `name: value` of a field that may be edited.
#[must_use]
pub fn editable_line(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((editable(name)?, HeaderValue::from_str(value.trim()).ok()?))
}

/// What becomes of a path before it is passed on.
#[derive(Debug, Clone, Default)]
pub enum Rewrite {
    /// It stays.
    #[default]
    Keep,
    /// So many bytes of its beginning are replaced.
    Prefix(usize, String),
    /// It is this.
    Whole(String),
    /// What fits is replaced; `$1` and `${name}` stand for groups.
    Pattern(Regex, String),
}

impl Rewrite {
    /// The path that is passed on; nothing if it would be one that two readers could understand differently.
    #[must_use]
    pub fn apply(&self, path: &str) -> Option<String> {
        let rewritten = match self {
            Self::Keep => return Some(path.to_owned()),
            Self::Prefix(bytes, with) => {
                let rest = path.get(*bytes..).unwrap_or_default();
                let with = if rest.starts_with('/') { with.trim_end_matches('/') } else { with };
                format!("{with}{rest}")
            }
            Self::Whole(path) => path.clone(),
            Self::Pattern(pattern, with) => pattern.replace(path, with.as_str()).into_owned(),
        };
        let rewritten = if rewritten.starts_with('/') { rewritten } else { format!("/{rewritten}") };
        let plain = is_plain(&rewritten) && rewritten.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
        plain.then_some(rewritten)
    }

    /// Whether the path stays as it is.
    #[must_use]
    pub const fn keeps(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_removed_set_and_added_in_this_order() {
        let line = |text: &str| editable_line(text).unwrap();
        let edits = Edits {
            remove: vec![editable("x-gone").unwrap()],
            set: vec![line("x-set: 1"), line("X-Gone: back")],
            add: vec![line("x-set: 2"), line("x-new:  a: b ")],
        };
        let mut fields = HeaderMap::new();
        for (name, value) in [("x-gone", "1"), ("x-gone", "2"), ("x-set", "0"), ("x-stay", "s")] {
            fields.append(name, value.parse().unwrap());
        }
        edits.apply(&mut fields);
        let of = |name: &str| fields.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!((of("x-gone"), of("x-set")), (vec!["back".to_owned()], vec!["1".to_owned(), "2".to_owned()]));
        assert_eq!((of("x-new"), of("x-stay")), (vec!["a: b".to_owned()], vec!["s".to_owned()]));
        for bad in ["", "no colon", "x y: 1", "x: a\r\ny: b", "Content-Length: 5", "connection: close", ": v"] {
            assert_eq!(editable_line(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn paths_are_rewritten_and_stay_plain() {
        let pattern = |text: &str, with: &str| Rewrite::Pattern(Regex::new(text).unwrap(), with.to_owned());
        for (rewrite, path, expected) in [
            (Rewrite::Keep, "/a", Some("/a")),
            (Rewrite::Prefix(4, "/v2".to_owned()), "/api/x", Some("/v2/x")),
            (Rewrite::Prefix(4, "/".to_owned()), "/api/x", Some("/x")),
            (Rewrite::Prefix(4, "/".to_owned()), "/api", Some("/")),
            (Rewrite::Prefix(0, "/v2".to_owned()), "/x", Some("/v2/x")),
            (Rewrite::Whole("/y".to_owned()), "/x", Some("/y")),
            (pattern("^/u/([a-z]+)$", "/users/$1"), "/u/bob", Some("/users/bob")),
            (pattern("^/u/([^/]+)/", "/../$1/"), "/u/bob/", None),
            (pattern("^/u/(.*)$", "$1"), "/u/x", Some("/x")),
            (pattern("^/u/(.*)$", "/?$1"), "/u/x", None),
        ] {
            assert_eq!(rewrite.apply(path).as_deref(), expected, "{rewrite:?} {path}");
        }
    }
}
