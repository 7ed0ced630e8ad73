//! What this process may use of the machine.

use super::config::Runtime;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on open files to the hard one: each connection is a file. Answers the limit then in force.
pub(super) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let (Some(now), Some(most)) = (limit.current, limit.maximum) else { return u64::MAX };
    if now < most {
        let wanted = Rlimit { current: Some(most), maximum: Some(most) };
        match setrlimit(Resource::Nofile, wanted) {
            Ok(()) => return most,
            Err(error) => tracing::warn!(%error, limit = now, "the limit on open files stays as it is"),
        }
    }
    now
}

/// The bytes of the memory budget by these settings.
pub(super) fn memory_of(runtime: &Runtime) -> usize {
    runtime.memory.map_or_else(half_of_memory, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Half of the memory this process may use: of the machine, or of its control group if that has less.
fn half_of_memory() -> usize {
    let machine = read_kib("/proc/meminfo", "MemTotal:").unwrap_or(1 << 30);
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    usize::try_from(machine.min(group) / 2).unwrap_or(usize::MAX)
}

fn read_kib(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_some_memory() {
        assert!(super::half_of_memory() > 1 << 20);
        assert!(super::raise_open_files() >= 256);
    }
}
