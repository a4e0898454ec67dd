//! What a plugin may use, and by what means that holds on this host. Pure: what the host can do is
//! an argument.
//!
//! A limit that was asked for is never dropped in silence: where no means is at hand, the plan
//! says so, and the plugin's status shows it.

use std::fmt;

use launcher::Limits;
use protocol::manifest::Resources;

use crate::cgroup::{Controller, Version};

/// Open descriptors where the manifest does not say: servers with hundreds of connections work,
/// a leak is found.
const FILES_DEFAULT: u64 = 4_096;

/// Processes and threads where the manifest does not say: a JVM has dozens, a fork bomb ends.
const PROCESSES_DEFAULT: u64 = 2_048;

/// Bytes in the directories that are a plugin's own where the manifest does not say.
pub(crate) const DISK_DEFAULT: u64 = 1 << 30;

/// The weight of a plugin that was promised none, as percent of one core.
const CALLED_SHARE: u32 = 100;
const UNCALLED_SHARE: u32 = 10;

/// Where a plugin stands among the others when cores are scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Standing {
    /// It is not ready yet, or nobody called it lately.
    #[default]
    Uncalled,
    /// It is called.
    Called,
    /// Nobody calls it, and it uses the processor.
    Behind,
}

/// A limit that a control group holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Bytes, swap included.
    Memory(u64),
    /// Percent of one core.
    Cpu(u32),
    /// Its weight among plugins where cores are scarce, as percent of one core.
    CpuShare(u32),
    /// In its stead: it has what other plugins leave.
    CpuLeavings,
    /// Processes and threads.
    Pids(u64),
    /// Bytes per second read from, and written to, one device.
    Io {
        /// Its major and minor number.
        device: (u32, u32),
        /// Each way.
        bytes_per_second: u64,
    },
}

impl Need {
    pub(crate) fn controller(&self) -> Controller {
        match self {
            Self::Memory(_) => Controller::Memory,
            Self::Cpu(_) | Self::CpuShare(_) | Self::CpuLeavings => Controller::Cpu,
            Self::Pids(_) => Controller::Pids,
            Self::Io { .. } => Controller::Io,
        }
    }
}

/// One limit of a plugin as it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mechanism {
    /// What is limited: `memory`, `cpu`, `cpu_guaranteed`, `cpu_weight`, `cpu_cores`,
    /// `cpu_seconds`, `processes`, `files`, `file_size`, `disk`, `disk_bandwidth`,
    /// `network_bandwidth`.
    pub resource: &'static str,
    /// To how much, for people.
    pub limit: String,
    /// By what means; begins with `not enforced` where there is none, and says why.
    pub means: String,
}

/// What this host has to hold limits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Means {
    pub(crate) memory: Option<Version>,
    pub(crate) cpu: Option<Version>,
    pub(crate) pids: Option<Version>,
    pub(crate) io: Option<Version>,
    /// The device that holds what plugins write.
    pub(crate) device: Option<(u32, u32)>,
    /// Plugins have a user namespace each, in which their processes are counted.
    pub(crate) own_users: bool,
    /// Plugins reach the network through the host alone.
    pub(crate) egress: bool,
    /// Memory may be limited at all.
    pub(crate) memory_limits: bool,
    /// Cores of this machine.
    pub(crate) cores: u32,
}

/// Limits and how they are held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// By a control group.
    pub(crate) needs: Vec<Need>,
    /// By the kernel, per process.
    pub(crate) rlimits: Limits,
    /// Cores it may run on, fewer than the machine has.
    pub(crate) cores: Option<u32>,
    /// All of them, for status.
    pub(crate) mechanisms: Vec<Mechanism>,
}

/// How `asked` is held with what this host has.
pub(crate) fn plan(asked: &Resources, means: &Means) -> Plan {
    let mut plan = Plan::default();
    memory(&mut plan, asked, means);
    cpu(&mut plan, asked, means);
    processes(&mut plan, asked, means);
    files(&mut plan, asked);
    disk(&mut plan, asked, means);
    if let Some(most) = asked.network_bandwidth {
        let way = if means.egress {
            "egress proxy of the host, token bucket"
        } else {
            "not enforced: no egress proxy of the host carries its connections"
        };
        plan.note("network_bandwidth", per_second(most), way);
    }
    plan
}

