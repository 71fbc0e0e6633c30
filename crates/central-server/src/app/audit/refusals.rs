//! Refusals and failed logins in the audit log, so that a flood of them cannot fill the disk.
//!
//! Each source (an address, or else an actor) writes 20 records at once and then one each 10 seconds; all sources
//! together 200 at once and then one a second. What goes beyond is counted and written as one summary a minute.

use super::{App, Note, note};
use crate::app::sessions::limits::{Buckets, Limit};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// What one source may write.
const PER_SOURCE: Limit = Limit { burst: 20, period: Duration::from_secs(10) };
/// What all together may write.
const TOGETHER: Limit = Limit { burst: 200, period: Duration::from_secs(1) };
/// Sources that are known at a time.
const MAX_SOURCES: usize = 4096;
/// Sources that a summary counts one by one.
const MAX_COUNTED: usize = 1024;
/// Sources that a summary names.
const NAMED: usize = 10;
const SUMMARY_EVERY_MS: u64 = 60_000;

/// Decides which refusals are written one by one.
#[derive(Debug)]
pub struct Refusals(Mutex<State>);

#[derive(Debug)]
struct State {
    per_source: Buckets<String>,
    together: Buckets<()>,
    left_out: HashMap<String, u64>,
    left_out_others: u64,
    summary_at_ms: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self(Mutex::new(State {
            per_source: Buckets::new(PER_SOURCE, MAX_SOURCES),
            together: Buckets::new(TOGETHER, 1),
            left_out: HashMap::new(),
            left_out_others: 0,
            summary_at_ms: 0,
        }))
    }
}

impl Refusals {
    /// True if a refusal of this source is to be written; otherwise it is counted.
    fn admit(&self, source: &str, now_ms: u64) -> bool {
        let mut state = self.0.lock();
        let own = state.per_source.take(source.to_owned(), now_ms).is_ok();
        if own && state.together.take((), now_ms).is_ok() {
            return true;
        }
        if state.left_out.is_empty() && state.left_out_others == 0 {
            state.summary_at_ms = now_ms.saturating_add(SUMMARY_EVERY_MS);
        }
        if state.left_out.len() < MAX_COUNTED || state.left_out.contains_key(source) {
            *state.left_out.entry(source.to_owned()).or_default() += 1;
        } else {
            state.left_out_others += 1;
        }
        false
    }

    /// The summary, if something was left out a minute ago.
    fn summary(&self, now_ms: u64) -> Option<Note> {
        let mut state = self.0.lock();
        // A clock that was set back must not hold the summary back.
        if state.summary_at_ms > now_ms.saturating_add(SUMMARY_EVERY_MS) {
            state.summary_at_ms = now_ms.saturating_add(SUMMARY_EVERY_MS);
        }
        if (state.left_out.is_empty() && state.left_out_others == 0) || now_ms < state.summary_at_ms {
            return None;
        }
        let others = std::mem::take(&mut state.left_out_others);
        let mut counts: Vec<(String, u64)> = std::mem::take(&mut state.left_out).into_iter().collect();
        drop(state);
        let total = counts.iter().map(|(_, n)| n).sum::<u64>() + others;
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let named: Vec<String> = counts.iter().take(NAMED).map(|(s, n)| format!("{s} {n}")).collect();
        Some(Note {
            actor: "anonymous".to_owned(),
            action: "refusals.summary",
            subject: format!("{total} more refusals"),
            success: false,
            detail: format!("not written one by one; most came from: {}", named.join(", ")),
        })
    }
}

/// Notes that something was refused. `source` is the caller's address, or the actor if there is none. A failure to write
/// is logged; the caller is refused either way.
pub async fn refused(app: &App, source: &str, refusal: Note) {
    let now_ms = app.clock.now_ms();
    let mut notes: Vec<Note> = app.identity.refusals.summary(now_ms).into_iter().collect();
    if app.identity.refusals.admit(source, now_ms) {
        notes.push(refusal);
    }
    write(app, now_ms, notes).await;
}

/// Writes the summary if one is due. Called each minute.
pub async fn flush_refusals(app: &App) {
    let now_ms = app.clock.now_ms();
    let notes = app.identity.refusals.summary(now_ms).into_iter().collect();
    write(app, now_ms, notes).await;
}

async fn write(app: &App, now_ms: u64, notes: Vec<Note>) {
    if notes.is_empty() {
        return;
    }
    let written = app.store.transact(move |txn| notes.iter().try_for_each(|n| note(txn, now_ms, n))).await;
    if let Err(error) = written {
        tracing::error!(?error, "a refusal could not be noted in the audit log");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_written() {
        let refusals = Refusals::default();
        let written = (0..1000).filter(|_| refusals.admit("192.0.2.1", 1_000)).count();
        assert_eq!(written, 20);
        assert!(refusals.summary(60_999).is_none());
        let summary = refusals.summary(61_000).unwrap();
        assert_eq!(summary.subject, "980 more refusals");
        assert!(summary.detail.ends_with("192.0.2.1 980"), "{}", summary.detail);
        assert!(refusals.summary(200_000).is_none(), "nothing is summed up twice");
        assert!(!(0..7).all(|_| refusals.admit("192.0.2.1", 61_000)), "six have come free");
        assert!(refusals.summary(120_999).is_none());
        assert_eq!(refusals.summary(121_000).unwrap().subject, "1 more refusals");
        assert!(!(0..20).all(|_| refusals.admit("192.0.2.1", 121_000)));
        assert!(refusals.summary(0).is_none());
        assert!(refusals.summary(60_000).is_some(), "a clock that was set back holds it back for a minute at most");
    }

    #[test]
    fn many_sources_are_bounded_together() {
        let refusals = Refusals::default();
        let written = (0..100_000).filter(|i| refusals.admit(&format!("source {i}"), 1_000)).count();
        assert_eq!(written, 200);
        let state = refusals.0.lock();
        assert!(state.left_out.len() <= MAX_COUNTED && state.per_source.len() <= MAX_SOURCES);
        assert_eq!(state.left_out.values().sum::<u64>() + state.left_out_others, 99_800);
    }
}
