//! The one thread that has processes made, and reaps them.
//!
//! It starts the zygote, which forks a launcher for each plugin, and starts another where that one
//! has ended: plugins do not notice. The thread lives as long as any process it had made, because
//! the kernel ties a child's death signal to the *thread* that made it, and the zygote's forks
//! inherit the parent of the zygote.

use std::{
    ffi::OsString,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use launcher::{Order, control};
use rustix::{
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
    process::{WaitId, WaitIdOptions},
};
use tokio::sync::oneshot;

/// How long an order to the zygote may take. It reads at once, unless somebody stopped it.
const ORDER_PATIENCE: Duration = Duration::from_secs(5);

/// The way to the thread. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Spawner {
    jobs: mpsc::Sender<Job>,
}

enum Job {
    /// Have a launcher forked that obeys this end of a control socket.
    Launch(OwnedFd, oneshot::Sender<io::Result<()>>),
    /// Wait for a child that has ended, or is about to.
    Reap(OwnedFd),
}

impl Spawner {
    /// `launcher` is the command that behaves as one; it is put into the control groups `groups`.
    pub(crate) fn start(launcher: Vec<OsString>, groups: Vec<PathBuf>) -> io::Result<Self> {
        // Unbounded, and still small: each supervisor has at most one job of each kind in it.
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("plugin-spawner".into());
        thread
            .spawn(move || Launchers { command: launcher, groups, zygote: None }.serve(&queue))?;
        Ok(Self { jobs })
    }

    /// Has a launcher forked that obeys `control`.
    pub(crate) async fn launch(&self, control: OwnedFd) -> io::Result<()> {
        let (answer, asked) = oneshot::channel();
        let gone = || io::Error::other("the spawner thread has ended");
        self.jobs.send(Job::Launch(control, answer)).map_err(|_| gone())?;
        asked.await.map_err(|_| gone())?
    }

    /// Reaps the child that `pidfd` holds.
    pub(crate) fn reap(&self, pidfd: OwnedFd) {
        // The thread ends after the last of its handles.
        let _ = self.jobs.send(Job::Reap(pidfd));
    }
}

/// What the thread owns.
struct Launchers {
    command: Vec<OsString>,
    groups: Vec<PathBuf>,
    zygote: Option<Zygote>,
}

impl Launchers {
    fn serve(mut self, queue: &mpsc::Receiver<Job>) {
        // Ahead of the first plugin. Where it fails, the first plugin is told why.
        self.zygote = Zygote::start(&self.command, &self.groups).ok();
        for job in queue {
            match job {
                Job::Launch(control, answer) => {
                    // Whoever waited may have given up; then the launcher reads the end of its
                    // control socket.
                    let _ = answer.send(self.launch(&control));
                }
                Job::Reap(pidfd) => {
                    let id = WaitId::PidFd(pidfd.as_fd());
                    let _ = rustix::process::waitid(id, WaitIdOptions::EXITED);
                }
            }
        }
    }

    fn launch(&mut self, control: &OwnedFd) -> io::Result<()> {
        if let Some(zygote) = &self.zygote {
            match zygote.fork(control) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, "the zygote has ended; starting another"),
            }
        }
        // The old one first, which is reaped.
        self.zygote = None;
        let zygote = Zygote::start(&self.command, &self.groups)?;
        self.zygote.insert(zygote).fork(control)
    }
}

/// The process that forks launchers.
struct Zygote {
    process: Child,
    orders: OwnedFd,
}

impl Zygote {
    fn start(command: &[OsString], groups: &[PathBuf]) -> io::Result<Self> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(io::Error::other("no launcher command is configured"));
        };
        let (orders, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&orders, Timeout::Send, Some(ORDER_PATIENCE))?;
        let process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(far))
            .stdout(Stdio::null())
            .env_clear()
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", program.to_string_lossy()))
            })?;
        for group in groups {
            // Where it stays among the node's own processes it weighs more, and no less.
            if let Err(error) = fs::write(group.join("cgroup.procs"), process.id().to_string()) {
                tracing::debug!(group = %group.display(), %error, "the zygote is not in its group");
            }
        }
        Ok(Self { process, orders })
    }

    fn fork(&self, control: &OwnedFd) -> io::Result<()> {
        control::send(&self.orders, &Order::Fork, Some(control.as_fd()), SendFlags::empty())
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It holds nothing and has no children.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
