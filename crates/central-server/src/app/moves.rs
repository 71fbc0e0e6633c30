//! Renaming and moving.
//!
//! Below one root a move touches the moved entry's record and nothing that hangs below it. Between roots everything below
//! is visited, because its charge moves and its records name the root; that is bounded by [`MAX_CARRIED`].

use super::answers::{Answer, Once};
use super::caller::Caller;
use super::directories::Root;
use super::edit::{self, Edit, bytes_of};
use super::entries::{self, Entry};
use super::records;
use super::tree::{self, Node, Spot};
use super::{App, locks, trash, versions};
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath, NodeId, Right};
use proto::record::v1 as record;
use std::collections::HashSet;

/// Most entries that move from one root to another in one step.
pub const MAX_CARRIED: usize = 100_000;
/// Most records that such a step may have to rewrite; the store takes 20,000 in a transaction.
const MAX_REWRITES: usize = 16_000;

/// From here to there.
#[derive(Clone, Debug)]
pub struct Move {
    /// What.
    pub source: EntryPath,
    /// The full new path.
    pub destination: EntryPath,
    /// Replace a file that is there; it goes to the trash.
    pub overwrite: bool,
    /// The source's etag; empty for any.
    pub etag: String,
}

/// Renames or moves an entry.
///
/// # Errors
/// `ENTRY_EXISTS`, `NAME_CLASH`, `MOVE_INTO_ITSELF`, `ETAG_STALE`, `LOCKED`, `ROOT_FIXED`; between roots `QUOTA_EXCEEDED`
/// and `TREE_TOO_LARGE`; those of rights and of finding.
pub async fn move_entry(app: &App, caller: &Caller, order: Move, once: Once<Entry>) -> Result<Answer<Entry>> {
    edit::change_once(app, caller, once, move |edit| apply(edit, &order)).await
}

fn apply(edit: &mut Edit<'_, '_>, order: &Move) -> Result<Entry> {
    let from = edit.root(&order.source.root, Right::Write)?;
    let to = edit.root(&order.destination.root, Right::Write)?;
    let node = tree::find(edit, &from, &order.source)?;
    entries::check_etag(&node.record, &order.etag, &order.source)?;
    locks::check(&node.record, edit.author, edit.now_ms, &order.source)?;
    let path = &order.destination;
    let spot = tree::spot(edit, &to, path)?;
    let name = path.name().ok_or_else(|| Error::internal("a spot without a name"))?;
    let id = node.id()?;
    if node.record.directory && spot.place.line.contains(&id) {
        return Err(into_itself(&order.source, path));
    }
    if let Some(present) = &spot.present {
        if present.uid == node.record.uid {
            if present.name == name.as_str() {
                return Entry::new(path.clone(), &node.record, edit.now_ms);
            }
            // The same name in other letters: a rename like any other.
        } else {
            make_room(edit, &to, &spot, present, path, order.overwrite)?;
        }
    }
    if from.id != to.id {
        carry(edit, &from, &to, &node.record)?;
    }
    let mut entry = node.record;
    entry.name = name.as_str().to_owned();
    entry.revision = edit.txn.revision();
    edit.relocates(entry.content.as_ref());
    edit.txn.delete(&node.key)?;
    edit.put_entry(&spot.key, &entry)?;
    if entry.directory {
        edit.put_parent(id, spot.place.id, &entry.name, to.id)?;
    }
    edit.tell_moved((from.id, order.source.relative()), (to.id, path.relative()), &entry);
    Entry::new(path.clone(), &entry, edit.now_ms)
}

/// The refusal of a cycle.
pub(super) fn into_itself(source: &EntryPath, destination: &EntryPath) -> Error {
    Error::new(Reason::MoveIntoItself, format!("{destination} is below {source}"))
}

