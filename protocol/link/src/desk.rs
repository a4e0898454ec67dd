//! Where callers, handlers and bodies leave word for the driver.
//!
//! The desk belongs to one link. Whoever wants something of the driver writes the call's number on
//! a list (once, however often it wants something) and wakes the driver if it is at rest. Both
//! lists are bounded by the calls in flight, and those by
//! [`calls_max`](crate::LinkSettings::calls_max): a call that finds the desk full is refused.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use protocol::{
    failure::{Failure, Reason},
    ports::{Body, CallHead},
};

use crate::half::Half;

/// A call on its way to the driver.
pub(crate) struct Opening {
    pub(crate) head: CallHead,
    pub(crate) body: Body,
    pub(crate) half: Arc<Half>,
}

pub(crate) struct Desk {
    state: Mutex<State>,
    driver: AtomicWaker,
    /// Calls submitted and not yet over.
    calls: AtomicUsize,
    calls_max: usize,
    /// Bytes that wait for their readers, over all calls.
    pub(crate) queued_bytes: AtomicUsize,
}

struct State {
    /// The driver is at work and will look again before it rests.
    awake: bool,
    rung: Vec<u32>,
    openings: Vec<Opening>,
    status: Status,
}

/// Whether the link takes calls.
#[derive(Debug, Clone)]
enum Status {
    Open,
    /// No new calls; the driver brings the others to their end.
    Closing,
    /// The driver is gone; the sentence says why.
    Ended(String),
}

impl Desk {
    pub(crate) fn new(calls_max: usize) -> Self {
        let state =
            State { awake: false, rung: Vec::new(), openings: Vec::new(), status: Status::Open };
        Self {
            state: Mutex::new(state),
            driver: AtomicWaker::new(),
            calls: AtomicUsize::new(0),
            calls_max,
            queued_bytes: AtomicUsize::new(0),
        }
    }

    // What callers do.

    /// Hands a call to the driver, or says why not.
    pub(crate) fn submit(&self, opening: Opening) -> Result<(), Failure> {
        let mut state = self.state.lock();
        match &state.status {
            Status::Open => {}
            Status::Closing => {
                return Err(Failure::not_started(Reason::PeerLost, "the link is closing"));
            }
            Status::Ended(why) => {
                return Err(Failure::not_started(Reason::PeerLost, why.clone()));
            }
        }
        if self.calls.load(Ordering::Relaxed) >= self.calls_max {
            let message = format!("{} calls are in flight on this link already", self.calls_max);
            return Err(Failure::not_started(Reason::Busy, message));
        }
        // Only ever raised under the lock, so the bound holds.
        self.calls.fetch_add(1, Ordering::Relaxed);
        state.openings.push(opening);
        self.wake(state.awake);
        Ok(())
    }

    /// Asks the driver to look at `call`.
    pub(crate) fn ring(&self, call: u32) {
        let mut state = self.state.lock();
        state.rung.push(call);
        self.wake(state.awake);
    }

    /// No new calls from now on.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        if matches!(state.status, Status::Open) {
            state.status = Status::Closing;
            self.wake(state.awake);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        !matches!(self.state.lock().status, Status::Open)
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn wake(&self, awake: bool) {
        if !awake {
            self.driver.wake();
        }
    }

    // What the driver does.

    /// Begins a turn: from now on nobody needs to wake the driver.
    pub(crate) fn begin(&self, waker: &Waker) {
        self.driver.register(waker);
        self.state.lock().awake = true;
    }

    /// Takes what was left on the desk. Both vectors must be empty; they come back filled.
    pub(crate) fn collect(&self, rung: &mut Vec<u32>, openings: &mut Vec<Opening>) {
        let mut state = self.state.lock();
        mem::swap(&mut state.rung, rung);
        mem::swap(&mut state.openings, openings);
    }

    /// Ends a turn; false if there is something on the desk again.
    pub(crate) fn rest(&self) -> bool {
        let mut state = self.state.lock();
        state.awake = !(state.rung.is_empty() && state.openings.is_empty());
        !state.awake
    }

    /// Closes the desk if nothing lies on it, for want of use. True if it is closed now.
    pub(crate) fn close_if_unused(&self) -> bool {
        let mut state = self.state.lock();
        if state.openings.is_empty() && matches!(state.status, Status::Open) {
            state.status = Status::Closing;
        }
        matches!(state.status, Status::Closing)
    }

    /// `count` calls are over.
    pub(crate) fn release(&self, count: usize) {
        self.calls.fetch_sub(count, Ordering::Relaxed);
    }

    /// The driver is gone. Returns the calls that it never saw.
    pub(crate) fn end(&self, why: String) -> Vec<Opening> {
        let mut state = self.state.lock();
        state.status = Status::Ended(why);
        mem::take(&mut state.openings)
    }
}
