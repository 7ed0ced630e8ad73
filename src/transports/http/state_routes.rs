//! Which route takes a request: the most specific one that fits.
//!
//! A host given in full beats a wildcard, a longer wildcard a shorter one, and any of them no host at all. Then a path
//! given in full beats a pattern, a pattern a prefix, and a longer prefix a shorter one; patterns are tried in the order
//! of the file. Then a route that asks for a method beats one that does not, and more fields beat fewer. Two routes that
//! one request could fit equally well are a mistake: see [`Table::new`].

use std::fmt;

use regex::Regex;

/// What a route asks of a request.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// Of the host.
    pub host: HostRule,
    /// Of the path.
    pub path: PathRule,
    /// One of these methods; empty: any.
    pub methods: Vec<String>,
    /// Each of these fields, in lower case, with this value, or with any.
    pub fields: Vec<(String, Option<String>)>,
}

/// What a route asks of the host. Names are in lower case and without a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HostRule {
    /// Nothing.
    #[default]
    Any,
    /// Any name below this one: `example.org` for `*.example.org`.
    Below(String),
    /// This name.
    Exact(String),
}

/// What a route asks of the path, which does not include the query.
#[derive(Debug, Clone)]
pub enum PathRule {
    /// To be this, or to go on behind it with a `/`.
    Prefix(String),
    /// To fit this.
    Pattern(Regex),
    /// To be this.
    Exact(String),
}

impl Default for PathRule {
    fn default() -> Self {
        Self::Prefix("/".to_owned())
    }
}

impl PathRule {
    /// How many bytes of the path a prefix takes; of other rules none.
    #[must_use]
    pub fn prefix_len(&self) -> usize {
        match self {
            Self::Prefix(prefix) => prefix.trim_end_matches('/').len(),
            Self::Pattern(_) | Self::Exact(_) => 0,
        }
    }
}

/// Two routes that one request could fit equally well, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tie(pub usize, pub usize);

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "routes {} and {} fit the same requests", self.0, self.1)
    }
}

/// What a route is found by.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The host, in lower case and without a port.
    pub host: &'a str,
    /// The path.
    pub path: &'a str,
    /// The method.
    pub method: &'a str,
}

/// The routes of a listener.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// The most specific first, each with its number.
    rules: Vec<(usize, Rule)>,
}

impl Table {
    /// A table of these rules, which are numbered in their order.
    ///
    /// # Errors
    /// The first two that one request could fit equally well.
    pub fn new(rules: Vec<Rule>) -> Result<Self, Tie> {
        for (number, rule) in rules.iter().enumerate() {
            if let Some(other) = rules.iter().take(number).position(|other| ties(other, rule)) {
                return Err(Tie(other, number));
            }
        }
        let mut rules: Vec<_> = rules.into_iter().enumerate().collect();
        rules.sort_by_key(|(_, rule)| std::cmp::Reverse(rank(rule)));
        Ok(Self { rules })
    }

    /// Whether a route asks for this method by name.
    #[must_use]
    pub fn names_method(&self, number: usize, method: &str) -> bool {
        self.rules.iter().any(|(n, rule)| *n == number && rule.methods.iter().any(|named| named == method))
    }

    /// The number of the route for a request. `field` tells the values of a field, whose name is in lower case.
    pub fn find<'v, V>(&self, wanted: Wanted<'_>, field: impl Fn(&str) -> V) -> Option<usize>
    where
        V: Iterator<Item = &'v [u8]>,
    {
        let fits = |rule: &Rule| {
            fits_host(&rule.host, wanted.host)
                && fits_path(&rule.path, wanted.path)
                && (rule.methods.is_empty() || rule.methods.iter().any(|method| method == wanted.method))
                && rule.fields.iter().all(|(name, value)| match value {
                    Some(value) => field(name).any(|given| given == value.as_bytes()),
                    None => field(name).next().is_some(),
                })
        };
        self.rules.iter().find(|(_, rule)| fits(rule)).map(|(number, _)| *number)
    }
}

