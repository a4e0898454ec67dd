//! What else the machine did meanwhile: figures taken beside other work are worth less.

use std::{fs, thread, time::Instant};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// The processors' time so far, in ticks of 10 ms: all of it, what was worked, and what a
/// hypervisor gave to others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    all: u64,
    worked: u64,
    stolen: u64,
}

impl Ticks {
    /// As they are now; zero where the system does not tell.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let of = |places: &[usize]| places.iter().filter_map(|at| ticks.get(*at)).sum();
        Self { all: ticks.iter().sum(), worked: of(&[0, 1, 2, 5, 6]), stolen: of(&[7]) }
    }

    /// Percent of the processors' time that went to others since `earlier`.
    pub fn stolen_percent_since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        self.stolen.saturating_sub(earlier.stolen) as f64 * 100.0 / all as f64
    }
}

/// What the machine did beside us, from one moment to another.
pub struct Surroundings {
    begun: Instant,
    machine: Ticks,
    ours: u64,
}

impl Surroundings {
    /// From now on.
    pub fn watch() -> Self {
        Self { begun: Instant::now(), machine: Ticks::now(), ours: own_ticks() }
    }

    /// Until now, in words. Everything that this program started must have ended.
    pub fn told(&self) -> String {
        let now = Ticks::now();
        let worked = now.worked.saturating_sub(self.machine.worked);
        let others = worked.saturating_sub(own_ticks().saturating_sub(self.ours));
        // A tick is a hundredth of a second, so ticks a second are percent of one processor.
        let others = others as f64 / self.begun.elapsed().as_secs_f64();
        let stolen = now.stolen_percent_since(self.machine);
        let careful = if others > OTHERS_PERCENT_MAX { ": not a quiet machine" } else { "" };
        format!(
            "meanwhile others took {others:.0} % of one processor and {stolen:.1} % of all was \
             stolen{careful}"
        )
    }
}

/// More than this, in percent of one processor, is said with a warning.
const OTHERS_PERCENT_MAX: f64 = 20.0;

/// Processor time of this program and of everything below it that has ended.
fn own_ticks() -> u64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    // Counted from 1 in proc(5), and the first after the name is number 3: utime, stime, cutime
    // and cstime are 14 to 17.
    fields.split_whitespace().skip(14 - 3).take(4).flat_map(str::parse::<u64>).sum()
}

/// Processes that share one processor while this lives; afterwards they have again what this
/// program had.
pub struct Pinned {
    threads: Vec<Pid>,
    before: CpuSet,
}

impl Pinned {
    /// This program and these others, all their threads. What ends meanwhile is passed over.
    pub fn to_one_processor(pids: impl Iterator<Item = u32>) -> Result<Self> {
        let before = sched_getaffinity(None).context("no processors are told")?;
        let first = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu));
        let mut one = CpuSet::new();
        one.set(first.context("no processor may be used")?);
        let threads = pids.chain([std::process::id()]).flat_map(threads_of).collect();
        let pinned = Self { threads, before };
        pinned.all_to(&one);
        Ok(pinned)
    }

    fn all_to(&self, set: &CpuSet) {
        for thread in &self.threads {
            let _ = sched_setaffinity(Some(*thread), set);
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.all_to(&self.before);
    }
}

/// The threads of a process; none when it is gone.
fn threads_of(pid: u32) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ids = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    ids.filter_map(Pid::from_raw).collect()
}

/// One line on what figures of this machine stand on.
pub fn described() -> String {
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} processors ({model}), Linux {}", kernel.trim())
}

/// Programs that wanted a processor during the last minute, on average, before anything began.
pub fn busy_before() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_work_is_not_taken_for_that_of_others() {
        let (watch, before) = (Surroundings::watch(), own_ticks());
        let mut sum = 0_u64;
        while own_ticks() < before + 5 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(Ticks::now().worked > watch.machine.worked);
        assert!(watch.told().contains("others took"));
    }
}
