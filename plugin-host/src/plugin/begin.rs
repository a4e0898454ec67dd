//! The first steps of a run, by its level: a process in its jail with its limits, its output and
//! its way out; or something within this process.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use protocol::{id::InstanceId, manifest::Listen};
use rustls::ClientConfig;
use tokio_util::task::AbortOnDropHandle;

use super::{Captures, Supervisor, files::Prepared, start::NotStarted};
use crate::{
    channel::{Address, Listener},
    egress, level,
    logs::{self, LogStream},
    process::{Output, Process, StartFailure},
};

/// A run that has begun, and where it will answer.
pub(super) struct Begun {
    pub(super) process: level::Run,
    pub(super) captures: Captures,
    pub(super) address: Address,
    /// Serves its way out, where it has one.
    pub(super) egress: Option<AbortOnDropHandle<()>>,
    /// What is in force.
    pub(super) layers: Vec<String>,
}

impl Supervisor {
    /// Begins a run in a jail of its own.
    pub(super) async fn begin_jail(
        &self,
        instance: InstanceId,
        deadline: Instant,
    ) -> Result<Begun, NotStarted> {
        let context = &self.context;
        let Prepared { spec, listener, layers, issued } = self.prepare(instance).await?;
        let user = spec.outside_id;
        let (start, output) = Process::start(&context.spawner)?;
        let pid = Arc::new(AtomicU32::new(0));
        let captures = self.capture(output, &pid);
        let mut process = match start.run(spec, listener, deadline.into()).await {
            Ok(process) => process,
            Err(failure) => {
                captures.finish().await;
                return Err(failure.into());
            }
        };
        pid.store(process.pid, Ordering::Relaxed);
        context.allowance.started(process.init);
        // The launcher says that it joined; which hierarchies those are, the host knows.
        let built = process.layers.iter().filter(|layer| *layer != "cgroup").cloned();
        let layers = layers.into_iter().chain(built).collect();
        let egress = match self.open_egress(&mut process) {
            Ok(egress) => egress,
            Err(error) => {
                process.stop(Duration::ZERO).await;
                captures.finish().await;
                return Err(StartFailure::new("egress-proxy", error).into());
            }
        };
        let address = self.address(&process, user, issued.as_ref().map(|it| &it.client));
        context.status.lock().certificate = issued.map(|issued| issued.shown);
        Ok(Begun { process: level::Run::Jail(process), captures, address, egress, layers })
    }

    /// Begins a run within this process.
    pub(super) async fn begin_inside(&self, deadline: Instant) -> Result<Begun, NotStarted> {
        let context = &self.context;
        let (guests, config) = (&context.guests, &context.config);
        let given = (&context.allowance, &context.logs);
        let program = &context.program;
        let inside = level::start_inside(guests, config, program, given, deadline.into()).await?;
        Ok(Begun {
            address: Address::Inside(inside.door()),
            layers: inside.layers.clone(),
            process: level::Run::Inside(inside),
            captures: Captures(Vec::new()),
            egress: None,
        })
    }

    /// Makes ready what a run needs on this machine.
    async fn prepare(&self, instance: InstanceId) -> Result<Prepared, StartFailure> {
        let (place, allowance) = (self.place.clone(), self.context.allowance.clone());
        let prepare = move || place.prepare(&allowance, &instance.to_string());
        let prepared = tokio::task::spawn_blocking(prepare).await;
        prepared.unwrap_or_else(|error| Err(StartFailure::new("launcher", error)))
    }

    /// Begins to serve the jail's way out, where it has one.
    fn open_egress(&self, process: &mut Process) -> io::Result<Option<AbortOnDropHandle<()>>> {
        let Some(listener) = process.egress.take() else { return Ok(None) };
        let (access, lookups) = (Arc::clone(&self.context.access), self.context.lookups.clone());
        egress::serve(listener, access, lookups).map(Some)
    }

    fn capture(&self, output: Output, pid: &Arc<AtomicU32>) -> Captures {
        let read = |pipe, stream| {
            let (logs, floods) = (self.context.logs.clone(), self.context.floods.clone());
            let reading = logs::capture(pipe, logs, stream, Arc::clone(pid), floods);
            AbortOnDropHandle::new(tokio::spawn(reading))
        };
        Captures(vec![
            read(output.stdout, LogStream::Stdout),
            read(output.stderr, LogStream::Stderr),
        ])
    }

    fn address(
        &self,
        process: &Process,
        user: Option<u32>,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Address {
        let listen = self.context.program.manifest.listen;
        let path = self.place.paths.plugin_socket(listen);
        match listen {
            Listen::Tcp(port) | Listen::Tls(port) => {
                Address::Jail { control: process.control(), port, tls: tls.cloned() }
            }
            Listen::Fd => Address::Unix { path, listener: Listener::Host },
            Listen::Unix => {
                let listener = Listener::Jail { init: process.init, user };
                Address::Unix { path, listener }
            }
        }
    }
}
