//! The launcher outside, and the order in which the jail is built inside.
//!
//! Outside, with whatever rights the host has: open the sources of the private root, make the
//! first process in all new namespaces at once, write its id maps, leave. Inside, in this order:
//! control groups, own id, tie to the host, host name and loopback, private root, no further user
//! namespaces, no capabilities, no new privileges; then [`crate::init`] forks the program.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    net::{RecvFlags, SendFlags},
    process::{DumpableBehavior, Pid, PidfdFlags, Signal},
    thread::{CapabilitySet, CapabilitySets},
};

use crate::{
    control::{self, Order, Report},
    egress,
    groups::Groups,
    init,
    root::{self, Trees},
    spec::{INSIDE_ID, JailSpec},
    sys::{self, Fork},
    zygote,
};

/// A layer that could not be had.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) layer: &'static str,
    pub(crate) reason: String,
    pub(crate) advice: &'static str,
}

impl Refusal {
    pub(crate) fn new(layer: &'static str, reason: impl fmt::Display) -> Self {
        Self { layer, reason: reason.to_string(), advice: "" }
    }

    pub(crate) fn advise(mut self, advice: &'static str) -> Self {
        self.advice = advice;
        self
    }

    pub(crate) fn report(self) -> Report {
        Report::Refused {
            layer: self.layer.into(),
            reason: self.reason,
            advice: self.advice.into(),
        }
    }
}

/// Turns the failure of a step into the refusal of its layer.
pub(crate) trait Layer<T> {
    fn layer(self, layer: &'static str, doing: &str) -> Result<T, Refusal>;
}

impl<T, E: fmt::Display> Layer<T> for Result<T, E> {
    fn layer(self, layer: &'static str, doing: &str) -> Result<T, Refusal> {
        self.map_err(|error| Refusal::new(layer, format!("{doing}: {error}")))
    }
}

/// The layers in force, in the order in which they were made.
pub(crate) type Layers = Vec<String>;

/// The whole life of what the host started: a zygote, or the launcher of one jail; the first order
/// tells.
pub(crate) fn begin() -> ExitCode {
    // Nothing of the host's but the three standard descriptors may come along.
    let closed = sys::close_from(3, true);
    let Ok(control) = sys::adopt(0) else { return not_by_hand() };
    let Ok(Some(order)) = control::recv::<Order>(&control, RecvFlags::empty()) else {
        return not_by_hand();
    };
    match (closed, order.message) {
        (Ok(()), Order::Fork) => zygote::serve(control, order.descriptors),
        (Ok(()), Order::Launch(spec)) => launch(&control, *spec, order.descriptors),
        (Err(error), _) => {
            let refusal = Refusal::new("descriptors", format!("close_range: {error}"));
            // The host may be gone; then nobody waits for the reason.
            let report = refusal.advise("use Linux 5.9 or later").report();
            let _ = control::send(&control, &report, None, SendFlags::empty());
            ExitCode::FAILURE
        }
        _ => not_by_hand(),
    }
}

fn not_by_hand() -> ExitCode {
    eprintln!("the launcher is started by the plugin host, with a socket as standard input");
    ExitCode::FAILURE
}

/// The launcher of one jail.
pub(crate) fn launch(control: &OwnedFd, spec: JailSpec, descriptors: Vec<OwnedFd>) -> ExitCode {
    match outside(spec, control, descriptors) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            // As above.
            let _ = control::send(control, &refusal.report(), None, SendFlags::empty());
            ExitCode::FAILURE
        }
    }
}

fn outside(spec: JailSpec, control: &OwnedFd, descriptors: Vec<OwnedFd>) -> Result<(), Refusal> {
    introduce(control)?;
    let listener = standard_streams(&spec, descriptors)?;
    prefer_plugins_when_memory_ends();

    // With an id of its own the program could not reach what only the host's user may read; so it
    // is opened here, where ids can also be mapped. With the host's id it is opened inside.
    let separate = spec.outside_id.is_some();
    let trees = if spec.namespaces && separate { Some(Trees::open(&spec)?) } else { None };
    let (go, gate) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).layer("launcher", "pipe")?;
    let flags = if spec.namespaces { namespaces(&spec) } else { 0 };
    let groups = Groups::open(&spec.cgroup)?;
    match groups.clone_into(flags)? {
        Fork::Child => {
            drop(gate);
            let jail = Jail { spec, control, listener, trees, go, groups };
            sys::exit_now(jail.live())
        }
        Fork::Parent(first) => {
            if spec.namespaces {
                write_id_maps(&spec, first)?;
            }
            rustix::io::write(&gate, b"g").layer("launcher", "let the jail begin")?;
            Ok(())
        }
    }
}

