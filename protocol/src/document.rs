//! Strict reading of YAML documents that people write: a tree that remembers lines, and a reader
//! that gathers every mistake instead of stopping at the first.
//!
//! Knows nothing of what a document means: the plugin manifest and the node's configuration bring
//! their own keys. Refuses anchors, aliases, merges and duplicate keys.

mod json;
mod words;

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use words::{duration, near, size};

/// Deeper nesting than any field of ours; stops hostile input early.
const DEPTH_MAX: usize = 16;

/// Nodes in one file: a manifest of the largest allowed size cannot hold more useful ones.
const NODES_MAX: usize = 20_000;

/// Mistakes that are listed; the rest are counted in one line.
const MISTAKES_MAX: usize = 50;

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Counted from 1; 0 where the mistake is something missing.
    pub line: u64,
    /// The field, written as a path: `resources.cpu`. Empty for the file as a whole.
    pub field: String,
    /// What is wrong and what is expected.
    pub reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// A value and the line it begins on.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Its first line, counted from 1.
    pub line: u64,
}

/// What YAML's core schema knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key and its line.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The key.
    pub text: String,
    /// Its line, counted from 1.
    pub line: u64,
}

/// Parses `text` as one YAML document without anchors, merges or duplicate keys.
pub fn parse(text: &str) -> Result<Node, Mistake> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_anchors: 0,
            max_aliases: 0,
        },
        strict_booleans: true,
        merge_keys: serde_saphyr::options::MergeKeyPolicy::Error,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let text = error.render();
        // The location is told apart from the text; the library appends it as well.
        let reason = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Mistake { line, field: String::new(), reason: format!("not valid YAML: {reason}") }
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { value: spanned.value, line: spanned.referenced.line() })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { text: spanned.value, line: spanned.referenced.line() })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

impl Value {
    /// What it is, for "expected …, found …".
    fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".into(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) => format!("the text `{}`", shortened(text)),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a map".into(),
        }
    }
}

fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    if text.chars().count() <= SHOWN {
        return text.into();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}

/// The mistakes found so far.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Notes one.
    pub fn note(&mut self, line: u64, field: &str, reason: impl Into<String>) {
        self.0.push(Mistake { line, field: field.into(), reason: reason.into() });
    }

    /// Notes that something else was expected.
    pub fn expected(&mut self, node: &Node, field: &str, what: &str) {
        self.note(node.line, field, format!("expected {what}, found {}", node.value.kind()));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them in the order of the file, missing things last; at most a screenful.
    pub fn into_sorted(self) -> Vec<Mistake> {
        let mut all = self.0;
        all.sort_by_key(|mistake| if mistake.line == 0 { u64::MAX } else { mistake.line });
        if all.len() > MISTAKES_MAX {
            let more = all.len() - MISTAKES_MAX;
            all.truncate(MISTAKES_MAX);
            all.push(Mistake {
                line: 0,
                field: String::new(),
                reason: format!("and {more} more mistakes"),
            });
        }
        all
    }

    /// The entries of a map.
    pub fn map(&mut self, node: Node, field: &str) -> Option<Fields> {
        if let Value::Map(entries) = node.value {
            return Some(Fields { entries, path: field.into(), known: Vec::new() });
        }
        self.expected(&node, field, "a map");
        None
    }

    /// The elements of a list of at most `elements_max`.
    pub fn list(&mut self, node: Node, field: &str, elements_max: usize) -> Vec<Node> {
        match node.value {
            Value::List(nodes) if nodes.len() <= elements_max => nodes,
            Value::List(nodes) => {
                let reason = format!("at most {elements_max} entries, found {}", nodes.len());
                self.note(node.line, field, reason);
                Vec::new()
            }
            // `key:` with nothing after it is how people write an empty list.
            Value::Null => Vec::new(),
            _ => {
                self.expected(&node, field, "a list");
                Vec::new()
            }
        }
    }

    /// A text of at most `bytes_max` bytes, not empty, without control characters.
    pub fn text(&mut self, node: &Node, field: &str, bytes_max: usize) -> Option<String> {
        let Value::Text(text) = &node.value else {
            let what = match node.value {
                Value::Integer(_) | Value::Float(_) | Value::Bool(_) => "a text (put it in quotes)",
                _ => "a text",
            };
            self.expected(node, field, what);
            return None;
        };
        if text.is_empty() {
            self.note(node.line, field, "must not be empty");
        } else if text.len() > bytes_max {
            let reason = format!("at most {bytes_max} bytes, found {}", text.len());
            self.note(node.line, field, reason);
        } else if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            self.note(node.line, field, "must not contain control characters");
        } else {
            return Some(text.clone());
        }
        None
    }

    /// A text that `parse` understands.
    pub fn parsed<T, E: fmt::Display>(
        &mut self,
        node: &Node,
        field: &str,
        bytes_max: usize,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(node, field, bytes_max)?;
        parse(&text).map_err(|error| self.note(node.line, field, error.to_string())).ok()
    }

    /// A whole number within `range`.
    pub fn integer(&mut self, node: &Node, field: &str, range: RangeInclusive<i64>) -> Option<i64> {
        match node.value {
            Value::Integer(number) if range.contains(&number) => Some(number),
            Value::Integer(number) => {
                let reason =
                    format!("must be {} to {}, found {number}", range.start(), range.end());
                self.note(node.line, field, reason);
                None
            }
            _ => {
                self.expected(node, field, "a whole number");
                None
            }
        }
    }

    /// A duration within `range`: `500ms`, `30s`, `5m`, `1h`, or a whole number of seconds.
    pub fn duration(
        &mut self,
        node: &Node,
        field: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let duration = match &node.value {
            Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
            Value::Text(text) => duration(text),
            _ => None,
        };
        let Some(duration) = duration else {
            self.expected(node, field, "a duration such as 500ms, 30s or 5m");
            return None;
        };
        if !range.contains(&duration) {
            let reason =
                format!("must be {:?} to {:?}, found {duration:?}", range.start(), range.end());
            self.note(node.line, field, reason);
            return None;
        }
        Some(duration)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, node: &Node, field: &str) -> Option<bool> {
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        self.expected(node, field, "true or false");
        None
    }

    /// A number above zero.
    pub fn positive(&mut self, node: &Node, field: &str) -> Option<f64> {
        match node.value {
            Value::Integer(number) if number > 0 => Some(number as f64),
            Value::Float(number) if number > 0.0 && number.is_finite() => Some(number),
            _ => {
                self.expected(node, field, "a number above 0");
                None
            }
        }
    }

    /// A size in bytes: `512MB`, `2GB`, `64KiB`, powers of 1024 whichever way they are written,
    /// as memory is meant.
    pub fn size(&mut self, node: &Node, field: &str) -> Option<u64> {
        let size = match &node.value {
            Value::Text(text) => size(text),
            _ => None,
        };
        if size.is_none() {
            self.expected(node, field, "a size such as 512MB or 2GB");
        }
        size
    }

    /// One of `choices`.
    pub fn choice<T: Copy>(
        &mut self,
        node: &Node,
        field: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        if let Value::Text(text) = &node.value
            && let Some((_, choice)) = choices.iter().find(|(name, _)| name == text)
        {
            return Some(*choice);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.expected(node, field, &format!("one of {}", names.join(", ")));
        None
    }
}

