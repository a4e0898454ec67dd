//! `counter`: counts, by name, and tells which counter answered.

use std::{collections::BTreeMap, process::ExitCode};

use blackhole_plugins::demo::counter_server::{Counter, CounterServer};
use blackhole_plugins::demo::{AddRequest, Count, DESCRIPTORS, GetRequest};
use sdk::{Answer, Plugin, Stream};
use tokio::sync::watch;
use tokio_stream::{StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

/// Counters at once: callers choose the names, and must not fill the memory with them.
const NAMES_MAX: usize = 10_000;

type Sums = BTreeMap<String, i64>;

struct Tally(watch::Sender<Sums>);

fn count(sums: &Sums, name: &str) -> Count {
    Count { value: sums.get(name).copied().unwrap_or(0), instance: sdk::instance().into() }
}

#[tonic::async_trait]
impl Counter for Tally {
    type WatchStream = Stream<Count>;

    async fn add(&self, request: Request<AddRequest>) -> Answer<Count> {
        let AddRequest { name, amount } = request.into_inner();
        let known = self.0.borrow().len();
        if known >= NAMES_MAX && !self.0.borrow().contains_key(&name) {
            return Err(Status::resource_exhausted(format!("{known} counters are enough")));
        }
        self.0.send_modify(|sums| {
            let sum = sums.entry(name.clone()).or_default();
            *sum = sum.saturating_add(amount);
        });
        Ok(Response::new(count(&self.0.borrow(), &name)))
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<Count> {
        Ok(Response::new(count(&self.0.borrow(), &request.into_inner().name)))
    }

    async fn watch(&self, request: Request<GetRequest>) -> Answer<Stream<Count>> {
        let (name, mut told) = (request.into_inner().name, None);
        let counts = WatchStream::new(self.0.subscribe()).map(move |sums| count(&sums, &name));
        let news = counts.filter(move |now| told.replace(now.value) != Some(now.value)).map(Ok);
        Ok(Response::new(Box::pin(news)))
    }
}

fn main() -> ExitCode {
    Plugin::new("counter", "1.0.0")
        .description("Counts, by name")
        .descriptors(DESCRIPTORS)
        .service(CounterServer::new(Tally(watch::Sender::default())))
        .run()
}
