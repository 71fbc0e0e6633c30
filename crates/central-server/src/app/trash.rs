//! What was deleted, until it is put back, purged, or too old.
//!
//! A deleted entry's record moves to `t/`, one record whatever hangs below it; it stays charged. Ids carry the time and
//! the commit, so they rise: the newest is last. Purging removes a file at once; a directory becomes a `z/` record and
//! what hangs below it goes step by step ([`super::retention`]), the charge with it.

use super::answers::{Answer, Once};
use super::caller::Caller;
use super::directories::{self, Root};
use super::edit::{self, ChangeKind, Edit, bytes_of};
use super::entries::{self, Entry};
use super::page::{self, PageToken, fingerprint};
use super::records::{self, View};
use super::tree::{self, trash_key, trash_of};
use super::{App, locks, moves, retention, versions};
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath, Right, RootId, RootName};
use common::store::prefix_end;
use proto::record::v1 as record;
use uuid::Uuid;

/// Writes of one purging transaction after which it ends.
pub(super) const PURGE_WRITES: usize = 4_000;
/// Most transactions of one purge call; what is left is still in the trash.
const PURGE_STEPS: usize = 500;

/// A deleted entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Its id in the trash.
    pub id: Uuid,
    /// The entry as it was, with its path.
    pub entry: Entry,
    /// When.
    pub delete_ms: u64,
    /// By whom.
    pub deleted_by: String,
}

/// A trash id: a UUIDv7 whose random part is the commit. One commit deletes one entry at most.
fn new_id(edit: &Edit<'_, '_>) -> Uuid {
    let mut tail = [0; 10];
    tail[2..].copy_from_slice(&edit.txn.revision().to_be_bytes());
    uuid::Builder::from_unix_timestamp_millis(edit.now_ms, &tail).into_uuid()
}

/// Moves an entry to the trash. Neither rights nor locks are looked at.
///
/// # Errors
/// Those of the store.
pub(super) fn discard(edit: &mut Edit<'_, '_>, root: &Root, node: tree::Node, path: &EntryPath) -> Result<Uuid> {
    let id = new_id(edit);
    let mut entry = node.record;
    entry.lock = None;
    edit.relocates(entry.content.as_ref());
    edit.tell(ChangeKind::Deleted, root.id, path.relative(), &entry);
    edit.txn.delete(&node.key)?;
    if entry.directory {
        edit.txn.delete(tree::parent_key(tree::id_of(&entry)?))?;
    }
    let trash = record::Trash {
        entry: Some(entry),
        path: path.relative(),
        delete_ms: edit.now_ms,
        deleted_by: edit.author.to_owned(),
    };
    records::save(edit.txn, &trash_key(root.id, id), &trash)?;
    Ok(id)
}

/// Moves an entry to the trash of its root.
///
/// # Errors
/// `DIRECTORY_NOT_EMPTY` without `recursive`, `ETAG_STALE`, `LOCKED`, `ROOT_FIXED`, those of rights and of finding.
pub async fn delete(
    app: &App,
    caller: &Caller,
    path: EntryPath,
    recursive: bool,
    etag: String,
    once: Once<Uuid>,
) -> Result<Answer<Uuid>> {
    edit::change_once(app, caller, once, move |edit| {
        let root = edit.root(&path.root, Right::Write)?;
        let node = tree::find(edit, &root, &path)?;
        entries::check_etag(&node.record, &etag, &path)?;
        locks::check(&node.record, edit.author, edit.now_ms, &path)?;
        if node.record.directory && !recursive && !tree::is_empty(edit, node.id()?)? {
            return Err(Error::new(Reason::DirectoryNotEmpty, format!("{path} is not empty"))
                .why_is("there are files or directories in it")
                .fix_is("say that everything in it goes too; it can be restored from the trash"));
        }
        discard(edit, &root, node, &path)
    })
    .await
}

fn unknown(id: Uuid) -> Error {
    Error::new(Reason::TrashUnknown, format!("{id} is not in the trash"))
}

fn original_path(root: &RootName, trash: &record::Trash) -> Result<EntryPath> {
    let segments: Result<Vec<EntryName>> = trash.path.split('/').map(EntryName::new).collect();
    let segments =
        segments.map_err(|e| Error::new(Reason::StoreCorrupt, "a path in the trash could not be read").caused_by(e))?;
    Ok(EntryPath { root: root.clone(), segments })
}

fn entry_of(trash: &record::Trash) -> Result<&record::Entry> {
    trash.entry.as_ref().ok_or_else(|| Error::new(Reason::StoreCorrupt, "a record of the trash has no entry"))
}

/// A page of a root's trash, newest first.
///
/// # Errors
/// `PAGE_TOKEN_INVALID`, those of rights.
pub fn list(
    app: &App,
    caller: &Caller,
    root: &RootName,
    page_size: u32,
    page_token: &str,
) -> Result<(Vec<Deleted>, String)> {
    let found = directories::open(&app.store, caller, root, Right::Read)?;
    let token = fingerprint("trash", &[&found.id.to_string()]);
    let prefix = trash_of(found.id);
    let to = match PageToken::read(page_token, token)? {
        Some(after) => [&prefix[..], after.position()].concat(),
        None => prefix_end(&prefix),
    };
    let size = page::size(page_size);
    let mut out = Vec::new();
    let mut next = String::new();
    let mut last = Vec::new();
    for (key, value) in app.store.range_back(&prefix, &to, size + 1)? {
        if out.len() == size {
            next = PageToken::at(token, &last);
            break;
        }
        let trash: record::Trash = records::decode(value)?;
        let entry = Entry::new(original_path(root, &trash)?, entry_of(&trash)?, app.clock.now_ms())?;
        last = key[prefix.len()..].to_vec();
        let id = records::uuid(&last)?;
        out.push(Deleted { id, entry, delete_ms: trash.delete_ms, deleted_by: trash.deleted_by });
    }
    Ok((out, next))
}

