//! The chunk store: content by digest, in append-only segment files.
//!
//! # Layout
//! One directory: `NNNNNNNN.seg` (records one after the other, see `format.rs`), `NNNNNNNN.idx` (the list of a sealed
//! segment's records, so that opening reads lists and not content), `damaged` (known bad records), `lock`. A chunk is
//! looked up in memory: 56 to 68 bytes a chunk (`index.rs`). Nothing that was written is ever changed; space comes back
//! by copying what lives out of a mostly dead segment and removing the file.
//!
//! # Durability
//! * `append` returns when the bytes are with the kernel and the chunk can be read. A returned [`ChunkStore::sync`] says
//!   that all chunks of appends that had returned before the call are on disk, names of new files included (`flush.rs`).
//! * Segments have no holes: a lane is written by one thread at a time, record behind record, and a failed write is cut
//!   off (`lanes.rs`). Recovery cuts a segment only where no whole record follows (`recover.rs`), and everything that a
//!   sync covered is whole records. So recovery never cuts anything that was promised.
//! * A failed sync poisons the store: no more writes until it is opened again.
//! * A full disk is refused before it is full (`min_free_bytes`, kept for removal, which needs a little space to free
//!   much) and, if it fills up all the same, leaves whole records only.
//!
//! # Committing a reference
//! ```text
//! guard = store.commit_guard()      held until the transaction is durable or has failed
//! guard.require(chunks)             all there, of the right length? stamped with the guard's epoch
//! store.sync().await                all durable, also those that another upload has just appended
//! transact(...)                     writes the manifest
//! drop(guard)
//! ```
//! `require` comes before `sync`: what `require` found had been appended before, so this sync covers it.
//!
//! # Why no needed chunk is ever removed
//! Metadata alone says what is needed. There are no reference counts; removal is mark and sweep (`reclaim.rs`) in epochs,
//! which count mark passes and have nothing to do with clocks. Each chunk in the index has `seen`, an epoch. Words: pass
//! *n* is the mark pass that begins epoch *n*; *P* is the newest completed pass before the present one, *N*.
//!
//! Rules:
//! 1. A mark pass begins its epoch, then waits until no ticket of an older epoch is out, then reads metadata: a
//!    **consistent state that contains every transaction that was durable when the reading began**. Each chunk that this
//!    state refers to gets `seen = N`.
//! 2. Who stamps a chunk holds a ticket of epoch *t* meanwhile and stamps `seen = max(seen, t)`. A commit guard is a
//!    ticket held from before `require` until its transaction is durable or has failed.
//! 3. A transaction creates a reference only to chunks that its guard required, or to chunks to which the state it reads
//!    refers already (copy, move, trash, restore, version).
//! 4. The sweep of pass N condemns a chunk, under the chunk's lock, if `seen < floor`, where *floor* is the smallest of P,
//!    the epochs in which the living leases began, and what running backups pin. A condemned chunk counts as absent for
//!    `require`, `length`, leases and `append` (which then writes a new record), and is never reprieved.
//!
//! Claim: a condemned record is not referred to, now or later.
//!
//! *By a commit whose `require` came first.* Let its ticket be of epoch t; `require` left `seen >= t`, and `seen < P` when
//! condemned, so t < P: pass P began after the ticket was taken and waited for its return, by which time the transaction
//! was durable. So the state that pass P read contained the reference, unless it had been deleted by then. If it did,
//! the chunk was stamped P: contradiction. If it was deleted, a later reference was made by rule 3: either required anew,
//! to which this argument applies again, or derived from a reference that existed in the state of pass P: contradiction.
//!
//! *By a commit whose `require` came after.* It found the chunk absent and failed; both decide under the chunk's lock.
//!
//! *By an upload in flight* (chunk sent, not yet committed): every use under a lease stamps the chunk with an epoch that
//! is not before the lease began, so `seen >= floor` as long as the lease lives. Leases end by clock; when one ends too
//! early, the commit's `require` says what is missing and the client sends it again. A clock cannot lose a chunk.
//!
//! *Read by a backup*: everything the exported state refers to has `seen >=` the pass completed last before the pin was
//! set, by the first paragraph; the pin holds the floor there, and no segment is removed while a pin is set.
//!
//! *By a record written meanwhile.* A tombstone removes the records of its chunk whose sequence number is below the
//! counter's value when epoch N began. Appends hold a ticket while they write and enter the record into the index, so when
//! the marking of pass N begins, every record with such a number is in the index or dead. A new record of a condemned
//! chunk is written after that, has a higher number, and is not touched by the tombstone, in whatever order both reach
//! the disk.
//!
//! # Crashes
//! | killed or cut off | left behind |
//! | --- | --- |
//! | while appending | whole records that nothing refers to, half a record at the end, cut off at the next start |
//! | after `append`, before the commit is durable | a chunk that nothing refers to; removed two passes later |
//! | during a mark pass | nothing: stamps are in memory |
//! | chunks condemned, tombstones not durable | chunks that nothing refers to, or removed: both right |
//! | tombstones durable, index not changed | the same, decided at the next start |
//! | segment half copied out | some chunks twice; the higher sequence number counts |
//! | copies durable, old file still there | the same |
//! | old file removed, its index file not | an index file without segment, removed at the next start |
//!
//! Epochs, leases and stamps begin anew at a restart: every chunk counts as seen in epoch 1, and nothing is removed
//! before two passes have been completed since, so an upload that was under way has at least one full pass to go on.
//!
//! # Limits
//! One process per directory. Marking must be given a consistent state: reading metadata key by key while writers move
//! references from keys not yet read to keys already read would miss them (rule 1). Who reads that way has to note what
//! moves meanwhile and mark it at the end. A commit whose caller goes away gives its guard back while its transaction may
//! still wait to be run; so marking has to begin behind all transactions that wait (an empty one that is run in order
//! does it), which rule 1 then covers.

