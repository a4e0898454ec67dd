//! What one instance may use at this moment: shared by its supervisor, which starts and ends it,
//! and by the operator, who changes it while it runs.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use protocol::manifest::Resources;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::{
    cgroup::{Cage, Controller, Counts, Groups},
    config::{CgroupPolicy, HostConfig, NamespacePolicy},
    limits::{self, Means, Mechanism, Need, Plan, Size, Standing},
    seat::Seat,
    stats,
};
use launcher::{JailSpec, Limits};

/// Directories and files that are looked at when disk use is measured, and that a plugin's own
/// directories may hold: nobody's tree may cost the node its time, or hide what is in it.
pub const DISK_ENTRIES_MAX: usize = 10_000;

/// The control groups and means of a host, and how it gives them out.
pub(crate) struct Warden {
    pub(crate) groups: Groups,
    means: Means,
    group_needs: BTreeMap<String, Vec<Need>>,
}

impl Warden {
    /// Looks at what this host has, and ends what an earlier one left. Blocks.
    pub(crate) fn open(config: &HostConfig) -> io::Result<Self> {
        let groups = match config.cgroups {
            CgroupPolicy::Off => Groups::off(),
            CgroupPolicy::Auto | CgroupPolicy::Required => Groups::open(&config.run_dir),
        };
        if let (CgroupPolicy::Required, Some(missing)) = (config.cgroups, &groups.missing) {
            return Err(io::Error::other(missing.clone()));
        }
        let means = Means {
            memory: groups.offers(Controller::Memory),
            cpu: groups.offers(Controller::Cpu),
            pids: groups.offers(Controller::Pids),
            io: groups.offers(Controller::Io),
            device: device(&config.data_dir),
            own_users: config.namespaces == NamespacePolicy::Required,
            egress: config.namespaces == NamespacePolicy::Required,
            memory_limits: config.memory_limits,
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        };
        let group_needs = config
            .groups
            .iter()
            .map(|(name, group)| (name.clone(), limits::plan(&group.resources, &means).needs))
            .collect();
        Ok(Self { groups, means, group_needs })
    }

    /// The control groups of what builds jails, which weighs as much as a plugin that starts; made
    /// now. None where there is no controller for it.
    pub(crate) fn of_launchers(&self) -> Vec<PathBuf> {
        // No plugin's name has an `@`, and a group's begins with it.
        const KEY: &str = "launchers@";
        let plan = Plan::default().weighed(Standing::Uncalled, &self.means);
        match Cage::new(&self.groups, None, KEY, &plan.needs) {
            Ok(cage) => cage.map(|cage| cage.directories()).unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "launchers have no control group");
                Vec::new()
            }
        }
    }

    fn cage(&self, seat: &Seat, plan: &Plan) -> io::Result<Option<Cage>> {
        let shared = seat
            .group
            .as_deref()
            .map(|name| (name, self.group_needs.get(name).map(Vec::as_slice).unwrap_or_default()));
        // A group without limits of its own is no level of the tree.
        let shared = shared.filter(|(_, needs)| !needs.is_empty());
        Cage::new(&self.groups, shared, &seat.key(), &plan.needs)
    }
}

/// The device that holds `path`, if it is a block device.
fn device(path: &Path) -> Option<(u32, u32)> {
    let found = path.ancestors().find_map(|path| rustix::fs::stat(path).ok())?;
    let (major, minor) = (rustix::fs::major(found.st_dev), rustix::fs::minor(found.st_dev));
    // Major 0 are file systems without a device: tmpfs, overlay, network.
    (major != 0).then_some((major, minor))
}

/// What one instance may use. Clones are the same allowance.
#[derive(Clone)]
pub(crate) struct Allowance {
    inner: Arc<Inner>,
}

struct Inner {
    seat: Seat,
    warden: Arc<Warden>,
    state: Mutex<State>,
    /// Held by whoever changes a run's limits, one at a time.
    changing: Mutex<()>,
}

struct State {
    resources: Resources,
    plan: Plan,
    standing: Standing,
    live: Option<Live>,
}

/// A run in its control group.
struct Live {
    cage: Option<Arc<Cage>>,
    /// The first process of its jail, once there is one.
    init: Option<u32>,
}