fn memory(plan: &mut Plan, asked: &Resources, means: &Means) {
    let Some(bytes) = asked.memory_bytes else { return };
    let way = match (means.memory_limits, means.memory) {
        (false, _) => "not enforced: memory limits are off".into(),
        (true, Some(version)) => {
            plan.needs.push(Need::Memory(bytes));
            format!("cgroup {version}, all processes together, swap included")
        }
        (true, None) => {
            plan.rlimits.data = Some(bytes);
            "RLIMIT_DATA, each process by itself: no memory controller is at hand".into()
        }
    };
    plan.note("memory", Size(bytes), way);
}

fn cpu(plan: &mut Plan, asked: &Resources, means: &Means) {
    if let Some(percent) = asked.cpu_percent {
        let way = match means.cpu {
            Some(version) => {
                plan.needs.push(Need::Cpu(percent));
                format!("cgroup {version}, quota")
            }
            None => "not enforced: no cpu controller is at hand".into(),
        };
        plan.note("cpu", format_args!("{percent} % of one core"), way);
    }
    if let Some(percent) = asked.cpu_guaranteed {
        let way = match means.cpu {
            Some(version) => {
                plan.needs.push(Need::CpuShare(percent));
                let file = if version == Version::V1 { "cpu.shares" } else { "cpu.weight" };
                format!("cgroup {version} {file}: its weight among plugins where cores are scarce")
            }
            None => "not enforced: no cpu controller is at hand".into(),
        };
        plan.note("cpu_guaranteed", format_args!("{percent} % of one core"), way);
    }
    if let Some(cores) = asked.cpu_cores {
        let way = if cores < means.cores {
            plan.cores = Some(cores);
            "affinity".into()
        } else {
            format!("nothing to hold: this machine has {}", means.cores)
        };
        plan.note("cpu_cores", cores, way);
    }
    if let Some(seconds) = asked.cpu_seconds {
        plan.rlimits.cpu_seconds = Some(seconds);
        plan.note("cpu_seconds", format_args!("{seconds} s"), "RLIMIT_CPU, each process by itself");
    }
}

fn processes(plan: &mut Plan, asked: &Resources, means: &Means) {
    let most = asked.processes_max.unwrap_or(PROCESSES_DEFAULT);
    if means.own_users {
        plan.rlimits.processes = Some(most);
    }
    let way = match (asked.processes_max, means.pids) {
        // Only on request: every controller that is joined makes a start slower.
        (Some(_), Some(version)) => {
            plan.needs.push(Need::Pids(most));
            format!("cgroup {version}")
        }
        _ if means.own_users => "RLIMIT_NPROC in a user namespace of its own".into(),
        // The kernel would count every process of the same user.
        _ => "not enforced: neither a pids controller nor a user namespace is at hand".into(),
    };
    plan.note("processes", most, way);
}

fn files(plan: &mut Plan, asked: &Resources) {
    let most = asked.files_max.unwrap_or(FILES_DEFAULT);
    plan.rlimits.files = Some(most);
    plan.note("files", most, "RLIMIT_NOFILE, each process by itself");
    if let Some(bytes) = asked.file_size_bytes {
        plan.rlimits.file_size = Some(bytes);
        plan.note("file_size", Size(bytes), "RLIMIT_FSIZE");
    }
}

