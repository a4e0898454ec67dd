//! One plugin's grants while it runs: asked by whoever enforces them, and told what was refused.
//!
//! Every refusal is counted; a bounded number of them is logged, because a plugin that tries a
//! thousand times a second must not write the operator's log.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use protocol::{
    manifest::{
        Permission,
        permission::{CallRule, Kind},
    },
    service::MethodPath,
};

use super::{Granted, Policy, meet};
use crate::{egress::bucket::Bucket, logs::Logs, tokens::Tokens};

/// Refusals logged at once: all that a plugin does wrong when it starts.
const LOGGED_BURST: f64 = 20.0;

/// Refusals logged per second after that.
const LOGGED_PER_SECOND: f64 = 0.2;

/// What a plugin may do, and what it was refused. Shared by all that enforce it.
pub struct Access {
    plugin: String,
    asked: Vec<Permission>,
    policy: Policy,
    granted: Granted,
    counters: Counters,
    logs: Logs,
    refusals: Mutex<Refusals>,
    /// Bytes per second in both directions together; `None` without bound.
    bandwidth: Mutex<Option<Bucket>>,
}

#[derive(Default)]
struct Counters {
    denials: [AtomicU64; Kind::ALL.len()],
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// What was counted since the plugin was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Refused attempts, in the order of [`Kind::ALL`].
    pub denials: [u64; Kind::ALL.len()],
    /// Connections that the egress proxy made.
    pub connections: u64,
    /// Bytes that it carried outwards.
    pub sent_bytes: u64,
    /// Bytes that it carried inwards.
    pub received_bytes: u64,
}

impl Counts {
    /// Refused attempts of all kinds.
    pub fn denied(&self) -> u64 {
        self.denials.iter().sum()
    }
}

/// How many refusals may still be logged.
struct Refusals {
    loggable: Tokens,
    unsaid: u64,
}

impl Refusals {
    fn new(now: Instant) -> Self {
        Self { loggable: Tokens::full(LOGGED_PER_SECOND, LOGGED_BURST, now), unsaid: 0 }
    }

    /// Whether one may be logged at `now`, and how many were not said before it.
    fn log(&mut self, now: Instant) -> Option<u64> {
        if self.loggable.take_one(now) {
            return Some(std::mem::take(&mut self.unsaid));
        }
        self.unsaid += 1;
        None
    }
}

impl Access {
    /// Grants `plugin` what it `asked` for as far as the `policy` allows, and logs what it does
    /// not get.
    pub fn new(plugin: &str, asked: &[Permission], policy: Policy, logs: Logs) -> Self {
        let granted = meet(asked, &policy);
        for denied in &granted.denied {
            let text = denied.explain(plugin);
            tracing::warn!(plugin, "{text}");
            logs.supervisor("warn", 0, text);
        }
        Self {
            plugin: plugin.into(),
            asked: asked.to_vec(),
            policy,
            granted,
            counters: Counters::default(),
            logs,
            refusals: Mutex::new(Refusals::new(Instant::now())),
            bandwidth: Mutex::new(None),
        }
    }

