//! A plugin's own figures: counted with one atomic operation, read when its node asks.
//!
//! Owns the registry and its handles. Names are not judged here: the node refuses what no metrics
//! system would take, and `blackhole plugin info` says so.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use protocol::{limits::FIGURES_MAX, proto::plugin::Metric};

/// The figures of a plugin; clones are the same ones. Handed over with
/// [`Plugin::figures`](crate::Plugin::figures), they appear in `blackhole plugin info` and as
/// `blackhole_plugin_figure` on the node's metrics page, without further code.
#[derive(Debug, Clone, Default)]
pub struct Figures(Arc<Mutex<Vec<Figure>>>);

#[derive(Debug)]
struct Figure {
    name: String,
    labels: Vec<(String, String)>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Counter(Counter),
    Gauge(Gauge),
}

/// Something that only becomes more. Clones are the same counter.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that goes up and down. Clones are the same gauge.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// It is this now.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Figures {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// A counter: `a-z`, `0-9` and `_` make its name. The same name is the same counter.
    pub fn counter(&self, name: &str) -> Counter {
        self.counter_with(name, &[])
    }

    /// A counter with labels, at most eight; the same name and labels are the same counter.
    pub fn counter_with(&self, name: &str, labels: &[(&str, &str)]) -> Counter {
        let known = |value: &Value| match value {
            Value::Counter(counter) => Some(counter.clone()),
            Value::Gauge(_) => None,
        };
        self.own(name, labels, known, Value::Counter)
    }

    /// A gauge, at zero; named as a counter is. The same name is the same gauge.
    pub fn gauge(&self, name: &str) -> Gauge {
        self.gauge_with(name, &[])
    }

    /// A gauge with labels, at most eight; the same name and labels are the same gauge.
    pub fn gauge_with(&self, name: &str, labels: &[(&str, &str)]) -> Gauge {
        let known = |value: &Value| match value {
            Value::Gauge(gauge) => Some(gauge.clone()),
            Value::Counter(_) => None,
        };
        self.own(name, labels, known, Value::Gauge)
    }

    /// The one of this name, these labels and this kind, made where it is not there. One that finds
    /// no room counts all the same, and is shown to nobody.
    fn own<T: Clone + Default>(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        known: impl Fn(&Value) -> Option<T>,
        value: impl FnOnce(T) -> Value,
    ) -> T {
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut same = figures.iter().filter(|figure| figure.is(name, labels));
        if let Some(found) = same.find_map(|figure| known(&figure.value)) {
            return found;
        }
        let new = T::default();
        if figures.len() == FIGURES_MAX {
            tracing::warn!(name, "a plugin has at most {FIGURES_MAX} figures; this is not shown");
            return new;
        }
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let labels = labels.collect();
        figures.push(Figure { name: name.into(), labels, value: value(new.clone()) });
        new
    }

    /// All of them as they are now.
    pub(crate) fn read(&self) -> Vec<Metric> {
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let metric = |figure: &Figure| Metric {
            name: figure.name.clone(),
            value: match &figure.value {
                Value::Counter(counter) => counter.get() as f64,
                Value::Gauge(gauge) => gauge.get(),
            },
            labels: figure.labels.iter().cloned().collect(),
        };
        figures.iter().map(metric).collect()
    }
}

impl Figure {
    fn is(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        let own = self.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        self.name == name && own.eq(labels.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_and_labels_are_the_same_figure_and_there_are_so_many() {
        let figures = Figures::new();
        figures.counter("hits").add(2);
        figures.counter("hits").increment();
        figures.counter_with("hits", &[("kind", "warm")]).increment();
        figures.gauge("depth").set(-1.5);
        let told: Vec<(String, f64)> =
            figures.read().into_iter().map(|it| (it.name, it.value)).collect();
        let wanted = [("hits", 3.0), ("hits", 1.0), ("depth", -1.5)];
        assert_eq!(told, wanted.map(|(name, value)| (name.to_owned(), value)));
        for n in 0..1_000 {
            figures.counter(&format!("n{n}")).increment();
        }
        assert_eq!(figures.read().len(), FIGURES_MAX);
    }
}
