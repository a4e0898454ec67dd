//! The query of a URL, taken apart: what calls by GET and WebSockets say there.
//!
//! Source: URL standard, *application/x-www-form-urlencoded parsing*, but strict: what is not
//! percent-encoded as it should be is refused, for it would be read in two ways.

use super::refusal::No;
use crate::bounds::{PARAMETERS_MAX, QUERY_BYTES_MAX};

/// Parameters in the order in which they came; their values are any bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Reads what stands after the `?`.
    pub(super) fn read(text: &str) -> Result<Self, No> {
        if text.len() > QUERY_BYTES_MAX {
            let message = format!("the query has more than {QUERY_BYTES_MAX} bytes: use POST");
            return Err(No::too_large(message));
        }
        let mut parameters = Vec::new();
        for parameter in text.split('&').filter(|parameter| !parameter.is_empty()) {
            if parameters.len() == PARAMETERS_MAX {
                let message = format!("the query has more than {PARAMETERS_MAX} parameters");
                return Err(No::invalid(message));
            }
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let bytes = |text| decode(text).ok_or_else(|| No::invalid("a % has no two digits"));
            let name = String::from_utf8(bytes(name)?);
            let name = name.map_err(|_| No::invalid("a parameter's name is not UTF-8"))?;
            parameters.push((name, bytes(value)?));
        }
        Ok(Self(parameters))
    }

    /// The value of `name`; refused where it is there twice.
    pub(super) fn one(&self, name: &str) -> Result<Option<&[u8]>, No> {
        let mut values = self.0.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_slice());
        match values.next() {
            Some(_) => Err(No::invalid(format!("the query says {name} twice"))),
            None => Ok(value),
        }
    }

    /// It is of the one version of Connect that there is, or does not say.
    pub(super) fn is_version_1(&self) -> Result<(), No> {
        match self.one("connect")? {
            None | Some(b"v1") => Ok(()),
            Some(_) => Err(No::invalid("connect is not v1, the only version there is")),
        }
    }

    /// What follows `prefix` in the names that begin with it, and their values.
    pub(super) fn beginning<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let named = move |(name, value): &'a (String, Vec<u8>)| {
            name.strip_prefix(prefix).map(|rest| (rest, value.as_slice()))
        };
        self.0.iter().filter_map(named)
    }
}

/// The bytes that `text` tells; `None` where a `%` has no two digits.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let (byte, left) = match first {
            b'%' => {
                let (digits, left) = more.split_first_chunk::<2>()?;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(digits[0])? * 16 + digit(digits[1])?;
                (u8::try_from(value).ok()?, left)
            }
            b'+' => (b' ', more),
            other => (*other, more),
        };
        bytes.push(byte);
        rest = left;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_come_back_from_percent_encoding(
            value in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let digit = |value: u8| char::from_digit(value.into(), 16).expect("a digit");
            let encode = |byte: &u8| ['%', digit(byte >> 4), digit(byte & 15)];
            let text: String = value.iter().flat_map(encode).collect();
            let query = Query::read(&format!("a={text}&b=1")).expect("a query");
            prop_assert_eq!(query.one("a").expect("once"), Some(value.as_slice()));
        }

        #[test]
        fn anything_is_read_or_refused(text in ".{0,80}") {
            let _ = Query::read(&text);
        }
    }

    #[test]
    fn parameters_are_found_whatever_their_order_and_what_stands_between() {
        let query = Query::read("message=a+b%2B&&header.x-a=1&flag&header.x-b=%C3%BC");
        let query = query.expect("a query");
        assert_eq!(query.one("message").expect("once"), Some(&b"a b+"[..]));
        assert_eq!(query.one("flag").expect("once"), Some(&b""[..]));
        assert_eq!(query.one("none").expect("none"), None);
        let headers: Vec<_> = query.beginning("header.").collect();
        assert_eq!(headers, [("x-a", &b"1"[..]), ("x-b", "ü".as_bytes())]);
    }

    #[test]
    fn what_can_be_read_in_two_ways_or_is_too_much_is_refused() {
        for bad in ["a=%", "a=%1", "a=%zz", "a=%+1", "%ff=1"] {
            assert!(Query::read(bad).is_err(), "{bad}");
        }
        assert!(Query::read("a=1&a=2").expect("a query").one("a").is_err());
        assert!(Query::read(&"a&".repeat(PARAMETERS_MAX)).is_ok());
        assert!(Query::read(&"a&".repeat(PARAMETERS_MAX + 1)).is_err());
        let long = "a".repeat(QUERY_BYTES_MAX + 1);
        assert!(matches!(Query::read(&long), Err(No::Failed(_))));
    }
}
