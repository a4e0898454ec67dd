//! What processes use, as the kernel counts it, read from `/proc`.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use testnet::residue;

/// Nanoseconds of a second.
const NANOS: f64 = 1e9;

/// A peer and everything below it, told apart.
#[derive(Debug, Clone)]
pub struct Family {
    /// The peer.
    pub host: u32,
    /// What the framework runs beside it: launchers and the first processes of jails.
    pub framework: Vec<u32>,
    /// The plugins' own processes.
    pub plugins: Vec<u32>,
}

impl Family {
    /// As it is now. `programs` are the plugins' processes as the peer tells them; what descends
    /// from one of them is the plugin's too.
    pub fn of(host: u32, programs: &BTreeSet<u32>) -> Self {
        let mut family = Self { host, framework: Vec::new(), plugins: Vec::new() };
        let below: BTreeSet<u32> =
            programs.iter().flat_map(|pid| residue::descendants(*pid)).map(|it| it.pid).collect();
        for seen in residue::descendants(host) {
            if programs.contains(&seen.pid) || below.contains(&seen.pid) {
                family.plugins.push(seen.pid);
            } else {
                family.framework.push(seen.pid);
            }
        }
        family
    }

    /// Processor time of all of it so far, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let below = self.framework.iter().chain(&self.plugins);
        cpu_seconds(self.host) + below.map(|pid| cpu_seconds(*pid)).sum::<f64>()
    }
}

/// Processor time of one process so far, in seconds; 0 when it is gone.
///
/// From the scheduler's own account of each thread, in nanoseconds: what `stat` tells is rounded
/// to hundredths of a second, which is more than an idle process uses in a minute.
pub fn cpu_seconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    nanos.sum::<u64>() as f64 / NANOS
}

/// Memory of one process in KiB, pages that several share divided among them; 0 when it is gone.
pub fn pss_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    field(&text, "Pss:").unwrap_or_default() as f64
}

/// Open descriptors of one process.
pub fn descriptors(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?.count())
}

/// Threads of one process.
pub fn threads(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    field(&text, "Threads:").with_context(|| format!("{path} tells no threads"))
}

/// The number after `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Drops what is cached of files: everything where this process may, else what is cached of
/// `files` alone. Says which.
pub fn drop_caches(files: &[&Path]) -> Result<&'static str> {
    // What is not yet written cannot be dropped.
    rustix::fs::sync();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Ok("all cached pages, directories and inodes dropped");
    }
    for path in files {
        let file = fs::File::open(path).with_context(|| format!("no {}", path.display()))?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .with_context(|| format!("cannot drop {} from the cache", path.display()))?;
    }
    Ok("the cached pages of its files dropped (only root may drop all)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let this = std::process::id();
        assert!(pss_kib(this) > 100.0);
        assert!(descriptors(this).expect("open files") >= 3);
        assert!(threads(this).expect("threads") >= 1);
        let before = cpu_seconds(this);
        let mut sum = 0_u64;
        while cpu_seconds(this) <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_seconds(0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Pss_Dirty:  1 kB\nPss:  42 kB\n";
        assert_eq!(field(text, "Pss:"), Some(42));
        assert_eq!(field(text, "Rss:"), None);
    }
}