/// Puts an entry back where it was (missing parents are made), or elsewhere.
///
/// # Errors
/// `TRASH_UNKNOWN`, `ENTRY_EXISTS`, `NAME_CLASH`, those of rights and of finding, and of a move to another root.
pub async fn restore(
    app: &App,
    caller: &Caller,
    root: RootName,
    id: Uuid,
    destination: Option<EntryPath>,
    once: Once<Entry>,
) -> Result<Answer<Entry>> {
    edit::change_once(app, caller, once, move |edit| {
        let from = edit.root(&root, Right::Write)?;
        let key = trash_key(from.id, id);
        let trash: record::Trash = records::load(edit, &key)?.ok_or_else(|| unknown(id))?;
        let mut entry = entry_of(&trash)?.clone();
        let (path, to) = match &destination {
            Some(path) => (path.clone(), edit.root(&path.root, Right::Write)?),
            None => (original_path(&root, &trash)?, from.clone()),
        };
        let Some((name, parents)) = path.segments.split_last() else {
            return Err(Error::new(Reason::RootFixed, format!("{path} is a whole private or public directory")));
        };
        let (place, missing) = match &destination {
            Some(_) => (tree::directory(edit, &to, parents)?, 0),
            None => tree::directory_or_missing(edit, &to, parents)?,
        };
        let (place, _) = match missing {
            0 => (place, None),
            _ => {
                edit.charge(&to, 0, missing as i64)?;
                entries::make_directories(edit, &to, place, parents, missing)?
            }
        };
        let at = tree::entry_key(place.id, name, to.case_sensitive);
        if let Some(present) = records::load::<record::Entry>(edit, &at)? {
            return Err(match present.name == name.as_str() {
                true => Error::new(Reason::EntryExists, format!("{path} is there already")),
                false => tree::clash(&path, &present.name),
            });
        }
        if to.id != from.id {
            moves::carry(edit, &from, &to, &entry)?;
        }
        entry.name = name.as_str().to_owned();
        entry.revision = edit.txn.revision();
        edit.relocates(entry.content.as_ref());
        edit.txn.delete(&key)?;
        edit.put_entry(&at, &entry)?;
        if entry.directory {
            edit.put_parent(tree::id_of(&entry)?, place.id, &entry.name, to.id)?;
        }
        edit.tell(ChangeKind::Created, to.id, path.relative(), &entry);
        Entry::new(path, &entry, edit.now_ms)
    })
    .await
}

/// Deletes from the trash for good: one item, or everything. Gives back the number of items.
///
/// # Errors
/// `TRASH_UNKNOWN`, those of rights.
pub async fn purge(app: &App, caller: &Caller, root: RootName, id: Option<Uuid>) -> Result<u64> {
    if let Some(id) = id {
        edit::change(app, caller, move |edit| {
            let found = edit.root(&root, Right::Write)?;
            let key = trash_key(found.id, id);
            let trash: record::Trash = records::load(edit, &key)?.ok_or_else(|| unknown(id))?;
            remove(edit, found.id, &key, &trash).map(drop)
        })
        .await?;
        retention::purge_soon(app).await?;
        return Ok(1);
    }
    // Only what lies there now: whoever goes on deleting cannot keep this call going.
    let all = trash_of(directories::open(&app.store, caller, &root, Right::Write)?.id);
    let newest = app.store.range_back(&all, &prefix_end(&all), 1)?;
    let Some((newest, _)) = newest.into_iter().next() else { return Ok(0) };
    let mut removed = 0;
    for _ in 0..PURGE_STEPS {
        let (root, newest) = (root.clone(), newest.clone());
        let (count, more) = edit::change(app, caller, move |edit| {
            let found = edit.root(&root, Right::Write)?;
            let mut end = newest.to_vec();
            end.push(0);
            remove_some(edit, found.id, &trash_of(found.id), &end, u64::MAX)
        })
        .await?;
        removed += count;
        if !more {
            break;
        }
    }
    retention::purge_soon(app).await?;
    Ok(removed)
}

/// Removes items of one root's trash between two keys which were deleted before a time, oldest first, until the
/// transaction is large enough. Gives back how many went, and whether there may be more.
pub(super) fn remove_some(
    edit: &mut Edit<'_, '_>,
    root: RootId,
    from: &[u8],
    to: &[u8],
    deleted_before_ms: u64,
) -> Result<(u64, bool)> {
    let page = edit.range(from, to, 500)?;
    let full = page.len() == 500;
    let (mut count, mut writes) = (0, 0);
    for (key, value) in page {
        let trash: record::Trash = records::decode(value)?;
        if trash.delete_ms >= deleted_before_ms {
            return Ok((count, false));
        }
        if writes > PURGE_WRITES {
            return Ok((count, true));
        }
        writes += remove(edit, root, &key, &trash)?;
        count += 1;
    }
    Ok((count, full))
}

/// Removes an item for good. Gives back the number of writes.
fn remove(edit: &mut Edit<'_, '_>, root: RootId, key: &[u8], trash: &record::Trash) -> Result<usize> {
    let entry = entry_of(trash)?;
    edit.txn.delete(key)?;
    if !entry.directory {
        return Ok(1 + versions::remove_file(edit, root, entry)?);
    }
    edit.release(root, 0, 1)?;
    records::save(edit.txn, &tree::purge_key(tree::id_of(entry)?), &record::Purge { root: bytes_of(root.node()) })?;
    Ok(2)
}
