//! The first process of a jail: forks the program, reaps what it leaves, connects to it on the
//! host's request, forwards the wish to stop, and ends with the host.

use std::{
    ffi::CString,
    fs,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketFlags, SocketType, ipproto},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Resource, Rlimit, Signal, WaitOptions},
};

use crate::{
    control::{self, Order, Report},
    jail::{Layer, Layers, Refusal},
    spec::{JailSpec, Limits},
    sys::{self, Fork},
};

/// Forks the program and stays until it, or the host, has ended.
pub(crate) fn run(
    spec: &JailSpec,
    control: &OwnedFd,
    listener: Option<OwnedFd>,
    mut layers: Layers,
) -> Result<(), Refusal> {
    let watch = sys::watch_children().layer("launcher", "watch children")?;
    let (outcome, told) = pipe_with(PipeFlags::CLOEXEC).layer("launcher", "pipe")?;
    let this = rustix::process::getpid();
    let program = match sys::fork().layer("program", "fork")? {
        Fork::Child => {
            drop(outcome);
            let refusal = become_program(spec, control, listener.as_ref(), this);
            let text = format!("{}\n{}\n{}", refusal.layer, refusal.advice, refusal.reason);
            let _ = rustix::io::write(&told, text.as_bytes());
            sys::exit_now(127)
        }
        Fork::Parent(program) => program,
    };
    drop((told, listener));
    executed(outcome)?;
    leave_standard_streams();
    for layer in ["own-session", "closed-descriptors", "clean-environment", "rlimits"] {
        layers.push(layer.into());
    }
    if spec.limits.data.is_some() {
        layers.push("rlimit-memory".into());
    }
    let mut init = Init { control, watch, program, namespaces: spec.namespaces };
    init.tell(&Report::Started { layers });
    init.serve();
    Ok(())
}

/// Waits until the program was executed, which closes the pipe, or says why not.
fn executed(outcome: OwnedFd) -> Result<(), Refusal> {
    let mut text = String::new();
    fs::File::from(outcome).read_to_string(&mut text).layer("launcher", "read")?;
    if text.is_empty() {
        return Ok(());
    }
    let mut parts = text.splitn(3, '\n');
    let layer = if parts.next() == Some("exec") { "exec" } else { "program" };
    let advised = parts.next() == Some(EXEC_ADVICE);
    let refusal = Refusal::new(layer, parts.next().unwrap_or_default());
    Err(if advised { refusal.advise(EXEC_ADVICE) } else { refusal })
}

/// The program's output is the program's alone, so that its end is seen.
fn leave_standard_streams() {
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        for number in 1..=2 {
            let _ = sys::place(&null, number);
        }
    }
}

const EXEC_ADVICE: &str = "the program, its interpreter and its libraries must be visible inside \
     the jail, readable and executable: name further directories as read paths";

/// The last steps before exec; returns only if one fails.
fn become_program(
    spec: &JailSpec,
    control: &OwnedFd,
    listener: Option<&OwnedFd>,
    parent: Pid,
) -> Refusal {
    match prepare(spec, control, listener, parent) {
        Err(refusal) => refusal,
        Ok((argv, env)) => {
            let error = sys::exec(&argv[0], &argv, &env);
            Refusal::new("exec", format!("{}: {error}", spec.argv[0])).advise(EXEC_ADVICE)
        }
    }
}

type Strings = Vec<CString>;

fn prepare(
    spec: &JailSpec,
    control: &OwnedFd,
    listener: Option<&OwnedFd>,
    parent: Pid,
) -> Result<(Strings, Strings), Refusal> {
    sys::reset_signals();
    rustix::process::setsid().layer("session", "setsid")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .layer("lifeline", "prctl")?;
    if rustix::process::getppid() != Some(parent) {
        return Err(Refusal::new("lifeline", "the first process has ended"));
    }
    limit(spec.limits)?;
    rustix::process::chdir(&spec.working_dir).map_err(|error| {
        Refusal::new("exec", format!("working directory {}: {error}", spec.working_dir.display()))
            .advise(EXEC_ADVICE)
    })?;
    inside_root(spec)?;
    control::send(control, &Report::Program, None, SendFlags::empty())
        .layer("launcher", "tell the host")?;
    let mut granted = 3;
    let mut env = spec.env.clone();
    if let Some(listener) = listener {
        sys::place(listener, 3).layer("descriptors", "place the listener")?;
        granted = 4;
        env.push(("LISTEN_FDS".into(), "1".into()));
        env.push(("LISTEN_PID".into(), rustix::process::getpid().as_raw_nonzero().to_string()));
    }
    sys::close_from(granted, false).layer("descriptors", "close_range")?;
    if spec.argv.is_empty() {
        return Err(Refusal::new("exec", "no program is named"));
    }
    let argv = strings(spec.argv.iter().cloned())?;
    let env = strings(env.into_iter().map(|(name, value)| format!("{name}={value}")))?;
    Ok((argv, env))
}

