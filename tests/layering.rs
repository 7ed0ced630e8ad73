//! Keeps the map in ARCHITECTURE.md true: reads `src/` and complains where a rule of the house is broken.
//!
//! Run alone: `cargo test --test layering`. Each rule is one function from a file to complaints, and each has a test
//! that feeds it what it must refuse.

#[path = "layering/source.rs"]
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use source::{code, has_word, lines_without_tests, paths};

/// Hard limit on lines of a file, its test items not counted.
const MAX_LINES: usize = 700;

/// Deepest place below `src/`: `transports/framed/codec.rs`.
const MAX_DEPTH: usize = 3;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["mod.rs", "utils", "utils.rs", "util", "util.rs", "common", "common.rs"];

/// Words that mean "this file deals with the outside world", as single words of code.
const OUTSIDE: &[&str] = &[
    "tokio",
    "actix",
    "actix_rt",
    "mio",
    "socket2",
    "rustix",
    "libc",
    "hyper",
    "UdpSocket",
    "TcpListener",
    "TcpStream",
    "UnixDatagram",
    "UnixListener",
    "UnixStream",
    "rand",
    "fastrand",
    "getrandom",
    "RandomState",
];

/// Pure files beside `codec*`, `state*` and those in `kit/`.
const PURE_BESIDES: &[&str] = &[
    "actors/placement.rs",
    "transports/framed/outbox.rs",
    "transports/framed/rooms_table.rs",
    "transports/framed/rooms_words.rs",
    "transports/moq/model.rs",
    "transports/moq/model_codes.rs",
    "transports/moq/model_message.rs",
    "transports/moq/model_names.rs",
    "transports/moq/model_params.rs",
];

/// The same as paths; whatever begins with one of these is meant.
const OUTSIDE_PATHS: &[&str] = &["std::fs", "std::env", "std::thread", "std::process", "crate::actors::clock::now"];

/// What reads a clock.
const CLOCK_READS: &[&str] = &["Instant::now", "SystemTime::now", ".elapsed()"];

/// The one file that may.
const CLOCK: &str = "actors/clock.rs";

/// Tasks, queues and shared locks of one's own: they bypass mailboxes, gauges and drain.
const BYPASSES: &[&str] = &[
    "tokio::spawn",
    "actix::spawn",
    "actix_rt::spawn",
    "task::spawn",
    "spawn_local",
    "mpsc",
    "unbounded_channel",
    "broadcast::",
    "sync::broadcast",
    "crossbeam",
    "crossbeam_channel",
    "crossbeam_queue",
];

/// Where they are built from: the actor library, and the list on which packet buffers come home.
const MAY_BYPASS: &[&str] = &["actors.rs", "actors/", "memory/pool.rs"];

/// Files that may contain `unsafe`, each with its proof beside the code.
// One a line, and kept so.
#[rustfmt::skip]
const MAY_BE_UNSAFE: &[&str] = &[
    "transports/tls/tickets.rs",
    "transports/tun/device.rs",
    "transports/tun/namespace.rs",
    "transports/udp/options.rs",
    "transports/wireguard/engine_wipe.rs",
];

/// One file below `src/`.
struct File<'a> {
    /// With `/`, relative to `src/`.
    path: &'a str,
    text: &'a str,
    /// The text without comments, literals and test items.
    code: String,
}

impl<'a> File<'a> {
    fn new(path: &'a str, text: &'a str) -> Self {
        Self { path, text, code: code(text) }
    }

