//! What is done to a plugin that is loaded: restart, reload, scale.

use std::{sync::Arc, time::Duration};

use protocol::{manifest::Resources, ports::StoreError};

use super::{
    Host,
    entry::{Entry, Instance},
    loaded::{self, Loaded},
};
use crate::{
    level,
    lifecycle::State,
    part::{self, Parts},
    plugin::Order,
    status::{ChangeError, LoadError, PluginStatus, UnknownPlugin},
};

/// Hands a plugin its part, where that is another than before.
fn hand_on(entry: &Entry, part: serde_json::Value) {
    entry.part.send_if_modified(|now| {
        let changed = now.as_deref() != Some(&part);
        *now = Some(Arc::new(part));
        changed
    });
}

impl Host {
    /// Starts every instance of a plugin again, one after the other, so that of several there is
    /// always one that answers. One that had ended for good begins a new life. Returns when all
    /// are ready again; the others keep running where one is not.
    pub async fn restart(&self, name: &str) -> Result<PluginStatus, ChangeError> {
        let entry = self.entry(name)?;
        let _one_at_a_time = entry.life.change().await;
        let count = self.entry(name)?.instances.len();
        for place in 0..count {
            let entry = self.same(name, &entry)?;
            let Some(instance) = entry.instances.get(place) else { break };
            let alive = instance.status.lock().state.is_alive();
            let told = if alive { again(instance).await } else { None };
            let again = if let Some(again) = told {
                again
            } else {
                // What is left of it goes before the next begins.
                instance.ended.cancelled().await;
                self.anew(name, &entry, place).await?
            };
            again.map_err(|reason| ChangeError::NotReady { name: instance.key.clone(), reason })?;
        }
        Ok(self.info(name)?)
    }

    /// Reads a plugin's manifest and program anew, ends what runs, and starts what was read. A
    /// manifest that is refused changes nothing.
    pub async fn reload(&self, name: &str) -> Result<PluginStatus, ChangeError> {
        let entry = self.entry(name)?;
        let guard = entry.life.change().await;
        let entry = self.same(name, &entry)?;
        let mut wanted = entry.loaded.clone();
        // The manifest may have another name now; what is reloaded stays who it is.
        wanted.name = Some(name.into());
        let resolved = self.resolve(wanted).await?;
        self.inner.check(&resolved)?;
        entry.end().await;
        drop(guard);
        let outcome = self.enter(resolved, false, entry.keep)?;
        match outcome.await {
            Ok(Ok(())) => Ok(self.info(name)?),
            Ok(Err(reason)) => Err(self.not_started(name, reason).into()),
            Err(_) => Err(LoadError::ShuttingDown.into()),
        }
    }

    /// Gives a plugin `count` instances: starts further ones, or drains and ends the youngest.
    /// Remembered. Returns when all are ready, or those too many are gone.
    pub async fn scale(&self, name: &str, count: u32) -> Result<PluginStatus, ChangeError> {
        let entry = self.entry(name)?;
        let _one_at_a_time = entry.life.change().await;
        let entry = self.same(name, &entry)?;
        let not_startable = || {
            LoadError::Invalid(format!("{name} cannot be started at all: see `plugin info {name}`"))
        };
        let program = entry.program.clone().ok_or_else(not_startable)?;
        self.inner.check_count(&program, count)?;
        let wanted = count as usize;
        let outcome = if wanted < entry.instances.len() {
            self.shrink(name, &entry, wanted).await;
            Ok(())
        } else {
            self.grow(name, &entry, wanted).await?
        };
        self.remember_count(name, &entry, count).await.map_err(LoadError::Store)?;
        outcome.map_err(|reason| ChangeError::NotReady { name: name.into(), reason })?;
        Ok(self.info(name)?)
    }

    /// Hands a plugin its part of the node's configuration anew, now and at every start. Nothing
    /// where it is as before.
    pub fn configure(&self, name: &str, part: serde_json::Value) -> Result<(), UnknownPlugin> {
        let entry = self.entry(name)?;
        self.with(name, &entry, |entry| {
            entry.loaded.overrides.part = Some(part.clone());
            hand_on(entry, part);
        });
        Ok(())
    }

