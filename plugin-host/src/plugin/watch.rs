//! A run that is ready, watched to its end: its process, its health, what it uses.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until, timeout, timeout_at},
};

use super::{Order, Run, Supervisor, TAIL_LINES, told};
use crate::{
    allowance, beat,
    cgroup::Counts,
    channel::Channel,
    config::HealthCheck,
    contract,
    courtesy::Courtesy,
    level,
    lifecycle::Step,
    limits::{self, Size, Standing},
    logs::LogStream,
    process::End,
    ready::{self, Health},
    stats::{Sample, Sampler},
    stillness::{Asker, Stillness, Traces},
    turns::Work,
};

/// How long after an answer a plugin has done what there is to do about it.
pub(super) const SETTLED_AFTER: Duration = Duration::from_millis(50);

/// How a run came to its end.
pub(super) enum Watched {
    /// The instance is to be ended.
    Stopped,
    /// Somebody wants something else of it.
    Ordered(Order),
    /// By itself, or because it was unhealthy.
    Ended {
        /// With status 0.
        clean: bool,
        /// Why, in one clause.
        reason: String,
    },
}

/// Why a run is over, while its process may still be there.
enum Over {
    Stopped,
    Ordered(Order),
    Ended(End),
    Unhealthy(String),
    /// It used more than it may, and is to be ended for it.
    Exceeded(String),
}

impl Supervisor {
    /// Watches a ready run to its end. Nothing of it is left afterwards.
    pub(super) async fn watch(&mut self, run: Run, orders: &mut mpsc::Receiver<Order>) -> Watched {
        let stop = self.context.stop.clone();
        let over = tokio::select! {
            biased;
            () = stop.cancelled() => Over::Stopped,
            end = run.process.ended() => Over::Ended(end),
            order = told(orders) => Over::Ordered(order),
            reason = self.watch_health(&run) => Over::Unhealthy(reason),
            reason = self.watch_use(&run) => Over::Exceeded(reason),
            () = self.watch_figures(&run) => unreachable!("asking never ends"),
            () = self.watch_part(&run) => unreachable!("changes never end"),
        };
        let reason = match &over {
            Over::Stopped => "unloaded".to_owned(),
            Over::Ordered(order) => order.why().to_owned(),
            Over::Ended(end) => {
                self.because_of_limits(*end, format!("it ended: {}", run.process.tell(*end)))
            }
            Over::Unhealthy(reason) | Over::Exceeded(reason) => reason.clone(),
        };
        // First nobody new comes, then what is there is finished.
        self.context.channels.remove(run.instance);
        self.context.roll.leave(&self.context.seat.plugin);
        match &over {
            Over::Stopped | Over::Ordered(_) => self.step(Step::Drain, &reason),
            Over::Unhealthy(_) => self.step(Step::BecameUnhealthy, &reason),
            Over::Ended(_) | Over::Exceeded(_) => {}
        }
        self.gone(run.instance, &reason).await;
        let grace = self.stop_grace();
        let Run { process, channel, captures, contract, .. } = run;
        let watched = match over {
            Over::Ended(end) => {
                process.stop(Duration::ZERO).await;
                Watched::Ended { clean: end.is_clean(), reason }
            }
            Over::Unhealthy(_) | Over::Exceeded(_) => {
                process.stop(grace / 2).await;
                Watched::Ended { clean: false, reason }
            }
            Over::Ordered(order) => {
                self.drain(process, &channel, contract, grace).await;
                Watched::Ordered(order)
            }
            Over::Stopped => {
                self.drain(process, &channel, contract, grace).await;
                Watched::Stopped
            }
        };
        channel.close().await;
        captures.finish().await;
        self.forget_run();
        if self.context.stop.is_cancelled() { Watched::Stopped } else { watched }
    }

    /// Half of the grace for calls in flight and the plugin's own draining, half for the program's
    /// own end.
    async fn drain(
        &self,
        process: level::Run,
        channel: &Arc<Channel>,
        contract: bool,
        grace: Duration,
    ) {
        let finish = async {
            if contract {
                // It counts as a call in flight itself; whoever does not offer it says so at once.
                let _ = contract::drain(channel, grace / 2).await;
            }
            channel.idle().await;
        };
        let idle = timeout(grace / 2, finish).await.is_ok();
        let pid = process.pid();
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
        let chance = rand::random::<f64>();
        let (mut failed, mut asker) = (0, Asker::default());
        loop {
            sleep_until(self.due(settings.interval, chance).into()).await;
            let mut stillness = run.stillness.lock().await;
            let stirred = self.stirred(run, &mut stillness).await;
            if asker.holds_for_now(stirred) {
                self.context.status.lock().last_health_check = Some(SystemTime::now());
                continue;
            }
            let probe = ready::probe(&run.channel, &service, settings.timeout);
            let health = self.context.turns.question(probe).await;
            let healthy = !matches!(health, Health::Not(_));
            {
                let mut status = self.context.status.lock();
                status.healthy = healthy;
                status.last_health_check = Some(SystemTime::now());
            }
            if let Health::Not(reason) = health {
                asker.answered(None);
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
                sleep(SETTLED_AFTER).await;
                stillness.answered(self.traces(run).await);
                asker.answered(Some(stirred));
            }
        }
    }

