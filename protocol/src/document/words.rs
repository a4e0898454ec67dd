//! The little languages inside values: durations, sizes, and what a misspelt key was meant to be.

use std::time::Duration;

/// Reads `500ms`, `30s`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..end].parse().ok()?;
    let millis = match &text[end..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// Reads `512MB`, `64KiB`: powers of 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit: u64 = match text[end..].trim().to_ascii_uppercase().as_str() {
        "B" => 1,
        "KB" | "KIB" => 1 << 10,
        "MB" | "MIB" => 1 << 20,
        "GB" | "GIB" => 1 << 30,
        "TB" | "TIB" => 1 << 40,
        _ => return None,
    };
    let bytes = number * unit as f64;
    // Far beyond any machine, and still exact in what follows.
    (bytes < 9e15).then_some(bytes as u64)
}

/// True when `typed` is at most two edits from `known` (Levenshtein).
pub(super) fn near(known: &str, typed: &str) -> bool {
    let known: Vec<char> = known.chars().collect();
    if typed.chars().count().abs_diff(known.len()) > 2 {
        return false;
    }
    let mut row: Vec<usize> = (0..=known.len()).collect();
    for (line, found) in typed.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, wanted) in known.iter().enumerate() {
            let above = row[column + 1];
            let change = diagonal + usize::from(*wanted != found);
            row[column + 1] = change.min(above + 1).min(row[column] + 1);
            diagonal = above;
        }
    }
    row[known.len()] <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Some(Duration::from_mins(5)));
        for bad in ["", "5", "s", "-1s", "1 s", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_understood_as_people_write_them() {
        assert_eq!(size("512MB"), Some(512 << 20));
        assert_eq!(size("1.5GiB"), Some(3 << 29));
        for bad in ["", "MB", "12 apples", "1e400GB", "100"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_slip_of_the_pen_is_near() {
        assert!(near("permissions", "permission"));
        assert!(near("listen", "lsiten"));
        assert!(!near("listen", "labels"));
    }
}