    /// Bounds what the egress proxy carries, in both directions together; `None` lifts the bound.
    /// Connections that are open keep to it from now on.
    pub fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        let bucket = bytes_per_second.map(|rate| Bucket::new(rate, Instant::now()));
        *self.bandwidth.lock() = bucket;
    }

    /// Up to `wanted` bytes that may be carried now, or how long to wait for some.
    pub(crate) fn take_bandwidth(&self, wanted: usize) -> Result<usize, Duration> {
        match &mut *self.bandwidth.lock() {
            Some(bucket) => bucket.take(wanted, Instant::now()),
            None => Ok(wanted),
        }
    }

    /// Returns what was taken and not carried.
    pub(crate) fn return_bandwidth(&self, bytes: usize) {
        if let Some(bucket) = &mut *self.bandwidth.lock() {
            bucket.give_back(bytes);
        }
    }

    /// What is granted.
    pub fn granted(&self) -> &Granted {
        &self.granted
    }

    /// What was asked for.
    pub fn asked(&self) -> &[Permission] {
        &self.asked
    }

    /// What was counted until now.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            denials: std::array::from_fn(|at| read(&self.counters.denials[at])),
            connections: read(&self.counters.connections),
            sent_bytes: read(&self.counters.sent),
            received_bytes: read(&self.counters.received),
        }
    }

    /// Whether the plugin may call `method`. A refusal is counted and logged; its text says what
    /// to change.
    pub fn may_call(&self, method: &MethodPath) -> Result<(), String> {
        if self.granted.calls.permits(method) {
            return Ok(());
        }
        let wanted = Permission::Call(CallRule::Service(method.service()));
        let matches = |permission: &Permission| match permission {
            Permission::Call(rule) => rule.matches(method),
            _ => false,
        };
        let denied_by = self.policy.deny.iter().find(|rule| matches(rule));
        let text = self.refuse(
            &format!("call {method}"),
            &wanted,
            self.asked.iter().any(matches),
            denied_by.map(ToString::to_string),
        );
        Err(text)
    }

    /// Counts and logs one refusal of `wanted`, and gives its text.
    pub(crate) fn refuse(
        &self,
        what: &str,
        wanted: &Permission,
        asked: bool,
        denied_by: Option<String>,
    ) -> String {
        let text = self.explain(what, wanted, asked, denied_by);
        self.counters.denials[wanted.kind() as usize].fetch_add(1, Ordering::Relaxed);
        self.log(&text);
        text
    }

    fn explain(
        &self,
        what: &str,
        wanted: &Permission,
        asked: bool,
        denied_by: Option<String>,
    ) -> String {
        let plugin = &self.plugin;
        if let Some(rule) = denied_by {
            return format!(
                "plugin {plugin} may not {what}: the node's configuration denies it by `{rule}` \
                 (plugins.deny, plugins.grants.{plugin}.deny)"
            );
        }
        let allow =
            format!("add `{wanted}` to plugins.grants.{plugin} in the node's configuration");
        if asked {
            return format!(
                "plugin {plugin} may not {what}: the operator does not allow it; {allow}"
            );
        }
        format!(
            "plugin {plugin} may not {what}: it does not ask for it; add `{wanted}` to \
             `permissions` in its plugin.yaml (or load it with --permission), and, where the \
             operator does not allow it yet, {allow}"
        )
    }

    /// Logs `text`, unless too much was logged lately.
    pub(crate) fn log(&self, text: &str) {
        let Some(unsaid) = self.refusals.lock().log(Instant::now()) else { return };
        let more =
            if unsaid > 0 { format!(" ({unsaid} more were not logged)") } else { String::new() };
        self.logs.supervisor("warn", 0, format!("denied: {text}{more}"));
        tracing::warn!(plugin = %self.plugin, "denied: {text}{more}");
    }

    /// Counts one connection of the egress proxy.
    pub(crate) fn connected(&self) {
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes that went out.
    pub(crate) fn sent(&self, bytes: u64) {
        self.counters.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that came in.
    pub(crate) fn received(&self, bytes: u64) {
        self.counters.received.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("plugin", &self.plugin).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(asked: &[&str], allow: &[&str]) -> Access {
        let read = |list: &[&str]| list.iter().map(|text| text.parse().expect(text)).collect();
        let asked: Vec<Permission> = read(asked);
        let policy = Policy { allow: read(allow), deny: Vec::new() };
        Access::new("echo", &asked, policy, Logs::new("node", "echo", 100))
    }

    fn method(text: &str) -> MethodPath {
        text.parse().expect(text)
    }

    #[test]
    fn a_refused_call_is_counted_logged_and_says_what_to_add() {
        let access = access(&["call:demo.v1.Counter"], &["call:*"]);
        assert_eq!(access.may_call(&method("demo.v1.Counter/Add")), Ok(()));
        let text = access.may_call(&method("demo.v1.Kv/Get")).expect_err("not asked for");
        assert!(text.contains("`call:demo.v1.Kv` to `permissions`"), "{text}");
        assert_eq!(access.counts().denied(), 1);
        assert_eq!(access.counts().denials[Kind::Call as usize], 1);
        let logged = access.logs.tail(1).remove(0);
        assert!(logged.message.contains(&text), "{}", logged.message);
    }

    #[test]
    fn what_the_operator_does_not_allow_is_told_at_once_and_when_it_is_tried() {
        let access = access(&["call:demo.v1.Kv", "network"], &["call:demo.v1.Counter"]);
        let told: Vec<_> = access.logs.tail(0).iter().map(|it| it.message.clone()).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].contains("grants: { echo: [\"network\"] }"), "{}", told[1]);
        let text = access.may_call(&method("demo.v1.Kv/Get")).expect_err("not allowed");
        assert!(text.contains("plugins.grants.echo"), "{text}");
        assert!(!text.contains("plugin.yaml"), "{text}");
    }

    #[test]
    fn a_plugin_that_tries_without_end_does_not_fill_the_log() {
        let now = Instant::now();
        let mut refusals = Refusals::new(now);
        let said = (0..1_000).filter(|_| refusals.log(now).is_some()).count();
        assert_eq!(said, LOGGED_BURST as usize);
        let later = now + Duration::from_secs(10);
        assert_eq!(refusals.log(later), Some(1_000 - LOGGED_BURST as u64));
    }
}
