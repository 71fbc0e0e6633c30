//! What goes by itself: old versions, old trash, and what hangs below purged directories.
//!
//! All of it is done in bounded steps, each one transaction. A step decides inside its transaction, so it does not matter
//! what came before it or whether the server was killed; a `z/` record stays until nothing hangs below its directory.
//!
//! An old version goes when it is not among the newest [`KEEP_NEWEST`] and the version after it is older than
//! `files.version_keep`, that is, when it has not been the present one for so long; and beyond `files.version_max` in any
//! case, which is also enforced when new content comes.

use super::edit::{self, Edit, bytes_of};
use super::records::{self, View, usage_key};
use super::tree::{self, purge_key, trash_of, versions_of};
use super::{App, quota, trash, versions};
use crate::settings::Settings;
use common::error::Result;
use common::model::{NodeId, RootId};
use common::store::prefix_end;
use proto::record::v1 as record;

/// Old versions that are kept whatever their age.
pub const KEEP_NEWEST: usize = 20;
/// Entries that one purging step looks at.
const PURGE_PAGE: usize = 500;
/// Purging steps that the call which purges does itself; the rest is for the background.
const PURGE_SOON: usize = 8;
/// Files whose versions one step looks at.
const FILES_PER_STEP: usize = 200;
/// Roots whose trash one step looks at.
const ROOTS_PER_STEP: usize = 200;
/// Old versions that one transaction deletes.
const VERSIONS_PER_STEP: usize = 2_000;

/// The rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a version stays after it was replaced.
    pub version_keep_ms: u64,
    /// Most old versions of a file.
    pub version_max: usize,
    /// How long deleted entries stay.
    pub trash_keep_ms: u64,
}

impl Policy {
    /// The rules of these settings.
    pub fn of(settings: &Settings) -> Self {
        let files = &settings.files;
        Self {
            version_keep_ms: files.version_keep.as_millis(),
            version_max: (files.version_max as usize).clamp(1, versions::MANY),
            trash_keep_ms: files.trash_keep.as_millis(),
        }
    }

    /// How many of a file's oldest versions are to go; `taken_ms` says when each was taken, oldest first.
    fn surplus(&self, taken_ms: &[u64], now_ms: u64) -> usize {
        let count = taken_ms.len();
        let beyond_newest = count.saturating_sub(KEEP_NEWEST);
        // Replaced when the next one was taken. The newest old version is among those kept, so the next one is there.
        let expired = |at: usize| taken_ms[at + 1].saturating_add(self.version_keep_ms) < now_ms;
        let by_age = (0..beyond_newest).take_while(|at| expired(*at)).count();
        by_age.max(count.saturating_sub(self.version_max))
    }
}

/// How far the present pass has come.
#[derive(Debug, Default)]
pub struct Progress {
    trash_from: Vec<u8>,
    versions_from: Vec<u8>,
    trash_done: bool,
}

/// Does one step of whatever is due. Gives back whether there was something to look at: call again at once then, else
/// after `files.retention_interval`.
///
/// # Errors
/// Those of the store.
pub async fn step(app: &App) -> Result<bool> {
    app.files.uploads.expire(app.clock.now_ms());
    if purge_step(app).await? {
        return Ok(true);
    }
    let (trash_done, trash_from, versions_from) = {
        let p = app.files.retention.lock();
        (p.trash_done, p.trash_from.clone(), p.versions_from.clone())
    };
    if !trash_done {
        let next = trash_step(app, trash_from).await?;
        let mut progress = app.files.retention.lock();
        progress.trash_done = next.is_none();
        progress.trash_from = next.unwrap_or_default();
        return Ok(true);
    }
    let next = versions_step(app, versions_from).await?;
    let more = next.is_some();
    let mut progress = app.files.retention.lock();
    progress.trash_done = more;
    progress.versions_from = next.unwrap_or_default();
    Ok(more)
}

/// Does some of the work of a purge at once, so that the space of a small directory is free when the call returns.
pub(super) async fn purge_soon(app: &App) -> Result<()> {
    for _ in 0..PURGE_SOON {
        if !purge_step(app).await? {
            break;
        }
    }
    Ok(())
}

/// Deletes some of what hangs below purged directories. Gives back whether there was any.
///
/// # Errors
/// Those of the store.
pub async fn purge_step(app: &App) -> Result<bool> {
    if records::under(&app.store, b"z/", 1)?.is_empty() {
        return Ok(false);
    }
    edit::housekeep(app, purge_some).await
}

fn purge_some(edit: &mut Edit<'_, '_>) -> Result<bool> {
    let mut from = b"z/".to_vec();
    let mut waiting = None;
    loop {
        let page = edit.range(&from, &prefix_end(b"z/"), 64)?;
        let ended = page.len() < 64;
        for (key, value) in page {
            from = [&key[..], &[0]].concat();
            let purge: record::Purge = records::decode(value)?;
            let root = RootId(records::uuid(&purge.root)?);
            let directory = NodeId(records::uuid(&key[2..])?);
            if purge_below(edit, root, directory)? {
                return Ok(true);
            }
            if directory == root.node() {
                let (items, _) =
                    trash::remove_some(edit, root, &trash_of(root), &prefix_end(&trash_of(root)), u64::MAX)?;
                if items > 0 {
                    return Ok(true);
                }
                // The charge ends with the last of the root's directories; until then the record is needed.
                if quota::load(edit, root)? != quota::Usage::default() {
                    waiting = waiting.or(Some((key, root)));
                    continue;
                }
                edit.txn.delete(usage_key(root.as_bytes()))?;
            }
            edit.txn.delete(&key)?;
            return Ok(true);
        }
        if ended {
            break;
        }
    }
    let Some((key, root)) = waiting else { return Ok(false) };
    tracing::error!(%root, usage = ?quota::load(edit, root)?, "a deleted directory was charged for more than it held");
    edit.txn.delete(usage_key(root.as_bytes()))?;
    edit.txn.delete(&key)?;
    Ok(true)
}