    /// The operator's word to all plugins anew: each that is loaded is handed its own part where
    /// that has changed, now and at every start. Where nothing is left to say, that is an empty
    /// map. The node's own services are not among them: see [`Host::configure`].
    pub fn configure_all(&self, parts: Parts) {
        let plugins = self.inner.plugins.lock();
        for (name, entry) in plugins.iter().filter(|(_, it)| it.loaded.overrides.part.is_none()) {
            let Some(program) = &entry.program else { continue };
            let said = part::whole(program.manifest.config.as_ref(), parts.get(name));
            // Whoever was never told anything is not told now that there is nothing.
            let before = entry.part.borrow().is_some();
            if let Some(now) = said.or_else(|| before.then(|| serde_json::json!({}))) {
                hand_on(entry, now);
            }
        }
        // Under the lock of plugins, as whoever enters reads it.
        *self.inner.parts.lock() = parts;
    }

    /// Changes what a plugin may use, on every instance and without a restart; what `wish` does not
    /// name stays. Remembered. Where one instance cannot have it, the error says which, and those
    /// before it have it already.
    pub async fn limit(&self, name: &str, wish: Resources) -> Result<PluginStatus, ChangeError> {
        let entry = self.entry(name)?;
        let _one_at_a_time = entry.life.change().await;
        let entry = self.same(name, &entry)?;
        let isolation = entry.program.as_ref().map(|program| program.manifest.isolation);
        let isolation = isolation.unwrap_or_default();
        level::may_limit(isolation, &wish)
            .map_err(|why| LoadError::Invalid(format!("{name}: limits stay as they are: {why}")))?;
        for instance in &entry.instances {
            let allowance = instance.allowance.clone();
            let changed = tokio::task::spawn_blocking(move || allowance.change(&wish)).await;
            let refused = |error: &dyn std::fmt::Display| {
                LoadError::Invalid(format!("{}: limits stay as they are: {error}", instance.key))
            };
            changed.map_err(|error| refused(&error))?.map_err(|error| refused(&error))?;
            entry.access.set_bandwidth(instance.allowance.network_bandwidth());
            let mut status = instance.status.lock();
            status.memory_limit_bytes = instance.allowance.memory_limit();
            status.mechanisms = level::mechanisms(isolation, &instance.allowance);
        }
        let mut remembered = entry.loaded.clone();
        remembered.limits = wish.over(&remembered.limits);
        self.keep(name, &entry, remembered).await.map_err(LoadError::Store)?;
        Ok(self.info(name)?)
    }

    async fn shrink(&self, name: &str, entry: &Entry, wanted: usize) {
        let surplus = &entry.instances[wanted..];
        // All are told before any is awaited.
        for instance in surplus {
            instance.stop.cancel();
        }
        futures::future::join_all(surplus.iter().map(Instance::end)).await;
        self.with(name, entry, |entry| entry.instances.truncate(wanted));
    }

    async fn grow(
        &self,
        name: &str,
        entry: &Entry,
        wanted: usize,
    ) -> Result<Result<(), String>, ChangeError> {
        let Some(program) = entry.program.clone() else { return Ok(Ok(())) };
        let mut firsts = Vec::new();
        {
            let mut plugins = self.inner.plugins.lock();
            let taken: usize = plugins.values().map(|entry| entry.instances.len()).sum();
            let most = self.inner.config.plugins_max;
            if taken + wanted - entry.instances.len() > most {
                return Err(LoadError::TooMany(most).into());
            }
            let now = plugins.get_mut(name).filter(|now| now.life.is(&entry.life));
            let Some(now) = now.filter(|_| !entry.life.has_ended() && !self.inner.is_closing())
            else {
                return Err(UnknownPlugin(name.into()).into());
            };
            for number in now.instances.len() + 1..=wanted {
                let number = number as u32;
                let (part, wish) = (now.part.subscribe(), now.loaded.limits);
                let said = (&now.logs, &now.access);
                let started = self.start_instance(&program, number, said, part, false, &wish);
                now.instances.push(started.0);
                firsts.push(started.1);
            }
        }
        let ended = |_| Err("its supervisor has ended".into());
        let firsts = firsts.into_iter().map(|first| async { first.await.unwrap_or_else(ended) });
        Ok(futures::future::join_all(firsts).await.into_iter().collect())
    }

