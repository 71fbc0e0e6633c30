//! Entries of an index: plain values, their stored form and their wire form.

use common::error::{Error, Reason, Result};
use common::model::path::{MAX_DEPTH, MAX_PATH_BYTES};
use common::model::{ChunkRef, DeviceId, EntryName, MAX_CHUNK_BYTES, manifest_digest};
use common::wire as convert;
use prost::Message;
use proto::peer::v1 as wire;
use std::sync::Arc;

use crate::model::Content;
pub use crate::source::FileStamp;

/// Chunks that an entry carries itself; more are in its manifest.
pub const INLINE_CHUNKS: usize = 64;
/// Most chunks of one file (about 2 TB).
pub const CHUNKS_MAX: usize = 1_500_000;
/// Most devices in a version vector.
pub const VERSION_MAX: usize = 1_000;

/// A device in version vectors: the first 8 bytes of its id, big endian.
pub fn short_id(device: &DeviceId) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&device.0[..8]);
    u64::from_be_bytes(bytes)
}

/// How two version vectors stand to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// The same.
    Equal,
    /// The other one has seen all of this one and more.
    Older,
    /// This one has seen all of the other one and more.
    Newer,
    /// Each has changes that the other has not seen.
    Concurrent,
}

/// Who changed something how often; ascending by device, no zero counts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct VersionVector(Vec<(u64, u64)>);

impl VersionVector {
    /// Checked: ascending, no zeroes, at most 1,000 devices.
    pub fn new(counts: Vec<(u64, u64)>) -> Option<Self> {
        let ascending = counts.windows(2).all(|w| w[0].0 < w[1].0);
        (ascending && counts.len() <= VERSION_MAX && counts.iter().all(|c| c.1 > 0)).then_some(Self(counts))
    }

    /// The pairs of device and count.
    pub fn counts(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Changes that a device made.
    pub fn count(&self, device: u64) -> u64 {
        self.0.binary_search_by_key(&device, |c| c.0).map_or(0, |at| self.0[at].1)
    }

    /// One more change by this device.
    #[must_use]
    pub fn bumped(&self, device: u64) -> Self {
        let mut counts = self.0.clone();
        match counts.binary_search_by_key(&device, |c| c.0) {
            Ok(at) => counts[at].1 = counts[at].1.saturating_add(1),
            Err(at) => counts.insert(at, (device, 1)),
        }
        Self(counts)
    }

    /// What has seen both.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let mut counts = self.0.clone();
        for &(device, count) in &other.0 {
            match counts.binary_search_by_key(&device, |c| c.0) {
                Ok(at) => counts[at].1 = counts[at].1.max(count),
                Err(at) => counts.insert(at, (device, count)),
            }
        }
        Self(counts)
    }

    /// How this stands to the other.
    pub fn relation(&self, other: &Self) -> Relation {
        let behind = self.0.iter().any(|&(d, c)| c > other.count(d));
        let ahead = other.0.iter().any(|&(d, c)| c > self.count(d));
        match (behind, ahead) {
            (false, false) => Relation::Equal,
            (true, false) => Relation::Newer,
            (false, true) => Relation::Older,
            (true, true) => Relation::Concurrent,
        }
    }
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// A file or directory of a share, or what is kept of one that is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Below the share, '/'-separated, every segment valid.
    pub path: String,
    /// File or directory.
    pub kind: EntryKind,
    /// Bytes; 0 for directories.
    pub size_bytes: u64,
    /// Nanoseconds since 1970. Of a directory: when it last changed as an entry.
    pub modify_time_ns: i64,
    /// Unix permission bits, at most 0o777.
    pub mode: u32,
    /// The chunks, if there are at most [`INLINE_CHUNKS`]; else empty, see [`super::IndexHandle::content`].
    pub chunks: Arc<[ChunkRef]>,
    /// Chunks in all.
    pub chunk_count: u32,
    /// [`manifest_digest`] of all chunks; zeroes for directories and deleted entries.
    pub digest: [u8; 32],
    /// When it last changed.
    pub sequence: u64,
    /// Gone.
    pub deleted: bool,
    /// Who changed it how often.
    pub version: VersionVector,
    /// Who made this version; see [`short_id`].
    pub modified_by: u64,
}

