//! The tricks that need no socket.

use std::os::unix::process::CommandExt;
use std::{fs::File, io::Write, process::Child, process::Command, process::Stdio, thread};
use std::{mem, process};

use blackhole_plugins::demo::MisbehaveReply;

/// Children of one `fork`: enough to see that a limit holds, too few to hurt a machine without.
const CHILDREN_MAX: u64 = 100;
/// Where `leak-descriptors` without an amount gives up.
const DESCRIPTORS_MAX: u64 = 1_000_000;

/// Something that a plugin ought not to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    After,
    CrashAtStart,
    ExitAtStart,
    CrashAfter,
    Crash,
    Exit,
    Panic,
    Hang,
    Freeze,
    NeverReady,
    SlowStart,
    FailToPrepare,
    NeverListen,
    Garbage,
    Silent,
    FloodLogs,
    LongLine,
    EatMemory,
    Spin,
    Fork,
    DoubleFork,
    LeakDescriptors,
    IgnoreSigterm,
    LieAboutServices,
    LieAboutName,
    BigAnswer,
    FillDisk,
    CloseSocket,
    WriteOnHandshake,
    DropCalls,
    HangOnDrain,
    PanicOnConfiguration,
    BadFigures,
    OfferEverything,
    Run,
    /// A child that does nothing, for ever.
    Sleep,
    /// The middle one of a double fork.
    Orphan,
}

impl Trick {
    /// Reads `name` or `name=amount`; the amount is 0 where it is not given.
    pub fn parse(text: &str) -> Option<(Self, u64)> {
        let (name, amount) = text.split_once('=').unwrap_or((text, "0"));
        let trick = match name {
            "after" => Self::After,
            "crash-at-start" => Self::CrashAtStart,
            "exit-at-start" => Self::ExitAtStart,
            "crash-after" => Self::CrashAfter,
            "crash" => Self::Crash,
            "exit" => Self::Exit,
            "panic" => Self::Panic,
            "hang" => Self::Hang,
            "freeze" => Self::Freeze,
            "never-ready" => Self::NeverReady,
            "slow-start" => Self::SlowStart,
            "fail-to-prepare" => Self::FailToPrepare,
            "never-listen" => Self::NeverListen,
            "garbage" => Self::Garbage,
            "silent" => Self::Silent,
            "flood-logs" => Self::FloodLogs,
            "long-line" => Self::LongLine,
            "eat-memory" => Self::EatMemory,
            "spin" => Self::Spin,
            "fork" => Self::Fork,
            "double-fork" => Self::DoubleFork,
            "leak-descriptors" => Self::LeakDescriptors,
            "ignore-sigterm" => Self::IgnoreSigterm,
            "lie-about-services" => Self::LieAboutServices,
            "lie-about-name" => Self::LieAboutName,
            "big-answer" => Self::BigAnswer,
            "fill-disk" => Self::FillDisk,
            "close-socket" => Self::CloseSocket,
            "write-on-handshake" => Self::WriteOnHandshake,
            "drop-calls" => Self::DropCalls,
            "hang-on-drain" => Self::HangOnDrain,
            "panic-on-configuration" => Self::PanicOnConfiguration,
            "bad-figures" => Self::BadFigures,
            "offer-everything" => Self::OfferEverything,
            "run" => Self::Run,
            "sleep" => Self::Sleep,
            "orphan" => Self::Orphan,
            _ => return None,
        };
        Some((trick, amount.parse().ok()?))
    }
}

/// Does it, and tells what was done where there is somebody left to tell.
///
/// # Panics
/// On [`Trick::Panic`].
pub fn play(trick: Trick, amount: u64) -> MisbehaveReply {
    let or = |default: u64| if amount == 0 { default } else { amount };
    let (told, pids) = match trick {
        Trick::Crash | Trick::CrashAtStart => process::abort(),
        Trick::Exit | Trick::ExitAtStart => process::exit(amount as i32),
        Trick::Panic => panic!("misfit was told to panic"),
        Trick::Freeze => freeze(),
        Trick::Sleep => sleep_for_ever(),
        Trick::FloodLogs => {
            let flood = thread::spawn(move || flood(if amount == 0 { u64::MAX } else { amount }));
            drop(flood);
            ("floods its logs".into(), Vec::new())
        }
        Trick::LongLine => (long_line(or(1 << 20)), Vec::new()),
        Trick::EatMemory => (eat_memory(or(64)), Vec::new()),
        Trick::Spin => (spin(or(1)), Vec::new()),
        Trick::Fork => fork(or(1)),
        Trick::DoubleFork => double_fork(),
        Trick::Orphan => orphan(),
        Trick::LeakDescriptors => (leak_descriptors(or(DESCRIPTORS_MAX)), Vec::new()),
        Trick::FillDisk => (fill_disk(or(1 << 10)), Vec::new()),
        Trick::CloseSocket => (close_sockets(), Vec::new()),
        Trick::WriteOnHandshake => (write_on_handshake(), Vec::new()),
        Trick::BigAnswer => ("x".repeat(or(16 << 20) as usize), Vec::new()),
        other => (format!("{other:?} is for the start only"), Vec::new()),
    };
    MisbehaveReply { told, pids }
}