/// What a start needs of an allowance.
pub(crate) struct Allotted {
    plan: Plan,
    cgroup: Vec<PathBuf>,
    layers: Vec<String>,
    cores: Vec<u32>,
    /// What run-times are told, so that they do not make a thread for every core they see.
    cores_told: Option<u32>,
    /// What the program is told, so that it can keep to it.
    told: Vec<(&'static str, u64)>,
}

impl Allotted {
    /// Puts it into a jail's specification; gives the layers that it adds.
    pub(crate) fn apply(self, spec: &mut JailSpec) -> Vec<String> {
        spec.limits = self.plan.rlimits;
        spec.cgroup = self.cgroup;
        spec.cores = self.cores;
        for name in CORES_TOLD.into_iter().filter(|_| self.cores_told.is_some()) {
            // What the manifest says of itself stays.
            if spec.env.iter().all(|(known, _)| known != name) {
                let cores = self.cores_told.unwrap_or(1).to_string();
                spec.env.push((name.into(), cores));
            }
        }
        spec.env.extend(self.told.into_iter().map(|(name, it)| (name.into(), it.to_string())));
        self.layers
    }
}

/// The limits in the words of the plugin contract; those that nobody set are left out.
fn told(resources: &Resources) -> Vec<(&'static str, u64)> {
    let all = [
        ("BH_LIMIT_MEMORY_BYTES", resources.memory_bytes),
        ("BH_LIMIT_CPU_PERCENT", resources.cpu_percent.map(u64::from)),
        ("BH_LIMIT_CPU_CORES", resources.cpu_cores.map(u64::from)),
        ("BH_LIMIT_DISK_BYTES", resources.disk_bytes),
    ];
    all.into_iter().filter_map(|(name, limit)| Some((name, limit?))).collect()
}

/// How run-times learn how many cores they have: Go, OpenMP (NumPy and its like), Rust's rayon and
/// tokio, Julia.
const CORES_TOLD: [&str; 5] = [
    "GOMAXPROCS",
    "OMP_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TOKIO_WORKER_THREADS",
    "JULIA_NUM_THREADS",
];

/// `count` of the cores this process may run on, beginning at one that differs from instance to
/// instance.
fn choose_cores(key: &str, count: u32) -> Vec<u32> {
    use std::hash::{Hash, Hasher};
    let Ok(may) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    let most = rustix::thread::CpuSet::MAX_CPU;
    let may: Vec<u32> = (0..most).filter(|core| may.is_set(*core)).map(|it| it as u32).collect();
    let mut hasher = std::hash::DefaultHasher::new();
    key.hash(&mut hasher);
    let first = hasher.finish() as usize;
    (0..may.len().min(count as usize)).map(|n| may[(first + n) % may.len()]).collect()
}

impl Allowance {
    pub(crate) fn new(seat: Seat, warden: Arc<Warden>, resources: Resources) -> Self {
        let standing = Standing::default();
        let plan = limits::plan(&resources, &warden.means).weighed(standing, &warden.means);
        let state = Mutex::new(State { resources, plan, standing, live: None });
        let changing = Mutex::default();
        Self { inner: Arc::new(Inner { seat, warden, state, changing }) }
    }

    /// The limits and how each is held.
    pub(crate) fn mechanisms(&self) -> Vec<Mechanism> {
        self.inner.state.lock().plan.mechanisms.clone()
    }

    /// Those of them that somebody asked for.
    pub(crate) fn asked(&self) -> Vec<Mechanism> {
        let silent = limits::plan(&Resources::default(), &self.inner.warden.means).mechanisms;
        self.mechanisms().into_iter().filter(|it| !silent.contains(it)).collect()
    }

    /// Bytes of memory it may use.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        let state = self.inner.state.lock();
        state.resources.memory_bytes.filter(|_| self.inner.warden.means.memory_limits)
    }

    /// Bytes of memory that each of its processes may use by itself, where it is held like that.
    pub(crate) fn memory_by_process(&self) -> Option<u64> {
        self.inner.state.lock().plan.rlimits.data
    }

    /// What it may use, whoever holds it.
    pub(crate) fn resources(&self) -> Resources {
        self.inner.state.lock().resources
    }

    /// Bytes on disk that its own directories may hold.
    pub(crate) fn disk_limit(&self) -> u64 {
        self.inner.state.lock().resources.disk_bytes.unwrap_or(limits::DISK_DEFAULT)
    }