impl Entry {
    /// A file that is there.
    pub fn is_file(&self) -> bool {
        self.kind == EntryKind::File && !self.deleted
    }

    /// A directory that is there.
    pub fn is_directory(&self) -> bool {
        self.kind == EntryKind::Directory && !self.deleted
    }

    /// The last segment.
    pub fn name(&self) -> &str {
        split(&self.path).1
    }

    /// The content, if the entry carries all of it.
    pub fn inline_content(&self) -> Option<Content> {
        (self.is_file() && self.chunks.len() == self.chunk_count as usize).then(|| Content {
            chunks: self.chunks.clone(),
            digest: self.digest,
            size_bytes: self.size_bytes,
        })
    }

    /// As the contract writes it.
    pub fn to_wire(&self) -> wire::IndexEntry {
        let kind = match self.kind {
            EntryKind::File => wire::EntryKind::File,
            EntryKind::Directory => wire::EntryKind::Directory,
        };
        let digest = if self.is_file() { self.digest.to_vec() } else { Vec::new() };
        wire::IndexEntry {
            path: self.path.clone(),
            kind: kind.into(),
            size_bytes: self.size_bytes,
            modify_time_ns: self.modify_time_ns,
            mode: self.mode,
            chunks: convert::chunks_to(&self.chunks),
            manifest_digest: digest.into(),
            chunk_count: self.chunk_count,
            sequence: self.sequence,
            deleted: self.deleted,
            version: self.version.0.iter().map(|&(device, count)| wire::VersionCount { device, count }).collect(),
            modified_by: self.modified_by,
        }
    }

    /// Reads an entry of another node.
    ///
    /// # Errors
    /// PEER_MISBEHAVES if anything in it cannot be.
    pub fn from_wire(entry: wire::IndexEntry) -> Result<Self> {
        Self::read(entry, true)
    }

    /// Reads an entry of another node that comes without its chunks.
    ///
    /// # Errors
    /// PEER_MISBEHAVES if anything in it cannot be.
    pub fn brief_from_wire(entry: wire::IndexEntry) -> Result<Self> {
        Self::read(entry, false)
    }

    fn read(entry: wire::IndexEntry, with_chunks: bool) -> Result<Self> {
        let wrong = |what: &str| Error::new(Reason::PeerMisbehaves, format!("an index entry was refused: {what}"));
        check_path(&entry.path).map_err(|_| wrong("its path is not valid"))?;
        let kind = match entry.kind() {
            wire::EntryKind::File => EntryKind::File,
            wire::EntryKind::Directory => EntryKind::Directory,
            wire::EntryKind::Unspecified => return Err(wrong("its kind is not known")),
        };
        let counts = entry.version.iter().map(|v| (v.device, v.count)).collect();
        let version = VersionVector::new(counts).ok_or_else(|| wrong("its version vector is not in order"))?;
        let mut read = Self {
            path: entry.path,
            kind,
            size_bytes: entry.size_bytes,
            modify_time_ns: entry.modify_time_ns,
            mode: entry.mode & 0o777,
            chunks: [].into(),
            chunk_count: entry.chunk_count,
            digest: [0; 32],
            sequence: entry.sequence,
            deleted: entry.deleted,
            version,
            modified_by: entry.modified_by,
        };
        if !read.is_file() {
            (read.size_bytes, read.chunk_count) = (0, 0);
            return Ok(read);
        }
        read.digest = entry.manifest_digest[..].try_into().map_err(|_| wrong("its digest has not 32 bytes"))?;
        let count = entry.chunk_count as usize;
        let most = (count as u64).saturating_mul(MAX_CHUNK_BYTES as u64);
        if count > CHUNKS_MAX || entry.size_bytes > most || entry.size_bytes < count as u64 {
            return Err(wrong("its size and its number of chunks do not fit"));
        }
        if with_chunks && count <= INLINE_CHUNKS {
            let chunks = convert::chunks_from(&entry.chunks, INLINE_CHUNKS).map_err(|_| wrong("its chunks"))?;
            check_content(&chunks, &read).map_err(wrong)?;
            read.chunks = chunks.into();
        }
        Ok(read)
    }
}

