//! What the measurements share: arguments, CPU accounts, a latency histogram, medians, result lines.

pub mod allocations;
pub mod cpu;
pub mod histogram;

use std::collections::BTreeMap;
use std::time::Duration;

/// `--key value` arguments; a lone `--flag` means "1"; what comes before the first of them are plain words.
#[derive(Debug, Default)]
pub struct Args {
    /// The words without a key, in order.
    pub words: Vec<String>,
    keys: BTreeMap<String, String>,
}

impl Args {
    pub fn parse() -> Self {
        let mut args = Self::default();
        let mut given = std::env::args().skip(1).peekable();
        while let Some(arg) = given.next() {
            match arg.strip_prefix("--") {
                None => args.words.push(arg),
                Some(key) => {
                    let value = given.next_if(|next| !next.starts_with("--")).unwrap_or_else(|| "1".to_owned());
                    args.keys.insert(key.to_owned(), value);
                }
            }
        }
        args
    }

    pub fn text(&self, key: &str, default: &str) -> String {
        self.keys.get(key).map_or(default, String::as_str).to_owned()
    }

    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    pub fn number(&self, key: &str, default: u64) -> u64 {
        self.keys.get(key).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("--{key} {n}: not a number")))
    }

    pub fn seconds(&self, key: &str, default: f64) -> Duration {
        let n =
            self.keys.get(key).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("--{key} {n}: not seconds")));
        Duration::from_secs_f64(n)
    }
}

/// The middle value; of an even number of them the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// `name key=value ...`: what one run prints, easy to read for a person and for a script.
pub struct Line(String);

impl Line {
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: f64) -> Self {
        let decimals = match value.abs() {
            v if v >= 1_000.0 => 0,
            v if v >= 10.0 => 2,
            _ => 4,
        };
        self.0 += &format!(" {key}={value:.decimals$}");
        self
    }

    pub fn print(self) {
        println!("{}", self.0);
    }
}

/// Lets this process open as many files as the machine allows it.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        eprintln!("the limit of open files stays: {error}");
    }
}

/// How busy the machine is, from the kernel: the load average over one minute.
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
