//! What the plugin may use, as its node told it at its start.

use std::{env, num::NonZeroUsize, thread};

/// What this process may use; `None` where nobody set a limit, or none by a node.
///
/// As at its start: an operator who changes a limit while it runs changes what holds at once, and
/// what is told at the next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of memory, all its processes together.
    pub memory_bytes: Option<u64>,
    /// Percent of one core.
    pub cpu_percent: Option<u64>,
    /// Cores that it may run on.
    pub cpu_cores: Option<u64>,
    /// Bytes on disk in the directories that are its own.
    pub disk_bytes: Option<u64>,
}

impl Limits {
    /// Threads that can compute at once: its cores, or its share of time in whole cores where that
    /// is less; at least one.
    pub fn workers(&self) -> usize {
        let share = self.cpu_percent.map(|percent| percent.div_ceil(100));
        let allowed = [self.cpu_cores, share].into_iter().flatten().min();
        let there = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        allowed.map_or(there, |allowed| there.min(usize::try_from(allowed).unwrap_or(there))).max(1)
    }

    fn of(read: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name| read(name).and_then(|text| text.parse().ok());
        Self {
            memory_bytes: number("BH_LIMIT_MEMORY_BYTES"),
            cpu_percent: number("BH_LIMIT_CPU_PERCENT"),
            cpu_cores: number("BH_LIMIT_CPU_CORES"),
            disk_bytes: number("BH_LIMIT_DISK_BYTES"),
        }
    }
}

/// What this process may use.
pub fn limits() -> Limits {
    Limits::of(|name| env::var(name).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_environment_and_workers_fit_into_them() {
        let told = |name: &str| match name {
            "BH_LIMIT_MEMORY_BYTES" => Some("1048576".to_owned()),
            "BH_LIMIT_CPU_PERCENT" => Some("50".to_owned()),
            "BH_LIMIT_CPU_CORES" => Some("many".to_owned()),
            _ => None,
        };
        let limits = Limits::of(told);
        assert_eq!((limits.memory_bytes, limits.cpu_cores), (Some(1 << 20), None));
        assert_eq!((limits.workers(), limits.disk_bytes), (1, None));
        let there = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        assert_eq!(Limits::default().workers(), there);
    }
}
