//! Segments: which there are, how many of their bytes live, their open files, and how one is read from end to end.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::disk::{Disk, DiskFile};
use super::format::{
    IndexFile, RECORD_ALIGN, RECORD_HEADER, RECORD_MAGIC, RecordHeader, RecordKind, SEGMENT_HEADER, SegmentHeader,
    SegmentId,
};
use crate::model::ChunkId;

/// Bytes that a scan reads at a time; more only for a record that is larger.
const SCAN_WINDOW: usize = 4 << 20;

/// File name of a segment.
pub fn segment_name(id: SegmentId) -> String {
    format!("{id:08x}.seg")
}

/// File name of its index.
pub fn index_name(id: SegmentId) -> String {
    format!("{id:08x}.idx")
}

/// The number in `NNNNNNNN.suffix`.
pub fn parse_name(name: &str, suffix: &str) -> Option<SegmentId> {
    let digits = name.strip_suffix(suffix)?;
    let plain = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    plain.then(|| SegmentId::from_str_radix(digits, 16).ok())?
}

/// A segment. Open: a lane writes to it. Sealed: nothing of it changes ever again.
pub struct Segment {
    /// Number and key.
    pub header: SegmentHeader,
    /// End of the last record.
    pub end: AtomicU64,
    /// Bytes of records that the index points to, and of tombstones that are needed.
    pub live: AtomicU64,
    /// Up to where it is known to be on disk.
    pub synced: AtomicU64,
    /// Written to since it was last synced.
    pub dirty: AtomicBool,
    /// `None` once it is sealed.
    open: Mutex<Option<Open>>,
}

/// What an open segment has in memory, until its records can be read from the index file.
struct Open {
    records: Vec<RecordHeader>,
    /// The file through which it is written; synced through the same, so that no error gets lost between two.
    file: Arc<dyn DiskFile>,
}

impl Segment {
    /// A segment that is still open.
    pub fn open(header: SegmentHeader, end: u64, records: Vec<RecordHeader>, file: Arc<dyn DiskFile>) -> Self {
        Self::new(header, end, Some(Open { records, file }))
    }

    /// A sealed segment.
    pub fn sealed(header: SegmentHeader, end: u64) -> Self {
        Self::new(header, end, None)
    }

    fn new(header: SegmentHeader, end: u64, open: Option<Open>) -> Self {
        Self {
            header,
            end: AtomicU64::new(end),
            live: AtomicU64::new(0),
            synced: AtomicU64::new(end),
            dirty: AtomicBool::new(false),
            open: Mutex::new(open),
        }
    }

    /// Its number.
    pub fn id(&self) -> SegmentId {
        self.header.id
    }

    /// End of the last record.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::SeqCst)
    }

    /// Bytes of it that nothing needs.
    pub fn dead(&self) -> u64 {
        (self.end() - SEGMENT_HEADER as u64).saturating_sub(self.live.load(Ordering::SeqCst))
    }

    /// True if nothing of it changes ever again.
    pub fn is_sealed(&self) -> bool {
        self.open.lock().is_none()
    }

    /// Number of records of an open segment.
    pub fn record_count(&self) -> usize {
        self.open.lock().as_ref().map_or(0, |o| o.records.len())
    }

    /// Adds records to an open segment.
    pub fn push(&self, more: &[RecordHeader], end: u64) {
        if let Some(open) = self.open.lock().as_mut() {
            open.records.extend_from_slice(more);
        }
        self.end.store(end, Ordering::SeqCst);
    }

    /// What the index file will say; `None` if it is sealed.
    pub fn index_file(&self) -> Option<IndexFile> {
        let records = self.open.lock().as_ref()?.records.clone();
        Some(IndexFile { segment: self.header, segment_bytes: self.end(), records })
    }

    /// The file to write to and to sync; `None` if it is sealed.
    pub fn writer(&self) -> Option<Arc<dyn DiskFile>> {
        self.open.lock().as_ref().map(|o| o.file.clone())
    }

    /// Declares it sealed.
    pub fn seal(&self) {
        *self.open.lock() = None;
    }
}

