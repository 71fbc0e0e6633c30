//! Small records in files of their own: JSON behind a checksum, replaced in one step.

use super::{Kind, PlaceId};
use crate::model::Caller;
use common::chunk::disk::{Disk, write_whole};
use common::error::{Error, Reason, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest record.
const RECORD_MAX: u64 = 1 << 20;
const DERIVE: &str = "atrium 2026-11 record of a lender";

/// What is kept of a place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct PlaceRecord {
    pub(super) kind: Kind,
    pub(super) owner: Caller,
    pub(super) label: String,
    pub(super) bytes: u64,
    /// In the lender's time; none for a mirror.
    pub(super) ends_ms: Option<u64>,
    pub(super) retention_ms: u64,
    pub(super) state: State,
    /// The lowest generation of a mirror that may be new: those below were there once.
    pub(super) generation: u64,
}

/// What has become of a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// It is there.
    Live,
    /// It is being wiped: what is left of it goes.
    Wiping,
    /// It was wiped at this time of the lender; remembered for a while, to say so.
    Wiped(u64),
}

pub(super) fn place_name(id: PlaceId) -> String {
    format!("place-{id}")
}

fn sum(name: &str, json: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key(DERIVE);
    hasher.update(name.as_bytes()).update(&[0]).update(json);
    hasher.finalize()
}

/// Writes a record; on disk when this returns.
pub(super) fn write(disk: &dyn Disk, name: &str, record: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec(record).map_err(|e| Error::internal("a record was not written").caused_by(e))?;
    let mut bytes = sum(name, &json).to_hex().as_bytes().to_vec();
    bytes.push(b'\n');
    bytes.extend_from_slice(&json);
    Ok(write_whole(disk, name, &bytes)?)
}

/// Reads a record; `None` if there is none.
///
/// # Errors
/// `STORE_CORRUPT` if it is damaged.
pub(super) fn read<T: DeserializeOwned>(disk: &dyn Disk, name: &str) -> Result<Option<T>> {
    let file = match disk.open(name) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let damaged = || Error::new(Reason::StoreCorrupt, "a record of the lender is damaged");
    let len = file.len()?;
    if len > RECORD_MAX {
        return Err(damaged());
    }
    let bytes = file.read_at(0, len as usize)?;
    let (head, json) = bytes.split_at_checked(65).ok_or_else(damaged)?;
    if head[..64] != *sum(name, json).to_hex().as_bytes() || head[64] != b'\n' {
        return Err(damaged());
    }
    serde_json::from_slice(json).map(Some).map_err(|e| damaged().caused_by(e))
}