/// The entries of one map that are not read yet.
#[derive(Debug)]
pub struct Fields {
    entries: Vec<(Key, Node)>,
    path: String,
    known: Vec<&'static str>,
}

impl Fields {
    /// The value of `key`, which thereby is a known one. A key without a value counts as absent.
    pub fn take(&mut self, key: &'static str) -> Option<(Node, String)> {
        self.known.push(key);
        let at = self.entries.iter().position(|(name, _)| name.text == key)?;
        let (_, node) = self.entries.swap_remove(at);
        (node.value != Value::Null).then(|| (node, self.path_of(key)))
    }

    /// A map without entries.
    pub fn none(path: String) -> Self {
        Self { entries: Vec::new(), path, known: Vec::new() }
    }

    /// The map under `key`; an empty one where it is absent or something else, which is a mistake.
    pub fn section(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Self {
        let path = self.path_of(key);
        let found = self.take(key).and_then(|(node, at)| mistakes.map(node, &at));
        found.unwrap_or_else(|| Self::none(path))
    }

    /// The value of `key`; its absence is a mistake.
    pub fn require(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes,
        why: &str,
    ) -> Option<(Node, String)> {
        let found = self.take(key);
        if found.is_none() {
            mistakes.note(0, &self.path_of(key), format!("is missing: {why}"));
        }
        found
    }

    /// Every entry, for maps whose keys are the author's.
    pub fn into_entries(self) -> Vec<(Key, Node)> {
        self.entries
    }

    /// Notes every entry that was not taken.
    pub fn finish(self, mistakes: &mut Mistakes) {
        for (key, _) in &self.entries {
            let near = self.known.iter().filter(|known| near(known, &key.text)).min();
            let hint = near.map_or_else(
                || format!("known keys are {}", self.known.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            mistakes.note(
                key.line,
                &self.path_of(&shortened(&key.text)),
                format!("unknown key; {hint}"),
            );
        }
    }

    /// `key` with the path of this map before it.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_know_their_lines() {
        let node = parse("a: 1\nb:\n  - x\n  - y: true\n").expect("valid");
        let Value::Map(entries) = node.value else { panic!("a map") };
        assert_eq!((entries[0].0.line, entries[0].1.line), (1, 1));
        assert_eq!(entries[1].0.line, 2);
        let Value::List(list) = &entries[1].1.value else { panic!("a list") };
        assert_eq!((list[0].line, list[1].line), (3, 4));
    }

    #[test]
    fn what_is_not_plain_yaml_is_refused_with_its_line() {
        let cases = [
            ("a: 1\na: 2\n", 2),
            ("a: &x 1\nb: *x\n", 1),
            ("a: [1\n", 2),
            ("a: 1\n---\nb: 2\n", 2),
        ];
        for (text, line) in cases {
            let mistake = parse(text).expect_err(text);
            assert!(mistake.line.abs_diff(line) <= 1, "{text}: {mistake}");
        }
        assert!(parse(&"[".repeat(1_000)).is_err());
    }
}
