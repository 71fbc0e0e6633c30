//! An order, worked out: which different pieces there are, and every place where each belongs.

use super::bits::Bits;
use super::order::{MAX_CHUNKS, Order, OrderDirectory, OrderFile};
use super::scheduler::Piece;
use crate::model::{Content, Scope, Subject};
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef, DeviceId};
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where a piece belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// Which file.
    pub file: u32,
    /// Position in it.
    pub offset: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Plan {
    /// As it was given.
    pub order: Order,
    /// The different chunks, in the order in which they are first needed.
    pub pieces: Vec<ChunkRef>,
    /// Bytes of all files.
    pub total_bytes: u64,
    index: HashMap<ChunkId, Piece>,
    /// Pieces of all files, one file after the other, and where each file begins.
    sequence: Vec<Piece>,
    begins: Vec<u32>,
    /// Spots of all pieces, one piece after the other, and where each piece begins.
    spots: Vec<Spot>,
    spot_begins: Vec<u32>,
}

impl Plan {
    /// Works out an order.
    ///
    /// # Errors
    /// As [`Order::check`]; FIELD_INVALID if one digest is said to have two lengths.
    pub fn new(order: Order) -> Result<Self> {
        order.check()?;
        let count: usize = order.files.iter().map(|f| f.content.chunks.len()).sum();
        let mut index: HashMap<ChunkId, Piece> = HashMap::with_capacity(count);
        let mut pieces: Vec<ChunkRef> = Vec::with_capacity(count);
        let mut sequence = Vec::with_capacity(count);
        let mut begins = Vec::with_capacity(order.files.len() + 1);
        let mut uses: Vec<u32> = Vec::with_capacity(count);
        for file in &order.files {
            begins.push(sequence.len() as u32);
            for chunk in file.content.chunks.iter() {
                let piece = *index.entry(chunk.id).or_insert_with(|| {
                    pieces.push(*chunk);
                    uses.push(0);
                    pieces.len() as Piece - 1
                });
                if pieces[piece as usize].len != chunk.len {
                    return Err(Error::new(Reason::FieldInvalid, "one chunk has two lengths in the order"));
                }
                uses[piece as usize] += 1;
                sequence.push(piece);
            }
        }
        begins.push(sequence.len() as u32);
        let mut spot_begins = Vec::with_capacity(pieces.len() + 1);
        let mut at = 0;
        for uses in &uses {
            spot_begins.push(at);
            at += uses;
        }
        spot_begins.push(at);
        let mut next = spot_begins.clone();
        let mut spots = vec![Spot { file: 0, offset: 0 }; sequence.len()];
        for (file, range) in begins.windows(2).enumerate() {
            let mut offset = 0;
            for piece in &sequence[range[0] as usize..range[1] as usize] {
                let slot = &mut next[*piece as usize];
                spots[*slot as usize] = Spot { file: file as u32, offset };
                *slot += 1;
                offset += u64::from(pieces[*piece as usize].len);
            }
        }
        let total_bytes = order.files.iter().map(|f| f.content.size_bytes).sum();
        Ok(Self { order, pieces, total_bytes, index, sequence, begins, spots, spot_begins })
    }

    /// The number of a chunk, if it is in the order.
    pub fn piece_of(&self, chunk: &ChunkId) -> Option<Piece> {
        self.index.get(chunk).copied()
    }

    /// The pieces by the first 8 bytes of their digests, as they are told of.
    pub fn prefixes(&self) -> HashMap<[u8; 8], Piece> {
        self.pieces.iter().enumerate().map(|(n, p)| (prefix(&p.id), n as Piece)).collect()
    }

    /// The pieces of a file in order.
    pub fn pieces_of(&self, file: u32) -> &[Piece] {
        let range = |n: usize| self.begins.get(n).copied().unwrap_or(0) as usize;
        self.sequence.get(range(file as usize)..range(file as usize + 1)).unwrap_or(&[])
    }

    /// Where a piece belongs, at least one spot.
    pub fn spots_of(&self, piece: Piece) -> &[Spot] {
        let range = |n: usize| self.spot_begins.get(n).copied().unwrap_or(0) as usize;
        self.spots.get(range(piece as usize)..range(piece as usize + 1)).unwrap_or(&[])
    }

    /// True if the piece is in a content that the subject is about.
    pub fn is_about(&self, piece: Piece, subject: &Subject) -> bool {
        let content = |spot: &Spot| self.order.files.get(spot.file as usize).map(|f| &f.content.digest);
        self.spots_of(piece).iter().filter_map(content).any(|digest| subject.reaches(digest))
    }

    /// Bytes that a piece fills, in all its spots.
    pub fn bytes_of(&self, piece: Piece) -> u64 {
        let len = self.pieces.get(piece as usize).map_or(0, |p| u64::from(p.len));
        len * self.spots_of(piece).len() as u64
    }

    /// Bytes that a set of pieces fills.
    pub fn bytes_of_all(&self, pieces: &Bits) -> u64 {
        pieces.iter().map(|p| self.bytes_of(p as Piece)).sum()
    }

    /// Digests of the different contents; none if there are more than can be named in a request.
    pub fn manifests(&self) -> Vec<[u8; 32]> {
        const NAMED_MAX: usize = 20_000;
        let all: HashSet<[u8; 32]> = self.order.files.iter().map(|f| f.content.digest).collect();
        if all.len() > NAMED_MAX { Vec::new() } else { all.into_iter().collect() }
    }

