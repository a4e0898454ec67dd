//! From nothing to a run that answers calls: jail, readiness, description, announcement.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use protocol::{id::InstanceId, manifest::Listen, service::ServiceName};
use serde_json::{Map, Value};
use tokio::time::timeout_at;
use tokio_util::task::AbortOnDropHandle;

use super::{Captures, Run, Supervisor, meet::Met};
use crate::{
    allowance::Allotted,
    channel::{Address, Channel, Listener},
    egress,
    lifecycle::Step,
    logs::{self, LogStream},
    plan,
    process::{Output, Process, StartFailure},
    ready::{self, Health},
    status::{HostEvent, ReadyPlugin},
};

/// Why a plugin did not become ready.
pub(super) struct NotStarted {
    pub(super) reason: String,
    /// Another start may go better. False where the same would be refused again: the sandbox, the
    /// program, the contract.
    pub(super) retry: bool,
}

impl From<StartFailure> for NotStarted {
    fn from(failure: StartFailure) -> Self {
        Self { reason: failure.to_string(), retry: !failure.is_final() }
    }
}

/// When the steps of a start were done.
#[derive(Clone, Copy)]
struct Steps {
    /// The first thing was done for it.
    begun: Instant,
    /// Its jail stood, and its program was executed.
    executed: Instant,
    /// It had answered its first call.
    answered: Instant,
}

impl Steps {
    /// For the log: milliseconds since the beginning.
    fn fields(self, ready: Instant) -> Map<String, Value> {
        let since = |step: Instant| {
            let millis = step.duration_since(self.begun).as_secs_f64() * 1_000.0;
            // Thousandths are as fine as anybody reads.
            Value::from((millis * 1_000.0).round() / 1_000.0)
        };
        let steps =
            [("executed_ms", self.executed), ("answered_ms", self.answered), ("ready_ms", ready)];
        steps.into_iter().map(|(name, step)| (name.to_owned(), since(step))).collect()
    }
}

impl Supervisor {
    /// Starts a process and waits until it is ready. On failure nothing of it is left.
    pub(super) async fn start(&mut self) -> Result<Run, NotStarted> {
        // Jails take turns; how long that takes is not the plugin's fault.
        let turn = Arc::clone(&self.context.starts).acquire_owned().await;
        let begun = Instant::now();
        let limit = self.start_timeout();
        let deadline = begun + limit;
        let instance = InstanceId(rand::random());
        let listener = self.prepare_sockets().map_err(|error| {
            StartFailure::new("sockets", format!("{}: {error}", self.paths.directory.display()))
        })?;
        let context = &self.context;
        let (config, program, seat) = (&context.config, &context.program, &context.seat);
        let granted = context.access.granted();
        let mut spec = plan::jail(config, program, seat, granted, &instance.to_string());
        let allotted = self.allot().await?;
        let layers = allotted.apply(&mut spec);
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
        drop(turn);
        let executed = Instant::now();
        pid.store(process.pid, Ordering::Relaxed);
        context.allowance.started(process.init);
        {
            let mut status = self.context.status.lock();
            status.pid = Some(process.pid);
            // The launcher says that it joined; which hierarchies those are, the host knows.
            let built = process.layers.iter().filter(|layer| *layer != "cgroup").cloned();
            status.layers = layers.into_iter().chain(built).collect();
        }
        self.step(Step::Started, "starting");
        let egress = match self.open_egress(&mut process) {
            Ok(egress) => egress,
            Err(error) => {
                process.stop(Duration::ZERO).await;
                captures.finish().await;
                self.context.status.lock().pid = None;
                return Err(StartFailure::new("egress-proxy", error).into());
            }
        };
        let channel = Channel::new(&self.name(), self.address(&process, user));
        let ready = self.until_ready(&process, &channel, deadline, limit).await;
        let probed = match ready {
            Ok(probed) => probed,
            Err(reason) => {
                let reason = self.abandon(process, channel, captures, reason).await;
                return Err(NotStarted { reason, retry: true });
            }
        };
        let answered = Instant::now();
        let met = self.meet(&channel, probed, deadline).await;
        let Met { services, descriptors, contract } = match met {
            Ok(met) => met,
            Err(reason) => {
                let reason = self.abandon(process, channel, captures, reason).await;
                return Err(NotStarted { reason, retry: false });
            }
        };
        let run = Run {
            process,
            channel,
            instance,
            since: Instant::now(),
            probed,
            contract,
            captures,
            _egress: egress,
        };
        self.announce(&run, Steps { begun, executed, answered }, services, descriptors).await;
        Ok(run)
    }

