//! Opening: which segments there are, where each chunk is, and what a crash left.
//!
//! | found | meaning | done |
//! | --- | --- | --- |
//! | segment and whole index file | sealed | index file is loaded, the segment is not read |
//! | segment without (whole) index file | open when the process ended, or the index file was lost | read from end to end, contents checked, cut off behind the last whole record, synced; goes on as a lane, or is sealed if it is half full or not all of it is whole |
//! | segment without whole header, at most a header long | crash while it was made; holds nothing | removed |
//! | the same, longer | damaged header | restored from the index file; without one set aside as `.bad`, never deleted |
//! | index file without segment | crash while the segment was removed | removed |
//! | `*.tmp` | crash while a file was replaced | removed |
//!
//! A segment that was open is synced, its name too, before anything in it counts: what this process could read from memory may not have
//! been on disk, and a commit may rest on it from now on. Pages are dropped first, so that what is checked is what the
//! disk has, also after a sync that failed.
//!
//! Of several records of one chunk the one with the highest sequence number counts, known damaged ones last. Those that a
//! tombstone removes do not count at all.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::disk::{Disk, DiskFile, write_whole};
use super::format::{
    DamagedRecord, IndexFile, RECORD_ALIGN, RECORD_HEADER, RecordHeader, RecordKind, SEGMENT_HEADER, SegmentHeader,
    SegmentId, decode_damaged, encode_damaged,
};
use super::index::{Entry, Index};
use super::segment::{Segment, Segments, parse_name, read_index, scan, segment_name};
use crate::error::{Error, Reason, Result};
use crate::model::ChunkId;

/// Name of the list of damaged records.
pub const DAMAGED_NAME: &str = "damaged";

/// What was found.
pub struct Recovered {
    /// All segments.
    pub segments: Arc<Segments>,
    /// Every chunk that is there.
    pub index: Index,
    /// Known damaged records.
    pub damaged: BTreeSet<DamagedRecord>,
    /// Segments that were open, cut and synced, and to which more may be written.
    pub open: Vec<Arc<Segment>>,
    /// Those to which no more may be written: something in them is not whole, and a record behind it would say that it
    /// had been on disk.
    pub scarred: Vec<Arc<Segment>>,
    /// Next segment number and next sequence number.
    pub next: (SegmentId, u64),
}

/// Reads the directory. With `repair` false nothing is changed (a backup is read that way).
pub fn recover(disk: &Arc<dyn Disk>, handles_max: usize, repair: bool) -> Result<Recovered> {
    let mut r = Recovery {
        disk: disk.clone(),
        repair,
        found: Recovered {
            segments: Arc::new(Segments::new(disk.clone(), handles_max)),
            index: Index::default(),
            damaged: BTreeSet::new(),
            open: Vec::new(),
            scarred: Vec::new(),
            next: (1, 1),
        },
        stones: HashMap::new(),
    };
    let names = disk.list()?;
    if repair {
        r.remove_leftovers(&names)?;
        // The names themselves may not be on disk yet either.
        disk.sync_names()?;
    }
    let mut ids: Vec<SegmentId> = names.iter().filter_map(|n| parse_name(n, ".seg")).collect();
    ids.sort_unstable();
    for name in &names {
        // Numbers of segments that were set aside or removed half-way are not given again either.
        for suffix in [".seg", ".idx", ".seg.bad"] {
            if let Some(id) = parse_name(name, suffix) {
                r.found.next.0 = r.found.next.0.max(id.saturating_add(1));
            }
        }
    }
    let mut loaded = Vec::with_capacity(ids.len());
    for id in ids {
        if let Some(segment) = r.load(id)? {
            loaded.push(segment);
        }
    }
    r.load_damaged()?;
    for segment in loaded {
        r.index(&segment)?;
    }
    Ok(r.found)
}

struct Recovery {
    disk: Arc<dyn Disk>,
    repair: bool,
    found: Recovered,
    /// Highest sequence number that is removed, per chunk with a tombstone.
    stones: HashMap<ChunkId, u64>,
}

