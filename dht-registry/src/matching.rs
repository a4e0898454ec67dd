//! Which providers suit a caller, and which of those best.
//!
//! A requirement is written as terms with commas between them:
//!
//! ```text
//! version=^1.2, region=eu, tier!=spot, gpu, load<=50, price<=10, isolation=process
//! ```
//!
//! `version` takes a requirement as Cargo writes it; `load` and `price` take a most; `isolation`
//! an exact level; every other name is a label, to be equal (`=`), different or absent (`!=`), or
//! there at all.

use std::{cmp::Reverse, collections::BTreeMap, str::FromStr};

use semver::VersionReq;

use crate::directory::Entry;

/// What a label has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelRule {
    /// There, with this value.
    Is(String),
    /// Not there, or with another value.
    IsNot(String),
    /// There, with any value.
    There,
}

/// What a caller asks of a provider. The default asks nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requirement {
    /// Which versions of the plugin; `None` for any, pre-releases included.
    pub version: Option<VersionReq>,
    /// Which labels.
    pub labels: BTreeMap<String, LabelRule>,
    /// Which isolation level, exactly.
    pub isolation: Option<String>,
    /// The highest load, 0 to 100.
    pub load_max: Option<u8>,
    /// The highest price; a provider that names none asks for nothing.
    pub price_max: Option<u64>,
}

impl Requirement {
    /// Whether `entry` is what is asked for.
    pub fn matches(&self, entry: &Entry) -> bool {
        self.version.as_ref().is_none_or(|wanted| wanted.matches(entry.version()))
            && self.labels.iter().all(|(name, rule)| rule.holds(entry.labels().get(name)))
            && self.isolation.as_deref().is_none_or(|wanted| wanted == entry.isolation())
            && self.load_max.is_none_or(|most| entry.load() <= most)
            && self.price_max.is_none_or(|most| entry.price().unwrap_or(0) <= most)
    }

    /// Those of `entries` that match, best first: not suspect, here, less busy, cheaper, newer,
    /// and, where all that is equal, in the directory's order.
    pub fn best<'a>(&self, entries: &'a [Entry]) -> Vec<&'a Entry> {
        let mut matching: Vec<&Entry> =
            entries.iter().filter(|entry| self.matches(entry)).collect();
        matching.sort_by_key(|entry| {
            let price = entry.price().unwrap_or(0);
            (entry.suspect, !entry.local, entry.load(), price, Reverse(entry.version()))
        });
        matching
    }
}

impl LabelRule {
    fn holds(&self, value: Option<&String>) -> bool {
        match self {
            Self::Is(wanted) => value == Some(wanted),
            Self::IsNot(unwanted) => value != Some(unwanted),
            Self::There => value.is_some(),
        }
    }
}

impl FromStr for Requirement {
    type Err = InvalidRequirement;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut requirement = Self::default();
        let mut terms = text.split(',').map(str::trim).filter(|term| !term.is_empty()).peekable();
        while let Some(term) = terms.next() {
            let invalid = |expected| InvalidRequirement { term: term.into(), expected };
            if let Some(wanted) = value_of(term, "version", "=") {
                // A version requirement has commas of its own: `version=>=1.2, <2`.
                let mut wanted = wanted.to_owned();
                while let Some(more) = terms.next_if(|term| term.starts_with(['<', '>'])) {
                    wanted = format!("{wanted}, {more}");
                }
                let wanted =
                    wanted.parse().map_err(|_| invalid("a version such as version=^1.2"))?;
                requirement.version = Some(wanted);
            } else if let Some(most) = value_of(term, "load", "<=") {
                let most = most.parse().ok().filter(|most| *most <= 100);
                requirement.load_max = Some(most.ok_or_else(|| invalid("load<=0 to load<=100"))?);
            } else if let Some(most) = value_of(term, "price", "<=") {
                let most = most.parse().map_err(|_| invalid("a whole number, as in price<=10"))?;
                requirement.price_max = Some(most);
            } else if let Some(level) = value_of(term, "isolation", "=") {
                requirement.isolation = Some(level.into());
            } else {
                let (name, rule) = label_term(term)
                    .ok_or_else(|| invalid("name=value, name!=value or name for a label"))?;
                requirement.labels.insert(name, rule);
            }
        }
        Ok(requirement)
    }
}

