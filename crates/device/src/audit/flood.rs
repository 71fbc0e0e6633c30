//! Refusals in the log, so that a flood of them cannot fill the disk.
//!
//! Each source (a device, or else a person's name, or else all strangers together) writes 20 refusals at once and then one
//! each 10 seconds; all sources together 200 at once and then one a second. What goes beyond is counted, and written as one
//! summary a minute.

use super::{Line, Outcome};
use crate::model::Caller;
use std::collections::HashMap;

/// What one source may write.
const PER_SOURCE: Limit = Limit { burst: 20, period_ms: 10_000 };
/// What all together may write.
const TOGETHER: Limit = Limit { burst: 200, period_ms: 1_000 };
/// Sources whose rate is known at a time; others share one.
const SOURCES_MAX: usize = 4096;
/// Sources that a summary counts one by one.
const COUNTED_MAX: usize = 256;
/// Sources that a summary names.
const NAMED: usize = 5;
pub(super) const SUMMARY_EVERY_MS: u64 = 60_000;

#[derive(Clone, Copy)]
struct Limit {
    burst: u64,
    period_ms: u64,
}

impl Limit {
    /// The generic cell rate algorithm: `at` is when the bucket will be full again.
    fn take(self, at: &mut u64, now_ms: u64) -> bool {
        let whole = self.burst * self.period_ms;
        // A clock that was set back must not lock a source out.
        let from = if *at > now_ms + whole { now_ms } else { (*at).max(now_ms) };
        if from + self.period_ms > now_ms + whole {
            return false;
        }
        *at = from + self.period_ms;
        true
    }
}

#[derive(Default)]
pub(super) struct Flood {
    sources: HashMap<String, u64>,
    others: u64,
    together: u64,
    counted: HashMap<String, u32>,
    counted_others: u32,
    summary_at_ms: u64,
}

fn source(who: &Caller) -> String {
    match (&who.device[..], &who.person[..]) {
        ("", "") => "strangers".to_owned(),
        ("", person) => super::clean(person, 64),
        (device, _) => super::clean(device, 64),
    }
}

impl Flood {
    /// True if a refusal of this source is to be written; otherwise it is counted.
    pub(super) fn admit(&mut self, who: &Caller, now_ms: u64) -> bool {
        let source = source(who);
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, at| *at > now_ms);
        }
        let full = self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source);
        let at = if full { &mut self.others } else { self.sources.entry(source).or_default() };
        if PER_SOURCE.take(at, now_ms) && TOGETHER.take(&mut self.together, now_ms) {
            return true;
        }
        self.left_out(who, now_ms);
        false
    }

    /// Counts one that is not written.
    pub(super) fn left_out(&mut self, who: &Caller, now_ms: u64) {
        if self.counted.is_empty() && self.counted_others == 0 {
            self.summary_at_ms = now_ms.saturating_add(SUMMARY_EVERY_MS);
        }
        let name = match &who.machine[..] {
            "" => source(who),
            machine => super::clean(machine, 64),
        };
        if self.counted.len() < COUNTED_MAX || self.counted.contains_key(&name) {
            let count = self.counted.entry(name).or_default();
            *count = count.saturating_add(1);
        } else {
            self.counted_others = self.counted_others.saturating_add(1);
        }
    }

    /// The summary and how many it stands for, if something was left out a minute ago.
    pub(super) fn summary(&mut self, now_ms: u64) -> Option<(Line, u32)> {
        if self.counted.is_empty() && self.counted_others == 0 {
            return None;
        }
        self.summary_at_ms = self.summary_at_ms.min(now_ms.saturating_add(SUMMARY_EVERY_MS));
        if now_ms < self.summary_at_ms {
            return None;
        }
        let others = std::mem::take(&mut self.counted_others);
        let mut counts: Vec<(String, u32)> = std::mem::take(&mut self.counted).into_iter().collect();
        let total = counts.iter().fold(others, |sum, (_, n)| sum.saturating_add(*n));
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let named: Vec<String> = counts.iter().take(NAMED).map(|(s, n)| format!("{s} {n}")).collect();
        let who = Caller { person: String::new(), machine: String::new(), device: String::new() };
        let line = Line {
            who,
            resource: String::new(),
            verb: "refusals.summary",
            outcome: Outcome::Refused,
            reason: String::new(),
            detail: format!("{total} more, not written one by one; most came from: {}", named.join(", ")),
        };
        Some((line, total))
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.sources.len(), self.counted.len())
    }
}
