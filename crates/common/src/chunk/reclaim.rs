//! Giving space back: mark, sweep, compact. Why this removes nothing that is needed is argued in `store.rs`.
//!
//! A pass: (1) note the sequence counter; (2) begin epoch N and wait for the tickets of older ones; (3) let the caller
//! mark; (4) condemn what was seen last before the floor, write tombstones, sync, take it out of the index; (5) copy what
//! lives out of mostly dead segments, checking each digest, sync, point the index to the copies, remove the old files.
//!
//! A tombstone names the segment that held the record. It is carried along by compaction while that segment exists, and
//! dropped when the segment's removal is on disk. Older duplicates of the chunk in other segments, which a crash in the
//! middle of a compaction may have left, may then come back at a restart as chunks that nothing refers to; two passes
//! later they are gone again.
//!
//! A chunk that does not match its digest is never copied and its segment never removed while something refers to it, so
//! that nothing is lost that a repair could still use; it is reported.

use bytes::Bytes;

use super::format::{RecordHeader, RecordKind, SEGMENT_HEADER, SegmentId, stored_len};
use super::index::Entry;
use super::lanes::{Pending, Place};
use super::segment::{Segment, index_name, segment_name};
use super::store::{ChunkStore, Core, is_media_error};
use crate::error::{Error, Reason, Result};
use crate::model::ChunkId;
use std::sync::Arc;

/// Tombstones written under one sync.
const SWEEP_BATCH: usize = 16_384;
/// Segments compacted by one pass; the rest waits for the next one.
const COMPACT_SEGMENTS: usize = 256;
/// Content copied by one write.
const COPY_BATCH: u64 = 8 << 20;
/// Ids listed in a report.
const REPORT_IDS: usize = 100;
/// An open segment is sealed for compaction only if it wastes at least this much.
const OPEN_WASTE: u64 = 1 << 20;

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReclaimReport {
    /// Its epoch.
    pub epoch: u32,
    /// References that were marked; a chunk referred to twice counts twice.
    pub marked: u64,
    /// References to chunks that are not there: metadata or chunks were lost.
    pub missing: u64,
    /// The first hundred of them.
    pub missing_ids: Vec<ChunkId>,
    /// True if it only counted as the first of the two passes that have to agree.
    pub first_pass: bool,
    /// Chunks removed.
    pub removed_chunks: u64,
    /// Their content in bytes.
    pub removed_bytes: u64,
    /// Segments compacted and removed.
    pub compacted_segments: u64,
    /// Bytes given back to the file system, less what was copied.
    pub freed_bytes: u64,
    /// Chunks that could not be copied because they are damaged; their segments stay.
    pub damaged: u64,
}

impl ChunkStore {
    /// One pass; see the module. Two passes with nothing between remove everything that nothing refers to.
    ///
    /// `mark` is called on a thread, when every transaction whose guard was taken before has ended. It must report each
    /// chunk, manifest chunks included, that **one consistent state** of metadata refers to, read after it was called and
    /// containing all that was durable by then. Ids may repeat. If it fails nothing is removed.
    ///
    /// # Errors
    /// `OVERLOADED` if a pass is running or a commit does not end; what `mark` says; `DISK_FULL`, `IO_FAILED`,
    /// `STORE_FAILED`. The next pass goes on where this one stopped.
    pub async fn reclaim<F>(&self, mark: F) -> Result<ReclaimReport>
    where
        F: FnOnce(&mut dyn FnMut(ChunkId)) -> Result<()> + Send + 'static,
    {
        let store = self.clone();
        let pass = tokio::task::spawn_blocking(move || store.reclaim_blocking(mark)).await;
        pass.map_err(|e| Error::internal("a reclaim pass died").caused_by(e))?
    }

