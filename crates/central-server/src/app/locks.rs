//! Check-outs: a file that is locked is changed by its holder alone, until the lock is given back or ends.
//!
//! The end is compared with the clock whenever a lock is read; nothing has to run when it ends. Each new lock of a file
//! gets a higher fencing token. A writer that names the token of a lock which has ended is let through only as long as
//! nobody else has locked the file since.
//!
//! A lock stands on a file, not on what is above it: renaming or deleting a directory takes locked files along.

use super::caller::Caller;
use super::directories::Root;
use super::edit::{self, ChangeKind, Edit};
use super::entries::Entry;
use super::{App, audit, tree};
use common::error::{Error, Reason, Result};
use common::model::{EntryPath, Right};
use proto::record::v1 as record;
use std::time::Duration;

/// Life of a lock if the caller does not say.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(28_800);
/// Longest life that can be asked for; the office's settings may give less.
pub const MAX_LIFETIME: Duration = Duration::from_secs(2_592_000);
/// Longest note, in characters.
pub const MAX_NOTE: usize = 256;

/// A check-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Who holds it.
    pub user: String,
    /// When it ends by itself.
    pub expire_ms: u64,
    /// See the module.
    pub fencing_token: u64,
    /// For people.
    pub note: String,
}

/// The lock that holds at this moment.
pub fn living(entry: &record::Entry, now_ms: u64) -> Option<Lock> {
    let lock = entry.lock.as_ref().filter(|l| l.expire_ms > now_ms)?;
    Some(Lock {
        user: lock.user.clone(),
        expire_ms: lock.expire_ms,
        fencing_token: lock.fencing_token,
        note: lock.note.clone(),
    })
}

fn locked(path: &EntryPath, lock: &Lock) -> Error {
    Error::new(Reason::Locked, format!("{path} is checked out by {}", lock.user))
        .with("user", &lock.user)
        .with("expire_ms", lock.expire_ms)
}

/// Refuses a change by anyone but the lock's holder.
///
/// # Errors
/// `LOCKED`.
pub fn check(entry: &record::Entry, author: &str, now_ms: u64, path: &EntryPath) -> Result<()> {
    match living(entry, now_ms) {
        Some(lock) if lock.user != author => Err(locked(path, &lock)),
        _ => Ok(()),
    }
}

/// Refuses new content by anyone but the holder, and by a holder that was overtaken. `fencing_token` is 0 for a writer
/// that speaks of no lock.
///
/// # Errors
/// `LOCKED`, `LOCK_LOST`.
pub fn check_write(
    entry: &record::Entry,
    author: &str,
    fencing_token: u64,
    now_ms: u64,
    path: &EntryPath,
) -> Result<()> {
    check(entry, author, now_ms, path)?;
    if fencing_token != 0 && fencing_token != entry.last_fencing_token {
        return Err(Error::new(Reason::LockLost, format!("the lock on {path} is not yours any more"))
            .with("present_token", entry.last_fencing_token));
    }
    Ok(())
}

/// Checks a file out, or renews the holder's lock. `lifetime` zero means [`DEFAULT_LIFETIME`].
///
/// # Errors
/// `FIELD_INVALID`, `LOCKED` by someone else, and those of finding and rights.
pub async fn lock(app: &App, caller: &Caller, path: EntryPath, lifetime: Duration, note: String) -> Result<Entry> {
    if lifetime > MAX_LIFETIME {
        return Err(Error::new(Reason::FieldInvalid, "the lock would live too long")
            .why_is("a lock lives 2,592,000 seconds at most")
            .with("field", "lifetime_seconds"));
    }
    if note.chars().count() > MAX_NOTE || note.chars().any(char::is_control) {
        return Err(Error::new(Reason::FieldInvalid, "the note cannot be taken")
            .why_is("a note has up to 256 characters and no control characters")
            .with("field", "note"));
    }
    let lifetime = if lifetime.is_zero() { DEFAULT_LIFETIME } else { lifetime };
    let lifetime_ms = lifetime.min(app.settings.files.lock_max.0).as_millis() as u64;
    edit::change(app, caller, move |edit| {
        let root = edit.root(&path.root, Right::Write)?;
        let mut node = tree::find_file(edit, &root, &path)?;
        check(&node.record, edit.author, edit.now_ms, &path)?;
        let held = living(&node.record, edit.now_ms);
        let fencing_token = match &held {
            Some(held) => held.fencing_token,
            None => node.record.last_fencing_token + 1,
        };
        node.record.last_fencing_token = fencing_token;
        node.record.lock = Some(record::Lock {
            user: edit.author.to_owned(),
            expire_ms: edit.now_ms.saturating_add(lifetime_ms),
            fencing_token,
            note: note.clone(),
        });
        finish(edit, &root, node, &path)
    })
    .await
}

fn finish(edit: &mut Edit<'_, '_>, root: &Root, mut node: tree::Node, path: &EntryPath) -> Result<Entry> {
    node.record.revision = edit.txn.revision();
    edit.put_entry(&node.key, &node.record)?;
    edit.tell(ChangeKind::Lock, root.id, path.relative(), &node.record);
    Entry::new(path.clone(), &node.record, edit.now_ms)
}

/// Gives a lock back; with `force`, somebody else's (which is noted in the audit log).
///
/// # Errors
/// `NOT_LOCKED`, `LOCKED` by someone else without `force`, `ACCESS_DENIED` for `force` without MANAGE.
pub async fn unlock(app: &App, caller: &Caller, path: EntryPath, force: bool) -> Result<Entry> {
    edit::change(app, caller, move |edit| {
        let root = edit.root(&path.root, Right::Write)?;
        let mut node = tree::find_file(edit, &root, &path)?;
        let Some(held) = living(&node.record, edit.now_ms) else {
            return Err(Error::new(Reason::NotLocked, format!("{path} is not checked out")));
        };
        if held.user != edit.author {
            if !force {
                return Err(locked(&path, &held));
            }
            if !edit.manages(&root) {
                return Err(Error::new(
                    Reason::AccessDenied,
                    format!("breaking the lock of {} needs MANAGE", held.user),
                )
                .with("needed", Right::Manage.word()));
            }
            let actor = edit.caller.actor();
            let subject = format!("{}:{}", root.name, path.relative());
            let detail = format!("held by {}", held.user);
            audit::record(edit.txn, edit.now_ms, &actor, "lock.break", &subject, true, &detail)?;
        }
        node.record.lock = None;
        finish(edit, &root, node, &path)
    })
    .await
}
