//! A bound on calls that several links have together: those of one peer, however many it opens.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Places for calls, shared by the links that are given it.
#[derive(Debug)]
pub struct Share {
    calls_max: usize,
    taken: AtomicUsize,
}

impl Share {
    /// Of `calls_max` calls in flight.
    pub fn new(calls_max: usize) -> Arc<Self> {
        Arc::new(Self { calls_max, taken: AtomicUsize::new(0) })
    }

    /// How many calls may be in flight.
    pub(crate) fn calls_max(&self) -> usize {
        self.calls_max
    }

    /// A place for one more call, while there is one.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Place> {
        let place = Place(Arc::clone(self));
        // A place that is not to be had is given back with the value.
        (self.taken.fetch_add(1, Relaxed) < self.calls_max).then_some(place)
    }
}

/// One call's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Share>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Relaxed);
    }
}
