//! From nothing to a run that answers calls: jail, readiness, description, announcement.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use protocol::{id::InstanceId, manifest::Isolation, service::ServiceName};
use serde_json::{Map, Value};
use tokio::time::timeout_at;

use super::{Captures, Run, Supervisor, begin::Begun, meet::Met};
use crate::{
    channel::Channel,
    level,
    lifecycle::Step,
    plan,
    process::StartFailure,
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
        let begun_run = match self.context.program.manifest.isolation {
            Isolation::None | Isolation::Thread | Isolation::Wasm => {
                self.begin_inside(deadline).await
            }
            _ => self.begin_jail(instance, deadline).await,
        };
        let Begun { process, captures, address, egress, layers } = begun_run?;
        drop(turn);
        let executed = Instant::now();
        {
            let mut status = self.context.status.lock();
            status.pid = Some(process.pid()).filter(|pid| *pid != 0);
            status.layers = layers;
        }
        self.step(Step::Started, "starting");
        let channel = Channel::new(&self.name(), address, self.context.carriers.clone());
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
        let Met { services, descriptors, contract, part } = match met {
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
            part,
            stillness: tokio::sync::Mutex::default(),
            captures,
            _egress: egress,
        };
        self.announce(&run, Steps { begun, executed, answered }, services, descriptors).await;
        Ok(run)
    }

    /// Waits for readiness. Ok tells whether it can be probed.
    async fn until_ready(
        &self,
        process: &level::Run,
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
                let reason = format!("it ended before it was ready: {}", process.tell(end));
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
        process: level::Run,
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
        context.logs.supervisor_with("info", run.process.pid(), text, steps.fields(now));
        tracing::info!(plugin = %status.name, pid = run.process.pid(), ?took, "plugin is ready");
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
