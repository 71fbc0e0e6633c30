//! A parcel as its sender states it: encoding, signature, checks.

use super::unknown;
use crate::model::{Content, OfficeId, ParcelId};
use crate::transfer::order::{MAX_FILES, check_path};
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::{ChunkId, ChunkRef, DeviceId};
use common::wire::{ms_from_timestamp, timestamp_from_ms};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use prost::Message;
use proto::peer::v1 as peer;

/// Largest description of a parcel: about 100,000 files, or 400 GiB of content.
pub const MAX_PARCEL_BYTES: usize = 16 * 1024 * 1024;
/// Most receivers.
pub const MAX_RECEIVERS: usize = 1_000;
/// Longest note and title, in bytes.
const MAX_TEXT: usize = 4_096;
/// What a parcel's signature is over, before its bytes.
const PARCEL_CONTEXT: &[u8] = b"atrium parcel v1\0";
/// What a receipt's signature is over, before its bytes.
const RECEIPT_CONTEXT: &[u8] = b"atrium receipt v1\0";

/// A file or directory of a parcel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParcelFile {
    /// '/'-separated; the first segment is what stands in the inbox.
    pub path: String,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Unix permission bits.
    pub mode: u32,
    /// What is in it; `None` for a directory.
    pub content: Option<Content>,
}

/// Contents of a parcel for a keeper: encrypted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// For each receiver, in their order: the parcel's key, for that device only.
    pub keys: Vec<Vec<u8>>,
    /// The encrypted content.
    pub content: Content,
}

/// A checked parcel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parcel {
    /// Which.
    pub id: ParcelId,
    /// Who sends it.
    pub sender: DeviceId,
    /// The sender's key.
    pub sender_key: [u8; 32],
    /// In which office.
    pub office: OfficeId,
    /// To whom.
    pub receivers: Vec<DeviceId>,
    /// A word.
    pub note: String,
    /// What it is called.
    pub title: String,
    /// When it was sent, by the sender's clock.
    pub create_ms: u64,
    /// Seconds after which it is given up.
    pub lifetime_seconds: u64,
    /// What is in it; nothing if it is sealed.
    pub files: Vec<ParcelFile>,
    /// Bytes of content.
    pub total_bytes: u64,
    /// The form for keepers.
    pub sealed: Option<Sealed>,
}

impl Parcel {
    /// Encodes and signs it.
    ///
    /// # Errors
    /// PARCEL_TOO_LARGE.
    pub fn sign(&self, key: &DeviceKey) -> Result<peer::SignedParcel> {
        let parcel = self.wire().encode_to_vec();
        if parcel.len() > MAX_PARCEL_BYTES {
            return Err(Error::new(Reason::ParcelTooLarge, "the parcel's list of files is longer than 16 MiB"));
        }
        let signature = key.sign(&[PARCEL_CONTEXT, &parcel].concat()).to_vec();
        Ok(peer::SignedParcel { parcel: parcel.into(), signature: signature.into() })
    }

    /// Decodes and checks everything that can be checked without knowing the office.
    ///
    /// # Errors
    /// PARCEL_INVALID.
    pub fn verify(signed: &peer::SignedParcel) -> Result<Self> {
        if signed.parcel.len() > MAX_PARCEL_BYTES {
            return Err(wrong("it is longer than 16 MiB"));
        }
        let wire = peer::Parcel::decode(signed.parcel.clone()).map_err(|_| wrong("it cannot be decoded"))?;
        let sender_key: [u8; 32] = wire.sender_key[..].try_into().map_err(|_| wrong("its sender has no key"))?;
        check_signature(&sender_key, PARCEL_CONTEXT, &signed.parcel, &signed.signature)?;
        Self::read(wire, sender_key)
    }

