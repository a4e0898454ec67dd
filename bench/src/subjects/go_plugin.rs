//! hashicorp/go-plugin: a host in Go that starts a plugin in Go and calls it by gRPC over a Unix
//! socket.

use std::process::Command;

use anyhow::Result;
use futures::FutureExt;
use testnet::cluster::World;

use super::foreign::{Callers, Foreign};
use super::{Group, STARTED_WITHIN, Started, programs};

/// A host and its plugin.
pub const GROUP: Group =
    Group { names: &["go-plugin"], start: |world| start(world).boxed_local(), respond: None };

async fn start(world: &World) -> Result<Started> {
    let mut command = Command::new(programs("go-plugin")?.path("GO_PLUGIN")?);
    // Its plugin's socket goes where everything of this run is.
    command.env("TMPDIR", world.path());
    let callers = Callers::start(world, "go-plugin", command, Vec::new(), STARTED_WITHIN).await?;
    let way = "a host in Go calls its plugin in Go through hashicorp/go-plugin, gRPC over a Unix \
               socket";
    Ok(vec![Box::new(Foreign { name: GROUP.names[0], way, mode: "calls", callers })])
}
