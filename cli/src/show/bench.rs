//! What a load did: calls per second, how long answers took, and what failed.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::Facts;
use crate::{
    failed::Failed,
    terminal::{Table, Tone, clean, paint},
    units::round_trip,
};

/// The longest time told apart, in microseconds: a day, as long as a timeout can be.
const LONGEST_US: u64 = 24 * 3600 * 1_000_000;

/// Three digits of each time are kept.
const DIGITS: u8 = 3;

/// The longest bar of the histogram, in characters.
const BAR_MAX: u64 = 40;

/// The quantiles told, with their names in JSON.
const QUANTILES: [(f64, &str, &str); 4] = [
    (0.5, "p50", "p50_us"),
    (0.9, "p90", "p90_us"),
    (0.99, "p99", "p99_us"),
    (0.999, "p99.9", "p99_9_us"),
];

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The status code.
    pub code: &'static str,
    /// `not_started`, `unknown`, `failed`, or `answered` by the service itself.
    pub ran: &'static str,
    /// What was said.
    pub message: String,
}

/// What was measured so far.
pub struct Measured {
    /// Of calls that were answered, in microseconds.
    times: Histogram<u64>,
    /// By code and by whether they ran: how many, and what the first of them said.
    failures: BTreeMap<(&'static str, &'static str), (u64, String)>,
    begun: Option<Instant>,
    took: Duration,
}

impl Measured {
    /// Nothing yet.
    pub fn new() -> Result<Self, Failed> {
        let times = Histogram::new_with_bounds(1, LONGEST_US, DIGITS)
            .map_err(|error| Failed::new(format!("no histogram: {error}")))?;
        Ok(Self { times, failures: BTreeMap::new(), begun: None, took: Duration::ZERO })
    }

    /// Measuring begins.
    pub fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    /// A call has ended now.
    pub fn add(&mut self, now: Instant, took: Duration, failure: Option<Failure>) {
        self.took = self.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        match failure {
            None => self.times.saturating_record(took.as_micros() as u64),
            Some(Failure { code, ran, message }) => {
                self.failures.entry((code, ran)).or_insert((0, message)).0 += 1;
            }
        }
    }

    /// Calls that have ended.
    pub fn calls(&self) -> u64 {
        self.times.len() + self.failed()
    }

    /// Calls that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().map(|(count, _)| count).sum()
    }

    fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Calls by time, in steps that double: up to how many microseconds, and how many.
    fn steps(&self) -> Vec<(u64, u64)> {
        let steps = self.times.iter_log(1, 2.0);
        let counted =
            steps.map(|step| (step.value_iterated_to() + 1, step.count_since_last_iteration()));
        counted.skip_while(|(_, count)| *count == 0).collect()
    }
}

/// What was called.
pub struct Told<'a> {
    /// `/package.Service/Method`
    pub method: &'a str,
    /// How many callers there were.
    pub callers: u32,
}

/// For people.
pub fn text(told: &Told<'_>, measured: &Measured, colour: bool) -> String {
    let mut facts = Facts::new();
    facts.add("method", told.method.trim_start_matches('/'));
    facts.add("callers", told.callers.to_string());
    facts.add("time", format!("{:.2} s", measured.took.as_secs_f64()));
    let rate = format!("{} ({:.1} per second)", measured.times.len(), measured.per_second());
    facts.add("answered", rate);
    facts.add("failed", measured.failed().to_string());
    let mut text = facts.text(colour);
    if !measured.times.is_empty() {
        let times = &measured.times;
        let mut facts = Facts::new();
        facts.add("min", round_trip(times.min()));
        facts.add("mean", round_trip(times.mean().round() as u64));
        for (quantile, name, _) in QUANTILES {
            facts.add(name, round_trip(times.value_at_quantile(quantile)));
        }
        facts.add("max", round_trip(times.max()));
        let _ = write!(text, "\n\n{}\n\n{}", facts.text(colour), bars(measured, colour));
    }
    if !measured.failures.is_empty() {
        let mut table = Table::new(colour, &["FAILED", "CODE", "RAN", "FOR EXAMPLE"]).right(0);
        for ((code, ran), (count, message)) in &measured.failures {
            table.row([
                (count.to_string(), Some(Tone::Bad)),
                ((*code).to_owned(), None),
                ((*ran).to_owned(), None),
                (clean(message).into_owned(), None),
            ]);
        }
        let _ = write!(text, "\n\n{}", table.text());
    }
    text
}

