//! Large transfers through two peers: how fast they are, and what they do to small calls.
//!
//! A transfer is one call of `demo.v1.Echo/Repeat`: the plugin streams messages of one MiB. It is
//! read by a thread of its own, so that reading it delays no small call on this side.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testnet::{Cluster, cluster::World};
use tokio::task::JoinHandle;

use super::Plan;
use crate::grpc::{Address, Call, Connection, Load, MESSAGE_BYTES};
use crate::load::{Demand, Sample, median};
use crate::report::{Better, Figure};
use crate::subjects::libp2p::RawStream;
use crate::subjects::mesh::{FAR, Transport, grpc_of, two_peers};

/// Small calls are asked for so long, again and again, until a transfer has ended.
const SLICE: Duration = Duration::from_millis(100);

/// The figures of this module.
pub const NAMES: [&str; 5] = [
    "bulk_ratio",
    "hol_p99_ratio",
    "hol_p99_ratio_quic",
    "hol_p99_ratio_tcp",
    "hol_p99_ratio_apart",
];

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let world = World::new()?;
    let (quic, tcp) = (two_peers(Transport::Quic).await?, two_peers(Transport::Tcp).await?);
    let mut raw = RawStream::start(&world).await?;
    let (mut bulk, mut quiet) = (Bulk::default(), Vec::new());
    let (mut over_quic, mut over_tcp, mut apart) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        bulk.run(plan, &mut raw, &quic).await?;
        over_quic.push(head_of_line(plan, &quic, &quic, &mut quiet).await?);
        over_tcp.push(head_of_line(plan, &tcp, &tcp, &mut quiet).await?);
        apart.push(head_of_line(plan, &quic, &tcp, &mut quiet).await?);
    }
    for cluster in [quic, tcp] {
        cluster.stop().await?;
    }
    let how = format!(
        "p99 of calls of 32 B, one after another, while one call streams {} messages of 1 MiB \
         between the same two peers, against the same while nothing else moves, in turns",
        plan.messages
    );
    let quiet = format!("{:.0} µs while quiet", median(&quiet));
    let of = |name, reach, runs: &[f64], what: &str| {
        let figure = Figure::of(name, "", Better::Lower, runs, format!("{how}; {what}"));
        figure.reach(reach).against(quiet.clone())
    };
    // Each transport has a reach of its own: what is told of both is how far from it they are.
    let worse: Vec<f64> =
        over_quic.iter().zip(&over_tcp).map(|(quic, tcp)| quic.max(tcp / 2.0)).collect();
    let both = "the greater of the ratio on QUIC and half of that on TCP, run by run";
    Ok(vec![
        bulk.figure(plan),
        of(NAMES[1], 2.0, &worse, both),
        of(NAMES[2], 2.0, &over_quic, "QUIC between the peers"),
        of(NAMES[3], 4.0, &over_tcp, "TCP between the peers"),
        apart_figure(plan, &apart, quiet.clone()),
    ])
}

/// What the processors alone do: with no stream, link or process in common.
fn apart_figure(plan: Plan, runs: &[f64], quiet: String) -> Figure {
    let how = format!(
        "p99 of calls of 32 B between two peers (QUIC) while one call streams {} messages of 1 MiB \
         between two others (TCP), against the same while nothing else moves: what sharing the \
         processors costs, of which no peer can free another",
        plan.messages
    );
    Figure::of(NAMES[4], "", Better::Lower, runs, how).against(quiet)
}

/// Megabytes a second of each run.
#[derive(Default)]
struct Bulk {
    raw: Vec<f64>,
    peers: Vec<f64>,
}

impl Bulk {
    async fn run(&mut self, plan: Plan, raw: &mut RawStream, peers: &Cluster) -> Result<()> {
        let bytes = u64::from(plan.messages) * MESSAGE_BYTES as u64;
        let begun = Instant::now();
        raw.send(bytes).await?;
        self.raw.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let moved = transfer(grpc_of(peers.peer(FAR)?)?, plan.messages);
        moved.await.context("the reader panicked")??;
        self.peers.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
        Ok(())
    }

    fn figure(&self, plan: Plan) -> Figure {
        let ratios: Vec<f64> =
            self.peers.iter().zip(&self.raw).map(|(peers, raw)| peers / raw).collect();
        let method = format!(
            "one call that streams {} messages of 1 MiB from a plugin through two peers (QUIC) to \
             a gRPC client, {:.0} MB/s, against as many bytes on one libp2p stream (QUIC) between \
             two processes, in turns",
            plan.messages,
            median(&self.peers)
        );
        let figure = Figure::of(NAMES[0], "", Better::Higher, &ratios, method).reach(0.8);
        figure.against(format!("raw libp2p stream {:.0} MB/s", median(&self.raw)))
    }
}

/// How often as long calls between `peers` take during a transfer between `busy` as without.
async fn head_of_line(
    plan: Plan,
    peers: &Cluster,
    busy: &Cluster,
    quiet: &mut Vec<f64>,
) -> Result<f64> {
    let (address, to) = (grpc_of(peers.peer(FAR)?)?, grpc_of(busy.peer(FAR)?)?);
    let small = Load::connect(&address).await?;
    small.run(Demand::closed(1, plan.warm_up)).await?;
    let alone = small.run(Demand::closed(1, plan.single)).await?.percentile(0.99);
    let moving = transfer(to, plan.messages);
    let mut beside = Sample::default();
    loop {
        let slice = small.run(Demand::closed(1, SLICE)).await?;
        // The slice in which the transfer ended counts only where there is no other.
        let ended = moving.is_finished();
        if !ended || beside.calls() == 0 {
            beside.join(&slice)?;
        }
        if ended {
            break;
        }
    }
    moving.await.context("the reader panicked")??;
    quiet.push(alone);
    Ok(beside.percentile(0.99) / alone)
}

/// Has the plugin stream so many messages from now on, and reads them on a thread of its own.
fn transfer(address: Address, messages: u32) -> JoinHandle<Result<()>> {
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connection = Connection::open(&address).await?;
            connection.drained(&Call::repeat(messages)).await
        })
    })
}
