//! What a caller may ask of routing, in the metadata of a call.
//!
//! | Key | Value |
//! |---|---|
//! | `bh-version` | versions that may answer: `^1.2`, `>=1, <3` |
//! | `bh-label` | a label that the provider must have: `region=eu`; may be repeated |
//! | `bh-priority` | `low`, `normal`, `high`: who is refused first when there is too much to do |
//!
//! They cross to the peer that answers and are read again there. Where a call may be answered
//! (`bh-locality`, `bh-peer`) belongs to the call's head instead and ends where the call enters
//! the mesh.

use std::{collections::BTreeMap, fmt, str::FromStr};

use http::{HeaderMap, HeaderName};
use semver::VersionReq;

use crate::advert::{LABELS_BYTES_MAX, LABELS_MAX};

/// Versions that may answer.
pub const VERSION: HeaderName = HeaderName::from_static("bh-version");
/// A label that the provider must have.
pub const LABEL: HeaderName = HeaderName::from_static("bh-label");
/// How much the call matters.
pub const PRIORITY: HeaderName = HeaderName::from_static("bh-priority");

/// A version requirement, in bytes: a few bounds joined by commas.
const VERSION_BYTES_MAX: usize = 128;

/// How much a call matters where there is more to do than can be done. Later ones are refused
/// last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// May wait: batch work, prefetching.
    Low,
    /// Somebody waits for it.
    #[default]
    Normal,
    /// Others depend on it.
    High,
}

impl Priority {
    /// All of them, by name.
    pub const NAMED: [(&'static str, Self); 3] =
        [("low", Self::Low), ("normal", Self::Normal), ("high", Self::High)];
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        })
    }
}

impl FromStr for Priority {
    type Err = UnfitWish;

    fn from_str(text: &str) -> Result<Self, UnfitWish> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, priority)| *priority).ok_or_else(|| UnfitWish::Priority(shown(text)))
    }
}

/// What a caller asks for. The default asks for nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wishes {
    /// Versions that may answer.
    pub version: Option<VersionReq>,
    /// Labels that the provider must have, at most [`LABELS_MAX`].
    pub labels: BTreeMap<String, String>,
    /// How much it matters; `None` leaves it to the service's configuration.
    pub priority: Option<Priority>,
}

impl Wishes {
    /// Reads them from `metadata`.
    pub fn read(metadata: &HeaderMap) -> Result<Self, UnfitWish> {
        let mut wishes = Self::default();
        if let Some(value) = metadata.get(&VERSION) {
            let text = value.to_str().unwrap_or("");
            let version = (text.len() <= VERSION_BYTES_MAX).then(|| text.parse().ok()).flatten();
            let unfit = || UnfitWish::Version(lossy(value.as_bytes()));
            wishes.version = Some(version.ok_or_else(unfit)?);
        }
        for value in metadata.get_all(&LABEL) {
            let unfit = || UnfitWish::Label(lossy(value.as_bytes()));
            let text = value.to_str().map_err(|_| unfit())?;
            let (key, label) = text.split_once('=').ok_or_else(unfit)?;
            if key.is_empty() || text.len() > LABELS_BYTES_MAX {
                return Err(unfit());
            }
            wishes.labels.insert(key.into(), label.into());
            if wishes.labels.len() > LABELS_MAX {
                return Err(UnfitWish::Labels);
            }
        }
        if let Some(value) = metadata.get(&PRIORITY) {
            let text = value.to_str().map_err(|_| UnfitWish::Priority(lossy(value.as_bytes())))?;
            wishes.priority = Some(text.parse()?);
        }
        Ok(wishes)
    }
}

fn lossy(bytes: &[u8]) -> String {
    shown(&String::from_utf8_lossy(bytes))
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A wish that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitWish {
    /// Not a version requirement.
    #[error("bh-version `{0}` is not a version requirement (expected something like ^1.2)")]
    Version(String),
    /// Not a label and its value.
    #[error("bh-label `{0}` is not KEY=VALUE of at most {LABELS_BYTES_MAX} bytes")]
    Label(String),
    /// Too many labels.
    #[error("at most {LABELS_MAX} bh-label may be asked for")]
    Labels,
    /// Not a priority.
    #[error("bh-priority `{0}` is not one of low, normal, high")]
    Priority(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pairs: &[(&'static str, &str)]) -> Result<Wishes, UnfitWish> {
        let mut metadata = HeaderMap::new();
        for (key, value) in pairs {
            metadata.append(*key, value.parse().expect("a value"));
        }
        Wishes::read(&metadata)
    }

    #[test]
    fn wishes_are_read_from_metadata() {
        assert_eq!(read(&[("x", "y")]), Ok(Wishes::default()));
        let wishes = read(&[
            ("bh-version", ">=1, <3"),
            ("bh-label", "region=eu"),
            ("bh-label", "disk="),
            ("bh-priority", "high"),
        ])
        .expect("wishes");
        assert_eq!(wishes.version, ">=1, <3".parse().ok());
        assert_eq!(wishes.labels.len(), 2);
        assert_eq!(wishes.priority, Some(Priority::High));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let cases =
            [("bh-version", "new"), ("bh-label", "eu"), ("bh-label", "=eu"), ("bh-priority", "!")];
        for (key, value) in cases {
            let error = read(&[(key, value)]).expect_err(key).to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_metadata_panics(value in proptest::collection::vec(32_u8..=255, 0..300)) {
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                for key in [VERSION, LABEL, PRIORITY] {
                    let _ = Wishes::read(&[(key, value.clone())].into_iter().collect());
                }
            }
        }
    }
}
