//! Round trips to the providers of a service, and their figures.

use std::time::Duration;

use protocol::{id::PeerId, proto::admin::Provider};
use serde_json::{Value, json};

use super::mesh::{peer, provider_document, whereabouts};
use crate::{
    terminal::{Table, Tone, clean},
    units::round_trip,
};

/// What one provider did with its probes.
pub struct Pinged {
    /// The peer probed.
    pub peer: PeerId,
    provider: Provider,
    /// Round trips of those that were answered, in order.
    pub times: Vec<Duration>,
    lost: u32,
    why: Option<String>,
}

impl Pinged {
    /// Not probed yet.
    pub fn new(peer: PeerId, provider: Provider) -> Self {
        Self { peer, provider, times: Vec::new(), lost: 0, why: None }
    }

    /// Counts the outcome of a probe.
    pub fn add(&mut self, outcome: Result<Duration, String>) {
        match outcome {
            Ok(took) => self.times.push(took),
            Err(why) => {
                self.lost += 1;
                self.why = Some(why);
            }
        }
    }

    fn sent(&self) -> usize {
        self.times.len() + self.lost as usize
    }

    fn loss_percent(&self) -> f64 {
        100.0 * f64::from(self.lost) / self.sent().max(1) as f64
    }

    /// Least, mean, most and mean deviation, in microseconds, if there was any reply.
    fn figures(&self) -> Option<[u64; 4]> {
        let micros: Vec<f64> = self.times.iter().map(|took| took.as_secs_f64() * 1e6).collect();
        let count = micros.len() as f64;
        let mean = micros.iter().sum::<f64>() / count;
        let squares = micros.iter().map(|time| (time - mean).powi(2)).sum::<f64>();
        let least = micros.iter().copied().reduce(f64::min)?;
        let most = micros.iter().copied().reduce(f64::max)?;
        Some([least, mean, most, (squares / count).sqrt()].map(|value| value.round() as u64))
    }
}

/// One probe of one provider.
pub struct Line<'a> {
    /// The provider, before this probe is counted.
    pub one: &'a Pinged,
    /// Which probe, from 1.
    pub round: u32,
    /// How it went.
    pub outcome: &'a Result<Duration, String>,
}

/// A probe on one line.
pub fn line(Line { one, round, outcome }: &Line<'_>) -> String {
    let said = match outcome {
        Ok(took) => {
            let micros = took.as_micros() as u64;
            format!("time={} via {}", round_trip(micros), whereabouts(&one.provider).0)
        }
        Err(why) => format!("lost: {why}"),
    };
    let who = peer(&one.provider);
    clean(&format!("{} on {who}: seq={round} {said}", one.provider.plugin)).into_owned()
}

/// The figures of every provider.
pub fn text(pinged: &[Pinged], colour: bool) -> String {
    let headings = ["PROVIDER", "PLUGIN", "WHERE", "SENT", "LOST", "MIN", "AVG", "MAX", "MDEV"];
    let mut table = Table::new(colour, &headings);
    for column in 3..headings.len() {
        table = table.right(column);
    }
    for one in pinged {
        let figures = one
            .figures()
            .map_or_else(|| ["-"; 4].map(str::to_owned), |figures| figures.map(round_trip));
        let tone = (one.lost > 0).then_some(Tone::Bad);
        let head = [
            (peer(&one.provider), Some(Tone::Strong)),
            (one.provider.plugin.clone(), None),
            whereabouts(&one.provider),
            (one.sent().to_string(), None),
            (format!("{:.0}%", one.loss_percent()), tone),
        ];
        table.row(head.into_iter().chain(figures.into_iter().map(|figure| (figure, None))));
    }
    table.text()
}

/// The same as JSON, with every round trip.
pub fn document(service: &str, pinged: &[Pinged]) -> Value {
    let provider = |one: &Pinged| {
        let figures = one.figures();
        let figure = |index: usize| figures.map(|figures| figures[index]);
        json!({
            "provider": provider_document(&one.provider),
            "sent": one.sent(),
            "received": one.times.len(),
            "loss_percent": one.loss_percent(),
            "min_us": figure(0),
            "avg_us": figure(1),
            "max_us": figure(2),
            "mdev_us": figure(3),
            "times_us": one.times.iter().map(|took| took.as_micros() as u64).collect::<Vec<_>>(),
            "last_loss": one.why,
        })
    };
    json!({"service": service, "providers": pinged.iter().map(provider).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use protocol::id::NodeKey;

    use super::*;

    #[test]
    fn a_lost_probe_counts_as_loss_and_not_as_time() {
        let mut one = Pinged::new(NodeKey::from_seed([1; 32]).peer_id(), Provider::default());
        assert_eq!(one.figures(), None);
        for millis in [1, 3] {
            one.add(Ok(Duration::from_millis(millis)));
        }
        one.add(Err("no reply".into()));
        one.add(Err("gone".into()));
        assert_eq!(one.figures(), Some([1000, 2000, 3000, 1000]));
        let document = document("a.B", &[one]);
        let told = &document["providers"][0];
        assert_eq!(
            (&told["loss_percent"], &told["sent"], &told["last_loss"]),
            (&json!(50.0), &json!(4), &json!("gone"))
        );
    }
}
