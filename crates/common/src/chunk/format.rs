//! Bytes on disk: segment header, record header, index file. Encoders and total decoders; no input makes one panic.
//!
//! ```text
//! segment  NNNNNNNN.seg   header 64 bytes, then records, each beginning at a multiple of 8
//! record                  header 64 bytes, payload, zeros up to a multiple of 8
//! index    NNNNNNNN.idx   header 64 bytes, 56 bytes per record of the sealed segment, BLAKE3 of all that
//! damaged                 "ATRDMG1\0", 40 bytes per known bad record, BLAKE3 of all that
//! ```
//! Numbers are little-endian. Record headers carry a checksum keyed with 32 random bytes that only the segment's header
//! (and its index file) holds, over the header and its own offset. So what recovery takes for a record was written here
//! as a record: content that imitates one, which anybody may upload, is never mistaken for one.

use crate::model::{ChunkId, MAX_CHUNK_BYTES};

/// Number of a segment; never given twice while anything refers to it.
pub type SegmentId = u32;
/// Keys the header checksums of one segment.
pub type SegmentKey = [u8; 32];

/// Bytes of a record's header.
pub const RECORD_HEADER: usize = 64;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER: usize = 64;
/// Records begin at multiples of this, so that a search after damage has few places to look at.
pub const RECORD_ALIGN: usize = 8;
/// First bytes of each record; what the search after damage looks for.
pub const RECORD_MAGIC: [u8; 4] = *b"ACR\x1e";
/// Most records of one segment: bounds the index file and the memory of an open segment to 7 MiB.
pub const SEGMENT_RECORDS_MAX: usize = 131_072;
/// Most entries of the list of damaged records; further ones are found again by the next scrub.
pub const DAMAGED_MAX: usize = 65_536;

const SEGMENT_MAGIC: &[u8; 8] = b"ATRSEG1\0";
const INDEX_MAGIC: &[u8; 8] = b"ATRIDX1\0";
const DAMAGED_MAGIC: &[u8; 8] = b"ATRDMG1\0";
const VERSION: u8 = 1;
const INDEX_ENTRY: usize = 56;
const DAMAGED_ENTRY: usize = 40;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The payload is the chunk's content; `sequence` orders it among records of the same chunk, the highest counts.
    Chunk,
    /// Every record of the chunk with this `sequence` or a lower one is removed. Needed while `names` exists.
    Tombstone,
}

/// A record without its payload, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it says.
    pub kind: RecordKind,
    /// Which chunk.
    pub id: ChunkId,
    /// Bytes of payload; 0 for a tombstone, else 1 to [`MAX_CHUNK_BYTES`].
    pub len: u32,
    /// See [`RecordKind`].
    pub sequence: u64,
    /// For a tombstone: the segment that held the removed record. Otherwise 0.
    pub names: SegmentId,
    /// For a chunk: up to where this segment was known to be on disk when the record was written. What is bad before
    /// that place was damaged later; what is bad behind it may just not have been written before a power cut. Not kept
    /// in index files.
    pub synced: u32,
    /// Where the record begins in its segment. Not stored, but covered by the checksum.
    pub offset: u32,
}

/// Bytes that a record with this much payload takes on disk.
pub fn stored_len(payload: u32) -> u64 {
    (RECORD_HEADER as u64 + u64::from(payload)).next_multiple_of(RECORD_ALIGN as u64)
}

impl RecordHeader {
    /// Bytes on disk, header and padding included.
    pub fn stored_len(&self) -> u64 {
        stored_len(self.len)
    }

    /// The bytes to write at `self.offset` of the segment with this key.
    pub fn encode(&self, key: &SegmentKey) -> [u8; RECORD_HEADER] {
        let mut out = [0; RECORD_HEADER];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[4] = VERSION;
        out[5] = kind_byte(self.kind);
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        let note = if self.kind == RecordKind::Tombstone { self.names } else { self.synced };
        out[12..16].copy_from_slice(&note.to_le_bytes());
        out[16..48].copy_from_slice(&self.id.0);
        out[48..56].copy_from_slice(&self.sequence.to_le_bytes());
        let sum = record_sum(key, &out[..56], self.offset);
        out[56..].copy_from_slice(&sum);
        out
    }

    /// Reads a header found at `offset`; `None` unless it was written exactly there in the segment with this key.
    pub fn decode(bytes: &[u8], key: &SegmentKey, offset: u32) -> Option<Self> {
        let b = bytes.get(..RECORD_HEADER)?;
        if b[..4] != RECORD_MAGIC
            || b[4] != VERSION
            || b[6..8] != [0, 0]
            || b[56..] != record_sum(key, &b[..56], offset)
        {
            return None;
        }
        let kind = kind_of(b[5])?;
        let (stone, note) = (kind == RecordKind::Tombstone, le32(&b[12..16]));
        let header = Self {
            kind,
            id: ChunkId::from_slice(&b[16..48])?,
            len: le32(&b[8..12]),
            sequence: le64(&b[48..56]),
            names: if stone { note } else { 0 },
            synced: if stone { 0 } else { note },
            offset,
        };
        header.is_sound().then_some(header)
    }

