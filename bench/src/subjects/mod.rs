//! What is measured: each subject answers calls of 32 bytes, and brings the client that suits it.
//!
//! To add one: a file here with a [`Group`], and its line in [`ALL`]. What the figures make of it
//! is in `calls/figures.rs`, by its name.

mod direct;
mod erlang;
mod foreign;
mod frames;
mod go_plugin;
pub mod libp2p;
mod links;
pub mod mesh;
mod mixed;
mod nats;
mod nginx;
mod raw;
mod ray;

use std::{
    collections::BTreeMap, net::SocketAddr, path::PathBuf, process::Command, time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::LocalBoxFuture;
use testnet::{binaries, cluster::World, process::Process};

use crate::load::{Demand, Sample};

/// All groups, in the order in which they are started.
pub const ALL: &[Group] = &[
    raw::GROUP,
    frames::GROUP,
    direct::GROUP,
    mesh::GROUP,
    links::GROUP,
    mixed::GROUP,
    nginx::GROUP,
    nats::GROUP,
    libp2p::GROUP,
    erlang::GROUP,
    go_plugin::GROUP,
    ray::GROUP,
];

/// How long a helper program may take to say that it is there.
const STARTED_WITHIN: Duration = Duration::from_secs(20);

/// Something that answers calls, with the client that asks it.
pub trait Subject {
    /// Its name in figures, such as `direct-tcp`.
    fn name(&self) -> &'static str;

    /// Which way a call goes, for the report.
    fn way(&self) -> &'static str;

    /// The processes that carry or answer its calls, this one excepted; their descendants belong
    /// to them.
    fn pids(&self) -> Vec<u32>;

    /// Makes calls as `demand` says. A wrong answer is an error.
    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>>;
}

/// Subjects that start and end together.
pub struct Group {
    /// Their names, known before they are started. The first is also the group's.
    pub names: &'static [&'static str],
    /// Starts them. They and whatever they need end when they are dropped.
    pub start: for<'a> fn(&'a World) -> LocalBoxFuture<'a, Result<Started>>,
    /// What this program does as [`responder`] of the group, if it has one: says `ready`, and
    /// answers at the address until it is ended.
    pub respond: Option<Respond>,
}

/// Answers at an address until it is ended.
pub type Respond = fn(String) -> LocalBoxFuture<'static, Result<()>>;

/// The subjects of a group.
pub type Started = Vec<Box<dyn Subject>>;

/// Answers as the responder of `group`.
pub async fn respond(group: &str, address: String) -> Result<()> {
    let found = ALL.iter().find(|it| it.names[0] == group).and_then(|it| it.respond);
    found.with_context(|| format!("{group} has no responder"))?(address).await
}

/// Starts this program as responder of `group`.
async fn responder(world: &World, group: &str, address: &str) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    // The settings of this run are not the responder's.
    for setting in ["SUITE", "QUICK", "ONLY", "STEADY"] {
        command.env_remove(setting);
    }
    command.args(["respond", group, address]);
    let process = Process::spawn(&format!("{group}-responder"), command, world.path())?;
    let ready =
        process.output().find(0, STARTED_WITHIN, |line| (line.text == "ready").then_some(()));
    ready.await.map_err(|error| error.context(process.evidence(20)))?;
    Ok(process)
}

/// Where foreign programs are.
struct Programs(BTreeMap<String, String>);

impl Programs {
    fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.get(name).with_context(|| format!("prepare.sh did not tell {name}"))?;
        Ok(path.into())
    }
}

/// Has a script bring or build a foreign program, if it is not there, and tells where it is.
fn programs(what: &str) -> Result<Programs> {
    let script = binaries::repository().join("bench").join("peers").join("prepare.sh");
    let prepared = Command::new(&script).arg(what).output();
    let prepared = prepared.with_context(|| format!("cannot run {}", script.display()))?;
    let complaint = String::from_utf8_lossy(&prepared.stderr);
    ensure!(prepared.status.success(), "{}", complaint.trim());
    let said = String::from_utf8(prepared.stdout)?;
    let said = said.lines().filter_map(|line| line.split_once('='));
    Ok(Programs(said.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

/// The `host:port` at the end of a line.
fn address_in(line: &str) -> Option<SocketAddr> {
    let last = line.split_whitespace().last()?;
    last.trim_start_matches("http://").parse().ok()
}