/// A working directory that escaped the root would be a way out of it (CVE-2024-21626).
fn inside_root(spec: &JailSpec) -> Result<(), Refusal> {
    let here = std::env::current_dir().layer("private-root", "working directory")?;
    if spec.namespaces && !here.is_absolute() {
        return Err(Refusal::new("private-root", "the working directory is outside of the jail"));
    }
    Ok(())
}

fn strings(texts: impl Iterator<Item = String>) -> Result<Strings, Refusal> {
    texts.map(CString::new).collect::<Result<_, _>>().layer("exec", "a text contains a zero byte")
}

fn limit(limits: Limits) -> Result<(), Refusal> {
    let wanted = [
        (Resource::Core, Some(0), "core"),
        (Resource::Nofile, limits.files, "open files"),
        (Resource::Fsize, limits.file_size, "file size"),
        (Resource::Data, limits.data, "memory"),
        (Resource::Nproc, limits.processes, "processes"),
    ];
    for (resource, wanted, name) in wanted {
        let Some(wanted) = wanted else { continue };
        // More than the host itself may have cannot be given.
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Some(wanted.min(most));
        rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })
            .layer("rlimits", name)?;
    }
    Ok(())
}

struct Init<'a> {
    control: &'a OwnedFd,
    watch: OwnedFd,
    program: Pid,
    namespaces: bool,
}

/// Whether the first process goes on.
enum Next {
    Stay,
    End,
}

impl Init<'_> {
    /// Runs until the program or the host has ended.
    fn serve(&mut self) {
        loop {
            let mut polled =
                [PollFd::new(self.control, PollFlags::IN), PollFd::new(&self.watch, PollFlags::IN)];
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None)).is_err() {
                break;
            }
            let children = !polled[1].revents().is_empty();
            let host = !polled[0].revents().is_empty();
            if children && matches!(self.reap(), Next::End) {
                break;
            }
            if host && matches!(self.obey(), Next::End) {
                break;
            }
        }
        if !self.namespaces {
            self.kill_all();
        }
        // In a pid namespace the kernel kills all others when this process ends.
    }

    fn obey(&self) -> Next {
        match control::recv::<Order>(self.control, RecvFlags::DONTWAIT) {
            Ok(Some(received)) => match received.message {
                Order::Connect { id, port } => self.connect(id, port),
                Order::Stop => {
                    // The program made a session, hence a group: shells and npm pass nothing on.
                    if rustix::process::kill_process_group(self.program, Signal::TERM).is_err() {
                        let _ = rustix::process::kill_process(self.program, Signal::TERM);
                    }
                }
                Order::Kill => return Next::End,
                Order::Launch(_) => {}
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => return Next::End,
        }
        Next::Stay
    }

    /// Begins a connection and hands it to the host at once; waiting for it here would hold up
    /// everybody else.
    fn connect(&self, id: u64, port: u16) {
        let connection = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(
                AddressFamily::INET,
                SocketType::STREAM,
                flags,
                Some(ipproto::TCP),
            )?;
            let address = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
            match rustix::net::connect(&socket, &address) {
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
                Err(error) => Err(error.into()),
            }
        };
        match connection() {
            Ok(socket) => {
                let report = Report::Connected { id };
                let flags = SendFlags::empty();
                let _ = control::send(self.control, &report, Some(socket.as_fd()), flags);
            }
            Err(error) => self.tell(&Report::NotConnected { id, reason: error.to_string() }),
        }
    }

    fn reap(&self) -> Next {
        // The content does not matter: one signal may stand for many children.
        let _ = rustix::io::read(&self.watch, &mut [0_u8; 1_024]);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.program && (status.exited() || status.signaled()) {
                self.tell(&Report::Ended {
                    code: status.exit_status(),
                    signal: status.terminating_signal(),
                });
                return Next::End;
            }
        }
        Next::Stay
    }

    fn tell(&self, report: &Report) {
        // A host that is gone is seen as the end of the socket.
        let _ = control::send(self.control, report, None, SendFlags::empty());
    }

    /// Without a pid namespace: kills every descendant, again and again, because each death gives
    /// its children to this process.
    fn kill_all(&self) {
        let own = rustix::process::getpid().as_raw_nonzero();
        loop {
            let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
            for child in children.unwrap_or_default().split_whitespace() {
                if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                    let _ = rustix::process::kill_process(child, Signal::KILL);
                }
            }
            // Also where the list cannot be read, at least the program goes.
            let _ = rustix::process::kill_process_group(self.program, Signal::KILL);
            if rustix::process::wait(WaitOptions::empty()).is_err() {
                return;
            }
        }
    }
}
