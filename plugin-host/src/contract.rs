//! What the host asks through `blackhole.plugin.v1.Lifecycle`, every question with a deadline.
//!
//! The contract is optional, method by method. A plugin without it, or without one of its methods,
//! answers UNIMPLEMENTED, and is not asked again. What it answers is its own word: shown to
//! people, bounded here, and trusted in nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use protocol::{
    limits::FIGURES_MAX,
    manifest::{Manifest, Statefulness},
    proto::plugin::{
        self as proto, ConfigureRequest, DescribeRequest, DescribeResponse, DrainRequest,
        MetricsRequest, lifecycle_client::LifecycleClient,
    },
};
use tonic::{Code, Status};

use crate::channel::{Asking, Channel};

/// Labels of one figure.
const LABELS_MAX: usize = 8;
/// Bytes of a name, a label or a sentence.
const WORD_BYTES_MAX: usize = 256;
/// Words of one list.
const WORDS_MAX: usize = 64;
/// Bytes of one answer: more than all figures there may be.
const ANSWER_BYTES_MAX: usize = 1 << 20;

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
    /// It keeps state that a successor would have to take over.
    pub stateful: bool,
    /// Where its manifest says otherwise, in sentences.
    pub contradictions: Vec<String>,
}

/// Figures of one answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Those that can be shown.
    pub metrics: Vec<Metric>,
    /// How many could not.
    pub refused: u32,
    /// What is wrong with the first of those.
    pub why: String,
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
    let asking = Asking::until(channel, Instant::now() + within);
    LifecycleClient::new(asking).max_decoding_message_size(ANSWER_BYTES_MAX)
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
        stateful: told.stateful,
        contradictions: Vec::new(),
    }
}

/// Where what a plugin says of itself and what its manifest says do not go together. Its word
/// changes nothing: it is granted, and waited for, by its manifest alone.
pub(crate) fn contradictions(told: &Described, manifest: &Manifest) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(version) = semver::Version::parse(&told.version)
        && version != manifest.version
    {
        let written = &manifest.version;
        found.push(format!("its manifest says version {written}, and it says {version} itself"));
    }
    let more: Vec<&str> = told
        .capabilities
        .iter()
        .filter(|word| !manifest.capabilities.contains(word))
        .map(String::as_str)
        .collect();
    if !more.is_empty() {
        let more = more.join(", ");
        found.push(format!(
            "it says that it can do {more}, which its manifest does not: nothing is granted for it"
        ));
    }
    let known = |name: &str| manifest.dependencies.iter().any(|it| it.name.as_str() == name);
    // As a manifest writes it: a name, and perhaps a range of versions.
    let names = told.dependencies.iter().filter_map(|text| text.split_whitespace().next());
    let more: Vec<&str> = names.filter(|name| !known(name)).collect();
    if !more.is_empty() {
        let more = more.join(", ");
        found.push(format!(
            "it says that it depends on {more}, which its manifest does not: it is not waited for"
        ));
    }
    if told.stateful && manifest.state == Statefulness::Stateless {
        found.push("it says that it keeps state, and its manifest does not".into());
    }
    found
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
pub(crate) async fn metrics(channel: &Arc<Channel>, within: Duration) -> Answer<Figures> {
    match client(channel, within).metrics(MetricsRequest {}).await {
        Ok(response) => Answer::Is(figures(response.into_inner().metrics)),
        Err(status) => failed(&status),
    }
}

/// Those of an answer that can be shown, within bounds.
pub fn figures(told: Vec<proto::Metric>) -> Figures {
    let mut figures = Figures::default();
    let mut seen = BTreeSet::new();
    for told in told {
        let name = short(&told.name);
        let good = if figures.metrics.len() == FIGURES_MAX {
            Err(format!("there are more than {FIGURES_MAX}"))
        } else {
            figure(told)
        };
        // Two of the same name and labels would make the whole page unreadable.
        let good = good.and_then(|metric| {
            let new = seen.insert((metric.name.clone(), metric.labels.clone()));
            if new { Ok(metric) } else { Err("it is there twice".into()) }
        });
        match good {
            Ok(metric) => figures.metrics.push(metric),
            Err(why) => {
                if figures.refused == 0 {
                    figures.why = format!("{name:?}: {why}");
                }
                figures.refused = figures.refused.saturating_add(1);
            }
        }
    }
    figures
}