    fn name(&self) -> &'a str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether the file lies in one of these places: a file, or a folder if it ends with `/`.
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| if place.ends_with('/') { self.path.starts_with(place) } else { self.path == *place })
    }

    fn is_pure(&self) -> bool {
        let core =
            self.path.starts_with("transports/") && ["codec", "state"].iter().any(|p| self.name().starts_with(p));
        core || self.path.split('/').rev().skip(1).any(|folder| folder == "kit") || PURE_BESIDES.contains(&self.path)
    }

    /// Complains at each line that holds one of these words, with blanks squeezed out around `::` and `<`.
    fn refuse_words(&self, words: &[&str], why: &str, complaints: &mut Vec<String>) {
        for (nr, line) in (1..).zip(self.code.lines()) {
            let line = line.replace(" ::", "::").replace(":: ", "::");
            for word in words.iter().filter(|word| has_word(&line, word)) {
                complaints.push(format!("{}:{nr}: {why} `{word}`", self.path));
            }
        }
    }

    /// Complains at each path named in the code that begins with one of these.
    fn refuse_paths(&self, refused: &[&str], why: &str, complaints: &mut Vec<String>) {
        for (nr, path) in self.paths() {
            if let Some(start) = refused.iter().find(|start| begins(&path, start)) {
                complaints.push(format!("{}:{nr}: {why} `{start}`", self.path));
            }
        }
    }

    fn paths(&self) -> Vec<(usize, String)> {
        let module: Vec<&str> = self.path.trim_end_matches(".rs").split('/').filter(|part| *part != "lib").collect();
        paths(&self.code, &module)
    }
}