fn value_of<'a>(term: &'a str, name: &str, sign: &str) -> Option<&'a str> {
    term.strip_prefix(name)?.trim_start().strip_prefix(sign).map(str::trim_start)
}

fn label_term(term: &str) -> Option<(String, LabelRule)> {
    let (name, rule) = if let Some((name, value)) = term.split_once("!=") {
        (name, LabelRule::IsNot(value.trim().into()))
    } else if let Some((name, value)) = term.split_once('=') {
        (name, LabelRule::Is(value.trim().into()))
    } else {
        (term, LabelRule::There)
    };
    let name = name.trim();
    let plain = !name.is_empty() && !name.contains(['<', '>', '!', '=', ' ']);
    plain.then(|| (name.to_owned(), rule))
}

/// The text is not a requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{term}` cannot be asked of a provider (expected {expected})")]
pub struct InvalidRequirement {
    term: String,
    expected: &'static str,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protocol::{
        advert::Advert,
        id::{InstanceId, NodeKey},
    };

    use super::*;

    fn entry(change: impl FnOnce(&mut Entry, &mut Advert)) -> Entry {
        let peer = NodeKey::from_seed([1; 32]).peer_id();
        let mut advert = Advert {
            network: "local".parse().expect("name"),
            peer,
            boot: 0,
            instance: InstanceId(1),
            part: 0,
            plugin: "counter".into(),
            version: "1.2.3".parse().expect("version"),
            services: Vec::new(),
            labels: [("region".into(), "eu".into()), ("gpu".into(), String::new())].into(),
            isolation: "process".into(),
            load: 30,
            price: None,
            seq: 1,
            issued: 1,
            expires: 2,
            withdrawn: false,
        };
        let mut entry = Entry {
            peer,
            instance: InstanceId(1),
            schema: [0; 32],
            local: false,
            suspect: false,
            advert: Arc::new(advert.clone()),
        };
        change(&mut entry, &mut advert);
        entry.advert = Arc::new(advert);
        entry
    }

    fn matches(text: &str) -> bool {
        let requirement: Requirement = text.parse().expect(text);
        requirement.matches(&entry(|_, _| {}))
    }

    #[test]
    fn every_term_has_to_hold() {
        for text in [
            "",
            "version=^1.2",
            "version = >=1.0, <2",
            "region=eu",
            "region!=us",
            "zone!=a",
            "gpu",
            "load<=30",
            "price<=0",
            "isolation=process",
            "version=1, region=eu, gpu, load <= 50",
        ] {
            assert!(matches(text), "{text}");
        }
        for text in [
            "version=^2",
            "version=>=1.0, <1.2",
            "region=us",
            "region!=eu",
            "tpu",
            "load<=29",
            "isolation=none",
            "version=1, region=us",
        ] {
            assert!(!matches(text), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_named_in_the_error() {
        for bad in ["version=one", "load<=101", "load<=x", "price<=-1", "=eu", "load>5", "a b"] {
            let error = bad.parse::<Requirement>().expect_err(bad);
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn the_best_is_trusted_near_idle_cheap_and_new() {
        let entries = [
            entry(|entry, _| entry.suspect = true),
            entry(|_, advert| advert.version = "1.3.0".parse().expect("version")),
            entry(|_, advert| advert.price = Some(5)),
            entry(|_, advert| advert.load = 90),
            entry(|entry, advert| (entry.local, advert.load) = (true, 99)),
            entry(|_, _| {}),
        ];
        let best = Requirement::default().best(&entries);
        let order: Vec<usize> = best
            .iter()
            .map(|one| entries.iter().position(|entry| std::ptr::eq(entry, *one)).expect("ours"))
            .collect();
        assert_eq!(order, [4, 1, 5, 2, 3, 0]);
    }
}
