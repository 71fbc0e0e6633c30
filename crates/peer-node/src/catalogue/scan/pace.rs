//! How often a file that changes all the time is read.
//!
//! A file that a program writes to without end would be read as often as changes are looked at, a large one without a
//! pause. So a file that was read because of an event rests ten times as long as reading it took, ten minutes at most; one
//! that changed meanwhile at least a second, and each time twice as long. A look at everything does not ask.

use std::collections::HashMap;

/// Rest for each millisecond of reading.
const REST: u64 = 10;
/// Reading that took less is for nothing.
const CHEAP_MS: u64 = 20;
const TORN_MS: u64 = 1_000;
const LONGEST_MS: u64 = 600_000;
/// Files remembered; beyond it all are forgotten.
const FILES_MAX: usize = 10_000;

/// See the module. Times are in milliseconds of any monotonic clock.
#[derive(Debug, Default)]
pub struct Pace(HashMap<String, Rest>);

#[derive(Debug)]
struct Rest {
    until: u64,
    ms: u64,
}

impl Pace {
    /// May the file be read now?
    pub fn allows(&self, path: &str, now: u64) -> bool {
        self.0.get(path).is_none_or(|rest| rest.until <= now)
    }

    /// It was read.
    pub fn read(&mut self, path: &str, now: u64, took_ms: u64, torn: bool) {
        let before = self.0.get(path).map_or(0, |rest| rest.ms);
        let mut ms = if took_ms < CHEAP_MS { 0 } else { took_ms.saturating_mul(REST) };
        if torn {
            ms = ms.max(TORN_MS).max(before.saturating_mul(2));
        }
        let ms = ms.min(LONGEST_MS);
        if ms == 0 {
            self.0.remove(path);
            return;
        }
        if self.0.len() >= FILES_MAX {
            self.0.retain(|_, rest| rest.until > now);
        }
        if self.0.len() >= FILES_MAX {
            self.0.clear();
        }
        self.0.insert(path.to_owned(), Rest { until: now.saturating_add(ms), ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_rest_by_what_reading_them_costs() {
        let mut pace = Pace::default();
        pace.read("small", 0, 5, false);
        assert!(pace.allows("small", 0));
        pace.read("large", 1_000, 300, false);
        assert!(!pace.allows("large", 3_999) && pace.allows("large", 4_000));
        let mut now = 0;
        for expected in [1_000, 2_000, 4_000, 8_000] {
            pace.read("torn", now, 1, true);
            assert!(!pace.allows("torn", now + expected - 1) && pace.allows("torn", now + expected));
            now += expected;
        }
        (0..20).for_each(|_| pace.read("torn", now, 1, true));
        assert!(pace.allows("torn", now + LONGEST_MS));
        pace.read("torn", now, 1, false);
        assert!(pace.allows("torn", now), "whole at last");
        (0..50_000).for_each(|i| pace.read(&format!("{i}"), now, 100, false));
        assert!(pace.0.len() <= FILES_MAX);
    }
}
