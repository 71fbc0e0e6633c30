//! Copies of the store that fit an exported state of metadata, and getting them back.
//!
//! Order of a backup: set a pin ([`ChunkStore::pin`]), export metadata, copy chunks ([`ChunkStore::backup_to`]), put the
//! exported metadata in place, remove what the new backup does not need ([`prune_backup`]), drop the pin. The pin keeps
//! everything that the exported state refers to, and every segment; sealed segments never change, so a later backup into
//! the same directory copies new ones only. A backup is a chunk store by layout: it can be opened in place, verified
//! ([`verify_backup`]) or taken into another store chunk by chunk ([`ChunkStore::ingest`]).

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, OsDisk, write_whole};
use super::format::{RecordKind, SEGMENT_HEADER, SegmentHeader, SegmentId, encode_damaged};
use super::recover::{DAMAGED_NAME, Recovered, recover};
use super::segment::{Segment, index_name, parse_name, segment_name};
use super::store::{Appended, ChunkStore, Lease, is_media_error};
use crate::error::Result;
use crate::model::ChunkId;

/// Bytes copied at a time.
const COPY_STEP: usize = 4 << 20;
/// Content given to one append while ingesting.
const INGEST_BATCH: usize = 8 << 20;
/// Damaged chunks listed in a report.
const LIST_MAX: usize = 65_536;

/// While it lives no segment is removed, and no chunk to which metadata referred when it was set.
pub struct BackupPin {
    store: ChunkStore,
}

impl Drop for BackupPin {
    fn drop(&mut self) {
        self.store.core.gate.unpin();
    }
}

/// A file that never changes any more; may be hard-linked or copied while the pin is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Its name, the same in every backup.
    pub name: String,
    /// Where it is.
    pub path: Option<PathBuf>,
    /// Bytes that count.
    pub bytes: u64,
}

/// What a backup copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupReport {
    /// Bytes copied; the rest was there.
    pub copied_bytes: u64,
    /// Bytes of the whole backup.
    pub total_bytes: u64,
    /// Names of all its segments.
    pub segments: Vec<String>,
}

/// What reading a backup found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngestReport {
    /// Chunks in it.
    pub chunk_count: u64,
    /// Their content in bytes.
    pub read_bytes: u64,
    /// Chunks that do not match their digest; they were not taken.
    pub damaged: Vec<ChunkId>,
    /// What was stored.
    pub appended: Appended,
}

impl ChunkStore {
    /// Sets a pin; to be done before metadata is exported.
    pub fn pin(&self) -> BackupPin {
        let _unlink = self.core.unlink.lock();
        self.core.gate.pin();
        BackupPin { store: self.clone() }
    }

    /// Seals what is open and lists all segments and index files. They hold every chunk whose append has returned.
    ///
    /// # Errors
    /// `STORE_FAILED` if the disk reported an error.
    pub fn sealed_segments(&self, pin: &BackupPin) -> Result<Vec<SegmentFile>> {
        let core = &*pin.store.core;
        core.flusher.sync_blocking()?;
        core.lanes.rotate(|s| s.end() > SEGMENT_HEADER as u64);
        core.flusher.sealed_all()?;
        let mut files = Vec::new();
        for segment in core.segments.all().into_iter().filter(|s| s.is_sealed()) {
            let name = segment_name(segment.id());
            files.push(SegmentFile { path: core.disk.path(&name), name, bytes: segment.end() });
            let name = index_name(segment.id());
            // A segment without index file is read through when the backup is opened.
            if let Ok(file) = core.disk.open(&name) {
                files.push(SegmentFile { path: core.disk.path(&name), name, bytes: file.len()? });
            }
        }
        Ok(files)
    }