    /// Bytes per second through the network.
    pub(crate) fn network_bandwidth(&self) -> Option<u64> {
        self.inner.state.lock().resources.network_bandwidth
    }

    /// Makes the control group of the next run. Blocks.
    pub(crate) fn begin(&self) -> io::Result<Allotted> {
        let (plan, resources) = {
            let mut state = self.inner.state.lock();
            if state.standing == Standing::Called {
                state.standing = Standing::Uncalled;
                state.plan = self.planned(&state.resources, state.standing);
            }
            (state.plan.clone(), state.resources)
        };
        let key = self.inner.seat.key();
        let cores = plan.cores.map(|count| choose_cores(&key, count)).unwrap_or_default();
        let cage = self.inner.warden.cage(&self.inner.seat, &plan)?.map(Arc::new);
        let cgroup = cage.as_ref().map(|cage| cage.directories()).unwrap_or_default();
        let layers = cage.as_ref().map(|cage| cage.layers()).unwrap_or_default();
        self.inner.state.lock().live = Some(Live { cage, init: None });
        let cores_told = resources.cpu_cores;
        Ok(Allotted { plan, cgroup, layers, cores, cores_told, told: told(&resources) })
    }

    /// The run has processes, below `init`.
    pub(crate) fn started(&self, init: u32) {
        if let Some(live) = &mut self.inner.state.lock().live {
            live.init = Some(init);
        }
    }

    /// What limits did to this run so far.
    pub(crate) fn counts(&self) -> Counts {
        let cage = self.live_cage();
        cage.map(|cage| cage.counts()).unwrap_or_default()
    }

    /// Bytes of memory of the run that cannot be reclaimed, where its control group counts them.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.live_cage()?.memory()
    }

    fn live_cage(&self) -> Option<Arc<Cage>> {
        self.inner.state.lock().live.as_ref()?.cage.clone()
    }

    /// Ends the run's control group, with whatever is left in it, and tells what limits did.
    /// Blocks.
    pub(crate) fn end(&self) -> Counts {
        let Some(live) = self.inner.state.lock().live.take() else { return Counts::default() };
        let Some(cage) = live.cage else { return Counts::default() };
        let counts = cage.counts();
        if let Err(error) = cage.end() {
            tracing::warn!(instance = %self.inner.seat.key(), %error, "control group is left");
        }
        counts
    }

    /// Changes what `wish` names, at once where it runs and for every later start. Blocks. On
    /// error nothing has changed.
    pub(crate) fn change(&self, wish: &Resources) -> io::Result<()> {
        let _one_at_a_time = self.inner.changing.lock();
        if let (Some(wanted), Some(used)) = (wish.memory_bytes, self.memory())
            && wanted < used
        {
            let (wanted, used) = (Size(wanted), Size(used));
            return Err(io::Error::other(format!(
                "memory: it uses {used} now, and {wanted} would end it at once; restart it first"
            )));
        }
        let resources = wish.over(&self.resources());
        self.put_in_force(resources, self.standing())
    }

    /// Where the run stands among other plugins; each later one begins there too, if that is behind
    /// them.
    pub(crate) fn standing(&self) -> Standing {
        self.inner.state.lock().standing
    }

    /// Has the run stand elsewhere among other plugins where cores are scarce. False where it may
    /// not or cannot. Blocks. On error nothing has changed.
    pub(crate) fn stand(&self, standing: Standing) -> io::Result<bool> {
        let _one_at_a_time = self.inner.changing.lock();
        let resources = self.resources();
        if self.planned(&resources, standing) == self.inner.state.lock().plan {
            return Ok(false);
        }
        self.put_in_force(resources, standing).map(|()| true)
    }

    fn planned(&self, resources: &Resources, standing: Standing) -> Plan {
        let means = &self.inner.warden.means;
        limits::plan(resources, means).weighed(standing, means)
    }

    /// Holds the run, and each later one, to `resources`. Its caller holds `changing`.
    fn put_in_force(&self, resources: Resources, standing: Standing) -> io::Result<()> {
        let plan = self.planned(&resources, standing);
        let (before, live, init) = {
            let state = self.inner.state.lock();
            let live = state.live.as_ref();
            let cage = live.and_then(|live| live.cage.clone());
            (state.plan.clone(), cage, live.and_then(|live| live.init))
        };
        if let Some(init) = init {
            let take_back = || {
                let _ = set_rlimits(init, before.rlimits, plan.rlimits);
            };
            // What an ordinary user may be refused comes first.
            set_rlimits(init, plan.rlimits, before.rlimits).inspect_err(|_| take_back())?;
            let cage = self.adapt(live, &plan, init).inspect_err(|_| {
                take_back();
                if let Some(cage) = self.live_cage() {
                    let _ = cage.set(&before.needs);
                }
            })?;
            if let Some(live) = &mut self.inner.state.lock().live {
                live.cage = cage;
            }
        }
        let mut state = self.inner.state.lock();
        (state.resources, state.plan, state.standing) = (resources, plan, standing);
        Ok(())
    }

    /// Puts the plan's needs in force on a run; moves it into a control group where it had none
    /// for them.
    fn adapt(
        &self,
        cage: Option<Arc<Cage>>,
        plan: &Plan,
        init: u32,
    ) -> io::Result<Option<Arc<Cage>>> {
        let covered = |cage: &Arc<Cage>| plan.needs.iter().all(|it| cage.has(it.controller()));
        match cage {
            Some(cage) if covered(&cage) => {
                cage.set(&plan.needs)?;
                Ok(Some(cage))
            }
            None if plan.needs.is_empty() => Ok(None),
            _ => {
                let Some(cage) = self.inner.warden.cage(&self.inner.seat, plan)? else {
                    return Ok(None);
                };
                let cage = Arc::new(cage);
                // Kept before anything can fail, so that the end of the run removes it.
                let live = self.inner.state.lock().live.as_mut().map(|live| {
                    live.cage = Some(Arc::clone(&cage));
                });
                if live.is_none() {
                    // The run has ended meanwhile.
                    return cage.end().map(|()| None);
                }
                move_all(init, &cage.directories())?;
                Ok(Some(cage))
            }
        }
    }
}

