//! The supervisor of one plugin: start, ready, watch, start again, drain, end.
//!
//! One task per plugin, owned by the host. It alone moves the plugin's state; everybody else
//! reads a copy.

mod files;
mod start;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use protocol::id::InstanceId;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    channel::{Channel, Channels},
    config::{HealthCheck, HostConfig},
    lifecycle::{State, Step},
    logs::{self, LogStream, Logs},
    plan::Paths,
    process::{End, Process, Spawner},
    ready::{self, Health},
    restart::{Restarts, Verdict},
    source::Program,
    stats::Sampler,
    status::{HostEvent, MeshDoor, PluginStatus},
};

pub(crate) use files::private_directory;

/// Log lines shown with a start that failed.
pub(crate) const TAIL_LINES: usize = 12;

/// What a supervisor works with.
pub(crate) struct Context {
    pub(crate) config: Arc<HostConfig>,
    pub(crate) program: Program,
    pub(crate) spawner: Spawner,
    pub(crate) channels: Arc<Channels>,
    pub(crate) door: Arc<dyn MeshDoor>,
    pub(crate) events: mpsc::Sender<HostEvent>,
    pub(crate) logs: Logs,
    pub(crate) status: Arc<Mutex<PluginStatus>>,
    /// Since when the run that answers now is ready.
    pub(crate) ready_since: Arc<Mutex<Option<Instant>>>,
    /// Set when the plugin is to be drained and ended.
    pub(crate) stop: CancellationToken,
    /// It was loaded before and ran: then a failed start is a crash, not a mistake of whoever
    /// loads it.
    pub(crate) proven: bool,
}

/// Told once: it became ready, or will not.
pub(crate) type FirstStart = oneshot::Sender<Result<(), String>>;

/// A run that is ready.
struct Run {
    process: Process,
    channel: Arc<Channel>,
    instance: InstanceId,
    since: Instant,
    probed: bool,
    captures: Captures,
}

/// Reads the output of a process until it ends, and a moment longer.
struct Captures(Vec<AbortOnDropHandle<()>>);

impl Captures {
    async fn finish(self) {
        let all = futures::future::join_all(self.0);
        let _ = timeout(logs::LAST_WORDS, all).await;
    }
}

/// Why a run is over.
enum Over {
    Stopped,
    Ended(End),
    Unhealthy(String),
}

/// Supervises until the plugin is stopped or has failed. Nothing of it is left afterwards.
pub(crate) async fn supervise(context: Context, first: FirstStart) {
    let supervisor = Supervisor {
        restarts: Restarts::new(context.program.manifest.restart.clone()),
        paths: Paths::new(&context.config, context.program.manifest.name.as_str()),
        born: Instant::now(),
        first: Some(first),
        context,
    };
    supervisor.run().await;
}

struct Supervisor {
    context: Context,
    restarts: Restarts,
    paths: Paths,
    born: Instant,
    first: Option<FirstStart>,
}

impl Supervisor {
    async fn run(mut self) {
        self.step(Step::Validated, "");
        let door = match self.open_door() {
            Ok(door) => door,
            Err(error) => {
                self.give_up(&format!("its mesh socket cannot be made: {error}"));
                self.remove_files();
                return;
            }
        };
        while self.one_run().await {}
        drop(door);
        self.remove_files();
    }