fn figure(told: proto::Metric) -> Result<Metric, String> {
    const GRAMMAR: &str = "a-z, 0-9 and _ make a name, beginning with a letter";
    if !is_name(&told.name) {
        return Err(GRAMMAR.into());
    }
    if !told.value.is_finite() {
        return Err(format!("{} is no figure", told.value));
    }
    if told.labels.len() > LABELS_MAX {
        return Err(format!("it has more than {LABELS_MAX} labels"));
    }
    if let Some(bad) = told.labels.keys().find(|key| !is_name(key)) {
        return Err(format!("label {:?}: {GRAMMAR}", short(bad)));
    }
    let labels = told.labels.into_iter().map(|(key, value)| (key, short(&value))).collect();
    Ok(Metric { name: told.name, value: told.value, labels })
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

    fn metric(name: &str, value: f64, labels: &[(&str, &str)]) -> proto::Metric {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        proto::Metric { name: name.into(), value, labels: labels.collect() }
    }

    #[test]
    fn figures_that_cannot_be_shown_are_refused_and_counted_and_the_others_stay() {
        let nine: Vec<String> = (0..=LABELS_MAX).map(|n| format!("l{n}")).collect();
        let nine: Vec<(&str, &str)> = nine.iter().map(|key| (key.as_str(), "")).collect();
        let told = vec![
            metric("hits", 1.0, &[("kind", "a")]),
            metric("hits", 2.0, &[("kind", "b")]),
            metric("No Name", 1.0, &[]),
            metric("hits", 3.0, &[("kind", "a")]),
            metric("odd", f64::NAN, &[]),
            metric("odd", 1.0, &[("Kind", "a")]),
            metric("odd", 1.0, &nine),
        ];
        let figures = figures(told);
        let values: Vec<f64> = figures.metrics.iter().map(|it| it.value).collect();
        assert_eq!((values, figures.refused), (vec![1.0, 2.0], 5));
        assert!(figures.why.starts_with("\"No Name\": a-z"), "{}", figures.why);
    }

    #[test]
    fn there_are_so_many_figures_and_no_more() {
        let told = (0..1_000).map(|n| metric(&format!("m{n}"), 1.0, &[])).collect();
        let figures = figures(told);
        assert_eq!((figures.metrics.len(), figures.refused), (FIGURES_MAX, 1_000 - 64));
        assert!(figures.why.contains("more than 64"), "{}", figures.why);
    }

    #[test]
    fn what_the_manifest_does_not_say_is_told_and_what_it_says_is_not() {
        let text = "name: a\nversion: 1.0.0\ncapabilities: [x]\ndependencies: ['kv >=1']\n";
        let manifest = Manifest::parse(text.as_bytes(), &protocol::manifest::Defaults::default());
        let manifest = manifest.expect("valid");
        let mut told = Described {
            version: "1.0.0".into(),
            capabilities: vec!["x".into()],
            dependencies: vec!["kv >=1.2".into()],
            ..Described::default()
        };
        assert_eq!(contradictions(&told, &manifest), Vec::<String>::new());
        told.version = "2.0.0".into();
        told.capabilities.extend(["y".into(), "z".into()]);
        told.dependencies.push("ledger".into());
        told.stateful = true;
        let found = contradictions(&told, &manifest);
        let words = ["it says 2.0.0", "can do y, z,", "depends on ledger,", "keeps state"];
        assert_eq!(found.len(), words.len(), "{found:#?}");
        for (text, word) in found.iter().zip(words) {
            assert!(text.contains(word), "{text}");
        }
    }
}