use std::any::Any;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::{Disk, OsDisk, write_whole};
use super::flush::Flusher;
use super::format::{DAMAGED_MAX, DamagedRecord, RecordKind, encode_damaged, stored_len};
use super::gate::{Gate, Leases, Ticket};
use super::index::{Entry, Index};
use super::lanes::{Lanes, Pending, Place, checked_len};
use super::recover::{DAMAGED_NAME, Recovered, recover};
use super::segment::{Segment, Segments};
use crate::clock::{SharedClock, SystemClock};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, ChunkRef, UploadId};

/// A read looks a chunk up again if its segment went away meanwhile; more often than this can only be a defect.
const READ_TRIES: usize = 16;
/// Free space is asked for again after this many bytes.
const SPACE_STEP: i64 = 16 << 20;

/// How a chunk store is kept.
#[derive(Clone)]
pub struct ChunkStoreSettings {
    /// Where; made if missing.
    pub directory: PathBuf,
    /// A segment is sealed when it would grow past this; 4 KiB to 1 GiB. Default 256 MiB.
    pub segment_bytes: u64,
    /// Segments that are written side by side; 1 to 16. Default 4. Each may have to be read through after a crash.
    pub lanes: usize,
    /// Files kept open for reading; at least 8. Default 128.
    pub handles_max: usize,
    /// Appends are refused when less space than this would be left. Default 64 MiB.
    pub min_free_bytes: u64,
    /// A segment is compacted when at least this share of it is dead. Default 50.
    pub compact_dead_percent: u8,
    /// How long a mark pass waits for commits that began before it. Default one minute; the pass fails after that.
    pub patience: Duration,
    /// For leases.
    pub clock: SharedClock,
}

