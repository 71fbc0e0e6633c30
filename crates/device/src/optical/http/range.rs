//! The `Range` field (RFC 9110 §14.2) with one range of bytes.

use std::ops::Range;

/// What to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// Everything: the field is malformed or has several ranges, which a server may ignore.
    Whole,
    /// These bytes; never empty.
    Range(Range<u64>),
    /// Nothing of it exists.
    Unsatisfiable,
}

/// Reads the field for something of this size.
pub(super) fn parse(field: &str, size: u64) -> Part {
    let Some(spec) = field.trim().strip_prefix("bytes=").map(str::trim) else { return Part::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Part::Whole };
    // A number that is too large for us is past the end of everything.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => within(first, size, size),
        (Some(first), Some(last)) if first <= last => within(first, last.saturating_add(1), size),
        (None, Some(0)) if first.is_empty() => Part::Unsatisfiable,
        (None, Some(count)) if first.is_empty() => within(size.saturating_sub(count), size, size),
        _ => Part::Whole,
    }
}

fn within(start: u64, end: u64, size: u64) -> Part {
    if start >= size { Part::Unsatisfiable } else { Part::Range(start..end.min(size)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_standard() {
        let cases = [
            ("bytes=0-0", Part::Range(0..1)),
            ("bytes=0-499", Part::Range(0..500)),
            ("bytes=500-", Part::Range(500..1000)),
            ("bytes=-100", Part::Range(900..1000)),
            ("bytes=-5000", Part::Range(0..1000)),
            ("bytes=900-99999999999999999999999", Part::Range(900..1000)),
            ("bytes=1000-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=5-3", Part::Whole),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=--1", Part::Whole),
            ("bytes=-", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("", Part::Whole),
        ];
        for (field, part) in cases {
            assert_eq!(parse(field, 1000), part, "{field}");
        }
        assert_eq!(parse("bytes=0-", 0), Part::Unsatisfiable);
    }
}