/// Tells the host which process this is: its child, which it reaps.
fn introduce(control: &OwnedFd) -> Result<(), Refusal> {
    let handle = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
        .layer("launcher", "pidfd_open")?;
    control::send(control, &Report::Outside, Some(handle.as_fd()), SendFlags::empty())
        .layer("launcher", "tell the host")
}

/// Puts the standard streams in their places and returns the listener.
fn standard_streams(
    spec: &JailSpec,
    descriptors: Vec<OwnedFd>,
) -> Result<Option<OwnedFd>, Refusal> {
    const LAYER: &str = "descriptors";
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .layer(LAYER, "open /dev/null")?;
    sys::place(&null, 0).layer(LAYER, "standard input")?;
    let expected = if spec.output { 2 } else { 0 } + usize::from(spec.listener);
    if descriptors.len() != expected {
        let reason = format!("{} came with the spec instead of {expected}", descriptors.len());
        return Err(Refusal::new(LAYER, reason));
    }
    let mut descriptors = descriptors.into_iter();
    if spec.output {
        for (number, stream) in (1..=2).zip(&mut descriptors) {
            sys::place(&stream, number).layer(LAYER, "standard output")?;
        }
    }
    // In its place from the beginning, before anything of the launcher's can have that number.
    descriptors
        .next()
        .map(|listener| sys::renumber(listener, 3))
        .transpose()
        .layer(LAYER, "listener")
}

fn namespaces(spec: &JailSpec) -> libc::c_int {
    let net = if spec.host_network { 0 } else { libc::CLONE_NEWNET };
    libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | net
}

const NAMESPACE_ADVICE: &str = "allow user namespaces (sysctl user.max_user_namespaces, \
     kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or, in a \
     container, give it the right to make them; or set the operator policy `namespaces: off`";

pub(crate) fn no_namespaces(error: &io::Error) -> Refusal {
    Refusal::new("namespaces", format!("clone: {error}")).advise(NAMESPACE_ADVICE)
}

/// One id inside, one outside.
fn write_id_maps(spec: &JailSpec, first: Pid) -> Result<(), Refusal> {
    let proc = format!("/proc/{}", first.as_raw_nonzero());
    let write = |file: &str, text: String| {
        fs::write(format!("{proc}/{file}"), text)
            .layer("user-ns", &format!("write {file}"))
            .map_err(|refusal| refusal.advise(NAMESPACE_ADVICE))
    };
    if spec.outside_id.is_none() {
        // Without rights over other ids, groups must be fixed before one may be mapped.
        write("setgroups", "deny".into())?;
    }
    let user = spec.outside_id.unwrap_or_else(|| rustix::process::getuid().as_raw());
    let group = spec.outside_id.unwrap_or_else(|| rustix::process::getgid().as_raw());
    write("uid_map", format!("{INSIDE_ID} {user} 1"))?;
    write("gid_map", format!("{INSIDE_ID} {group} 1"))
}

/// When memory ends, a plugin goes before the node does. Not a layer: without it the kernel
/// chooses by size alone.
fn prefer_plugins_when_memory_ends() {
    let _ = fs::write("/proc/self/oom_score_adj", "500");
}

/// What the first process of a jail begins with.
struct Jail<'a> {
    spec: JailSpec,
    control: &'a OwnedFd,
    listener: Option<OwnedFd>,
    trees: Option<Trees>,
    go: OwnedFd,
    groups: Groups,
}

impl Jail<'_> {
    /// Builds the jail, runs the program, and returns the exit status of the first process.
    fn live(self) -> i32 {
        let control = self.control;
        if control::send(control, &Report::Init, None, SendFlags::empty()).is_err() {
            return 1;
        }
        let Jail { spec, listener, trees, go, groups, .. } = self;
        // Before all else: nothing of the plugin's is made that is not counted and limited.
        let joined = groups.join();
        if joined.is_ok() && !told(&go) {
            // The launcher could not write the id maps, and has said so.
            return 1;
        }
        drop(go);
        let built = joined.and_then(|()| build(&spec, trees, control));
        match built.and_then(|layers| init::run(spec, control, listener, layers)) {
            Ok(()) => 0,
            Err(refusal) => {
                let _ = control::send(control, &refusal.report(), None, SendFlags::empty());
                1
            }
        }
    }
}