    /// The same for threads.
    ///
    /// # Errors
    /// As [`ChunkStore::reclaim`].
    pub fn reclaim_blocking<F>(&self, mark: F) -> Result<ReclaimReport>
    where
        F: FnOnce(&mut dyn FnMut(ChunkId)) -> Result<()>,
    {
        let core = &*self.core;
        let Some(_running) = core.maintenance.try_lock() else {
            return Err(Error::new(Reason::Overloaded, "a pass that frees chunk space is running already"));
        };
        let mut report = ReclaimReport::default();
        // Read before the epoch begins: every append that has a lower number holds a ticket of an older epoch.
        let removes = core.lanes.next_sequence().saturating_sub(1);
        report.epoch = core.gate.advance(core.settings.patience).ok_or_else(|| {
            Error::new(Reason::Overloaded, "a commit that began before this pass has not ended in time")
        })?;
        mark(&mut |id| core.mark(id, &mut report))?;
        let previous = core.gate.complete();
        report.first_pass = previous.is_none();
        if let Some(previous) = previous {
            let pinned = core.gate.pinned_below().unwrap_or(u32::MAX);
            let leased = core.leases.oldest(core.settings.clock.now_ms()).unwrap_or(u32::MAX);
            core.sweep(previous.min(pinned).min(leased), removes, &mut report)?;
        }
        core.compact(&mut report)?;
        Ok(report)
    }
}

struct Condemned {
    id: ChunkId,
    entry: Entry,
}

impl Core {
    fn mark(&self, id: ChunkId, report: &mut ReclaimReport) {
        report.marked += 1;
        let mut shard = self.index.shard(&id);
        match shard.get(&id) {
            // A damaged chunk is marked too: its segment is all that is left of it.
            Some(mut entry) if !entry.condemned => {
                if entry.seen < report.epoch {
                    entry.seen = report.epoch;
                    shard.set(id, entry);
                }
            }
            _ => {
                report.missing += 1;
                if report.missing_ids.len() < REPORT_IDS {
                    report.missing_ids.push(id);
                }
            }
        }
    }

    fn sweep(&self, floor: u32, removes: u64, report: &mut ReclaimReport) -> Result<()> {
        let mut condemned = Vec::new();
        for mut shard in self.index.shards() {
            shard.for_each_mut(|id, entry| {
                // Those that an earlier pass condemned and could not remove are taken up again.
                if entry.condemned || entry.seen < floor {
                    entry.condemned = true;
                    condemned.push(Condemned { id: *id, entry: *entry });
                }
            });
            drop(shard);
            if condemned.len() >= SWEEP_BATCH {
                self.remove(&std::mem::take(&mut condemned), removes, report)?;
            }
        }
        self.remove(&condemned, removes, report)
    }

    fn remove(&self, condemned: &[Condemned], removes: u64, report: &mut ReclaimReport) -> Result<()> {
        if condemned.is_empty() {
            return Ok(());
        }
        let stone = |c: &Condemned| tombstone(c.id, removes, c.entry.segment);
        let stones: Vec<Pending<'_>> = condemned.iter().map(stone).collect();
        let (places, result) = self.lanes.write(&stones);
        stones.iter().zip(places).for_each(|(stone, place)| self.segments.add_stone(place.segment, stone.names));
        result?;
        self.flusher.sync_blocking()?;
        for c in condemned {
            let mut shard = self.index.shard(&c.id);
            let same = |e: &Entry| e.condemned && e.is_at(c.entry.segment, c.entry.offset);
            if shard.get(&c.id).filter(same).is_some() {
                shard.remove(&c.id);
                self.segments.account(c.entry.segment, 0, stored_len(c.entry.len));
            }
            report.removed_chunks += 1;
            report.removed_bytes += u64::from(c.entry.len);
        }
        Ok(())
    }

    fn compact(&self, report: &mut ReclaimReport) -> Result<()> {
        let percent = u64::from(self.settings.compact_dead_percent);
        let worth = |s: &Segment| {
            let records = s.end() - SEGMENT_HEADER as u64;
            s.dead() > 0 && s.dead() * 100 >= records * percent
        };
        let waste = OPEN_WASTE.min(self.settings.segment_bytes / 4);
        self.lanes.rotate(|s| worth(s) && s.dead() >= waste);
        self.flusher.sealed_all()?;
        let mut segments: Vec<_> = self.segments.all().into_iter().filter(|s| s.is_sealed() && worth(s)).collect();
        // Those that need the least copying first: on a full disk they make room for the others.
        segments.sort_by_key(|s| s.end() - s.dead());
        for segment in segments.into_iter().take(COMPACT_SEGMENTS) {
            if self.gate.is_pinned() {
                break;
            }
            self.compact_one(&segment, report)?;
        }
        Ok(())
    }

