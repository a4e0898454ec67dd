//! What this process itself uses, from `/proc`.

use std::{fs, time::Instant};

use parking_lot::Mutex;

/// Resident memory and CPU of this process.
#[derive(Debug)]
pub struct Usage {
    last: Mutex<(Instant, u64, f64)>,
}

/// A CPU share is measured over at least this long, in milliseconds: ticks are 10 ms.
const SAMPLE_MILLIS_MIN: u128 = 500;

impl Usage {
    /// Starts to measure.
    pub fn new() -> Self {
        Self { last: Mutex::new((Instant::now(), cpu_ticks(), 0.0)) }
    }

    /// Resident memory in bytes; 0 where `/proc` does not tell.
    pub fn memory_bytes() -> u64 {
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }

    /// User and system time since this process began.
    pub fn cpu_seconds() -> f64 {
        cpu_ticks() as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Its threads.
    pub fn threads() -> u32 {
        entries("/proc/self/task")
    }

    /// Its open descriptors, the one that counts them included.
    pub fn open_files() -> u32 {
        entries("/proc/self/fd")
    }

    /// Percent of one core since the sample before.
    pub fn cpu_percent(&self) -> f64 {
        let mut last = self.last.lock();
        let elapsed = last.0.elapsed();
        if elapsed.as_millis() >= SAMPLE_MILLIS_MIN {
            let ticks = cpu_ticks();
            let used = ticks.saturating_sub(last.1) as f64;
            let per_second = rustix::param::clock_ticks_per_second() as f64;
            *last = (Instant::now(), ticks, used / per_second / elapsed.as_secs_f64() * 100.0);
        }
        last.2
    }
}

fn entries(directory: &str) -> u32 {
    fs::read_dir(directory).map_or(0, |entries| entries.count() as u32)
}

/// User and system time in clock ticks (proc(5), fields 14 and 15).
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split(' ').collect();
    [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum()
}