    /// Copies everything into a directory; segments that it has already are skipped. Blocks. `progress` is told bytes
    /// copied and bytes in all.
    ///
    /// # Errors
    /// `IO_FAILED`, `DISK_FULL`, `STORE_FAILED`; what was copied stays and is skipped by the next try.
    pub fn backup_to(
        &self,
        pin: &BackupPin,
        directory: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<BackupReport> {
        let core = &*pin.store.core;
        let files = self.sealed_segments(pin)?;
        let target = OsDisk::open(directory)?;
        let mut report = BackupReport { total_bytes: files.iter().map(|f| f.bytes).sum(), ..BackupReport::default() };
        for file in &files {
            let source = core.disk.open(&file.name)?;
            if !same(source.as_ref(), &target, file)? {
                copy(source.as_ref(), &target, file, |bytes| {
                    report.copied_bytes += bytes;
                    progress(report.copied_bytes, report.total_bytes);
                })?;
            }
            if file.name.ends_with(".seg") {
                report.segments.push(file.name.clone());
            }
        }
        let damaged: Vec<_> = core.damaged.lock().iter().copied().collect();
        write_whole(&target, DAMAGED_NAME, &encode_damaged(&damaged))?;
        target.sync_names()?;
        Ok(report)
    }

    /// Takes every chunk of a backup that is whole into this store, under the lease, and syncs. Blocks.
    ///
    /// # Errors
    /// As [`ChunkStore::append`], or if the backup cannot be read.
    pub fn ingest(&self, from: &Path, lease: &Lease, progress: impl FnMut(&IngestReport)) -> Result<IngestReport> {
        let mut batch: Vec<(ChunkId, Vec<Bytes>)> = Vec::new();
        let mut bytes = 0;
        let mut appended = Appended::default();
        let mut append = |batch: &mut Vec<(ChunkId, Vec<Bytes>)>| -> Result<()> {
            let done = self.append_many(batch, lease)?;
            appended.new += done.new;
            appended.new_bytes += done.new_bytes;
            appended.known += done.known;
            batch.clear();
            Ok(())
        };
        let mut report = walk(
            from,
            |id, content| {
                bytes += content.len();
                batch.push((id, vec![content]));
                if bytes >= INGEST_BATCH {
                    bytes = 0;
                    append(&mut batch)?;
                }
                Ok(())
            },
            progress,
        )?;
        append(&mut batch)?;
        self.sync_blocking()?;
        report.appended = appended;
        Ok(report)
    }
}

/// Reads a backup and compares every chunk with its digest; changes nothing. Blocks.
///
/// # Errors
/// If the backup cannot be read.
pub fn verify_backup(from: &Path, progress: impl FnMut(&IngestReport)) -> Result<IngestReport> {
    walk(from, |_, _| Ok(()), progress)
}

/// Removes segments that are not part of this backup. To be called when metadata that fits the backup is in place.
///
/// # Errors
/// `IO_FAILED`.
pub fn prune_backup(directory: &Path, report: &BackupReport) -> Result<()> {
    let target = OsDisk::open(directory)?;
    let keep: BTreeSet<SegmentId> = report.segments.iter().filter_map(|n| parse_name(n, ".seg")).collect();
    for name in target.list()? {
        let segment = parse_name(&name, ".seg").or_else(|| parse_name(&name, ".idx"));
        if name.ends_with(".tmp") || segment.is_some_and(|id| !keep.contains(&id)) {
            target.remove(&name)?;
        }
    }
    Ok(target.sync_names()?)
}

fn walk(
    from: &Path,
    mut each: impl FnMut(ChunkId, Bytes) -> Result<()>,
    mut progress: impl FnMut(&IngestReport),
) -> Result<IngestReport> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::read_only(from)?);
    let found: Recovered = recover(&disk, 8, false)?;
    let mut report = IngestReport::default();
    for segment in found.segments.all() {
        walk_segment(&found, &segment, &mut report, &mut each)?;
        progress(&report);
    }
    Ok(report)
}

fn walk_segment(
    found: &Recovered,
    segment: &Segment,
    report: &mut IngestReport,
    each: &mut impl FnMut(ChunkId, Bytes) -> Result<()>,
) -> Result<()> {
    for record in found.segments.records(segment)? {
        let here = found.index.get(&record.id).is_some_and(|e| e.is_at(segment.id(), record.offset));
        if record.kind != RecordKind::Chunk || !here {
            continue;
        }
        report.chunk_count += 1;
        report.read_bytes += u64::from(record.len);
        match found.segments.read(segment.id(), record.offset, 0, record.len) {
            Ok(content) if ChunkId::of(&content) == record.id => each(record.id, Bytes::from(content))?,
            Err(error) if !is_media_error(&error) => return Err(error.into()),
            _ if report.damaged.len() < LIST_MAX => report.damaged.push(record.id),
            _ => {}
        }
    }
    Ok(())
}

/// True if the target has this file already: the same length and, for a segment, the same header with its random key.
fn same(source: &dyn super::disk::DiskFile, target: &OsDisk, file: &SegmentFile) -> io::Result<bool> {
    let there = match target.open(&file.name) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    if there.len()? != file.bytes {
        return Ok(false);
    }
    let head = |f: &dyn super::disk::DiskFile| f.read_at(0, SEGMENT_HEADER.min(file.bytes as usize));
    let (here, there) = (head(source)?, head(there.as_ref())?);
    Ok(here == there && (file.name.ends_with(".idx") || SegmentHeader::decode(&here).is_some()))
}

fn copy(
    source: &dyn super::disk::DiskFile,
    target: &OsDisk,
    file: &SegmentFile,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let temporary = format!("{}.tmp", file.name);
    match target.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let to = target.create(&temporary)?;
    let mut at = 0;
    while at < file.bytes {
        let len = COPY_STEP.min((file.bytes - at) as usize);
        let bytes = source.read_at(at, len)?;
        to.write_at(at, &mut [IoSlice::new(&bytes)])?;
        at += len as u64;
        progress(len as u64);
    }
    to.sync_data()?;
    target.rename(&temporary, &file.name)
}