/// Do these chunks make the content that the entry names?
pub(super) fn check_content(chunks: &[ChunkRef], entry: &Entry) -> Result<(), &'static str> {
    if chunks.len() != entry.chunk_count as usize {
        return Err("it has another number of chunks than it says");
    }
    if chunks.iter().map(|c| u64::from(c.len)).sum::<u64>() != entry.size_bytes {
        return Err("its chunks do not add up to its size");
    }
    if manifest_digest(chunks) != entry.digest {
        return Err("its digest is not that of its chunks");
    }
    Ok(())
}

/// Checks a path below a share: 1 to 128 valid segments, at most 4,096 bytes.
///
/// # Errors
/// PATH_INVALID, NAME_INVALID.
pub fn check_path(path: &str) -> Result<()> {
    if path.len() > MAX_PATH_BYTES || path.split('/').nth(MAX_DEPTH).is_some() {
        return Err(
            Error::new(Reason::PathInvalid, "the path is too long").why_is("more than 4,096 bytes or 128 parts")
        );
    }
    path.split('/').try_for_each(|segment| EntryName::new(segment).map(drop))
}

/// The directory and the name of a path; the directory of the top is empty.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The path of `name` in `directory`.
pub fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// True if `path` is `directory` or below it; everything is below the empty path.
pub fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The stored form.
#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    // First, so that a search finds it without decoding the rest.
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bool, tag = "2")]
    directory: bool,
    #[prost(uint64, tag = "3")]
    size: u64,
    #[prost(sint64, tag = "4")]
    mtime_ns: i64,
    #[prost(uint32, tag = "5")]
    mode: u32,
    #[prost(bytes = "vec", tag = "6")]
    chunks: Vec<u8>,
    #[prost(uint32, tag = "7")]
    chunk_count: u32,
    #[prost(bytes = "vec", tag = "8")]
    digest: Vec<u8>,
    #[prost(uint64, tag = "9")]
    sequence: u64,
    #[prost(bool, tag = "10")]
    deleted: bool,
    #[prost(fixed64, repeated, tag = "11")]
    version: Vec<u64>,
    #[prost(fixed64, tag = "12")]
    modified_by: u64,
    #[prost(uint64, tag = "13")]
    inode: u64,
    #[prost(sint64, tag = "14")]
    ctime_ns: i64,
    // Those of the local file, if they are not those of the entry.
    #[prost(bool, tag = "15")]
    has_file: bool,
    #[prost(sint64, tag = "16")]
    file_mtime_ns: i64,
}

/// An entry with what is known of its local file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The entry.
    pub entry: Entry,
    /// The file it was read from; nothing for what has no file here.
    pub file: Option<FileStamp>,
}

impl Stored {
    pub(super) fn encode(&self) -> Vec<u8> {
        let e = &self.entry;
        let file = self.file.unwrap_or_default();
        EntryRecord {
            path: e.path.clone(),
            directory: e.kind == EntryKind::Directory,
            size: e.size_bytes,
            mtime_ns: e.modify_time_ns,
            mode: e.mode,
            chunks: ChunkRef::encode_all(&e.chunks),
            chunk_count: e.chunk_count,
            digest: if e.is_file() { e.digest.to_vec() } else { Vec::new() },
            sequence: e.sequence,
            deleted: e.deleted,
            version: e.version.0.iter().flat_map(|&(device, count)| [device, count]).collect(),
            modified_by: e.modified_by,
            inode: file.inode,
            ctime_ns: file.ctime_ns,
            has_file: self.file.is_some(),
            file_mtime_ns: file.mtime_ns,
        }
        .encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(Reason::StoreCorrupt, "a record of a share's index cannot be decoded");
        let r = EntryRecord::decode(bytes).map_err(|_| damaged())?;
        let counts = r.version.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let entry = Entry {
            path: r.path,
            kind: if r.directory { EntryKind::Directory } else { EntryKind::File },
            size_bytes: r.size,
            modify_time_ns: r.mtime_ns,
            mode: r.mode,
            chunks: ChunkRef::decode_all(&r.chunks).ok_or_else(damaged)?.into(),
            chunk_count: r.chunk_count,
            digest: if r.digest.is_empty() { [0; 32] } else { r.digest[..].try_into().map_err(|_| damaged())? },
            sequence: r.sequence,
            deleted: r.deleted,
            version: VersionVector::new(counts).ok_or_else(damaged)?,
            modified_by: r.modified_by,
        };
        let file = r.has_file.then_some(FileStamp {
            inode: r.inode,
            size: r.size,
            mtime_ns: r.file_mtime_ns,
            ctime_ns: r.ctime_ns,
        });
        Ok(Self { entry, file })
    }

