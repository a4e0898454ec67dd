//! What is left behind: processes, sockets, held locks.
//!
//! A process belongs to a directory when anything the kernel tells of it names that directory:
//! its command line, environment, executable, working directory, or a mount in its own namespace.
//! Nothing has to cooperate, so a plugin cannot hide by changing its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

/// A process as `/proc` showed it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its process id.
    pub pid: u32,
    /// When it was started, in clock ticks since boot: together with the pid it is unique.
    pub started: u64,
    /// Its command line, words separated by spaces.
    pub command: String,
}

impl Seen {
    /// The process `pid`, if there is one that has not ended (a zombie has).
    pub fn look(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid).filter(|stat| stat.state != 'Z' && stat.state != 'X')?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
        Some(Self { pid, started: stat.started, command })
    }

    /// Whether this very process, not another with its number, still runs.
    pub fn still_runs(&self) -> bool {
        Self::look(self.pid).is_some_and(|now| now.started == self.started)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.command)
    }
}

/// The parts of `/proc/<pid>/stat` that are of use here.
struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything; the fields follow the last one.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// All descendants of `pid` that run now.
pub fn descendants(pid: u32) -> Vec<Seen> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for child in pids() {
        if let Some(stat) = Stat::read(child) {
            children.entry(stat.parent).or_default().push(child);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        let of_parent = children.remove(&parent).unwrap_or_default();
        found.extend(of_parent.iter().filter_map(|child| Seen::look(*child)));
        next.extend(of_parent);
    }
    found.sort();
    found
}

/// All processes that have to do with `dir`, this one excepted.
pub fn processes(dir: &Path) -> Vec<Seen> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let this = std::process::id();
    let mut found: Vec<Seen> =
        pids().filter(|pid| *pid != this && names(*pid, needle)).filter_map(Seen::look).collect();
    found.sort();
    found
}

/// Whether anything the kernel tells of `pid` contains `needle`.
fn names(pid: u32, needle: &[u8]) -> bool {
    let contains = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).is_ok_and(|b| contains(&b));
    let link = |name: &str| {
        let target = fs::read_link(format!("/proc/{pid}/{name}"));
        target.is_ok_and(|target| contains(target.as_os_str().as_encoded_bytes()))
    };
    file("cmdline") || file("environ") || link("exe") || link("cwd") || file("mountinfo")
}

/// Ends all processes that have to do with `dir`: the last resort when a world is torn down.
pub fn sweep(dir: &Path) -> Vec<Seen> {
    let found = processes(dir);
    for process in &found {
        if let Some(pid) = Pid::from_raw(process.pid.cast_signed())
            && process.still_runs()
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    found
}

/// What is left of something that should be gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Residue {
    /// Processes that still run.
    pub processes: Vec<Seen>,
    /// Sockets in the file system.
    pub sockets: Vec<PathBuf>,
    /// Files on which a lock is held.
    pub locks: Vec<PathBuf>,
}

impl Residue {
    /// Everything below `dir` that should not be there once its owner has ended.
    pub fn of(dir: &Path) -> Self {
        let held = locked_inodes();
        let mut residue = Self { processes: processes(dir), ..Self::default() };
        for path in files(dir) {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.file_type().is_socket() {
                residue.sockets.push(path);
            } else if held.contains(&meta.ino()) {
                residue.locks.push(path);
            }
        }
        residue
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Residue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for process in &self.processes {
            writeln!(f, "process left behind: {process}")?;
        }
        for socket in &self.sockets {
            writeln!(f, "socket left behind: {}", socket.display())?;
        }
        for lock in &self.locks {
            writeln!(f, "lock still held: {}", lock.display())?;
        }
        Ok(())
    }
}

/// The control groups, one in each hierarchy that it uses, of the node that runs process `of`,
/// which must be one of its plugins with a control group.
pub fn groups_of_node(of: u32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{of}/cgroup")).unwrap_or_default();
    let mut parts = text.lines().flat_map(|line| line.split('/'));
    let Some(node) = parts.find(|part| part.starts_with("blackhole-")) else { return Vec::new() };
    let mut found = Vec::new();
    let mut next = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = next.pop() {
        if dir.file_name().is_some_and(|name| name == node) {
            found.push(dir);
        } else {
            next.extend(directories(&dir));
        }
    }
    found.sort();
    found
}

/// Control groups of instances of the plugin `name`, in every hierarchy, of the node that runs
/// process `of`, as [`groups_of_node`] has it.
pub fn control_groups(of: u32, name: &str) -> Vec<PathBuf> {
    let own = |dir: &PathBuf| {
        let found = dir.file_name().and_then(|found| found.to_str());
        let end = found.and_then(|found| found.strip_prefix(name));
        end.is_some_and(|end| end.is_empty() || end.starts_with('.'))
    };
    groups_of_node(of).iter().flat_map(|node| directories(node)).filter(own).collect()
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let kept = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    kept.map(|entry| entry.path()).collect()
}

/// Every file below `dir`; links are not followed.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => next.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}

/// The inodes on which any process holds a lock. The device is left out: `/proc/locks` shows it
/// in a form that differs between file systems, and a clash only errs on the loud side.
fn locked_inodes() -> BTreeSet<u64> {
    let text = fs::read_to_string("/proc/locks").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.matches(':').count() == 2))
        .filter_map(|word| word.rsplit_once(':')?.1.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, process::Command};

    use super::*;

    #[test]
    fn processes_sockets_and_locks_are_found_and_their_absence_too() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Residue::of(dir.path()).is_empty());

        let socket = UnixListener::bind(dir.path().join("s.sock")).expect("bound");
        let file = fs::File::create(dir.path().join("LOCK")).expect("created");
        file.lock().expect("locked");
        let mut child =
            Command::new("sleep").arg("600").current_dir(dir.path()).spawn().expect("starts");
        let residue = Residue::of(dir.path());
        assert_eq!(residue.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [child.id()]);
        assert_eq!(residue.sockets.len(), 1, "{residue}");
        assert_eq!(residue.locks.len(), 1, "{residue}");
        assert!(descendants(std::process::id()).contains(&residue.processes[0]));

        assert_eq!(sweep(dir.path()).len(), 1);
        child.wait().expect("reaped");
        drop((socket, file));
        fs::remove_file(dir.path().join("s.sock")).expect("removed");
        assert!(Residue::of(dir.path()).is_empty(), "{}", Residue::of(dir.path()));
    }
}
