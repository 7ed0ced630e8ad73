//! Reads Rust source just well enough for the rules: what is code, which paths it names, and on which line.
//!
//! Not a parser. Comments and the contents of literals are blanked, items under `#[cfg(test)]` are blanked, and line
//! breaks stay where they were. Names that a macro puts together are out of its sight.

use std::ops::Range;

/// The attributes that keep an item out of what is shipped.
const TEST_ONLY: &[&str] = &["#[cfg(test)]", "#[cfg(all(test,"];

/// The code of a file: comments, literals and test items replaced by spaces, line numbers unchanged.
pub(crate) fn code(text: &str) -> String {
    let mut code = without_comments(text);
    for item in test_items(&code) {
        let gap = blank(&code[item.clone()]);
        code.replace_range(item, &gap);
    }
    code
}

/// How many lines a file has when its test items are left out (comments count).
pub(crate) fn lines_without_tests(text: &str) -> usize {
    let code = without_comments(text);
    let of_tests = |item: Range<usize>| code[item].lines().count();
    code.lines().count() - test_items(&code).into_iter().map(of_tests).sum::<usize>()
}

/// Every path that `code` names, with its line; groups in braces are taken apart and `super::` is resolved against
/// `module`, the path of the file's own module below the crate (`["transports", "framed", "codec"]`).
pub(crate) fn paths(code: &str, module: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let bytes = code.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if is_ident(bytes[at]) && (at == 0 || !is_ident(bytes[at - 1])) && !follows_path(&code[..at]) {
            let mut named = Vec::new();
            let end = read_tree(code, at, "", &mut named);
            for (offset, path) in named {
                if path.contains("::") {
                    found.push((line_of(code, offset), resolve(&path, module)));
                }
            }
            at = end.max(at + 1);
        } else {
            at += 1;
        }
    }
    found
}

/// Whether `word` stands in `line` on its own: `tokio` is not in `tokio_like`.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let edge = |c: Option<char>, own: Option<char>| {
        let ident = |c: char| c.is_alphanumeric() || c == '_';
        !(c.is_some_and(ident) && own.is_some_and(ident))
    };
    line.match_indices(word).any(|(at, _)| {
        edge(line[..at].chars().next_back(), word.chars().next())
            && edge(line[at + word.len()..].chars().next(), word.chars().next_back())
    })
}

/// The line, counted from 1, of a byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn is_ident(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether what follows `before` only continues a path that was already read.
fn follows_path(before: &str) -> bool {
    before.trim_end().ends_with("::")
}

/// Reads one path or use tree that starts at `at`; puts each leaf into `found` and answers where it ends.
fn read_tree(code: &str, mut at: usize, prefix: &str, found: &mut Vec<(usize, String)>) -> usize {
    let bytes = code.as_bytes();
    let began = at;
    let mut path = prefix.to_owned();
    loop {
        let start = at;
        while at < bytes.len() && (is_ident(bytes[at]) || bytes[at] == b'*') {
            at += 1;
        }
        path.push_str(&code[start..at]);
        let next = skip_space(bytes, at);
        if !code[next..].starts_with("::") {
            break;
        }
        path.push_str("::");
        at = skip_space(bytes, next + 2);
        if bytes.get(at) == Some(&b'{') {
            return read_group(code, at + 1, &path, found);
        }
        if bytes.get(at) == Some(&b'<') {
            break;
        }
    }
    found.push((began, path));
    at
}

/// Reads the inside of `{…}` in a use tree, from just behind the brace to just behind its partner.
fn read_group(code: &str, mut at: usize, prefix: &str, found: &mut Vec<(usize, String)>) -> usize {
    let bytes = code.as_bytes();
    while at < bytes.len() && bytes[at] != b'}' {
        if is_ident(bytes[at]) || bytes[at] == b'*' {
            at = read_tree(code, at, prefix, found).max(at + 1);
            // `as name` is not a path of its own.
            while at < bytes.len() && !matches!(bytes[at], b',' | b'}') {
                at += 1;
            }
        } else {
            at += 1;
        }
    }
    (at + 1).min(bytes.len())
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && bytes[at].is_ascii_whitespace() {
        at += 1;
    }
    at
}

