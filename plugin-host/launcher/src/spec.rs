//! What the host asks the launcher for. Plain data; the host decides, the launcher obeys or
//! refuses.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The user and group id that every plugin sees itself as.
pub const INSIDE_ID: u32 = 1_000;

/// One plugin's jail and program.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "independent wishes, each named")]
pub struct JailSpec {
    /// The jail's host name.
    pub name: String,
    /// The program's absolute path, as seen inside, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Absolute, as seen inside.
    pub working_dir: PathBuf,
    /// Own user, pid, mount, ipc, uts, cgroup and (unless `host_network`) net namespaces, and the
    /// private root. False: the program sees what the host sees.
    pub namespaces: bool,
    /// Keep the host's network instead of an empty one.
    pub host_network: bool,
    /// Open this TCP port on the loopback of the jail's own network and hand the listener to the
    /// host ([`crate::Report::Egress`]), which accepts there: the program's one way out. Without
    /// an own network there is none to open it in, and it is left out.
    pub egress: Option<u16>,
    /// The user and group id that the program has outside. Only a host with rights over other ids
    /// may choose one; `None` keeps the host's own.
    pub outside_id: Option<u32>,
    /// Directories of control groups that the jail's first process is put into before anything of
    /// the plugin's exists: one for version 2, one per controller for version 1. Limits are set
    /// there before the start.
    pub cgroup: Vec<PathBuf>,
    /// Landlock is asked for: the program may touch what `root` lists and nothing else. Without
    /// namespaces this is the barrier around files.
    pub landlock: bool,
    /// The system-call filter is asked for.
    pub seccomp: bool,
    /// Which internet sockets the program may use within the network it has.
    pub internet: Internet,
    /// What the program sees of the file system. Without namespaces it sees everything, and
    /// Landlock refuses all but the sources of the binds.
    pub root: RootSpec,
    /// Cores that it may run on; empty leaves all that the host has.
    pub cores: Vec<u32>,
    /// Resource limits.
    pub limits: Limits,
    /// Two descriptors came with this spec: standard output and standard error. Otherwise the
    /// launcher's own are used.
    pub output: bool,
    /// A further descriptor came with it: a bound listener that becomes descriptor 3.
    pub listener: bool,
}

/// Internet sockets of a program that shares a network with others. With an empty network of its
/// own it may do as it likes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Internet {
    /// All that the network offers.
    #[default]
    Any,
    /// TCP, to listen on this port, and no connection of its own: Landlock from version 4 on, and
    /// the system-call filter.
    Listen(u16),
    /// None: the system-call filter.
    None,
}

/// The private root: a read-only tmpfs with what is listed here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootSpec {
    /// Parts of the host's file system. Ancestors first; one lies within another only
    /// where it may be written to and the other not.
    pub binds: Vec<Bind>,
    /// Symbolic links: path, target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Small files: path, contents.
    pub files: Vec<(PathBuf, String)>,
    /// Paths that are covered by something empty, wherever a bind shows them.
    pub masks: Vec<PathBuf>,
    /// Size of the private `/tmp`, and of `/dev/shm`, each.
    pub tmp_bytes: u64,
}

/// A part of the host's file system inside the jail, without set-uid and, but for `device`,
/// without devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "independent wishes, each named")]
pub struct Bind {
    /// Where it is outside.
    pub source: PathBuf,
    /// Where it is inside.
    pub target: PathBuf,
    /// The program may write to it.
    pub writable: bool,
    /// Files of the source's owner appear as the program's own, so that files that only their
    /// owner may read can be read although the program runs under another id outside. A
    /// convenience: where the file system cannot do it, the bind is made without.
    pub own: bool,
    /// Its absence is no reason to refuse.
    pub optional: bool,
    /// Refuse a source that is reached through a symbolic link: what was judged by its path must
    /// be what the path means when it is opened.
    pub exact: bool,
    /// The source is a device node that works inside.
    pub device: bool,
}

/// Resource limits of each process of the plugin. Core dumps are always off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Open descriptors.
    pub files: Option<u64>,
    /// Bytes of the largest file it may write.
    pub file_size: Option<u64>,
    /// Bytes of writable private memory (`RLIMIT_DATA`).
    pub data: Option<u64>,
    /// Processes and threads of the plugin together; counted per user namespace.
    pub processes: Option<u64>,
    /// Seconds of CPU time; then SIGXCPU, and SIGKILL a second later.
    pub cpu_seconds: Option<u64>,
}
