//! How records lie in the engine: key spaces, the envelope around every value, the header and the totals.
//!
//! Every key begins with one byte that names its space, so that what callers store and what the store keeps for itself
//! can never collide. Every value has an envelope: one byte with the version of the written format, eight bytes of
//! checksum (BLAKE3 over key length, key, format byte and payload), then the payload. The key is part of the sum, so a
//! value that turns up under another key is noticed as well.

use bytes::Bytes;

use crate::error::{Error, Reason, Result};

/// Space of the header and the totals; not part of the totals themselves.
pub(super) const SPACE_STORE: u8 = 0x00;
/// Space of the change log.
pub(super) const SPACE_LOG: u8 = 0x01;
/// Space of the caller's records.
pub(super) const SPACE_USER: u8 = 0x02;
/// First key behind all spaces.
pub(super) const END: &[u8] = &[0x03];

/// Key of [`Header`].
pub(super) const HEADER_KEY: &[u8] = &[SPACE_STORE, b'h'];
/// Key of [`Meta`].
pub(super) const META_KEY: &[u8] = &[SPACE_STORE, b'm'];

/// Version of the layout that this file describes.
pub(super) const FORMAT: u8 = 1;
/// Format byte and checksum in front of a payload.
pub(super) const ENVELOPE: usize = 9;

fn checksum(key: &[u8], payload: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u32).to_le_bytes());
    hasher.update(key);
    hasher.update(&[FORMAT]);
    hasher.update(payload);
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

/// The stored form of a payload.
pub(super) fn seal(key: &[u8], payload: &[u8]) -> Bytes {
    let mut raw = Vec::with_capacity(ENVELOPE + payload.len());
    raw.push(FORMAT);
    raw.extend_from_slice(&checksum(key, payload));
    raw.extend_from_slice(payload);
    Bytes::from(raw)
}

/// The payload in a stored value.
///
/// # Errors
/// `STORE_CORRUPT` if the envelope is short, of an unknown format or does not match.
pub(super) fn open(key: &[u8], raw: &Bytes) -> Result<Bytes> {
    check(key, raw)?;
    Ok(raw.slice(ENVELOPE..))
}

/// Checks a stored value without taking it.
pub(super) fn check(key: &[u8], raw: &[u8]) -> Result<()> {
    let what = if raw.len() < ENVELOPE {
        "a record is cut short"
    } else if raw[0] != FORMAT {
        "a record has an unknown format"
    } else if raw[1..ENVELOPE] != checksum(key, &raw[ENVELOPE..]) {
        "a record does not match its checksum"
    } else {
        return Ok(());
    };
    Err(Error::new(Reason::StoreCorrupt, what).with("key", readable(key)))
}

/// The checksum as it is stored; 0 if the value is too short to have one.
pub(super) fn stored_sum(raw: &[u8]) -> u64 {
    raw.get(1..ENVELOPE).and_then(|s| s.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A key for logs and errors: printable ASCII as it is, everything else as `\xNN`, at most 128 bytes of the key.
pub(super) fn readable(key: &[u8]) -> String {
    let shown = &key[..key.len().min(128)];
    shown.escape_ascii().to_string()
}

/// The caller's key with its space in front.
pub(super) fn user_key(key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(key.len() + 1);
    full.push(SPACE_USER);
    full.extend_from_slice(key);
    full
}

/// The caller's upper bound with its space in front; an empty bound means the end of the space.
pub(super) fn user_bound(to: &[u8]) -> Vec<u8> {
    if to.is_empty() { vec![SPACE_USER + 1] } else { user_key(to) }
}

/// Written once and rewritten only when the schema rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Schema of the caller's records.
    pub schema: u32,
    /// Chosen at random when the store was made or imported: revisions of two instances have nothing to do with each other.
    pub instance: [u8; 16],
}

const HEADER_MAGIC: &[u8; 8] = b"ATRSTORE";

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = HEADER_MAGIC.to_vec();
        out.extend_from_slice(&u32::from(FORMAT).to_le_bytes());
        out.extend_from_slice(&self.schema.to_le_bytes());
        out.extend_from_slice(&self.instance);
        out
    }

    /// # Errors
    /// `STORE_TOO_NEW` for a later layout, `STORE_CORRUPT` for anything else that is not a header.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let bad = || Error::new(Reason::StoreCorrupt, "the store's header is unreadable");
        if payload.get(..8) != Some(HEADER_MAGIC.as_slice()) {
            return Err(bad());
        }
        let format = read_u32(payload, 8).ok_or_else(bad)?;
        if format > u32::from(FORMAT) {
            return Err(Error::new(
                Reason::StoreTooNew,
                format!("the store has layout {format}, this program knows {FORMAT}"),
            ));
        }
        let schema = read_u32(payload, 12).ok_or_else(bad)?;
        let instance = payload.get(16..32).and_then(|s| s.try_into().ok()).ok_or_else(bad)?;
        Ok(Self { schema, instance })
    }
}