    /// How often the run was found to have done something.
    pub(super) async fn stirred(&self, run: &Run, stillness: &mut Stillness) -> u64 {
        match stillness.still(run.channel.begun()) {
            Some(stirred) => stirred,
            None => stillness.note(self.traces(run).await),
        }
    }

    /// What the run has left behind so far, where it is a process.
    pub(super) async fn traces(&self, run: &Run) -> Option<Traces> {
        let (init, calls) = (run.process.init()?, run.channel.begun());
        let look = move || Traces::of(init, calls);
        self.context.turns.work(Work::LookAtProcesses, look).await.flatten()
    }

    /// Samples what it uses. Ends with a reason once that is more than it may.
    async fn watch_use(&self, run: &Run) -> String {
        let allowance = &self.context.allowance;
        let Some(init) = run.process.init() else {
            // What runs inside the node has no processes to count.
            return std::future::pending().await;
        };
        let mut sampler = Sampler::new(init);
        let chance = rand::random::<f64>();
        let mut courtesy = Courtesy::new(allowance.standing());
        let (mut before, mut disk) = (Counts::default(), Some(0));
        loop {
            let sample;
            (sampler, sample) = self.sample(sampler).await;
            let wants = sample.map_or(0.0, |(sample, _)| sample.wants_percent);
            if courtesy.look(wants, run.channel.called()) {
                self.stand(courtesy.standing()).await;
            }
            if let Some((sample, now)) = sample {
                disk = self.disk_use().await;
                self.note_use(sample, disk, before, now);
                before = now;
            } else {
                self.context.status.lock().cpu_percent = 0.0;
            }
            // What it may use can have become less while it slept.
            if let Some(reason) = self.over_disk(disk) {
                self.context.status.lock().over_limit += 1;
                return reason;
            }
            let due = self.due(self.context.config.stats_interval, chance);
            self.listen(run, &mut courtesy, due).await;
        }
    }

    /// What it uses and what its limits did so far; `None` where nothing happened since the round
    /// before.
    async fn sample(&self, mut sampler: Sampler) -> (Sampler, Option<(Sample, Counts)>) {
        if sampler.still(Instant::now()) {
            return (sampler, None);
        }
        let allowance = self.context.allowance.clone();
        let look = move || {
            let sample = sampler.sample(Instant::now());
            (sampler, Some((sample, allowance.counts())))
        };
        match self.context.turns.work(Work::LookAtProcesses, look).await {
            Some(seen) => seen,
            // The node is ending.
            None => std::future::pending().await,
        }
    }

    /// Waits until `due`. Who was not called stands in front from its first call on.
    async fn listen(&self, run: &Run, courtesy: &mut Courtesy, due: Instant) {
        while courtesy.standing() != Standing::Called {
            let next = run.channel.next_call();
            if courtesy.heard(run.channel.called()) {
                self.stand(courtesy.standing()).await;
            } else if timeout_at(due.into(), next).await.is_err() {
                return;
            }
        }
        sleep_until(due.into()).await;
    }

    async fn stand(&self, standing: Standing) {
        let allowance = self.context.allowance.clone();
        let was = allowance.standing();
        let weigh = move || allowance.stand(standing);
        let logs = &self.context.logs;
        match self.context.turns.work(Work::Weigh, weigh).await {
            Some(Ok(true)) if standing == Standing::Behind => {
                let text = "it uses the processor and nobody calls it: others come first";
                logs.supervisor("info", 0, text);
            }
            Some(Ok(true)) if was == Standing::Behind => {
                logs.supervisor("info", 0, "others come first no longer");
            }
            // It is nothing to tell, it cannot stand elsewhere, or the node is ending.
            Some(Ok(_)) | None => return,
            Some(Err(error)) => {
                logs.supervisor("warn", 0, format!("its weight stays as it is: {error}"));
            }
        }
        let isolation = self.context.program.manifest.isolation;
        let mechanisms = level::mechanisms(isolation, &self.context.allowance);
        self.context.status.lock().mechanisms = mechanisms;
    }

