//! One function, for one thread and for many: `cargo run --example memory_policies`
//!
//! `tally` and `add` know nothing of threads. With `SingleThreaded` they work on `Rc` and `RefCell`, without an atomic
//! operation; with `ThreadSafe` the very same code runs on rayon's threads and on tokio's. Which of the two may cross
//! threads is for the compiler to say: give `many_threads` the other policy and it refuses.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::collections::BTreeMap;
use std::time::Duration;

use portway::memory::{AtomicPolicy, Busy, Managed, Shared, SingleThreaded, ThreadSafe};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

pub(crate) type Counts = BTreeMap<char, usize>;

const TEXT: &str = "Each connection is an actor. Nothing waits for anything else.";
const PARTS: usize = 4;

/// Counts the letters of one part of a text that others read at the same time.
fn tally<P: AtomicPolicy>(text: &Managed<String, P>, part: usize) -> Counts {
    let mut counts = Counts::new();
    for letter in text.chars().skip(part).step_by(PARTS).filter(|c| c.is_alphabetic()) {
        *counts.entry(letter.to_ascii_lowercase()).or_default() += 1;
    }
    counts
}

/// Adds to a result that all see.
fn add<P: AtomicPolicy>(total: &Shared<Counts, P>, counts: Counts) -> Result<(), Busy> {
    let mut total = total.write_within(Duration::from_secs(1))?;
    for (letter, count) in counts {
        *total.entry(letter).or_default() += count;
    }
    Ok(())
}

/// Here, one after the other.
fn one_thread() -> Result<Counts, Busy> {
    let text: Managed<String, SingleThreaded> = Managed::new(TEXT.to_owned());
    let total: Shared<Counts, SingleThreaded> = Shared::default();
    (0..PARTS).try_for_each(|part| add(&total, tally(&text, part)))?;
    total.read().map(|total| total.clone())
}

/// On rayon's threads.
fn many_threads() -> Result<Counts, Busy> {
    let text: Managed<String, ThreadSafe> = Managed::new(TEXT.to_owned());
    let total: Shared<Counts, ThreadSafe> = Shared::default();
    (0..PARTS).into_par_iter().try_for_each(|part| add(&total, tally(&text, part)))?;
    total.read().map(|total| total.clone())
}

/// On tokio's threads for blocking work, of one runtime.
fn many_tasks() -> Result<Counts, Box<dyn std::error::Error>> {
    let text: Managed<String, ThreadSafe> = Managed::new(TEXT.to_owned());
    let total: Shared<Counts, ThreadSafe> = Shared::default();
    tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for part in 0..PARTS {
            let (text, total) = (text.clone(), total.clone());
            tasks.spawn_blocking(move || add(&total, tally(&text, part)));
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    Ok(total.read()?.clone())
}

/// What each of the three comes to.
pub(crate) fn three_ways() -> Result<[Counts; 3], Box<dyn std::error::Error>> {
    Ok([one_thread()?, many_threads()?, many_tasks()?])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [one, threads, tasks] = three_ways()?;
    assert!(one == threads && one == tasks);
    let most = one.iter().max_by_key(|(_, count)| **count);
    println!("the same three times; most often: {most:?}");
    Ok(())
}
