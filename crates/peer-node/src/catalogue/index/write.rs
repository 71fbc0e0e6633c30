//! Changing an index.

use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{ChunkRef, manifest_digest};
use common::store::{Store, Txn, prefix_end};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{
    ENTRIES_MAX, HeadRecord, Hold, IndexHandle, PAGE_CHUNKS, SPACE_ENTRY, SPACE_HEAD, SPACE_SEQUENCE, damaged, key,
    manifest_key, page_of, place, spots,
};
use crate::catalogue::entry::{Entry, EntryKind, FileStamp, INLINE_CHUNKS, Stored, VersionVector};

/// Pages written or records erased in one transaction.
const STEP: usize = 500;

/// One change of an index. `expected` is the sequence of the entry that it was made from, 0 if there was none.
#[derive(Clone, Debug)]
pub enum Change {
    /// This device has made or changed a file or directory.
    Put {
        /// Path.
        path: String,
        /// File or directory.
        kind: EntryKind,
        /// What it was read from.
        file: FileStamp,
        /// Permission bits.
        mode: u32,
        /// All chunks of a file.
        chunks: Arc<[ChunkRef]>,
        /// See above.
        expected: u64,
    },
    /// Nothing has changed but what is known of the local file.
    Seen {
        /// Path.
        path: String,
        /// What is known now.
        file: FileStamp,
        /// See above.
        expected: u64,
    },
    /// This device has removed it.
    Remove {
        /// Path.
        path: String,
        /// See above.
        expected: u64,
    },
    /// Another device's version, which is in the folder here now.
    Adopt {
        /// The other device's entry, with its version vector; its sequence does not matter.
        entry: Entry,
        /// All chunks of a file.
        chunks: Arc<[ChunkRef]>,
        /// The local file; nothing for a deleted entry.
        file: Option<FileStamp>,
        /// See above.
        expected: u64,
    },
}

impl Change {
    /// Which path.
    pub fn path(&self) -> &str {
        match self {
            Self::Put { path, .. } | Self::Seen { path, .. } | Self::Remove { path, .. } => path,
            Self::Adopt { entry, .. } => &entry.path,
        }
    }

    fn chunks(&self) -> &[ChunkRef] {
        match self {
            Self::Put { chunks, .. } | Self::Adopt { chunks, .. } => chunks,
            Self::Seen { .. } | Self::Remove { .. } => &[],
        }
    }

    fn expected(&self) -> u64 {
        match self {
            Self::Put { expected, .. }
            | Self::Seen { expected, .. }
            | Self::Remove { expected, .. }
            | Self::Adopt { expected, .. } => *expected,
        }
    }
}

/// Another device's version that is in the folder here now; see [`IndexHandle::apply`].
pub struct Adoption<'a> {
    /// Of the entry's path.
    pub hold: &'a Hold,
    /// With its version vector; its sequence does not matter.
    pub entry: Entry,
    /// All chunks of a file.
    pub chunks: Arc<[ChunkRef]>,
    /// The local file or directory; nothing for a deleted entry.
    pub file: Option<FileStamp>,
    /// Sequence of the entry that it takes the place of, 0 if there was none.
    pub expected: u64,
}

/// What became of changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Changes that were made, with their sequences (0: no new one), by position.
    pub made: Vec<(usize, u64)>,
    /// Positions of those whose entry was not the expected one any longer.
    pub outdated: Vec<usize>,
    /// Positions of new entries that are beyond the bound.
    pub refused: Vec<usize>,
    /// Contents whose pages are not needed any longer.
    gone: Vec<Vec<u8>>,
    head: HeadRecord,
}

fn is_long(count: usize) -> bool {
    count > INLINE_CHUNKS
}