    /// Bytes in its own directories; `None` where they hold more files than may be.
    async fn disk_use(&self) -> Option<u64> {
        let (own, state) = (self.place.paths.own(), self.place.paths.state.clone());
        let walk = move || {
            let own = allowance::disk_use(&own)?;
            Some(own + allowance::disk_use(&state)?)
        };
        self.context.turns.work(Work::WalkDirectories, walk).await.unwrap_or(Some(0))
    }

    /// Keeps what it uses, and tells what its control group refused it since `before`.
    fn note_use(&self, sample: Sample, disk: Option<u64>, before: Counts, now: Counts) {
        let refused = now.refused_forks.saturating_sub(before.refused_forks);
        let killed = now.oom_kills.saturating_sub(before.oom_kills);
        {
            let mut status = self.context.status.lock();
            status.memory_bytes = sample.memory_bytes;
            status.cpu_percent = sample.cpu_percent;
            status.cpu_seconds += sample.cpu_used;
            status.threads = sample.threads;
            status.open_files = sample.open_files;
            status.disk_bytes = disk.unwrap_or(status.disk_bytes);
            status.over_limit += refused + killed;
        }
        if refused > 0 {
            self.warn(&format!(
                "processes: it may have no more, and was refused {refused}; the node and its other \
                 plugins are unaffected"
            ));
        }
        if killed > 0 {
            self.warn(&format!(
                "OOM: {killed} of its processes were ended, for together they wanted more memory \
                 than they may; the node and its other plugins are unaffected"
            ));
        }
    }

    fn over_disk(&self, disk: Option<u64>) -> Option<String> {
        let most = self.context.allowance.disk_limit();
        match disk {
            Some(disk) if disk <= most => None,
            Some(disk) => {
                let (disk, most) = (Size(disk), Size(most));
                Some(format!("disk: its own directories hold {disk}, and may hold {most}"))
            }
            None => {
                let most = allowance::DISK_ENTRIES_MAX;
                Some(format!("disk: its own directories hold more than {most} files"))
            }
        }
    }

    /// Why a run ended, where a limit is the reason; otherwise `reason`.
    pub(super) fn because_of_limits(&self, end: End, reason: String) -> String {
        const KILLED: i32 = 9;
        const OUT_OF_CPU_TIME: i32 = 24;
        const FILE_TOO_LARGE: i32 = 25;
        let allowance = &self.context.allowance;
        // With version 2 the first process of the jail goes too, and cannot tell.
        let killed = end.signal == Some(KILLED) || end == End::default();
        let cause = if end.is_clean() {
            None
        } else if killed && allowance.counts().oom_kills > 0 {
            let most = allowance.memory_limit().map(|most| Size(most).to_string());
            Some(format!("OOM: it wanted more than {} of memory", most.unwrap_or_default()))
        } else if end.signal == Some(OUT_OF_CPU_TIME) {
            Some("cpu_seconds: it used the CPU time that it may".into())
        } else if end.signal == Some(FILE_TOO_LARGE) {
            Some("file_size: it wrote a larger file than it may".into())
        } else {
            return self.perhaps_for_memory(end, reason);
        };
        match cause {
            Some(cause) => {
                self.context.status.lock().over_limit += 1;
                format!("{cause}; {reason}")
            }
            None => reason,
        }
    }

    /// Where memory is limited process by process, what is over is refused, and the program ends as
    /// it likes: nobody knows why but itself. What it did and said may tell.
    fn perhaps_for_memory(&self, end: End, reason: String) -> String {
        let Some(most) = self.context.allowance.memory_by_process().filter(|_| !end.is_clean())
        else {
            return reason;
        };
        let tail = self.context.logs.tail(TAIL_LINES);
        let said = tail.iter().filter(|record| record.stream != LogStream::Supervisor);
        if !limits::may_be_memory(end.signal, said.map(|record| record.message.as_str())) {
            return reason;
        }
        let most = Size(most);
        format!("memory: it may have wanted more than {most}, which RLIMIT_DATA refuses; {reason}")
    }

    /// When the next round of something that is due every `interval` comes.
    pub(super) fn due(&self, interval: Duration, chance: f64) -> Instant {
        let since = self.context.epoch.elapsed();
        self.context.epoch + beat::next(since, interval, chance)
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
}