/// The host of an authority as [`Wanted`] takes it: without a port and the dot of the root.
#[must_use]
pub fn host_of(authority: &str) -> String {
    let end = if authority.starts_with('[') { authority.find(']').map(|end| end + 1) } else { authority.find(':') };
    let host = authority.get(..end.unwrap_or(authority.len())).unwrap_or(authority);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether a path is one that no two readers understand differently: it begins with `/` and holds no `.` or `..` among
/// its segments, plain or in percent encoding, no NUL and no backslash. Clients resolve dots before they send
/// (RFC 3986, section 5.2.4).
#[must_use]
pub fn is_plain(path: &str) -> bool {
    let mut segments = path.split('/');
    path.starts_with('/')
        && segments.next() == Some("")
        && segments.all(is_plain_segment)
        && !path.contains(['\\', '\0'])
}

fn is_plain_segment(segment: &str) -> bool {
    if !segment.starts_with(['.', '%']) {
        return !contains_coded(segment);
    }
    let decoded = segment.to_ascii_lowercase().replace("%2e", ".");
    decoded != "." && decoded != ".." && !contains_coded(segment)
}

/// A NUL or a slash in percent encoding: some decode before they split, some after.
fn contains_coded(segment: &str) -> bool {
    segment.match_indices('%').any(|(at, _)| {
        let code = segment.get(at + 1..at + 3).unwrap_or_default();
        code == "00" || code.eq_ignore_ascii_case("2f") || code.eq_ignore_ascii_case("5c")
    })
}

fn fits_host(rule: &HostRule, host: &str) -> bool {
    match rule {
        HostRule::Any => true,
        HostRule::Exact(name) => name == host,
        HostRule::Below(name) => {
            host.strip_suffix(name.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        }
    }
}

fn fits_path(rule: &PathRule, path: &str) -> bool {
    match rule {
        PathRule::Exact(exact) => exact == path,
        PathRule::Pattern(pattern) => pattern.is_match(path),
        PathRule::Prefix(prefix) => path
            .strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/')),
    }
}

type Rank = ((u8, usize), (u8, usize), bool, usize);

fn rank(rule: &Rule) -> Rank {
    let host = match &rule.host {
        HostRule::Any => (0, 0),
        HostRule::Below(name) => (1, name.len()),
        HostRule::Exact(_) => (2, 0),
    };
    let path = match &rule.path {
        PathRule::Prefix(prefix) => (0, prefix.len()),
        PathRule::Pattern(_) => (1, 0),
        PathRule::Exact(_) => (2, 0),
    };
    (host, path, !rule.methods.is_empty(), rule.fields.len())
}

fn ties(a: &Rule, b: &Rule) -> bool {
    let same_path = match (&a.path, &b.path) {
        (PathRule::Prefix(a), PathRule::Prefix(b)) | (PathRule::Exact(a), PathRule::Exact(b)) => a == b,
        // The first of the file is tried first, but never the second of two that are equal.
        (PathRule::Pattern(a), PathRule::Pattern(b)) => a.as_str() == b.as_str(),
        _ => false,
    };
    let methods = match (a.methods.is_empty(), b.methods.is_empty()) {
        (true, true) => true,
        (false, false) => a.methods.iter().any(|method| b.methods.contains(method)),
        _ => false,
    };
    // One request cannot fit two routes that ask one field for two values.
    let apart = a.fields.iter().any(|(name, value)| {
        b.fields.iter().any(|(other, given)| name == other && value.is_some() && given.is_some() && value != given)
    });
    a.host == b.host && same_path && methods && a.fields.len() == b.fields.len() && !apart
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(host: &str, path: &str) -> Rule {
        let host = match host.strip_prefix("*.") {
            Some(name) => HostRule::Below(name.to_owned()),
            None if host.is_empty() => HostRule::Any,
            None => HostRule::Exact(host.to_owned()),
        };
        let path = match (path.strip_prefix('='), path.strip_prefix('~')) {
            (Some(exact), _) => PathRule::Exact(exact.to_owned()),
            (_, Some(pattern)) => PathRule::Pattern(Regex::new(pattern).unwrap()),
            _ => PathRule::Prefix(path.to_owned()),
        };
        Rule { host, path, ..Rule::default() }
    }

    fn find(table: &Table, host: &str, path: &str) -> Option<usize> {
        table.find(Wanted { host, path, method: "GET" }, |_| std::iter::empty())
    }

    #[test]
    fn the_most_specific_wins_wherever_it_stands() {
        let rules = [
            ("", "/"),
            ("", "/api"),
            ("", "/api/v1"),
            ("", "=/api"),
            ("", "~^/api/v[0-9]+$"),
            ("a.example", "/"),
            ("*.example", "/"),
            ("*.b.example", "/"),
        ];
        let expected = [
            ("x", "/", 0),
            ("x", "/apix", 0),
            ("x", "/api", 3),
            ("x", "/api/", 1),
            ("x", "/api/v1", 4),
            ("x", "/api/v1/x", 2),
            ("a.example", "/api", 5),
            ("c.example", "/api", 6),
            ("c.b.example", "/", 7),
            ("b.example", "/", 6),
            ("example", "/", 0),
        ];
        for turn in 0..rules.len() {
            let mut turned = rules;
            turned.rotate_left(turn);
            let table = Table::new(turned.iter().map(|(host, path)| rule(host, path)).collect()).unwrap();
            for (host, path, number) in expected {
                let found = find(&table, host, path).map(|found| (found + turn) % rules.len());
                assert_eq!(found, Some(number), "{host} {path}");
            }
        }
    }

    #[test]
    fn methods_and_fields_narrow_a_route() {
        let post = Rule { methods: vec!["POST".to_owned()], ..rule("", "/") };
        let field = Rule { fields: vec![("x-a".to_owned(), Some("1".to_owned()))], ..rule("", "/") };
        let any = Rule { fields: vec![("x-a".to_owned(), None), ("x-b".to_owned(), None)], ..rule("", "/") };
        let table = Table::new(vec![rule("", "/"), post, field, any]).unwrap();
        let find = |method: &str, given: &[(&str, &'static str)]| {
            let given = given.to_vec();
            table.find(Wanted { host: "x", path: "/", method }, |name| {
                let name = name.to_owned();
                given.clone().into_iter().filter(move |(n, _)| *n == name).map(|(_, value)| value.as_bytes())
            })
        };
        assert_eq!(find("GET", &[]), Some(0));
        assert_eq!(find("POST", &[]), Some(1));
        assert_eq!(find("GET", &[("x-a", "1")]), Some(2));
        assert_eq!(find("GET", &[("x-a", "2")]), Some(0));
        assert_eq!(find("GET", &[("x-a", "2"), ("x-b", "")]), Some(3));
    }

    #[test]
    fn what_could_fit_equally_well_is_a_tie() {
        let tie = |a: Rule, b: Rule| Table::new(vec![rule("z", "/"), a, b]).err();
        assert_eq!(tie(rule("a", "/x"), rule("a", "/x")), Some(Tie(1, 2)));
        assert_eq!(tie(rule("a", "=/x"), rule("a", "=/x")), Some(Tie(1, 2)));
        assert_eq!(tie(rule("a", "~^/x$"), rule("a", "~^/x$")), Some(Tie(1, 2)));
        assert_eq!(tie(rule("a", "/x"), rule("b", "/x")), None);
        assert_eq!(tie(rule("a", "/x"), rule("a", "/y")), None);
        assert_eq!(tie(rule("a", "~^/x$"), rule("a", "~^/.$")), None);
        let method = |method: &str| Rule { methods: vec![method.to_owned()], ..rule("", "/") };
        assert_eq!(tie(method("GET"), method("POST")), None);
        assert_eq!(tie(method("GET"), method("GET")), Some(Tie(1, 2)));
        let field =
            |name: &str, value: &str| Rule { fields: vec![(name.to_owned(), Some(value.to_owned()))], ..rule("", "/") };
        assert_eq!(tie(field("a", "1"), field("a", "2")), None);
        assert_eq!(tie(field("a", "1"), field("b", "1")), Some(Tie(1, 2)));
    }

    #[test]
    fn hosts_lose_their_port_and_paths_their_tricks() {
        for (authority, host) in [("A.example:80", "a.example"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a.", "a")]
        {
            assert_eq!(host_of(authority), host);
        }
        for good in ["/", "/a//b/", "/.well-known/x", "/...", "/%2e%2ex", "/a%20b", "/%"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "*", "a", "/..", "/./", "/a/../b", "/%2e%2E/b", "/.%2e", "/a\\b", "/a%2fb", "/a%5Cb", "/%00"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}
