//! Where chunks are on this machine, and who may have them.
//!
//! Nothing is copied to be shared: a share's chunks are parts of its files, a transfer's are parts of its part files, a
//! parcel's are in the chunk store. Each of these modules is a [`ChunkSource`], registered in [`Sources`]; the serving side
//! of `transfer` asks them in turn.
//!
//! A place is a hint: a file may change under it. Whoever reads it compares the file's [`FileStamp`] before and after
//! reading with the one that was taken when the content was hashed. If they are equal, the bytes are those that were hashed.
//! If they are not, or the place has none, what was read is hashed; if the digest is another, [`ChunkSource::moved`] is
//! called and the chunk is answered as absent. Who receives a chunk hashes it in any case.

use crate::model::Scope;
use common::chunk::ChunkStore;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, DeviceId};
use parking_lot::RwLock;
use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// What tells whether a file is still the one whose content was hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileStamp {
    /// Bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since 1970; programs cannot set it.
    pub ctime_ns: i64,
    /// Inode number.
    pub inode: u64,
}

impl FileStamp {
    /// From what the system says of an open file.
    pub fn of(meta: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            size: meta.len(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
            inode: meta.ino(),
        }
    }
}

/// Where a chunk's bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Part of a file.
    File {
        /// Absolute path.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
        /// The file as it was when its content was hashed; `None` if that is not known: then it is hashed again.
        stamp: Option<FileStamp>,
    },
    /// In the node's chunk store.
    Store {
        /// Number of bytes.
        len: u32,
    },
}

impl Place {
    /// Number of bytes.
    pub fn len(&self) -> u32 {
        match self {
            Self::File { len, .. } | Self::Store { len } => *len,
        }
    }

    /// Never true of a chunk.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which chunks of a scope there are here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holdings {
    /// All of the scope, now and as it changes.
    pub complete: bool,
    /// The ones that are here; empty if complete.
    pub have: Vec<ChunkId>,
}

/// A module that has chunks. All functions may block for a disk read: call them on blocking threads.
pub trait ChunkSource: Send + Sync + 'static {
    /// Is this scope one of this source's, and may the device have its chunks? `Ok(false)`: not this source's.
    ///
    /// # Errors
    /// ACCESS_DENIED or ENTRY_UNKNOWN if it is this source's and the device may not (a scope that it may not see is not
    /// told apart from one that does not exist).
    fn may_have(&self, scope: &Scope, asker: &DeviceId) -> Result<bool>;

    /// Where a chunk of the scope is, if it is here and in the scope.
    ///
    /// # Errors
    /// Those of the disk.
    fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Place>>;

    /// Which chunks of these manifests (all of the scope if empty) are here.
    ///
    /// # Errors
    /// Those of the disk.
    fn holdings(&self, scope: &Scope, manifests: &[[u8; 32]]) -> Result<Holdings>;

    /// What was read at the place is not the chunk any longer.
    fn moved(&self, scope: &Scope, chunk: &ChunkId, place: &Place);

    /// Where a chunk is in whatever scope. For this machine's own use: a transfer takes from the local disk what is there
    /// already.
    fn find(&self, chunk: &ChunkId) -> Option<Place> {
        let _ = chunk;
        None
    }

    /// What was read at a place that [`ChunkSource::find`] gave is not the chunk any longer.
    fn stale(&self, chunk: &ChunkId, place: &Place) {
        let _ = (chunk, place);
    }
}

/// All sources of this machine. Clones are handles to the same list.
#[derive(Clone, Default)]
pub struct Sources(Arc<Registry>);

#[derive(Default)]
struct Registry {
    all: RwLock<Vec<Arc<dyn ChunkSource>>>,
    store: OnceLock<ChunkStore>,
}

impl Sources {
    /// Adds a source; sources are asked in the order in which they came.
    pub fn register(&self, source: Arc<dyn ChunkSource>) {
        self.0.all.write().push(source);
    }

    /// The chunk store that [`Place::Store`] is about. The first one that is set stays.
    pub fn set_store(&self, store: ChunkStore) {
        let _ = self.0.store.set(store);
    }

    /// The chunk store, if there is one.
    pub fn store(&self) -> Option<&ChunkStore> {
        self.0.store.get()
    }

    fn all(&self) -> Vec<Arc<dyn ChunkSource>> {
        self.0.all.read().clone()
    }

    /// May the device have chunks of the scope? A source that says no outweighs one that says yes.
    ///
    /// # Errors
    /// ENTRY_UNKNOWN if no source knows the scope; what a source said.
    pub fn authorize(&self, scope: &Scope, asker: &DeviceId) -> Result<()> {
        let mut known = false;
        for source in self.all() {
            known |= source.may_have(scope, asker)?;
        }
        if known { Ok(()) } else { Err(unknown_scope()) }
    }

    /// The places where a chunk of the scope may be, at most one a source.
    ///
    /// # Errors
    /// Those of the sources, if none has it.
    pub fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Vec<(Arc<dyn ChunkSource>, Place)>> {
        let mut found = Vec::new();
        let mut failed = None;
        for source in self.all() {
            match source.locate(scope, chunk) {
                Ok(Some(place)) => found.push((source, place)),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// The places where a chunk may be, whatever scope it belongs to: for this machine's own use.
    pub fn find(&self, chunk: &ChunkId) -> Vec<(Arc<dyn ChunkSource>, Place)> {
        self.all().into_iter().filter_map(|s| s.find(chunk).map(|place| (s, place))).collect()
    }

    /// Which chunks of these manifests (all of the scope if empty) are here, over all sources.
    ///
    /// # Errors
    /// Those of the sources, if none knows anything.
    pub fn holdings(&self, scope: &Scope, manifests: &[[u8; 32]]) -> Result<Holdings> {
        let mut have: HashSet<ChunkId> = HashSet::new();
        let mut failed = None;
        for source in self.all() {
            match source.holdings(scope, manifests) {
                Ok(found) if found.complete => return Ok(found),
                Ok(found) => have.extend(found.have),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if have.is_empty() => Err(error),
            _ => Ok(Holdings { complete: false, have: have.into_iter().collect() }),
        }
    }
}

/// The one answer to whoever names a scope that is not there, or that he may not see: nothing in it tells which.
pub fn unknown_scope() -> Error {
    Error::new(Reason::EntryUnknown, "there is no such share or parcel here, or you may not see it")
}
