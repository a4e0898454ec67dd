//! Programs that bring their own callers, in their own language: they are told how many calls to
//! keep going and how long, and tell how long each took.
//!
//! Such a program prints `ready HOST:PORT` and takes one connection there. On it comes, over and
//! over, a line `MODE IN_FLIGHT MILLIS`; it answers with a line `NANOS COUNT`, the time from the
//! first call's beginning to the last one's end and how many there were, and then the time that
//! each took, in nanoseconds, as four bytes, the least first.

use std::{net::SocketAddr, process::Command, rc::Rc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::LocalBoxFuture};
use testnet::{cluster::World, process::Process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::{Subject, address_in};
use crate::load::{Demand, Sample};

/// How long beyond its time a run may take.
const LATE: Duration = Duration::from_secs(20);

/// More calls in one run than any of them can make.
const CALLS_MAX: usize = 50_000_000;

/// A program that calls.
pub struct Callers {
    control: BufReader<TcpStream>,
    process: Process,
    /// What it needs beside it.
    others: Vec<Process>,
}

impl Callers {
    /// Starts it and waits until it is ready; `others` end with it.
    pub async fn start(
        world: &World,
        name: &str,
        command: Command,
        others: Vec<Process>,
        within: Duration,
    ) -> Result<Rc<Mutex<Self>>> {
        let process = Process::spawn(name, command, world.path())?;
        let ready = |text: &str| text.starts_with("ready ").then(|| address_in(text))?;
        let address = process.output().find(0, within, |line| ready(&line.text)).await;
        let address: SocketAddr = address.map_err(|error| error.context(process.evidence(20)))?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Rc::new(Mutex::new(Self { control: BufReader::new(stream), process, others })))
    }

    async fn run(&mut self, mode: &str, demand: Demand) -> Result<Sample> {
        ensure!(demand.rate.is_none(), "this client cannot be paced");
        let (in_flight, millis) = (demand.in_flight, demand.duration.as_millis());
        let order = format!("{mode} {in_flight} {millis}\n");
        self.control.write_all(order.as_bytes()).await?;
        let answered = tokio::time::timeout(demand.duration + LATE, self.answer()).await;
        let evidence = || self.process.evidence(20);
        answered.with_context(evidence)?.with_context(evidence)
    }

    async fn answer(&mut self) -> Result<Sample> {
        let mut line = String::new();
        self.control.read_line(&mut line).await?;
        let (took, count) = line.trim().split_once(' ').context("no time and count")?;
        let (took, count): (u64, usize) = (took.parse()?, count.parse()?);
        ensure!(count <= CALLS_MAX, "{count} calls cannot have been made");
        let mut latencies = vec![0; count * 4];
        self.control.read_exact(&mut latencies).await?;
        let mut sample = Sample::default();
        sample.took = Duration::from_nanos(took);
        for latency in latencies.as_chunks().0 {
            sample.note_nanos(u32::from_le_bytes(*latency).into());
        }
        Ok(sample)
    }
}

/// One of the things that such a program does.
pub struct Foreign {
    pub name: &'static str,
    pub way: &'static str,
    /// What the program calls it.
    pub mode: &'static str,
    pub callers: Rc<Mutex<Callers>>,
}

impl Subject for Foreign {
    fn name(&self) -> &'static str {
        self.name
    }

    fn way(&self) -> &'static str {
        self.way
    }

    fn pids(&self) -> Vec<u32> {
        // Nobody else asks while its subjects are asked, one after another.
        let Ok(callers) = self.callers.try_lock() else { return Vec::new() };
        callers.others.iter().chain([&callers.process]).map(Process::pid).collect()
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        async move { self.callers.lock().await.run(self.mode, demand).await }.boxed_local()
    }
}
