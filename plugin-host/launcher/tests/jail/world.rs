//! Starting jails as the host does, and asking them.

use std::{
    io::Read,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use blackhole_launcher::{
    Bind, JailSpec, Order, Report, RootSpec,
    control::{self, Received},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair,
    sockopt::set_socket_passcred,
};

/// Names another copy of the launcher, for runs as a user who cannot read the build directory.
pub const LAUNCHER: &str = "BH_TEST_LAUNCHER";

pub fn launcher() -> PathBuf {
    std::env::var_os(LAUNCHER)
        .map_or_else(|| env!("CARGO_BIN_EXE_bh-launcher").into(), PathBuf::from)
}

const OUTSIDE_ID: u32 = 2_000_000_007;

pub fn show(source: &str) -> Bind {
    Bind { source: source.into(), target: source.into(), optional: true, ..Bind::default() }
}

/// A jail in which `script` runs with what a shell needs and nothing else.
pub fn spec(script: &str) -> JailSpec {
    let system = ["/usr", "/bin", "/lib", "/lib64", "/sbin"].map(show).to_vec();
    JailSpec {
        name: "test".into(),
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        working_dir: "/tmp".into(),
        namespaces: true,
        landlock: true,
        seccomp: true,
        outside_id: rustix::process::getuid().is_root().then_some(OUTSIDE_ID),
        root: RootSpec { binds: system, tmp_bytes: 1 << 20, ..RootSpec::default() },
        ..JailSpec::default()
    }
}

pub struct Running {
    pub control: OwnedFd,
    pub launcher: Child,
    pub init: Option<u32>,
    pub program: Option<u32>,
}

impl Running {
    pub fn start(spec: &JailSpec) -> Self {
        Self::start_by(Command::new(launcher()), spec)
    }

    /// The same, with a launcher to which something was done.
    pub fn start_by(mut launcher: Command, spec: &JailSpec) -> Self {
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("socketpair");
        set_socket_passcred(&near, true).expect("passcred");
        let launcher = launcher
            .env("SECRET_OF_THE_HOST", "x")
            .stdin(Stdio::from(far))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the launcher starts");
        let order = Order::Launch(Box::new(spec.clone()));
        control::send(&near, &order, None, SendFlags::empty()).expect("sent");
        Self { control: near, launcher, init: None, program: None }
    }

    pub fn next(&mut self) -> Option<Received<Report>> {
        let received = control::recv::<Report>(&self.control, RecvFlags::empty()).expect("read")?;
        match &received.message {
            Report::Init => self.init = received.pid,
            Report::Program => self.program = received.pid,
            _ => {}
        }
        Some(received)
    }

    /// Reports until the program runs.
    pub fn started(&mut self) -> Vec<String> {
        loop {
            match self.next().expect("an answer").message {
                Report::Started { layers } => return layers,
                Report::Refused { layer, reason, .. } => panic!("{layer}: {reason}"),
                _ => {}
            }
        }
    }

    /// Output and exit status of the whole run.
    pub fn finish(mut self) -> (String, Option<i32>) {
        let mut code = None;
        while let Some(received) = self.next() {
            match received.message {
                Report::Ended { code: ended, .. } => code = ended,
                Report::Refused { layer, reason, .. } => panic!("{layer}: {reason}"),
                _ => {}
            }
        }
        let mut text = String::new();
        self.launcher.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
        self.launcher.wait().expect("reaped");
        self.reap();
        (text, code)
    }

    /// The first process is a child of this test.
    pub fn reap(&self) {
        if let Some(pid) = self.init.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
    }
}

pub fn output(spec: &JailSpec) -> String {
    let (text, code) = Running::start(spec).finish();
    assert_eq!(code, Some(0), "{text}");
    text
}

pub fn outside(script: &str) -> String {
    let output = Command::new("/bin/sh").args(["-c", script]).output().expect("sh");
    String::from_utf8(output.stdout).expect("text")
}

impl Running {
    pub fn finish_refused(mut self) {
        while self.next().is_some() {}
        self.launcher.wait().expect("reaped");
        self.reap();
    }
}