impl ChunkStoreSettings {
    /// The defaults, in this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            segment_bytes: 256 << 20,
            lanes: 4,
            handles_max: 128,
            min_free_bytes: 64 << 20,
            compact_dead_percent: 50,
            patience: Duration::from_secs(60),
            clock: Arc::new(SystemClock),
        }
    }

    fn check(&self) -> Result<()> {
        let mut wrong = Vec::new();
        if !(4 << 10..=1 << 30).contains(&self.segment_bytes) {
            wrong.push("segment_bytes must be 4 KiB to 1 GiB");
        }
        if !(1..=16).contains(&self.lanes) {
            wrong.push("lanes must be 1 to 16");
        }
        if self.handles_max < 8 {
            wrong.push("handles_max must be at least 8");
        }
        if !(1..=100).contains(&self.compact_dead_percent) {
            wrong.push("compact_dead_percent must be 1 to 100");
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::new(Reason::SettingsInvalid, wrong.join("; "))) }
    }
}

/// A handle; cheap to clone. The store ends, with a last sync, when the last handle, lease, guard and pin are gone.
#[derive(Clone)]
pub struct ChunkStore {
    pub(super) core: Arc<Core>,
}

pub(super) struct Core {
    pub(super) settings: ChunkStoreSettings,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) index: Index,
    pub(super) gate: Gate,
    pub(super) leases: Leases,
    pub(super) segments: Arc<Segments>,
    pub(super) lanes: Lanes,
    pub(super) flusher: Arc<Flusher>,
    pub(super) damaged: Mutex<BTreeSet<DamagedRecord>>,
    /// Held by the reclaim pass that is running.
    pub(super) maintenance: Mutex<()>,
    /// Held while segments are removed, and while a backup sets its pin.
    pub(super) unlink: Mutex<()>,
    space: AtomicI64,
    thread: Mutex<Option<JoinHandle<()>>>,
    _lock: Box<dyn Any + Send + Sync>,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.flusher.stop();
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it has been reported by the runtime; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// What an append did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Chunks that were not there before.
    pub new: u64,
    /// Their content in bytes.
    pub new_bytes: u64,
    /// Chunks that were there.
    pub known: u64,
}

/// Figures of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkStats {
    /// Chunks that are there.
    pub chunk_count: u64,
    /// Bytes of their records.
    pub live_bytes: u64,
    /// Bytes of all segments.
    pub stored_bytes: u64,
    /// Bytes that compaction could give back.
    pub dead_bytes: u64,
    /// Number of segments.
    pub segment_count: u64,
    /// Chunks known to be damaged.
    pub damaged_count: u64,
    /// Living leases and those not yet found to be over.
    pub lease_count: u64,
    /// The present epoch, counted since the store was opened.
    pub epoch: u32,
    /// Memory of the index.
    pub index_bytes: u64,
}

impl ChunkStore {
    /// Opens the store; made if missing. Blocks: reads the index files and at most the segments that were open.
    ///
    /// # Errors
    /// `STORE_BUSY` if another process has it open; `SETTINGS_INVALID`; `IO_FAILED`, `DISK_FULL`.
    pub fn open(settings: &ChunkStoreSettings) -> Result<ChunkStore> {
        settings.check()?;
        Self::open_on(Arc::new(OsDisk::open(&settings.directory)?), settings)
    }

