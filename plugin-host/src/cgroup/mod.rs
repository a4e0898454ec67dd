//! Control groups of plugins: a subtree of the host's own, one group per instance, written as
//! plain files.
//!
//! Version 2 where it has the controllers, version 1 where root may use it, neither where the
//! kernel gives the host none: [`Groups::offers`] says which, and the plan of limits goes by it.
//! Every function here touches files, and a write into a version 1 hierarchy can wait for tens of
//! milliseconds: call them where blocking is allowed.
//!
//! ```text
//! <the host's own group>/blackhole-<run directory>/[<group>/]<instance>
//! ```

mod cage;
mod claim;
mod layout;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub(crate) use cage::{Cage, Counts};
pub(crate) use layout::{Controller, Version};

use claim::Claim;
use layout::Layout;

/// How long what is left of an earlier host may take to disappear after SIGKILL, while this one
/// waits with its start.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The same for what is left of a run, while nobody waits: a thousand that are ended at once take
/// the kernel longer than one.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a group that is being emptied, at first and at most: looking takes the lock
/// that emptying needs.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_LAST: Duration = Duration::from_millis(128);

/// The control groups of one host.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// The host's subtree for each controller that it may use.
    bases: BTreeMap<Controller, (Version, PathBuf)>,
    /// What makes them this host's, by directory.
    claims: BTreeMap<PathBuf, Claim>,
    /// Why there is none, for people.
    pub(crate) missing: Option<String>,
}

impl Groups {
    /// None, because the operator wants none.
    pub(crate) fn off() -> Self {
        Self { missing: Some("the operator turned control groups off".into()), ..Self::default() }
    }

    /// Finds out what this host may use, makes its subtree, ends whatever an earlier host with
    /// the same run directory left in it, and removes what other hosts left that are gone.
    pub(crate) fn open(run_dir: &Path) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let groups = Self::within(&Layout::parse(&mounts, &own), &subtree_name(run_dir));
        groups.claims.keys().for_each(|base| claim::sweep(base));
        groups
    }

    fn within(layout: &Layout, name: &str) -> Self {
        let mut bases = BTreeMap::new();
        let mut claims = BTreeMap::new();
        let mut missing = None;
        if let Some((_, own)) = &layout.unified {
            match unified(own, name, &mut claims) {
                Ok(controllers) => {
                    for controller in controllers {
                        bases.insert(controller, (Version::V2, own.join(name)));
                    }
                }
                Err(error) => missing = Some(format!("{}: {error}", own.display())),
            }
        }
        for (controller, (mount, own)) in &layout.v1 {
            if bases.contains_key(controller) {
                continue;
            }
            // A group that is seen from elsewhere may not be there; its mount point is.
            let base = if own.is_dir() { own.join(name) } else { mount.join(name) };
            match claim_once(&base, &mut claims) {
                Ok(()) => {
                    bases.insert(*controller, (Version::V1, base));
                }
                Err(error) => missing = Some(format!("{}: {error}", base.display())),
            }
        }
        if !bases.is_empty() {
            missing = None;
        } else if missing.is_none() {
            missing = Some("no hierarchy with controllers is mounted".into());
        }
        Self { bases, claims, missing }
    }

    /// The version in which `controller` can be used.
    pub(crate) fn offers(&self, controller: Controller) -> Option<Version> {
        self.bases.get(&controller).map(|(version, _)| *version)
    }

    /// The directory of `key` for each of `controllers`, which are made. Several controllers of
    /// version 2 share one.
    fn make(
        &self,
        group: Option<&str>,
        key: &str,
        controllers: &[Controller],
    ) -> io::Result<BTreeMap<Controller, (Version, PathBuf)>> {
        let mut made = BTreeMap::new();
        for controller in controllers {
            let Some((version, base)) = self.bases.get(controller) else { continue };
            let mut directory = base.clone();
            if let Some(group) = group {
                // No plugin's name has an `@`, so no group is mistaken for one.
                directory.push(format!("@{group}"));
                make_directory(&directory)?;
                if *version == Version::V2 {
                    enable(&directory, controllers)?;
                }
            }
            directory.push(key);
            make_directory(&directory)?;
            made.insert(*controller, (*version, directory));
        }
        Ok(made)
    }

    /// Removes the host's subtree and whatever is in it. Nothing of it is needed afterwards; it
    /// stays this host's, so that nobody builds on what is being removed.
    pub(crate) fn close(&self) {
        for (_, base) in self.bases.values() {
            // Whatever cannot be removed now is removed at the next start.
            let _ = remove(base, KILL_PATIENCE);
        }
    }
}

