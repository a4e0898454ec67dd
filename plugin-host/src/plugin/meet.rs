//! The first questions to a plugin that has just become ready, and those that come again: what it
//! serves, what it is, whether it takes its configuration, what it counts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use protocol::service::ServiceName;
use serde_json::Value;
use tokio::time::{sleep, sleep_until};

use super::{Run, Supervisor, watch::SETTLED_AFTER};
use crate::{
    channel::Channel,
    contract::{self, Answer, Described, Figures},
    descriptors::{self, Description},
    plan,
    stillness::Asker,
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
    /// The part of the configuration that it was handed, or would have been.
    pub(super) part: Option<Arc<Value>>,
}

/// What it serves.
struct Served {
    services: Vec<(ServiceName, [u8; 32])>,
    descriptors: Bytes,
    /// The `Lifecycle` contract among it.
    lifecycle: bool,
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
        let (told, Served { services, descriptors, lifecycle }) = tokio::join!(told, served);
        // Method by method: it may have the others without describing itself.
        let contract = lifecycle || matches!(told, Answer::Is(_));
        match told {
            Answer::Is(told) => self.note(told),
            Answer::Failed(reason) if lifecycle => {
                self.remark(format!("it does not describe itself: {reason}"));
            }
            Answer::NotOffered | Answer::Failed(_) => self.context.status.lock().described = None,
        }
        let part = self.context.part.borrow().clone();
        let met = Met { services, descriptors, contract, part };
        let Some(part) = &met.part else { return Ok(met) };
        let within = deadline.saturating_duration_since(Instant::now()).max(QUESTION_PATIENCE);
        let taken = if contract {
            contract::configure(channel, part, within).await
        } else {
            Answer::NotOffered
        };
        match taken {
            Answer::Failed(reason) => Err(format!("configuration: it refuses its part: {reason}")),
            // Each service of the node has a part; not each has something to configure.
            Answer::NotOffered if !self.is_built_in() => {
                self.remark("there is a configuration for it, and it takes none".into());
                Ok(met)
            }
            Answer::NotOffered | Answer::Is(()) => Ok(met),
        }
    }

    fn is_built_in(&self) -> bool {
        let services = &self.context.config.built_in;
        services.iter().any(|service| service.name == self.context.seat.plugin)
    }

    /// Keeps what it says of itself, and tells where its manifest says otherwise.
    fn note(&self, mut told: Described) {
        let manifest = &self.context.program.manifest;
        let nothing = semver::Version::new(0, 0, 0);
        if manifest.version == nothing {
            // A command line has no manifest; then its own word is better than none.
            if semver::Version::parse(&told.version).is_ok() {
                self.context.status.lock().version.clone_from(&told.version);
            }
        } else {
            told.contradictions = contract::contradictions(&told, manifest);
            for text in &told.contradictions {
                self.remark(text.clone());
            }
        }
        self.context.status.lock().described = Some(told);
    }

    /// Tells something that is not as it should be, in its log and in its status.
    fn remark(&self, text: String) {
        self.warn(&text);
        self.context.status.lock().warnings.push(text);
    }

    /// Hands a run its configuration whenever that changes. Never ends.
    pub(super) async fn watch_part(&self, run: &Run) {
        let mut part = self.context.part.clone();
        let mut handed = run.part.clone();
        loop {
            let now = part.borrow_and_update().clone();
            if run.contract
                && now != handed
                && let Some(now) = &now
            {
                self.hand_on(run, now).await;
            }
            handed = now;
            // Its sender lives as long as the plugin is loaded.
            if part.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn hand_on(&self, run: &Run, part: &Value) {
        match contract::configure(&run.channel, part, CONFIGURE_PATIENCE).await {
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

    /// Asks for its figures as often as it is sampled, where it did something meanwhile: a program
    /// that slept has no other figures. Never ends.
    pub(super) async fn watch_figures(&self, run: &Run) {
        let interval = self.context.config.stats_interval;
        let chance = rand::random::<f64>();
        let mut asker = Asker::default();
        if !run.contract {
            return std::future::pending().await;
        }
        loop {
            sleep_until(self.due(interval, chance).into()).await;
            let mut stillness = run.stillness.lock().await;
            let stirred = self.stirred(run, &mut stillness).await;
            if asker.holds(stirred) {
                continue;
            }
            let question = contract::metrics(&run.channel, QUESTION_PATIENCE);
            match self.context.turns.question(question).await {
                Answer::Is(figures) => self.count(figures),
                Answer::NotOffered => return std::future::pending().await,
                // Whether it is ill is for its health to say.
                Answer::Failed(_) => continue,
            }
            sleep(SETTLED_AFTER).await;
            stillness.answered(self.traces(run).await);
            asker.answered(Some(stirred));
        }
    }

    /// Keeps its figures; tells when it has others than before that cannot be shown.
    fn count(&self, figures: Figures) {
        let Figures { metrics, refused, why } = figures;
        let before = {
            let mut status = self.context.status.lock();
            status.metrics = metrics;
            std::mem::replace(&mut status.figures_refused, refused)
        };
        if refused > before {
            self.warn(&format!("{refused} of its figures cannot be shown; the first: {why}"));
        }
    }

    /// Its services with their schema hashes, and their descriptors.
    async fn describe(&self, channel: &Arc<Channel>, probed: bool) -> Served {
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
        let services =
            services.into_iter().map(|name| (name.clone(), description.schema(&name))).collect();
        self.context.status.lock().warnings = warnings;
        Served { services, descriptors, lifecycle: description.lifecycle }
    }
}
