//! The control group of one instance: its limits, what they did, and its end.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{Controller, END_PATIENCE, Groups, Version, remove};
use crate::limits::Need;

/// The period in which a share of CPU time is given out. Source: kernel documentation,
/// `cgroup-v2.rst`, `cpu.max`; the default of both versions.
const PERIOD_MICROS: u64 = 100_000;

/// Makes a group run only where no other of its parent wants to. Source: kernel documentation,
/// `cgroup-v2.rst`, `cpu.idle`; version 1 has the same file.
const IDLE: &str = "cpu.idle";

/// What limits did to a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Processes that the kernel killed for want of memory within the limit.
    pub(crate) oom_kills: u64,
    /// Times that no further process or thread was allowed.
    pub(crate) refused_forks: u64,
}

/// The control group of one instance. Dropping it leaves it; [`Cage::end`] removes it.
#[derive(Debug)]
pub(crate) struct Cage {
    directories: BTreeMap<Controller, (Version, PathBuf)>,
}

impl Cage {
    /// Makes the group of `key`, below that of `group` where there is one, with these limits in
    /// force. `None` where no limit needs one.
    pub(crate) fn new(
        groups: &Groups,
        group: Option<(&str, &[Need])>,
        key: &str,
        needs: &[Need],
    ) -> io::Result<Option<Self>> {
        let shared = group.map(|(_, needs)| needs).unwrap_or_default();
        let mut controllers: Vec<Controller> =
            needs.iter().chain(shared).map(Need::controller).collect();
        controllers.sort_unstable();
        controllers.dedup();
        if controllers.is_empty() {
            return Ok(None);
        }
        let name = group.map(|(name, _)| name);
        let directories = groups.make(name, key, &controllers)?;
        for need in shared {
            if let Some((version, directory)) = directories.get(&need.controller())
                && let Some(parent) = directory.parent()
            {
                write(*version, parent, need)?;
            }
        }
        let cage = Self { directories };
        cage.set(needs)?;
        Ok(Some(cage))
    }

    /// Where a process is written to become part of it.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            self.directories.values().map(|(_, directory)| directory.clone()).collect();
        all.dedup();
        all
    }

    /// True where `controller` is in force here.
    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.directories.contains_key(&controller)
    }

    /// The layers it adds, for status.
    pub(crate) fn layers(&self) -> Vec<String> {
        let mut layers: Vec<String> =
            self.directories.values().map(|(version, _)| format!("cgroup-{version}")).collect();
        layers.dedup();
        layers
    }

    /// Puts limits in force; also while processes run in it.
    pub(crate) fn set(&self, needs: &[Need]) -> io::Result<()> {
        for need in needs {
            if let Some((version, directory)) = self.directories.get(&need.controller()) {
                write(*version, directory, need)?;
            }
        }
        Ok(())
    }

    /// Bytes of its memory that the kernel could not take back: without the pages of files that
    /// it can read again. `None` where they are not counted.
    pub(crate) fn memory(&self) -> Option<u64> {
        let (version, directory) = self.directories.get(&Controller::Memory)?;
        held(*version, &fs::read_to_string(directory.join("memory.stat")).ok()?)
    }

    /// What limits did so far.
    pub(crate) fn counts(&self) -> Counts {
        let number = |controller, v1: (&str, &str), v2: (&str, &str)| {
            let (version, directory) = self.directories.get(&controller)?;
            let (file, key) = match version {
                Version::V1 => v1,
                Version::V2 => v2,
            };
            keyed(&fs::read_to_string(directory.join(file)).ok()?, key)
        };
        let oom = number(
            Controller::Memory,
            ("memory.oom_control", "oom_kill"),
            ("memory.events", "oom_kill"),
        );
        let forks = number(Controller::Pids, ("pids.events", "max"), ("pids.events", "max"));
        Counts { oom_kills: oom.unwrap_or(0), refused_forks: forks.unwrap_or(0) }
    }

    /// Kills whatever is left in it and removes it.
    pub(crate) fn end(&self) -> io::Result<()> {
        // All of them, also after one that could not be removed.
        let ended = self.directories().into_iter().map(|it| remove(&it, END_PATIENCE));
        ended.fold(Ok(()), Result::and)
    }
}

/// What of `memory.stat` cannot be reclaimed. Source: kernel documentation, `cgroup-v2.rst` and
/// `cgroup-v1/memory.rst`, *memory.stat*.
fn held(version: Version, stat: &str) -> Option<u64> {
    let (least, more): (&str, &[&str]) = match version {
        Version::V1 => ("total_rss", &["total_shmem"]),
        Version::V2 => ("anon", &["shmem", "slab_unreclaimable", "kernel_stack", "pagetables"]),
    };
    // Kernels differ in what else they tell.
    let more = more.iter().filter_map(|key| keyed(stat, key)).sum::<u64>();
    Some(keyed(stat, least)? + more)
}