impl Recovery {
    fn remove_leftovers(&self, names: &[String]) -> io::Result<()> {
        for name in names {
            let orphan = parse_name(name, ".idx").is_some_and(|id| !names.contains(&segment_name(id)));
            if orphan {
                tracing::warn!(name, "an index file has no segment; it is removed");
            }
            if orphan || name.ends_with(".tmp") {
                self.disk.remove(name)?;
            }
        }
        Ok(())
    }

    fn load(&mut self, id: SegmentId) -> Result<Option<Arc<Segment>>> {
        let file = self.disk.open(&segment_name(id))?;
        let len = file.len()?;
        let index = read_index(self.disk.as_ref(), id).filter(|i| i.segment.id == id);
        let head = file.read_at(0, len.min(SEGMENT_HEADER as u64) as usize)?;
        let header = SegmentHeader::decode(&head).filter(|h| h.id == id);
        let segment = match (header, index) {
            (header, Some(index)) if header.is_none_or(|h| h == index.segment) => {
                self.load_sealed(file.as_ref(), len, header.is_some(), &index)?
            }
            (Some(header), _) => self.load_open(file.clone(), len, header)?,
            (None, _) => return self.set_aside(id, len),
        };
        self.found.next.1 = self.found.next.1.max(segment.header.first_sequence);
        self.found.segments.add(segment.clone());
        for record in self.found.segments.records(&segment)? {
            self.found.next.1 = self.found.next.1.max(record.sequence.saturating_add(1));
            if record.kind == RecordKind::Tombstone {
                let removed = self.stones.entry(record.id).or_default();
                *removed = record.sequence.max(*removed);
            }
        }
        Ok(Some(segment))
    }

    fn load_sealed(
        &mut self,
        file: &dyn DiskFile,
        len: u64,
        header_whole: bool,
        index: &IndexFile,
    ) -> io::Result<Arc<Segment>> {
        let id = index.segment.id;
        if !header_whole && self.repair && len >= SEGMENT_HEADER as u64 {
            tracing::warn!(
                segment = id,
                "the header of a chunk segment was damaged; it is restored from the index file"
            );
            file.write_at(0, &mut [IoSlice::new(&index.segment.encode())])?;
            file.sync_data()?;
        }
        if len < index.segment_bytes {
            tracing::error!(segment = id, len, expected = index.segment_bytes, "a chunk segment is too short");
            let lost = index.records.iter().filter(|r| {
                r.kind == RecordKind::Chunk && u64::from(r.offset) + RECORD_HEADER as u64 + u64::from(r.len) > len
            });
            self.found.damaged.extend(lost.map(|r| DamagedRecord { segment: id, offset: r.offset, id: r.id }));
        }
        Ok(Arc::new(Segment::sealed(index.segment, index.segment_bytes)))
    }

    fn load_open(&mut self, file: Arc<dyn DiskFile>, len: u64, header: SegmentHeader) -> Result<Arc<Segment>> {
        let id = header.id;
        if self.repair {
            file.sync_data()?;
        }
        file.forget_pages();
        let found = scan(file.as_ref(), &header, u64::MAX, true)?;
        let scarred = found.gaps > 0 || found.torn > 0 || !found.damaged.is_empty();
        if scarred {
            let (bytes, records) = (found.gaps, found.torn);
            tracing::warn!(
                segment = id,
                bytes,
                records,
                "a chunk segment has bytes that do not belong to whole records"
            );
        }
        for (chunk, offset) in found.damaged {
            tracing::error!(segment = id, %chunk, "a stored chunk does not match its digest");
            self.found.damaged.insert(DamagedRecord { segment: id, offset, id: chunk });
        }
        // The zeros behind the last record may be missing, or half a record may follow.
        let end = found.end.next_multiple_of(RECORD_ALIGN as u64);
        if self.repair && end != len {
            tracing::info!(segment = id, len, end, "a chunk segment is cut off behind its last whole record");
            file.truncate(end)?;
            file.sync_data()?;
        }
        let segment = Arc::new(Segment::open(header, end, found.records, file));
        if self.repair {
            let list = if scarred { &mut self.found.scarred } else { &mut self.found.open };
            list.push(segment.clone());
        }
        Ok(segment)
    }

