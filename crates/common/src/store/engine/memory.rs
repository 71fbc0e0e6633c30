//! The engine that keeps nothing: for tests and for measuring the store without a disk.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Engine, EngineResult, Visit, Write};

/// A sorted map behind a lock.
#[derive(Default)]
pub(super) struct Memory(RwLock<BTreeMap<Bytes, Bytes>>);

fn bounds<'a>(from: &'a [u8], to: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(from), Bound::Excluded(to))
}

impl Engine for Memory {
    fn get(&self, key: &[u8]) -> EngineResult<Option<Bytes>> {
        Ok(self.0.read().get(key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        let map = self.0.read();
        let _ = map.range::<[u8], _>(bounds(from, to)).try_for_each(|(k, v)| visit(k, v));
        Ok(())
    }

    fn range_back(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        let map = self.0.read();
        let _ = map.range::<[u8], _>(bounds(from, to)).rev().try_for_each(|(k, v)| visit(k, v));
        Ok(())
    }

    fn apply(&self, batch: &[Write]) -> EngineResult<()> {
        let mut map = self.0.write();
        for (key, value) in batch {
            match value {
                Some(value) => map.insert(key.clone(), value.clone()),
                None => map.remove(key),
            };
        }
        Ok(())
    }

    fn disk_bytes(&self) -> EngineResult<u64> {
        Ok(self.0.read().iter().map(|(k, v)| (k.len() + v.len()) as u64).sum())
    }

    fn close(&self) -> EngineResult<()> {
        Ok(())
    }
}