    fn read(wire: peer::Parcel, sender_key: [u8; 32]) -> Result<Self> {
        let id = ParcelId::from_slice(&wire.parcel_id).ok_or_else(|| wrong("it has no id"))?;
        let office = OfficeId(wire.office_id[..].try_into().map_err(|_| wrong("it names no office"))?);
        if wire.receivers.is_empty() || wire.receivers.len() > MAX_RECEIVERS {
            return Err(wrong("it has no receivers, or more than 1,000"));
        }
        let device = |d: &bytes::Bytes| d[..].try_into().map(DeviceId).map_err(|_| wrong("a receiver is malformed"));
        let receivers = wire.receivers.iter().map(device).collect::<Result<Vec<_>>>()?;
        let long = |text: &str| text.len() > MAX_TEXT || text.chars().any(|c| c.is_control() && c != '\n');
        if long(&wire.note) || long(&wire.title) {
            return Err(wrong("its note or title is too long or has control characters"));
        }
        let sealed = wire.sealing.map(|s| read_sealing(s, receivers.len())).transpose()?;
        let files = wire.entries.into_iter().map(read_entry).collect::<Result<Vec<_>>>()?;
        if files.len() > MAX_FILES || (sealed.is_some() != files.is_empty()) {
            return Err(wrong("it must be sealed, or have files"));
        }
        let sum = |files: &[ParcelFile]| files.iter().filter_map(|f| f.content.as_ref()).map(|c| c.size_bytes).sum();
        let total: u64 = sealed.as_ref().map_or_else(|| sum(&files), |s| s.content.size_bytes);
        if total != wire.total_bytes {
            return Err(wrong("its size is not the sum of its files"));
        }
        Ok(Self {
            id,
            sender: DeviceId::of_key(&sender_key),
            sender_key,
            office,
            receivers,
            note: wire.note,
            title: wire.title,
            create_ms: wire.create_time.as_ref().map_or(0, to_ms),
            lifetime_seconds: wire.lifetime_seconds,
            files,
            total_bytes: total,
            sealed,
        })
    }

    fn wire(&self) -> peer::Parcel {
        peer::Parcel {
            parcel_id: self.id.as_bytes().to_vec().into(),
            sender_key: self.sender_key.to_vec().into(),
            office_id: self.office.0.to_vec().into(),
            receivers: self.receivers.iter().map(|d| d.0.to_vec().into()).collect(),
            note: self.note.clone(),
            title: self.title.clone(),
            create_time: Some(timestamp_from_ms(self.create_ms)),
            lifetime_seconds: self.lifetime_seconds,
            entries: self.files.iter().map(wire_entry).collect(),
            total_bytes: self.total_bytes,
            sealing: self.sealed.as_ref().map(|s| peer::Sealing {
                keys: s.keys.iter().map(|k| k.clone().into()).collect(),
                chunks: ChunkRef::encode_all(&s.content.chunks).into(),
            }),
        }
    }

    /// Position of a device among the receivers.
    pub fn receiver(&self, device: &DeviceId) -> Option<usize> {
        self.receivers.iter().position(|d| d == device)
    }

    /// Milliseconds since 1970 from which on nobody needs to keep it.
    pub fn expire_ms(&self) -> u64 {
        let seconds = if self.lifetime_seconds == 0 { 30 * 86_400 } else { self.lifetime_seconds.min(366 * 86_400) };
        self.create_ms.saturating_add(seconds * 1_000)
    }

    /// The chunks of the sealed form; none if it is not sealed.
    pub fn sealed_chunks(&self) -> Vec<ChunkRef> {
        self.sealed.as_ref().map(|s| s.content.chunks.to_vec()).unwrap_or_default()
    }

    /// All chunks in the order of the content file: each once, where it comes first.
    pub fn distinct_chunks(&self) -> Vec<ChunkRef> {
        let mut seen = std::collections::HashSet::new();
        let all = self.files.iter().filter_map(|f| f.content.as_ref()).flat_map(|c| c.chunks.iter());
        all.filter(|c| seen.insert(c.id)).copied().collect()
    }
}

fn wrong(why: &'static str) -> Error {
    Error::new(Reason::ParcelInvalid, "a parcel is malformed").why_is(why)
}

/// Checks an Ed25519 signature, strictly (RFC 8032 section 5.1.7 without the variants that have more than one form).
fn check_signature(key: &[u8; 32], context: &[u8], message: &[u8], signature: &[u8]) -> Result<()> {
    let bad = || wrong("its signature does not match");
    let key = VerifyingKey::from_bytes(key).map_err(|_| bad())?;
    let signature = Signature::from_slice(signature).map_err(|_| bad())?;
    if key.is_weak() {
        return Err(bad());
    }
    key.verify(&[context, message].concat(), &signature).map_err(|_| bad())
}

fn read_sealing(wire: peer::Sealing, receivers: usize) -> Result<Sealed> {
    if wire.keys.len() != receivers || wire.keys.iter().any(|k| k.len() > 256) {
        return Err(wrong("it is not sealed to its receivers"));
    }
    let chunks = ChunkRef::decode_all(&wire.chunks).ok_or_else(|| wrong("its chunks are malformed"))?;
    Ok(Sealed { keys: wire.keys.into_iter().map(|k| k.to_vec()).collect(), content: Content::of(chunks) })
}