    fn compact_one(&self, segment: &Arc<Segment>, report: &mut ReclaimReport) -> Result<()> {
        let id = segment.id();
        let records = self.segments.records(segment)?;
        let mut moves = Vec::new();
        let mut batch = Batch::default();
        let mut written = 0;
        for record in &records {
            match record.kind {
                RecordKind::Tombstone if record.names != id && self.segments.get(record.names).is_some() => {
                    batch.stones.push(*record);
                }
                RecordKind::Chunk if self.lives(id, record) => match self.read_whole(id, record)? {
                    Some(content) => batch.add(record, content),
                    None => report.damaged += 1,
                },
                _ => {}
            }
            if batch.bytes >= COPY_BATCH {
                written += self.copy(&mut batch, &mut moves)?;
            }
        }
        written += self.copy(&mut batch, &mut moves)?;
        self.flusher.sync_blocking()?;
        for (record, place) in &moves {
            let mut shard = self.index.shard(&record.id);
            if let Some(mut entry) = shard.get(&record.id).filter(|e| e.is_at(id, record.offset) && !e.condemned) {
                (entry.segment, entry.offset, entry.damaged) = (place.segment, place.offset, false);
                shard.set(record.id, entry);
                self.segments.account(place.segment, record.stored_len(), 0);
                self.segments.account(id, 0, record.stored_len());
            }
        }
        if records.iter().any(|r| r.kind == RecordKind::Chunk && self.lives(id, r)) {
            return Ok(());
        }
        if self.remove_segment(id)? {
            report.compacted_segments += 1;
            report.freed_bytes += segment.end().saturating_sub(written);
        }
        Ok(())
    }

    fn lives(&self, segment: SegmentId, record: &RecordHeader) -> bool {
        self.index.get(&record.id).is_some_and(|e| e.is_at(segment, record.offset))
    }

    /// The content if it matches; `None`, and remembered, if it does not.
    pub(super) fn read_whole(&self, segment: SegmentId, record: &RecordHeader) -> Result<Option<Bytes>> {
        let content = match self.segments.read(segment, record.offset, 0, record.len) {
            Ok(content) => Some(content).filter(|c| ChunkId::of(c) == record.id),
            Err(error) if is_media_error(&error) => None,
            Err(error) => return Err(error.into()),
        };
        if content.is_none() {
            let bad = super::format::DamagedRecord { segment, offset: record.offset, id: record.id };
            self.mark_damaged(bad);
        }
        Ok(content.map(Bytes::from))
    }

    /// Writes what was collected; gives the bytes that it took.
    fn copy(&self, batch: &mut Batch, moves: &mut Vec<(RecordHeader, Place)>) -> Result<u64> {
        let batch = std::mem::take(batch);
        let stones = batch.stones.iter().map(|s| tombstone(s.id, s.sequence, s.names));
        let chunks = batch.chunks.iter().map(|(r, content)| Pending {
            kind: RecordKind::Chunk,
            id: r.id,
            data: content,
            len: r.len,
            removes: 0,
            names: 0,
        });
        let pending: Vec<Pending<'_>> = stones.chain(chunks).collect();
        let (places, result) = self.lanes.write(&pending);
        batch.stones.iter().zip(&places).for_each(|(stone, place)| self.segments.add_stone(place.segment, stone.names));
        result?;
        let copied = places.into_iter().skip(batch.stones.len());
        moves.extend(batch.chunks.iter().map(|(r, _)| *r).zip(copied));
        Ok(pending.iter().map(|p| stored_len(p.len)).sum())
    }

    /// Removes a segment's files; false if a backup has begun meanwhile.
    fn remove_segment(&self, id: SegmentId) -> Result<bool> {
        let _unlink = self.unlink.lock();
        if self.gate.is_pinned() {
            return Ok(false);
        }
        self.disk.remove(&segment_name(id))?;
        match self.disk.remove(&index_name(id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        self.disk.sync_names()?;
        // Only now may tombstones that name it be dropped.
        self.segments.forget(id);
        let mut damaged = self.damaged.lock();
        let before = damaged.len();
        damaged.retain(|d| d.segment != id);
        if damaged.len() < before {
            self.save_damaged(&damaged);
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Batch {
    stones: Vec<RecordHeader>,
    chunks: Vec<(RecordHeader, [Bytes; 1])>,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, record: &RecordHeader, content: Bytes) {
        self.bytes += record.stored_len();
        self.chunks.push((*record, [content]));
    }
}

fn tombstone(id: ChunkId, removes: u64, names: SegmentId) -> Pending<'static> {
    Pending { kind: RecordKind::Tombstone, id, data: &[], len: 0, removes, names }
}