fn disk(plan: &mut Plan, asked: &Resources, means: &Means) {
    let bytes = asked.disk_bytes.unwrap_or(DISK_DEFAULT);
    plan.note(
        "disk",
        Size(bytes),
        "its own directories are measured; beyond it the plugin is ended",
    );
    let Some(most) = asked.disk_bandwidth else { return };
    let way = match (means.io, means.device) {
        (Some(version), Some(device)) => {
            plan.needs.push(Need::Io { device, bytes_per_second: most });
            match version {
                Version::V2 => "cgroup v2 io.max".into(),
                Version::V1 => "cgroup v1 blkio.throttle: reads, and writes past the cache".into(),
            }
        }
        (None, _) => "not enforced: no io controller is at hand".to_owned(),
        (_, None) => "not enforced: what plugins write is on no block device".into(),
    };
    plan.note("disk_bandwidth", per_second(most), way);
}

/// Whether a program that was refused memory might end like this: by a signal that follows from a
/// null pointer or from giving up, or with last words about it.
pub(crate) fn may_be_memory<'a>(
    signal: Option<i32>,
    mut said: impl Iterator<Item = &'a str>,
) -> bool {
    /// SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGSEGV.
    const GIVEN_UP: [i32; 5] = [4, 5, 6, 7, 11];
    /// C and Go; Rust; C++; Python; JVM and Node.
    const WORDS: [&str; 5] =
        ["out of memory", "memory allocation of", "bad_alloc", "MemoryError", "OutOfMemory"];
    let about = |line: &str| {
        let line = line.to_ascii_lowercase();
        WORDS.iter().any(|word| line.contains(&word.to_ascii_lowercase()))
    };
    signal.is_some_and(|signal| GIVEN_UP.contains(&signal)) || said.any(about)
}

impl Plan {
    /// Gives a plugin its weight among the others, also where nobody asked for one: then all
    /// plugins together weigh as much as one neighbour of the node's. Stays as it is where a weight
    /// was promised, or where no controller is at hand.
    pub(crate) fn weighed(mut self, standing: Standing, means: &Means) -> Self {
        let promised = self.needs.iter().any(|it| matches!(it, Need::CpuShare(_)));
        let Some(version) = means.cpu.filter(|_| !promised) else { return self };
        self.needs.push(match standing {
            Standing::Uncalled => Need::CpuShare(UNCALLED_SHARE),
            Standing::Called => Need::CpuShare(CALLED_SHARE),
            Standing::Behind => Need::CpuLeavings,
        });
        if standing == Standing::Behind {
            let way = format!("cgroup {version}, while it uses the processor and nobody calls it");
            self.note("cpu_weight", "what others leave", way);
        }
        self
    }

    fn note(&mut self, resource: &'static str, limit: impl fmt::Display, means: impl Into<String>) {
        let (limit, means) = (limit.to_string(), means.into());
        self.mechanisms.push(Mechanism { resource, limit, means });
    }
}

fn per_second(bytes: u64) -> String {
    format!("{}/s", Size(bytes))
}