    fn set_aside(&self, id: SegmentId, len: u64) -> Result<Option<Arc<Segment>>> {
        if self.repair && len <= SEGMENT_HEADER as u64 {
            self.disk.remove(&segment_name(id))?;
            self.disk.sync_names()?;
        } else {
            tracing::error!(
                segment = id,
                "the header of a chunk segment is damaged and it has no index file; set aside"
            );
            if self.repair {
                self.disk.rename(&segment_name(id), &format!("{}.bad", segment_name(id)))?;
                self.disk.sync_names()?;
            }
        }
        Ok(None)
    }

    /// Joins the list of damaged records with what was found now, and writes it anew if it lacks some of that: a segment
    /// that was read through is sealed from here on and not read through again, and its damaged record of a chunk must
    /// not be preferred to a whole one by the next opening.
    fn load_damaged(&mut self) -> Result<()> {
        let listed = self.listed_damaged()?;
        let lacks = !self.found.damaged.iter().all(|d| listed.contains(d));
        self.found.damaged.extend(listed);
        if lacks && self.repair {
            let list: Vec<DamagedRecord> = self.found.damaged.iter().copied().collect();
            if let Err(error) = write_whole(self.disk.as_ref(), DAMAGED_NAME, &encode_damaged(&list)) {
                tracing::warn!(%error, "the list of damaged chunks could not be written");
            }
        }
        Ok(())
    }

    fn listed_damaged(&self) -> Result<BTreeSet<DamagedRecord>> {
        let file = match self.disk.open(DAMAGED_NAME) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(e) => return Err(e.into()),
        };
        // If it is not whole, reads and scrubs find the same again.
        let len = file.len()?.min(16 << 20) as usize;
        let Some(list) = decode_damaged(&file.read_at(0, len)?) else {
            tracing::warn!("the list of damaged chunks is not whole; it is begun anew");
            return Ok(BTreeSet::new());
        };
        Ok(list.into_iter().filter(|d| self.found.segments.get(d.segment).is_some()).collect())
    }

    fn index(&mut self, segment: &Segment) -> Result<()> {
        let id = segment.id();
        for record in self.found.segments.records(segment)? {
            if record.kind == RecordKind::Tombstone {
                self.found.segments.add_stone(id, record.names);
            }
            let removed = self.stones.get(&record.id).is_some_and(|s| record.sequence <= *s);
            if record.kind != RecordKind::Chunk || removed {
                continue;
            }
            let damaged =
                self.found.damaged.contains(&DamagedRecord { segment: id, offset: record.offset, id: record.id });
            let entry =
                Entry { segment: id, offset: record.offset, len: record.len, seen: 1, damaged, condemned: false };
            let before = self.found.index.get(&record.id);
            if let Some(before) = before {
                let newer = self.sequence_of(&before)? > record.sequence;
                // Never a known bad record while there is another.
                if if before.damaged == damaged { newer } else { damaged } {
                    continue;
                }
                self.found.segments.account(before.segment, 0, super::format::stored_len(before.len));
            }
            self.found.index.shard(&record.id).set(record.id, entry);
            self.found.segments.account(id, record.stored_len(), 0);
        }
        Ok(())
    }

    /// Sequence number of a record that is in the index; 0 if its header cannot be read any more.
    fn sequence_of(&self, entry: &Entry) -> Result<u64> {
        let segment = self.found.segments.get(entry.segment).ok_or_else(missing)?;
        let file = self.found.segments.file(entry.segment)?;
        let header = match file.read_at(u64::from(entry.offset), RECORD_HEADER) {
            Ok(bytes) => RecordHeader::decode(&bytes, &segment.header.key, entry.offset),
            Err(_) => None,
        };
        Ok(header.map_or(0, |h| h.sequence))
    }
}

fn missing() -> Error {
    Error::new(Reason::Internal, "the chunk index names a segment that is not there")
}