/// Turns a leading `self::` or `super::` into a path from `crate::`.
fn resolve(path: &str, module: &[&str]) -> String {
    let mut parts: Vec<&str> = path.split("::").collect();
    if !matches!(parts.first(), Some(&"self" | &"super")) {
        return path.to_owned();
    }
    let mut base = module.to_vec();
    while let Some(&first) = parts.first() {
        match first {
            "self" => {}
            "super" => drop(base.pop()),
            _ => break,
        }
        parts.remove(0);
    }
    std::iter::once("crate").chain(base).chain(parts).collect::<Vec<_>>().join("::")
}

/// Blanks comments and the contents of string, byte, raw and character literals.
fn without_comments(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => find(&chars, at, |rest| rest[0] == '\n'),
            '/' if chars.get(at + 1) == Some(&'*') => end_of_block_comment(&chars, at),
            '"' => end_of_string(&chars, at),
            'r' if !follows_ident(&chars, at) => end_of_raw_string(&chars, at).unwrap_or(at),
            '\'' => end_of_char(&chars, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    // Blanks for letters beyond ASCII keep the line, not the byte offset; nothing below needs the latter.
    out.chars().map(|c| if c.is_ascii() { c } else { '_' }).collect()
}

/// Whether the character before is part of a name other than the `b` or `c` of a literal.
fn follows_ident(chars: &[char], at: usize) -> bool {
    let ident = |i: usize| chars.get(i).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    at > 0 && ident(at - 1) && !(matches!(chars[at - 1], 'b' | 'c') && !(at > 1 && ident(at - 2)))
}

/// Where the first rest that fits begins; the end if none does.
fn find(chars: &[char], from: usize, fits: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len()).find(|&i| fits(&chars[i..])).unwrap_or(chars.len())
}

fn end_of_block_comment(chars: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(chars.len())
}

fn end_of_string(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// `r"…"` or `r#"…"#`; `None` if the `r` begins something else (`r#type`).
fn end_of_raw_string(chars: &[char], from: usize) -> Option<usize> {
    let hashes = chars[from + 1..].iter().take_while(|c| **c == '#').count();
    let open = from + 1 + hashes;
    (chars.get(open) == Some(&'"')).then(|| {
        let closes =
            |rest: &[char]| rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|c| *c == '#');
        (find(chars, open + 1, closes) + 1 + hashes).min(chars.len())
    })
}

/// `'x'` or `'\n'`; `None` for a lifetime.
fn end_of_char(chars: &[char], from: usize) -> Option<usize> {
    match chars.get(from + 1)? {
        '\\' => Some((find(chars, from + 3, |rest| rest[0] == '\'') + 1).min(chars.len())),
        _ => (chars.get(from + 2) == Some(&'\'')).then_some(from + 3),
    }
}

/// Where the items under `#[cfg(test)]` lie, attribute and body. Expects comments and literals to be blank already.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = TEST_ONLY.iter().filter_map(|a| code[from..].find(a)).min().map(|at| from + at) {
        from = end_of_item(code, start);
        found.push(start..from);
    }
    found
}

/// Where the item, field or statement that begins with an attribute at `start` ends: behind its closing brace or
/// semicolon, or, if it is a field or an argument, behind its comma or before the bracket that closes its parent.
fn end_of_item(code: &str, start: usize) -> usize {
    let is_item = begins_item(&code[start..]);
    let mut depth = 0_i32;
    for (i, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth -= 1,
            _ => {}
        }
        match byte {
            _ if depth < 0 => return i,
            b'}' | b';' if depth == 0 => return i + 1,
            b',' if depth == 0 && !is_item => return i + 1,
            _ => {}
        }
    }
    code.len()
}

/// Whether an item or a statement follows the attributes that `code` begins with, not a field or an argument.
fn begins_item(code: &str) -> bool {
    const FIRST: &[&str] = &[
        "async",
        "const",
        "enum",
        "extern",
        "fn",
        "impl",
        "let",
        "macro_rules",
        "mod",
        "static",
        "struct",
        "trait",
        "type",
        "unsafe",
        "use",
    ];
    let mut rest = code;
    while rest.starts_with("#[") {
        let mut depth = 0_i32;
        let end = rest.find(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            c == ']' && depth == 0
        });
        rest = end.map_or("", |end| rest[end + 1..].trim_start());
    }
    if let Some(hidden) = rest.strip_prefix("pub") {
        rest = hidden.trim_start();
        if rest.starts_with('(') {
            rest = rest.split_once(')').map_or("", |(_, after)| after).trim_start();
        }
    }
    let word = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
    FIRST.contains(&word)
}

fn blank(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect()
}
