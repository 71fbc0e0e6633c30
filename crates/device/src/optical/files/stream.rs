//! A file of a disc as bytes.

use super::{Piece, damaged};
use crate::nbd::BlockSource;
use crate::nbd::source::check_range;
use bytes::{Bytes, BytesMut};
use common::error::Result;
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// A file that was opened; it fails with DISC_CHANGED once the disc is another one.
pub struct DiscFile {
    source: Arc<dyn BlockSource>,
    /// Pieces with their ends within the file.
    pieces: Vec<(Piece, u64)>,
    size: u64,
}

impl std::fmt::Debug for DiscFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiscFile").field("size", &self.size).field("pieces", &self.pieces.len()).finish()
    }
}

impl DiscFile {
    pub(super) fn new(source: Arc<dyn BlockSource>, pieces: Vec<Piece>, size: u64) -> Result<Self> {
        let mut end = 0_u64;
        let mut placed = Vec::with_capacity(pieces.len());
        for piece in pieces.into_iter().filter(|p| p.len > 0) {
            if piece
                .at
                .is_some_and(|at| check_range(at, piece.len.min(size - end.min(size)), source.size_bytes()).is_err())
            {
                return Err(damaged("the file lies outside of the disc"));
            }
            end = end.checked_add(piece.len).ok_or_else(|| damaged("the file is too large"))?;
            placed.push((piece, end));
        }
        if end < size {
            return Err(damaged("the file is longer than its parts"));
        }
        Ok(Self { source, pieces: placed, size })
    }

    /// Where its first byte is on the disc; names the file within its disc.
    pub fn first_offset(&self) -> u64 {
        self.pieces.iter().find_map(|(p, _)| p.at).unwrap_or(0)
    }

    async fn gather(&self, offset: u64, len: u32) -> Result<Bytes> {
        check_range(offset, len.into(), self.size)?;
        let end = offset + u64::from(len);
        let first = self.pieces.partition_point(|(_, piece_end)| *piece_end <= offset);
        let mut out = BytesMut::new();
        for (piece, piece_end) in &self.pieces[first..] {
            let start = piece_end - piece.len;
            if start >= end {
                break;
            }
            let (from, to) = (offset.max(start), end.min(*piece_end));
            let part = (to - from) as u32;
            let bytes = match piece.at {
                Some(at) => self.source.read(at + (from - start), part).await?,
                None => Bytes::from(vec![0; part as usize]),
            };
            if part == len {
                return Ok(bytes);
            }
            out.extend_from_slice(&bytes);
        }
        Ok(out.freeze())
    }
}

impl BlockSource for DiscFile {
    fn size_bytes(&self) -> u64 {
        self.size
    }
    fn generation(&self) -> u64 {
        self.source.generation()
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.gather(offset, len))
    }
}
