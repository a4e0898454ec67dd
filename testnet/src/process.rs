//! One child process: its output is kept, its end is noticed, and dropping it ends it.
//!
//! Signals go through a pidfd, so they can never reach a stranger that was given the same number.
//! Three threads serve each process (two pipes, one wait) and end with it: output is read even
//! while a test blocks its runtime, so no child ever stalls on a full pipe.

use std::{
    fmt::Write as _,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

pub use rustix::process::Signal;

use crate::output::{Channel, Output};

/// How long dropping a process waits for its pipes to end. A grandchild that inherited one would
/// hold it open; its thread is then left to the grandchild's end instead of hanging the test.
const PIPES_END_WITHIN: Duration = Duration::from_secs(1);

/// A running (or ended) child.
pub struct Process {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
    output: Output,
    ended: watch::Receiver<Option<ExitStatus>>,
    threads: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`; its output goes to `<name>.out.log` and `<name>.err.log` in `logs`.
    pub fn spawn(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = format!("{command:?}");
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        let pid = child.id();
        let opened = Pid::from_raw(pid.cast_signed()).context("a pid is positive")?;
        let pidfd = pidfd_open(opened, PidfdFlags::empty()).context("cannot hold its pid")?;

        let output = Output::new();
        let out = child.stdout.take().context("its output was asked for")?;
        let err = child.stderr.take().context("its errors were asked for")?;
        let mut threads = vec![
            output.follow(Channel::Out, out, &logs.join(format!("{name}.out.log")))?,
            output.follow(Channel::Err, err, &logs.join(format!("{name}.err.log")))?,
        ];
        let (told, ended) = watch::channel(None);
        let waiter = std::thread::Builder::new().name("wait".into());
        threads.push(waiter.spawn(move || {
            // `wait` fails only if somebody else reaped the child; its end is all that counts.
            let status = child.wait().unwrap_or_default();
            told.send_replace(Some(status));
        })?);
        Ok(Self { name: name.to_owned(), pid, pidfd, output, ended, threads })
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id. It may be another's once this one [has ended](Self::ended).
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it prints.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Sends `signal`; nothing happens when it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(anyhow!("cannot signal {}: {error}", self.name)),
        }
    }

    /// Waits for its end and says how it ended.
    pub async fn exit(&self, within: Duration) -> Result<ExitStatus> {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some);
        let end = tokio::time::timeout(within, end).await;
        let end = end.map_err(|_| anyhow!("{} still runs after {within:?}", self.name))?;
        end.ok().and_then(|status| *status).context("its end was not noticed")
    }

    /// Sends `SIGKILL` and waits until the kernel has taken it away.
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.exit(Duration::from_secs(10)).await.map(drop)
    }

    /// Its last `count` lines, each with its name in front: what a failure report shows.
    pub fn evidence(&self, count: usize) -> String {
        let state = match self.ended() {
            Some(status) => format!("ended: {status}"),
            None => format!("runs as process {}", self.pid),
        };
        let mut text = format!("--- {} ({state}), last lines:\n", self.name);
        for line in self.output.tail(count) {
            let _ = writeln!(text, "{} | {}", self.name, line.text);
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
        let deadline = Instant::now() + PIPES_END_WITHIN;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn output_and_exit_code_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let process = Process::spawn("p", shell("echo hello; exit 7"), dir.path()).expect("starts");
        let status = process.exit(Duration::from_secs(10)).await.expect("ends");
        assert_eq!(status.code(), Some(7));
        let hello = |line: &crate::output::Line| (line.text == "hello").then_some(());
        process.output().find(0, Duration::from_secs(10), hello).await.expect("printed");
        drop(process);
        assert_eq!(std::fs::read_to_string(dir.path().join("p.out.log")).expect("kept"), "hello\n");
    }

    #[tokio::test]
    async fn dropping_a_process_ends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let process = Process::spawn("p", shell("exec sleep 600"), dir.path()).expect("starts");
        let pid = process.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
