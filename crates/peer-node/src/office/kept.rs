//! What an office keeps in the store.
//!
//! ```text
//! o/f              id of the founding record: this node is in that office
//! o/r/<record id>  a record
//! o/a/<device>     the newest announcement of a device
//! o/i/<nameplate>  an invite that this node has given out
//! ```
//!
//! `o/f` is written last when a node joins, so a crash before leaves it outside; what it has written so far is written
//! again by the next attempt.

use super::announce::Announcement;
use super::invite::Pending;
use super::ledger::Ledger;
use super::record::{Record, RecordId};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::store::{Store, TXN_RECORDS_MAX, prefix_end};
use prost::Message;
use proto::peer::v1 as peer;

const FOUNDING: &[u8] = b"o/f";
const RECORDS: &[u8] = b"o/r/";
const ANNOUNCEMENTS: &[u8] = b"o/a/";
const INVITES: &[u8] = b"o/i/";
/// Bytes that one transaction writes, about.
const TXN_BYTES: usize = 16 << 20;

/// What is written and removed in one step.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    put: Vec<(Vec<u8>, Bytes)>,
    delete: Vec<Vec<u8>>,
}

fn key(prefix: &[u8], id: &[u8]) -> Vec<u8> {
    [prefix, id].concat()
}

impl Batch {
    pub(super) fn records(mut self, records: &[Record]) -> Self {
        let put = records.iter().map(|r| (key(RECORDS, &r.id().0), Bytes::from(r.wire().encode_to_vec())));
        self.put.extend(put);
        self
    }

    pub(super) fn without(mut self, records: &[RecordId]) -> Self {
        self.delete.extend(records.iter().map(|id| key(RECORDS, &id.0)));
        self
    }

    pub(super) fn founding(mut self, id: &RecordId) -> Self {
        self.put.push((FOUNDING.to_vec(), Bytes::copy_from_slice(&id.0)));
        self
    }

    pub(super) fn announcements(mut self, announcements: &[Announcement]) -> Self {
        let put = announcements
            .iter()
            .map(|a| (key(ANNOUNCEMENTS, &a.info().device.0), Bytes::from(a.wire().encode_to_vec())));
        self.put.extend(put);
        self
    }

    pub(super) fn without_announcements(mut self, devices: &[DeviceId]) -> Self {
        self.delete.extend(devices.iter().map(|d| key(ANNOUNCEMENTS, &d.0)));
        self
    }

    pub(super) fn invite(mut self, invite: &Pending) -> Result<Self> {
        let value =
            serde_json::to_vec(invite).map_err(|e| Error::internal("an invite was not written").caused_by(e))?;
        self.put.push((key(INVITES, invite.nameplate.as_bytes()), value.into()));
        Ok(self)
    }

    pub(super) fn without_invite(mut self, nameplate: &str) -> Self {
        self.delete.push(key(INVITES, nameplate.as_bytes()));
        self
    }

    /// Writes it; durable when this returns. All of it in one transaction, or in several if it is too much for one.
    pub(super) async fn write(self, store: &Store) -> Result<()> {
        let Self { mut put, mut delete } = self;
        while !put.is_empty() || !delete.is_empty() {
            let mut bytes = 0;
            let fitting = put.iter().take_while(|(_, value)| {
                bytes += value.len();
                bytes <= TXN_BYTES
            });
            let count = fitting.count().min(TXN_RECORDS_MAX / 2);
            let part: Vec<_> = put.drain(..count.max(1).min(put.len())).collect();
            // With the last part only, so that what is replaced goes after what replaces it is there.
            let gone: Vec<_> = if put.is_empty() {
                delete.drain(..delete.len().min(TXN_RECORDS_MAX / 2)).collect()
            } else {
                Vec::new()
            };
            store
                .transact(move |txn| {
                    part.iter().try_for_each(|(key, value)| txn.put(key.clone(), value.clone()))?;
                    gone.iter().try_for_each(|key| txn.delete(key))
                })
                .await?;
        }
        Ok(())
    }
}

/// What was kept.
pub(super) struct Kept {
    pub(super) ledger: Option<Ledger>,
    pub(super) announcements: Vec<Announcement>,
    pub(super) invites: Vec<Pending>,
}

fn damaged(what: &str) -> Error {
    Error::new(Reason::StoreCorrupt, format!("{what} in the store cannot be read"))
}

/// Reads everything.
pub(super) fn read(store: &Store) -> Result<Kept> {
    let all = |prefix: &[u8]| store.range(prefix, &prefix_end(prefix), usize::MAX);
    let ledger = match store.get(FOUNDING)? {
        None => None,
        Some(founding) => {
            let read = |value: &Bytes| {
                let wire = peer::Record::decode(&value[..]).map_err(|_| damaged("a membership record"))?;
                Record::decode(&wire).map_err(|e| damaged("a membership record").caused_by(e))
            };
            let records = all(RECORDS)?.iter().map(|(_, value)| read(value)).collect::<Result<Vec<_>>>()?;
            // Records of another office can be left from an attempt to join it.
            let office = records.iter().find(|r| r.id().0 == founding[..]).map(Record::office);
            let office = office.ok_or_else(|| damaged("the founding record"))?;
            Some(Ledger::of(records.into_iter().filter(|r| r.office() == office).collect())?)
        }
    };
    let announcement = |(_, value): &(Bytes, Bytes)| {
        peer::Announcement::decode(&value[..]).ok().and_then(|wire| Announcement::decode(&wire).ok())
    };
    let announcements = all(ANNOUNCEMENTS)?.iter().filter_map(announcement).collect();
    let invites = all(INVITES)?.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect();
    Ok(Kept { ledger, announcements, invites })
}