    fn is_sound(&self) -> bool {
        match self.kind {
            RecordKind::Chunk => self.len >= 1 && self.len as usize <= MAX_CHUNK_BYTES && self.names == 0,
            RecordKind::Tombstone => self.len == 0,
        }
    }
}

/// First bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Its number, equal to its file name.
    pub id: SegmentId,
    /// Random.
    pub key: SegmentKey,
    /// The next sequence number when it was made; keeps the counter from running back.
    pub first_sequence: u64,
}

impl SegmentHeader {
    /// The 64 bytes at offset 0.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8] = VERSION;
        out[12..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..48].copy_from_slice(&self.key);
        out[48..56].copy_from_slice(&self.first_sequence.to_le_bytes());
        let sum = blake3::hash(&out[..56]);
        out[56..].copy_from_slice(&sum.as_bytes()[..8]);
        out
    }

    /// Reads it back; `None` if it is not whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let b = bytes.get(..SEGMENT_HEADER)?;
        if b[..8] != SEGMENT_MAGIC[..] || b[8] != VERSION || b[56..] != blake3::hash(&b[..56]).as_bytes()[..8] {
            return None;
        }
        Some(Self { id: le32(&b[12..16]), key: b[16..48].try_into().ok()?, first_sequence: le64(&b[48..56]) })
    }
}

/// The index file of a sealed segment: all its records in order, living or not. Never changed once written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFile {
    /// The segment's header.
    pub segment: SegmentHeader,
    /// Bytes of the segment that count; what lies behind is not ours.
    pub segment_bytes: u64,
    /// Its records, ascending by offset.
    pub records: Vec<RecordHeader>,
}

impl IndexFile {
    /// The whole file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.records.len() * INDEX_ENTRY + 32);
        out.extend_from_slice(INDEX_MAGIC);
        out.extend_from_slice(&self.segment.id.to_le_bytes());
        out.extend_from_slice(&(self.records.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.segment.key);
        out.extend_from_slice(&self.segment.first_sequence.to_le_bytes());
        out.extend_from_slice(&self.segment_bytes.to_le_bytes());
        for r in &self.records {
            out.extend_from_slice(&r.id.0);
            out.extend_from_slice(&r.offset.to_le_bytes());
            out.extend_from_slice(&r.len.to_le_bytes());
            out.extend_from_slice(&r.sequence.to_le_bytes());
            out.extend_from_slice(&r.names.to_le_bytes());
            out.extend_from_slice(&[kind_byte(r.kind), 0, 0, 0]);
        }
        append_sum(&mut out);
        out
    }

    /// Reads it back; `None` if anything about it is not as written.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let body = checked_body(bytes)?;
        let head = body.get(..64)?;
        if head[..8] != INDEX_MAGIC[..] {
            return None;
        }
        let count = le32(&head[12..16]) as usize;
        let entries = &body[64..];
        if count > SEGMENT_RECORDS_MAX || entries.len() != count * INDEX_ENTRY {
            return None;
        }
        let segment = SegmentHeader {
            id: le32(&head[8..12]),
            key: head[16..48].try_into().ok()?,
            first_sequence: le64(&head[48..56]),
        };
        let segment_bytes = le64(&head[56..64]);
        let mut end = SEGMENT_HEADER as u64;
        let mut records = Vec::with_capacity(count);
        for e in entries.chunks_exact(INDEX_ENTRY) {
            let record = RecordHeader {
                kind: kind_of(e[52])?,
                id: ChunkId::from_slice(&e[..32])?,
                len: le32(&e[36..40]),
                sequence: le64(&e[40..48]),
                names: le32(&e[48..52]),
                synced: 0,
                offset: le32(&e[32..36]),
            };
            let from = u64::from(record.offset);
            if !record.is_sound() || from < end || !from.is_multiple_of(RECORD_ALIGN as u64) {
                return None;
            }
            end = from + record.stored_len();
            records.push(record);
        }
        (end <= segment_bytes).then_some(Self { segment, segment_bytes, records })
    }
}

/// A record whose payload does not match its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DamagedRecord {
    /// Where.
    pub segment: SegmentId,
    /// Where in it.
    pub offset: u32,
    /// What it should have been.
    pub id: ChunkId,
}

/// The file that remembers damaged records.
pub fn encode_damaged(list: &[DamagedRecord]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + list.len() * DAMAGED_ENTRY + 32);
    out.extend_from_slice(DAMAGED_MAGIC);
    for d in list.iter().take(DAMAGED_MAX) {
        out.extend_from_slice(&d.id.0);
        out.extend_from_slice(&d.segment.to_le_bytes());
        out.extend_from_slice(&d.offset.to_le_bytes());
    }
    append_sum(&mut out);
    out
}