/// The number after `key` in a file of `key number` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn write(version: Version, directory: &Path, need: &Need) -> io::Result<()> {
    let put = |file: &str, text: &str| {
        fs::write(directory.join(file), text).map_err(|error| {
            let path = directory.join(file);
            io::Error::new(error.kind(), format!("write {text} to {}: {error}", path.display()))
        })
    };
    let put_weight = |percent| match version {
        Version::V1 => put("cpu.shares", &shares(percent).to_string()),
        Version::V2 => put("cpu.weight", &weight(percent).to_string()),
    };
    match (version, need) {
        (Version::V2, Need::Memory(bytes)) => {
            put("memory.max", &bytes.to_string())?;
            put("memory.oom.group", "1")?;
            // A machine without swap has no such file.
            let _ = put("memory.swap.max", "0");
            Ok(())
        }
        (Version::V1, Need::Memory(bytes)) => memory_v1(directory, *bytes, put),
        (_, Need::Pids(count)) => put("pids.max", &count.to_string()),
        (Version::V2, Need::Cpu(percent)) => {
            put("cpu.max", &format!("{} {PERIOD_MICROS}", quota(*percent)))
        }
        (Version::V1, Need::Cpu(percent)) => {
            put("cpu.cfs_period_us", &PERIOD_MICROS.to_string())?;
            put("cpu.cfs_quota_us", &quota(*percent).to_string())
        }
        (_, Need::CpuShare(percent)) => {
            // It may have been idle, and an idle group takes no weight.
            let _ = put(IDLE, "0");
            put_weight(*percent)
        }
        (_, Need::CpuLeavings) => {
            // The least weight would do, but whoever has it keeps others waiting until its turn is
            // over. Before Linux 5.15 there is nothing less.
            put(IDLE, "1").or_else(|_| put_weight(0))
        }
        (Version::V2, Need::Io { device: (major, minor), bytes_per_second: most }) => {
            put("io.max", &format!("{major}:{minor} rbps={most} wbps={most}"))
        }
        (Version::V1, Need::Io { device: (major, minor), bytes_per_second: most }) => {
            let rule = format!("{major}:{minor} {most}");
            put("blkio.throttle.read_bps_device", &rule)?;
            put("blkio.throttle.write_bps_device", &rule)
        }
    }
}

/// Memory alone and memory with swap must never be in the wrong order: raised from the outer
/// limit, lowered from the inner one.
fn memory_v1(
    directory: &Path,
    bytes: u64,
    put: impl Fn(&str, &str) -> io::Result<()>,
) -> io::Result<()> {
    const ALONE: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    let bytes = bytes.to_string();
    // A kernel without swap accounting has no such file.
    let accounted = directory.join(WITH_SWAP).exists();
    if accounted && put(ALONE, &bytes).is_err() {
        put(WITH_SWAP, &bytes)?;
    }
    put(ALONE, &bytes)?;
    if accounted {
        put(WITH_SWAP, &bytes)?;
    }
    Ok(())
}

/// A whole core is what a group has that nobody gave a weight. Source: kernel documentation,
/// `cgroup-v2.rst`, `cpu.weight`: 1 to 10,000, by default 100.
fn weight(percent: u32) -> u32 {
    percent.clamp(1, 10_000)
}

/// The same in version 1: from 2 up, by default 1,024. Source: `sched-design-CFS.rst`.
fn shares(percent: u32) -> u64 {
    (u64::from(percent) * 1_024 / 100).clamp(2, 1 << 18)
}

/// Microseconds of each period. The kernel refuses less than a millisecond.
fn quota(percent: u32) -> u64 {
    (PERIOD_MICROS * u64::from(percent) / 100).max(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), Some(3));
        assert_eq!(keyed(text, "oom"), None);
        assert_eq!(keyed("", "max"), None);
    }

    #[test]
    fn memory_that_the_kernel_takes_back_does_not_count() {
        let v1 = "cache 900\nrss 7\ntotal_cache 900\ntotal_rss 40\ntotal_shmem 2\n";
        assert_eq!(held(Version::V1, v1), Some(42));
        let v2 = "anon 30\nfile 900\nkernel_stack 1\nshmem 2\nslab_reclaimable 900\n";
        assert_eq!(held(Version::V2, v2), Some(33));
        assert_eq!(held(Version::V2, "file 900\n"), None);
    }

    #[test]
    fn half_a_core_is_half_of_every_period_and_never_nothing() {
        assert_eq!(quota(50), PERIOD_MICROS / 2);
        assert_eq!(quota(200), PERIOD_MICROS * 2);
        assert!(quota(0) >= 1_000);
    }

    #[test]
    fn a_whole_core_weighs_what_a_group_weighs_that_nobody_weighed() {
        assert_eq!((weight(100), shares(100)), (100, 1_024));
        assert_eq!((weight(50), shares(50)), (50, 512));
        assert_eq!((weight(u32::MAX), shares(0)), (10_000, 2));
    }
}
