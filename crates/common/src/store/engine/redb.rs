//! redb 4: the way out of sled, with the same keys and values. No other file knows redb's types.
//!
//! A commit is written with checksums and followed by `fdatasync`; after a crash redb takes the newer of its two commit
//! slots that is whole. Readers see committed states only. It trusts the pages of its file: a flipped bit in one can make it
//! panic or loop for ever. So every open checks all pages, which reads the whole file once.

use std::ops::ControlFlow;
use std::path::Path;

use ::redb::{CommitError, Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition};
use ::redb::{TableError, TransactionError};
use bytes::Bytes;

use super::super::directory;
use super::{Engine, EngineError, EngineResult, Visit, Write};

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

/// A redb database with one table.
pub(super) struct Redb {
    db: Database,
    file: std::path::PathBuf,
}

fn storage(error: StorageError) -> EngineError {
    match error {
        StorageError::Io(e) => EngineError::io(e),
        e @ StorageError::Corrupted(_) => EngineError::Damaged(e.into()),
        e => EngineError::Failed(e.into()),
    }
}

fn transaction(error: TransactionError) -> EngineError {
    match error {
        TransactionError::Storage(e) => storage(e),
        e => EngineError::Failed(e.into()),
    }
}

fn table(error: TableError) -> EngineError {
    match error {
        TableError::Storage(e) => storage(e),
        e => EngineError::Failed(e.into()),
    }
}

fn commit(error: CommitError) -> EngineError {
    match error {
        CommitError::Storage(e) => storage(e),
        e => EngineError::Failed(e.into()),
    }
}

fn database(error: DatabaseError) -> EngineError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => EngineError::Busy,
        DatabaseError::Storage(e) => storage(e),
        e => EngineError::Failed(e.into()),
    }
}

impl Redb {
    pub fn open(path: &Path, cache_bytes: u64) -> EngineResult<Self> {
        directory::create(path).map_err(EngineError::io)?;
        let file = path.join("data.redb");
        let cache = usize::try_from(cache_bytes).unwrap_or(usize::MAX);
        let mut builder = Database::builder();
        builder.set_cache_size(cache).set_check_integrity_on_open(true);
        let db = builder.create(&file).map_err(database)?;
        let write = db.begin_write().map_err(transaction)?;
        write.open_table(RECORDS).map_err(table)?;
        write.commit().map_err(commit)?;
        directory::sync(path).map_err(EngineError::io)?;
        Ok(Self { db, file })
    }

    fn read(&self) -> EngineResult<::redb::ReadOnlyTable<&'static [u8], &'static [u8]>> {
        let read = self.db.begin_read().map_err(transaction)?;
        read.open_table(RECORDS).map_err(table)
    }
}

impl Engine for Redb {
    fn get(&self, key: &[u8]) -> EngineResult<Option<Bytes>> {
        let value = self.read()?.get(key).map_err(storage)?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        for record in self.read()?.range::<&[u8]>(from..to).map_err(storage)? {
            let (key, value) = record.map_err(storage)?;
            if visit(key.value(), value.value()) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn range_back(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        for record in self.read()?.range::<&[u8]>(from..to).map_err(storage)?.rev() {
            let (key, value) = record.map_err(storage)?;
            if visit(key.value(), value.value()) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, batch: &[Write]) -> EngineResult<()> {
        let write = self.db.begin_write().map_err(transaction)?;
        {
            let mut records = write.open_table(RECORDS).map_err(table)?;
            for (key, value) in batch {
                match value {
                    Some(value) => records.insert(&key[..], &value[..]).map_err(storage)?,
                    None => records.remove(&key[..]).map_err(storage)?,
                };
            }
        }
        write.commit().map_err(commit)
    }

    fn directory(&self) -> Option<&Path> {
        self.file.parent()
    }

    fn disk_bytes(&self) -> EngineResult<u64> {
        Ok(std::fs::metadata(&self.file).map_err(EngineError::io)?.len())
    }

    fn close(&self) -> EngineResult<()> {
        Ok(())
    }
}