/// What the store knows about itself; rewritten in every batch, so it always fits the records beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// Last revision.
    pub revision: u64,
    /// Changes up to and including this revision have been trimmed.
    pub oldest: u64,
    /// The caller's records.
    pub records: u64,
    /// Keys and payloads of the caller's records.
    pub bytes: u64,
    /// Blocks of the change log.
    pub log_blocks: u64,
    /// Sum (modulo 2^64) of the checksums of all records and log blocks: finds lost and resurrected records.
    pub sum: u64,
}

impl Meta {
    pub fn encode(&self) -> Vec<u8> {
        let fields = [self.revision, self.oldest, self.records, self.bytes, self.log_blocks, self.sum];
        fields.iter().flat_map(|f| f.to_le_bytes()).collect()
    }

    /// # Errors
    /// `STORE_CORRUPT` if the length is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let field = |i: usize| {
            read_u64(payload, i * 8)
                .ok_or_else(|| Error::new(Reason::StoreCorrupt, "the store's totals are unreadable"))
        };
        Ok(Self {
            revision: field(0)?,
            oldest: field(1)?,
            records: field(2)?,
            bytes: field(3)?,
            log_blocks: field(4)?,
            sum: field(5)?,
        })
    }

    /// Counts a stored value in.
    pub fn add(&mut self, key: &[u8], raw: &[u8]) {
        self.sum = self.sum.wrapping_add(stored_sum(raw));
        if key.first() == Some(&SPACE_USER) {
            self.records += 1;
            self.bytes += logical_len(key, raw);
        } else {
            self.log_blocks += 1;
        }
    }

    /// Counts a stored value out.
    pub fn remove(&mut self, key: &[u8], raw: &[u8]) {
        self.sum = self.sum.wrapping_sub(stored_sum(raw));
        if key.first() == Some(&SPACE_USER) {
            self.records = self.records.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(logical_len(key, raw));
        } else {
            self.log_blocks = self.log_blocks.saturating_sub(1);
        }
    }
}

fn logical_len(key: &[u8], raw: &[u8]) -> u64 {
    (key.len().saturating_sub(1) + raw.len().saturating_sub(ENVELOPE)) as u64
}

pub(super) fn read_u32(from: &[u8], at: usize) -> Option<u32> {
    from.get(at..at.checked_add(4)?).and_then(|s| s.try_into().ok()).map(u32::from_le_bytes)
}

pub(super) fn read_u64(from: &[u8], at: usize) -> Option<u64> {
    from.get(at..at.checked_add(8)?).and_then(|s| s.try_into().ok()).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let raw = seal(b"\x02key", b"payload");
        assert_eq!(open(b"\x02key", &raw).unwrap(), &b"payload"[..]);
        for bit in 0..raw.len() * 8 {
            let mut hurt = raw.to_vec();
            hurt[bit / 8] ^= 1 << (bit % 8);
            let error = open(b"\x02key", &Bytes::from(hurt)).unwrap_err();
            assert!(error.is(Reason::StoreCorrupt), "bit {bit}");
        }
        assert!(open(b"\x02kez", &raw).is_err(), "a value under another key");
        for cut in 0..raw.len() {
            assert!(open(b"\x02key", &raw.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn header_and_totals_survive_a_round_trip() {
        let header = Header { schema: 7, instance: [9; 16] };
        assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        let mut newer = header.encode();
        newer[8] = FORMAT + 1;
        assert!(Header::decode(&newer).unwrap_err().is(Reason::StoreTooNew));
        assert!(Header::decode(b"ATRSTOR").unwrap_err().is(Reason::StoreCorrupt));
        let meta = Meta { revision: 1, oldest: 2, records: 3, bytes: 4, log_blocks: 5, sum: 6 };
        assert_eq!(Meta::decode(&meta.encode()).unwrap(), meta);
        assert!(Meta::decode(&meta.encode()[..47]).is_err());
    }
}
