//! Cutting content into chunks at places that the content decides, so that a change moves only the cuts around it.
//!
//! FastCDC in its 2020 form with the parameters below and the algorithm's published gear table. Who cuts with other
//! parameters gets other chunks: nothing breaks, but nothing is found again either. So they are part of the format, and
//! [`CHUNK_ALGORITHM`] names them.

use std::collections::VecDeque;
use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

use super::gear::cut_at;
use crate::model::{ChunkId, ChunkRef, MAX_CHUNK_BYTES};

/// Algorithm and parameters, for manifests and diagnostics.
pub const CHUNK_ALGORITHM: &str = "fastcdc-2020/256Ki/1Mi/4Mi/level1+blake3-256";
/// No chunk but the last of a file is smaller. A file up to this size is one chunk.
pub const CHUNK_MIN: usize = 256 << 10;
/// Where cutting becomes more likely. Chunks of typical content have 1.1 to 1.4 MiB on average.
pub const CHUNK_AVERAGE: usize = 1 << 20;
/// No chunk is larger.
pub const CHUNK_MAX: usize = MAX_CHUNK_BYTES;

/// Content is read in blocks of these sizes, small ones first: most files are small, and what a block holds beyond the
/// last cut is copied into the next block. A chunk keeps its whole block in memory.
const BLOCKS: [usize; 3] = [64 << 10, 2 << 20, 8 << 20];
/// Blocks kept for reuse when all their chunks are gone: fresh memory costs as much as reading the file into it.
const SPARE_BLOCKS: usize = 2;

/// A chunk of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkedPiece {
    /// Where it begins.
    pub offset: u64,
    /// Its content; a view into the block that was read.
    pub data: Bytes,
    /// Digest and length.
    pub chunk: ChunkRef,
}

impl ChunkedPiece {
    /// Hashes a piece.
    pub fn of(offset: u64, data: Bytes) -> Self {
        let chunk = ChunkRef { id: ChunkId::of(&data), len: data.len() as u32 };
        Self { offset, data, chunk }
    }
}

/// Cuts and hashes what a reader gives, on the caller's thread. Holds one block of 8 MiB, and up to two more that wait
/// for their chunks to be dropped. After an error it ends.
pub struct Chunker<R>(Cutter<R>);

impl<R: Read> Chunker<R> {
    /// Begins at offset 0.
    pub fn new(reader: R) -> Self {
        Self(Cutter::new(reader))
    }
}

impl<R: Read> Iterator for Chunker<R> {
    type Item = io::Result<ChunkedPiece>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.map(|(offset, data)| ChunkedPiece::of(offset, data)))
    }
}

/// Offset and length of each chunk, without hashing.
pub fn cut_points(reader: impl Read) -> impl Iterator<Item = io::Result<(u64, u32)>> {
    Cutter::new(reader).map(|piece| piece.map(|(offset, data)| (offset, data.len() as u32)))
}

/// The cutting alone.
pub(super) struct Cutter<R> {
    reader: R,
    /// Read and not yet cut off.
    data: Bytes,
    /// The block that `data` is the rest of.
    block: Bytes,
    spare: VecDeque<Bytes>,
    blocks_read: usize,
    offset: u64,
    end: bool,
}

impl<R: Read> Cutter<R> {
    pub(super) fn new(reader: R) -> Self {
        let (data, block) = (Bytes::new(), Bytes::new());
        Self { reader, data, block, spare: VecDeque::new(), blocks_read: 0, offset: 0, end: false }
    }

    /// Length of the next chunk; `None` if that depends on bytes not yet read.
    fn cut(&self) -> Option<usize> {
        // With at least the average in view, a cut before the end of the view is where it is with everything in view.
        if self.end || self.data.len() >= CHUNK_AVERAGE {
            let len = cut_at(&self.data);
            if self.end || len < self.data.len() || len == CHUNK_MAX {
                return Some(len);
            }
        }
        None
    }

    fn read_block(&mut self) -> io::Result<()> {
        let last = BLOCKS.len() - 1;
        let size = BLOCKS[self.blocks_read.min(last)].max(self.data.len() + BLOCKS[0]);
        let large = self.blocks_read >= last;
        self.blocks_read += 1;
        let kept = self.data.len();
        let (block, filled) = if large {
            let mut block = self.take_block(size);
            block[..kept].copy_from_slice(&self.data);
            let filled = fill(&mut self.reader, &mut block, kept)?;
            self.end = filled < block.len();
            (block.freeze(), filled)
        } else {
            let mut block = Vec::with_capacity(size);
            block.extend_from_slice(&self.data);
            let room = (size - kept) as u64;
            let got = self.reader.by_ref().take(room).read_to_end(&mut block)?;
            self.end = (got as u64) < room;
            (Bytes::from(block), kept + got)
        };
        self.data = block.slice(..filled);
        let old = std::mem::replace(&mut self.block, block);
        if large && old.len() >= BLOCKS[last] {
            self.spare.push_back(old);
            if self.spare.len() > SPARE_BLOCKS {
                self.spare.pop_front();
            }
        }
        Ok(())
    }

    /// A block to read into, an old one if there is one that nobody looks at any more. All of it is initialized, so that
    /// reading writes each byte once.
    fn take_block(&mut self, size: usize) -> BytesMut {
        for _ in 0..self.spare.len() {
            match self.spare.pop_front().map(Bytes::try_into_mut) {
                Some(Ok(free)) if free.len() >= size => return free,
                Some(Err(used)) => self.spare.push_back(used),
                _ => {}
            }
        }
        BytesMut::zeroed(size)
    }
}

/// Reads from position `at` of the block until it is full or all has been read; gives the position reached.
fn fill(reader: &mut impl Read, block: &mut [u8], mut at: usize) -> io::Result<usize> {
    while at < block.len() {
        match reader.read(&mut block[at..]) {
            Ok(0) => break,
            Ok(got) => at += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

impl<R: Read> Iterator for Cutter<R> {
    type Item = io::Result<(u64, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.end && self.data.is_empty() {
                return None;
            }
            if let Some(len) = self.cut() {
                let piece = self.data.split_to(len);
                let offset = self.offset;
                self.offset += len as u64;
                return Some(Ok((offset, piece)));
            }
            if let Err(error) = self.read_block() {
                (self.end, self.data) = (true, Bytes::new());
                return Some(Err(error));
            }
        }
    }
}
