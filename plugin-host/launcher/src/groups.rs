//! How a jail's first process comes into its control groups, before anything of the plugin's is.
//!
//! Whoever writes another process into a group makes the kernel stop every fork and every end of a
//! process on the machine, and wait for all processors: 12 ms each time. A process that has one
//! thread and moves that, or that begins its life in the group, keeps nobody waiting; so the first
//! goes into the groups of version 1, and the second into that of version 2.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::{
    jail::{Layer, Refusal, no_namespaces},
    sys::{self, Fork},
};

const LAYER: &str = "cgroup";

const ADVICE: &str = "give the node its own subtree of control groups (systemd: Delegate=yes), or \
     set the operator policy `plugins.cgroups: off`";

/// The groups of one jail, opened where they can be seen and with the rights of the host.
pub(crate) struct Groups {
    /// Of version 1: what a thread is written to.
    lists: Vec<(PathBuf, File)>,
    /// Of version 2.
    unified: Option<(PathBuf, OwnedFd)>,
}

impl Groups {
    pub(crate) fn open(directories: &[PathBuf]) -> Result<Self, Refusal> {
        let mut groups = Self { lists: Vec::new(), unified: None };
        for directory in directories {
            let list = directory.join("tasks");
            if list.exists() {
                let file = File::options().write(true).open(&list);
                groups.lists.push((directory.clone(), in_group(directory, file)?));
            } else {
                let file = in_group(directory, File::open(directory))?;
                groups.unified = Some((directory.clone(), file.into()));
            }
        }
        Ok(groups)
    }

    /// Forks the first process into new namespaces, and into the group of version 2.
    pub(crate) fn clone_into(&self, namespaces: libc::c_int) -> Result<Fork, Refusal> {
        let directly = |group| sys::clone_into(namespaces, true, group);
        if let Some((_, group)) = &self.unified
            && let Ok(fork) = directly(Some(group))
        {
            return Ok(fork);
        }
        // Without clone3, as under some container engines, it takes longer. What else the kernel
        // refused it refuses again, apart from the group.
        let fork = directly(None).map_err(|error| no_namespaces(&error))?;
        if let (Fork::Parent(first), Some((directory, _))) = (&fork, &self.unified) {
            let list = directory.join("cgroup.procs");
            in_group(directory, fs::write(list, first.as_raw_nonzero().to_string()))?;
        }
        Ok(fork)
    }

    /// Takes this process, which has one thread, into the groups of version 1.
    pub(crate) fn join(self) -> Result<(), Refusal> {
        for (directory, mut list) in self.lists {
            in_group(&directory, list.write_all(b"0"))?;
        }
        Ok(())
    }
}

fn in_group<T>(directory: &Path, done: std::io::Result<T>) -> Result<T, Refusal> {
    let refused = done.layer(LAYER, &format!("join {}", directory.display()));
    refused.map_err(|refusal| refusal.advise(ADVICE))
}
