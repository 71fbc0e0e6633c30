//! The index of one share: its entries by path and by sequence, their chunks, and what they were read from.
//!
//! # Layout in the store
//!
//! ```text
//! c/h SHARE                        head: index id, highest sequence, counts
//! c/e SHARE DIR NAME               an entry; DIR is the beginning of BLAKE3 of its directory's path, so that keys are short
//!                                  and a directory is one range in order of names
//! c/q SHARE SEQUENCE               DIR NAME of the entry that last changed then
//! c/m SHARE PATH DIGEST PAGE       200 chunks of a content of more than 64, with the offset of the first; PATH as DIR of
//!                                  the entry's whole path
//! ```
//!
//! SHARE is 16 bytes, DIR and PATH are 16, SEQUENCE is 8, the beginning of DIGEST is 8, PAGE is 4; numbers are big endian.
//!
//! # Invariants
//!
//! Sequences rise by one with each change and are never given twice; an entry has exactly one, so the entries after a
//! sequence are one range of `c/q`. Counts in the head change in the same transaction. A change names the sequence of
//! the entry that it was made from; if that one has been replaced since, the change is not made, and its path is looked
//! at again. Entries that are gone are kept, marked as deleted.
//!
//! # Crashes
//!
//! A transaction is whole or not there. Pages of long contents are written before the entry that needs them and removed
//! after it has gone; a crash in between leaves pages that nobody reads, and that go with the share.
//!
//! # Bounds
//!
//! 4,000,000 entries a share, deleted ones included; 1,500,000 chunks a file. Memory: 16 bytes for each chunk and each
//! file, at most eight places of one chunk.

mod chunk_map;
mod read;
mod write;

pub use read::Walk;
pub use write::{Adoption, Change};

use common::error::Result;
use common::identity::random_bytes;
use common::model::ChunkRef;
use common::store::{Store, prefix_end};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

use self::chunk_map::{ChunkMap, Spot};
use super::entry::{prefix_of, split};
use crate::model::ShareId;

/// Most entries of one share, deleted ones included.
pub const ENTRIES_MAX: u64 = 4_000_000;

pub(super) const SPACE_HEAD: &[u8] = b"c/h";
const SPACE_ENTRY: &[u8] = b"c/e";
const SPACE_SEQUENCE: &[u8] = b"c/q";
const SPACE_MANIFEST: &[u8] = b"c/m";

/// The stored head.
#[derive(Clone, PartialEq, Message)]
pub(super) struct HeadRecord {
    #[prost(fixed64, tag = "1")]
    pub index_id: u64,
    #[prost(uint64, tag = "2")]
    pub max_sequence: u64,
    #[prost(uint64, tag = "3")]
    pub files: u64,
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    #[prost(uint64, tag = "5")]
    pub entries: u64,
    // The store's instance: one that was restored from the past gives out sequences again, so the index gets a new id.
    #[prost(bytes = "vec", tag = "6")]
    pub instance: Vec<u8>,
    // Of an index that was read from another node: what of it is here.
    #[prost(uint64, tag = "7")]
    pub read_up_to: u64,
    #[prost(uint64, tag = "8")]
    pub used_ms: u64,
}

/// State of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexHead {
    /// Random for each index; another one means: read it from the beginning.
    pub index_id: u64,
    /// Highest sequence.
    pub max_sequence: u64,
    /// Files that are not deleted.
    pub file_count: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Entries, deleted ones included.
    pub entry_count: u64,
}

/// The index of a share; clones are handles to the same one. Reading and writing blocks for the disk.
#[derive(Clone)]
pub struct IndexHandle(Arc<Index>);

struct Index {
    store: Store,
    share: ShareId,
    me: u64,
    head: RwLock<HeadRecord>,
    /// Chunks and digests to sequences; read from the store when first needed.
    map: RwLock<Option<ChunkMap>>,
    loading: Mutex<()>,
    /// Paths that only their holder may change at the moment.
    held: Mutex<HashSet<String>>,
    sequence: watch::Sender<u64>,
    /// Nothing is written any more.
    closed: Arc<AtomicBool>,
}

/// While it lives, the scanner leaves a path (and what is below it) alone. What was seen there meanwhile is looked at
/// again afterwards.
#[must_use]
pub struct Hold {
    index: IndexHandle,
    path: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.index.0.held.lock().remove(&self.path);
    }
}