/// One per run directory, for that is what makes a host.
fn subtree_name(run_dir: &Path) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(run_dir.as_os_str().as_encoded_bytes());
    let number = hash[..6].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    format!("{}{number:012x}", claim::PREFIX)
}

/// Makes the host's subtree in a version 2 hierarchy, with every controller that can be had.
fn unified(
    own: &Path,
    name: &str,
    claims: &mut BTreeMap<PathBuf, Claim>,
) -> io::Result<Vec<Controller>> {
    let there = fs::read_to_string(own.join("cgroup.controllers"))?;
    let offered: Vec<Controller> = Controller::ALL
        .into_iter()
        .filter(|it| there.split_whitespace().any(|word| word == it.name(Version::V2)))
        .collect();
    if offered.is_empty() {
        return Ok(offered);
    }
    if let Err(error) = enable(own, &offered) {
        if error.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) {
            return Err(error);
        }
        // No group but the root may hold both processes and controllers for its children. Where
        // this process is alone, as in a service with `Delegate=`, it moves into a leaf.
        let leaf = own.join("blackhole-node");
        make_directory(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), "0")?;
        enable(own, &offered)?;
    }
    let base = own.join(name);
    claim_once(&base, claims)?;
    enable(&base, &offered)?;
    Ok(offered)
}

fn enable(directory: &Path, controllers: &[Controller]) -> io::Result<()> {
    let words: Vec<String> =
        controllers.iter().map(|it| format!("+{}", it.name(Version::V2))).collect();
    fs::write(directory.join("cgroup.subtree_control"), words.join(" "))
}

/// An empty directory at `base` that is this host's. One hierarchy may have several controllers.
fn claim_once(base: &Path, claims: &mut BTreeMap<PathBuf, Claim>) -> io::Result<()> {
    if !claims.contains_key(base) {
        claims.insert(base.into(), claim::claim(base)?);
    }
    Ok(())
}

fn is_directory(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Kills every process in `directory` and below, and removes it.
pub(crate) fn remove(directory: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut wait = LOOK_FIRST;
    loop {
        match remove_once(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            // A killed process leaves its group a moment later; nothing tells when.
            Err(_) => {
                std::thread::sleep(wait);
                wait = (wait * 2).min(LOOK_LAST);
            }
        }
    }
}

fn remove_once(directory: &Path) -> io::Result<()> {
    kill(directory)?;
    for entry in fs::read_dir(directory)?.flatten().filter(is_directory) {
        remove_once(&entry.path())?;
    }
    fs::remove_dir(directory)
}

/// Kills every process in the group, and with version 2 also below it, in one step.
fn kill(directory: &Path) -> io::Result<()> {
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    for pid in processes(directory)? {
        let Some(pid) = Pid::from_raw(pid) else { continue };
        // Between list and signal the number may have become another's: held first, looked at
        // again then, killed last.
        let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if processes(directory)?.contains(&pid.as_raw_nonzero().get()) {
            let _ = pidfd_send_signal(&held, Signal::KILL);
        }
    }
    Ok(())
}

/// The processes directly in the group.
fn processes(directory: &Path) -> io::Result<Vec<i32>> {
    let text = fs::read_to_string(directory.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_directory_has_a_subtree_of_its_own() {
        let one = subtree_name(Path::new("/run/one"));
        assert_eq!(one, subtree_name(Path::new("/run/one")));
        assert_ne!(one, subtree_name(Path::new("/run/two")));
        assert!(one.len() < 40, "{one}");
    }

    #[test]
    fn where_nothing_is_mounted_nothing_is_offered_and_the_reason_is_told() {
        let groups = Groups::within(&Layout::default(), "blackhole-test");
        assert!(Controller::ALL.into_iter().all(|it| groups.offers(it).is_none()));
        assert!(groups.missing.is_some());
    }
}
