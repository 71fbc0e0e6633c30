//! Appending: a few open segments ("lanes"), each written by one thread at a time.
//!
//! An appender takes the first lane that is free, so that one client dirties one segment and several clients write side
//! by side. Inside a lane records follow each other without holes: the next is written only after the one before is
//! whole, and what a failed write left is cut off again. So the end of a segment is the only place where a crash can
//! leave half a record, and no reserved space has to be explained to recovery.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::disk::Disk;
use super::flush::Flusher;
use super::format::{
    RECORD_ALIGN, RECORD_HEADER, RecordHeader, RecordKind, SEGMENT_HEADER, SEGMENT_RECORDS_MAX, SegmentHeader,
    SegmentId, stored_len,
};
use super::segment::{Segment, Segments, segment_name};
use crate::error::{Error, Reason, Result};
use crate::model::ChunkId;

/// Most bytes written in one go: bounds how long a lane is held.
const GROUP_BYTES: u64 = 8 << 20;
/// Most records written in one go: their headers and slices are built before the write.
const GROUP_RECORDS: usize = 2_048;
/// A lane asks for write-back after this many bytes, so that the sync at the end of an upload finds little left.
const WRITE_BACK_BYTES: u64 = 32 << 20;

/// A record to be written.
pub struct Pending<'a> {
    /// What it says.
    pub kind: RecordKind,
    /// Which chunk.
    pub id: ChunkId,
    /// Its content, in pieces.
    pub data: &'a [Bytes],
    /// Sum of the pieces.
    pub len: u32,
    /// For a tombstone: the highest sequence number that it removes. A chunk is given the next one when it is written.
    pub removes: u64,
    /// For a tombstone: the segment of the removed record.
    pub names: SegmentId,
}

/// Where a record was written.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Which segment.
    pub segment: SegmentId,
    /// Where in it.
    pub offset: u32,
}

#[derive(Default)]
struct Lane {
    segment: Option<Arc<Segment>>,
    since_write_back: u64,
}

/// All lanes.
pub struct Lanes {
    disk: Arc<dyn Disk>,
    segments: Arc<Segments>,
    flusher: Arc<Flusher>,
    lanes: Vec<Mutex<Lane>>,
    turn: AtomicUsize,
    segment_bytes: u64,
    next_segment: AtomicU32,
    next_sequence: AtomicU64,
}

impl Lanes {
    /// Lanes that go on with the segments that were open, and open further ones when these are full.
    pub fn new(
        disk: Arc<dyn Disk>,
        segments: Arc<Segments>,
        flusher: Arc<Flusher>,
        open: Vec<Arc<Segment>>,
        lanes: usize,
        segment_bytes: u64,
        next: (SegmentId, u64),
    ) -> Self {
        let mut open = open.into_iter();
        let lanes = (0..lanes).map(|_| Mutex::new(Lane { segment: open.next(), since_write_back: 0 })).collect();
        Self {
            disk,
            segments,
            flusher,
            lanes,
            turn: AtomicUsize::new(0),
            segment_bytes,
            next_segment: AtomicU32::new(next.0),
            next_sequence: AtomicU64::new(next.1),
        }
    }