impl IndexHandle {
    /// Opens the index of a share, or begins one. `me` is this device in version vectors.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn open(store: Store, share: ShareId, me: u64) -> Result<Self> {
        let mut head = match store.get(&key(SPACE_HEAD, share, &[]))? {
            Some(bytes) => HeadRecord::decode(&bytes[..]).map_err(|_| damaged())?,
            None => HeadRecord::default(),
        };
        if head.instance != store.instance() {
            head.index_id = u64::from_le_bytes(random_bytes());
            head.instance = store.instance().to_vec();
        }
        let sequence = watch::Sender::new(head.max_sequence);
        let index = Index {
            store,
            share,
            me,
            head: RwLock::new(head),
            map: RwLock::new(None),
            loading: Mutex::new(()),
            held: Mutex::new(HashSet::new()),
            sequence,
            closed: Arc::default(),
        };
        Ok(Self(Arc::new(index)))
    }

    /// Which share.
    pub fn share(&self) -> ShareId {
        self.0.share
    }

    /// Its state.
    pub fn head(&self) -> IndexHead {
        let head = self.0.head.read();
        IndexHead {
            index_id: head.index_id,
            max_sequence: head.max_sequence,
            file_count: head.files,
            total_bytes: head.bytes,
            entry_count: head.entries,
        }
    }

    /// Follows the highest sequence. Who has seen everything up to a sequence asks [`IndexHandle::after`] for the rest:
    /// nothing is missed, however late one comes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.sequence.subscribe()
    }

    /// Takes a path for oneself: the scanner passes it over until the hold is dropped. `None` if someone else has it.
    pub fn hold(&self, path: &str) -> Option<Hold> {
        let taken = self.0.held.lock().insert(path.to_owned());
        taken.then(|| Hold { index: self.clone(), path: path.to_owned() })
    }

    /// True if the path or a directory above it is held.
    pub fn is_held(&self, path: &str) -> bool {
        let held = self.0.held.lock();
        !held.is_empty() && held.iter().any(|h| super::entry::is_below(path, h))
    }

    /// Has nothing written any more; changes that come later are refused.
    pub(super) fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    /// Removes everything of a share's index from the store, in steps.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn erase(store: &Store, share: ShareId) -> Result<()> {
        for space in [SPACE_HEAD, SPACE_SEQUENCE, SPACE_ENTRY, SPACE_MANIFEST] {
            let from = key(space, share, &[]);
            write::erase_range(store, from.clone(), prefix_end(&from))?;
        }
        Ok(())
    }
}

fn damaged() -> common::error::Error {
    common::error::Error::new(common::error::Reason::StoreCorrupt, "a record of a share's index cannot be decoded")
}

pub(super) fn key(space: &[u8], share: ShareId, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(space.len() + 16 + rest.len());
    key.extend_from_slice(space);
    key.extend_from_slice(share.as_bytes());
    key.extend_from_slice(rest);
    key
}

/// The first 16 bytes of BLAKE3 of a path.
fn path_key(path: &str) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..16]);
    out
}

/// DIR NAME of a path.
fn place(path: &str) -> Vec<u8> {
    let (directory, name) = split(path);
    let mut place = path_key(directory).to_vec();
    place.extend_from_slice(name.as_bytes());
    place
}

/// The part of the keys of a content's pages that all of them share.
fn manifest_key(share: ShareId, path: &str, digest: &[u8; 32]) -> Vec<u8> {
    let mut rest = path_key(path).to_vec();
    rest.extend_from_slice(&digest[..8]);
    key(SPACE_MANIFEST, share, &rest)
}

/// Chunks in a page: about 7 KB.
const PAGE_CHUNKS: usize = 200;

/// A page: the offset of its first chunk (8 bytes, little-endian), and the chunks.
fn page_of(offset: u64, chunks: &[ChunkRef]) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &ChunkRef::encode_all(chunks)].concat()
}

fn page_from(page: &[u8]) -> Result<(u64, Vec<ChunkRef>)> {
    let (offset, chunks) = page.split_first_chunk::<8>().ok_or_else(damaged)?;
    Ok((u64::from_le_bytes(*offset), ChunkRef::decode_all(chunks).ok_or_else(damaged)?))
}

/// What leads to a content and to its chunks.
fn spots(sequence: u64, digest: &[u8; 32], chunks: &[ChunkRef]) -> impl Iterator<Item = (u64, Spot)> {
    let whole = (prefix_of(digest), Spot::whole(sequence));
    let parts = chunks.iter().enumerate().map(move |(at, c)| (prefix_of(&c.id.0), Spot::chunk(sequence, at)));
    std::iter::once(whole).chain(parts)
}

#[cfg(test)]
mod tests;
