//! A change of the tree: one transaction with what belongs to each change of files, the usage of the roots it touches and
//! the change records that watchers read.
//!
//! The decision is made inside the transaction. Transactions run one after the other on one thread, so what was read
//! there is still true when it is written.

use super::answers::{Answer, Once};
use super::caller::Caller;
use super::directories::{self, Root};
use super::file_state::FileState;
use super::quota::{self, Usage};
use super::records::{self, View, usage_key};
use super::tree;
use super::{App, rights};
use bytes::Bytes;
use common::clock::SharedClock;
use common::error::Result;
use common::model::{NodeId, Right, RootId, RootName};
use common::store::Txn;
use prost::Message;
use proto::record::v1 as record;
use std::collections::HashMap;
use std::sync::Arc;

/// Payloads of the change log are kept below this, so that a watcher never has to take much at once.
const PAYLOAD_BYTES: usize = 8 * 1024 - 64;

/// What a change record tells; the numbers of `atrium.v1.Change.Kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A new entry. What hangs below a directory that came back from the trash or from another root has no record of
    /// its own.
    Created = 1,
    /// New content or attributes.
    Modified = 2,
    /// Renamed or moved, with all that hangs below.
    Moved = 3,
    /// Gone, with all that hangs below.
    Deleted = 4,
    /// Locked or unlocked.
    Lock = 5,
    /// The root's rights changed, or the root was made or deleted.
    Rights = 6,
}

/// What a transaction needs besides the store.
struct Setup {
    clock: SharedClock,
    caller: Caller,
    author: String,
    files: Arc<FileState>,
}

impl Setup {
    fn new(app: &App, caller: &Caller) -> Self {
        Self { clock: app.clock.clone(), caller: caller.clone(), author: author(caller), files: app.files.clone() }
    }

    fn run<T>(&self, txn: &mut Txn<'_>, work: &mut impl FnMut(&mut Edit<'_, '_>) -> Result<T>) -> Result<T> {
        let mut edit = Edit {
            now_ms: self.clock.now_ms(),
            txn,
            caller: &self.caller,
            author: &self.author,
            files: &self.files,
            usages: HashMap::new(),
            changes: Vec::new(),
        };
        let value = work(&mut edit)?;
        edit.finish()?;
        Ok(value)
    }
}

