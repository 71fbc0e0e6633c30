//! sled 0.34.7. No other file knows sled's types.
//!
//! Its traps and what is done about them:
//!
//! * `flush` is not an fsync on Linux (it calls `sync_file_range`): every batch ends with `fdatasync` on a handle of our own
//!   to the log file.
//! * A crash while it writes a snapshot leaves `snap.*.generating`, and each later open takes that for a damaged snapshot:
//!   such files are removed before the open, under the store's own lock.
//! * It does not sync its `conf` file, its directory, nor the directory above: done here after the open.
//! * Its lock outlives the handle until background threads end: the open is tried again for up to ten seconds, on that
//!   error only.
//! * Space is reclaimed only by the periodic flusher, which therefore stays on.
//! * Transactions and `watch_prefix` can stop the whole process: neither is used. `apply_batch` on the one default tree is
//!   atomic across crashes, and it is the only thing that writes.
//! * Readers see a batch before it is durable, and a scan may see half of one: the store hides batches in flight.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::directory;
use super::{Engine, EngineError, EngineResult, Visit, Write};

const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// A sled database and our own handle to its log file.
pub(super) struct Sled {
    db: ::sled::Db,
    log: File,
    path: PathBuf,
}

fn failure(error: ::sled::Error) -> EngineError {
    match error {
        ::sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => EngineError::Busy,
        ::sled::Error::Io(e) => EngineError::io(e),
        e @ (::sled::Error::Corruption { .. } | ::sled::Error::CollectionNotFound(_)) => EngineError::Damaged(e.into()),
        e => EngineError::Failed(e.into()),
    }
}

fn remove_unfinished_snapshots(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %name, "an unfinished snapshot of the engine is removed");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Sled {
    pub fn open(path: &Path, cache_bytes: u64) -> EngineResult<Self> {
        directory::create(path).map_err(EngineError::io)?;
        remove_unfinished_snapshots(path).map_err(EngineError::io)?;
        let config = || {
            ::sled::Config::default()
                .path(path)
                .cache_capacity(cache_bytes)
                .mode(::sled::Mode::LowSpace)
                .flush_every_ms(Some(500))
        };
        let started = Instant::now();
        let db = loop {
            match config().open().map_err(failure) {
                Ok(db) => break db,
                Err(EngineError::Busy) if started.elapsed() < OPEN_PATIENCE => {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                Err(error) => return Err(error),
            }
        };
        let sync = || -> std::io::Result<File> {
            File::open(path.join("conf"))?.sync_all()?;
            let log = File::options().read(true).write(true).open(path.join("db"))?;
            log.sync_all()?;
            directory::sync(path)?;
            Ok(log)
        };
        let log = sync().map_err(EngineError::io)?;
        Ok(Self { db, log, path: path.to_owned() })
    }

    fn flush(&self) -> EngineResult<()> {
        self.db.flush().map_err(failure)?;
        self.log.sync_data().map_err(EngineError::io)
    }

    fn scan(
        records: impl Iterator<Item = ::sled::Result<(::sled::IVec, ::sled::IVec)>>,
        visit: &mut Visit<'_>,
    ) -> EngineResult<()> {
        for record in records {
            let (key, value) = record.map_err(failure)?;
            if visit(&key, &value) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

impl Engine for Sled {
    fn get(&self, key: &[u8]) -> EngineResult<Option<Bytes>> {
        Ok(self.db.get(key).map_err(failure)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        Self::scan(self.db.range::<&[u8], _>(from..to), visit)
    }

    fn range_back(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        Self::scan(self.db.range::<&[u8], _>(from..to).rev(), visit)
    }

    fn apply(&self, batch: &[Write]) -> EngineResult<()> {
        let mut writes = ::sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => writes.insert(&key[..], &value[..]),
                None => writes.remove(&key[..]),
            }
        }
        self.db.apply_batch(writes).map_err(failure)?;
        self.flush()
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn disk_bytes(&self) -> EngineResult<u64> {
        self.db.size_on_disk().map_err(failure)
    }

    fn close(&self) -> EngineResult<()> {
        self.flush()
    }
}
