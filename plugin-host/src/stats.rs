//! What a plugin's processes use, read from `/proc` without a helper process.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{time::clock_getcpuclockid, unistd::Pid};

/// Processes of one plugin that are looked at; a fork bomb must not cost the node its time.
const PROCESSES_MAX: usize = 256;

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sample {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_percent: f64,
    /// Seconds of CPU time since the sample before; in the first, since the processes began.
    pub(crate) cpu_used: f64,
    pub(crate) threads: u32,
    pub(crate) open_files: u32,
}

/// Every so many-th sample is a whole one, whatever happened since the one before.
const ROUNDS_WHOLE: u32 = 30;

/// Samples the processes of one jail.
pub(crate) struct Sampler {
    init: u32,
    last: Option<Last>,
    round: u32,
}

/// The last whole sample.
struct Last {
    at: Instant,
    cpu_seconds: f64,
    /// Who was there, and what each had used.
    seen: Vec<(u32, Duration)>,
}

impl Sampler {
    /// For the jail whose first process is `init`, which itself is not counted.
    pub(crate) fn new(init: u32) -> Self {
        Self { init, last: None, round: 0 }
    }

    /// What is used at `now`; `None` where nothing happened since the sample before. CPU is an
    /// average since then, 0 in the first.
    ///
    /// Processes that used no CPU have opened nothing, written nothing and started nobody, so only
    /// their clocks are looked at, in all but every thirtieth round: a thousand idle plugins must
    /// not keep a core busy with being looked at.
    pub(crate) fn sample(&mut self, now: Instant) -> Option<Sample> {
        self.round += 1;
        if let Some(last) = self.last.as_mut().filter(|_| !self.round.is_multiple_of(ROUNDS_WHOLE))
            && last.seen.iter().all(|(pid, before)| processor(*pid).as_ref() == Some(before))
            && !last.seen.is_empty()
        {
            last.at = now;
            return None;
        }
        let mut sample = Sample::default();
        let mut cpu_seconds = 0.0;
        let mut seen = Vec::new();
        for pid in descendants(self.init) {
            // Its clock first: whatever it does from here on is seen in the next round.
            let (Some(used), Some(stat)) = (processor(pid), read_stat(pid)) else { continue };
            cpu_seconds += used.as_secs_f64();
            sample.threads += stat.threads;
            sample.memory_bytes += resident(pid).unwrap_or(0);
            let open = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            sample.open_files += open as u32;
            seen.push((pid, used));
        }
        // A process that ended took its time with it: then this is the less.
        let before = self.last.as_ref().map_or(0.0, |last| last.cpu_seconds);
        sample.cpu_used = (cpu_seconds - before).max(0.0);
        if let Some(last) = &self.last {
            let seconds = now.saturating_duration_since(last.at).as_secs_f64();
            if seconds > 0.0 {
                sample.cpu_percent = sample.cpu_used / seconds * 100.0;
            }
        }
        self.last = Some(Last { at: now, cpu_seconds, seen });
        Some(sample)
    }
}

/// The processor time that `pid` used, all its threads together; `None` where it has ended.
pub(crate) fn processor(pid: u32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).ok()?;
    Some(Duration::from(clock.now().ok()?))
}

/// Every process below `pid`, at most [`PROCESSES_MAX`].
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut at = 0;
    while at < found.len() && found.len() < PROCESSES_MAX {
        let further = children(found[at]);
        found.extend(further);
        at += 1;
    }
    found.truncate(PROCESSES_MAX);
    found
}

/// True where `pid` is `ancestor` or one of its descendants.
pub(crate) fn is_within(pid: u32, ancestor: u32) -> bool {
    let mut pid = pid;
    // A chain of parents is as long as a tree is deep.
    for _ in 0..PROCESSES_MAX {
        if pid == ancestor {
            return true;
        }
        match read_stat(pid) {
            Some(stat) if stat.parent > 1 => pid = stat.parent,
            _ => return false,
        }
    }
    false
}

/// Whether `pid` was stopped by a signal or a debugger; `None` where it has ended.
pub(crate) fn is_stopped(pid: u32) -> Option<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.trim_start().starts_with(['T', 't']))
}

fn children(pid: u32) -> Vec<u32> {
    // Children hang on the thread that forked them.
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads
        .flatten()
        .take(PROCESSES_MAX)
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    threads: u32,
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Source: proc(5), `/proc/pid/stat`. The name, in parentheses, may contain anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Counted from 1 there, and the first here is number 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Stat { parent: field(4)? as u32, threads: field(20)? as u32 })
}

fn resident(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let line = "12 (a) b) (c) S 7 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1 1 1";
        let stat = parse_stat(line).expect("well formed");
        assert_eq!((stat.parent, stat.threads), (7, 9));
    }

    #[test]
    fn ancestry_is_followed_to_its_end() {
        let this = std::process::id();
        assert!(is_within(this, this));
        let parent = read_stat(this).expect("this process").parent;
        assert!(is_within(this, parent));
        assert!(!is_within(parent, this));
    }
}
