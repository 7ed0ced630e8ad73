//! The seeds of the fuzzer, replayed: every parser on each of them, on each beginning of it, and with each byte changed.
//!
//! The functions are the fuzzer's own (fuzz/src/lib.rs); an input that broke one is added to `fuzz/seeds`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "for the fuzzer it is a crate of its own")]
mod parsers;

/// Longer ones are cut and changed at some places only.
const PLACES: usize = 200;

fn try_all(name: &str, target: fn(&[u8]), seed: &str, bytes: &[u8]) {
    let check = |what: &str, bytes: &[u8]| {
        let held = catch_unwind(AssertUnwindSafe(|| target(bytes)));
        assert!(held.is_ok(), "{name}: seed `{seed}` {what} breaks it");
    };
    check("itself", bytes);
    for place in (0..bytes.len()).step_by(bytes.len().div_ceil(PLACES).max(1)) {
        check(&format!("cut at {place}"), &bytes[..place]);
        for change in [0x01, 0x20, 0x80, 0xff] {
            let mut changed = bytes.to_vec();
            changed[place] ^= change;
            check(&format!("with byte {place} ^ {change:#x}"), &changed);
        }
    }
}

#[test]
fn every_seed_of_every_parser_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, target) in parsers::TARGETS {
        let mut seeds: Vec<_> = fs::read_dir(folder.join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        seeds.sort();
        assert!(seeds.len() >= 4, "{name} has {} seeds", seeds.len());
        for seed in seeds {
            let bytes = fs::read(&seed).expect("readable");
            try_all(name, *target, &seed.file_name().expect("a name").to_string_lossy(), &bytes);
        }
    }
    let folders = fs::read_dir(&folder).expect("readable").count();
    assert_eq!(folders, parsers::TARGETS.len(), "seeds of a parser that nobody replays");
}

/// A check can fail: what a parser must not do is found.
#[test]
fn what_does_not_hold_is_found() {
    let broken = catch_unwind(|| try_all("broken", |bytes| assert!(bytes.first() != Some(&0x80)), "zero", &[0]));
    assert!(broken.is_err());
}
