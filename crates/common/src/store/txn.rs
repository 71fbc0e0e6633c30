//! A transaction: reads and writes over what the transactions before it in the same group have written.
//!
//! A group has one layer of writes. Each transaction writes into it and notes what was there, so that undoing one that
//! failed touches only its own writes. Values that were read from the engine are kept for the length of the group: hot
//! records are read once, and the values from before a write are known without another read.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::engine::Guarded;
use super::record::{self, Meta, SPACE_LOG};
use super::view::{Found, Layer, scan, too_many};
use super::{ChangeRecord, KEY_MAX, RANGE_MAX, TXN_BYTES_MAX, TXN_RECORDS_MAX, VALUE_MAX, log};
use crate::error::{Error, Reason, Result};

/// Records read from the engine that a group keeps at hand.
const CACHE_RECORDS: usize = 16_384;

/// What a group of transactions has written so far.
pub(super) struct Group {
    engine: Arc<Guarded>,
    /// Payloads; `None` deletes.
    pub writes: Layer,
    /// Stored values as the engine has them.
    pub stored: RefCell<HashMap<Bytes, Option<Bytes>>>,
    undo: Vec<(Bytes, Option<Option<Bytes>>)>,
    pub changes: Vec<ChangeRecord>,
    pub revision: u64,
    pub oldest: u64,
    /// Keys, values and payloads written, also those since overwritten: an upper bound of the group's memory.
    pub bytes: usize,
}

impl Group {
    pub fn new(engine: Arc<Guarded>, meta: &Meta) -> Self {
        Self {
            engine,
            writes: BTreeMap::new(),
            stored: RefCell::default(),
            undo: Vec::new(),
            changes: Vec::new(),
            revision: meta.revision,
            oldest: meta.oldest,
            bytes: 0,
        }
    }

    /// True if there is something to apply.
    pub fn is_dirty(&self, meta: &Meta) -> bool {
        // A trim may find no whole block to remove and still move the oldest revision.
        !self.writes.is_empty() || !self.changes.is_empty() || self.oldest != meta.oldest
    }

    /// Begins the next transaction of the group.
    pub fn begin(&mut self) -> Txn<'_> {
        self.undo.clear();
        let oldest = self.oldest;
        Txn { group: self, records: 0, bytes: 0, payloads: Vec::new(), wrote: false, refused: None, oldest }
    }

    /// The stored value of a key, as the engine has it.
    fn stored(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let mut stored = self.stored.borrow_mut();
        if let Some(raw) = stored.get(key) {
            return Ok(raw.clone());
        }
        let raw = self.engine.get(key)?;
        if stored.len() < CACHE_RECORDS {
            stored.insert(Bytes::copy_from_slice(key), raw.clone());
        }
        Ok(raw)
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        let old = self.writes.insert(key.clone(), value);
        self.undo.push((key, old));
    }
}

/// A transaction that is running. See [`Store::transact`](super::Store::transact).
pub struct Txn<'a> {
    group: &'a mut Group,
    records: usize,
    bytes: usize,
    payloads: Vec<Bytes>,
    wrote: bool,
    refused: Option<Error>,
    oldest: u64,
}