/// Everything between the new namespaces and the fork of the program.
fn build(spec: &JailSpec, trees: Option<Trees>, control: &OwnedFd) -> Result<Layers, Refusal> {
    let mut layers = Layers::new();
    if !spec.cgroup.is_empty() {
        layers.push("cgroup".into());
    }
    // Away from the terminal's process group: Ctrl-C is for the node.
    rustix::process::setsid().layer("session", "setsid")?;
    if spec.namespaces {
        become_inside_id()?;
        die_with_the_host(control)?;
        for layer in ["user-ns", "pid-ns", "mount-ns", "ipc-ns", "uts-ns"] {
            layers.push(layer.into());
        }
        if spec.outside_id.is_some() {
            layers.push("separate-uid".into());
        }
        sys::set_host_name(&spec.name).layer("uts-ns", "sethostname")?;
        if spec.host_network {
            layers.push("host-network".into());
        } else {
            loopback()?;
            layers.push("net-ns".into());
            if let Some(port) = spec.egress {
                egress::hand_over(port, control)?;
                layers.push("egress-proxy".into());
            }
        }
        let trees = match trees {
            Some(trees) => trees,
            None => Trees::open(spec)?,
        };
        root::enter(&spec.root, trees)?;
        layers.push("private-root".into());
        sys::own_cgroup_namespace().layer("cgroup-ns", "unshare")?;
        layers.push("cgroup-ns".into());
        no_more_user_namespaces()?;
        layers.push("no-nested-user-ns".into());
    } else {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .layer("lifeline", "become the reaper of what the plugin leaves")?;
    }
    drop_capabilities()?;
    layers.push("no-capabilities".into());
    rustix::thread::set_no_new_privs(true).layer("no-new-privs", "prctl")?;
    layers.push("no-new-privs".into());
    // The program runs under the same id: it must not be able to look into its first process.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .layer("no-ptrace-of-init", "prctl")?;
    layers.push("lifeline".into());
    Ok(layers)
}

/// Waits until the launcher lets the jail begin; false where it ended before.
fn told(go: &OwnedFd) -> bool {
    matches!(rustix::io::read(go, &mut [0_u8; 1]), Ok(1))
}

fn become_inside_id() -> Result<(), Refusal> {
    let group = rustix::process::Gid::from_raw(INSIDE_ID);
    let user = rustix::process::Uid::from_raw(INSIDE_ID);
    // Where the host is not root, groups were fixed by `deny`, and the host's stay; they map to
    // nothing inside.
    let _ = rustix::thread::set_thread_groups(&[]);
    rustix::thread::set_thread_res_gid(group, group, group).layer("user-ns", "setresgid")?;
    rustix::thread::set_thread_res_uid(user, user, user).layer("user-ns", "setresuid")
}

/// The second cord beside the lifeline: the kernel kills the first process, and with it all, when
/// the host's spawner thread ends. Set after the last change of id, which would clear it.
pub(crate) fn die_with_the_host(control: &OwnedFd) -> Result<(), Refusal> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .layer("lifeline", "prctl")?;
    // The host may have ended before that. getppid says nothing across pid namespaces; the
    // lifeline does.
    let mut polled = [PollFd::new(control, PollFlags::RDHUP)];
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&none)).layer("lifeline", "poll")?;
    if polled[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP) {
        return Err(Refusal::new("lifeline", "the host has ended"));
    }
    Ok(())
}

fn loopback() -> Result<(), Refusal> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .layer("net-ns", "socket")?;
    sys::loopback_up(socket.as_fd()).layer("net-ns", "bring loopback up")
}

/// A user namespace of the plugin's own would give it back every capability within it, and with
/// them the kernel's least tested doors.
fn no_more_user_namespaces() -> Result<(), Refusal> {
    fs::write("/proc/sys/user/max_user_namespaces", "0")
        .layer("no-nested-user-ns", "write /proc/sys/user/max_user_namespaces")
}

fn drop_capabilities() -> Result<(), Refusal> {
    const LAYER: &str = "no-capabilities";
    let has = rustix::thread::capabilities(None).layer(LAYER, "capget")?;
    if (has.effective | has.permitted | has.inheritable).is_empty() {
        // An ordinary user without namespaces. It may not shrink the bounding set, and with no
        // new privileges it never gains what is in it.
        return Ok(());
    }
    for number in 0..64 {
        let Some(capability) = CapabilitySet::from_bits(1 << number) else { continue };
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last one this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(Refusal::new(LAYER, format!("bounding set: {error}"))),
        }
    }
    rustix::thread::clear_ambient_capability_set().layer(LAYER, "ambient set")?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none).layer(LAYER, "capset")
}