impl IndexHandle {
    /// Makes changes, all that can be made in one transaction. On disk when it returns. At most 2,000 at a time.
    ///
    /// # Errors
    /// Those of the store; then nothing was changed.
    pub(in crate::catalogue) fn commit(&self, changes: Vec<Change>) -> Result<Outcome> {
        self.load_map()?;
        let index = &*self.0;
        for change in changes.iter().filter(|c| is_long(c.chunks().len())) {
            let pages = manifest_key(index.share, change.path(), &manifest_digest(change.chunks()));
            write_pages(&index.store, &pages, change.chunks())?;
        }
        let changes: Arc<[Change]> = changes.into();
        let (theirs, share, me) = (changes.clone(), index.share, index.me);
        let (begin, closed) = (index.head.read().clone(), index.closed.clone());
        let work = move |txn: &mut Txn<'_>| {
            if closed.load(Ordering::SeqCst) {
                return Err(Error::new(Reason::Cancelled, "the share has ended"));
            }
            let stored = txn.get(&key(SPACE_HEAD, share, &[]))?;
            let mut head = match stored {
                Some(bytes) => HeadRecord::decode(&bytes[..]).map_err(|_| damaged())?,
                None => begin.clone(),
            };
            // A new id after the store was restored, see `open`.
            (head.index_id, head.instance) = (begin.index_id, begin.instance.clone());
            let mut writer = Writer { txn, share, me, head, outcome: Outcome::default() };
            for (at, change) in theirs.iter().enumerate() {
                writer.change(at, change)?;
            }
            let Writer { txn, head, mut outcome, .. } = writer;
            txn.put(key(SPACE_HEAD, share, &[]), head.encode_to_vec())?;
            outcome.head = head;
            Ok(outcome)
        };
        let outcome = index.store.transact_blocking(work)?.value;
        self.publish(&changes, &outcome);
        for pages in &outcome.gone {
            erase_range(&index.store, pages.clone(), prefix_end(pages))?;
        }
        Ok(outcome)
    }

    fn publish(&self, changes: &[Change], outcome: &Outcome) {
        let index = &*self.0;
        if let Some(map) = index.map.write().as_mut() {
            for &(at, sequence) in outcome.made.iter().filter(|made| made.1 > 0) {
                let chunks = changes[at].chunks();
                if matches!(&changes[at], Change::Put { kind: EntryKind::File, .. }) || !chunks.is_empty() {
                    let digest = manifest_digest(chunks);
                    spots(sequence, &digest, chunks).for_each(|(digest, spot)| map.add(digest, spot));
                }
            }
        }
        let mut head = index.head.write();
        if outcome.head.max_sequence >= head.max_sequence {
            *head = outcome.head.clone();
        }
        let newest = head.max_sequence;
        drop(head);
        index.sequence.send_if_modified(|s| std::mem::replace(s, newest.max(*s)) < newest);
    }

    /// Notes another device's version, which the caller has put into the folder (or, for a deleted entry, taken out of
    /// it) while it held the path. `file` is what [`super::super::beneath::Root::stat`] says of the new file; a file
    /// that has changed since is found by the next scan. Gives back the entry's sequence here. Blocks.
    ///
    /// # Errors
    /// ABORTED (VERSION_STALE) if the entry's sequence is not `expected` (0: there was none) any longer: read it again and
    /// decide anew. FIELD_INVALID if chunks and entry do not fit. Those of the store.
    pub fn apply(
        &self,
        hold: &Hold,
        entry: Entry,
        chunks: Arc<[ChunkRef]>,
        file: Option<FileStamp>,
        expected: u64,
    ) -> Result<u64> {
        self.check_adoption(hold, &entry, &chunks, file)?;
        let outcome = self.commit(vec![Change::Adopt { entry, chunks, file, expected }])?;
        match (outcome.made.first(), outcome.refused.is_empty()) {
            (Some(&(_, sequence)), _) => Ok(sequence),
            (None, true) => Err(Error::new(Reason::VersionStale, "the file has changed here meanwhile")),
            (None, false) => Err(Error::new(Reason::StoreLimit, "the share has too many entries")),
        }
    }

    /// Like [`IndexHandle::apply`], for many versions in one transaction, at most 2,000. Gives back their sequences here;
    /// `None` for those whose entry was not the expected one any longer, or that are beyond the share's bound. Blocks.
    ///
    /// # Errors
    /// FIELD_INVALID if anything does not fit; those of the store. Then nothing was noted.
    pub fn adopt(&self, batch: Vec<Adoption<'_>>) -> Result<Vec<Option<u64>>> {
        let mut changes = Vec::with_capacity(batch.len());
        for Adoption { hold, entry, chunks, file, expected } in batch {
            self.check_adoption(hold, &entry, &chunks, file)?;
            changes.push(Change::Adopt { entry, chunks, file, expected });
        }
        let mut sequences = vec![None; changes.len()];
        self.commit(changes)?.made.into_iter().for_each(|(at, sequence)| sequences[at] = Some(sequence));
        Ok(sequences)
    }

    fn check_adoption(
        &self,
        hold: &Hold,
        entry: &Entry,
        chunks: &Arc<[ChunkRef]>,
        file: Option<FileStamp>,
    ) -> Result<()> {
        if hold.path != entry.path || hold.index.share() != self.share() {
            return Err(Error::internal("a version was applied to a path that its writer does not hold"));
        }
        let fits = if entry.is_file() {
            super::super::entry::check_content(chunks, entry).is_ok() && file.is_some()
        } else {
            chunks.is_empty() && file.is_none() == entry.deleted
        };
        if fits {
            return Ok(());
        }
        Err(Error::new(Reason::FieldInvalid, "the entry, its chunks and its file do not fit together"))
    }

    /// Marks the index as used and notes how far it was read from its owner.
    pub(in crate::catalogue) fn note_read(&self, index_id: u64, read_up_to: u64, now_ms: u64) -> Result<()> {
        let index = &*self.0;
        let (share, begin) = (index.share, index.head.read().clone());
        let head = index.store.transact_blocking(move |txn| {
            let mut head = match txn.get(&key(SPACE_HEAD, share, &[]))? {
                Some(bytes) => HeadRecord::decode(&bytes[..]).map_err(|_| damaged())?,
                None => begin.clone(),
            };
            (head.index_id, head.read_up_to, head.used_ms) = (index_id, read_up_to, now_ms);
            head.instance = begin.instance.clone();
            txn.put(key(SPACE_HEAD, share, &[]), head.encode_to_vec())?;
            Ok(head)
        })?;
        *index.head.write() = head.value;
        Ok(())
    }

    /// The owner's index id, how far it was read, and when it was last used.
    pub(in crate::catalogue) fn read_state(&self) -> (u64, u64, u64) {
        let head = self.0.head.read();
        (head.index_id, head.read_up_to, head.used_ms)
    }

    /// Writes entries as their owner has them, with the owner's sequences; for indexes that are only kept. Deleted ones
    /// are taken out. At most 2,000 at a time.
    pub(in crate::catalogue) fn keep(&self, entries: Vec<Entry>) -> Result<()> {
        let index = &*self.0;
        let (share, begin) = (index.share, index.head.read().clone());
        let head = index.store.transact_blocking(move |txn| {
            let mut head = match txn.get(&key(SPACE_HEAD, share, &[]))? {
                Some(bytes) => HeadRecord::decode(&bytes[..]).map_err(|_| damaged())?,
                None => begin.clone(),
            };
            for entry in &entries {
                let at = key(SPACE_ENTRY, share, &place(&entry.path));
                let old = txn.get(&at)?.map(|bytes| Stored::decode(&bytes)).transpose()?;
                if let Some(old) = &old {
                    uncount(&mut head, &old.entry);
                    head.entries -= 1;
                }
                if entry.deleted {
                    txn.delete(&at)?;
                } else {
                    count(&mut head, entry);
                    head.entries += 1;
                    txn.put(at, Stored { entry: entry.clone(), file: None }.encode())?;
                }
            }
            txn.put(key(SPACE_HEAD, share, &[]), head.encode_to_vec())?;
            Ok(head)
        })?;
        *index.head.write() = head.value;
        Ok(())
    }

    /// Keeps the chunks of an entry that was kept before.
    pub(in crate::catalogue) fn keep_content(&self, entry: &Entry, chunks: &[ChunkRef]) -> Result<()> {
        write_pages(&self.0.store, &manifest_key(self.0.share, &entry.path, &entry.digest), chunks)
    }
}

