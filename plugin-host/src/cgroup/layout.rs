//! Which controllers this host has, and where. Pure: reads what it is given.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

/// What a control group can limit or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Pids,
    /// `io` in version 2, `blkio` in version 1.
    Io,
}

impl Controller {
    pub(crate) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Io];

    /// Its name as each version spells it.
    pub(crate) fn name(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Memory, _) => "memory",
            (Self::Cpu, _) => "cpu",
            (Self::Pids, _) => "pids",
            (Self::Io, Version::V2) => "io",
            (Self::Io, Version::V1) => "blkio",
        }
    }
}

/// Of the control-group interface. Source: kernel documentation, `cgroup-v2.rst` and `cgroup-v1/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// The directories in which this process may look for its own control groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Layout {
    /// The hierarchy of version 2: its mount point, and this process's group below it.
    pub(crate) unified: Option<(PathBuf, PathBuf)>,
    /// The hierarchies of version 1.
    pub(crate) v1: BTreeMap<Controller, (PathBuf, PathBuf)>,
}

impl Layout {
    /// Understands `/proc/self/mounts` and `/proc/self/cgroup`. Source: cgroups(7).
    pub(crate) fn parse(mounts: &str, own: &str) -> Self {
        let mut layout = Self::default();
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (_, Some(at), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let at = Path::new(at);
            match kind {
                "cgroup2" if layout.unified.is_none() => {
                    layout.unified = Some((at.into(), below(at, own_group(own, None))));
                }
                "cgroup" => {
                    let named = |controller: &Controller| {
                        options.split(',').any(|word| word == controller.name(Version::V1))
                    };
                    for controller in Controller::ALL.into_iter().filter(named) {
                        let name = controller.name(Version::V1);
                        let group = below(at, own_group(own, Some(name)));
                        layout.v1.entry(controller).or_insert((at.into(), group));
                    }
                }
                _ => {}
            }
        }
        layout
    }
}

/// This process's group in the hierarchy of `controller`, or in that of version 2.
fn own_group<'a>(own: &'a str, controller: Option<&str>) -> &'a str {
    let found = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let this = match controller {
            None => names.is_empty(),
            Some(wanted) => names.split(',').any(|name| name == wanted),
        };
        this.then_some(path)
    });
    found.unwrap_or("/")
}

fn below(mount: &Path, group: &str) -> PathBuf {
    // A group outside of this process's view is shown with `..`; then the mount point is it.
    let group = group.trim_start_matches('/');
    if group.is_empty() || group.split('/').any(|part| part == "..") {
        return mount.into();
    }
    mount.join(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_has_controllers_in_version_1() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let own = "4:memory:/job/1\n1:cpu,cpuacct:/\n0::/\n";
        let layout = Layout::parse(mounts, own);
        let memory = Path::new("/sys/fs/cgroup/memory");
        assert_eq!(layout.v1[&Controller::Memory], (memory.into(), memory.join("job/1")));
        assert!(layout.v1.contains_key(&Controller::Cpu));
        assert!(!layout.v1.contains_key(&Controller::Pids));
        let unified = PathBuf::from("/sys/fs/cgroup/unified");
        assert_eq!(layout.unified, Some((unified.clone(), unified)));
    }

    #[test]
    fn a_service_of_its_own_is_found_in_version_2() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let layout = Layout::parse(mounts, "0::/system.slice/bh.service\n");
        let group = PathBuf::from("/sys/fs/cgroup/system.slice/bh.service");
        assert_eq!(layout.unified, Some(("/sys/fs/cgroup".into(), group)));
    }

    #[test]
    fn nonsense_and_groups_out_of_sight_are_no_trouble() {
        assert_eq!(Layout::parse("x\n\ncgroup2\n", ":::"), Layout::default());
        let layout = Layout::parse("cgroup2 /c cgroup2 rw 0 0\n", "0::/../../elsewhere\n");
        assert_eq!(layout.unified, Some(("/c".into(), "/c".into())));
    }
}