/// Blocks the only thread that serves, for ever.
pub fn freeze() -> ! {
    eprintln!("misfit: freezes");
    sleep_for_ever()
}

/// Neither ends nor does anything.
pub fn sleep_for_ever() -> ! {
    loop {
        thread::park();
    }
}

fn flood(lines: u64) {
    for line in 0..lines {
        // Each by itself: what else it has to say finds its way between.
        if writeln!(std::io::stderr(), "misfit: line {line} of a flood that means nothing at all")
            .is_err()
        {
            return;
        }
    }
}

fn long_line(bytes: u64) -> String {
    let written = std::io::stderr().write_all("x".repeat(bytes as usize).as_bytes());
    format!("a line of {bytes} bytes: {written:?}")
}

fn eat_memory(mib: u64) -> String {
    for _ in 0..mib {
        // Ones, not zeroes: untouched zero pages would cost nothing.
        mem::forget(vec![1_u8; 1 << 20]);
    }
    format!("holds {mib} MiB more")
}

fn spin(threads: u64) -> String {
    for _ in 0..threads.min(CHILDREN_MAX) {
        thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    format!("burns {threads} cores")
}

fn fill_disk(mib: u64) -> String {
    let file = File::options().create(true).append(true).open("/tmp/fill");
    let mut file = match file {
        Ok(file) => file,
        Err(error) => return format!("no file: {error}"),
    };
    let block = vec![1_u8; 1 << 20];
    for written in 0..mib {
        if let Err(error) = file.write_all(&block) {
            return format!("wrote {written} MiB, then: {error}");
        }
    }
    format!("wrote {mib} MiB")
}

/// Becomes this program anew with nothing but the standard streams: the process goes on, under the
/// same number, and whoever is connected to it sees every socket close.
fn close_sockets() -> String {
    let gone = std::env::current_exe().map(|this| Command::new(this).arg("sleep").exec());
    format!("still here: {gone:?}")
}

/// Says what a launcher would say, on every stream that somebody might take for the handshake.
fn write_on_handshake() -> String {
    const LINES: [&str; 4] = [
        r#"{"Started":{"layers":["everything"]}}"#,
        r#"{"Ended":{"code":0,"signal":null}}"#,
        "1|5|unix|/tmp/plugin.sock|grpc|",
        "\u{0}\u{1b}[2J not a handshake",
    ];
    for line in LINES {
        println!("{line}");
        eprintln!("{line}");
    }
    "spoke out of turn".into()
}

/// Runs `words`, of which the first is the name of a program beside this one.
pub fn run(words: &[String]) -> MisbehaveReply {
    let output = std::env::current_exe().and_then(|this| {
        let (name, arguments) = words.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let program = this.with_file_name(name);
        Command::new(program).args(arguments).stdin(Stdio::null()).output()
    });
    let told = match output {
        Ok(output) => [output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat(),
        Err(error) => format!("did not run: {error}"),
    };
    MisbehaveReply { told, pids: Vec::new() }
}

/// This program again, with another trick.
fn again(trick: &str) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?).arg(trick).stdin(Stdio::null()).spawn()
}

fn fork(count: u64) -> (String, Vec<u32>) {
    let mut pids = Vec::new();
    for _ in 0..count.min(CHILDREN_MAX) {
        match again("sleep") {
            Ok(child) => pids.push(child.id()),
            Err(error) => return (format!("after {} children: {error}", pids.len()), pids),
        }
    }
    (format!("{} children", pids.len()), pids)
}

fn double_fork() -> (String, Vec<u32>) {
    let ended = again("orphan").and_then(|mut child| {
        let pid = child.id();
        child.wait().map(|status| (pid, status))
    });
    match ended {
        // The grandchild's own pid is on stderr: nobody but the child between knows it.
        Ok((pid, status)) => (format!("a grandchild outlives {pid} ({status})"), vec![pid]),
        Err(error) => (format!("no double fork: {error}"), Vec::new()),
    }
}

/// Leaves its session and parent, starts the child that stays, and is gone.
fn orphan() -> ! {
    let session = rustix::process::setsid();
    match again("sleep") {
        Ok(child) => eprintln!("misfit: orphan {} in a new session: {session:?}", child.id()),
        Err(error) => eprintln!("misfit: no orphan: {error}"),
    }
    process::exit(0)
}

fn leak_descriptors(count: u64) -> String {
    for leaked in 0..count {
        match File::open("/dev/null") {
            Ok(file) => mem::forget(file),
            Err(error) => return format!("leaked {leaked} descriptors, then: {error}"),
        }
    }
    format!("leaked {count} descriptors")
}
