//! How far back the change log reaches: what watchers that were away are promised.
//!
//! The newest `store.changes_min` commits are always kept. Of the older ones those go that are older than
//! `store.changes_age`, and those beyond the newest `store.changes_keep` whatever their age. A watcher whose cursor lies
//! before what is left gets `CURSOR_TOO_OLD` with the oldest one that is there, and lists anew.
//!
//! A commit's age is that of the changes in it. Commits that say nothing to watchers carry no time; they go together with
//! the next one that does. A clock that ran ahead for a while therefore only keeps more, up to `store.changes_keep`.

use super::{App, records};
use common::error::{Error, Result};
use common::store::{ChangeRecord, Store};
use proto::record::v1 as record;

/// Commits read at a time.
const STEP: usize = 512;

/// Takes away what is not promised. Gives back the oldest cursor that is left. It reads what it takes away, and at most
/// the whole log, whose length `store.changes_keep` bounds.
///
/// # Errors
/// Those of the store.
pub async fn trim(app: &App) -> Result<u64> {
    let settings = app.settings.store.clone();
    let (store, now_ms) = (app.store.clone(), app.clock.now_ms());
    let revision = store.revision();
    let begin = store.stats().oldest_cursor;
    let by_count = revision.saturating_sub(settings.changes_keep).max(begin);
    // By age, not further than to the newest that are kept whatever their age.
    let end = revision.saturating_sub(settings.changes_min);
    let cutoff_ms = now_ms.saturating_sub(settings.changes_age.as_millis());
    let keep_after = tokio::task::spawn_blocking(move || older_than(&store, by_count, end, cutoff_ms))
        .await
        .map_err(|e| Error::internal("reading the change log").caused_by(e))??;
    if keep_after > begin {
        app.store.trim_changes(keep_after).await?;
        tracing::debug!(keep_after, commits = keep_after - begin, "change log shortened");
    }
    Ok(keep_after.max(begin))
}

/// The last commit after `begin`, and not after `end`, from before `cutoff_ms`; `begin` if there is none.
fn older_than(store: &Store, begin: u64, end: u64, cutoff_ms: u64) -> Result<u64> {
    let (mut position, mut found) = (begin, begin);
    while position < end {
        let commits = store.changes(position, STEP)?;
        let Some(last) = commits.last() else { break };
        position = last.revision;
        for commit in commits.iter().take_while(|c| c.revision <= end) {
            match time_ms(commit)? {
                Some(time) if time >= cutoff_ms => return Ok(found),
                Some(_) => found = commit.revision,
                None => {}
            }
        }
    }
    Ok(found)
}

/// When a commit was made; none if it says nothing to watchers.
fn time_ms(commit: &ChangeRecord) -> Result<Option<u64>> {
    let mut newest = None;
    for payload in &commit.payloads {
        let set: record::ChangeSet = records::decode(payload.clone())?;
        newest = newest.max(set.changes.iter().map(|c| c.time_ms).max());
    }
    Ok(newest)
}
