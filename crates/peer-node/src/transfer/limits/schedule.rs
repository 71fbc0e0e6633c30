//! When caps hold.

use common::error::{Error, Reason, Result};
use jiff::{Timestamp, tz::TimeZone};

/// Most spans of a schedule.
const MAX_SPANS: usize = 32;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Spans of the week: `mon-fri 08:00-18:00, sat 10:00-12:00`. Without days, every day; without hours, the whole day. A span
/// that ends before it begins goes past midnight.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule(Vec<Span>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    /// Bit 0 is Monday.
    days: u8,
    /// Minutes of the day; the end is not in it.
    from: u16,
    to: u16,
}

impl Schedule {
    /// Reads one; the empty text means always.
    ///
    /// # Errors
    /// FIELD_INVALID.
    pub fn parse(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let spans: Vec<&str> = text.split(',').collect();
        if spans.len() > MAX_SPANS {
            return Err(wrong(text));
        }
        spans.into_iter().map(|s| span(s).ok_or_else(|| wrong(text))).collect::<Result<_>>().map(Self)
    }

    /// Is this minute of the week in it? Monday is day 0.
    pub fn holds(&self, day: u8, minute: u16) -> bool {
        let on = |span: &Span, day: u8| span.days & (1 << (day % 7)) != 0;
        self.0.is_empty()
            || self.0.iter().any(|s| {
                if s.from < s.to {
                    on(s, day) && (s.from..s.to).contains(&minute)
                } else {
                    on(s, day) && minute >= s.from || on(s, day + 6) && minute < s.to
                }
            })
    }

    /// Is this moment in it, by the clock on the wall?
    pub fn holds_at(&self, now_ms: u64) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Ok(time) = Timestamp::from_millisecond(i64::try_from(now_ms).unwrap_or(i64::MAX)) else { return true };
        let time = time.to_zoned(TimeZone::system());
        let day = time.weekday().to_monday_zero_offset().unsigned_abs();
        self.holds(day, time.hour().unsigned_abs() as u16 * 60 + time.minute().unsigned_abs() as u16)
    }
}

fn span(text: &str) -> Option<Span> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (days, hours) = match words[..] {
        [one] if one.contains(':') => (None, Some(one)),
        [one] => (Some(one), None),
        [days, hours] => (Some(days), Some(hours)),
        _ => return None,
    };
    let days = match days {
        None => 0x7f,
        Some(days) => {
            let (first, last) = days.split_once('-').unwrap_or((days, days));
            let (first, last) = (day(first)?, day(last)?);
            let count = (last + 7 - first) % 7;
            (0..=count).fold(0, |set, n| set | 1 << ((first + n) % 7))
        }
    };
    let (from, to) = match hours {
        None => (0, 24 * 60),
        Some(hours) => {
            let (from, to) = hours.split_once('-')?;
            (minute(from)?, minute(to)?)
        }
    };
    (from != to && from < 24 * 60).then_some(Span { days, from, to })
}

fn day(text: &str) -> Option<u8> {
    DAYS.iter().position(|d| d.eq_ignore_ascii_case(text)).map(|d| d as u8)
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |t: &str, most: u16| t.parse::<u16>().ok().filter(|n| t.len() <= 2 && *n <= most);
    let at = number(hour, 24)? * 60 + number(minute, 59)?;
    (at <= 24 * 60).then_some(at)
}

fn wrong(text: &str) -> Error {
    let shown: String = text.chars().take(64).collect();
    Error::new(Reason::FieldInvalid, format!("{shown:?} is not a schedule"))
        .with("field", "schedule")
        .fix_is("write it like: mon-fri 08:00-18:00, sat 10:00-12:00")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read() {
        let work = Schedule::parse("mon-fri 08:00-18:00, sat 10:00-12:00").unwrap();
        for (day, minute, holds) in [
            (0, 479, false),
            (0, 480, true),
            (4, 1079, true),
            (4, 1080, false),
            (5, 600, true),
            (5, 720, false),
            (6, 660, false),
        ] {
            assert_eq!(work.holds(day, minute), holds, "{day} {minute}");
        }
        let night = Schedule::parse("fri-sun 22:00-06:00").unwrap();
        for (day, minute, holds) in
            [(4, 1320, true), (5, 0, true), (0, 359, true), (0, 360, false), (4, 100, false), (1, 100, false)]
        {
            assert_eq!(night.holds(day, minute), holds, "{day} {minute}");
        }
        assert!(Schedule::parse("sat-mon").unwrap().holds(0, 0) && !Schedule::parse("sat-mon").unwrap().holds(1, 0));
        assert!(Schedule::parse("12:00-24:00").unwrap().holds(3, 1439));
        assert!(Schedule::parse(" ").unwrap().holds(3, 3));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let many = "mon,".repeat(40);
        for bad in [
            "x",
            "mon-",
            "mon 8-9",
            "mon 25:00-26:00",
            "mon 08:00",
            "08:00-08:00",
            "mon 08:60-09:00",
            "mon,",
            "mon tue wed",
            &many,
            "24:00-25:00",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad:?}");
        }
    }
}
