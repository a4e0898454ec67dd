//! `grpc-timeout`: how long a caller waits, as gRPC's metadata says it.
//!
//! Source: gRPC over HTTP/2, *Timeout*: one to eight digits and a unit.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

/// The name of the header.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Reads a value; `None` where it is not one to eight digits and one of `H M S m u n`.
pub fn read(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3_600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Writes a value, rounded up to milliseconds, so that whoever knows the caller's deadline exactly
/// is the first to see it pass.
pub fn write(left: Duration) -> HeaderValue {
    const DIGITS_MAX: u128 = 99_999_999;
    let millis = left.as_nanos().div_ceil(1_000_000);
    let (value, unit) = if millis <= DIGITS_MAX {
        (millis, 'm')
    } else {
        (millis.div_ceil(1_000).min(DIGITS_MAX), 'S')
    };
    HeaderValue::from_str(&format!("{value}{unit}")).unwrap_or(HeaderValue::from_static("1S"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timeouts_are_read_strictly() {
        assert_eq!(read(b"1H"), Some(Duration::from_hours(1)));
        assert_eq!(read(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", " 1S", "1S "] {
            assert!(read(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn timeouts_keep_to_eight_digits_and_end_after_the_callers_own() {
        for (left, text) in [
            (Duration::from_nanos(5), "1m"),
            (Duration::from_micros(1_001), "2m"),
            (Duration::from_secs(5), "5000m"),
            (Duration::from_secs(1_000_000), "1000000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(write(left), text);
        }
    }

    proptest! {
        #[test]
        fn no_timeout_panics(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&text);
        }
    }
}
