//! Times as discs write them.

/// Milliseconds since 1970 of a time in a zone so many minutes east of UTC; nothing if it is no time.
pub(super) fn civil_ms(year: i64, month: u8, day: u8, time: [u8; 3], east_min: i64) -> Option<i64> {
    let [hour, minute, second] = time;
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !valid || !(1..=9999).contains(&year) || east_min.abs() > 24 * 60 {
        return None;
    }
    // Days from civil: years begin in March, so that the leap day is the last.
    let (year, month) = if month <= 2 { (year - 1, i64::from(month) + 9) } else { (year, i64::from(month) - 3) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + i64::from(day) - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    Some((seconds - east_min * 60) * 1000)
}

/// The seven bytes of ISO 9660 §9.1.5.
pub(super) fn short(raw: &[u8]) -> Option<i64> {
    let [year, month, day, hour, minute, second, zone] = *raw.first_chunk::<7>()?;
    civil_ms(1900 + i64::from(year), month, day, [hour, minute, second], i64::from(zone as i8) * 15)
}

/// The seventeen bytes of ISO 9660 §8.4.26.1, digits and a zone.
pub(super) fn long(raw: &[u8]) -> Option<i64> {
    let raw = raw.first_chunk::<17>()?;
    let number = |range: std::ops::Range<usize>| std::str::from_utf8(&raw[range]).ok()?.parse::<u16>().ok();
    let byte = |at| number(at..at + 2).map(|n| n as u8);
    civil_ms(number(0..4)?.into(), byte(4)?, byte(6)?, [byte(8)?, byte(10)?, byte(12)?], i64::from(raw[16] as i8) * 15)
}

/// The twelve bytes of ECMA-167 §1/7.3.
pub(super) fn udf(raw: &[u8]) -> Option<i64> {
    let raw = raw.first_chunk::<12>()?;
    let zone = u16::from_le_bytes([raw[0], raw[1]]);
    // Twelve bits with a sign; -2047 says nothing.
    let east = i64::from(((zone << 4) as i16) >> 4);
    let east = if zone >> 12 == 1 && east != -2047 { east } else { 0 };
    let year = i64::from(i16::from_le_bytes([raw[2], raw[3]]));
    civil_ms(year, raw[4], raw[5], [raw[6], raw[7], raw[8]], east)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(civil_ms(1970, 1, 1, [0, 0, 0], 0), Some(0));
        assert_eq!(civil_ms(2000, 2, 29, [12, 0, 0], 0), Some(951_825_600_000));
        assert_eq!(civil_ms(2024, 3, 1, [1, 0, 0], 60), Some(1_709_251_200_000));
        assert_eq!(short(&[124, 3, 1, 1, 0, 0, 4]), Some(1_709_251_200_000));
        assert_eq!(long(b"2024030101000000\x04"), Some(1_709_251_200_000));
        assert_eq!(udf(&[60, 0x10, 0xe8, 0x07, 3, 1, 1, 0, 0, 0, 0, 0]), Some(1_709_251_200_000));
    }

    #[test]
    fn what_is_no_time_is_none() {
        assert_eq!(short(&[124, 13, 1, 1, 0, 0, 4]), None);
        assert_eq!(short(&[124, 3]), None);
        assert_eq!(long(b"0000000000000000\0"), None);
        assert_eq!(udf(&[0xff; 12]), None);
        assert_eq!(civil_ms(2024, 1, 1, [24, 0, 0], 0), None);
    }
}