    /// The same on another kind of disk; `settings.directory` is not used.
    ///
    /// # Errors
    /// As [`ChunkStore::open`].
    pub fn open_on(disk: Arc<dyn Disk>, settings: &ChunkStoreSettings) -> Result<ChunkStore> {
        settings.check()?;
        let Some(lock) = disk.lock()? else {
            return Err(Error::new(Reason::StoreBusy, "another process uses the chunk store"));
        };
        let found: Recovered = recover(&disk, settings.handles_max, true)?;
        let flusher = Arc::new(Flusher::new(disk.clone()));
        // Segments that are half full are not worth being read through again at the next start.
        let (with_room, full): (Vec<_>, Vec<_>) =
            found.open.into_iter().partition(|s: &Arc<Segment>| s.end() < settings.segment_bytes / 2);
        let (lanes, rest) = with_room.split_at(with_room.len().min(settings.lanes));
        let thread = {
            let flusher = flusher.clone();
            std::thread::Builder::new().name("chunk-flush".into()).spawn(move || flusher.run())?
        };
        full.iter().chain(rest).chain(&found.scarred).for_each(|s| flusher.seal(s.clone()));
        let lanes = Lanes::new(
            disk.clone(),
            found.segments.clone(),
            flusher.clone(),
            lanes.to_vec(),
            settings.lanes,
            settings.segment_bytes,
            found.next,
        );
        let core = Core {
            settings: settings.clone(),
            disk,
            index: found.index,
            gate: Gate::default(),
            leases: Leases::default(),
            segments: found.segments,
            lanes,
            flusher,
            damaged: Mutex::new(found.damaged),
            maintenance: Mutex::new(()),
            unlink: Mutex::new(()),
            space: AtomicI64::new(0),
            thread: Mutex::new(Some(thread)),
            _lock: lock,
        };
        Ok(ChunkStore { core: Arc::new(core) })
    }

    /// Length of a chunk's content; `None` if it is not there, or known to be damaged.
    pub fn length(&self, id: &ChunkId) -> Option<u32> {
        self.core.index.get(id).filter(Entry::usable).map(|e| e.len)
    }

    /// Stores a chunk unless it is there. Blocks. Gives whether it is new. The digest is checked in any case, so nobody
    /// learns what is there without having the content.
    ///
    /// # Errors
    /// `CHUNK_DIGEST_MISMATCH`, `FIELD_INVALID` (length), `DISK_FULL`, `IO_FAILED`, `STORE_FAILED`. Nothing is stored
    /// then.
    pub fn append(&self, id: ChunkId, data: &[Bytes], lease: &Lease) -> Result<bool> {
        Ok(self.append_all(&[(id, data)], lease)?.new == 1)
    }

    /// Stores many chunks with few writes. Blocks.
    ///
    /// # Errors
    /// As [`ChunkStore::append`]. If a digest or length is wrong nothing is stored, and the detail `index` says which;
    /// after other errors some may be stored.
    pub fn append_many(&self, chunks: &[(ChunkId, Vec<Bytes>)], lease: &Lease) -> Result<Appended> {
        let chunks: Vec<(ChunkId, &[Bytes])> = chunks.iter().map(|(id, data)| (*id, data.as_slice())).collect();
        self.append_all(&chunks, lease)
    }

    fn append_all(&self, chunks: &[(ChunkId, &[Bytes])], lease: &Lease) -> Result<Appended> {
        let core = &*self.core;
        let mut lens = Vec::with_capacity(chunks.len());
        for (at, (id, data)) in chunks.iter().enumerate() {
            lens.push(checked_len(id, data).map_err(|e| e.with("index", at))?);
            if digest(data) != *id {
                let message = format!("the content sent as chunk {id} has another digest");
                return Err(Error::new(Reason::ChunkDigestMismatch, message).with("index", at));
            }
        }
        core.flusher.check()?;
        let held = self.enter();
        let epoch = held.epoch();
        core.leases.touch(lease.upload, epoch, core.settings.clock.now_ms());

        let mut done = Appended::default();
        let mut in_batch = HashSet::new();
        let mut pending = Vec::new();
        for ((id, data), len) in chunks.iter().zip(lens) {
            if core.stamp(id, epoch).is_some() || !(chunks.len() == 1 || in_batch.insert(*id)) {
                done.known += 1;
                continue;
            }
            let kind = RecordKind::Chunk;
            pending.push(Pending { kind, id: *id, data, len, removes: 0, names: 0 });
        }
        if pending.is_empty() {
            return Ok(done);
        }
        core.take_space(pending.iter().map(|p| stored_len(p.len)).sum())?;
        let (places, result) = core.lanes.write(&pending);
        for (p, place) in pending.iter().zip(places) {
            if core.enter_record(p, place, epoch) {
                done.new += 1;
                done.new_bytes += u64::from(p.len);
            } else {
                done.known += 1;
            }
        }
        result.map(|()| done)
    }