    async fn remember_count(
        &self,
        name: &str,
        entry: &Entry,
        count: u32,
    ) -> Result<(), StoreError> {
        let mut remembered = entry.loaded.clone();
        remembered.instances = Some(count);
        self.keep(name, entry, remembered).await
    }

    /// What is to be loaded again by the next host.
    async fn keep(&self, name: &str, entry: &Entry, remembered: Loaded) -> Result<(), StoreError> {
        self.with(name, entry, |entry| entry.loaded = remembered.clone());
        if entry.keep {
            remembered.remember(&self.inner.store, name).await?;
            // Unloaded meanwhile: whoever writes last must know.
            if entry.life.has_ended() {
                loaded::forget(&self.inner.store, name).await?;
            }
        }
        Ok(())
    }

    /// A new supervisor in the place of one that has ended.
    async fn anew(
        &self,
        name: &str,
        entry: &Entry,
        place: usize,
    ) -> Result<Result<(), String>, ChangeError> {
        let Some(program) = entry.program.clone() else {
            if entry.instances[place].status.lock().state == State::Stopped {
                let text = format!("{name} is switched off: set services.{name}.enabled");
                return Err(LoadError::Invalid(text).into());
            }
            // It could not even be looked at; now it may.
            let outcome = self.enter(self.resolve(entry.loaded.clone()).await?, false, true)?;
            return Ok(outcome.await.unwrap_or_else(|_| Err("the node is shutting down".into())));
        };
        let (part, number) = (entry.part.subscribe(), place as u32 + 1);
        let (said, wish) = ((&entry.logs, &entry.access), &entry.loaded.limits);
        let (instance, first) = self.start_instance(&program, number, said, part, false, wish);
        if let Some(group) = &entry.instances[place].group {
            group.leave(&entry.instances[place].orders);
        }
        let (stop, ended) = (instance.stop.clone(), instance.ended.clone());
        let mut taken = false;
        self.with(name, entry, |entry| {
            if let Some(old) = entry.instances.get_mut(place) {
                *old = instance.clone();
                taken = true;
            }
        });
        if !taken {
            stop.cancel();
            ended.cancelled().await;
            return Err(UnknownPlugin(name.into()).into());
        }
        Ok(first.await.unwrap_or_else(|_| Err("its supervisor has ended".into())))
    }

    /// The entry as it is now, if it is still the same life.
    fn same(&self, name: &str, entry: &Entry) -> Result<Entry, UnknownPlugin> {
        let now = self.entry(name)?;
        if now.life.is(&entry.life) { Ok(now) } else { Err(UnknownPlugin(name.into())) }
    }

    /// Changes the entry where it is kept, if it is still the same life.
    fn with(&self, name: &str, entry: &Entry, change: impl FnOnce(&mut Entry)) {
        let mut plugins = self.inner.plugins.lock();
        if let Some(now) = plugins.get_mut(name).filter(|now| now.life.is(&entry.life)) {
            change(now);
        }
    }
}

/// Starts an instance again that has a supervisor, and waits until it is ready; `None` where it
/// ended for good before it was told.
async fn again(instance: &Instance) -> Option<Result<(), String>> {
    let mut phase = instance.phase.clone();
    let before = phase.borrow().attempt;
    let why = "restarted by the operator".to_owned();
    let order = Order::Start { delay: Duration::ZERO, why };
    instance.orders.send(order).await.ok()?;
    let settled = phase.wait_for(|phase| {
        let begun = phase.attempt > before;
        let done = phase.state == State::Running || phase.over == phase.attempt;
        (begun && done) || !phase.state.is_alive()
    });
    match settled.await.map(|phase| (phase.state, phase.attempt)) {
        Ok((State::Running, _)) => Some(Ok(())),
        Ok((_, attempt)) if attempt == before => None,
        _ => Some(Err(instance.status.lock().reason.clone())),
    }
}
