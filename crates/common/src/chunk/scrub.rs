//! Reading everything that is stored and comparing it with its digests.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::format::RecordKind;
use super::store::ChunkStore;
use crate::error::Result;
use crate::model::ChunkId;

/// Progress is told after this many bytes.
const STEP: u64 = 4 << 20;
/// The longest wait of the rate limit before progress is told again, so that a scrub can be ended.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// Damaged chunks listed in a report; the count goes on.
const LIST_MAX: usize = 65_536;

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Chunks read.
    pub chunk_count: u64,
    /// Bytes of content read.
    pub read_bytes: u64,
    /// Bytes of records in all, as of the beginning.
    pub total_bytes: u64,
    /// Damaged chunks so far.
    pub damaged_count: u64,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Totals.
    pub progress: ScrubProgress,
    /// Chunks that do not match their digest, the first 65,536.
    pub damaged: Vec<ChunkId>,
    /// False if the callback ended it.
    pub complete: bool,
}

impl ChunkStore {
    /// Reads every chunk once, from the disk and not from memory, at most `bytes_per_second` (0: as fast as it goes), and
    /// tells progress to the callback every few MiB. Damaged chunks are remembered: they count as missing for uploads,
    /// and storing them again heals them. Chunks that come meanwhile may or may not be read. Blocks.
    ///
    /// # Errors
    /// `IO_FAILED` if something else than a bad medium keeps it from reading.
    pub fn scrub(
        &self,
        bytes_per_second: u64,
        mut progress: impl FnMut(&ScrubProgress) -> ControlFlow<()>,
    ) -> Result<ScrubReport> {
        let core = &*self.core;
        let mut report = ScrubReport::default();
        report.progress.total_bytes = self.stats().live_bytes;
        let begun = Instant::now();
        let mut told = 0;
        for segment in core.segments.all() {
            // A segment that was removed since the list was made has nothing that lives in it.
            let Ok(file) = core.segments.file(segment.id()) else { continue };
            file.forget_pages();
            for record in core.segments.records(&segment)? {
                let here = |store: &ChunkStore| {
                    store.core.index.get(&record.id).is_some_and(|e| e.is_at(segment.id(), record.offset))
                };
                if record.kind != RecordKind::Chunk || !here(self) {
                    continue;
                }
                let whole = match core.read_whole(segment.id(), &record) {
                    Ok(content) => content.is_some(),
                    Err(_) if !here(self) => continue,
                    Err(error) => return Err(error),
                };
                report.progress.chunk_count += 1;
                report.progress.read_bytes += u64::from(record.len);
                if !whole {
                    report.progress.damaged_count += 1;
                    if report.damaged.len() < LIST_MAX {
                        report.damaged.push(record.id);
                    }
                }
                if report.progress.read_bytes - told >= STEP {
                    told = report.progress.read_bytes;
                    loop {
                        if progress(&report.progress).is_break() {
                            return Ok(report);
                        }
                        let Some(wait) = ahead(told, bytes_per_second, begun.elapsed()) else { break };
                        std::thread::park_timeout(wait.min(WAIT_MAX));
                    }
                }
            }
            file.forget_pages();
        }
        report.complete = progress(&report.progress).is_continue();
        Ok(report)
    }
}

/// How long to wait so that `read` bytes in `elapsed` are not above the rate.
fn ahead(read: u64, bytes_per_second: u64, elapsed: Duration) -> Option<Duration> {
    if bytes_per_second == 0 {
        return None;
    }
    Duration::from_secs_f64(read as f64 / bytes_per_second as f64).checked_sub(elapsed).filter(|d| !d.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_decides_how_long_to_wait() {
        assert_eq!(ahead(1000, 0, Duration::ZERO), None);
        assert_eq!(ahead(1000, 100, Duration::from_secs(4)), Some(Duration::from_secs(6)));
        assert_eq!(ahead(1000, 100, Duration::from_secs(10)), None);
        assert_eq!(ahead(1000, 100, Duration::from_secs(11)), None);
    }
}
