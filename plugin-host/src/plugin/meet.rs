//! The first questions to a plugin that has just become ready, and those that come again: what it
//! serves, what it is, whether it takes its configuration, what it counts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::service::ServiceName;
use tokio::time::{sleep, sleep_until};

use super::{
    Run, Supervisor,
    watch::{SETTLED_AFTER, traces},
};
use crate::{
    channel::Channel,
    contract::{self, Answer, Described},
    descriptors::{self, Description},
    plan,
    stillness::{Asker, Stillness},
};

/// How long a reflection service may take; descriptors are wanted, not needed.
const REFLECTION_PATIENCE: Duration = Duration::from_secs(5);

/// How long describing itself may take, and counting.
const QUESTION_PATIENCE: Duration = Duration::from_secs(2);

/// How long taking a new configuration may take, and at least what is left of a start.
const CONFIGURE_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a plugin after the first questions.
pub(super) struct Met {
    pub(super) services: Vec<(ServiceName, [u8; 32])>,
    pub(super) descriptors: Bytes,
    /// It has the `Lifecycle` contract.
    pub(super) contract: bool,
}

impl Supervisor {
    /// Asks what it is and serves, both at once, and hands it its configuration. An error is its
    /// refusal of that.
    pub(super) async fn meet(
        &self,
        channel: &Arc<Channel>,
        probed: bool,
        deadline: Instant,
    ) -> Result<Met, String> {
        let told = contract::describe(channel, QUESTION_PATIENCE);
        let served = self.describe(channel, probed);
        let (told, (services, descriptors)) = tokio::join!(told, served);
        let contract = matches!(told, Answer::Is(_));
        let told = if let Answer::Is(told) = told { Some(told) } else { None };
        self.note(told);
        let part = self.context.part.borrow().clone();
        if let Some(part) = part.filter(|_| contract) {
            let left = deadline.saturating_duration_since(Instant::now());
            let within = left.max(QUESTION_PATIENCE);
            if let Answer::Failed(reason) = contract::configure(channel, &part, within).await {
                return Err(format!("configuration: it refuses its part: {reason}"));
            }
        }
        Ok(Met { services, descriptors, contract })
    }

    fn note(&self, told: Option<Described>) {
        let manifest = &self.context.program.manifest;
        let mut status = self.context.status.lock();
        if let Some(told) = &told
            && let Ok(version) = semver::Version::parse(&told.version)
            && version != manifest.version
        {
            if manifest.version == semver::Version::new(0, 0, 0) {
                // A command line has no manifest; then its own word is better than none.
                status.version.clone_from(&told.version);
            } else {
                status.warnings.push(format!(
                    "its manifest says version {}, and it says {version} itself",
                    manifest.version
                ));
            }
        }
        status.described = told;
    }

    /// Hands a run its configuration whenever that changes. Never ends.
    pub(super) async fn watch_part(&self, run: &Run) {
        let mut part = self.context.part.clone();
        part.mark_unchanged();
        loop {
            // Its sender lives as long as the plugin is loaded.
            if part.changed().await.is_err() || !run.contract {
                return std::future::pending().await;
            }
            let Some(now) = part.borrow_and_update().clone() else { continue };
            match contract::configure(&run.channel, &now, CONFIGURE_PATIENCE).await {
                Answer::Is(()) => {
                    let text = "it took its changed configuration";
                    self.context.logs.supervisor("info", run.process.pid(), text);
                }
                Answer::NotOffered => {
                    self.warn("its configuration changed, which it does not take while it runs");
                }
                Answer::Failed(reason) => {
                    self.warn(&format!("it refuses its changed configuration: {reason}"));
                }
            }
        }
    }

    /// Asks for its figures as often as it is sampled, where it did something meanwhile: a program
    /// that slept has no other figures. Never ends.
    pub(super) async fn watch_figures(&self, run: &Run, stillness: &Mutex<Stillness>) {
        let interval = self.context.config.stats_interval;
        let chance = rand::random::<f64>();
        let mut asker = Asker::default();
        if !run.contract {
            return std::future::pending().await;
        }
        loop {
            sleep_until(self.due(interval, chance).into()).await;
            let stirred = stillness.lock().look(run.process.init(), run.channel.begun());
            if asker.holds(stirred) {
                continue;
            }
            match contract::metrics(&run.channel, QUESTION_PATIENCE).await {
                Answer::Is(metrics) => self.context.status.lock().metrics = metrics,
                Answer::NotOffered => break,
                // Whether it is ill is for its health to say.
                Answer::Failed(_) => continue,
            }
            sleep(SETTLED_AFTER).await;
            stillness.lock().answered(traces(run));
            asker.answered(Some(stirred));
        }
        std::future::pending::<()>().await;
    }

    /// Its services with their schema hashes, and their descriptors.
    async fn describe(
        &self,
        channel: &Arc<Channel>,
        probed: bool,
    ) -> (Vec<(ServiceName, [u8; 32])>, Bytes) {
        let program = &self.context.program;
        let mut warnings =
            plan::warnings(&self.context.config, program, self.context.access.granted());
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
