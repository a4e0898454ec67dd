//! One plugin's process in its jail: started through the launcher, watched through a pidfd,
//! spoken to over the control socket.
//!
//! Every path after the spawn ends with kill and reap, also when a [`Process`] is merely dropped.

use std::{
    collections::HashMap,
    fmt,
    io::{self, PipeReader},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use launcher::{JailSpec, Order, Report, control};
use parking_lot::Mutex;
use rustix::{
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::unix::AsyncFd,
    net::{TcpStream, unix::pipe},
    sync::{oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::spawner::Spawner;

/// How long the first process of a jail may take to end after it was told to kill everything.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartFailure {
    /// The layer that refused, or the step that failed.
    pub(crate) layer: String,
    pub(crate) reason: String,
    pub(crate) advice: String,
}

impl StartFailure {
    pub(crate) fn new(layer: &str, reason: impl fmt::Display) -> Self {
        Self { layer: layer.into(), reason: reason.to_string(), advice: String::new() }
    }

    /// The same start would be refused again: the sandbox or the program itself says no. What the
    /// host's own side could not do (a socket, a fork, a jail in time) may go better later.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self.layer.as_str(), "launcher" | "program" | "sockets")
    }
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.layer, self.reason)?;
        if !self.advice.is_empty() {
            write!(f, " ({})", self.advice)?;
        }
        Ok(())
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct End {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

impl End {
    /// With status 0.
    pub(crate) fn is_clean(self) -> bool {
        self.code == Some(0)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(9)) => f.write_str("signal 9 (killed)"),
            (None, Some(11)) => f.write_str("signal 11 (segmentation fault)"),
            (None, Some(6)) => f.write_str("signal 6 (aborted)"),
            (None, Some(24)) => f.write_str("signal 24 (CPU time used up)"),
            (None, Some(25)) => f.write_str("signal 25 (file too large)"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("killed with its jail"),
        }
    }
}

/// Output of a program.
pub(crate) struct Output {
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// A running program in its jail.
pub(crate) struct Process {
    /// The program, as seen from here.
    pub(crate) pid: u32,
    /// The first process of its jail.
    pub(crate) init: u32,
    /// Layers in force.
    pub(crate) layers: Vec<String>,
    /// Listens on its jail's loopback, for the egress proxy to accept on.
    pub(crate) egress: Option<OwnedFd>,
    control: Control,
    end: watch::Receiver<Option<End>>,
    pidfd: Option<AsyncFd<OwnedFd>>,
    spawner: Spawner,
    /// Its jail is a pid namespace: the end of the first process is the end of all.
    own_pids: bool,
    _reader: AbortOnDropHandle<()>,
}

impl Process {
    /// Prepares a start. Output is readable from the beginning, also where the start fails.
    pub(crate) fn start(spawner: &Spawner) -> Result<(Start, Output), StartFailure> {
        let failed = |error: io::Error| StartFailure::new("launcher", error);
        let (stdout, stdout_writer) = io::pipe().map_err(failed)?;
        let (stderr, stderr_writer) = io::pipe().map_err(failed)?;
        let output = Output {
            stdout: readable(stdout).map_err(failed)?,
            stderr: readable(stderr).map_err(failed)?,
        };
        let writers = [stdout_writer.into(), stderr_writer.into()];
        Ok((Start { spawner: spawner.clone(), output: writers }, output))
    }
}

fn readable(pipe: PipeReader) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(OwnedFd::from(pipe))
}

/// A start that has been prepared.
pub(crate) struct Start {
    spawner: Spawner,
    /// Where the program writes.
    output: [OwnedFd; 2],
}

impl Start {
    /// Has a launcher forked, sends it the spec, and waits until the program was executed.
    pub(crate) async fn run(
        self,
        spec: JailSpec,
        listener: Option<OwnedFd>,
        deadline: Instant,
    ) -> Result<Process, StartFailure> {
        let own_pids = spec.namespaces;
        let order = Order::Launch(Box::new(spec));
        let granted: Vec<BorrowedFd<'_>> =
            self.output.iter().chain(&listener).map(AsFd::as_fd).collect();
        let timed_out = |_| StartFailure::new("launcher", "the jail was not built in time");
        // The second time for a zygote that ended with the order in its hands.
        for _ in 0..2 {
            let mut starting = Starting {
                spawner: self.spawner.clone(),
                launcher: None,
                init: None,
                program: None,
                egress: None,
                own_pids,
            };
            let outcome = timeout_at(deadline, starting.follow(&order, &granted)).await;
            if let Some((socket, layers)) = outcome.map_err(timed_out)?? {
                return starting.into_process(socket, layers);
            }
        }
        Err(StartFailure::new(
            "launcher",
            "it ended without a word; is the configured launcher command one?",
        ))
    }
}

/// This process's end of a control socket, and the launcher's.
fn control_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_passcred(&near, true)?;
    rustix::io::ioctl_fionbio(&near, true)?;
    Ok((near, far))
}