    /// Returns when every chunk whose append returned before the call is on disk; at once if all are. Callers that wait
    /// share one sync.
    ///
    /// # Errors
    /// `STORE_FAILED` if the disk reported an error, now or before.
    pub async fn sync(&self) -> Result<()> {
        self.core.flusher.sync().await
    }

    /// The same for threads.
    ///
    /// # Errors
    /// As [`ChunkStore::sync`].
    pub fn sync_blocking(&self) -> Result<()> {
        self.core.flusher.sync_blocking()
    }

    /// Reads a part of a chunk. Blocks. With `verify` the whole chunk is read and compared with its digest; a chunk that
    /// does not match is remembered as damaged.
    ///
    /// # Errors
    /// `CHUNK_DAMAGED` if it does not match or is not there; `RANGE_INVALID`; `IO_FAILED`.
    pub fn read(&self, id: &ChunkId, range: Range<u32>, verify: bool) -> Result<Bytes> {
        self.read_by(id, &range, |segments, entry| {
            let (from, len) = if verify { (0, entry.len) } else { (range.start, range.end - range.start) };
            let bytes = Bytes::from(segments.read(entry.segment, entry.offset, from, len)?);
            Ok(if !verify {
                Some(bytes)
            } else {
                (ChunkId::of(&bytes) == *id).then(|| bytes.slice(range.start as usize..range.end as usize))
            })
        })
    }

    /// Fills a buffer with the bytes of a chunk from `from` on, unverified. Blocks. For those whose readers verify, and
    /// who have a buffer to use again.
    ///
    /// # Errors
    /// As [`ChunkStore::read`].
    pub fn read_into(&self, id: &ChunkId, from: u32, buffer: &mut [u8]) -> Result<()> {
        let end = u32::try_from(buffer.len()).ok().and_then(|len| from.checked_add(len)).unwrap_or(u32::MAX);
        self.read_by(id, &(from..end), |segments, entry| {
            segments.read_into(entry.segment, entry.offset, from, buffer).map(Some)
        })
    }

    /// Reads by `read`, which gives `None` for content that is not the chunk's.
    fn read_by<T>(
        &self,
        id: &ChunkId,
        range: &Range<u32>,
        mut read: impl FnMut(&Segments, &Entry) -> io::Result<Option<T>>,
    ) -> Result<T> {
        let core = &*self.core;
        for _ in 0..READ_TRIES {
            let Some(entry) = core.index.get(id) else {
                return Err(Error::new(Reason::ChunkDamaged, format!("chunk {id} is not in the store")));
            };
            if range.start > range.end || range.end > entry.len {
                let message =
                    format!("{}..{} is not within the {} bytes of chunk {id}", range.start, range.end, entry.len);
                return Err(Error::new(Reason::RangeInvalid, message));
            }
            if entry.damaged {
                return Err(damaged(id));
            }
            match read(&core.segments, &entry) {
                Ok(Some(found)) => return Ok(found),
                // Compaction has moved the chunk and removed the segment in between.
                _ if core.index.get(id).is_none_or(|e| !e.is_at(entry.segment, entry.offset)) => {}
                Err(error) if !is_media_error(&error) => return Err(error.into()),
                _ => {
                    core.mark_damaged(DamagedRecord { segment: entry.segment, offset: entry.offset, id: *id });
                    return Err(damaged(id));
                }
            }
        }
        Err(Error::internal("a chunk moved too often while it was read"))
    }

    /// The lease of an upload, begun if there is none. Chunks used under it are not removed until it ends: an hour after
    /// its last use, a day after it began, or by [`Lease::end`].
    pub fn lease(&self, upload: UploadId) -> Lease {
        let held = self.enter();
        self.core.leases.touch(upload, held.epoch(), self.core.settings.clock.now_ms());
        Lease { store: self.clone(), upload }
    }

