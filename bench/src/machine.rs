//! What else the machine did meanwhile: figures taken beside other work are worth less.

use std::{fs, thread};

/// The processors' time so far, in ticks: all of it, and what a hypervisor gave to others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// As they are now; zero where the system does not tell.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).take(8).flat_map(str::parse).collect();
        Self { all: ticks.iter().sum(), stolen: ticks.get(7).copied().unwrap_or_default() }
    }

    /// Percent of the processors' time that went to others since `earlier`.
    pub fn stolen_percent_since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        self.stolen.saturating_sub(earlier.stolen) as f64 * 100.0 / all as f64
    }
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
