//! Reads small things of a disc, keeping what was read last.

use super::damaged;
use crate::nbd::BlockSource;
use bytes::{Bytes, BytesMut};
use common::error::{Reason, Result};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;
/// Pieces that are kept.
const KEPT: usize = 32;

/// See the module.
pub(super) struct Reader {
    source: Arc<dyn BlockSource>,
    kept: Mutex<VecDeque<(u64, Bytes)>>,
}

impl Reader {
    pub(super) fn new(source: Arc<dyn BlockSource>) -> Self {
        Self { source, kept: Mutex::default() }
    }

    pub(super) fn source(&self) -> &Arc<dyn BlockSource> {
        &self.source
    }

    pub(super) fn size(&self) -> u64 {
        self.source.size_bytes()
    }

    /// One sector.
    ///
    /// # Errors
    /// DISC_FORMAT_UNKNOWN if it is outside of the disc.
    pub(super) async fn sector(&self, number: u64) -> Result<Bytes> {
        self.read(number.saturating_mul(2048), 2048).await
    }

    /// A range, at most as long as a directory may be.
    ///
    /// # Errors
    /// DISC_FORMAT_UNKNOWN if it is outside of the disc.
    pub(super) async fn read(&self, offset: u64, len: u64) -> Result<Bytes> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size() && len <= super::MAX_DIRECTORY_BYTES);
        let end = end.ok_or_else(|| damaged("something lies outside of the disc"))?;
        let (first, last) = (offset / PIECE, end.saturating_sub(1) / PIECE);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let mut out = BytesMut::new();
        for index in first..=last {
            let start = index * PIECE;
            let (from, to) = (offset.max(start), end.min(start + PIECE));
            let bytes = match self.piece(index).await {
                Ok(piece) => piece.slice((from - start) as usize..(to - start) as usize),
                // What is asked for may be beside the bad sector.
                Err(error) if error.is(Reason::SectorBad) => self.source.read(from, (to - from) as u32).await?,
                Err(error) => return Err(error),
            };
            if first == last {
                return Ok(bytes);
            }
            out.extend_from_slice(&bytes);
        }
        Ok(out.freeze())
    }

    async fn piece(&self, index: u64) -> Result<Bytes> {
        if let Some((_, bytes)) = self.kept.lock().iter().find(|(kept, _)| *kept == index) {
            return Ok(bytes.clone());
        }
        let start = index * PIECE;
        let len = (self.size() - start).min(PIECE);
        let bytes = self.source.read(start, len as u32).await?;
        if bytes.len() as u64 != len {
            return Err(damaged("the disc gave another number of bytes than asked for"));
        }
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((index, bytes.clone()));
        Ok(bytes)
    }
}

/// Numbers in the order of the disc's bytes; 0 outside of the bytes.
pub(super) fn le16(raw: &[u8], at: usize) -> u16 {
    raw.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}
/// As [`le16`].
pub(super) fn le32(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}
/// As [`le16`].
pub(super) fn le64(raw: &[u8], at: usize) -> u64 {
    raw.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
