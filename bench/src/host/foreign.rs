//! How long programs take to start that nobody here changed, against the same programs started
//! directly.
//!
//! The kernel shares processors out by session before it does so by process (autogroups), and a
//! jailed program has a session of its own. So the one that is started directly has one, too: a
//! shell that waits in it becomes the program when the clock begins.

use std::{fs, path::Path, process::Command, time::Duration, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use protocol::proto::admin::{Exec, plugin_load_request::From};
use rustix::fs::{CWD, Mode, mkfifoat};
use testnet::{foreign::Foreign, process::Process};
use tokio::{fs::File, io::AsyncWriteExt};

use super::{Plan, left_out, stand::Stand};
use crate::grpc::{Address, Call, Connection};
use crate::{load::median, report::Better, report::Figure};

/// Where both programs are told to listen.
const SOCKET_VARIABLE: &str = "BH_PLUGIN_SOCKET";

/// How long either may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// How long between two attempts to reach a program that was started directly.
const ATTEMPT_EVERY: Duration = Duration::from_micros(500);

/// `greeter.v1.Greeter/Hello` with the name `you`.
fn hello() -> Call {
    Call::of("http://localhost/greeter.v1.Greeter/Hello", b"\x0a\x03you")
}

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let python = Foreign::ready().and_then(|foreign| foreign.greeter());
    let node = Foreign::with_node().and_then(|foreign| foreign.node_greeter());
    let all = [
        ("start_python_ratio", "Python (grpcio)", python),
        ("start_node_ratio", "Node.js (grpc-js)", node),
    ];
    let mut figures = Vec::new();
    for (name, language, program) in all {
        match program {
            Ok(From::Exec(program)) => figures.push(of(plan, name, language, &program).await?),
            Ok(From::Path(path)) => bail!("{path} is no command line"),
            Err(error) => left_out(&format!("{name} ({language})"), &error),
        }
    }
    Ok(figures)
}

async fn of(plan: Plan, name: &str, language: &str, program: &Exec) -> Result<Figure> {
    let stand = Stand::start("").await?;
    let (mut ratios, mut alone) = (Vec::new(), Vec::new());
    // Once each beforehand: afterwards everything is cached for both.
    directly(&stand, program).await?;
    through_the_peer(&stand, program).await?;
    for _ in 0..plan.runs {
        let (mut direct, mut hosted) = (Vec::new(), Vec::new());
        for _ in 0..plan.foreign_starts {
            direct.push(directly(&stand, program).await?);
            hosted.push(through_the_peer(&stand, program).await?);
        }
        ratios.push(median(&hosted) / median(&direct));
        alone.push(median(&direct));
    }
    stand.stop().await?;
    let method = format!(
        "a plain gRPC server in {language}; from the order to load it to its answer to a call \
         through the peer, in the jail that is the default, against executing the same command, \
         in a session of its own as well, to its answer on its own Unix socket, tried every \
         {ATTEMPT_EVERY:?}; {} starts each a run, in turns",
        plan.foreign_starts
    );
    let figure = Figure::of(name, "", Better::Lower, &ratios, method);
    Ok(figure.reach(1.1).against(format!("{:.0} ms without us", median(&alone))))
}

/// Milliseconds from the order to load it to an answered call.
async fn through_the_peer(stand: &Stand, program: &Exec) -> Result<f64> {
    let begun = Instant::now();
    stand.loader().load_from(From::Exec(program.clone()), "greeter").await?;
    stand.call_when_routed(&hello()).await?;
    let took = begun.elapsed();
    stand.unload("greeter").await?;
    Ok(took.as_secs_f64() * 1_000.0)
}

/// Milliseconds from the order to execute it to an answered call.
async fn directly(stand: &Stand, program: &Exec) -> Result<f64> {
    let (socket, order) =
        (stand.world.path().join("direct.sock"), stand.world.path().join("direct.order"));
    let _ = (fs::remove_file(&socket), fs::remove_file(&order));
    mkfifoat(CWD, &order, Mode::RUSR | Mode::WUSR).context("no pipe to give the order through")?;
    let command = command(program, &socket, &order)?;
    let process = Process::spawn("direct", command, stand.world.path())?;
    // Opened when the shell has opened it, too.
    let opening = async { File::options().write(true).open(&order).await };
    let opened = tokio::time::timeout(ANSWERS_WITHIN, opening).await;
    let mut opened = opened.with_context(|| process.evidence(20))??;
    let begun = Instant::now();
    opened.write_all(b"\n").await?;
    opened.flush().await?;
    let until = begun + ANSWERS_WITHIN;
    let address = Address::Unix(socket);
    loop {
        match answer(&address).await {
            Ok(()) => break,
            Err(error) if Instant::now() > until => {
                return Err(error.context(process.evidence(20)));
            }
            Err(_) => tokio::time::sleep(ATTEMPT_EVERY).await,
        }
    }
    Ok(begun.elapsed().as_secs_f64() * 1_000.0)
}

async fn answer(address: &Address) -> Result<()> {
    Connection::open(address).await?.call(&hello()).await.map(drop)
}

/// The command with what a shell of no particular kind would give it, in a session of its own,
/// executed when a line comes through `order`.
fn command(program: &Exec, socket: &Path, order: &Path) -> Result<Command> {
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", "read -r _ < \"$0\"; exec \"$@\""]).arg(order);
    command.args(&program.argv).current_dir(&program.working_dir).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/tmp").env("LANG", "C.UTF-8");
    command.env("PYTHONUNBUFFERED", "1").env(SOCKET_VARIABLE, socket);
    ensure!(!program.argv.is_empty(), "a command has a program");
    Ok(command)
}