    /// To be held from before a commit's `require` until its transaction is durable or has failed. Never waits. See the
    /// module for the order of steps.
    pub fn commit_guard(&self) -> CommitGuard<'_> {
        CommitGuard { store: self, held: self.enter() }
    }

    /// Figures.
    pub fn stats(&self) -> ChunkStats {
        let core = &*self.core;
        let (chunk_count, index_bytes) = core.index.size();
        let mut stats = ChunkStats {
            chunk_count,
            index_bytes,
            damaged_count: self.damaged_chunks().len() as u64,
            lease_count: core.leases.count() as u64,
            epoch: core.gate.epoch(),
            ..ChunkStats::default()
        };
        for segment in core.segments.all() {
            stats.segment_count += 1;
            stats.stored_bytes += segment.end();
            stats.dead_bytes += segment.dead();
            stats.live_bytes += segment.live.load(Ordering::SeqCst);
        }
        stats
    }

    /// Chunks that are known to be damaged and have not been stored again since.
    pub fn damaged_chunks(&self) -> Vec<ChunkId> {
        let list = self.core.damaged.lock().clone();
        let still =
            |d: &&DamagedRecord| self.core.index.get(&d.id).is_some_and(|e| e.damaged && e.is_at(d.segment, d.offset));
        list.iter().filter(still).map(|d| d.id).collect()
    }

    pub(super) fn enter(&self) -> Held<'_> {
        Held { gate: &self.core.gate, ticket: self.core.gate.enter() }
    }
}

impl Core {
    /// Stamps a chunk as needed in this epoch; gives its length, or `None` if it cannot be used.
    fn stamp(&self, id: &ChunkId, epoch: u32) -> Option<u32> {
        let mut shard = self.index.shard(id);
        let mut entry = shard.get(id).filter(Entry::usable)?;
        if entry.seen < epoch {
            entry.seen = epoch;
            shard.set(*id, entry);
        }
        Some(entry.len)
    }

    /// Enters a record that was just written; false if the chunk has come from elsewhere meanwhile.
    fn enter_record(&self, p: &Pending<'_>, place: Place, epoch: u32) -> bool {
        let mut shard = self.index.shard(&p.id);
        let before = shard.get(&p.id);
        if let Some(mut entry) = before.filter(Entry::usable) {
            entry.seen = entry.seen.max(epoch);
            shard.set(p.id, entry);
            return false;
        }
        let Place { segment, offset } = place;
        shard.set(p.id, Entry { segment, offset, len: p.len, seen: epoch, damaged: false, condemned: false });
        self.segments.account(segment, stored_len(p.len), 0);
        if let Some(old) = before {
            self.segments.account(old.segment, 0, stored_len(old.len));
        }
        true
    }

    /// Remembers that a record does not match its digest, here and across restarts.
    pub(super) fn mark_damaged(&self, record: DamagedRecord) {
        {
            let mut shard = self.index.shard(&record.id);
            if let Some(mut entry) = shard.get(&record.id).filter(|e| e.is_at(record.segment, record.offset)) {
                entry.damaged = true;
                shard.set(record.id, entry);
            }
        }
        let mut list = self.damaged.lock();
        if list.len() >= DAMAGED_MAX || !list.insert(record) {
            return;
        }
        tracing::error!(segment = record.segment, chunk = %record.id, "a stored chunk does not match its digest");
        self.save_damaged(&list);
    }

    /// Writes the list of damaged records. Without it they are found again, by the next read or scrub.
    pub(super) fn save_damaged(&self, list: &BTreeSet<DamagedRecord>) {
        let list: Vec<DamagedRecord> = list.iter().copied().collect();
        if let Err(error) = write_whole(self.disk.as_ref(), DAMAGED_NAME, &encode_damaged(&list)) {
            tracing::warn!(%error, "the list of damaged chunks could not be written");
        }
    }

