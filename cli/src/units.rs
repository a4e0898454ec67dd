//! Times, sizes and words, as people read and write them.

use std::time::Duration;

/// The longest `--timeout` that is accepted: a day. Longer is a slip of the unit.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// Reads `500ms`, `5s`, `1.5m`, `2h`; a number without unit means seconds. More than nothing and
/// at most a day.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    let refused = || format!("`{text}` is not a time (expected something like 500ms, 5s or 2m)");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| refused())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(refused()),
    };
    let timeout = Duration::try_from_secs_f64(seconds).map_err(|_| refused())?;
    if timeout < Duration::from_micros(1) || timeout > TIMEOUT_MAX {
        return Err(format!("`{text}` is out of range: more than nothing, at most 24h"));
    }
    Ok(timeout)
}

/// Reads `256MB`, `1.5GB`, `64KiB`, `4096`: bytes, powers of 1024 whichever way they are written,
/// as in manifests. From 1 byte to 64 TiB.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const MOST: f64 = (64_u64 << 40) as f64;
    let refused =
        || format!("`{text}` is not a size (expected something like 256MB, 2GB or 64KiB)");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| refused())?;
    let unit = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1_u64,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return Err(refused()),
    };
    let bytes = number * unit as f64;
    if !(1.0..=MOST).contains(&bytes) {
        return Err(format!("`{text}` is out of range: from 1 byte to 64 TiB"));
    }
    Ok(bytes as u64)
}

/// A span of time in its two largest units: `3d 4h`, `5m 12s`, `850ms`.
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A round-trip time: `850µs`, `12.3ms`; `-` when unknown (0).
pub fn round_trip(micros: u64) -> String {
    match micros {
        0 => "-".into(),
        1..1000 => format!("{micros}µs"),
        _ => format!("{:.1}ms", micros as f64 / 1000.0),
    }
}

/// A size: `512 B`, `3.4 KB`, `24.5 MB` (powers of 1000).
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 plugin`, `3 plugins`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_with_and_without_unit() {
        for (text, millis) in
            [("500ms", 500), ("5s", 5000), ("2", 2000), ("1.5m", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_timeout(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "s", "-1s", "0", "5 s", "1d", "25h", "1e9", "1..2s", "nan"] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(span(850), "850ms");
        assert_eq!(span(312_000), "5m 12s");
        assert_eq!(span(273_600_000), "3d 4h");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(size(24_500_000), "24.5 MB");
        assert_eq!(round_trip(12_345), "12.3ms");
        assert_eq!(count(1, "plugin"), "1 plugin");
    }
}
