//! A log-linear histogram of durations, under 2 % relative error.

use std::time::Duration;

const STEPS: u64 = 64;

#[derive(Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    longest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; (64 * STEPS) as usize], count: 0, longest: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, took: Duration) {
        let ns = took.as_nanos() as u64;
        self.buckets[index(ns)] += 1;
        self.count += 1;
        self.longest = self.longest.max(ns);
    }

    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// In microseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = ((self.count as f64) * share).ceil().max(1.0) as u64;
        let mut passed = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            passed += count;
            if passed >= wanted {
                return middle(n as u64).min(self.longest) as f64 / 1e3;
            }
        }
        self.longest()
    }

    /// In microseconds.
    pub fn longest(&self) -> f64 {
        self.longest as f64 / 1e3
    }
}

fn index(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let power = u64::from(63 - ns.leading_zeros());
    ((power - 5) * STEPS + ((ns >> (power - 6)) & (STEPS - 1))) as usize
}

fn middle(index: u64) -> u64 {
    if index < STEPS {
        return index;
    }
    let power = index / STEPS + 5;
    ((STEPS + index % STEPS) << (power - 6)) + (1 << (power - 6)) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_within_two_percent() {
        for ns in [1_u64, 63, 64, 65, 1_000, 123_456, 987_654_321, 1 << 40] {
            let near = middle(index(ns) as u64) as f64;
            assert!((near / ns as f64 - 1.0).abs() < 0.02, "{ns} became {near}");
        }
    }
}
