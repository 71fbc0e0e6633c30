//! Putting pieces where they belong.
//!
//! A file grows as `.NAME.MARK.atrium-part` beside its place, each piece written at its offset in any order, and takes its
//! name when the last one is there. Only verified pieces are written, a piece that belongs to several places is fetched once
//! and written to all of them. What is written is noted in the [`Journal`] at once; a *sync point* now and then makes it
//! safe from a power cut, too.
//!
//! A file that replaces another one is synced before it takes the name: there is always either the old or the new content.
//! A new file takes its name at once; should the power fail before the next sync point, its content is read and hashed when
//! the transfer goes on, and what is damaged is fetched again.
//!
//! Paths are followed step by step from the open destination ([`Beneath`]). All functions block.

mod beneath;

pub use beneath::{Beneath, Kind, exists, named};

use super::bits::Bits;
use super::journal::{Journal, Note};
use super::plan::Plan;
use super::scheduler::Piece;
use crate::source::FileStamp;
use common::bulk::Rope;
use common::error::{Error, Reason, Result};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Timespec, Timestamps};
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Unfinished files that are kept open; all are closed when there are more.
const OPEN_MAX: usize = 128;
/// With more files than this since the last sync point, the whole file system is synced at once.
const SYNC_ONE_BY_ONE: usize = 16;

/// How bytes get into files; tests put a full disk in between.
pub trait Disk: Send + Sync + 'static {
    /// Writes all bytes at this position.
    ///
    /// # Errors
    /// Those of the system.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }
}

/// The system's own files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {}

/// State of a file of the order.
#[derive(Debug, Default)]
struct FileState {
    /// Places that are not filled yet.
    left: AtomicU32,
    /// 0 unfinished, 1 published.
    published: AtomicU32,
}

/// See the module.
pub struct Writer {
    plan: Arc<Plan>,
    tree: Beneath,
    mark: String,
    disk: Arc<dyn Disk>,
    files: Vec<FileState>,
    /// Pieces that are in all their places.
    have: RwLock<Bits>,
    open: Mutex<HashMap<u32, Arc<File>>>,
    /// Files written since the last sync point.
    dirty: Mutex<BTreeSet<u32>>,
    journal: Mutex<Journal>,
    stamps: Mutex<HashMap<u32, FileStamp>>,
    unsynced: AtomicU64,
    published: AtomicU64,
}

impl Writer {
    /// For a plan whose destination and journal are open.
    pub fn new(plan: Arc<Plan>, tree: Beneath, mark: String, disk: Arc<dyn Disk>, journal: Journal) -> Self {
        let files = (0..plan.order.files.len() as u32)
            .map(|f| FileState { left: AtomicU32::new(plan.pieces_of(f).len() as u32), ..FileState::default() })
            .collect();
        Self {
            have: RwLock::new(Bits::new(plan.pieces.len())),
            plan,
            tree,
            mark,
            disk,
            files,
            open: Mutex::new(HashMap::new()),
            dirty: Mutex::new(BTreeSet::new()),
            journal: Mutex::new(journal),
            stamps: Mutex::new(HashMap::new()),
            unsynced: AtomicU64::new(0),
            published: AtomicU64::new(0),
        }
    }

    /// The tree below the destination.
    pub fn tree(&self) -> &Beneath {
        &self.tree
    }

    /// Is the piece in all its places?
    pub fn has(&self, piece: Piece) -> bool {
        self.have.read().has(piece as usize)
    }

    /// Pieces that are in all their places.
    pub fn have(&self) -> Bits {
        self.have.read().clone()
    }