/// Runs one change.
///
/// # Errors
/// Those of `work` and of the store; nothing is written then.
pub async fn change<T, F>(app: &App, caller: &Caller, mut work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnMut(&mut Edit<'_, '_>) -> Result<T> + Send + 'static,
{
    let setup = Setup::new(app, caller);
    Ok(app.store.transact(move |txn| setup.run(txn, &mut work)).await?.value)
}

/// Runs one change, once per request id.
///
/// # Errors
/// As [`change`], and `REQUEST_ID_REUSED`.
pub async fn change_once<T, F>(app: &App, caller: &Caller, once: Once<T>, mut work: F) -> Result<Answer<T>>
where
    T: Send + 'static,
    F: FnMut(&mut Edit<'_, '_>) -> Result<T> + Send + 'static,
{
    let setup = Setup::new(app, caller);
    let committed =
        app.store.transact(move |txn| once.run(txn, setup.clock.now_ms(), |txn| setup.run(txn, &mut work))).await?;
    Ok(committed.value)
}

/// Runs a change of the server's own, such as retention.
///
/// # Errors
/// As [`change`].
pub async fn housekeep<T, F>(app: &App, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnMut(&mut Edit<'_, '_>) -> Result<T> + Send + 'static,
{
    change(app, &Caller { local_admin: true, ..Caller::default() }, work).await
}

/// The caller's name where files and locks name people.
pub fn author(caller: &Caller) -> String {
    caller.user.as_ref().map_or_else(|| caller.actor(), |u| u.name.to_string())
}

struct Held {
    usage: Usage,
    dirty: bool,
}

/// A change that is being made.
pub struct Edit<'e, 's> {
    /// The transaction.
    pub txn: &'e mut Txn<'s>,
    /// Time of the change.
    pub now_ms: u64,
    /// Who makes it.
    pub caller: &'e Caller,
    /// The name of who makes it.
    pub author: &'e str,
    files: &'e FileState,
    usages: HashMap<RootId, Held>,
    changes: Vec<record::Change>,
}

impl Edit<'_, '_> {
    /// The root, if the caller has this right to it.
    ///
    /// # Errors
    /// `DIRECTORY_UNKNOWN`, `ACCESS_DENIED`, `CREDENTIALS_MISSING`.
    pub fn root(&self, name: &RootName, need: Right) -> Result<Root> {
        directories::open(&*self.txn, self.caller, name, need)
    }

    /// Whether the caller may break locks and the like in this root.
    pub fn manages(&self, root: &Root) -> bool {
        rights::right_of(root, self.caller) >= Some(Right::Manage)
    }

    fn held(&mut self, root: RootId) -> Result<&mut Held> {
        if !self.usages.contains_key(&root) {
            let usage = quota::load(&*self.txn, root)?;
            self.usages.insert(root, Held { usage, dirty: false });
        }
        Ok(self.usages.get_mut(&root).expect("inserted above if it was not there"))
    }

    /// Charges a root, or takes a charge back.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED`; nothing is charged then.
    pub fn charge(&mut self, root: &Root, bytes: i64, entries: i64) -> Result<()> {
        let limit = root.quota_bytes;
        let held = self.held(root.id)?;
        held.usage = held.usage.plus(bytes, entries, limit)?;
        held.dirty = true;
        Ok(())
    }

    /// Takes a charge back from a root that may be gone.
    ///
    /// # Errors
    /// Those of the store.
    pub fn release(&mut self, root: RootId, bytes: u64, entries: u64) -> Result<()> {
        let held = self.held(root)?;
        if bytes > held.usage.used_bytes || entries > held.usage.entry_count {
            tracing::error!(%root, bytes, entries, usage = ?held.usage, "a root holds less than is taken from it");
        }
        held.usage.used_bytes = held.usage.used_bytes.saturating_sub(bytes);
        held.usage.entry_count = held.usage.entry_count.saturating_sub(entries);
        held.dirty = true;
        Ok(())
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// Those of the store.
    pub fn put_entry(&mut self, key: &[u8], entry: &record::Entry) -> Result<()> {
        records::save(self.txn, key, entry)
    }

    /// Writes where a directory hangs.
    ///
    /// # Errors
    /// Those of the store.
    pub fn put_parent(&mut self, directory: NodeId, parent: NodeId, name: &str, root: RootId) -> Result<()> {
        let record = record::Parent { parent: bytes_of(parent), name: name.to_owned(), root: bytes_of(root.node()) };
        records::save(self.txn, &tree::parent_key(directory), &record)
    }

    /// Must be told of content whose record moves to another key: a search for references that is under way may have
    /// passed the new key already and not yet come to the old one.
    pub fn relocates(&self, content: Option<&record::Content>) {
        if let Some(content) = content {
            self.files.relocations.note(content);
        }
    }

    /// Tells watchers of an entry.
    pub fn tell(&mut self, kind: ChangeKind, root: RootId, path: String, entry: &record::Entry) {
        let content = entry.content.as_ref();
        self.changes.push(record::Change {
            kind: kind as u32,
            root: bytes_of(root.node()),
            path,
            previous_path: String::new(),
            previous_root: Bytes::new(),
            uid: entry.uid.clone(),
            directory: entry.directory,
            version: entry.version,
            size_bytes: tree::size_of(entry),
            user: self.author.to_owned(),
            time_ms: self.now_ms,
            manifest_digest: content.map(|c| c.manifest_digest.clone()).unwrap_or_default(),
        });
    }

    /// Tells watchers that an entry is somewhere else now.
    pub fn tell_moved(&mut self, from: (RootId, String), to: (RootId, String), entry: &record::Entry) {
        self.tell(ChangeKind::Moved, to.0, to.1, entry);
        if let Some(change) = self.changes.last_mut() {
            change.previous_path = from.1;
            change.previous_root = bytes_of(from.0.node());
        }
    }

    /// Tells watchers that the rights to a root are others now.
    pub fn tell_rights(&mut self, root: RootId) {
        let top = record::Entry { uid: bytes_of(root.node()), directory: true, ..Default::default() };
        self.tell(ChangeKind::Rights, root, String::new(), &top);
    }

    fn finish(self) -> Result<()> {
        for (root, held) in self.usages {
            if held.dirty {
                records::save(self.txn, &usage_key(root.as_bytes()), &held.usage.record())?;
            }
        }
        let mut set = record::ChangeSet::default();
        let mut size = 0;
        for change in self.changes {
            // Tag and length of the nested message.
            let more = change.encoded_len() + 4;
            if size + more > PAYLOAD_BYTES && !set.changes.is_empty() {
                self.txn.change(std::mem::take(&mut set).encode_to_vec().into());
                size = 0;
            }
            size += more;
            set.changes.push(change);
        }
        if !set.changes.is_empty() {
            self.txn.change(set.encode_to_vec().into());
        }
        Ok(())
    }
}

impl View for Edit<'_, '_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        View::get(&*self.txn, key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        View::range(&*self.txn, from, to, limit)
    }
    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        View::range_back(&*self.txn, from, to, limit)
    }
}

/// An id as it is stored.
pub fn bytes_of(id: NodeId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}