/// All segments, and a bounded number of open files.
pub struct Segments {
    disk: Arc<dyn Disk>,
    map: RwLock<BTreeMap<SegmentId, Arc<Segment>>>,
    /// Number of tombstones, by the segment that they name and the one that holds them.
    stones: Mutex<BTreeMap<(SegmentId, SegmentId), u64>>,
    handles: Mutex<Handles>,
    handles_max: usize,
}

#[derive(Default)]
struct Handles {
    files: HashMap<SegmentId, (Arc<dyn DiskFile>, u64)>,
    tick: u64,
}

impl Segments {
    /// None yet. At most `handles_max` files are kept open; the one unused for longest is closed first.
    pub fn new(disk: Arc<dyn Disk>, handles_max: usize) -> Self {
        Self { disk, map: RwLock::default(), stones: Mutex::default(), handles: Mutex::default(), handles_max }
    }

    /// Adds one.
    pub fn add(&self, segment: Arc<Segment>) {
        self.map.write().insert(segment.id(), segment);
    }

    /// Forgets one and closes its file. Tombstones that name it are dead from now on.
    pub fn forget(&self, id: SegmentId) {
        self.map.write().remove(&id);
        self.handles.lock().files.remove(&id);
        let mut stones = self.stones.lock();
        stones.retain(|(named, holder), count| {
            if *named == id {
                self.account(*holder, 0, *count * RECORD_HEADER as u64);
            }
            *named != id && *holder != id
        });
    }

    /// Counts a tombstone among the living bytes of its segment as long as the segment that it names exists.
    pub fn add_stone(&self, holder: SegmentId, named: SegmentId) {
        if self.get(named).is_some() {
            *self.stones.lock().entry((named, holder)).or_default() += 1;
            self.account(holder, RECORD_HEADER as u64, 0);
        }
    }

    /// One of them.
    pub fn get(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.map.read().get(&id).cloned()
    }

    /// All, in order.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.map.read().values().cloned().collect()
    }

    /// Corrects the count of living bytes when the index begins or ceases to point to a record.
    pub fn account(&self, id: SegmentId, added: u64, removed: u64) {
        if let Some(segment) = self.map.read().get(&id) {
            segment.live.fetch_add(added, Ordering::SeqCst);
            segment.live.fetch_sub(removed, Ordering::SeqCst);
        }
    }

    /// The segment's file.
    pub fn file(&self, id: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        {
            let mut handles = self.handles.lock();
            handles.tick += 1;
            let tick = handles.tick;
            if let Some((file, used)) = handles.files.get_mut(&id) {
                *used = tick;
                return Ok(file.clone());
            }
        }
        let file = self.disk.open(&segment_name(id))?;
        self.keep(id, file.clone());
        Ok(file)
    }

    /// Keeps an open file for later reads.
    pub fn keep(&self, id: SegmentId, file: Arc<dyn DiskFile>) {
        let mut handles = self.handles.lock();
        if handles.files.len() >= self.handles_max
            && let Some(oldest) = handles.files.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id)
        {
            handles.files.remove(&oldest);
        }
        handles.tick += 1;
        let tick = handles.tick;
        handles.files.insert(id, (file, tick));
    }

    /// Content bytes `from..from + len` of the record at `offset`.
    pub fn read(&self, id: SegmentId, offset: u32, from: u32, len: u32) -> io::Result<Vec<u8>> {
        let at = u64::from(offset) + RECORD_HEADER as u64 + u64::from(from);
        self.file(id)?.read_at(at, len as usize)
    }

    /// Fills a buffer with content bytes from `from` on of the record at `offset`.
    pub fn read_into(&self, id: SegmentId, offset: u32, from: u32, buffer: &mut [u8]) -> io::Result<()> {
        let at = u64::from(offset) + RECORD_HEADER as u64 + u64::from(from);
        self.file(id)?.read_into(at, buffer)
    }

    /// All records of a segment: from memory, from its index file, or by reading the segment's headers.
    pub fn records(&self, segment: &Segment) -> io::Result<Vec<RecordHeader>> {
        if let Some(open) = segment.open.lock().as_ref() {
            return Ok(open.records.clone());
        }
        match read_index(self.disk.as_ref(), segment.id()) {
            Some(index) if index.segment == segment.header => Ok(index.records),
            _ => {
                let file = self.file(segment.id())?;
                Ok(scan(file.as_ref(), &segment.header, segment.end(), false)?.records)
            }
        }
    }
}