fn read_entry(entry: peer::IndexEntry) -> Result<ParcelFile> {
    check_path(&entry.path)?;
    let content = match entry.kind() {
        peer::EntryKind::Directory => None,
        peer::EntryKind::File => {
            let chunk = |c: &proto::v1::Chunk| {
                let id = ChunkId::from_slice(&c.digest)?;
                let fits = (1..=common::model::MAX_CHUNK_BYTES as u32).contains(&c.length_bytes);
                fits.then_some(ChunkRef { id, len: c.length_bytes })
            };
            let chunks: Option<Vec<ChunkRef>> = entry.chunks.iter().map(chunk).collect();
            let content = Content::of(chunks.ok_or_else(|| wrong("a chunk is malformed"))?);
            if content.size_bytes != entry.size_bytes {
                return Err(wrong("a file's size is not the sum of its chunks"));
            }
            Some(content)
        }
        peer::EntryKind::Unspecified => return Err(wrong("an entry is neither file nor directory")),
    };
    Ok(ParcelFile { path: entry.path, mtime_ns: entry.modify_time_ns, mode: entry.mode & 0o777, content })
}

fn wire_entry(file: &ParcelFile) -> peer::IndexEntry {
    let kind = if file.content.is_some() { peer::EntryKind::File } else { peer::EntryKind::Directory };
    let chunks: &[ChunkRef] = file.content.as_ref().map_or(&[], |c| &c.chunks);
    peer::IndexEntry {
        path: file.path.clone(),
        kind: kind.into(),
        size_bytes: file.content.as_ref().map_or(0, |c| c.size_bytes),
        modify_time_ns: file.mtime_ns,
        mode: file.mode,
        chunks: chunks
            .iter()
            .map(|c| proto::v1::Chunk { digest: c.id.0.to_vec().into(), length_bytes: c.len })
            .collect(),
        chunk_count: chunks.len() as u32,
        ..Default::default()
    }
}

/// For people only: a time that makes no sense is none.
fn to_ms(time: &prost_types::Timestamp) -> u64 {
    ms_from_timestamp(time, "create_time").unwrap_or(0)
}

/// What became of a parcel at one receiver, as the receiver states it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// Which parcel.
    pub parcel: ParcelId,
    /// Who states it.
    pub receiver: DeviceId,
    /// All of it is there; otherwise it was refused.
    pub delivered: bool,
    /// When, by the receiver's clock.
    pub create_ms: u64,
    /// For people.
    pub message: String,
}

impl Receipt {
    /// Encodes and signs it.
    pub fn sign(&self, key: &DeviceKey) -> peer::Receipt {
        let body = peer::ReceiptBody {
            parcel_id: self.parcel.as_bytes().to_vec().into(),
            receiver_key: key.public_key().to_vec().into(),
            delivered: self.delivered,
            refused: !self.delivered,
            create_time: Some(timestamp_from_ms(self.create_ms)),
            message: self.message.clone(),
        };
        let body = body.encode_to_vec();
        let signature = key.sign(&[RECEIPT_CONTEXT, &body].concat()).to_vec();
        peer::Receipt { body: body.into(), signature: signature.into() }
    }

    /// Decodes and checks it.
    ///
    /// # Errors
    /// PARCEL_INVALID; PARCEL_UNKNOWN without an id.
    pub fn verify(signed: &peer::Receipt) -> Result<Self> {
        if signed.body.len() > 16 * 1024 {
            return Err(wrong("a receipt is longer than 16 KiB"));
        }
        let body = peer::ReceiptBody::decode(signed.body.clone()).map_err(|_| wrong("a receipt cannot be decoded"))?;
        let key: [u8; 32] = body.receiver_key[..].try_into().map_err(|_| wrong("a receipt names no receiver"))?;
        check_signature(&key, RECEIPT_CONTEXT, &signed.body, &signed.signature)?;
        if body.delivered == body.refused {
            return Err(wrong("a receipt says neither delivered nor refused"));
        }
        Ok(Self {
            parcel: ParcelId::from_slice(&body.parcel_id).ok_or_else(unknown)?,
            receiver: DeviceId::of_key(&key),
            delivered: body.delivered,
            create_ms: body.create_time.as_ref().map_or(0, to_ms),
            message: body.message.chars().filter(|c| !c.is_control()).take(512).collect(),
        })
    }
}