/// Between fork and exec. Dropping it kills and reaps whatever is there.
struct Starting {
    spawner: Spawner,
    launcher: Option<OwnedFd>,
    init: Option<(u32, OwnedFd)>,
    program: Option<u32>,
    egress: Option<OwnedFd>,
    own_pids: bool,
}

impl Starting {
    /// `None` where the other end closed before anybody spoke.
    async fn follow(
        &mut self,
        order: &Order,
        granted: &[BorrowedFd<'_>],
    ) -> Result<Option<(AsyncFd<OwnedFd>, Vec<String>)>, StartFailure> {
        let failed = |error: io::Error| StartFailure::new("launcher", error);
        let (near, far) = control_sockets().map_err(failed)?;
        // Before the fork: it finds its order there.
        control::send(&near, order, granted.iter().copied(), SendFlags::empty()).map_err(failed)?;
        self.spawner.launch(far).await.map_err(failed)?;
        let socket = watched(near).map_err(failed)?;
        loop {
            let Some(mut received) = receive(&socket).await.map_err(failed)? else {
                return match self.launcher {
                    None => Ok(None),
                    Some(_) => Err(StartFailure::new("launcher", "it ended without a reason")),
                };
            };
            match received.message {
                Report::Outside => self.launcher = received.descriptors.pop(),
                Report::Init => self.init = received.pid.map(hold).transpose().map_err(failed)?,
                Report::Program => self.program = received.pid,
                Report::Egress => self.egress = received.descriptors.pop(),
                Report::Started { layers } => return Ok(Some((socket, layers))),
                Report::Refused { layer, reason, advice } => {
                    return Err(StartFailure { layer, reason, advice });
                }
                Report::Connected { .. } | Report::NotConnected { .. } | Report::Ended { .. } => {}
            }
        }
    }

    fn into_process(
        mut self,
        socket: AsyncFd<OwnedFd>,
        layers: Vec<String>,
    ) -> Result<Process, StartFailure> {
        let (Some((init, pidfd)), Some(pid)) = (self.init.take(), self.program) else {
            return Err(StartFailure::new("launcher", "it did not say which processes it made"));
        };
        let pidfd = watched(pidfd).map_err(|error| StartFailure::new("launcher", error))?;
        let control = Control {
            inner: Arc::new(ControlInner {
                socket,
                next: AtomicU64::new(0),
                waiting: Mutex::new(HashMap::new()),
            }),
        };
        let (ended, end) = watch::channel(None);
        let reader = tokio::spawn(read_reports(control.clone(), ended));
        Ok(Process {
            pid,
            init,
            layers,
            egress: self.egress.take(),
            control,
            end,
            pidfd: Some(pidfd),
            spawner: self.spawner.clone(),
            own_pids: self.own_pids,
            _reader: AbortOnDropHandle::new(reader),
        })
    }
}

/// Registers a descriptor with the runtime.
#[allow(
    deprecated,
    reason = "the successor is unsafe for types that could replace their descriptor; `OwnedFd` \
              cannot, and `unsafe` has its home in the launcher alone"
)]
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// Holds the first process. It is this process's child and not reaped, so its pid is its own.
fn hold(pid: u32) -> io::Result<(u32, OwnedFd)> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| io::Error::other("not a pid"))?;
    Ok((pid, pidfd_open(raw, PidfdFlags::empty())?))
}