    /// Refuses what would leave less than the reserve.
    fn take_space(&self, bytes: u64) -> Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.space.fetch_sub(bytes, Ordering::SeqCst) >= bytes {
            return Ok(());
        }
        let free = i64::try_from(self.disk.free_bytes()?).unwrap_or(i64::MAX);
        let reserve = i64::try_from(self.settings.min_free_bytes).unwrap_or(i64::MAX);
        let left = free.saturating_sub(reserve).saturating_sub(bytes);
        if left < 0 {
            self.space.store(0, Ordering::SeqCst);
            return Err(Error::new(Reason::DiskFull, "the disk of the chunk store is full but for the reserve"));
        }
        self.space.store(left.min(SPACE_STEP), Ordering::SeqCst);
        Ok(())
    }
}

/// A ticket that is given back when it is dropped.
pub(super) struct Held<'a> {
    gate: &'a Gate,
    ticket: Ticket,
}

impl Held<'_> {
    pub(super) fn epoch(&self) -> u32 {
        self.ticket.epoch()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gate.leave(&self.ticket);
    }
}

/// Keeps the chunks of an upload from removal until they are committed.
#[derive(Clone)]
pub struct Lease {
    store: ChunkStore,
    upload: UploadId,
}

impl Lease {
    /// Whose it is.
    pub fn upload(&self) -> UploadId {
        self.upload
    }

    /// Uses chunks under the lease: those that are there stay. Begins the lease anew if it had ended.
    pub fn touch(&self, chunks: &[ChunkId]) {
        self.each(chunks.iter(), |_, _| ());
    }

    /// The same, and says which are not there whole, by position: what FindMissing answers.
    pub fn missing(&self, chunks: &[ChunkRef]) -> Vec<usize> {
        let mut missing = Vec::new();
        self.each(chunks.iter().map(|c| &c.id), |at, len| {
            if len != Some(chunks[at].len) {
                missing.push(at);
            }
        });
        missing
    }

    /// Ends it: its chunks are committed or given up.
    pub fn end(self) {
        self.store.core.leases.end(self.upload);
    }

    fn each<'a>(&self, chunks: impl Iterator<Item = &'a ChunkId>, mut f: impl FnMut(usize, Option<u32>)) {
        let core = &*self.store.core;
        let held = self.store.enter();
        core.leases.touch(self.upload, held.epoch(), core.settings.clock.now_ms());
        for (at, id) in chunks.enumerate() {
            f(at, core.stamp(id, held.epoch()));
        }
    }
}

/// See [`ChunkStore::commit_guard`].
pub struct CommitGuard<'a> {
    store: &'a ChunkStore,
    held: Held<'a>,
}

impl CommitGuard<'_> {
    /// Makes sure that all these chunks are there, whole as far as known and of these lengths, and keeps them until the
    /// next mark pass has read metadata. Call [`ChunkStore::sync`] afterwards, then commit.
    ///
    /// # Errors
    /// The positions of those that are missing.
    pub fn require(&self, chunks: &[ChunkRef]) -> Result<(), Vec<usize>> {
        let core = &*self.store.core;
        let epoch = self.held.epoch();
        let missing: Vec<usize> =
            (0..chunks.len()).filter(|at| core.stamp(&chunks[*at].id, epoch) != Some(chunks[*at].len)).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }
}

/// BLAKE3 of content in pieces.
pub(super) fn digest(data: &[Bytes]) -> ChunkId {
    match data {
        [one] => ChunkId::of(one),
        many => {
            let mut hasher = blake3::Hasher::new();
            for piece in many {
                hasher.update(piece);
            }
            ChunkId(*hasher.finalize().as_bytes())
        }
    }
}

/// True if the bytes are gone, not just out of reach at the moment: the file is too short, or the medium is bad.
pub(super) fn is_media_error(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
        || error.raw_os_error() == Some(rustix::io::Errno::BADMSG.raw_os_error())
}

pub(super) fn damaged(id: &ChunkId) -> Error {
    Error::new(Reason::ChunkDamaged, format!("chunk {id} does not match its digest"))
}
