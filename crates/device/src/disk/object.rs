//! Files of objects.
//!
//! An object of scratch space has a header of 512 bytes, then blocks of up to 128 KiB, each behind its own checksum over
//! number and content. So what has landed of an upload can be told after a crash without trusting lengths, and a read
//! verifies just the blocks that it touches.
//!
//! ```text
//! 0    magic "ATLENT01"      8   place (16)      24  sequence u64     32  size u64
//! 40   BLAKE3 of the content 72  length of the name u16               74  name       480 checksum of all before
//! ```
//!
//! An object of a mirror has a header of 84 bytes: magic "ATMIRO01", id (32), length u32, time of storing u64, checksum (32)
//! over all that and the content. All numbers are little-endian.

use super::PlaceId;
use super::mirror::place::ObjectId;
use common::chunk::disk::DiskFile;
use common::model::EntryName;

/// Bytes in front of a scratch object.
pub(super) const HEADER: u64 = 512;
/// Content of a block.
pub(super) const BLOCK: u64 = 128 << 10;
const SUM: u64 = 32;
const SUMMED: usize = 480;
const MAGIC: &[u8; 8] = b"ATLENT01";

/// Bytes in front of a mirror object.
pub(super) const MIRROR_HEADER: u64 = 84;
const MIRROR_MAGIC: &[u8; 8] = b"ATMIRO01";

/// What a scratch object's file says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) place: PlaceId,
    /// Of two objects of one name, the later one counts.
    pub(super) sequence: u64,
    pub(super) size: u64,
    pub(super) digest: [u8; 32],
    pub(super) name: EntryName,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(self.place.0.as_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.digest);
        let name = self.name.as_str().as_bytes();
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name);
        out.resize(SUMMED, 0);
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != HEADER as usize
            || bytes[..8] != *MAGIC
            || *blake3::hash(&bytes[..SUMMED]).as_bytes() != bytes[SUMMED..]
        {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let len = usize::from(u16::from_le_bytes([bytes[72], bytes[73]]));
        let name = bytes.get(74..74 + len).filter(|_| 74 + len <= SUMMED)?;
        Some(Self {
            place: PlaceId(uuid::Uuid::from_slice(&bytes[8..24]).ok()?),
            sequence: number(24)?,
            size: number(32)?,
            digest: bytes[40..72].try_into().ok()?,
            name: EntryName::new(std::str::from_utf8(name).ok()?).ok()?,
        })
    }

    /// Reads it from a file.
    pub(super) fn read(file: &dyn DiskFile) -> std::io::Result<Option<Self>> {
        match file.read_at(0, HEADER as usize) {
            Ok(bytes) => Ok(Self::decode(&bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Bytes on disk of an object with this much content; saturates.
pub(super) fn disk_len(size: u64) -> u64 {
    size.saturating_add(size.div_ceil(BLOCK).saturating_mul(SUM)).saturating_add(HEADER)
}

/// Where the block that holds content offset `block * BLOCK` begins.
fn block_at(block: u64) -> u64 {
    HEADER + block * (BLOCK + SUM)
}

fn block_sum(block: u64, data: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&block.to_le_bytes()).update(data);
    *hasher.finalize().as_bytes()
}

/// Content as it lies on disk, beginning with block number `first`: each block behind its checksum.
pub(super) fn blocks(first: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / BLOCK as usize * 32 + 32);
    for (n, data) in content.chunks(BLOCK as usize).enumerate() {
        out.extend_from_slice(&block_sum(first + n as u64, data));
        out.extend_from_slice(data);
    }
    out
}

/// Content of one block of an object of this size; `None` if it is not there or does not match.
pub(super) fn read_block(file: &dyn DiskFile, size: u64, block: u64) -> std::io::Result<Option<Vec<u8>>> {
    let len = size.saturating_sub(block * BLOCK).min(BLOCK);
    if len == 0 {
        return Ok(None);
    }
    let mut bytes = match file.read_at(block_at(block), (SUM + len) as usize) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    let data = bytes.split_off(SUM as usize);
    Ok((bytes[..] == block_sum(block, &data)[..]).then_some(data))
}

/// A mirror object's file.
pub(super) fn mirror_file(id: &ObjectId, stored_ms: u64, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(MIRROR_HEADER as usize + data.len());
    out.extend_from_slice(MIRROR_MAGIC);
    out.extend_from_slice(&id.0);
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out.extend_from_slice(&stored_ms.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&out).update(data);
    out.extend_from_slice(hasher.finalize().as_bytes());
    out.extend_from_slice(data);
    out
}

/// The content of a mirror object's file; `None` if it is damaged.
pub(super) fn mirror_content(id: &ObjectId, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let data = bytes.get(MIRROR_HEADER as usize..)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..52]).update(data);
    let sound = bytes[..8] == *MIRROR_MAGIC
        && bytes[8..40] == id.0
        && bytes[40..44] == (data.len() as u32).to_le_bytes()
        && bytes[52..84] == *hasher.finalize().as_bytes();
    sound.then(|| bytes.split_off(MIRROR_HEADER as usize))
}
