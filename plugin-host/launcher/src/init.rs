//! The first process of a jail: forks the program, reaps what it leaves, connects to it on the
//! host's request, forwards the wish to stop, and ends with the host.

use std::{
    fs,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketFlags, SocketType, ipproto},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitOptions},
};

use crate::{
    control::{self, Order, Report},
    jail::{Layer, Layers, Refusal},
    program::{self, Program},
    spec::JailSpec,
    sys::{self, Fork},
};

/// Forks the program and stays until it, or the host, has ended.
pub(crate) fn run(
    spec: JailSpec,
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
            let program = Program { spec: &spec, control, listener, parent: this, told };
            sys::exit_now(program.begin())
        }
        Fork::Parent(program) => program,
    };
    drop((told, listener));
    if !executed(outcome, &mut layers)? {
        return Ok(());
    }
    leave_standard_streams();
    let mut init = Init { control, watch, program, namespaces: spec.namespaces };
    init.tell(&Report::Started { layers });
    // From here on it only waits, as long as the plugin lives.
    drop(spec);
    sys::give_memory_back();
    init.serve();
    Ok(())
}

/// Waits until the program was executed, which closes the pipe, and adds the layers that it put
/// on itself. False where it could not be; then the program has told the host why.
fn executed(outcome: OwnedFd, layers: &mut Layers) -> Result<bool, Refusal> {
    let mut text = String::new();
    fs::File::from(outcome).read_to_string(&mut text).layer("launcher", "read")?;
    layers.extend(text.lines().filter(|line| *line != program::REFUSED).map(String::from));
    Ok(!text.ends_with(program::REFUSED))
}

/// The program's output is the program's alone, so that its end is seen.
fn leave_standard_streams() {
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        for number in 1..=2 {
            let _ = sys::place(&null, number);
        }
    }
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
        let mut bytes = [0; control::ORDER_BYTES_MAX];
        match control::recv_into::<Order>(self.control, &mut bytes, RecvFlags::DONTWAIT) {
            Ok(Some(received)) => match received.message {
                Order::Connect { id, port } => self.connect(id, port),
                Order::Stop => {
                    // The program made a session, hence a group: shells and npm pass nothing on.
                    if rustix::process::kill_process_group(self.program, Signal::TERM).is_err() {
                        let _ = rustix::process::kill_process(self.program, Signal::TERM);
                    }
                }
                Order::Kill => return Next::End,
                Order::Launch(_) | Order::Fork => {}
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