/// Reads it back; `None` if it is not whole.
pub fn decode_damaged(bytes: &[u8]) -> Option<Vec<DamagedRecord>> {
    let body = checked_body(bytes)?;
    let entries = body.strip_prefix(&DAMAGED_MAGIC[..])?;
    if !entries.len().is_multiple_of(DAMAGED_ENTRY) || entries.len() / DAMAGED_ENTRY > DAMAGED_MAX {
        return None;
    }
    entries
        .chunks_exact(DAMAGED_ENTRY)
        .map(|e| {
            Some(DamagedRecord {
                id: ChunkId::from_slice(&e[..32])?,
                segment: le32(&e[32..36]),
                offset: le32(&e[36..40]),
            })
        })
        .collect()
}

fn kind_byte(kind: RecordKind) -> u8 {
    match kind {
        RecordKind::Chunk => 1,
        RecordKind::Tombstone => 2,
    }
}

fn kind_of(byte: u8) -> Option<RecordKind> {
    match byte {
        1 => Some(RecordKind::Chunk),
        2 => Some(RecordKind::Tombstone),
        _ => None,
    }
}

fn record_sum(key: &SegmentKey, header: &[u8], offset: u32) -> [u8; 8] {
    let mut input = [0; 60];
    input[..56].copy_from_slice(header);
    input[56..].copy_from_slice(&offset.to_le_bytes());
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::keyed_hash(key, &input).as_bytes()[..8]);
    sum
}

fn append_sum(out: &mut Vec<u8>) {
    let sum = blake3::hash(out);
    out.extend_from_slice(sum.as_bytes());
}

fn checked_body(bytes: &[u8]) -> Option<&[u8]> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    (blake3::hash(body).as_bytes() == sum).then_some(body)
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("callers pass four bytes"))
}

fn le64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("callers pass eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(offset: u32) -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Chunk,
            id: ChunkId([7; 32]),
            len: 100,
            sequence: 9,
            names: 0,
            synced: 0,
            offset,
        }
    }

    #[test]
    fn a_record_header_counts_only_where_and_under_the_key_it_was_written() {
        let written = RecordHeader { synced: 64, ..header(64) };
        let bytes = written.encode(&[1; 32]);
        assert_eq!(RecordHeader::decode(&bytes, &[1; 32], 64), Some(written));
        assert_eq!(RecordHeader::decode(&bytes, &[1; 32], 72), None);
        assert_eq!(RecordHeader::decode(&bytes, &[2; 32], 64), None);
        for bit in 0..RECORD_HEADER * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped, &[1; 32], 64), None, "bit {bit}");
        }
    }

    #[test]
    fn files_come_back_as_written_and_never_with_a_flipped_bit() {
        let segment = SegmentHeader { id: 3, key: [5; 32], first_sequence: 40 };
        assert_eq!(SegmentHeader::decode(&segment.encode()), Some(segment));
        let stone = RecordHeader { kind: RecordKind::Tombstone, len: 0, names: 2, ..header(64 + 168) };
        let index = IndexFile { segment, segment_bytes: 64 + 168 + 64, records: vec![header(64), stone] };
        let damaged = vec![DamagedRecord { segment: 1, offset: 64, id: ChunkId([1; 32]) }];
        let (index_bytes, damaged_bytes) = (index.encode(), encode_damaged(&damaged));
        assert_eq!(IndexFile::decode(&index_bytes), Some(index));
        assert_eq!(decode_damaged(&damaged_bytes), Some(damaged));
        for bit in 0..index_bytes.len() * 8 {
            let mut flipped = index_bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(IndexFile::decode(&flipped), None);
        }
        for len in 0..damaged_bytes.len() {
            assert_eq!(decode_damaged(&damaged_bytes[..len]), None);
        }
    }

    #[test]
    fn records_that_overlap_are_refused() {
        let segment = SegmentHeader { id: 3, key: [5; 32], first_sequence: 0 };
        let index = IndexFile { segment, segment_bytes: 10_000, records: vec![header(64), header(72)] };
        assert_eq!(IndexFile::decode(&index.encode()), None);
        let beyond = IndexFile { segment, segment_bytes: 100, records: vec![header(64)] };
        assert_eq!(IndexFile::decode(&beyond.encode()), None);
    }

    proptest! {
        #[test]
        fn no_input_makes_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), offset: u32) {
            let _ = RecordHeader::decode(&bytes, &[0; 32], offset);
            let _ = SegmentHeader::decode(&bytes);
            let _ = IndexFile::decode(&bytes);
            let _ = decode_damaged(&bytes);
            // The same behind a right checksum, so that the inner checks are reached as well.
            for magic in [INDEX_MAGIC, DAMAGED_MAGIC] {
                let mut whole = magic.to_vec();
                whole.extend_from_slice(&bytes);
                append_sum(&mut whole);
                let _ = IndexFile::decode(&whole);
                let _ = decode_damaged(&whole);
            }
        }
    }
}