    /// Writes the order to a file, durably.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut bytes = encode(&self.order);
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        let unfinished = path.with_extension("new");
        let mut file = File::create(&unfinished)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    /// Reads what [`Plan::save`] wrote.
    ///
    /// # Errors
    /// STORE_CORRUPT if it is damaged; IO_FAILED.
    pub fn load(path: &Path) -> Result<Self> {
        let damaged = || Error::new(Reason::StoreCorrupt, "the plan of a transfer is damaged");
        let bytes = fs::read(path)?;
        let (content, digest) = bytes.split_at_checked(bytes.len().saturating_sub(32)).ok_or_else(damaged)?;
        if blake3::hash(content).as_bytes()[..] != *digest {
            return Err(damaged());
        }
        Self::new(decode(content).ok_or_else(damaged)?)
    }
}

/// What is told of a chunk.
pub fn prefix(chunk: &ChunkId) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&chunk.as_bytes()[..8]);
    out
}

#[derive(Clone, PartialEq, Message)]
struct OrderRecord {
    #[prost(message, optional, tag = "1")]
    scope: Option<proto::peer::v1::Scope>,
    #[prost(string, tag = "2")]
    title: String,
    #[prost(bytes = "vec", tag = "3")]
    destination: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    files: Vec<FileRecord>,
    #[prost(message, repeated, tag = "5")]
    directories: Vec<FileRecord>,
    #[prost(bytes = "vec", tag = "6")]
    sources: Vec<u8>,
    #[prost(bool, tag = "7")]
    overwrite: bool,
}

#[derive(Clone, PartialEq, Message)]
struct FileRecord {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(int64, tag = "2")]
    mtime_ns: i64,
    #[prost(uint32, tag = "3")]
    mode: u32,
    #[prost(bytes = "vec", tag = "4")]
    chunks: Vec<u8>,
}

fn encode(order: &Order) -> Vec<u8> {
    let file = |f: &OrderFile| FileRecord {
        path: f.path.clone(),
        mtime_ns: f.mtime_ns,
        mode: f.mode,
        chunks: ChunkRef::encode_all(&f.content.chunks),
    };
    let directory = |d: &OrderDirectory| FileRecord { path: d.path.clone(), mode: d.mode, ..FileRecord::default() };
    let record = OrderRecord {
        scope: Some(order.scope.wire()),
        title: order.title.clone(),
        destination: order.destination.as_os_str().as_bytes().to_vec(),
        files: order.files.iter().map(file).collect(),
        directories: order.directories.iter().map(directory).collect(),
        sources: order.sources.iter().flat_map(|d| d.0).collect(),
        overwrite: order.overwrite,
    };
    record.encode_to_vec()
}

fn decode(bytes: &[u8]) -> Option<Order> {
    let record = OrderRecord::decode(bytes).ok()?;
    let mut files = Vec::with_capacity(record.files.len().min(MAX_CHUNKS));
    for file in record.files {
        let content = Content::of(ChunkRef::decode_all(&file.chunks)?);
        files.push(OrderFile { path: file.path, mtime_ns: file.mtime_ns, mode: file.mode, content });
    }
    Some(Order {
        scope: Scope::read(record.scope.as_ref()).ok()?,
        title: record.title,
        destination: PathBuf::from(OsString::from_vec(record.destination)),
        files,
        directories: record.directories.into_iter().map(|d| OrderDirectory { path: d.path, mode: d.mode }).collect(),
        sources: record.sources.chunks_exact(32).filter_map(|d| Some(DeviceId(d.try_into().ok()?))).collect(),
        overwrite: record.overwrite,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ShareId;

    fn chunk(n: u32, len: u32) -> ChunkRef {
        ChunkRef { id: ChunkId::of(&n.to_le_bytes()), len }
    }

    fn order(files: Vec<Vec<ChunkRef>>) -> Order {
        let file = |(n, chunks): (usize, Vec<ChunkRef>)| OrderFile {
            path: format!("d/{n}"),
            mtime_ns: -5,
            mode: 0o640,
            content: Content::of(chunks),
        };
        Order {
            scope: Scope::Share(ShareId::generate()),
            title: "t".into(),
            destination: "/x".into(),
            files: files.into_iter().enumerate().map(file).collect(),
            directories: vec![OrderDirectory { path: "empty".into(), mode: 0o700 }],
            sources: vec![DeviceId([3; 32])],
            overwrite: true,
        }
    }

    #[test]
    fn equal_chunks_are_one_piece_with_many_spots() {
        let (a, b, c) = (chunk(1, 10), chunk(2, 20), chunk(3, 5));
        let plan = Plan::new(order(vec![vec![a, b, a], vec![], vec![b, c]])).unwrap();
        assert_eq!((plan.pieces.len(), plan.total_bytes), (3, 65));
        assert_eq!(plan.pieces_of(0), [0, 1, 0]);
        assert!(plan.pieces_of(1).is_empty());
        assert_eq!(plan.spots_of(0), [Spot { file: 0, offset: 0 }, Spot { file: 0, offset: 30 }]);
        assert_eq!(plan.spots_of(1), [Spot { file: 0, offset: 10 }, Spot { file: 2, offset: 0 }]);
        assert_eq!(plan.bytes_of(1), 40);
        assert_eq!(plan.prefixes()[&prefix(&c.id)], 2);
        assert!(Plan::new(order(vec![vec![a, chunk(1, 11)]])).is_err());
    }

    #[test]
    fn a_saved_plan_is_read_back_and_a_damaged_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan");
        let plan = Plan::new(order(vec![vec![chunk(1, 10)], vec![chunk(2, 7), chunk(1, 10)]])).unwrap();
        plan.save(&path).unwrap();
        assert_eq!(Plan::load(&path).unwrap().order, plan.order);
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(Plan::load(&path).unwrap_err().is(Reason::StoreCorrupt));
        fs::write(&path, b"x").unwrap();
        assert!(Plan::load(&path).unwrap_err().is(Reason::StoreCorrupt));
    }
}