/// Bytes for people.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (unit, name) in UNITS {
            if self.0 >= unit {
                let whole = self.0.is_multiple_of(unit);
                let amount = self.0 as f64 / unit as f64;
                return if whole {
                    write!(f, "{amount:.0} {name}")
                } else {
                    write!(f, "{amount:.1} {name}")
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOT: Means = Means {
        memory: Some(Version::V1),
        cpu: Some(Version::V1),
        pids: Some(Version::V1),
        io: Some(Version::V1),
        device: Some((8, 0)),
        own_users: true,
        egress: true,
        memory_limits: true,
        cores: 4,
    };

    fn means_of(plan: &Plan, resource: &str) -> Option<String> {
        let found = plan.mechanisms.iter().find(|it| it.resource == resource);
        found.map(|it| it.means.clone())
    }

    #[test]
    fn a_plugin_that_asks_for_nothing_needs_no_control_group() {
        let plan = plan(&Resources::default(), &ROOT);
        assert_eq!(plan.needs, []);
        assert_eq!(plan.rlimits.files, Some(FILES_DEFAULT));
        assert_eq!(plan.rlimits.processes, Some(PROCESSES_DEFAULT));
    }

    #[test]
    fn every_plugin_is_weighed_and_a_promised_weight_is_kept() {
        let silent = Resources::default();
        let promised = Resources { cpu_guaranteed: Some(50), ..silent };
        let needs = |asked, standing| plan(asked, &ROOT).weighed(standing, &ROOT).needs;
        assert_eq!(needs(&silent, Standing::Uncalled), [Need::CpuShare(UNCALLED_SHARE)]);
        assert_eq!(needs(&silent, Standing::Called), [Need::CpuShare(CALLED_SHARE)]);
        assert_eq!(needs(&silent, Standing::Behind), [Need::CpuLeavings]);
        assert_eq!(needs(&promised, Standing::Behind), [Need::CpuShare(50)]);
        let none = Means { cpu: None, ..ROOT };
        assert_eq!(plan(&silent, &none).weighed(Standing::Behind, &none).needs, []);
    }

    #[test]
    fn without_a_memory_controller_each_process_is_limited_and_that_is_said() {
        let asked = Resources { memory_bytes: Some(100 << 20), ..Resources::default() };
        let with = plan(&asked, &ROOT);
        assert_eq!((with.needs, with.rlimits.data), (vec![Need::Memory(100 << 20)], None));
        let without = plan(&asked, &Means { memory: None, ..ROOT });
        assert_eq!((without.needs.len(), without.rlimits.data), (0, Some(100 << 20)));
        assert!(means_of(&without, "memory").expect("told").starts_with("RLIMIT_DATA"));
    }

    #[test]
    fn an_end_that_may_be_for_memory_is_told_from_one_that_is_not() {
        let told = |signal, said: &str| may_be_memory(signal, said.lines());
        assert!(told(Some(6), ""));
        assert!(told(Some(11), "bye"));
        assert!(told(None, "Traceback\nMemoryError"));
        assert!(told(None, "fatal error: runtime: out of memory"));
        assert!(!told(Some(15), "told to end"));
        assert!(!told(None, "wrong password"));
    }

    #[test]
    fn sizes_are_told_in_the_largest_unit_that_fits() {
        assert_eq!(Size(512 << 20).to_string(), "512 MiB");
        assert_eq!(Size(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Size(12).to_string(), "12 B");
    }

    fn any_means() -> impl Strategy<Value = Means> {
        let version = || proptest::option::of(prop_oneof![Just(Version::V1), Just(Version::V2)]);
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        (version(), version(), version(), version(), flags, 1_u32..16).prop_map(
            |(memory, cpu, pids, io, (device, own_users, egress, memory_limits), cores)| Means {
                memory,
                cpu,
                pids,
                io,
                device: device.then_some((8, 0)),
                own_users,
                egress,
                memory_limits,
                cores,
            },
        )
    }

    proptest! {
        #[test]
        fn every_limit_that_is_asked_for_is_held_or_said_not_to_be(
            means in any_means(), value in 1_u64..1 << 40,
        ) {
            let asked = Resources {
                cpu_percent: Some(value as u32 % 400 + 1),
                cpu_guaranteed: Some(value as u32 % 400 + 1),
                cpu_cores: Some(value as u32 % 8 + 1),
                cpu_seconds: Some(value),
                memory_bytes: Some(value),
                files_max: Some(value),
                file_size_bytes: Some(value),
                processes_max: Some(value),
                disk_bytes: Some(value),
                disk_bandwidth: Some(value),
                network_bandwidth: Some(value),
            };
            let plan = plan(&asked, &means);
            let told = [
                "memory", "cpu", "cpu_guaranteed", "cpu_cores", "cpu_seconds", "processes", "files",
                "file_size", "disk", "disk_bandwidth", "network_bandwidth",
            ];
            for resource in told {
                prop_assert!(means_of(&plan, resource).is_some(), "{resource}");
            }
            // Nothing is asked of a controller that is not at hand.
            for need in &plan.needs {
                let version = match need.controller() {
                    Controller::Memory => means.memory,
                    Controller::Cpu => means.cpu,
                    Controller::Pids => means.pids,
                    Controller::Io => means.io,
                };
                prop_assert!(version.is_some(), "{need:?}");
            }
        }
    }
}
