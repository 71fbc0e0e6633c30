//! What the node's store keeps of a transfer. The plan and the journal are files beside it (see the parent module).

use super::progress::{Problem, State};
use crate::model::TransferId;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::store::{Store, prefix_end};
use prost::Message;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::limits::Limits;

/// Keys of transfers: this and the 16 bytes of the id.
const PREFIX: &[u8] = b"t/";
/// Key of the limits.
const LIMITS: &[u8] = b"tl";
/// Sources that are kept.
const SOURCES_MAX: usize = 64;

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    /// Which.
    pub id: TransferId,
    /// Running, paused or ended; others are not kept.
    pub state: State,
    /// For people.
    pub title: String,
    /// Where it goes.
    pub destination: PathBuf,
    /// Milliseconds since 1970.
    pub create_ms: u64,
    /// Milliseconds since 1970; 0 before.
    pub end_ms: u64,
    /// Milliseconds in which it was at work.
    pub elapsed_ms: u64,
    /// Files in all.
    pub file_count: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that were here already.
    pub local_bytes: u64,
    /// Bytes that came over the network.
    pub fetched_bytes: u64,
    /// Safe from a power cut.
    pub settled: bool,
    /// Why it failed.
    pub problem: Option<Problem>,
    /// Nodes that had some of it.
    pub sources: Vec<DeviceId>,
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    state: u32,
    #[prost(string, tag = "2")]
    title: String,
    #[prost(bytes = "vec", tag = "3")]
    destination: Vec<u8>,
    #[prost(uint64, tag = "4")]
    create_ms: u64,
    #[prost(uint64, tag = "5")]
    end_ms: u64,
    #[prost(uint64, tag = "6")]
    elapsed_ms: u64,
    #[prost(uint64, tag = "7")]
    file_count: u64,
    #[prost(uint64, tag = "8")]
    total_bytes: u64,
    #[prost(uint64, tag = "9")]
    local_bytes: u64,
    #[prost(uint64, tag = "10")]
    fetched_bytes: u64,
    #[prost(bool, tag = "11")]
    settled: bool,
    #[prost(string, repeated, tag = "12")]
    problem: Vec<String>,
    #[prost(bytes = "vec", tag = "13")]
    sources: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredLimits {
    #[prost(uint64, tag = "1")]
    upload_rate: u64,
    #[prost(uint64, tag = "2")]
    download_rate: u64,
    #[prost(string, tag = "3")]
    schedule: String,
    #[prost(bool, tag = "4")]
    yields: bool,
}

const STATES: [State; 5] = [State::Running, State::Paused, State::Done, State::Failed, State::Cancelled];

