//! Copying: new records that name the same chunks. No bytes move; the copy is charged in full.

use super::answers::{Answer, Once};
use super::caller::Caller;
use super::edit::{self, ChangeKind, Edit, bytes_of};
use super::entries::Entry;
use super::{App, moves, tree};
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath, NodeId, Right};
use proto::record::v1 as record;

/// Most entries of one copy: it is one transaction, and others wait meanwhile.
pub const MAX_COPIED: usize = 5_000;
/// Most bytes of records that one copy writes.
const MAX_BYTES: usize = 16 << 20;

/// What came of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The copy.
    pub entry: Entry,
    /// Files and directories made.
    pub entry_count: u64,
}

/// Copies an entry and all that hangs below it. Old versions and locks are not copied; the copy's author is the caller.
///
/// # Errors
/// `ENTRY_EXISTS`, `NAME_CLASH`, `MOVE_INTO_ITSELF`, `QUOTA_EXCEEDED`, `TREE_TOO_LARGE`, `PATH_INVALID` if something below
/// would get too deep, `ROOT_FIXED`, those of rights and of finding.
pub async fn copy(
    app: &App,
    caller: &Caller,
    source: EntryPath,
    destination: EntryPath,
    once: Once<Copied>,
) -> Result<Answer<Copied>> {
    edit::change_once(app, caller, once, move |edit| apply(edit, &source, &destination)).await
}

/// What is to be written: where, and the new record.
struct Plan {
    key: Vec<u8>,
    parent: NodeId,
    path: EntryPath,
    record: record::Entry,
}

fn apply(edit: &mut Edit<'_, '_>, source: &EntryPath, destination: &EntryPath) -> Result<Copied> {
    let from = edit.root(&source.root, Right::Read)?;
    let to = edit.root(&destination.root, Right::Write)?;
    let node = tree::find(edit, &from, source)?;
    let spot = tree::spot(edit, &to, destination)?;
    let name = destination.name().ok_or_else(|| Error::internal("a spot without a name"))?;
    if node.record.directory && spot.place.line.contains(&node.id()?) {
        return Err(moves::into_itself(source, destination));
    }
    if let Some(present) = &spot.present {
        return Err(match present.name == name.as_str() {
            true => Error::new(Reason::EntryExists, format!("{destination} is there already")),
            false => tree::clash(destination, &present.name),
        });
    }

    let top = twin(edit, &node.record, name);
    let mut plans = vec![Plan { key: spot.key, parent: spot.place.id, path: destination.clone(), record: top }];
    let (mut bytes, mut weight) = (tree::size_of(&node.record), 0);
    // Pairs of a source directory and the position of its copy in `plans`.
    let mut waiting = Vec::new();
    if node.record.directory {
        waiting.push((node.id()?, 0));
    }
    while let Some((directory, at)) = waiting.pop() {
        let parent = tree::id_of(&plans[at].record)?;
        let above = plans[at].path.clone();
        let mut made = Vec::new();
        let already = plans.len();
        tree::each_entry(edit, directory, |_, child| {
            if already + made.len() >= MAX_COPIED {
                return Err(Error::new(
                    Reason::TreeTooLarge,
                    format!("more than {MAX_COPIED} entries hang below {source}"),
                ));
            }
            made.push(child);
            Ok(())
        })?;
        let mut names = std::collections::HashSet::new();
        for child in made {
            let name = EntryName::new(child.name.as_str())?;
            let key = tree::entry_key(parent, &name, to.case_sensitive);
            if !names.insert(key.clone()) {
                let text = format!("two entries called {name:?} cannot stand side by side in {}", to.name);
                return Err(Error::new(Reason::NameClash, text).with("present", &child.name));
            }
            // Checked like a path from outside: what is copied must be reachable.
            let path = above.child(name.clone());
            let path = EntryPath::new(&to.name, &path.relative())?;
            bytes += tree::size_of(&child);
            weight += 256 + child.content.as_ref().map_or(0, |c| c.inline_chunks.len() + 32 * c.manifest_chunks.len());
            if weight > MAX_BYTES {
                return Err(Error::new(Reason::TreeTooLarge, format!("too much hangs below {source} for one step")));
            }
            if child.directory {
                waiting.push((tree::id_of(&child)?, plans.len()));
            }
            plans.push(Plan { key, parent, path, record: twin(edit, &child, &name) });
        }
    }

    let count = plans.len() as i64;
    edit.charge(&to, i64::try_from(bytes).unwrap_or(i64::MAX), count)?;
    for plan in &plans {
        edit.relocates(plan.record.content.as_ref());
        edit.put_entry(&plan.key, &plan.record)?;
        if plan.record.directory {
            edit.put_parent(tree::id_of(&plan.record)?, plan.parent, &plan.record.name, to.id)?;
        }
        edit.tell(ChangeKind::Created, to.id, plan.path.relative(), &plan.record);
    }
    let entry = Entry::new(destination.clone(), &plans[0].record, edit.now_ms)?;
    Ok(Copied { entry, entry_count: count as u64 })
}

/// A new entry with the same content.
fn twin(edit: &Edit<'_, '_>, source: &record::Entry, name: &EntryName) -> record::Entry {
    let content = source.content.clone().map(|mut content| {
        content.author = edit.author.to_owned();
        content.update_ms = edit.now_ms;
        content.upload = bytes::Bytes::new();
        content
    });
    record::Entry {
        uid: bytes_of(NodeId::generate()),
        name: name.as_str().to_owned(),
        directory: source.directory,
        version: u64::from(!source.directory),
        content,
        revision: edit.txn.revision(),
        lock: None,
        last_fencing_token: 0,
        create_ms: edit.now_ms,
    }
}
