//! What the host asks through `blackhole.plugin.v1.Lifecycle`, every question with a deadline.
//!
//! The contract is optional, method by method. A plugin without it, or without one of its methods,
//! answers UNIMPLEMENTED, and is not asked again. What it answers is its own word: shown to
//! people, bounded here, and trusted in nothing.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use protocol::proto::plugin::{
    ConfigureRequest, DescribeRequest, DescribeResponse, DrainRequest, MetricsRequest,
    lifecycle_client::LifecycleClient,
};
use tonic::{Code, Status};

use crate::channel::{Asking, Channel};

/// Figures of one plugin: each is a line on the node's metrics page.
const METRICS_MAX: usize = 64;
/// Labels of one figure.
const LABELS_MAX: usize = 8;
/// Bytes of a name, a label or a sentence.
const WORD_BYTES_MAX: usize = 256;
/// Words of one list.
const WORDS_MAX: usize = 64;

/// A figure of a plugin's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// `a-z 0-9 _`, beginning with a letter.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Further words; keys as `name`.
    pub labels: BTreeMap<String, String>,
}

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Described {
    /// What it calls itself.
    pub name: String,
    /// The version it calls itself.
    pub version: String,
    /// One sentence.
    pub description: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// What it depends on.
    pub dependencies: Vec<String>,
}

/// The answer to a question that need not be understood.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer<T> {
    /// It was understood.
    Is(T),
    /// It has no such method, and never will in this run.
    NotOffered,
    /// It did not answer, or refused: in words.
    Failed(String),
}

fn client(channel: &Arc<Channel>, within: Duration) -> LifecycleClient<Asking> {
    LifecycleClient::new(Asking::until(channel, Instant::now() + within))
}

fn failed<T>(status: &Status) -> Answer<T> {
    match status.code() {
        Code::Unimplemented => Answer::NotOffered,
        _ => Answer::Failed(short(status.message())),
    }
}

/// What it is.
pub(crate) async fn describe(channel: &Arc<Channel>, within: Duration) -> Answer<Described> {
    match client(channel, within).describe(DescribeRequest {}).await {
        Ok(response) => Answer::Is(bounded(response.into_inner())),
        Err(status) => failed(&status),
    }
}

fn bounded(told: DescribeResponse) -> Described {
    let words = |words: Vec<String>| words.iter().take(WORDS_MAX).map(|it| short(it)).collect();
    Described {
        name: short(&told.name),
        version: short(&told.version),
        description: short(&told.description),
        capabilities: words(told.capabilities),
        dependencies: words(told.dependencies),
    }
}

/// Hands it its part of the configuration.
pub(crate) async fn configure(
    channel: &Arc<Channel>,
    part: &serde_json::Value,
    within: Duration,
) -> Answer<()> {
    let request = ConfigureRequest { configuration: part.to_string().into_bytes().into() };
    match client(channel, within).configure(request).await {
        Ok(_) => Answer::Is(()),
        Err(status) => failed(&status),
    }
}

/// Asks it to finish what was begun.
pub(crate) async fn drain(channel: &Arc<Channel>, within: Duration) -> Answer<()> {
    let request = DrainRequest { deadline_ms: within.as_millis() as u64 };
    match client(channel, within).drain(request).await {
        Ok(_) => Answer::Is(()),
        Err(status) => failed(&status),
    }
}

/// Its figures.
pub(crate) async fn metrics(channel: &Arc<Channel>, within: Duration) -> Answer<Vec<Metric>> {
    match client(channel, within).metrics(MetricsRequest {}).await {
        Ok(response) => {
            let metrics = response.into_inner().metrics.into_iter().filter_map(|told| {
                let labels = told.labels.into_iter().filter(|(key, _)| is_name(key));
                is_name(&told.name).then(|| Metric {
                    name: told.name,
                    value: told.value,
                    labels: labels.take(LABELS_MAX).map(|(k, v)| (k, short(&v))).collect(),
                })
            });
            Answer::Is(metrics.take(METRICS_MAX).collect())
        }
        Err(status) => failed(&status),
    }
}

/// A name that every metrics system takes.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    text.len() <= WORD_BYTES_MAX
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text.bytes().all(plain)
}

fn short(text: &str) -> String {
    let mut end = text.len().min(WORD_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_says_is_cut_to_size_and_names_must_be_names() {
        assert_eq!(short(&"ä".repeat(1_000)).len(), WORD_BYTES_MAX);
        for good in ["requests", "cache_hits_2"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "2x", "Requests", "a-b", "a\nb", "{x}", &"x".repeat(300)] {
            assert!(!is_name(bad), "{bad}");
        }
        let told = DescribeResponse {
            capabilities: vec!["c".into(); 1_000],
            ..DescribeResponse::default()
        };
        assert_eq!(bounded(told).capabilities.len(), WORDS_MAX);
    }
}