/// Whether a path is `start` or lies below it.
fn begins(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The form of a file: what it opens with, how long it is, where it lies, what it is called.
fn shape(file: &File<'_>, complaints: &mut Vec<String>) {
    let path = file.path;
    if !file.text.starts_with("//! ") {
        complaints.push(format!("{path}: does not open with `//!` and a sentence that says what it is for"));
    }
    let lines = lines_without_tests(file.text);
    if lines > MAX_LINES {
        complaints.push(format!("{path}: {lines} lines without its tests, the limit is {MAX_LINES}"));
    }
    let depth = path.split('/').count();
    if depth > MAX_DEPTH {
        complaints.push(format!("{path}: {depth} levels below src, the limit is {MAX_DEPTH}"));
    }
    for part in path.split('/').filter(|part| EMPTY_NAMES.contains(part)) {
        complaints.push(format!("{path}: the name `{part}` says nothing about what is inside"));
    }
}

/// Pure files decide; they touch no socket, clock, runtime, file or random number.
fn purity(file: &File<'_>, complaints: &mut Vec<String>) {
    if file.is_pure() {
        let why = "a pure file mentions";
        file.refuse_words(OUTSIDE, why, complaints);
        file.refuse_words(CLOCK_READS, why, complaints);
        file.refuse_paths(OUTSIDE_PATHS, why, complaints);
    }
}

/// main → gateway → transports → actors, and memory below them all.
fn layers(file: &File<'_>, complaints: &mut Vec<String>) {
    if file.is_in(&["memory.rs", "memory/"]) {
        for (nr, path) in file.paths() {
            if (begins(&path, "crate") || begins(&path, "portway")) && !begins(&path, "crate::memory") {
                complaints.push(format!("{}:{nr}: memory uses nothing of ours, but names `{path}`", file.path));
            }
        }
    }
    if file.is_in(&["actors.rs", "actors/"]) {
        file.refuse_paths(&["crate::transports", "crate::gateway", "crate::*"], "actors may not use", complaints);
    }
    if file.is_in(&["transports.rs", "transports/"]) {
        file.refuse_paths(&["crate::gateway", "crate::*"], "transports may not use", complaints);
    }
}

/// Outside the actor library a mailbox is the only queue and a host the only task.
fn one_way_in(file: &File<'_>, complaints: &mut Vec<String>) {
    if file.is_in(MAY_BYPASS) {
        return;
    }
    file.refuse_words(BYPASSES, "only the actor library may use", complaints);
    file.refuse_paths(&["tokio::task::spawn", "tokio::sync::broadcast"], "only the actor library may use", complaints);
    for (nr, line) in (1..).zip(file.code.lines()) {
        for (at, found) in line.match_indices("Arc<") {
            let inner = line[at + found.len()..].split(['<', '>', ',']).next().unwrap_or_default();
            if inner.trim().rsplit("::").next() == Some("Mutex") {
                complaints.push(format!("{}:{nr}: only the actor library may use `Arc<Mutex`", file.path));
            }
        }
    }
}

/// `unsafe` lives in named files.
fn unsafety(file: &File<'_>, complaints: &mut Vec<String>) {
    if !file.is_in(MAY_BE_UNSAFE) {
        file.refuse_words(&["unsafe"], "not in the list of files that may say", complaints);
    }
}

/// Time comes from one file, so that a simulation can drive it.
fn clock(file: &File<'_>, complaints: &mut Vec<String>) {
    if file.path != CLOCK {
        file.refuse_words(CLOCK_READS, "only `actors/clock.rs` may read time with", complaints);
    }
}

const RULES: &[fn(&File<'_>, &mut Vec<String>)] = &[shape, purity, layers, one_way_in, unsafety, clock];

fn complaints(path: &str, text: &str) -> Vec<String> {
    let file = File::new(path, text);
    let mut found = Vec::new();
    for rule in RULES {
        rule(&file, &mut found);
    }
    found
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the folder is readable") {
        let path = entry.expect("the entry is readable").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_source_tree_keeps_the_rules() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&src);
    assert!(files.contains(&src.join("lib.rs")), "walked the wrong folder: {}", src.display());
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("source is readable");
        let path = file.strip_prefix(&src).expect("walked from src").to_string_lossy().into_owned();
        found.extend(complaints(&path, &text));
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// The families of counters that this source names in one piece.
fn families(text: &str) -> Vec<&str> {
    let calls = ["counter(\"", "raise(\""].into_iter().flat_map(|call| text.split(call).skip(1));
    calls.filter_map(|rest| rest.split_once('"')).map(|(family, _)| family).collect()
}

/// A counter without a line in the table of the metrics page shows there as one of somebody else's protocol.
#[test]
fn every_counter_is_explained_on_the_metrics_page() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table = fs::read_to_string(src.join("gateway/admin/metrics.rs")).expect("source is readable");
    let explained = |family: &str| table.contains(&format!("    (\"{family}\", "));
    let mut missing = Vec::new();
    for file in rust_files(&src) {
        let text = fs::read_to_string(&file).expect("source is readable");
        // Tests make up names.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        missing.extend(families(code).into_iter().filter(|family| !explained(family)).map(str::to_owned));
    }
    assert!(missing.is_empty(), "not in FAMILIES of gateway/admin/metrics.rs: {missing:?}");
    assert!(explained("bytes_in") && !explained("made_up"), "it can fail");
    assert_eq!(families("turn.counter(\"a\", x); count.raise(\"b\", y)"), ["a", "b"]);
}

/// Public items and methods of this source, and those of its public traits, whose documentation has no example.
fn without_example(text: &str) -> Vec<&str> {
    let (mut found, mut example, mut in_trait) = (Vec::new(), false, false);
    for line in text.split("\n#[cfg(test)]\n").next().unwrap_or_default().lines() {
        let item = line.trim_start();
        if item.starts_with("///") {
            example |= item.contains("```");
            continue;
        }
        if item.starts_with("#[") {
            continue;
        }
        in_trait = line.starts_with("pub trait ") || (in_trait && line != "}");
        let of_trait = in_trait && line.strip_prefix("    ").is_some_and(|line| line.starts_with("fn "));
        let public = ["fn", "const fn", "struct", "enum", "trait", "type", "static"]
            .iter()
            .any(|kind| item.strip_prefix("pub ").is_some_and(|rest| rest.starts_with(&format!("{kind} "))));
        if (public || of_trait) && !example {
            found.push(item);
        }
        example = false;
    }
    found
}

/// `cargo test --doc` runs them.
#[test]
fn every_public_item_of_memory_has_an_example() {
    let memory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/memory");
    let mut missing = Vec::new();
    for file in rust_files(&memory) {
        let text = fs::read_to_string(&file).expect("source is readable");
        missing.extend(without_example(&text).into_iter().map(|item| format!("{}: {item}", file.display())));
    }
    assert!(missing.is_empty(), "without an example:\n{}\n", missing.join("\n"));
    let text = "/// Two.\npub trait T {\n    /// ```\n    /// ```\n    fn a();\n    /// None.\n    fn b() {\n    }\n}\n\
                /// ```\n/// ```\n#[must_use]\npub const fn c() {}\npub(super) fn d() {}\nfn e() {}\npub enum F {}";
    assert_eq!(without_example(text), ["pub trait T {", "fn b() {", "pub enum F {}"], "it can fail");
}

/// The named files exist: a stale exception would let the next file of that name through.
#[test]
fn exceptions_name_files_that_exist() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in MAY_BE_UNSAFE {
        assert!(src.join(path).is_file(), "{path} may contain `unsafe` but does not exist");
    }
}

/// Feeds `text` as `src/path` to all rules; exactly one complaint must come, and it must hold `expected`.
#[track_caller]
fn refused(path: &str, text: &str, expected: &str) {
    let found = complaints(path, &format!("//! What it is for.\n{text}"));
    assert!(
        matches!(found.as_slice(), [only] if only.contains(expected)),
        "expected one complaint with {expected:?} about {path}:\n{text}\ngot {found:?}"
    );
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    let found = complaints(path, &format!("//! What it is for.\n{text}"));
    assert!(found.is_empty(), "{path}:\n{text}\n{found:?}");
}

#[test]
fn shape_can_fail() {
    assert!(complaints("actors/a.rs", "fn f() {}")[0].contains("does not open"));
    assert!(complaints("actors/a.rs", "//!\nfn f() {}")[0].contains("does not open"));
    refused("actors/a.rs", &"fn f() {}\n".repeat(MAX_LINES), "701 lines");
    refused("transports/quic/paths/a.rs", "", "4 levels");
    refused("actors/mod.rs", "", "`mod.rs`");
    refused("actors/utils.rs", "", "`utils.rs`");
    refused("transports/common/a.rs", "", "`common`");
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    // one more case\n\n".repeat(MAX_LINES));
    accepted("actors/a.rs", &tests);
    accepted("transports/framed/actor.rs", "");
}

#[test]
fn purity_can_fail() {
    let codec = "transports/framed/codec.rs";
    refused(codec, "use tokio::io::AsyncRead;", "`tokio`");
    refused("transports/moq/codec_data.rs", "use actix::Addr;", "`actix`");
    refused("transports/framed/state.rs", "use std::net::TcpStream;", "`TcpStream`");
    refused("transports/framed/state.rs", "use crate::actors::clock::{later, now};", "clock::now`");
    refused("transports/framed/state.rs", "fn f() { crate::actors::clock::now(); }", "clock::now`");
    refused("transports/kit/backoff.rs", "use rand::Rng;", "`rand`");
    refused("actors/placement.rs", "use std::{cell::Cell, env};", "`std::env`");
    refused(codec, "use std::{fmt, fs::{self as files}};", "`std::fs`");
    refused(codec, "fn f() { std :: thread :: yield_now() }", "`std::thread`");
    // Not pure: the name, the folder.
    accepted("transports/framed/actor.rs", "use tokio::net::TcpStream;");
    accepted("gateway/state.rs", "use std::fs;");
    // Not code, not shipped, not the word.
    accepted(codec, "// tokio reads this\n/* std::fs */ fn f() -> &'static str { \"std::env TcpStream\" }");
    accepted(codec, "#[cfg(test)]\nmod tests {\n    use std::fs;\n}");
    accepted(codec, "fn rand_like(tokio_: u8) -> std::io::Error { operand(tokio_) }");
}

#[test]
fn layers_can_fail() {
    refused("memory/pool.rs", "use crate::actors::Mail;", "`crate::actors::Mail`");
    refused("memory/pool.rs", "use super::super::actors;", "`crate::actors`");
    refused("memory.rs", "pub use super::gateway::Config;", "`crate::gateway::Config`");
    refused("actors/host.rs", "use crate::transports::framed;", "`crate::transports`");
    refused("actors/host.rs", "use crate::{actors::Mail, gateway as g};", "`crate::gateway`");
    refused("actors/host.rs", "fn f() { crate :: gateway::run() }", "`crate::gateway`");
    refused("actors.rs", "use crate::*;", "`crate::*`");
    refused("transports/framed/actor.rs", "use super::super::super::gateway::Config;", "`crate::gateway`");
    accepted("memory/pool.rs", "use super::policy::AtomicPolicy;\nuse crate::memory::cell;");
    accepted("actors/host.rs", "use super::mailbox::Mail;\nuse crate::memory::Pool;");
    accepted("transports/framed/actor.rs", "use crate::actors::{Mail, Turn};\nuse super::codec;");
    accepted("gateway/listeners.rs", "use crate::transports::framed;");
}

#[test]
fn one_way_in_can_fail() {
    refused("gateway/admin.rs", "fn f() { actix_rt::spawn(g()); }", "`actix_rt::spawn`");
    refused("main.rs", "fn f() { tokio::spawn(g()); }", "`tokio::spawn`");
    refused("gateway/admin.rs", "use tokio::task;\nfn f() { task::spawn(g()); }", "`task::spawn`");
    refused("gateway/admin.rs", "fn f() { set.spawn_local(g()); }", "`spawn_local`");
    refused("transports/framed/actor.rs", "use std::sync::{Arc, mpsc};", "`mpsc`");
    refused("transports/framed/actor.rs", "fn f() { unbounded_channel::<u8>(); }", "`unbounded_channel`");
    refused("transports/framed/actor.rs", "use tokio::sync::{broadcast, oneshot};", "`tokio::sync::broadcast`");
    refused("transports/framed/actor.rs", "type Q = crossbeam_channel::Sender<u8>;", "`crossbeam_channel`");
    refused("gateway/listeners.rs", "struct S(Arc<Mutex<u8>>);", "`Arc<Mutex`");
    refused("gateway/listeners.rs", "struct S(Arc<parking_lot::Mutex<u8>>);", "`Arc<Mutex`");
    accepted("memory/pool.rs", "struct S(Arc<Mutex<u8>>);");
    accepted("actors/mesh.rs", "fn f() { actix_rt::spawn(g()); }");
    accepted("gateway/listeners.rs", "struct S(Arc<Map<u8, Mutex<u8>>>); fn f() { mesh.spawn(g); rooms.broadcast(b) }");
}

#[test]
fn unsafety_can_fail() {
    refused("actors/host.rs", "fn f() { unsafe { g() } }", "`unsafe`");
    refused("transports/udp.rs", "unsafe extern \"C\" {}", "`unsafe`");
    accepted("lib.rs", "#![forbid(unsafe_code)]\n// unsafe only in words");
}

#[test]
fn clock_can_fail() {
    refused("actors/host.rs", "fn f() { std::time::Instant::now(); }", "`Instant::now`");
    refused("gateway/log.rs", "fn f() { SystemTime :: now(); }", "`SystemTime::now`");
    refused("gateway/log.rs", "fn f(began: Instant) { began.elapsed(); }", "`.elapsed()`");
    accepted(CLOCK, "fn f() { Instant::now(); }");
    accepted("actors/host.rs", "fn f() { clock::now(); timer.is_elapsed() }");
}

#[test]
fn source_is_read_as_rust_reads_it() {
    let text =
        "let a = 'x'; let b: &'a str = \"\\\" unsafe\"; let c = br#\"unsafe \" unsafe\"#; /* a /* b */ unsafe */ end";
    assert!(!code(text).contains("unsafe"), "{}", code(text));
    assert!(code(text).ends_with("end") && code(text).contains("&'a str"));
    let text = "struct S {\n    #[cfg(test)]\n    probe: Map<A, B>,\n    kept: u8,\n}\n#[cfg(all(test, loom))]\nfn f() -> Result<A, B> {\n    gone()\n}\nfn g() {}\n";
    assert_eq!(lines_without_tests(text), 4);
    assert!(code(text).contains("kept") && code(text).contains("fn g()"));
    assert!(!code(text).contains("gone"), "{}", code(text));
    let text = "#[cfg(test)] #[must_use] fn f(a: [u8; 2]) -> Map<A, B> { gone() }\nfn kept() -> [u8; 2] {}";
    assert!(!code(text).contains("gone") && code(text).contains("kept"), "{}", code(text));
}
