//! Distributed Erlang: `gen_server:call` from one node to another, to one server and to many.

use std::{net::TcpListener, path::Path, process::Command, time::Duration};

use anyhow::Result;
use futures::FutureExt;
use testnet::{cluster::World, process::Process};

use super::foreign::{Callers, Foreign};
use super::{Group, Programs, STARTED_WITHIN, Started, Subject, programs};

/// Two nodes, with one connection between them, as Erlang has it.
pub const GROUP: Group = Group {
    names: &["erlang-one", "erlang-many", "erlang-mixed"],
    start: |world| start(world).boxed_local(),
    respond: None,
};

/// How long the callers' node may take to find the servers' node, too.
const MET_WITHIN: Duration = Duration::from_secs(30);

async fn start(world: &World) -> Result<Started> {
    let programs = programs("erlang")?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let bin = programs.path("ERLANG_BIN")?;
    let mut names = Command::new(bin.join("epmd"));
    names.args(["-port", &port, "-address", "127.0.0.1"]);
    let names = Process::spawn("epmd", names, world.path())?;

    let servers = node(world, &programs, &bin, &port, "servers")?;
    let servers = Process::spawn("erlang-servers", servers, world.path())?;
    let ready = |text: &str| text.starts_with("ready").then_some(());
    let found = servers.output().find(0, STARTED_WITHIN, |line| ready(&line.text)).await;
    found.map_err(|error| error.context(servers.evidence(20)))?;
    let callers = node(world, &programs, &bin, &port, "callers")?;
    let callers =
        Callers::start(world, "erlang-callers", callers, vec![servers, names], MET_WITHIN).await?;
    let ways = [
        ("one", "gen_server:call from one Erlang node to another, all callers to one server"),
        ("many", "gen_server:call from one Erlang node to another, a server for each caller"),
        (
            "mixed",
            "gen_server:call from one Erlang node to another, a server for each caller, while 25 \
             messages of 1 MiB a second pass between the same nodes",
        ),
    ];
    let subjects = GROUP.names.iter().zip(ways).map(|(name, (mode, way))| {
        Box::new(Foreign { name, way, mode, callers: callers.clone() }) as Box<dyn Subject>
    });
    Ok(subjects.collect())
}

/// A node that runs `calls:ROLE()`.
fn node(world: &World, programs: &Programs, bin: &Path, port: &str, role: &str) -> Result<Command> {
    let mut command = Command::new(bin.join("erlexec"));
    command.env("ROOTDIR", programs.path("ERLANG_ROOT")?).env("BINDIR", bin);
    command.env("EMU", "beam").env("PROGNAME", "erl").env("ERL_EPMD_PORT", port);
    // Where it keeps the cookie that both are told, and nothing of the user's.
    command.env("HOME", world.path());
    command.arg("-noshell").arg("-noinput").arg("-pa").arg(programs.path("ERLANG_CODE")?);
    command.args(["-name", &format!("{role}@127.0.0.1"), "-setcookie", "calls"]);
    command.args(["-start_epmd", "false", "-kernel", "inet_dist_use_interface", "{127,0,0,1}"]);
    command.args(["-kernel", "dist_auto_connect", "once", "-s", "calls", role]);
    Ok(command)
}