    /// One run, from start to end. False when there is to be no other.
    async fn one_run(&mut self) -> bool {
        let stop = self.context.stop.clone();
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => {
                self.step(Step::Drain, "unloaded");
                self.step(Step::Ended, "unloaded before it was ready");
                self.forget_run();
                self.tell_first(Err("it was unloaded before it was ready".into()));
                return false;
            }
            started = self.start() => started,
        };
        let (clean, uptime, reason) = match started {
            Ok(run) => {
                let since = run.since;
                match self.watch(run).await {
                    None => return false,
                    Some((clean, reason)) => (clean, Some(since.elapsed()), reason),
                }
            }
            Err(reason) if !self.context.proven => {
                // Whoever loads it wants to know, not to wait for five more of the same.
                self.give_up(&reason);
                return false;
            }
            Err(reason) => (false, None, reason),
        };
        self.again(clean, uptime, &reason).await
    }

    /// After an end that nobody asked for: wait and start again, or not.
    async fn again(&mut self, clean: bool, uptime: Option<Duration>, reason: &str) -> bool {
        let now = self.born.elapsed().as_millis() as u64;
        let verdict = self.restarts.after_end(clean, uptime, now, rand::random::<f64>());
        if !clean {
            self.context.status.lock().crashes += 1;
        }
        match verdict {
            Verdict::Again(delay) => {
                let wait = format!("{reason}; starting again in {:.1} s", delay.as_secs_f64());
                self.step(Step::Crashed, &wait);
                self.warn(&format!("{wait}; the node and its other plugins are unaffected"));
                let stop = self.context.stop.clone();
                tokio::select! {
                    () = stop.cancelled() => {
                        self.step(Step::Drain, "unloaded");
                        self.step(Step::Ended, "unloaded");
                        return false;
                    }
                    () = sleep(delay) => {}
                }
                let mut status = self.context.status.lock();
                status.restarts += 1;
                status.last_restart = Some(SystemTime::now());
                true
            }
            Verdict::Leave => {
                self.step(if clean { Step::Ended } else { Step::GaveUp }, reason);
                self.warn(&format!("{reason}; its restart policy leaves it so"));
                false
            }
            Verdict::GiveUp { restarts, window } => {
                let text = format!(
                    "crash loop: {reason}; it was started again {restarts} times within {} s and \
                     is given up; load it again once the cause is mended",
                    window.as_secs()
                );
                self.give_up(&text);
                false
            }
        }
    }

    /// Watches a ready run to its end. `None`: it was stopped as asked. Otherwise whether it
    /// ended cleanly, and why.
    async fn watch(&mut self, run: Run) -> Option<(bool, String)> {
        let stop = self.context.stop.clone();
        let over = tokio::select! {
            biased;
            () = stop.cancelled() => Over::Stopped,
            end = run.process.ended() => Over::Ended(end),
            reason = self.watch_health(&run) => Over::Unhealthy(reason),
            () = self.watch_stats(&run) => unreachable!("sampling never ends"),
        };
        let reason = match &over {
            Over::Stopped => "unloaded".to_owned(),
            Over::Ended(end) => format!("it ended: {end}"),
            Over::Unhealthy(reason) => reason.clone(),
        };
        // First nobody new comes, then what is there is finished.
        self.context.channels.remove(run.instance);
        if matches!(over, Over::Stopped) {
            self.step(Step::Drain, "unloaded");
        }
        self.gone(run.instance, &reason).await;
        let grace = self.stop_grace();
        let Run { process, channel, captures, .. } = run;
        let clean = match over {
            Over::Ended(end) => {
                process.stop(Duration::ZERO).await;
                end.is_clean()
            }
            Over::Unhealthy(_) => {
                process.stop(grace / 2).await;
                false
            }
            Over::Stopped => {
                self.drain(process, &channel, grace).await;
                true
            }
        };
        channel.close().await;
        captures.finish().await;
        self.forget_run();
        if self.context.stop.is_cancelled() {
            if self.state() != State::Draining {
                self.step(Step::Drain, "unloaded");
            }
            self.step(Step::Ended, "unloaded");
            return None;
        }
        Some((clean, reason))
    }

    /// Half of the grace for calls in flight, half for the program's own end.
    async fn drain(&self, process: Process, channel: &Arc<Channel>, grace: Duration) {
        let idle = timeout(grace / 2, channel.idle()).await.is_ok();
        let pid = process.pid;
        let logs = &self.context.logs;
        if !idle {
            logs.supervisor("warn", pid, "calls were still in flight when it was told to end");
        }
        let (end, by_itself) = process.stop(grace / 2).await;
        if by_itself {
            logs.supervisor("info", pid, format!("it ended as asked: {end}"));
        } else {
            let text =
                format!("it did not end within {:?} after SIGTERM and was killed", grace / 2);
            logs.supervisor("warn", pid, text);
        }
    }

    /// Ends with a reason once the plugin is unhealthy.
    async fn watch_health(&self, run: &Run) -> String {
        if !run.probed {
            return std::future::pending().await;
        }
        let settings = self.health_settings();
        let service = self.context.program.manifest.health.service.clone();
        let mut failed = 0;
        loop {
            sleep(settings.interval).await;
            let health = ready::probe(&run.channel, &service, settings.timeout).await;
            let healthy = !matches!(health, Health::Not(_));
            {
                let mut status = self.context.status.lock();
                status.healthy = healthy;
                status.last_health_check = Some(SystemTime::now());
            }
            if let Health::Not(reason) = health {
                failed += 1;
                self.warn(&format!(
                    "health check {failed} of {} failed: {reason}",
                    settings.threshold
                ));
                if failed >= settings.threshold {
                    return format!("unhealthy: {failed} health checks in a row failed: {reason}");
                }
            } else {
                failed = 0;
            }
        }
    }

    async fn watch_stats(&self, run: &Run) {
        let mut sampler = Sampler::new(run.process.init);
        loop {
            let sample = sampler.sample(Instant::now());
            {
                let mut status = self.context.status.lock();
                status.memory_bytes = sample.memory_bytes;
                status.cpu_percent = sample.cpu_percent;
                status.threads = sample.threads;
                status.open_files = sample.open_files;
            }
            sleep(self.context.config.stats_interval).await;
        }
    }

    fn health_settings(&self) -> HealthCheck {
        let asked = &self.context.program.manifest.health;
        let default = self.context.config.health;
        HealthCheck {
            interval: asked.interval.unwrap_or(default.interval),
            timeout: asked.timeout.unwrap_or(default.timeout),
            threshold: asked.threshold.unwrap_or(default.threshold),
        }
    }

    fn stop_grace(&self) -> Duration {
        self.context.program.manifest.stop_grace.unwrap_or(self.context.config.stop_grace)
    }

    async fn gone(&self, instance: InstanceId, reason: &str) {
        let event = HostEvent::Gone { name: self.name(), instance, reason: reason.into() };
        // A node that no longer listens is shutting down.
        let _ = self.context.events.send(event).await;
    }

    fn forget_run(&self) {
        *self.context.ready_since.lock() = None;
        let mut status = self.context.status.lock();
        status.pid = None;
        status.instance = None;
        status.healthy = false;
        status.memory_bytes = 0;
        status.cpu_percent = 0.0;
        status.threads = 0;
        status.open_files = 0;
    }

    fn give_up(&mut self, reason: &str) {
        self.step(Step::GaveUp, reason);
        let tail = self.context.logs.tail(TAIL_LINES);
        let said = tail.iter().filter(|record| record.stream != LogStream::Supervisor);
        let last: Vec<&str> = said.map(|record| record.message.as_str()).collect();
        tracing::error!(
            plugin = %self.name(),
            %reason,
            last_lines = ?last,
            "plugin FAILED; the node and its other plugins are unaffected"
        );
        self.context.logs.supervisor("error", 0, format!("failed: {reason}"));
        self.tell_first(Err(reason.into()));
    }

    fn warn(&self, text: &str) {
        let pid = self.context.status.lock().pid.unwrap_or(0);
        self.context.logs.supervisor("warn", pid, text);
        tracing::warn!(plugin = %self.name(), "{text}");
    }

    fn tell_first(&mut self, outcome: Result<(), String>) {
        if let Some(first) = self.first.take() {
            // Whoever loaded it may not wait.
            let _ = first.send(outcome);
        }
    }

    fn step(&self, step: Step, reason: &str) {
        let mut status = self.context.status.lock();
        match status.state.after(step) {
            Ok(state) => {
                status.state = state;
                status.reason = reason.into();
            }
            Err(illegal) => tracing::error!(plugin = %status.name, %illegal, "supervisor's fault"),
        }
    }

    fn state(&self) -> State {
        self.context.status.lock().state
    }

    fn name(&self) -> String {
        self.context.program.manifest.name.to_string()
    }
}