    /// The path in an encoded record, without decoding the rest of it.
    pub(super) fn peek_path(bytes: &[u8]) -> Option<&str> {
        let (&tag, mut rest) = bytes.split_first()?;
        if tag != 0x0a {
            return None;
        }
        let len = prost::decode_length_delimiter(&mut rest).ok()?;
        std::str::from_utf8(rest.get(..len)?).ok()
    }
}

/// A chunk id's or digest's first eight bytes, under which it is looked up.
pub(super) fn prefix_of(digest: &[u8; 32]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::model::ChunkId;

    fn entry() -> Entry {
        let content = Content::of(vec![ChunkRef { id: ChunkId([3; 32]), len: 10 }]);
        Entry {
            path: "a/b.txt".into(),
            kind: EntryKind::File,
            size_bytes: 10,
            modify_time_ns: -5,
            mode: 0o644,
            chunks: content.chunks.clone(),
            chunk_count: 1,
            digest: content.digest,
            sequence: 7,
            deleted: false,
            version: VersionVector::new(vec![(1, 2), (9, 1)]).unwrap(),
            modified_by: 9,
        }
    }

    #[test]
    fn an_entry_survives_the_store_and_the_wire() {
        let file = FileStamp { inode: 4, size: 10, mtime_ns: -6, ctime_ns: 8 };
        for file in [None, Some(file)] {
            let stored = Stored { entry: entry(), file };
            let bytes = stored.encode();
            assert_eq!(Stored::decode(&bytes).unwrap(), stored);
            assert_eq!(Stored::peek_path(&bytes), Some("a/b.txt"));
        }
        assert_eq!(Entry::from_wire(entry().to_wire()).unwrap(), entry());
    }

    #[test]
    fn entries_that_cannot_be_are_refused() {
        let broken: [fn(&mut wire::IndexEntry); 11] = [
            |e| e.path = "../x".into(),
            |e| e.path = "/etc/passwd".into(),
            |e| e.path = "a//b".into(),
            |e| e.path = String::new(),
            |e| e.path = "a\0b".into(),
            |e| e.path = vec!["x"; 200].join("/"),
            |e| e.kind = 0,
            |e| e.size_bytes = 11,
            |e| e.chunk_count = 2,
            |e| e.manifest_digest = vec![0; 32].into(),
            |e| e.version.reverse(),
        ];
        for (i, change) in broken.iter().enumerate() {
            let mut wire = entry().to_wire();
            change(&mut wire);
            assert!(Entry::from_wire(wire).unwrap_err().is(Reason::PeerMisbehaves), "{i}");
        }
        // Numbers that would overflow if they were believed.
        let mut wire = entry().to_wire();
        (wire.chunk_count, wire.size_bytes) = (u32::MAX, u64::MAX);
        assert!(Entry::from_wire(wire).is_err());
    }

    #[test]
    fn version_vectors_compare() {
        let v = |c: &[(u64, u64)]| VersionVector::new(c.to_vec()).unwrap();
        let a = v(&[(1, 1)]);
        assert_eq!(a.relation(&a), Relation::Equal);
        assert_eq!(a.bumped(1).relation(&a), Relation::Newer);
        assert_eq!(a.relation(&a.bumped(2)), Relation::Older);
        assert_eq!(a.bumped(1).relation(&a.bumped(2)), Relation::Concurrent);
        let both = a.bumped(1).merged(&a.bumped(2));
        assert_eq!(both, v(&[(1, 2), (2, 1)]));
        assert!(VersionVector::new(vec![(2, 1), (1, 1)]).is_none());
        assert!(VersionVector::new(vec![(1, 0)]).is_none());
    }

    #[test]
    fn below_is_by_segments() {
        assert!(is_below("a/b", "a") && is_below("a", "a") && is_below("a", ""));
        assert!(!is_below("ab", "a") && !is_below("a", "a/b"));
    }
}
