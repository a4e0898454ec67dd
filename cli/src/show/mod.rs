//! What answers look like: for people as text, for programs as JSON. Pure: messages of the admin
//! API in, strings and documents out.
//!
//! In JSON, names are those of the admin API in snake case, and what is unknown, off or does not
//! apply is `null` rather than an empty string or a zero.

pub mod bench;
pub mod mesh;
pub mod node;
pub mod ping;
pub mod plugin;
pub mod trace;

use std::collections::HashMap;

use serde_json::{Value, json};

/// A text that may be absent.
fn text_or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

/// A number that may be absent.
fn number_or_null(number: impl Into<u64>) -> Value {
    match number.into() {
        0 => Value::Null,
        number => json!(number),
    }
}

/// A text, or a dash where it is absent.
fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// `k=v, k=v` in the order of the keys.
fn labels(labels: &HashMap<String, String>) -> String {
    let mut pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.sort();
    pairs.join(", ")
}

/// The end of a peer id, which is what differs between peers: `…4kVnPx2q`.
fn short_peer(peer_id: &str) -> String {
    let length = peer_id.chars().count();
    if length <= 12 {
        return peer_id.into();
    }
    format!("…{}", peer_id.chars().skip(length - 8).collect::<String>())
}

/// Lines of a name and what it is, the second column aligned.
struct Facts(Vec<(&'static str, String)>);

impl Facts {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a fact unless it is empty.
    fn add(&mut self, name: &'static str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.push((name, value));
        }
    }

    /// Adds one line for each value, the name only before the first.
    fn list(&mut self, name: &'static str, values: &[String]) {
        for (index, value) in values.iter().enumerate() {
            self.0.push((if index == 0 { name } else { "" }, value.clone()));
        }
    }

    fn text(&self, colour: bool) -> String {
        use crate::terminal::{Tone, clean, paint};
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, value): &(&'static str, String)| {
            let name = paint(colour, Tone::Dim, &format!("{name:width$}"));
            format!("{name}  {}", clean(value))
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_told_apart_by_the_end_of_their_id() {
        assert_eq!(short_peer("12D3KooWGzh4kVnPx2q1"), "…VnPx2q1".replace("…", "…k"));
        assert_eq!(short_peer("short"), "short");
    }

    #[test]
    fn labels_are_in_order() {
        let map = [("b", "2"), ("a", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(labels(&map.into()), "a=1, b=2");
    }
}
