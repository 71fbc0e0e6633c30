//! Records that end by themselves: sessions, invites and answers to request ids.
//!
//! Each has an index entry `e/EXPIRE_MS KEY`, written in the same transaction. Whoever reads such a record compares its
//! end with the clock, so a late sweep changes nothing but the space it takes. A sweep works in transactions of
//! [`STEP`] records; an index entry whose record is gone or has got a later end is only dropped.

use super::records::{self, expiry_key};
use super::{App, sessions};
use bytes::Bytes;
use common::error::Result;
use common::store::Txn;
use proto::record::v1 as record;

/// Records per transaction.
pub const STEP: usize = 256;
/// Most transactions of one sweep; what is left waits for the next.
pub const MAX_STEPS: usize = 64;

/// Notes when the record under `key` ends.
///
/// # Errors
/// Those of the store.
pub fn at(txn: &mut Txn<'_>, expire_ms: u64, key: &[u8]) -> Result<()> {
    txn.put(expiry_key(expire_ms, key), Bytes::new())
}

/// Takes the note back, for a record that goes before its time.
///
/// # Errors
/// Those of the store.
pub fn forget(txn: &mut Txn<'_>, expire_ms: u64, key: &[u8]) -> Result<()> {
    txn.delete(expiry_key(expire_ms, key))
}

/// Removes what has ended. Gives back how many records went.
///
/// # Errors
/// Those of the store.
pub async fn sweep(app: &App) -> Result<usize> {
    let mut removed = 0;
    for _ in 0..MAX_STEPS {
        let now_ms = app.clock.now_ms();
        if app.store.range(b"e/", &expiry_key(now_ms.saturating_add(1), b""), 1)?.is_empty() {
            break;
        }
        let (seen, gone) = app.store.transact(move |txn| step(txn, now_ms)).await?.value;
        removed += gone;
        if seen < STEP {
            break;
        }
    }
    Ok(removed)
}

fn step(txn: &mut Txn<'_>, now_ms: u64) -> Result<(usize, usize)> {
    let due = txn.range(b"e/", &expiry_key(now_ms.saturating_add(1), b""), STEP)?;
    let mut gone = 0;
    for (index, _) in &due {
        txn.delete(index)?;
        let Some(key) = index.get(10..) else { continue };
        gone += usize::from(match key.get(..2) {
            Some(b"x/") => match records::load::<record::Session>(txn, key)? {
                Some(session) if session.expire_ms <= now_ms => {
                    sessions::remove(txn, &key[2..], &session)?;
                    true
                }
                _ => false,
            },
            Some(b"i/") => {
                records::load::<record::Invite>(txn, key)?.is_some_and(|i| i.expire_ms <= now_ms) && drop_key(txn, key)?
            }
            Some(b"r/") => {
                records::load::<record::Answer>(txn, key)?.is_some_and(|a| a.expire_ms <= now_ms) && drop_key(txn, key)?
            }
            _ => false,
        });
    }
    Ok((due.len(), gone))
}

fn drop_key(txn: &mut Txn<'_>, key: &[u8]) -> Result<bool> {
    txn.delete(key)?;
    Ok(true)
}