    /// Files that have their names.
    pub fn published_count(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Bytes written since the last sync point.
    pub fn unsynced(&self) -> u64 {
        self.unsynced.load(Ordering::Relaxed)
    }

    /// Where a spot's bytes can be read now, and the stamp of the file if its content is known not to change unseen.
    pub fn locate(&self, piece: Piece) -> Option<(PathBuf, u64, Option<FileStamp>)> {
        if !self.has(piece) {
            return None;
        }
        let spot = *self.plan.spots_of(piece).first()?;
        let path = &self.plan.order.files.get(spot.file as usize)?.path;
        if self.is_published(spot.file) {
            Some((self.tree.path().join(path), spot.offset, self.stamps.lock().get(&spot.file).copied()))
        } else {
            Some((self.tree.part_path(path, &self.mark), spot.offset, None))
        }
    }

    /// Has the file its name?
    pub fn is_published(&self, file: u32) -> bool {
        self.files.get(file as usize).is_some_and(|f| f.published.load(Ordering::Acquire) != 0)
    }

    /// Writes a verified piece to all its places, and publishes the files that are whole then. False if it was there
    /// already.
    ///
    /// # Errors
    /// DISK_FULL, IO_FAILED: the piece counts as missing. ENTRY_EXISTS, IS_A_DIRECTORY, NOT_A_DIRECTORY: something is in the
    /// way.
    pub fn write(&self, piece: Piece, data: &Rope) -> Result<bool> {
        if self.has(piece) {
            return Ok(false);
        }
        for spot in self.plan.spots_of(piece) {
            if self.is_published(spot.file) {
                continue;
            }
            let file = self.file(spot.file)?;
            let mut at = spot.offset;
            for part in data.pieces() {
                self.disk.write_at(&file, part, at).map_err(|e| self.failed(spot.file, e))?;
                at += part.len() as u64;
            }
        }
        self.note(piece)?;
        Ok(true)
    }

    /// Notes that a piece is in all its places, because it was written or found there.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn note(&self, piece: Piece) -> Result<()> {
        if !self.have.write().insert(piece as usize) {
            return Ok(());
        }
        let whole = self.count_down(piece);
        let noted = self.journal.lock().append(&[Note::Have(piece)]);
        self.unsynced.fetch_add(self.plan.bytes_of(piece), Ordering::Relaxed);
        whole.into_iter().map(|file| self.publish(file)).fold(noted, |all, one| all.and(one))
    }

    /// Takes over what a journal says, without writing anything.
    pub fn recover(&self, pieces: impl IntoIterator<Item = Piece>, published: impl IntoIterator<Item = u32>) {
        for file in published {
            if let Some(state) = self.files.get(file as usize)
                && state.published.swap(1, Ordering::AcqRel) == 0
            {
                self.published.fetch_add(1, Ordering::Relaxed);
            }
        }
        for piece in pieces {
            if (piece as usize) < self.plan.pieces.len() && self.have.write().insert(piece as usize) {
                self.count_down(piece);
            }
        }
    }