fn make_room(
    edit: &mut Edit<'_, '_>,
    root: &Root,
    spot: &Spot,
    present: &record::Entry,
    path: &EntryPath,
    overwrite: bool,
) -> Result<()> {
    if path.name().is_none_or(|n| n.as_str() != present.name) {
        return Err(tree::clash(path, &present.name));
    }
    if present.directory || !overwrite {
        return Err(Error::new(Reason::EntryExists, format!("{path} is there already")));
    }
    locks::check(present, edit.author, edit.now_ms, path)?;
    let node = Node { parent: spot.place.id, key: spot.key.clone(), record: present.clone() };
    trash::discard(edit, root, node, path).map(drop)
}

/// Moves the charge of an entry, and of all that hangs below it, to another root, and rewrites the records below it that
/// depend on the root: where directories hang, old versions, and the keys of names if only one of the roots is
/// case-sensitive. The entry's own record is the caller's to write.
///
/// # Errors
/// `QUOTA_EXCEEDED`, `TREE_TOO_LARGE`; `NAME_CLASH` if two names below cannot stand side by side in the new root.
pub(super) fn carry(edit: &mut Edit<'_, '_>, from: &Root, to: &Root, entry: &record::Entry) -> Result<()> {
    let mut load = Load { bytes: 0, entries: 1, rewrites: 0 };
    if entry.directory {
        let rekey = from.case_sensitive != to.case_sensitive;
        let mut waiting = vec![tree::id_of(entry)?];
        while let Some(directory) = waiting.pop() {
            let mut children = Vec::new();
            tree::each_entry(edit, directory, |key, child| {
                load.entries += 1;
                children.push((key, child));
                load.check()
            })?;
            if rekey {
                rename_all(edit, directory, &children, to, &mut load)?;
            }
            for (_, child) in children {
                if child.directory {
                    let id = tree::id_of(&child)?;
                    load.rewrites += 1;
                    load.check()?;
                    edit.put_parent(id, directory, &child.name, to.id)?;
                    waiting.push(id);
                } else {
                    load.file(edit, &child, to)?;
                }
            }
        }
    } else {
        load.file(edit, entry, to)?;
    }
    edit.release(from.id, load.bytes, load.entries as u64)?;
    edit.charge(to, i64::try_from(load.bytes).unwrap_or(i64::MAX), load.entries as i64)
}

/// Writes the entries of a directory under the keys that they have in another root.
fn rename_all(
    edit: &mut Edit<'_, '_>,
    directory: NodeId,
    children: &[(Vec<u8>, record::Entry)],
    to: &Root,
    load: &mut Load,
) -> Result<()> {
    let mut names = HashSet::new();
    let mut renamed = Vec::new();
    for (key, child) in children {
        let new = tree::entry_key(directory, &EntryName::new(child.name.as_str())?, to.case_sensitive);
        if !names.insert(new.clone()) {
            let text = format!("two entries called {:?} cannot stand side by side in {}", child.name, to.name);
            return Err(Error::new(Reason::NameClash, text).with("present", &child.name));
        }
        if new != *key {
            load.rewrites += 2;
            load.check()?;
            edit.txn.delete(key)?;
            renamed.push((new, child));
        }
    }
    for (key, child) in renamed {
        edit.relocates(child.content.as_ref());
        edit.put_entry(&key, child)?;
    }
    Ok(())
}

struct Load {
    bytes: u64,
    entries: usize,
    rewrites: usize,
}

impl Load {
    fn check(&self) -> Result<()> {
        if self.entries > MAX_CARRIED || self.rewrites > MAX_REWRITES {
            return Err(Error::new(
                Reason::TreeTooLarge,
                "too much hangs below the directory to move it to another root",
            )
            .with("entries", self.entries)
            .with("rewrites", self.rewrites));
        }
        Ok(())
    }

    fn file(&mut self, edit: &mut Edit<'_, '_>, file: &record::Entry, to: &Root) -> Result<()> {
        self.bytes += tree::size_of(file);
        if file.version > 1 {
            for (key, mut version) in versions::old(edit, tree::id_of(file)?)? {
                self.bytes += version.content.as_ref().map_or(0, |c| c.size_bytes);
                self.rewrites += 1;
                self.check()?;
                version.root = bytes_of(to.id.node());
                records::save(edit.txn, &key, &version)?;
            }
        }
        Ok(())
    }
}
