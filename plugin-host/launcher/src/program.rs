//! The last process of a jail before it is the plugin: it gives up what is left to give up, in an
//! order in which no step needs what an earlier one took, and executes.
//!
//! Own session, the granted descriptors, working directory, resource limits, death with the first
//! process, Landlock, the number of descriptors, the system-call filter, exec. Capabilities and
//! new privileges were given up by the first process, whose child this is.

use std::{convert::Infallible, ffi::CString, io, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, OFlags},
    net::SendFlags,
    process::{Pid, Resource, Rlimit, Signal},
};

use crate::{
    control::{self, Report},
    jail::{Layer, Layers, Refusal},
    landlock, seccomp,
    spec::{JailSpec, Limits},
    sys,
};

/// Tells the first process that the host was told of a refusal.
pub(crate) const REFUSED: &str = "!";

const EXEC_ADVICE: &str = "the program, its interpreter and its libraries must be visible inside \
     the jail, readable and executable: name further directories as read paths";

/// What the program begins with.
pub(crate) struct Program<'a> {
    pub(crate) spec: &'a JailSpec,
    pub(crate) control: &'a OwnedFd,
    pub(crate) listener: Option<OwnedFd>,
    /// The first process.
    pub(crate) parent: Pid,
    /// The pipe to it: names of layers, or [`REFUSED`]; exec closes it.
    pub(crate) told: OwnedFd,
}

impl Program<'_> {
    /// Becomes the plugin. Returns, with an exit status, only where that failed; then the host
    /// was told why.
    pub(crate) fn begin(self) -> i32 {
        let Err(refusal) = self.become_plugin();
        // A host that is gone needs no reason.
        let _ = control::send(self.control, &refusal.report(), None, SendFlags::empty());
        let _ = rustix::io::write(&self.told, REFUSED.as_bytes());
        127
    }

    fn become_plugin(&self) -> Result<Infallible, Refusal> {
        let mut layers = Layers::new();
        sys::reset_signals();
        rustix::process::setsid().layer("session", "setsid")?;
        layers.push("own-session".into());
        // The host and its launchers, which are small, do without; plugins have what the machine
        // has.
        let _ = rustix::thread::disable_transparent_huge_pages(false);
        let mut env = self.spec.env.clone();
        self.grant_descriptors(&mut env)?;
        layers.push("closed-descriptors".into());
        layers.push("clean-environment".into());
        self.enter_working_directory()?;
        choose_cores(&self.spec.cores)?;
        limit(self.spec.limits)?;
        layers.push("rlimits".into());
        if self.spec.limits.data.is_some() {
            layers.push("rlimit-memory".into());
        }
        self.die_with_the_first_process()?;
        control::send(self.control, &Report::Program, None, SendFlags::empty())
            .layer("launcher", "tell the host")?;
        // Opened and prepared before the layers that would forbid it.
        let image = Image::open(self.spec)?;
        let filters =
            self.spec.seccomp.then(|| seccomp::prepare(self.spec.internet)).transpose()?;
        if self.spec.landlock {
            layers.push(landlock::restrict(self.spec)?);
        }
        limit_files(self.spec.limits)?;
        if let Some(filters) = filters {
            filters.install()?;
            layers.push("seccomp".into());
        }
        rustix::io::write(&self.told, layers.join("\n").as_bytes())
            .layer("launcher", "name the layers")?;
        Err(image.exec(self.spec, &env))
    }

    /// 0 to 2 are there, 3 is the listener; the next exec closes all others.
    fn grant_descriptors(&self, env: &mut Vec<(String, String)>) -> Result<(), Refusal> {
        let mut granted = 3;
        if let Some(listener) = &self.listener {
            sys::place(listener, 3).layer("descriptors", "place the listener")?;
            granted = 4;
            let own = rustix::process::getpid().as_raw_nonzero().to_string();
            env.push(("LISTEN_FDS".into(), "1".into()));
            env.push(("LISTEN_PID".into(), own));
        }
        sys::close_from(granted, false).layer("descriptors", "close_range")
    }

    fn enter_working_directory(&self) -> Result<(), Refusal> {
        let directory = &self.spec.working_dir;
        rustix::process::chdir(directory).map_err(|error| {
            Refusal::new("exec", format!("working directory {}: {error}", directory.display()))
                .advise(EXEC_ADVICE)
        })?;
        inside_root(self.spec)
    }

    fn die_with_the_first_process(&self) -> Result<(), Refusal> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .layer("lifeline", "prctl")?;
        if rustix::process::getppid() != Some(self.parent) {
            return Err(Refusal::new("lifeline", "the first process has ended"));
        }
        Ok(())
    }
}

