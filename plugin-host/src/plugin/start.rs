//! From nothing to a run that answers calls: jail, readiness, description, announcement.

use std::{
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

use super::{Captures, Run, Supervisor};
use crate::{
    channel::{Address, Channel, Listener},
    descriptors::{self, Description},
    lifecycle::Step,
    logs::{self, LogStream},
    plan,
    process::{Output, Process, StartFailure},
    ready::{self, Health},
    status::{HostEvent, ReadyPlugin},
};

/// How long a reflection service may take; descriptors are wanted, not needed.
const REFLECTION_PATIENCE: Duration = Duration::from_secs(5);

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
        let spec = plan::jail(config, program, seat, &instance.to_string());
        let user = spec.outside_id;
        let (start, output) = Process::start(&context.spawner)?;
        let pid = Arc::new(AtomicU32::new(0));
        let captures = self.capture(output, &pid);
        let process = match start.run(spec, listener, deadline.into()).await {
            Ok(process) => process,
            Err(failure) => {
                captures.finish().await;
                return Err(failure.into());
            }
        };
        drop(turn);
        let executed = Instant::now();
        pid.store(process.pid, Ordering::Relaxed);
        {
            let mut status = self.context.status.lock();
            status.pid = Some(process.pid);
            status.layers.clone_from(&process.layers);
        }
        self.step(Step::Started, "starting");
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
        let run = Run { process, channel, instance, since: answered, probed, captures };
        self.announce(&run, Steps { begun, executed, answered }).await;
        Ok(run)
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
                return Err(format!("it ended before it was ready: {end}"));
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

    /// Learns what it serves, and tells the node.
    async fn announce(&mut self, run: &Run, steps: Steps) {
        let (services, descriptors) = self.describe(&run.channel, run.probed).await;
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

    /// Its services with their schema hashes, and their descriptors.
    async fn describe(
        &self,
        channel: &Arc<Channel>,
        probed: bool,
    ) -> (Vec<(ServiceName, [u8; 32])>, Bytes) {
        let program = &self.context.program;
        let mut warnings = plan::warnings(&self.context.config, program);
        if !probed && !program.manifest.health.off {
            warnings.push("it has no health service; it counts as healthy while it runs".into());
        }
        let packaged = program.descriptors.as_ref().map(|bytes| Description::from_set(bytes));
        let description = match packaged {
            Some(Ok(description)) => description,
            Some(Err(reason)) => {
                warnings.push(format!("interface.descriptors: {reason}"));
                Description::default()
            }
            None => {
                let patience = Instant::now() + REFLECTION_PATIENCE;
                match descriptors::reflect(channel, patience).await {
                    Ok(Some(description)) => description,
                    Ok(None) => Description::default(),
                    Err(reason) => {
                        warnings.push(reason);
                        Description::default()
                    }
                }
            }
        };
        warnings.extend(description.warning.clone());
        let declared = &program.manifest.interface.services;
        let services =
            if declared.is_empty() { description.services.clone() } else { declared.clone() };
        if services.is_empty() {
            warnings.push(
                "nothing can be called: it has no reflection, and no service is declared; name \
                 them with interface.services or --service"
                    .into(),
            );
        }
        let descriptors = description.encode(&services);
        let hashed =
            services.into_iter().map(|name| (name.clone(), description.schema(&name))).collect();
        self.context.status.lock().warnings = warnings;
        (hashed, descriptors)
    }
}
