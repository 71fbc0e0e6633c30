//! Share records that this node knows, its own and others', on disk.

use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::store::{Store, Txn, prefix_end};
use parking_lot::RwLock;
use prost::Message;
use proto::peer::v1 as wire;
use std::collections::HashMap;

use super::index::key;
use super::record::ShareRecord;
use crate::model::ShareId;

const SPACE_RECORD: &[u8] = b"c/r";
/// Most records of one owner; further ones are refused.
pub const RECORDS_OF_OWNER: usize = 1_000;
/// Most records in all; further ones are refused.
pub const RECORDS_MAX: usize = 20_000;

#[derive(Clone, PartialEq, Message)]
struct Kept {
    #[prost(bytes = "vec", tag = "1")]
    share: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(bool, tag = "3")]
    hidden: bool,
}

/// A record that is known.
#[derive(Clone, PartialEq, Debug)]
pub struct Known {
    /// The one that counts.
    pub record: ShareRecord,
    /// The owner does not show it to this device any longer.
    pub hidden: bool,
}

impl Known {
    fn kept(&self) -> Vec<u8> {
        let signed = self.record.signed();
        Kept { share: signed.share.to_vec(), signature: signed.signature.to_vec(), hidden: self.hidden }.encode_to_vec()
    }
}

/// See the module.
pub(super) struct Book {
    store: Store,
    known: RwLock<HashMap<ShareId, Known>>,
}

/// Writes a record within a transaction that changes more than it.
pub(super) fn put(txn: &mut Txn<'_>, known: &Known) -> Result<()> {
    txn.put(key(SPACE_RECORD, known.record.share(), &[]), known.kept())
}

impl Book {
    /// Reads what is known. Records that cannot be read or verified are told in the log and passed over.
    pub fn open(store: Store) -> Result<Self> {
        let mut known = HashMap::new();
        for (_, bytes) in store.range(SPACE_RECORD, &prefix_end(SPACE_RECORD), usize::MAX)? {
            let read = Kept::decode(&bytes[..])
                .map_err(|_| Error::new(Reason::StoreCorrupt, "a share record cannot be decoded"))
                .and_then(|kept| {
                    let signed = wire::ShareRecord { share: kept.share.into(), signature: kept.signature.into() };
                    Ok(Known { record: ShareRecord::verify(&signed)?, hidden: kept.hidden })
                });
            match read {
                Ok(one) => drop(known.insert(one.record.share(), one)),
                Err(error) => tracing::error!(?error, "a share record in the store was passed over"),
            }
        }
        Ok(Self { store, known: RwLock::new(known) })
    }

    /// One of them.
    pub fn get(&self, share: &ShareId) -> Option<Known> {
        self.known.read().get(share).cloned()
    }

    /// Those that pass a test.
    pub fn all(&self, wanted: impl Fn(&Known) -> bool) -> Vec<Known> {
        self.known.read().values().filter(|k| wanted(k)).cloned().collect()
    }

    /// Takes one that was written in a transaction already.
    pub fn note(&self, known: Known) {
        self.known.write().insert(known.record.share(), known);
    }

    /// Takes a record if it counts more than what is known. True if it does. Blocks for the disk.
    ///
    /// # Errors
    /// OVERLOADED beyond the bounds, and those of the store.
    pub fn merge(&self, record: &ShareRecord, hidden: bool) -> Result<bool> {
        let known = Known { record: record.clone(), hidden };
        {
            let all = self.known.read();
            match all.get(&record.share()) {
                Some(old) if old.record == *record && old.hidden == hidden => return Ok(false),
                Some(old) if old.record != *record && !record.replaces(&old.record) => return Ok(false),
                Some(_) => {}
                None => {
                    let owner = record.owner();
                    let of_owner = all.values().filter(|k| k.record.owner() == owner).count();
                    if all.len() >= RECORDS_MAX || of_owner >= RECORDS_OF_OWNER {
                        return Err(Error::new(Reason::Overloaded, "too many share records")
                            .why_is("a node has at most 1,000 shares, and 20,000 are known in all"));
                    }
                }
            }
        }
        let bytes = known.kept();
        let at = key(SPACE_RECORD, record.share(), &[]);
        self.store.transact_blocking(move |txn| txn.put(at.clone(), bytes.clone()))?;
        let mut all = self.known.write();
        let newer = all.get(&record.share()).is_none_or(|old| old.record == *record || record.replaces(&old.record));
        if newer {
            all.insert(record.share(), known);
        }
        Ok(newer)
    }

    /// Living records of one owner, in order of names, then ids.
    pub fn of_owner(&self, owner: &DeviceId) -> Vec<Known> {
        let mut found = self.all(|k| k.record.owner() == *owner && !k.record.removed());
        found.sort_by(|a, b| (a.record.name(), a.record.share()).cmp(&(b.record.name(), b.record.share())));
        found
    }
}