    /// Makes the control group of this run.
    async fn allot(&self) -> Result<Allotted, StartFailure> {
        let allowance = self.context.allowance.clone();
        let failed = |error: &dyn std::fmt::Display| StartFailure::new("cgroup", error);
        let begun = tokio::task::spawn_blocking(move || allowance.begin()).await;
        begun.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    /// Waits for readiness. Ok tells whether it can be probed.
    async fn until_ready(
        &self,
        process: &Process,
        channel: &Arc<Channel>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<bool, String> {
        let health = &self.context.program.manifest.health;
        let service = (!health.off).then_some(health.service.as_str());
        let mut last = String::from("it was not asked yet");
        let answer = tokio::select! {
            biased;
            end = process.ended() => {
                let reason = format!("it ended before it was ready: {end}");
                return Err(self.because_of_limits(end, reason));
            }
            answer = timeout_at(deadline.into(), ready::wait(channel, service, &mut last)) => {
                answer
            }
        };
        match answer {
            Ok(Health::Serving) => Ok(true),
            Ok(Health::NoHealthService | Health::Not(_)) => Ok(false),
            Err(_) => Err(format!("it was not ready after {limit:?}: {last}")),
        }
    }

    /// Ends a process that did not become ready.
    async fn abandon(
        &self,
        process: Process,
        channel: Arc<Channel>,
        captures: Captures,
        reason: String,
    ) -> String {
        channel.close().await;
        process.stop(Duration::ZERO).await;
        captures.finish().await;
        self.context.status.lock().pid = None;
        reason
    }

    /// Begins to serve the jail's way out, where it has one.
    fn open_egress(&self, process: &mut Process) -> io::Result<Option<AbortOnDropHandle<()>>> {
        let Some(listener) = process.egress.take() else { return Ok(None) };
        let (access, lookups) = (Arc::clone(&self.context.access), self.context.lookups.clone());
        egress::serve(listener, access, lookups).map(Some)
    }

    fn capture(&self, output: Output, pid: &Arc<AtomicU32>) -> Captures {
        let logs = &self.context.logs;
        let stdout = logs::capture(output.stdout, logs.clone(), LogStream::Stdout, Arc::clone(pid));
        let stderr = logs::capture(output.stderr, logs.clone(), LogStream::Stderr, Arc::clone(pid));
        Captures(vec![
            AbortOnDropHandle::new(tokio::spawn(stdout)),
            AbortOnDropHandle::new(tokio::spawn(stderr)),
        ])
    }

    fn address(&self, process: &Process, user: Option<u32>) -> Address {
        let listen = self.context.program.manifest.listen;
        let path = self.paths.plugin_socket(listen);
        match listen {
            Listen::Tcp(port) => Address::Jail { control: process.control(), port },
            Listen::Fd => Address::Unix { path, listener: Listener::Host },
            Listen::Unix => {
                let listener = Listener::Jail { init: process.init, user };
                Address::Unix { path, listener }
            }
        }
    }

    /// Tells the node what it serves.
    async fn announce(
        &mut self,
        run: &Run,
        steps: Steps,
        services: Vec<(ServiceName, [u8; 32])>,
        descriptors: Bytes,
    ) {
        let context = &self.context;
        context.channels.insert(run.instance, Arc::clone(&run.channel));
        {
            let mut status = context.status.lock();
            status.instance = Some(run.instance);
            status.services = services.iter().map(|(name, _)| name.clone()).collect();
            status.healthy = true;
            status.last_health_check = Some(SystemTime::now());
        }
        *context.ready_since.lock() = Some(run.since);
        context.roll.enter(&context.seat.plugin, &context.program.manifest.version);
        self.step(Step::BecameReady, "");
        let now = Instant::now();
        let took = now.duration_since(steps.begun);
        let context = &self.context;
        let status = context.status.lock().clone();
        let text = format!("ready after {:.1} ms", took.as_secs_f64() * 1_000.0);
        context.logs.supervisor_with("info", run.process.pid, text, steps.fields(now));
        tracing::info!(plugin = %status.name, pid = run.process.pid, ?took, "plugin is ready");
        let ready = ReadyPlugin {
            name: status.name,
            version: status.version,
            instance: run.instance,
            services,
            descriptors,
            isolation: status.isolation,
            labels: context.program.manifest.labels.clone(),
        };
        // A node that no longer listens is shutting down.
        let _ = context.events.send(HostEvent::Ready(ready)).await;
        self.context.proven = true;
        self.tell_first(Ok(()));
    }

    pub(super) fn start_timeout(&self) -> Duration {
        plan::start_timeout(&self.context.config, &self.context.program)
    }
}
