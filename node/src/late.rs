//! A way that is given later: the router is made before what it reaches exists.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use futures::future::BoxFuture;
use protocol::{
    failure::{Failure, Reason},
    ports::{Invoke, Reach},
    service::{MethodPath, ServiceName},
};
use router::{Declaration, Declared, Lookup};

use crate::knowledge::Knowledge;

/// Forwards to what it is given; until then nothing can be reached.
pub struct Late<T>(Arc<OnceLock<Arc<dyn Reach<T>>>>);

impl<T> Late<T> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self(Arc::new(OnceLock::new()))
    }

    /// Gives the way; only the first one counts.
    pub fn give(&self, way: Arc<dyn Reach<T>>) {
        let _ = self.0.set(way);
    }
}

impl<T> Clone for Late<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + 'static> Reach<T> for Late<T> {
    fn reach(
        &self,
        target: T,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>> {
        if let Some(way) = self.0.get() {
            way.reach(target, deadline)
        } else {
            let failure = Failure::not_started(Reason::Unreachable, "the node is still starting");
            Box::pin(std::future::ready(Err(failure)))
        }
    }
}

/// The same for what is known of the mesh.
#[derive(Clone, Default)]
pub struct LateKnowledge(Arc<OnceLock<Knowledge>>);

impl LateKnowledge {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives it; only the first one counts.
    pub fn give(&self, knowledge: Knowledge) {
        let _ = self.0.set(knowledge);
    }
}

impl Lookup for LateKnowledge {
    fn lookup(&self, service: ServiceName, deadline: Instant) -> BoxFuture<'static, bool> {
        match self.0.get() {
            Some(known) => known.lookup(service, deadline),
            None => Box::pin(std::future::ready(false)),
        }
    }
}

impl Declared for LateKnowledge {
    fn of(&self, path: MethodPath, deadline: Instant) -> BoxFuture<'static, Declaration> {
        match self.0.get() {
            Some(known) => known.of(path, deadline),
            None => Box::pin(std::future::ready(Declaration::default())),
        }
    }
}