    /// The number that the next chunk record gets; every record written before has a lower one.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence.load(Ordering::SeqCst)
    }

    /// Writes records. What was written before an error is whole and stays; the places of those are given with it.
    pub fn write(&self, pending: &[Pending<'_>]) -> (Vec<Place>, Result<()>) {
        let mut places = Vec::with_capacity(pending.len());
        while places.len() < pending.len() {
            let mut lane = self.pick();
            if let Err(error) = self.write_group(&mut lane, &pending[places.len()..], &mut places) {
                return (places, Err(error));
            }
        }
        (places, Ok(()))
    }

    /// Seals the open segments for which `which` says so.
    pub fn rotate(&self, which: impl Fn(&Segment) -> bool) {
        for lane in &self.lanes {
            let mut lane = lane.lock();
            if let Some(full) = lane.segment.take_if(|s| which(s)) {
                self.flusher.seal(full);
            }
        }
    }

    fn pick(&self) -> MutexGuard<'_, Lane> {
        if let Some(free) = self.lanes.iter().find_map(Mutex::try_lock) {
            return free;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.lanes[turn % self.lanes.len()].lock()
    }

    fn write_group(&self, lane: &mut Lane, pending: &[Pending<'_>], places: &mut Vec<Place>) -> Result<()> {
        self.flusher.check()?;
        let first = pending.first().map_or(0, |p| stored_len(p.len));
        let full = |s: &Segment| {
            (s.end() + first > self.segment_bytes && s.end() > SEGMENT_HEADER as u64)
                || s.record_count() >= SEGMENT_RECORDS_MAX
        };
        if let Some(old) = lane.segment.take_if(|s| full(s)) {
            self.flusher.seal(old);
        }
        let segment = match &lane.segment {
            Some(segment) => segment.clone(),
            None => lane.segment.insert(self.create()?).clone(),
        };
        let Some(file) = segment.writer() else {
            return Err(Error::internal("an open segment has no file"));
        };

        let start = segment.end();
        let mut end = start;
        let room = GROUP_RECORDS.min(SEGMENT_RECORDS_MAX - segment.record_count());
        let synced = segment.synced.load(Ordering::SeqCst) as u32;
        let mut headers = Vec::new();
        for p in pending.iter().take(room) {
            let next = end + stored_len(p.len);
            if !headers.is_empty() && (next > self.segment_bytes || next - start > GROUP_BYTES) {
                break;
            }
            let sequence = match p.kind {
                RecordKind::Chunk => self.next_sequence.fetch_add(1, Ordering::SeqCst),
                RecordKind::Tombstone => p.removes,
            };
            let offset = u32::try_from(end).map_err(|_| Error::internal("a segment is too long"))?;
            headers.push(RecordHeader { kind: p.kind, id: p.id, len: p.len, sequence, names: p.names, synced, offset });
            end = next;
        }

        let encoded: Vec<[u8; RECORD_HEADER]> = headers.iter().map(|h| h.encode(&segment.header.key)).collect();
        let mut slices = Vec::with_capacity(encoded.len() * 3);
        for ((header, bytes), p) in headers.iter().zip(&encoded).zip(pending) {
            slices.push(IoSlice::new(bytes));
            slices.extend(p.data.iter().filter(|d| !d.is_empty()).map(|d| IoSlice::new(d)));
            let padding = header.stored_len() - RECORD_HEADER as u64 - u64::from(header.len);
            if padding > 0 {
                slices.push(IoSlice::new(&[0; RECORD_ALIGN][..padding as usize]));
            }
        }
        if let Err(error) = file.write_at(start, &mut slices) {
            if let Err(error) = file.truncate(start) {
                // What is left of the record stays behind the end of a segment that nobody appends to any more.
                tracing::warn!(segment = segment.id(), %error, "half a record could not be cut off");
                lane.segment = None;
                self.flusher.seal(segment);
            }
            return Err(error.into());
        }
        segment.push(&headers, end);
        self.flusher.wrote(&segment);
        places.extend(headers.iter().map(|h| Place { segment: segment.id(), offset: h.offset }));
        lane.since_write_back += end - start;
        if lane.since_write_back >= WRITE_BACK_BYTES {
            lane.since_write_back = 0;
            self.flusher.nudge();
        }
        Ok(())
    }

    /// Makes a segment. Its header and its name are on disk before the first record is written, so a segment whose
    /// header is not whole holds nothing that anybody relies on, unless the header was damaged later.
    fn create(&self) -> Result<Arc<Segment>> {
        let id = self.next_segment.fetch_add(1, Ordering::SeqCst);
        if id == SegmentId::MAX {
            return Err(Error::internal("segment numbers are used up"));
        }
        let name = segment_name(id);
        let header = SegmentHeader { id, key: rand::random(), first_sequence: self.next_sequence() };
        let file = self.disk.create(&name)?;
        let made = file
            .write_at(0, &mut [IoSlice::new(&header.encode())])
            .and_then(|()| file.sync_data())
            .and_then(|()| self.disk.sync_names());
        if let Err(error) = made {
            let _ = self.disk.remove(&name);
            return Err(Error::from(error).with("segment", id));
        }
        let segment = Arc::new(Segment::open(header, SEGMENT_HEADER as u64, Vec::new(), file.clone()));
        self.segments.keep(id, file);
        self.segments.add(segment.clone());
        Ok(segment)
    }
}

/// Refuses content of a wrong length before anything else looks at it.
pub fn checked_len(id: &ChunkId, data: &[Bytes]) -> Result<u32> {
    let len: usize = data.iter().map(Bytes::len).sum();
    if len == 0 || len > crate::model::MAX_CHUNK_BYTES {
        let message = format!("chunk {id} has {len} bytes; a chunk has 1 to {}", crate::model::MAX_CHUNK_BYTES);
        return Err(Error::new(Reason::FieldInvalid, message));
    }
    Ok(len as u32)
}
