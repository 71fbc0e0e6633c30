//! What the store needs from an engine, and the guard around it.
//!
//! An engine is an ordered map of bytes with one writer. It knows nothing of transactions, revisions or checksums.

mod memory;
mod redb;
mod sled;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::EngineKind;
use super::directory::DirectoryLock;
use crate::error::{Error, Reason, Result};

/// One change of a batch: the key, and the new value or nothing.
pub(super) type Write = (Bytes, Option<Bytes>);

/// Free bytes that an engine finds at least: what it adds to its files at a time, several times over.
const ROOM: u64 = 8 << 20;

/// What takes records of a scan, until it breaks.
pub(super) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// How an engine fails. All but [`EngineError::Busy`] are final: the store takes no more changes.
#[derive(Debug)]
pub(super) enum EngineError {
    /// Another process or thread still has the files.
    Busy,
    /// The engine's own checks say that its files are damaged.
    Damaged(Box<dyn std::error::Error + Send + Sync>),
    /// No space is left.
    Full(Box<dyn std::error::Error + Send + Sync>),
    /// Anything else.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl EngineError {
    pub fn io(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Busy => Error::new(Reason::StoreBusy, "the store is in use"),
            EngineError::Damaged(e) => {
                Error::new(Reason::StoreCorrupt, "the engine found its files damaged").caused_by(e)
            }
            EngineError::Full(e) => Error::new(Reason::DiskFull, "the store's disk is full").caused_by(e),
            EngineError::Failed(e) => Error::new(Reason::StoreFailed, "the engine failed").caused_by(e),
        }
    }
}

pub(super) type EngineResult<T> = std::result::Result<T, EngineError>;

/// An ordered map of bytes on disk.
///
/// `apply` is called by one thread at a time; the reading methods by any number, also while `apply` runs. What they see
/// of a batch that is being applied is not defined: the store hides it.
pub(super) trait Engine: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> EngineResult<Option<Bytes>>;
    /// Visits the records with `from <= key < to` in ascending order.
    fn range(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()>;
    /// Visits the records with `from <= key < to` in descending order.
    fn range_back(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()>;
    /// Makes all changes or none of them. When it returns they are on disk and survive a power cut.
    fn apply(&self, batch: &[Write]) -> EngineResult<()>;
    /// Bytes on disk (in memory, for the memory engine).
    fn disk_bytes(&self) -> EngineResult<u64>;
    /// Where its files are, if it has any.
    fn directory(&self) -> Option<&Path> {
        None
    }
    /// Writes out what is left. No other call follows.
    fn close(&self) -> EngineResult<()>;
}

/// The directory below the store's that an engine has for itself.
pub(super) fn home(kind: EngineKind) -> Option<&'static str> {
    match kind {
        EngineKind::Sled => Some("sled"),
        EngineKind::Redb => Some("redb"),
        EngineKind::Memory => None,
    }
}

/// Opens or makes an engine in `directory`, which exists and is locked.
pub(super) fn open(kind: EngineKind, directory: &Path, cache_bytes: u64) -> EngineResult<Box<dyn Engine>> {
    let open = || -> EngineResult<Box<dyn Engine>> {
        Ok(match kind {
            EngineKind::Memory => Box::new(memory::Memory::default()),
            EngineKind::Sled => Box::new(sled::Sled::open(&directory.join("sled"), cache_bytes)?),
            EngineKind::Redb => Box::new(redb::Redb::open(&directory.join("redb"), cache_bytes)?),
        })
    };
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> EngineError {
    EngineError::Damaged("the engine panicked".into())
}

/// An engine whose first failure is remembered, and whose panics on damaged files become errors.
pub(super) struct Guarded {
    engine: Box<dyn Engine>,
    failed: Arc<AtomicBool>,
    // After `engine`: the directory is given up when the engine has let go of its files.
    _lock: Option<DirectoryLock>,
}

impl Guarded {
    pub fn new(engine: Box<dyn Engine>, lock: Option<DirectoryLock>) -> Self {
        Self { engine, failed: Arc::default(), _lock: lock }
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The flag behind [`Guarded::has_failed`], which outlives the engine.
    pub fn failure_flag(&self) -> Arc<AtomicBool> {
        self.failed.clone()
    }

    fn call<T>(&self, what: &str, f: impl FnOnce(&dyn Engine) -> EngineResult<T>) -> Result<T> {
        let outcome = catch_unwind(AssertUnwindSafe(|| f(&*self.engine))).unwrap_or_else(|_| Err(panicked()));
        outcome.map_err(|e| {
            let error = Error::from(e).with("operation", what);
            if !self.failed.swap(true, Ordering::AcqRel) {
                tracing::error!(?error, "the store has failed and takes no more changes");
            }
            error
        })
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.call("get", |e| e.get(key))
    }

    pub fn scan(&self, from: &[u8], to: &[u8], back: bool, visit: &mut Visit<'_>) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        self.call("range", |e| if back { e.range_back(from, to, visit) } else { e.range(from, to, visit) })
    }

    pub fn apply(&self, batch: &[Write]) -> Result<()> {
        if self.has_failed() {
            return Err(failed());
        }
        self.call("apply", |e| e.apply(batch))
    }

    /// Refuses a batch for which there may be no room, before the engine is touched: an engine that runs into a full disk
    /// has failed for good, one that was not asked goes on as soon as there is room.
    pub fn require_room(&self, batch: &[Write]) -> Result<()> {
        let Some(directory) = self.engine.directory() else { return Ok(()) };
        // A file system that does not tell is no reason to refuse.
        let Ok(stat) = rustix::fs::statvfs(directory) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let bytes: usize = batch.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len)).sum();
        if free >= ROOM.saturating_add(4 * bytes as u64) {
            return Ok(());
        }
        Err(no_room().with("free_bytes", free))
    }

    pub fn disk_bytes(&self) -> Result<u64> {
        self.call("stats", |e| e.disk_bytes())
    }

    pub fn close(&self) -> Result<()> {
        self.call("close", |e| e.close())
    }
}

/// What callers get while there is no room for changes.
pub(super) fn no_room() -> Error {
    Error::new(Reason::DiskFull, "the disk has no room for changes of the store")
        .why_is("the disk is full; nothing was changed")
        .fix_is("an administrator must free or add space; the server then goes on by itself")
}

/// What callers get once the engine has failed.
pub(super) fn failed() -> Error {
    Error::new(Reason::StoreFailed, "the store has failed and takes no more changes")
}
