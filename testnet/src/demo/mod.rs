//! The demo: a bootstrap node and five peers as real processes on loopback with fresh directories,
//! and what the README promises of them, one line a step.
//!
//! Owns telling the story: order, time, evidence. What the steps do is in [`steps`].

mod steps;

use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::BoxFuture;

use crate::{Cluster, Node, foreign::Foreign};

/// Last lines of each node that a failure shows.
const EVIDENCE_LINES: usize = 15;

/// What the steps share.
pub(crate) struct Story {
    cluster: Option<Cluster>,
    foreign: Foreign,
}

impl Story {
    fn cluster(&self) -> Result<&Cluster> {
        self.cluster.as_ref().context("the cluster has not been started")
    }

    fn cluster_mut(&mut self) -> Result<&mut Cluster> {
        self.cluster.as_mut().context("the cluster has not been started")
    }

    fn peer(&self, name: &str) -> Result<&Node> {
        self.cluster()?.peer(name)
    }
}

/// One line of the demo.
pub(crate) struct Step {
    /// Chapter and verse.
    number: &'static str,
    /// What is claimed.
    claim: &'static str,
    /// Makes it happen; answers with what was seen, which may be nothing.
    run: for<'a> fn(&'a mut Story) -> BoxFuture<'a, Result<String>>,
}

/// Tells the whole story on standard output; whether every step passed.
pub async fn run() -> bool {
    let start = Instant::now();
    let foreign = match Foreign::ready() {
        Ok(foreign) => foreign,
        Err(error) => {
            println!("the demo cannot begin: {error:#}");
            return false;
        }
    };
    let mut story = Story { cluster: None, foreign };
    let mut passed = 0;
    for step in steps::STEPS {
        let begun = Instant::now();
        let seen = (step.run)(&mut story).await;
        let took = begun.elapsed().as_secs_f64();
        let Step { number, claim, .. } = step;
        match seen {
            Ok(seen) if seen.is_empty() => println!("{number}  {took:6.2} s  ok    {claim}"),
            Ok(seen) => println!("{number}  {took:6.2} s  ok    {claim}: {seen}"),
            Err(error) => {
                println!("{number}  {took:6.2} s  FAIL  {claim}");
                tell_failure(&mut story, &error);
                let left = steps::STEPS.len() - passed - 1;
                println!("{passed} passed, 1 failed, {left} not reached");
                return false;
            }
        }
        passed += 1;
    }
    println!("{passed} passed, 0 failed, {:.1} s", start.elapsed().as_secs_f64());
    true
}

/// Prints why a step failed and what the nodes said last, and leaves their directories behind.
fn tell_failure(story: &mut Story, error: &anyhow::Error) {
    println!("\n{error:#}\n");
    if let Some(cluster) = &mut story.cluster {
        println!("{}", cluster.evidence(EVIDENCE_LINES));
        println!("everything the nodes said is in {}", cluster.dir().display());
        cluster.keep();
    }
}