impl Drop for Starting {
    fn drop(&mut self) {
        // It has ended already unless the start failed.
        if let Some(launcher) = self.launcher.take() {
            let _ = pidfd_send_signal(&launcher, Signal::KILL);
            self.spawner.reap(launcher);
        }
        if let Some((_, pidfd)) = self.init.take() {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            self.spawner.reap(pidfd);
        }
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<control::Received<Report>>> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| control::recv(socket.get_ref(), RecvFlags::DONTWAIT));
        // An error here means that it was not readable after all.
        if let Ok(received) = received {
            return received;
        }
    }
}

async fn read_reports(control: Control, ended: watch::Sender<Option<End>>) {
    let mut end = None;
    while let Ok(Some(received)) = receive(&control.inner.socket).await {
        match received.message {
            Report::Connected { id } => {
                let came = received.descriptors.into_iter().next();
                let answer = came.ok_or_else(|| "no descriptor came".to_owned());
                control.answer(id, answer);
            }
            Report::NotConnected { id, reason } => control.answer(id, Err(reason)),
            Report::Ended { code, signal } => end = Some(End { code, signal }),
            _ => {}
        }
    }
    // The first process has ended, and so has everything in its jail.
    control.inner.waiting.lock().clear();
    ended.send_replace(Some(end.unwrap_or_default()));
}

/// The way to the first process of a jail. Clones are the same socket.
#[derive(Clone)]
pub(crate) struct Control {
    inner: Arc<ControlInner>,
}

struct ControlInner {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<OwnedFd, String>>>>,
}

impl Control {
    /// Connects to `port` of the jail's loopback.
    pub(crate) async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.inner.waiting.lock().insert(id, answer);
        let _forget = Forget(&self.inner, id);
        self.send(&Order::Connect { id, port })?;
        let gone = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let descriptor = answered.await.map_err(|_| gone())?.map_err(io::Error::other)?;
        let stream = std::net::TcpStream::from(descriptor);
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        // It may still be connecting.
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    fn send(&self, order: &Order) -> io::Result<()> {
        control::send(self.inner.socket.get_ref(), order, None, SendFlags::DONTWAIT)
    }

    fn answer(&self, id: u64, answer: Result<OwnedFd, String>) {
        if let Some(waiting) = self.inner.waiting.lock().remove(&id) {
            // Whoever waited may have given up; then the descriptor closes.
            let _ = waiting.send(answer);
        }
    }
}

/// Removes a question whose asker went away.
struct Forget<'a>(&'a ControlInner, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(&self.1);
    }
}

impl Process {
    /// The way to its jail.
    pub(crate) fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until the program, and everything in its jail, has ended. Cancel-safe.
    pub(crate) async fn ended(&self) -> End {
        let mut end = self.end.clone();
        let found = end.wait_for(Option::is_some).await.map(|end| end.unwrap_or_default());
        // The first process closes the socket as it ends; its pidfd says that it has.
        if let Some(pidfd) = &self.pidfd {
            let _ = pidfd.readable().await;
        }
        found.unwrap_or_default()
    }

    /// Asks it to end, waits up to `grace`, and then ends it. Everything in its jail is gone
    /// afterwards. True where it ended by itself.
    pub(crate) async fn stop(mut self, grace: Duration) -> (End, bool) {
        let asked = !grace.is_zero() && self.control.send(&Order::Stop).is_ok();
        if asked && let Ok(end) = timeout(grace, self.ended()).await {
            self.reap();
            return (end, true);
        }
        let _ = self.control.send(&Order::Kill);
        if timeout(KILL_PATIENCE, self.ended()).await.is_err() {
            self.signal_init();
        }
        let end = self.ended().await;
        self.reap();
        (end, false)
    }

    fn signal_init(&self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
        }
    }

    fn reap(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            self.spawner.reap(pidfd.into_inner());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.pidfd.is_some() {
            let _ = self.control.send(&Order::Kill);
            // Without a pid namespace the first process is needed to find all others.
            if self.own_pids {
                self.signal_init();
            }
            self.reap();
        }
    }
}