/// Deletes some entries of a purged directory; directories among them get their own `z/` record.
fn purge_below(edit: &mut Edit<'_, '_>, root: RootId, directory: NodeId) -> Result<bool> {
    let children = records::under(edit, &tree::entries_of(directory), PURGE_PAGE)?;
    let any = !children.is_empty();
    let mut writes = 0;
    for (key, value) in children {
        if writes > trash::PURGE_WRITES {
            break;
        }
        let child: record::Entry = records::decode(value)?;
        edit.txn.delete(&key)?;
        if child.directory {
            let id = tree::id_of(&child)?;
            edit.txn.delete(tree::parent_key(id))?;
            records::save(edit.txn, &purge_key(id), &record::Purge { root: bytes_of(root.node()) })?;
            edit.release(root, 0, 1)?;
            writes += 3;
        } else {
            writes += 1 + versions::remove_file(edit, root, &child)?;
        }
    }
    Ok(any)
}

/// Purges what lay in the trash for long enough, of some roots. Gives back where to go on.
async fn trash_step(app: &App, mut from: Vec<u8>) -> Result<Option<Vec<u8>>> {
    if from.is_empty() {
        from = b"t/".to_vec();
    }
    let before_ms = app.clock.now_ms().saturating_sub(Policy::of(&app.settings).trash_keep_ms);
    for _ in 0..ROOTS_PER_STEP {
        let first = app.store.range(&from, &prefix_end(b"t/"), 1)?;
        let Some((key, value)) = first.into_iter().next() else { return Ok(None) };
        let root = RootId(records::uuid(key.get(2..18).unwrap_or_default())?);
        let end = prefix_end(&trash_of(root));
        let oldest: record::Trash = records::decode(value)?;
        if oldest.delete_ms >= before_ms {
            from = end;
            continue;
        }
        let more = edit::housekeep(app, move |edit| {
            let range = (trash_of(root), prefix_end(&trash_of(root)));
            Ok(trash::remove_some(edit, root, &range.0, &range.1, before_ms)?.1)
        })
        .await?;
        return Ok(Some(if more { from } else { end }));
    }
    Ok(Some(from))
}

fn taken(versions: &[(Vec<u8>, record::Version)]) -> Vec<u64> {
    versions.iter().map(|(_, v)| v.content.as_ref().map_or(0, |c| c.update_ms)).collect()
}

/// Deletes old versions of some files. Gives back where to go on.
async fn versions_step(app: &App, mut from: Vec<u8>) -> Result<Option<Vec<u8>>> {
    if from.is_empty() {
        from = b"v/".to_vec();
    }
    let policy = Policy::of(&app.settings);
    for _ in 0..FILES_PER_STEP {
        let first = app.store.range(&from, &prefix_end(b"v/"), 1)?;
        let Some((key, _)) = first.into_iter().next() else { return Ok(None) };
        let file = NodeId(records::uuid(key.get(2..18).unwrap_or_default())?);
        from = prefix_end(&versions_of(file));
        let all = versions::old(&app.store, file)?;
        if policy.surplus(&taken(&all), app.clock.now_ms()) == 0 {
            continue;
        }
        let policy = policy.clone();
        let left = edit::housekeep(app, move |edit| {
            let mut all = versions::old(edit, file)?;
            let surplus = policy.surplus(&taken(&all), edit.now_ms);
            let now = surplus.min(VERSIONS_PER_STEP);
            for (key, version) in all.drain(..now) {
                edit.txn.delete(&key)?;
                let bytes = version.content.as_ref().map_or(0, |c| c.size_bytes);
                edit.release(RootId(records::uuid(&version.root)?), bytes, 0)?;
            }
            Ok(surplus - now)
        })
        .await?;
        return Ok(Some(if left > 0 { key.to_vec() } else { from }));
    }
    Ok(Some(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_the_replaced_go_by_age_and_the_number_is_bounded() {
        let day = 86_400_000;
        let policy = Policy { version_keep_ms: 30 * day, version_max: 100, trash_keep_ms: 0 };
        let daily = |n: u64| (0..n).map(|d| d * day).collect::<Vec<_>>();
        assert_eq!(policy.surplus(&[], 1_000 * day), 0);
        assert_eq!(policy.surplus(&daily(20), 1_000 * day), 0, "twenty stay for ever");
        assert_eq!(policy.surplus(&daily(25), 1_000 * day), 5);
        // 50 versions, one a day, seen on day 50: those replaced on day 19 or before are older than 30 days.
        assert_eq!(policy.surplus(&daily(50), 50 * day), 19);
        assert_eq!(policy.surplus(&daily(120), 119 * day), 88, "by age");
        let minutes: Vec<u64> = (0..120).map(|m| m * 60_000).collect();
        assert_eq!(policy.surplus(&minutes, 120 * 60_000), 20, "young ones go only beyond the number");
        // Taken long ago but replaced yesterday: young enough.
        let mut late = vec![0; 1];
        late.extend((0..25).map(|n| 999 * day + n));
        assert_eq!(policy.surplus(&late, 1_000 * day), 0);
    }
}
