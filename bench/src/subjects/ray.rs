//! Ray: calls to an actor in another process, through its object store.

use std::{process::Command, time::Duration};

use anyhow::Result;
use futures::FutureExt;
use testnet::{binaries, cluster::World};

use super::foreign::{Callers, Foreign};
use super::{Group, Started, programs};

/// An actor and who calls it.
pub const GROUP: Group =
    Group { names: &["ray"], start: |world| start(world).boxed_local(), respond: None };

/// How long Ray may take to start its parts.
const RAY_WITHIN: Duration = Duration::from_mins(1);

async fn start(world: &World) -> Result<Started> {
    let mut command = Command::new(programs("ray")?.path("RAY_PYTHON")?);
    let script = binaries::repository().join("bench").join("peers").join("ray");
    command.arg(script.join("calls.py")).arg(world.path());
    let callers = Callers::start(world, "ray", command, Vec::new(), RAY_WITHIN).await?;
    let way = "a Python program calls an asynchronous Ray actor on the same machine; the answers \
               are fetched from Ray";
    Ok(vec![Box::new(Foreign { name: GROUP.names[0], way, mode: "calls", callers })])
}