struct Writer<'a, 'b> {
    txn: &'a mut Txn<'b>,
    share: crate::model::ShareId,
    me: u64,
    head: HeadRecord,
    outcome: Outcome,
}

fn count(head: &mut HeadRecord, entry: &Entry) {
    if entry.is_file() {
        head.files += 1;
        head.bytes += entry.size_bytes;
    }
}

fn uncount(head: &mut HeadRecord, entry: &Entry) {
    if entry.is_file() {
        head.files = head.files.saturating_sub(1);
        head.bytes = head.bytes.saturating_sub(entry.size_bytes);
    }
}

impl Writer<'_, '_> {
    fn change(&mut self, at: usize, change: &Change) -> Result<()> {
        let place = place(change.path());
        let entry_key = key(SPACE_ENTRY, self.share, &place);
        let old = self.txn.get(&entry_key)?.map(|bytes| Stored::decode(&bytes)).transpose()?;
        if old.as_ref().map_or(0, |o| o.entry.sequence) != change.expected() {
            self.outcome.outdated.push(at);
            return Ok(());
        }
        if let Change::Seen { file, .. } = change {
            if let Some(mut stored) = old {
                stored.file = Some(*file);
                self.txn.put(entry_key, stored.encode())?;
                self.outcome.made.push((at, 0));
            }
            return Ok(());
        }
        if old.is_none() && self.head.entries >= ENTRIES_MAX {
            self.outcome.refused.push(at);
            return Ok(());
        }
        let old_entry = old.as_ref().map(|o| &o.entry);
        let Some(new) = self.next(old_entry, change) else {
            return Ok(());
        };
        match old_entry {
            Some(old) => {
                uncount(&mut self.head, old);
                self.txn.delete(key(SPACE_SEQUENCE, self.share, &old.sequence.to_be_bytes()))?;
                if is_long(old.chunk_count as usize) && old.digest != new.entry.digest {
                    self.outcome.gone.push(manifest_key(self.share, &old.path, &old.digest));
                }
            }
            None => self.head.entries += 1,
        }
        count(&mut self.head, &new.entry);
        self.head.max_sequence = new.entry.sequence;
        self.outcome.made.push((at, new.entry.sequence));
        self.txn.put(key(SPACE_SEQUENCE, self.share, &new.entry.sequence.to_be_bytes()), place)?;
        self.txn.put(entry_key, new.encode())
    }

