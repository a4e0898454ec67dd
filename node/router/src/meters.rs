//! What is counted of every call: how many, how long, how they ended, per service and kind of
//! caller.
//!
//! The number of series is bounded: only services that somebody offers get a name of their own,
//! and only the first [`SERVICES_COUNTED_MAX`] of them.

use std::{collections::HashMap, sync::Arc, time::Instant};

use http::HeaderMap;
use parking_lot::RwLock;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use protocol::{
    failure::{Failure, Ran},
    ports::Caller,
    service::ServiceName,
};

/// Services with series of their own. Each has one histogram and a few counters, some kilobytes
/// in all; a scrape stays below a few megabytes.
const SERVICES_COUNTED_MAX: usize = 512;

/// Where calls to services that nobody offers are counted, and to those beyond the bound.
const OTHER: &str = "(other)";

/// The outcome of an attempt that a provider answers.
const ANSWERED: &str = "answered";

/// gRPC's code for a call whose caller went away.
const CANCELLED: u32 = 1;
/// gRPC's code for an answer without a status.
const UNKNOWN: u32 = 2;
/// gRPC's codes go from 0 to 16.
const CODE_MAX: u32 = 16;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    service: Arc<str>,
    caller: &'static str,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    service: Arc<str>,
    outcome: &'static str,
}

/// All series of one router.
#[derive(Debug)]
pub(crate) struct Meters {
    calls: Family<CallLabels, Counter>,
    seconds: Family<ServiceLabels, Histogram>,
    in_flight: Family<ServiceLabels, Gauge>,
    attempts: Family<AttemptLabels, Counter>,
    recalled: Family<ServiceLabels, Counter>,
    services: RwLock<HashMap<ServiceName, Arc<Service>>>,
    other: Arc<Service>,
}

/// One service's series, those that every call needs at hand.
#[derive(Debug)]
struct Service {
    name: Arc<str>,
    seconds: Histogram,
    in_flight: Gauge,
    answered: Counter,
}

impl Meters {
    /// Registers the series in `registry`.
    pub(crate) fn new(registry: &mut Registry) -> Arc<Self> {
        let calls = Family::default();
        // 100 µs to about 26 s, each bucket twice the one before.
        let seconds = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.000_1, 2.0, 18))) as fn() -> Histogram,
        );
        let (in_flight, attempts) = (Family::default(), Family::default());
        let recalled = Family::default();
        let other = Arc::new(service(OTHER, &seconds, &in_flight, &attempts));
        let services = RwLock::default();
        let meters = Self { calls, seconds, in_flight, attempts, recalled, services, other };
        registry.register(
            "blackhole_calls",
            "Calls that ended, by service, kind of caller and gRPC status code",
            meters.calls.clone(),
        );
        registry.register(
            "blackhole_call_seconds",
            "Time from a call's arrival to the end of its answer, in seconds",
            meters.seconds.clone(),
        );
        registry.register(
            "blackhole_calls_in_flight",
            "Calls that have not ended",
            meters.in_flight.clone(),
        );
        registry.register(
            "blackhole_call_attempts",
            "Times a call was offered to a provider, by what came of it",
            meters.attempts.clone(),
        );
        registry.register(
            "blackhole_calls_recalled",
            "Calls that were answered with an answer kept here, without asking a provider",
            meters.recalled.clone(),
        );
        Arc::new(meters)
    }

    /// Begins to measure a call that arrived when it `began`; `offered` when somebody offers its
    /// service.
    pub(crate) fn begin(
        self: &Arc<Self>,
        service: &ServiceName,
        caller: &Caller,
        offered: bool,
        began: Instant,
    ) -> Meter {
        let service = self.service(service, offered);
        service.in_flight.inc();
        let caller = match caller {
            Caller::Operator => "operator",
            Caller::Client => "client",
            Caller::Plugin(_) => "plugin",
            Caller::Peer(_) => "peer",
        };
        Meter { meters: Arc::clone(self), service, caller, began, code: None }
    }

    fn service(&self, name: &ServiceName, offered: bool) -> Arc<Service> {
        if let Some(known) = self.services.read().get(name) {
            return Arc::clone(known);
        }
        if !offered {
            return Arc::clone(&self.other);
        }
        let mut services = self.services.write();
        if services.len() >= SERVICES_COUNTED_MAX {
            return Arc::clone(&self.other);
        }
        let new =
            || Arc::new(service(name.as_str(), &self.seconds, &self.in_flight, &self.attempts));
        Arc::clone(services.entry(name.clone()).or_insert_with(new))
    }
}

fn service(
    name: &str,
    seconds: &Family<ServiceLabels, Histogram>,
    in_flight: &Family<ServiceLabels, Gauge>,
    attempts: &Family<AttemptLabels, Counter>,
) -> Service {
    let name: Arc<str> = name.into();
    let labels = ServiceLabels { service: Arc::clone(&name) };
    let answered = AttemptLabels { service: Arc::clone(&name), outcome: ANSWERED };
    Service {
        name,
        seconds: seconds.get_or_create_owned(&labels),
        in_flight: in_flight.get_or_create_owned(&labels),
        answered: attempts.get_or_create_owned(&answered),
    }
}

/// Measures one call until it is dropped. A call that is dropped before its status is known was
/// cancelled.
#[derive(Debug)]
pub(crate) struct Meter {
    meters: Arc<Meters>,
    service: Arc<Service>,
    caller: &'static str,
    began: Instant,
    code: Option<u32>,
}

impl Meter {
    /// Reads the status from trailers, or from the metadata of an answer without a body.
    /// Returns it.
    pub(crate) fn answered(&mut self, headers: &HeaderMap) -> u32 {
        let status = headers.get("grpc-status");
        let code = status.and_then(|value| value.to_str().ok()?.parse().ok());
        *self.code.insert(code.filter(|code| *code <= CODE_MAX).unwrap_or(UNKNOWN))
    }

    /// The mesh could not bring the call to an end.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        self.code = Some(failure.grpc_code());
    }

    /// The call was answered here, with what somebody had answered before.
    pub(crate) fn recalled(mut self) {
        self.code = Some(0);
        let labels = ServiceLabels { service: Arc::clone(&self.service.name) };
        self.meters.recalled.get_or_create(&labels).inc();
    }

    /// Counts an attempt: `None` when a provider answers.
    pub(crate) fn attempted(&self, ran: Option<Ran>) {
        let outcome = match ran {
            None => {
                self.service.answered.inc();
                return;
            }
            Some(Ran::NotStarted) => "not-started",
            Some(Ran::Unknown) => "unknown",
            Some(Ran::Failed) => "failed",
        };
        let labels = AttemptLabels { service: Arc::clone(&self.service.name), outcome };
        self.meters.attempts.get_or_create(&labels).inc();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let service = Arc::clone(&self.service.name);
        let code = self.code.unwrap_or(CANCELLED);
        let labels = CallLabels { service, caller: self.caller, code };
        self.meters.calls.get_or_create(&labels).inc();
        self.service.in_flight.dec();
        self.service.seconds.observe(self.began.elapsed().as_secs_f64());
    }
}