/// Reads an index file; `None` if there is none or it is not whole.
pub fn read_index(disk: &dyn Disk, id: SegmentId) -> Option<IndexFile> {
    let file = disk.open(&index_name(id)).ok()?;
    let len = usize::try_from(file.len().ok()?).ok()?;
    // The largest one that the format allows; anything longer is not ours.
    if len > 96 + super::format::SEGMENT_RECORDS_MAX * 56 {
        return None;
    }
    IndexFile::decode(&file.read_at(0, len).ok()?)
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Records that are whole, ascending.
    pub records: Vec<RecordHeader>,
    /// Of those, the ones whose content does not match its digest (only if contents were read).
    pub damaged: Vec<(ChunkId, u32)>,
    /// End of the last whole record: behind it no record begins.
    pub end: u64,
    /// Bytes before `end` that do not belong to whole records.
    pub gaps: u64,
    /// Records without their content that nobody had been promised.
    pub torn: u64,
}

/// Reads a segment from its header to `limit`.
///
/// A header that does not fit is no end: the search goes on behind it, at each multiple of 8, because a flipped bit or a
/// page that a power cut lost must not hide the acknowledged records that follow. A record with a sound header and wrong
/// content is damaged if a later one says that it had been on disk; otherwise it was never promised to anybody and does
/// not count.
pub fn scan(file: &dyn DiskFile, header: &SegmentHeader, limit: u64, contents: bool) -> io::Result<Scan> {
    let limit = limit.min(file.len()?).min(u64::from(u32::MAX));
    let mut window = Window { file, limit, start: 0, bytes: Vec::new() };
    let mut found = Scan { end: SEGMENT_HEADER as u64, ..Scan::default() };
    let mut doubtful: Vec<RecordHeader> = Vec::new();
    let mut at = SEGMENT_HEADER as u64;
    while at + RECORD_HEADER as u64 <= limit {
        let decoded = RecordHeader::decode(window.get(at, RECORD_HEADER)?, &header.key, at as u32);
        let Some(record) = decoded.filter(|r| at + RECORD_HEADER as u64 + u64::from(r.len) <= limit) else {
            match window.next_magic(at + RECORD_ALIGN as u64)? {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        let whole = !contents
            || record.kind == RecordKind::Tombstone
            || ChunkId::of(window.get(at + RECORD_HEADER as u64, record.len as usize)?) == record.id;
        at += record.stored_len();
        if !whole {
            doubtful.push(record);
            continue;
        }
        doubtful.retain(|bad| {
            let promised = u64::from(bad.offset) + bad.stored_len() <= u64::from(record.synced);
            if promised {
                found.damaged.push((bad.id, bad.offset));
                found.records.push(*bad);
            }
            !promised
        });
        found.gaps += u64::from(record.offset) - found.end;
        // The padding of the last record may be missing; it carries nothing.
        found.end = at.min(limit);
        found.records.push(record);
    }
    found.torn = doubtful.len() as u64;
    found.records.sort_unstable_by_key(|r| r.offset);
    Ok(found)
}

struct Window<'a> {
    file: &'a dyn DiskFile,
    limit: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Bytes `at..at + len`, which lie before the limit.
    fn get(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        if at < self.start || at + len as u64 > self.start + self.bytes.len() as u64 {
            let want = (len.max(SCAN_WINDOW) as u64).min(self.limit - at);
            self.bytes = self.file.read_at(at, want as usize)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + len])
    }

    /// The next place from `at` on, a multiple of 8, where a record's first bytes stand and a header would fit.
    fn next_magic(&mut self, mut at: u64) -> io::Result<Option<u64>> {
        while at + RECORD_HEADER as u64 <= self.limit {
            let len = SCAN_WINDOW.min((self.limit - at) as usize);
            let bytes = self.get(at, len)?;
            if let Some(hit) = bytes.chunks_exact(RECORD_ALIGN).position(|b| b[..4] == RECORD_MAGIC) {
                let place = at + (hit * RECORD_ALIGN) as u64;
                return Ok((place + RECORD_HEADER as u64 <= self.limit).then_some(place));
            }
            at += (len / RECORD_ALIGN * RECORD_ALIGN).max(RECORD_ALIGN) as u64;
        }
        Ok(None)
    }
}