/// For fuzzing: reads bytes as a parcel whose signature is good, and writes what could be read again.
///
/// # Panics
/// If what could be read is read in another way once it was written, or has a path that leaves its folder.
pub fn fuzz_parcel(bytes: &[u8]) {
    let Ok(wire) = peer::Parcel::decode(bytes) else { return };
    if let Ok(parcel) = Parcel::read(wire, [7; 32]) {
        assert!(parcel.files.iter().all(|f| f.path.split('/').all(|s| !matches!(s, "" | "." | ".."))));
        assert!(parcel.expire_ms() >= parcel.create_ms);
        let _ = (parcel.sealed_chunks(), parcel.distinct_chunks());
        assert_eq!(Parcel::read(parcel.wire(), [7; 32]).ok(), Some(parcel));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn parcel(key: &DeviceKey) -> Parcel {
        let content = Content::of(vec![ChunkRef { id: ChunkId::of(b"abc"), len: 3 }]);
        Parcel {
            id: ParcelId::generate(),
            sender: key.device_id(),
            sender_key: key.public_key(),
            office: OfficeId([7; 32]),
            receivers: vec![DeviceId([1; 32]), DeviceId([2; 32])],
            note: "for tomorrow".into(),
            title: "plans".into(),
            create_ms: 1_700_000_000_123,
            lifetime_seconds: 0,
            files: vec![
                ParcelFile { path: "plans".into(), mtime_ns: 0, mode: 0o755, content: None },
                ParcelFile { path: "plans/a.pdf".into(), mtime_ns: -5, mode: 0o640, content: Some(content) },
            ],
            total_bytes: 3,
            sealed: None,
        }
    }

    #[test]
    fn a_signed_parcel_comes_back_and_nothing_in_it_can_be_changed() {
        let key = DeviceKey::generate();
        let original = parcel(&key);
        let signed = original.sign(&key).unwrap();
        assert_eq!(Parcel::verify(&signed).unwrap(), original);
        for at in 0..signed.parcel.len() {
            let mut bytes = signed.parcel.to_vec();
            bytes[at] ^= 1;
            let changed = peer::SignedParcel { parcel: bytes.into(), signature: signed.signature.clone() };
            assert!(Parcel::verify(&changed).unwrap_err().is(Reason::ParcelInvalid), "byte {at}");
        }
        let other = DeviceKey::generate();
        let stolen = Parcel { sender_key: key.public_key(), ..parcel(&key) }.sign(&other).unwrap();
        assert!(Parcel::verify(&stolen).is_err(), "signed by someone else than it says");
    }

    #[test]
    fn hostile_parcels_are_refused_though_they_are_signed() {
        let key = DeviceKey::generate();
        let refused = |change: &dyn Fn(&mut Parcel)| {
            let mut parcel = parcel(&key);
            change(&mut parcel);
            Parcel::verify(&parcel.sign(&key).unwrap()).unwrap_err();
        };
        refused(&|p| p.files[1].path = "../../etc/passwd".into());
        refused(&|p| p.files[1].path = "/etc/passwd".into());
        refused(&|p| p.files.clear());
        refused(&|p| p.receivers.clear());
        refused(&|p| p.receivers = vec![DeviceId([1; 32]); MAX_RECEIVERS + 1]);
        refused(&|p| p.total_bytes = 4);
        refused(&|p| p.title = "a\u{1b}[31m".into());
        refused(&|p| p.note = "x".repeat(5_000));
        refused(&|p| p.sealed = Some(Sealed { keys: vec![], content: Content::of(vec![]) }));
    }

    #[test]
    fn a_receipt_comes_back_and_cannot_be_forged() {
        let key = DeviceKey::generate();
        let receipt = Receipt {
            parcel: ParcelId::generate(),
            receiver: key.device_id(),
            delivered: true,
            create_ms: 5,
            message: String::new(),
        };
        let signed = receipt.sign(&key);
        assert_eq!(Receipt::verify(&signed).unwrap(), receipt);
        let mut forged = signed;
        forged.signature = DeviceKey::generate().sign(b"x").to_vec().into();
        assert!(Receipt::verify(&forged).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(parcel in any::<Vec<u8>>(), signature in any::<Vec<u8>>()) {
            let signed = peer::SignedParcel { parcel: parcel.clone().into(), signature: signature.clone().into() };
            prop_assert!(Parcel::verify(&signed).is_err());
            if let Ok(wire) = peer::Parcel::decode(&parcel[..]) {
                let _ = Parcel::read(wire, [0; 32]);
            }
            let receipt = peer::Receipt { body: parcel.into(), signature: signature.into() };
            prop_assert!(Receipt::verify(&receipt).is_err());
        }
    }
}