/// Moves a jail's processes into control groups. Children that are made meanwhile follow in a
/// further round.
fn move_all(init: u32, directories: &[PathBuf]) -> io::Result<()> {
    const ROUNDS: usize = 3;
    for _ in 0..ROUNDS {
        for pid in std::iter::once(init).chain(stats::descendants(init)) {
            for directory in directories {
                match std::fs::write(directory.join("cgroup.procs"), pid.to_string()) {
                    // It has ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(SRCH) => {}
                    moved => moved?,
                }
            }
        }
    }
    Ok(())
}

const SRCH: i32 = rustix::io::Errno::SRCH.raw_os_error();

/// Holds each process below `init` to `limits`, where they are others than before: a program that
/// lowered its own is not disturbed for nothing.
fn set_rlimits(init: u32, limits: Limits, before: Limits) -> io::Result<()> {
    if limits == before {
        return Ok(());
    }
    let wanted = [
        (Resource::Nofile, limits.files),
        (Resource::Fsize, limits.file_size),
        (Resource::Data, limits.data),
        (Resource::Nproc, limits.processes),
        (Resource::Cpu, limits.cpu_seconds),
    ];
    for pid in stats::descendants(init) {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        for (resource, limit) in wanted {
            let Some(limit) = limit else { continue };
            // A second between the signal that names the reason and the one that cannot be
            // ignored, as the launcher has it.
            let grace = u64::from(resource == Resource::Cpu);
            let new = Rlimit { current: Some(limit), maximum: Some(limit.saturating_add(grace)) };
            match prlimit(Some(pid), resource, new) {
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => {
                    return Err(io::Error::new(
                        io::Error::from(error).kind(),
                        format!("{resource:?} of process {}: {error}", pid.as_raw_nonzero()),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Bytes that the files below `directory` take on disk, `None` where they are more than
/// [`DISK_ENTRIES_MAX`]. Symbolic links are not followed.
pub(crate) fn disk_use(directory: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut entries = 0;
    let mut waiting = vec![directory.to_path_buf()];
    while let Some(next) = waiting.pop() {
        let Ok(listed) = std::fs::read_dir(&next) else { continue };
        for entry in listed.flatten() {
            entries += 1;
            if entries > DISK_ENTRIES_MAX {
                return None;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Some(bytes)
}