/// The program's file.
enum Image {
    /// A binary: executed by the descriptor that was opened, so that nobody can put another file
    /// in its place.
    Descriptor(OwnedFd),
    /// Everything else, by name. The interpreter of a script opens the script a second time, by
    /// a name that the kernel makes of the descriptor; and that one must be closed by then.
    Name,
}

const ELF: [u8; 4] = *b"\x7fELF";

impl Image {
    fn open(spec: &JailSpec) -> Result<Self, Refusal> {
        let Some(name) = spec.argv.first() else {
            return Err(Refusal::new("exec", "no program is named"));
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        match rustix::fs::open(name.as_str(), flags, Mode::empty()) {
            Ok(file) => {
                let mut start = [0; ELF.len()];
                let read = rustix::io::pread(&file, &mut start, 0);
                Ok(if read == Ok(ELF.len()) && start == ELF {
                    Self::Descriptor(file)
                } else {
                    Self::Name
                })
            }
            // It may be executable all the same.
            Err(rustix::io::Errno::ACCESS) => Ok(Self::Name),
            Err(error) => Err(no_program(name, &error.into())),
        }
    }

    /// Returns only where it failed.
    fn exec(&self, spec: &JailSpec, env: &[(String, String)]) -> Refusal {
        let argv = strings(spec.argv.iter().cloned());
        let env = strings(env.iter().map(|(name, value)| format!("{name}={value}")));
        match (argv, env) {
            (Ok(argv), Ok(env)) => {
                let error = match self {
                    Self::Descriptor(file) => sys::exec_descriptor(file, &argv, &env),
                    Self::Name => sys::exec(&argv[0], &argv, &env),
                };
                no_program(&spec.argv[0], &error)
            }
            (Err(refusal), _) | (_, Err(refusal)) => refusal,
        }
    }
}

fn no_program(name: &str, error: &io::Error) -> Refusal {
    Refusal::new("exec", format!("{name}: {error}")).advise(EXEC_ADVICE)
}

/// A working directory that escaped the root would be a way out of it (CVE-2024-21626).
fn inside_root(spec: &JailSpec) -> Result<(), Refusal> {
    let here = std::env::current_dir().layer("private-root", "working directory")?;
    if spec.namespaces && !here.is_absolute() {
        return Err(Refusal::new("private-root", "the working directory is outside of the jail"));
    }
    Ok(())
}

fn strings(texts: impl Iterator<Item = String>) -> Result<Vec<CString>, Refusal> {
    texts.map(CString::new).collect::<Result<_, _>>().layer("exec", "a text contains a zero byte")
}

fn limit(limits: Limits) -> Result<(), Refusal> {
    set_limit(Resource::Core, Some(0), "core")?;
    set_limit(Resource::Fsize, limits.file_size, "file size")?;
    set_limit(Resource::Data, limits.data, "memory")?;
    set_limit(Resource::Nproc, limits.processes, "processes")?;
    limit_cpu_time(limits)
}

/// A second between the signal that names the reason and the one that cannot be ignored.
fn limit_cpu_time(limits: Limits) -> Result<(), Refusal> {
    let Some(seconds) = limits.cpu_seconds else { return Ok(()) };
    let most = rustix::process::getrlimit(Resource::Cpu).maximum.unwrap_or(u64::MAX);
    let limit = Rlimit {
        current: Some(seconds.min(most)),
        maximum: Some(seconds.saturating_add(1).min(most)),
    };
    rustix::process::setrlimit(Resource::Cpu, limit).layer("rlimits", "CPU time")
}

/// Source: sched_setaffinity(2).
fn choose_cores(cores: &[u32]) -> Result<(), Refusal> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = rustix::thread::CpuSet::new();
    for core in cores.iter().filter(|core| (**core as usize) < rustix::thread::CpuSet::MAX_CPU) {
        set.set(*core as usize);
    }
    rustix::thread::sched_setaffinity(None, &set).layer("cores", "sched_setaffinity")
}

/// Apart from the other limits, and late: nothing more could be opened below the number of what
/// is open already.
fn limit_files(limits: Limits) -> Result<(), Refusal> {
    set_limit(Resource::Nofile, limits.files, "open files")
}

fn set_limit(resource: Resource, wanted: Option<u64>, name: &str) -> Result<(), Refusal> {
    let Some(wanted) = wanted else { return Ok(()) };
    // More than the host itself may have cannot be given.
    let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = Some(wanted.min(most));
    rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })
        .layer("rlimits", name)
}
