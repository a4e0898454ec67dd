//! What a plugin's processes use, read from `/proc` without a helper process.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{time::clock_getcpuclockid, unistd::Pid};

/// Processes of one plugin that are looked at; a fork bomb must not cost the node its time.
const PROCESSES_MAX: usize = 256;

/// Threads of one process whose waiting is looked at.
const THREADS_MAX: usize = 64;

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sample {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_percent: f64,
    /// What it would have used had it never waited for a core, as percent of one; 0 in the first.
    pub(crate) wants_percent: f64,
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
    /// How long its processes have waited for a core.
    waited_seconds: f64,
    /// What each process had used, where all could be told.
    clocks: Option<Clocks>,
}

impl Sampler {
    /// For the jail whose first process is `init`, which itself is not counted.
    pub(crate) fn new(init: u32) -> Self {
        Self { init, last: None, round: 0 }
    }

    /// Begins a round at `now`; true where nothing happened since the one before.
    ///
    /// Processes that used no CPU have opened nothing, written nothing and started nobody, so only
    /// their clocks are looked at, in all but every thirtieth round: a thousand idle plugins must
    /// not keep a core busy with being looked at. Who cannot be seen whole did something.
    pub(crate) fn still(&mut self, now: Instant) -> bool {
        self.round += 1;
        let last = self.last.as_mut().filter(|_| !self.round.is_multiple_of(ROUNDS_WHOLE));
        let Some(last) = last else { return false };
        let still = last.clocks.as_ref().is_some_and(Clocks::stand);
        if still {
            last.at = now;
        }
        still
    }

    /// What is used at `now`. CPU is an average since the sample before, 0 in the first. Blocks for
    /// as long as reading a dozen files of each process takes.
    pub(crate) fn sample(&mut self, now: Instant) -> Sample {
        let mut sample = Sample::default();
        let (mut cpu_seconds, mut waited_seconds) = (0.0, 0.0);
        // The clocks first: whatever happens from here on is seen in the next round.
        let (seen, all) = look(self.init);
        for (pid, used) in seen.iter().copied() {
            let Some(stat) = read_stat(pid) else { continue };
            cpu_seconds += used.as_secs_f64();
            waited_seconds += waited(pid).as_secs_f64();
            sample.threads += stat.threads;
            sample.memory_bytes += resident(pid).unwrap_or(0);
            let open = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            sample.open_files += open as u32;
        }
        // A process that ended took its time with it: then this is the less.
        let before = self.last.as_ref().map_or(0.0, |last| last.cpu_seconds);
        sample.cpu_used = (cpu_seconds - before).max(0.0);
        if let Some(last) = &self.last {
            let seconds = now.saturating_duration_since(last.at).as_secs_f64();
            if seconds > 0.0 {
                sample.cpu_percent = sample.cpu_used / seconds * 100.0;
                let waited = (waited_seconds - last.waited_seconds).max(0.0);
                sample.wants_percent = (sample.cpu_used + waited) / seconds * 100.0;
            }
        }
        let clocks = Clocks::whole(seen, all);
        self.last = Some(Last { at: now, cpu_seconds, waited_seconds, clocks });
        sample
    }
}

/// The processor time of every process of one jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clocks(pub(crate) Vec<(u32, Duration)>);

impl Clocks {
    /// Of all below `init`. `None` where there is nobody, or where somebody may have been
    /// overlooked: then nothing follows from the others' having done nothing.
    pub(crate) fn of(init: u32) -> Option<Self> {
        let (seen, all) = look(init);
        Self::whole(seen, all)
    }

    fn whole(seen: Vec<(u32, Duration)>, all: bool) -> Option<Self> {
        (all && !seen.is_empty()).then_some(Self(seen))
    }

    /// Whether they show what they showed: nobody starts a process, or is stopped, without running
    /// for it.
    pub(crate) fn stand(&self) -> bool {
        self.0.iter().all(|(pid, used)| processor(*pid).as_ref() == Some(used))
    }

    /// Whose they are.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(pid, _)| *pid)
    }
}

/// Who is below `init`, and what each has used; true where nobody was overlooked.
fn look(init: u32) -> (Vec<(u32, Duration)>, bool) {
    let below = tree(init);
    let used = |pid: &u32| Some((*pid, processor(*pid)?));
    let seen: Vec<_> = below.pids.iter().filter_map(used).collect();
    // Whoever was started before the clock of whoever started it was read is there by now.
    let all = below.whole && seen.len() == below.pids.len() && tree(init) == below;
    (seen, all)
}

/// The processor time that `pid` used, all its threads together; `None` where it has ended.
fn processor(pid: u32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).ok()?;
    Some(Duration::from(clock.now().ok()?))
}

/// How long the threads of `pid` have waited for a core, as far as the kernel counts it; at most
/// [`THREADS_MAX`] are looked at. Source: kernel documentation, `sched-stats.rst`,
/// `/proc/<pid>/schedstat`.
fn waited(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let one = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    };
    threads.flatten().take(THREADS_MAX).filter_map(one).sum()
}

/// Every process below `pid`, at most [`PROCESSES_MAX`].
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    tree(pid).pids
}

/// Processes below one.
#[derive(Debug, PartialEq, Eq)]
struct Tree {
    pids: Vec<u32>,
    /// None was passed over for there being too many.
    whole: bool,
}

fn tree(pid: u32) -> Tree {
    let mut tree = Tree { pids: Vec::new(), whole: true };
    tree.add_children(pid);
    let mut at = 0;
    while at < tree.pids.len() && tree.pids.len() < PROCESSES_MAX {
        tree.add_children(tree.pids[at]);
        at += 1;
    }
    tree.whole &= at == tree.pids.len();
    tree.pids.truncate(PROCESSES_MAX);
    tree
}

impl Tree {
    fn add_children(&mut self, pid: u32) {
        // Children hang on the thread that forked them.
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return };
        let mut threads = threads.flatten();
        for thread in threads.by_ref().take(PROCESSES_MAX) {
            let Ok(list) = fs::read_to_string(thread.path().join("children")) else { continue };
            self.pids.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        self.whole &= threads.next().is_none();
    }
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
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(Stat { parent: field(4)?, threads: field(20)? })
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
    fn whoever_may_hide_somebody_is_looked_at_whole_and_a_sleeper_is_not() {
        for (sleepers, still) in [(1, true), (PROCESSES_MAX + 4, false)] {
            let script = format!("for n in $(seq {sleepers}); do sleep 60 & done; wait");
            let mut shell = std::process::Command::new("sh")
                .args(["-c", &script])
                .spawn()
                .expect("a shell is part of every system");
            let mut seen = (0, false);
            for _ in 0..500 {
                std::thread::sleep(Duration::from_millis(10));
                let mut sampler = Sampler::new(shell.id());
                let first = sampler.sample(Instant::now());
                let there = first.threads;
                std::thread::sleep(Duration::from_millis(5));
                seen = (there as usize, sampler.still(Instant::now()));
                if seen.0 == sleepers.min(PROCESSES_MAX) && (seen.1 || !still) {
                    break;
                }
            }
            let all = descendants(shell.id());
            shell.kill().expect("killed");
            shell.wait().expect("ended");
            for pid in all {
                let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            assert_eq!(seen, (sleepers.min(PROCESSES_MAX), still));
        }
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
