//! Numbers and times for people.

use jiff::tz::TimeZone;
use prost_types::Timestamp;
use std::time::Duration;

/// "12.3 MiB".
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A limit, where 0 means none.
pub fn limit(n: u64) -> String {
    if n == 0 { "no limit".to_owned() } else { bytes(n) }
}

/// "1 file", "2 files".
pub fn count(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// "3 d 4 h", "5 min 2 s", "12 s", "0.4 s".
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 => format!("{:.1} s", d.as_secs_f64()),
        1..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// RFC 3339 in UTC, as in JSON; empty if not set.
pub fn rfc3339(time: Option<&Timestamp>) -> Option<String> {
    time.map(ToString::to_string)
}

/// "2026-11-22 20:04" in this machine's time zone, of an RFC 3339 text; "-" if not set.
pub fn minute(time: Option<&str>) -> String {
    time.map_or_else(|| "-".to_owned(), |text| shown(text, "%Y-%m-%d %H:%M", &TimeZone::system()))
}

/// "20:04:05" in this machine's time zone, of an RFC 3339 text; "-" if not set.
pub fn second(time: Option<&str>) -> String {
    time.map_or_else(|| "-".to_owned(), |text| shown(text, "%H:%M:%S", &TimeZone::system()))
}

/// "2026-11-22", the day in this machine's time zone, of an RFC 3339 text.
pub fn day(time: &str) -> String {
    shown(time, "%Y-%m-%d", &TimeZone::system())
}

/// A time in a zone; in UTC with a "Z" if the zone is not known. A text that is no time is shown as it is.
fn shown(text: &str, format: &str, zone: &TimeZone) -> String {
    let Ok(time) = text.parse::<jiff::Timestamp>() else { return text.to_owned() };
    let mark = if zone.is_unknown() && format.contains("%M") { "Z" } else { "" };
    format!("{}{mark}", time.to_zoned(zone.clone()).strftime(format))
}

/// Milliseconds since 1970 as a protocol timestamp.
pub fn timestamp_ms(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Text for a terminal: control characters, which could move the cursor or change colours, are shown as `?`.
pub fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The text, filled up on the right to `width` characters.
pub fn pad(text: &str, width: usize) -> String {
    let have = text.chars().count();
    format!("{text}{}", " ".repeat(width.saturating_sub(have)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(duration(Duration::from_millis(400)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(302)), "5 min 2 s");
        assert_eq!(duration(Duration::from_secs(90_000)), "1 d 1 h");
        assert_eq!(rfc3339(Some(&timestamp_ms(1_795_374_245_000))).unwrap(), "2026-11-22T19:04:05Z");
        assert_eq!((minute(None), second(None)), ("-".to_owned(), "-".to_owned()));
        assert_eq!(safe("a\x1b[31mb\n"), "a?[31mb?");
        assert_eq!(pad("ä", 3), "ä  ");
    }

    #[test]
    fn times_are_those_of_the_place() {
        let time = "2026-11-22T23:34:05.123Z";
        let minute = |zone: &TimeZone| shown(time, "%Y-%m-%d %H:%M", zone);
        // An hour and a half before Greenwich, written as POSIX does; and with summer time.
        assert_eq!(minute(&TimeZone::posix("ABC-1:30").unwrap()), "2026-11-23 01:04");
        let vienna = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        assert_eq!(minute(&vienna), "2026-11-23 00:34");
        assert_eq!(shown("2026-07-22T23:34:05Z", "%H:%M:%S", &vienna), "01:34:05");
        assert_eq!(minute(&TimeZone::UTC), "2026-11-22 23:34");
        assert_eq!(minute(&TimeZone::unknown()), "2026-11-22 23:34Z");
        assert_eq!(shown(time, "%Y-%m-%d", &vienna), "2026-11-23");
        assert_eq!(shown("soon", "%Y-%m-%d", &vienna), "soon");
    }
}