impl Record {
    fn encode(&self) -> Vec<u8> {
        let short = |text: &str| text.chars().take(500).collect::<String>();
        let state = STATES.iter().position(|s| *s == self.state).unwrap_or(0);
        let problem = self.problem.as_ref().map(|p| [&p.reason, &p.message, &p.why, &p.fix].map(|t| short(t)));
        Stored {
            state: state as u32,
            title: short(&self.title),
            destination: self.destination.as_os_str().as_bytes().to_vec(),
            create_ms: self.create_ms,
            end_ms: self.end_ms,
            elapsed_ms: self.elapsed_ms,
            file_count: self.file_count,
            total_bytes: self.total_bytes,
            local_bytes: self.local_bytes,
            fetched_bytes: self.fetched_bytes,
            settled: self.settled,
            problem: problem.map(Vec::from).unwrap_or_default(),
            sources: self.sources.iter().take(SOURCES_MAX).flat_map(|d| d.0).collect(),
        }
        .encode_to_vec()
    }

    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let id = TransferId::from_slice(key.strip_prefix(PREFIX)?)?;
        let stored = Stored::decode(value).ok()?;
        let problem = <[String; 4]>::try_from(stored.problem).ok();
        Some(Self {
            id,
            state: *STATES.get(stored.state as usize)?,
            title: stored.title,
            destination: PathBuf::from(OsString::from_vec(stored.destination)),
            create_ms: stored.create_ms,
            end_ms: stored.end_ms,
            elapsed_ms: stored.elapsed_ms,
            file_count: stored.file_count,
            total_bytes: stored.total_bytes,
            local_bytes: stored.local_bytes,
            fetched_bytes: stored.fetched_bytes,
            settled: stored.settled,
            problem: problem.map(|[reason, message, why, fix]| Problem { reason, message, why, fix }),
            sources: stored.sources.chunks_exact(32).filter_map(|d| Some(DeviceId(d.try_into().ok()?))).collect(),
        })
    }

    fn key(id: &TransferId) -> Vec<u8> {
        [PREFIX, id.as_bytes()].concat()
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn save(&self, store: &Store) -> Result<()> {
        let (key, value) = (Self::key(&self.id), self.encode());
        store.transact(move |txn| txn.put(key.clone(), value.clone())).await?;
        Ok(())
    }

    /// Removes it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove(id: TransferId, store: &Store) -> Result<()> {
        store.transact(move |txn| txn.delete(Self::key(&id))).await?;
        Ok(())
    }

    /// All of them, oldest first.
    ///
    /// # Errors
    /// STORE_CORRUPT if one cannot be read; those of the store.
    pub fn all(store: &Store) -> Result<Vec<Self>> {
        let damaged = || Error::new(Reason::StoreCorrupt, "the record of a transfer is damaged");
        let records = store.range(PREFIX, &prefix_end(PREFIX), 20_000)?;
        records.iter().map(|(key, value)| Self::decode(key, value).ok_or_else(damaged)).collect()
    }
}

/// The limits that the user has set.
///
/// # Errors
/// Those of the store.
pub fn load_limits(store: &Store) -> Result<Option<Limits>> {
    let Some(value) = store.get(LIMITS)? else { return Ok(None) };
    let stored = StoredLimits::decode(value).map_err(|_| Error::new(Reason::StoreCorrupt, "the limits are damaged"))?;
    let StoredLimits { upload_rate, download_rate, schedule, yields } = stored;
    Ok(Some(Limits { upload_rate, download_rate, schedule, yields }))
}

/// Keeps them.
///
/// # Errors
/// Those of the store.
pub async fn save_limits(store: &Store, limits: &Limits) -> Result<()> {
    let Limits { upload_rate, download_rate, schedule, yields } = limits.clone();
    let value = StoredLimits { upload_rate, download_rate, schedule, yields }.encode_to_vec();
    store.transact(move |txn| txn.put(LIMITS, value.clone())).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_and_limits_are_read_back() {
        let store = Store::memory();
        let record = Record {
            id: TransferId::generate(),
            state: State::Failed,
            title: "plans".into(),
            destination: "/home/anna/Plans".into(),
            create_ms: 1,
            end_ms: 2,
            elapsed_ms: 3,
            file_count: 4,
            total_bytes: 5,
            local_bytes: 6,
            fetched_bytes: 7,
            settled: true,
            problem: Some(Problem { reason: "A".into(), message: "b".into(), why: "c".into(), fix: "d".into() }),
            sources: vec![DeviceId([1; 32]), DeviceId([2; 32])],
        };
        record.save(&store).await.unwrap();
        assert_eq!(Record::all(&store).unwrap(), std::slice::from_ref(&record));
        Record::remove(record.id, &store).await.unwrap();
        assert!(Record::all(&store).unwrap().is_empty());
        assert_eq!(load_limits(&store).unwrap(), None);
        let limits = Limits { upload_rate: 1, download_rate: 2, schedule: "mon".into(), yields: true };
        save_limits(&store, &limits).await.unwrap();
        assert_eq!(load_limits(&store).unwrap(), Some(limits));
    }
}