    /// Publishes the files that are whole and have no name yet: empty ones, and those that were whole when the process
    /// ended.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn publish_whole(&self) -> Result<()> {
        for (n, state) in self.files.iter().enumerate() {
            if state.left.load(Ordering::Acquire) == 0 {
                self.publish(n as u32)?;
            }
        }
        Ok(())
    }

    /// The piece is not in its places any more: it counts as missing, and the files that it belongs to as unfinished.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL.
    pub fn lost(&self, piece: Piece) -> Result<()> {
        if !self.have.write().remove(piece as usize) {
            return Ok(());
        }
        for spot in self.plan.spots_of(piece) {
            if let Some(state) = self.files.get(spot.file as usize) {
                state.left.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.journal.lock().append(&[Note::Lost(piece)])
    }

    /// A file is whole as it lies at its place: gives it its times and rights.
    ///
    /// # Errors
    /// IO_FAILED.
    pub fn adopt(&self, file: u32, at: &File) -> Result<()> {
        self.dress(file, at)?;
        if let Ok(meta) = at.metadata() {
            self.stamps.lock().insert(file, FileStamp::of(&meta));
        }
        self.mark_published(file)
    }

    /// Makes the directories of the order.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY if something is in the way; IO_FAILED, DISK_FULL.
    pub fn make_directories(&self) -> Result<()> {
        self.plan.order.directories.iter().try_for_each(|d| self.tree.make(&d.path, d.mode))
    }

    /// Puts everything that is written on disk, and notes it.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL.
    pub fn sync(&self) -> Result<()> {
        let bytes = self.unsynced.load(Ordering::Relaxed);
        let position = self.journal.lock().position();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        if let Err(error) = self.sync_files(&dirty) {
            self.dirty.lock().extend(dirty);
            return Err(error);
        }
        self.journal.lock().synced(position)?;
        self.unsynced.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn sync_files(&self, dirty: &BTreeSet<u32>) -> Result<()> {
        let failed = |e: io::Error| named(self.tree.path(), "synced", e);
        let published = dirty.iter().any(|f| self.is_published(*f));
        if dirty.len() > SYNC_ONE_BY_ONE || published && !dirty.is_empty() {
            // Names are in directories; the one call takes all of them.
            return rustix::fs::syncfs(self.tree.root()).map_err(|e| failed(e.into()));
        }
        for file in dirty {
            match self.file(*file) {
                Ok(open) => open.sync_data().map_err(failed)?,
                Err(error) if error.is(Reason::EntryUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes all unfinished files. What has its name stays.
    pub fn discard(&self) {
        self.open.lock().clear();
        for (n, file) in self.plan.order.files.iter().enumerate() {
            if !self.is_published(n as u32)
                && let Err(error) = self.tree.discard(&file.path, &self.mark)
            {
                tracing::warn!(%error, "an unfinished file stays");
            }
        }
    }

    /// Reads a piece back from one of its unfinished files, and says whether it is what it should be.
    pub fn holds(&self, piece: Piece, buffer: &mut Vec<u8>) -> bool {
        let Some(wanted) = self.plan.pieces.get(piece as usize) else { return false };
        self.plan.spots_of(piece).iter().all(|spot| {
            let path = &self.plan.order.files[spot.file as usize].path;
            let file = if self.is_published(spot.file) {
                self.tree.read(path).ok().flatten()
            } else {
                self.tree.part(path, &self.mark, false).ok()
            };
            buffer.resize(wanted.len as usize, 0);
            file.is_some_and(|f| f.read_exact_at(buffer, spot.offset).is_ok())
                && common::model::ChunkId::of(buffer) == wanted.id
        })
    }

    /// Is the unfinished file of a path there?
    pub fn has_part(&self, file: u32) -> bool {
        let Some(wanted) = self.plan.order.files.get(file as usize) else { return false };
        self.tree.part(&wanted.path, &self.mark, false).is_ok()
    }

    fn count_down(&self, piece: Piece) -> Vec<u32> {
        let mut whole = Vec::new();
        for spot in self.plan.spots_of(piece) {
            if let Some(state) = self.files.get(spot.file as usize)
                && state.left.fetch_sub(1, Ordering::AcqRel) == 1
            {
                whole.push(spot.file);
            }
        }
        whole
    }

    fn file(&self, file: u32) -> Result<Arc<File>> {
        if let Some(open) = self.open.lock().get(&file) {
            return Ok(open.clone());
        }
        let wanted = self
            .plan
            .order
            .files
            .get(file as usize)
            .ok_or_else(|| Error::internal("a piece belongs to a file that is not in the order"))?;
        let opened = Arc::new(self.tree.part(&wanted.path, &self.mark, true)?);
        let one_piece = self.plan.pieces_of(file).len() <= 1;
        if !one_piece {
            opened.set_len(wanted.content.size_bytes).map_err(|e| self.failed(file, e))?;
        }
        self.dirty.lock().insert(file);
        let mut open = self.open.lock();
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        // Two threads may come here at once; both files are the same one.
        Ok(open.entry(file).or_insert(opened).clone())
    }

    fn publish(&self, file: u32) -> Result<()> {
        if self.is_published(file) {
            return Ok(());
        }
        let open = self.file(file)?;
        let path = &self.plan.order.files[file as usize].path;
        self.dress(file, &open)?;
        let replaces = match self.tree.kind(path)? {
            Kind::Nothing => false,
            Kind::Directory => {
                let shown = self.tree.path().join(path);
                return Err(Error::new(Reason::IsADirectory, format!("{} is a directory", shown.display())));
            }
            _ if !self.plan.order.overwrite => return Err(exists(&self.tree.path().join(path))),
            _ => true,
        };
        if replaces {
            open.sync_all().map_err(|e| self.failed(file, e))?;
        }
        self.tree.publish(path, &self.mark, replaces)?;
        if let Ok(meta) = open.metadata() {
            self.stamps.lock().insert(file, FileStamp::of(&meta));
        }
        self.open.lock().remove(&file);
        self.mark_published(file)
    }

    fn mark_published(&self, file: u32) -> Result<()> {
        if let Some(state) = self.files.get(file as usize)
            && state.published.swap(1, Ordering::AcqRel) == 0
        {
            self.published.fetch_add(1, Ordering::Relaxed);
            self.dirty.lock().insert(file);
        }
        self.journal.lock().append(&[Note::Published(file)])
    }

    /// Size, rights and times.
    fn dress(&self, file: u32, open: &File) -> Result<()> {
        let wanted = &self.plan.order.files[file as usize];
        let failed = |e: io::Error| self.failed(file, e);
        if open.metadata().map_err(failed)?.len() != wanted.content.size_bytes {
            open.set_len(wanted.content.size_bytes).map_err(failed)?;
        }
        open.set_permissions(Permissions::from_mode(wanted.mode & 0o777)).map_err(failed)?;
        let time = Timespec {
            tv_sec: wanted.mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: wanted.mtime_ns.rem_euclid(1_000_000_000) as _,
        };
        // A time that this file system cannot keep is no reason to refuse the content.
        if let Err(error) = rustix::fs::futimens(open, &Timestamps { last_access: time, last_modification: time }) {
            tracing::debug!(%error, "the modification time of a file could not be set");
        }
        Ok(())
    }

    fn failed(&self, file: u32, error: io::Error) -> Error {
        let path = self.plan.order.files.get(file as usize).map_or("", |f| f.path.as_str());
        named(&self.tree.path().join(path), "written", error)
    }
}
