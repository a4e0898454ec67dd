//! What a supervisor says: its state, to everybody; its reasons, to people.

use std::time::SystemTime;

use protocol::id::InstanceId;

use super::{Supervisor, TAIL_LINES};
use crate::{
    lifecycle::{State, Step},
    logs::LogStream,
    status::{HostEvent, Transition},
};

impl Supervisor {
    /// Takes a step, and tells it to those who watch. A step that is illegal is refused.
    pub(super) fn step(&self, step: Step, reason: &str) {
        let (from, to) = {
            let mut status = self.context.status.lock();
            match status.state.after(step) {
                Ok(to) => {
                    let from = std::mem::replace(&mut status.state, to);
                    status.reason = reason.into();
                    (from, to)
                }
                Err(illegal) => {
                    tracing::error!(plugin = %status.name, %illegal, "supervisor's fault");
                    return;
                }
            }
        };
        self.context.phase.send_modify(|phase| {
            phase.state = to;
            if !to.has_process() {
                phase.over = phase.attempt;
            }
        });
        let seat = &self.context.seat;
        let pid = self.pid();
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        self.context.logs.supervisor("debug", pid, format!("{from} -> {to}{why}"));
        tracing::debug!(plugin = %seat.key(), %from, %to, reason, "plugin changed state");
        // Without a listener it is in the log all the same.
        let _ = self.context.transitions.send(Transition {
            plugin: seat.plugin.clone(),
            number: seat.number,
            from,
            to,
            reason: reason.into(),
            at: SystemTime::now(),
        });
    }

    /// Says why it is in the state it is in.
    pub(super) fn explain(&self, reason: &str) {
        self.context.status.lock().reason = reason.into();
    }

    pub(super) fn give_up(&mut self, step: Step, reason: &str) {
        self.forget_run();
        self.step(step, reason);
        let tail = self.context.logs.tail(TAIL_LINES);
        let said = tail.iter().filter(|record| record.stream != LogStream::Supervisor);
        let last: Vec<&str> = said.map(|record| record.message.as_str()).collect();
        tracing::error!(
            plugin = %self.context.seat.key(),
            %reason,
            last_lines = ?last,
            "plugin FAILED; the node and its other plugins are unaffected"
        );
        self.context.logs.supervisor("error", 0, format!("failed: {reason}"));
        self.tell_first(Err(reason.into()));
    }

    pub(super) fn warn(&self, text: &str) {
        self.context.logs.supervisor("warn", self.pid(), text);
        tracing::warn!(plugin = %self.context.seat.key(), "{text}");
    }

    pub(super) fn tell_first(&mut self, outcome: Result<(), String>) {
        if let Some(first) = self.first.take() {
            // Whoever loaded it may not wait.
            let _ = first.send(outcome);
        }
    }

    pub(super) async fn gone(&self, instance: InstanceId, reason: &str) {
        let event = HostEvent::Gone { name: self.name(), instance, reason: reason.into() };
        // A node that no longer listens is shutting down.
        let _ = self.context.events.send(event).await;
    }

    pub(super) fn forget_run(&self) {
        *self.context.ready_since.lock() = None;
        let mut status = self.context.status.lock();
        status.pid = None;
        status.instance = None;
        status.healthy = false;
        status.memory_bytes = 0;
        status.cpu_percent = 0.0;
        status.threads = 0;
        status.open_files = 0;
        status.metrics.clear();
        status.figures_refused = 0;
    }

    pub(super) fn state(&self) -> State {
        self.context.status.lock().state
    }

    pub(super) fn name(&self) -> String {
        self.context.seat.plugin.clone()
    }

    fn pid(&self) -> u32 {
        self.context.status.lock().pid.unwrap_or(0)
    }
}
