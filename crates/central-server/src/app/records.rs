//! Records of identity and security in the store: their keys, and reading and writing them.
//!
//! | key | value |
//! | --- | --- |
//! | `u/NAME` | User; stays after deletion so that the name is never given again |
//! | `g/NAME` | Group |
//! | `n/UID` | name of the user or group with this id: `u` or `g`, then the name |
//! | `h/USER_UID GROUP_UID` | the user is in the group; the group's name |
//! | `k/NAME` | the user is an enabled administrator |
//! | `x/HASH` | Session |
//! | `y/USER_UID SESSION_ID` | hash of the user's session |
//! | `j/SESSION_ID` | hash of the session |
//! | `i/NAMEPLATE` | Invite |
//! | `m/DEVICE_ID` | Device |
//! | `r/HASH` | Answer |
//! | `e/EXPIRE_MS KEY` | the record under KEY ends then |
//! | `a/SEQUENCE` | Audit |
//! | `b/` | Audit with only sequence and hash: the head of the chain |
//!
//! Ids and hashes are raw bytes, numbers are big-endian. Every index entry is written in the transaction that writes the
//! record it belongs to.

use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::store::{Store, Txn, prefix_end};
use prost::Message;
use uuid::Uuid;

/// What can be read: the store as it was last made durable, or a transaction with its own writes.
pub trait View {
    /// One record.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;
    /// `from <= key < to`, ascending.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>>;
    /// The same, descending.
    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>>;
}

impl View for Store {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Store::get(self, key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        Store::range(self, from, to, limit)
    }
    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        Store::range_back(self, from, to, limit)
    }
}

impl View for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Txn::get(self, key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        Txn::range(self, from, to, limit)
    }
    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        Txn::range_back(self, from, to, limit)
    }
}

/// Reads a record.
///
/// # Errors
/// `STORE_CORRUPT` if the bytes are not such a record.
pub fn load<M: Message + Default>(view: &impl View, key: &[u8]) -> Result<Option<M>> {
    view.get(key)?.map(decode).transpose()
}

/// Reads a record's bytes.
///
/// # Errors
/// `STORE_CORRUPT`.
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M> {
    M::decode(bytes).map_err(|e| Error::new(Reason::StoreCorrupt, "a record could not be read").caused_by(e))
}

/// Writes a record.
///
/// # Errors
/// `STORE_LIMIT`.
pub fn save<M: Message>(txn: &mut Txn<'_>, key: &[u8], record: &M) -> Result<()> {
    txn.put(key, record.encode_to_vec())
}

/// Everything under a prefix, at most `limit`.
///
/// # Errors
/// Those of the store.
pub fn under(view: &impl View, prefix: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
    view.range(prefix, &prefix_end(prefix), limit)
}

/// An id out of a record.
///
/// # Errors
/// `STORE_CORRUPT` if it has not 16 bytes.
pub fn uuid(bytes: &[u8]) -> Result<Uuid> {
    Uuid::from_slice(bytes).map_err(|e| Error::new(Reason::StoreCorrupt, "a stored id is damaged").caused_by(e))
}

fn joined(prefix: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut key = prefix.to_vec();
    parts.iter().for_each(|p| key.extend_from_slice(p));
    key
}

/// `u/NAME`
pub fn user_key(name: &str) -> Vec<u8> {
    joined(b"u/", &[name.as_bytes()])
}
/// `g/NAME`
pub fn group_key(name: &str) -> Vec<u8> {
    joined(b"g/", &[name.as_bytes()])
}
/// `n/UID`
pub fn name_key(uid: Uuid) -> Vec<u8> {
    joined(b"n/", &[uid.as_bytes()])
}
/// `h/USER_UID GROUP_UID`
pub fn membership_key(user: Uuid, group: Uuid) -> Vec<u8> {
    joined(b"h/", &[user.as_bytes(), group.as_bytes()])
}
/// All memberships of a user.
pub fn memberships_of(user: Uuid) -> Vec<u8> {
    joined(b"h/", &[user.as_bytes()])
}
/// `k/NAME`
pub fn admin_key(name: &str) -> Vec<u8> {
    joined(b"k/", &[name.as_bytes()])
}
/// `x/HASH`
pub fn session_key(hash: &[u8]) -> Vec<u8> {
    joined(b"x/", &[hash])
}
/// `y/USER_UID SESSION_ID`
pub fn session_of_key(user: Uuid, session: Uuid) -> Vec<u8> {
    joined(b"y/", &[user.as_bytes(), session.as_bytes()])
}
/// All sessions of a user.
pub fn sessions_of(user: Uuid) -> Vec<u8> {
    joined(b"y/", &[user.as_bytes()])
}
/// `j/SESSION_ID`
pub fn session_id_key(session: Uuid) -> Vec<u8> {
    joined(b"j/", &[session.as_bytes()])
}
/// `i/NAMEPLATE`
pub fn invite_key(nameplate: &str) -> Vec<u8> {
    joined(b"i/", &[nameplate.as_bytes()])
}
/// `m/DEVICE_ID`, or the beginning of such keys.
pub fn device_key(id: &str) -> Vec<u8> {
    joined(b"m/", &[id.as_bytes()])
}
/// `r/HASH`
pub fn answer_key(hash: &[u8; 32]) -> Vec<u8> {
    joined(b"r/", &[hash])
}
/// `e/EXPIRE_MS KEY`
pub fn expiry_key(expire_ms: u64, key: &[u8]) -> Vec<u8> {
    joined(b"e/", &[&expire_ms.to_be_bytes(), key])
}
/// `a/SEQUENCE`
pub fn audit_key(sequence: u64) -> Vec<u8> {
    joined(b"a/", &[&sequence.to_be_bytes()])
}
/// The head of the audit chain.
pub const AUDIT_HEAD: &[u8] = b"b/";
/// `s/home/NAME`
pub fn home_key(user: &str) -> Vec<u8> {
    joined(b"s/home/", &[user.as_bytes()])
}
/// `q/ROOT_UID`
pub fn usage_key(root: &[u8]) -> Vec<u8> {
    joined(b"q/", &[root])
}