impl Txn<'_> {
    /// The value of a key, as this transaction sees it.
    ///
    /// # Errors
    /// `STORE_CORRUPT` if the stored record does not match its checksum, `STORE_FAILED` if the engine fails.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let key = record::user_key(key);
        if let Some(value) = self.group.writes.get(&key[..]) {
            return Ok(value.clone());
        }
        self.group.stored(&key)?.map(|raw| record::open(&key, &raw)).transpose()
    }

    /// The first `limit` records with `from <= key < to` in ascending order. An empty `to` means the end.
    ///
    /// # Errors
    /// `STORE_LIMIT` if there are more than 100,000 and `limit` would let them all through, `STORE_CORRUPT`, `STORE_FAILED`.
    pub fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.list(from, to, limit, false)
    }

    /// The last `limit` records with `from <= key < to` in descending order. An empty `to` means the end.
    ///
    /// # Errors
    /// Like [`Txn::range`].
    pub fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.list(from, to, limit, true)
    }

    fn list(&self, from: &[u8], to: &[u8], limit: usize, back: bool) -> Result<Vec<(Bytes, Bytes)>> {
        let mut out = Vec::new();
        if limit == 0 {
            return Ok(out);
        }
        let mut trouble = None;
        let (from, to) = (record::user_key(from), record::user_bound(to));
        scan(&self.group.engine, &self.group.writes, (&from, &to), back, &mut |found| {
            let read = match found {
                Found::Stored(key, raw) => record::open(key, &Bytes::copy_from_slice(raw))
                    .map(|value| (Bytes::copy_from_slice(&key[1..]), value)),
                Found::Layered(key, value) => Ok((key.slice(1..), value.clone())),
            };
            match read {
                Ok(_) if out.len() == RANGE_MAX => trouble = Some(too_many()),
                Ok(found) => out.push(found),
                Err(error) => trouble = Some(error),
            }
            if trouble.is_some() || out.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        trouble.map_or(Ok(out), Err)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// `STORE_LIMIT` if the key is longer than 1,024 bytes, the value longer than 64 KiB, or the transaction writes more
    /// than 20,000 records or 64 MiB. The transaction then fails as a whole, even if the caller goes on.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) -> Result<()> {
        let (mut key, value) = (key.into(), value.into());
        self.admit(key.len(), value.len())?;
        key.insert(0, record::SPACE_USER);
        self.wrote = true;
        self.group.write(Bytes::from(key), Some(value));
        Ok(())
    }

    /// Deletes a record, whether it is there or not.
    ///
    /// # Errors
    /// `STORE_LIMIT` as for [`Txn::put`].
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> Result<()> {
        let key = key.as_ref();
        self.admit(key.len(), 0)?;
        self.wrote = true;
        self.group.write(Bytes::from(record::user_key(key)), None);
        Ok(())
    }

    /// Adds a payload to this commit's change record. One that is longer than 64 KiB makes the transaction fail.
    pub fn change(&mut self, payload: Bytes) {
        if self.admit(0, payload.len()).is_ok() {
            self.wrote = true;
            self.payloads.push(payload);
        }
    }

    /// The revision that this commit will have if it writes anything.
    pub fn revision(&self) -> u64 {
        self.group.revision + 1
    }

    fn admit(&mut self, key: usize, value: usize) -> Result<()> {
        self.records += 1;
        self.bytes += key + value;
        let what = if key > KEY_MAX {
            format!("a key has {key} bytes, at most {KEY_MAX} are taken")
        } else if value > VALUE_MAX {
            format!("a record has {value} bytes, at most {VALUE_MAX} are taken")
        } else if self.records > TXN_RECORDS_MAX {
            format!("a transaction writes at most {TXN_RECORDS_MAX} records")
        } else if self.bytes > TXN_BYTES_MAX {
            format!("a transaction writes at most {TXN_BYTES_MAX} bytes")
        } else {
            return Ok(());
        };
        // Twice, because an error is not cloned: one for the caller, one in case the caller goes on.
        self.refused = Some(Error::new(Reason::StoreLimit, what.clone()));
        Err(Error::new(Reason::StoreLimit, what))
    }

    /// Removes up to `most` blocks of the change log that hold nothing after `keep_after`. Gives back whether it is done.
    pub(super) fn trim(&mut self, keep_after: u64, most: usize) -> Result<bool> {
        let keep_after = keep_after.min(self.group.revision);
        let mut keys = Vec::new();
        let (from, to) = (log::key(0, 0), log::key(keep_after.saturating_add(1), 0));
        scan(&self.group.engine, &self.group.writes, (&from, &to), false, &mut |found| {
            if let Found::Stored(key, _) = found {
                keys.push(Bytes::copy_from_slice(key));
            }
            if keys.len() > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let done = keys.len() <= most;
        keys.truncate(most);
        for key in keys {
            debug_assert_eq!(key.first(), Some(&SPACE_LOG));
            self.group.write(key, None);
        }
        // Set with the first part already: readers must not look into a log that is being taken away.
        self.group.oldest = self.group.oldest.max(keep_after);
        Ok(done)
    }

    /// Keeps the writes. Gives back the revision, a new one only if something was written.
    pub(super) fn keep(self) -> Result<u64, Error> {
        if let Some(error) = self.refused {
            let oldest = self.oldest;
            self.group.undo(oldest);
            return Err(error);
        }
        let group = self.group;
        group.bytes += self.bytes;
        if self.wrote {
            group.revision += 1;
            group.changes.push(ChangeRecord { revision: group.revision, payloads: self.payloads });
        }
        Ok(group.revision)
    }

    /// Takes the writes back.
    pub(super) fn undo(self) {
        let oldest = self.oldest;
        self.group.undo(oldest);
    }
}

impl Group {
    fn undo(&mut self, oldest: u64) {
        self.oldest = oldest;
        for (key, old) in self.undo.drain(..).rev() {
            match old {
                Some(old) => self.writes.insert(key, old),
                None => self.writes.remove(&key),
            };
        }
    }
}
