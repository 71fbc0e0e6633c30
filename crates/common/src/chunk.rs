//! Chunks: cutting content into them, and keeping them on disk.
//!
//! [`Chunker`] cuts content into pieces at places that the content itself decides. [`ChunkStore`] keeps them by digest in
//! append-only segment files; its module says how, what a crash leaves behind, and why no chunk that is needed is ever
//! removed.

pub mod backup;
pub mod cut;
pub mod disk;
mod flush;
pub mod format;
mod gate;
mod gear;
mod index;
mod lanes;
pub mod pipeline;
pub mod reclaim;
mod recover;
pub mod scrub;
mod segment;
pub mod store;

pub use backup::{BackupPin, BackupReport, IngestReport, SegmentFile};
pub use cut::{CHUNK_ALGORITHM, CHUNK_AVERAGE, CHUNK_MAX, CHUNK_MIN, ChunkedPiece, Chunker, cut_points};
pub use gate::{LEASE_IDLE, LEASE_LIFE};
pub use pipeline::ParallelChunker;
pub use reclaim::ReclaimReport;
pub use scrub::{ScrubProgress, ScrubReport};
pub use store::{Appended, ChunkStats, ChunkStore, ChunkStoreSettings, CommitGuard, Lease};

/// Reads a segment image as recovery does, under the key in its header: what a fuzzer calls. Gives the number of whole
/// records and the end of the last one.
///
/// # Errors
/// Never for bytes in memory; the signature is that of the scan.
pub fn scan_segment_bytes(file: &dyn disk::DiskFile) -> std::io::Result<Option<(usize, u64)>> {
    let head = file.read_at(0, (file.len()?).min(format::SEGMENT_HEADER as u64) as usize)?;
    let Some(header) = format::SegmentHeader::decode(&head) else { return Ok(None) };
    let found = segment::scan(file, &header, u64::MAX, true)?;
    Ok(Some((found.records.len(), found.end)))
}
