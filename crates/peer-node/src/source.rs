//! Where chunks are on this machine, and who may have them.
//!
//! Nothing is copied to be shared: a share's chunks are parts of its files, a transfer's are parts of its part files, a
//! parcel's are in the chunk store. Each of these modules is a [`ChunkSource`]; the serving side of `transfer` asks them
//! in turn. A place is a hint: a file may change under it. Whoever reads it hashes what was read and, if the digest is
//! another, calls [`ChunkSource::moved`] and does not send it.

use crate::model::Scope;
use common::error::Result;
use common::model::{ChunkId, DeviceId};
use std::path::PathBuf;

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
    },
    /// In the node's chunk store.
    Store {
        /// Number of bytes.
        len: u32,
    },
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
    fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Place>>;

    /// Which chunks of these manifests (all of the scope if empty) are here.
    fn holdings(&self, scope: &Scope, manifests: &[[u8; 32]]) -> Result<Holdings>;

    /// What was read at the place is not the chunk any longer.
    fn moved(&self, scope: &Scope, chunk: &ChunkId, place: &Place);
}