    /// The entry after the change; `None` if there is nothing to do.
    fn next(&self, old: Option<&Entry>, change: &Change) -> Option<Stored> {
        let sequence = self.head.max_sequence + 1;
        let bumped = || old.map_or_else(VersionVector::default, |o| o.version.clone()).bumped(self.me);
        let inline = |chunks: &Arc<[ChunkRef]>| if is_long(chunks.len()) { [].into() } else { chunks.clone() };
        match change {
            Change::Put { path, kind, file, mode, chunks, .. } => {
                let is_file = *kind == EntryKind::File;
                let entry = Entry {
                    path: path.clone(),
                    kind: *kind,
                    size_bytes: if is_file { file.size } else { 0 },
                    modify_time_ns: file.mtime_ns,
                    mode: *mode,
                    chunks: inline(chunks),
                    chunk_count: chunks.len() as u32,
                    digest: if is_file { manifest_digest(chunks) } else { [0; 32] },
                    sequence,
                    deleted: false,
                    version: bumped(),
                    modified_by: self.me,
                };
                Some(Stored { entry, file: Some(*file) })
            }
            Change::Remove { .. } => {
                let old = old.filter(|o| !o.deleted)?;
                let gone = Entry {
                    size_bytes: 0,
                    chunks: [].into(),
                    chunk_count: 0,
                    digest: [0; 32],
                    sequence,
                    deleted: true,
                    version: bumped(),
                    modified_by: self.me,
                    ..old.clone()
                };
                Some(Stored { entry: gone, file: None })
            }
            Change::Adopt { entry, chunks, file, .. } => {
                let entry = Entry { sequence, chunks: inline(chunks), ..entry.clone() };
                Some(Stored { entry, file: *file })
            }
            Change::Seen { .. } => None,
        }
    }
}

fn write_pages(store: &Store, pages: &[u8], chunks: &[ChunkRef]) -> Result<()> {
    let mut offset = 0;
    let encoded: Vec<(Vec<u8>, Bytes)> = chunks
        .chunks(PAGE_CHUNKS)
        .enumerate()
        .map(|(number, chunks)| {
            let mut key = pages.to_vec();
            key.extend_from_slice(&(number as u32).to_be_bytes());
            let page = page_of(offset, chunks);
            offset += chunks.iter().map(|c| u64::from(c.len)).sum::<u64>();
            (key, Bytes::from(page))
        })
        .collect();
    for step in encoded.chunks(STEP) {
        let step = step.to_vec();
        store.transact_blocking(move |txn| step.iter().try_for_each(|(k, v)| txn.put(k.clone(), v.clone())))?;
    }
    Ok(())
}

/// Removes a range of records, in steps.
pub(super) fn erase_range(store: &Store, from: Vec<u8>, to: Vec<u8>) -> Result<()> {
    loop {
        let (from, to) = (from.clone(), to.clone());
        let removed = store.transact_blocking(move |txn| {
            let found = txn.range(&from, &to, STEP)?;
            found.iter().try_for_each(|(key, _)| txn.delete(key))?;
            Ok(found.len())
        })?;
        if removed.value < STEP {
            return Ok(());
        }
    }
}
