//! What `cache-control` says: pure.
//!
//! Source: RFC 9111 §5.2. Directives that are not named here change nothing.

use std::time::Duration;

use http::{HeaderMap, header::CACHE_CONTROL};

/// The directives that count here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Word {
    /// Of a call: it does not want an answer that was kept. Of an answer: it must not be kept
    /// without asking again, which is not done here.
    pub(super) no_cache: bool,
    pub(super) no_store: bool,
    /// Only for the caller it was made for.
    private: bool,
    max_age: Option<Duration>,
    /// The same for caches that several callers share, which this is.
    s_maxage: Option<Duration>,
}

impl Word {
    /// All directives of all such headers together; nothing where they cannot be read.
    pub(super) fn of(metadata: &HeaderMap) -> Self {
        let mut word = Self::default();
        let texts = metadata.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        for directive in texts.flat_map(|text| text.split(',')) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let seconds = || value.trim().trim_matches('"').parse().map(Duration::from_secs).ok();
            match name.trim().to_ascii_lowercase().as_str() {
                "no-cache" => word.no_cache = true,
                "no-store" => word.no_store = true,
                "private" => word.private = true,
                "max-age" => word.max_age = seconds(),
                "s-maxage" => word.s_maxage = seconds(),
                _ => {}
            }
        }
        word
    }
}

/// For how long an answer with this metadata holds; `None` where it is not to be kept.
pub(super) fn lifetime(metadata: &HeaderMap) -> Option<Duration> {
    let Word { no_cache, no_store, private, max_age, s_maxage } = Word::of(metadata);
    let lifetime = s_maxage.or(max_age).filter(|lifetime| !lifetime.is_zero());
    lifetime.filter(|_| !(no_cache || no_store || private))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn said(values: &[&'static str]) -> HeaderMap {
        let values = values.iter().map(|value| (CACHE_CONTROL, HeaderValue::from_static(value)));
        values.collect()
    }

    #[test]
    fn an_answer_holds_for_as_long_as_it_says_and_otherwise_not_at_all() {
        let cases: [(&[&str], Option<u64>); 10] = [
            (&["max-age=5"], Some(5)),
            (&["Public, Max-Age = \"5\""], Some(5)),
            (&["public", "max-age=5"], Some(5)),
            (&["max-age=5, s-maxage=60"], Some(60)),
            (&["max-age=5, private"], None),
            (&["max-age=5", "no-store"], None),
            (&["no-cache, max-age=5"], None),
            (&["max-age=0"], None),
            (&["max-age=soon"], None),
            (&[], None),
        ];
        for (values, seconds) in cases {
            assert_eq!(lifetime(&said(values)), seconds.map(Duration::from_secs), "{values:?}");
        }
    }
}