fn bars(measured: &Measured, colour: bool) -> String {
    let steps = measured.steps();
    let most = steps.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    let mut table = Table::new(colour, &["UNDER", "CALLS", ""]).right(0).right(1);
    for (under, count) in steps {
        let bar = "#".repeat((count * BAR_MAX).div_ceil(most) as usize);
        table.row([(round_trip(under), None), (count.to_string(), None), (bar, Some(Tone::Good))]);
    }
    format!("{}\n{}", paint(colour, Tone::Dim, "answers by time:"), table.text())
}

/// For programs.
pub fn document(told: &Told<'_>, measured: &Measured) -> Value {
    let times = &measured.times;
    let time = |value: u64| if times.is_empty() { Value::Null } else { json!(value) };
    let mut latency = json!({
        "min_us": time(times.min()),
        "mean_us": time(times.mean().round() as u64),
        "max_us": time(times.max()),
    });
    for (quantile, _, name) in QUANTILES {
        latency[name] = time(times.value_at_quantile(quantile));
    }
    let steps = measured
        .steps()
        .into_iter()
        .map(|(under, count)| json!({"under_us": under, "calls": count}));
    let failures = measured.failures.iter().map(|((code, ran), (count, message))| {
        json!({"code": code, "ran": ran, "calls": count, "message": message})
    });
    json!({
        "method": told.method.trim_start_matches('/'),
        "concurrency": told.callers,
        "seconds": measured.took.as_secs_f64(),
        "calls": measured.calls(),
        "answered": times.len(),
        "failed": measured.failed(),
        "answered_per_second": measured.per_second(),
        "latency": latency,
        "histogram": steps.collect::<Vec<_>>(),
        "failures": failures.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: Told<'static> = Told { method: "/a.B/C", callers: 2 };

    #[test]
    fn every_call_is_counted_once_and_failures_by_what_became_of_them() {
        let begun = Instant::now();
        let mut measured = Measured::new().expect("a histogram");
        measured.begin(begun);
        for millis in 1..=100 {
            let now = begun + Duration::from_millis(millis * 10);
            measured.add(now, Duration::from_millis(millis), None);
        }
        let lost = |ran| Failure { code: "UNAVAILABLE", ran, message: "lost".into() };
        for ran in ["unknown", "not_started", "unknown"] {
            measured.add(begun + Duration::from_secs(2), Duration::ZERO, Some(lost(ran)));
        }
        let document = document(&TOLD, &measured);
        assert_eq!((&document["calls"], &document["failed"]), (&json!(103), &json!(3)));
        assert_eq!(document["answered_per_second"], json!(50.0));
        let p99 = document["latency"]["p99_us"].as_u64().expect("a time");
        assert!((98_900..=99_200).contains(&p99), "{p99}");
        let steps = document["histogram"].as_array().expect("steps");
        let counted: u64 = steps.iter().filter_map(|step| step["calls"].as_u64()).sum();
        assert_eq!(counted, 100, "{document}");
        assert_eq!(document["failures"][1]["calls"], 2, "{document}");
        let text = text(&TOLD, &measured, false);
        for word in ["p99.9", "not_started", "50.0 per second"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn nothing_measured_has_no_times() {
        let measured = Measured::new().expect("a histogram");
        assert_eq!(document(&TOLD, &measured)["latency"]["p50_us"], Value::Null);
        assert!(text(&TOLD, &measured, false).contains("answered"));
    }
}
