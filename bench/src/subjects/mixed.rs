//! The product under mixed load: small calls in frames between two peers, while one call streams
//! large messages between the same two, at a steady pace.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{FutureExt, future::LocalBoxFuture};

use super::links::Linked;
use super::mesh::{FAR, Transport, grpc_of, two_peers};
use super::{Group, Started, Subject};
use crate::grpc::{Address, Call, Connection};
use crate::load::{Demand, Sample};

/// The plugin behind two peers.
pub const GROUP: Group =
    Group { names: &["remote-link-mixed"], start: |_| start().boxed_local(), respond: None };

/// From one large message of 1 MiB to the next. `bench/peers/erlang/calls.erl` has the same.
const EVERY: Duration = Duration::from_millis(40);

/// More large messages than any run takes.
const MESSAGES: u32 = 100_000;

async fn start() -> Result<Started> {
    let cluster = Rc::new(two_peers(Transport::Quic).await?);
    let bulk = grpc_of(cluster.peer(FAR)?)?;
    let way = "SDK client in frames, peer, peer (QUIC), SDK plugin, while 25 messages of 1 MiB a \
               second pass between the same peers";
    let small = Linked::new(GROUP.names[0], way, &cluster, FAR).await?;
    Ok(vec![Box::new(Mixed { small, bulk })])
}

struct Mixed {
    small: Linked,
    bulk: Address,
}

impl Subject for Mixed {
    fn name(&self) -> &'static str {
        self.small.name()
    }

    fn way(&self) -> &'static str {
        self.small.way()
    }

    fn pids(&self) -> Vec<u32> {
        self.small.pids()
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        let over = Arc::new(AtomicBool::new(false));
        let (to, until) = (self.bulk.clone(), over.clone());
        async move {
            // On a thread of its own, so that reading it delays no small call on this side.
            let moving = tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let connection = Connection::open(&to).await?;
                    connection.paced(&Call::repeat(MESSAGES), EVERY, || until.load(Relaxed)).await
                })
            });
            let sample = self.small.run(demand).await;
            over.store(true, Relaxed);
            moving.await.context("the reader panicked")??;
            sample
        }
        .boxed_local()
    }
}
